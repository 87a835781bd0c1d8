"""The winner as a version of a registered model of MLflow: what a team deploys, by its name.

The newest winner of a study has the alias `champion`: `models:/<experiment>-<study>@champion`.
A version keeps its weights, and the engines made of them, when a later one takes the alias.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from evolve import tracked
from evolve.config import StudyConfig
from evolve.description import description_of, digests_of
from evolve.errors import StudyError
from evolve.mlflow_store import Store, fault_line, limits, sqlite_path, store_uri
from evolve.record import CONFIRM, kind_of

if TYPE_CHECKING:
    from evolve.card import Shipment
    from evolve.summary import Summary

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


def model_of(config: StudyConfig) -> str:
    """Return the name of a study's registered model."""
    return model_name(config.tracking.experiment, config.study.name)


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
        place = _place(digest)
        store.upload(candidate.artifacts, candidate.weights, place)
        version = store.add_version(model, candidate.run_id, place, candidate.tags, candidate.text)
    else:
        store.describe_version(version, candidate.tags, candidate.text)
    store.set_alias(model, ALIAS, version.version)


def fetch(config: StudyConfig, alias: str, folder: Path) -> tuple[Path, int]:
    """Copy the weights that an alias of the study's registered model names into `folder`.

    Returns the copy and the number of the trial whose values it was trained with. Raises:
    StudyError if there is no such version, or MLflow cannot be read.
    """
    uri, model = store_uri(config.tracking.uri), model_of(config)
    if uri is None or ((path := sqlite_path(uri)) and not path.is_file()):
        raise StudyError(f"--alias {alias}: there is no MLflow store to look for it in")
    try:
        with limits():
            store = Store(uri, config.tracking.experiment)
            known = store.aliases(model)
            numbered = {str(one.version): one for one in store.versions(model)}
            version = numbered.get(known.get(alias, ""))
            if version is not None:
                artifacts = store.get(version.run_id).info.artifact_uri
                place = _place(version.tags.get(DIGEST, ""))
                copies = store.download(artifacts, place, folder / f"version-{version.version}")
    except Exception as error:  # of MLflow, the database, the network
        raise StudyError(f"--alias {alias}: {fault_line(uri, error)}") from error
    if version is None:
        there = f"it has {', '.join(sorted(known))}" if known else "it has none"
        raise StudyError(f"--alias {alias}: MLflow's model {model} has no such alias; {there}")
    for copy in copies:
        if hashlib.sha256(copy.read_bytes()).hexdigest() == version.tags.get(DIGEST):
            return copy, int(version.tags["trial"])
    raise StudyError(f"--alias {alias}: the weights of {model} version {version.version} are gone")


def keep_files(config: StudyConfig, weights: Path, files: Sequence[Path]) -> str:
    """Put files made of a version's weights (ONNX, engines, a card) beside them in MLflow.

    Returns a line on what was done; empty if there is no record of these weights.
    """
    return _recorded(config, lambda store: _keep_files(store, model_of(config), weights, files))


def register_again(
    config: StudyConfig, study: Study, summary: "Summary", shipment: "Shipment"
) -> str:
    """Make weights that were trained after the search the champion, under the winner's run.

    Returns a line on what went wrong; empty if nothing did.
    """
    winner = next(t for t in study.get_trials() if t.number == summary.recommended_trial)
    tags = tags_of(
        winner, study.get_trials(), shipment.weights, summary.to_dict(), description_of(study)
    )
    metrics = tracked.clean(shipment.retrained_metrics or {})
    tags |= {name: f"{value:.6g}" for name, value in metrics.items()}
    tags["trained_by"] = " ".join(["retrain", *(f"{k}={v}" for k, v in shipment.retrained.items())])
    text = f"{summary.verdict.text}; trained again after the search"
    of_winner = {
        "evolve.id": study.user_attrs.get("tracking_id", ""),
        "evolve.generation": str(winner.number),
    }

    def add(store: Store) -> str:
        runs = store.find(of_winner)
        if not runs:
            return ""
        run = runs[0].info
        candidate = Candidate(run.run_id, run.artifact_uri, shipment.weights, tags, text)
        register(store, model_of(config), candidate)
        return ""

    return _recorded(config, add)


def _recorded(config: StudyConfig, write: Callable[[Store], str]) -> str:
    """Return what `write` says of the study's store; empty without one, a line if it fails."""
    uri = store_uri(config.tracking.uri)
    if uri is None or ((path := sqlite_path(uri)) and not path.is_file()):
        return ""
    try:
        with limits():
            return write(Store(uri, config.tracking.experiment))
    except Exception as error:  # of MLflow, the database, the network: the files are written
        return f"{fault_line(uri, error)}; the files are not in MLflow"


def _keep_files(store: Store, model: str, weights: Path, files: Sequence[Path]) -> str:
    version = _version_of(store, model, hashlib.sha256(weights.read_bytes()).hexdigest())
    if version is None:
        return ""
    run = store.get(version.run_id)
    for path in files:
        store.upload(run.info.artifact_uri, path, _place(version.tags[DIGEST]))
    before = version.tags.get(FORMATS, "").split(", ")
    formats = {*before, *(path.suffix.lstrip(".") for path in files)} - {"", "json", "md"}
    store.describe_version(version, {FORMATS: ", ".join(sorted(formats))}, version.description)
    return f"in MLflow: {model} version {version.version}"


def _place(digest: str) -> str:
    """Return the folder of a version in its run's artifacts."""
    return f"{WEIGHTS}/{digest[:12]}"


def _version_of(store: Store, model: str, digest: str) -> Any:
    """Return the version with these weights, or None."""
    versions = store.versions(model)
    return next((one for one in versions if one.tags.get(DIGEST) == digest), None)
