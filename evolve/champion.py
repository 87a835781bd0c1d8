"""The winner as a version of a registered model of MLflow: what a team deploys, by its name.

The newest winner of a study has the alias `champion`: `models:/<experiment>-<study>@champion`.
A version keeps its weights, and the engines made of them, when a later one takes the alias.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from evolve import tracked
from evolve.config import StudyConfig
from evolve.description import digests_of
from evolve.mlflow_store import Store, fault_line, limits, sqlite_path, store_uri
from evolve.record import CONFIRM, kind_of

ALIAS = "champion"
WEIGHTS = "weights"  # folder of a run; in it one for each version, named after its digest
DIGEST, FORMATS = "sha256", "formats"  # tags of a version


@dataclass(frozen=True)
class Candidate:
    """What becomes a version: the run it belongs to, the weights, tags, a sentence."""

    run_id: str
    artifacts: str
    weights: Path
    tags: dict[str, str]
    text: str


def model_name(experiment: str, study: str) -> str:
    """Return the registered model's name; MLflow takes no slash or colon in it."""
    return re.sub(r"[/:]", "_", f"{experiment}-{study}")


def tags_of(
    winner: FrozenTrial,
    trials: Sequence[FrozenTrial],
    weights: Path,
    summary: Mapping[str, Any],
    description: Mapping[str, Any],
) -> dict[str, str]:
    """Return what a version says of itself: metrics of its weights, data digests, verdict.

    The metrics are those of the training that left the weights, be it a repeat of the winner.
    """
    repeats = [t for t in trials if kind_of(t) == CONFIRM and t.state == TrialState.COMPLETE]
    trained = next((t for t in repeats if str(t.number) in weights.parts[-3:-2]), winner)
    tags = {name: f"{value:.6g}" for name, value in tracked.final_metrics(trained).items()}
    tags |= digests_of(description)
    tags |= {"data": str(description["data"])} if "data" in description else {}
    tags |= {"study": str(summary.get("study", "")), "verdict": str(summary.get("verdict", ""))}
    tags |= {"trial": str(winner.number), "trained_by": str(trained.number)}
    tags[DIGEST] = hashlib.sha256(weights.read_bytes()).hexdigest()
    return {name: value for name, value in tags.items() if value}


def register(store: Store, model: str, candidate: Candidate) -> None:
    """Make the candidate the champion: a new version unless these weights are one already."""
    digest = candidate.tags[DIGEST]
    version = _version_of(store, model, digest)
    if version is None:
        place = f"{WEIGHTS}/{digest[:12]}"
        store.upload(candidate.artifacts, candidate.weights, place)
        version = store.add_version(model, candidate.run_id, place, candidate.tags, candidate.text)
    else:
        store.describe_version(version, candidate.tags, candidate.text)
    store.set_alias(model, ALIAS, version.version)


def keep_files(config: StudyConfig, weights: Path, files: Sequence[Path]) -> str:
    """Put files made of a version's weights (ONNX, engines) beside them in MLflow.

    Returns a line on what was done; empty if there is no record of these weights.
    """
    uri = store_uri(config.tracking.uri)
    if uri is None or ((path := sqlite_path(uri)) and not path.is_file()):
        return ""
    try:
        with limits():
            return _keep_files(Store(uri, config.tracking.experiment), config, weights, files)
    except Exception as error:  # of MLflow, the database, the network: the files are written
        return f"{fault_line(uri, error)}; the files are not in MLflow"


def _keep_files(store: Store, config: StudyConfig, weights: Path, files: Sequence[Path]) -> str:
    model = model_name(config.tracking.experiment, config.study.name)
    version = _version_of(store, model, hashlib.sha256(weights.read_bytes()).hexdigest())
    if version is None:
        return ""
    run = store.get(version.run_id)
    place = f"{WEIGHTS}/{version.tags[DIGEST][:12]}"
    for path in files:
        store.upload(run.info.artifact_uri, path, place)
    before = version.tags.get(FORMATS, "").split(", ")
    formats = {*before, *(path.suffix.lstrip(".") for path in files)} - {"", "json"}
    store.describe_version(version, {FORMATS: ", ".join(sorted(formats))}, version.description)
    return f"in MLflow: {model} version {version.version}"


def _version_of(store: Store, model: str, digest: str) -> Any:
    """Return the version with these weights, or None."""
    versions = store.versions(model)
    return next((one for one in versions if one.tags.get(DIGEST) == digest), None)
