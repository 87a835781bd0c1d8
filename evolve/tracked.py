"""What the tracker is told about a trial: names, parameters, tags, curves, files."""

import csv
import math
import re
import time
from collections.abc import Collection, Mapping
from datetime import datetime
from functools import lru_cache
from numbers import Real
from pathlib import Path
from typing import Any

import yaml
from optuna.trial import FrozenTrial

from evolve.record import CONFIRM, START, kind_of, value_of

Points = dict[tuple[str, int], tuple[float, int]]  # (metric, step) -> (value, milliseconds)

TRIAL_FILES = ("config.yaml", "hyp.yaml", "results.csv", "result.json")
# of which the first is kept: detections rather than plots, and no training data
PICTURES = ("pictures/*.jpg", "pictures/*.png", "plots/*.png", "*.png", "val_*.jpg")
SETTINGS = "settings."  # before the name of a parameter that is not searched
PICTURE_BYTES = 8_000_000
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C: ten times as fast
FITNESS_CURVE = "fitness_by_epoch"
COUNTERS = ("epoch", "step")  # columns of a curve that only count
VALUE_LENGTH = 5000  # characters; MLflow takes 6000 in a parameter and 8000 in a tag


def run_name(trial: FrozenTrial) -> str:
    """Return a name short enough for a legend: `trial 7`, `confirm 7/2` (its second repeat)."""
    kind, attributes = kind_of(trial), trial.user_attrs
    if kind == CONFIRM and "of" in attributes:
        return f"confirm {attributes['of']}/{int(attributes.get('repeat', 0)) + 1}"
    if kind == CONFIRM:
        return f"confirm {trial.number}"
    return f"trial {trial.number} (start)" if kind == START else f"trial {trial.number}"


def milliseconds(moment: datetime | None) -> int:
    """Return a time of Optuna as MLflow counts it; now if it is not known."""
    return int((moment.timestamp() if moment else time.time()) * 1000)


@lru_cache(maxsize=4096)  # the same few names come with every epoch
def metric_name(name: str) -> str:
    """Return the nearest name that MLflow takes: letters, digits and `_-. `, parts split by `/`.

    It takes `mAP@0.5` nowhere, and a colon on some systems only.
    """
    parts = [re.sub(r"[^\w\-. ]", "_", part) for part in str(name).split("/")]
    return "/".join(part for part in parts if part.strip(". "))[:250] or "_"


def clean(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers under allowed names; one inf would destroy MLflow's charts."""
    return {
        metric_name(name): float(value)
        for name, value in metrics.items()
        if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    }


def params_of(trial: FrozenTrial) -> dict[str, str]:
    """Return the searched values in full precision, with `log10_x` beside each x on a log scale.

    The twins are for parallel coordinates, which MLflow draws on linear axes only.
    """
    params = {name: str(value) for name, value in trial.params.items()}
    for name, distribution in trial.distributions.items():
        if getattr(distribution, "log", False):
            params[f"log10_{name}"] = f"{math.log10(trial.params[name]):.4f}"
    return {metric_name(name): value[:VALUE_LENGTH] for name, value in params.items()}


def tags_of(trial: FrozenTrial) -> dict[str, str]:
    """Return what runs can be filtered by: kind, state, number, seed, worker, attempts, reason."""
    tags: dict[str, Any] = {
        "evolve.kind": "confirm" if kind_of(trial) == CONFIRM else "trial",
        "evolve.generation": trial.number,
        "evolve.state": trial.state.name.lower(),
    }
    for name in ("seed", "worker", "attempts", "reason", "of", "repeat"):
        if trial.user_attrs.get(name) not in (None, ""):
            tags[f"evolve.{name}"] = trial.user_attrs[name]
    if "evolve.reason" in tags:
        tags["mlflow.note.content"] = f"`{tags['evolve.reason']}`"
    return {name: str(value)[:VALUE_LENGTH] for name, value in tags.items()}


def epoch_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return an epoch's metrics without the columns that only count.

    Fitness by epoch has a name of its own, so that a trial that runs or failed has no `fitness`.
    """
    curves = {name: value for name, value in metrics.items() if name not in COUNTERS}
    return clean({FITNESS_CURVE if name == "fitness" else name: v for name, v in curves.items()})


def recorded_curves(trial: FrozenTrial, folder: Path | None) -> Points:
    """Return a trial's curves: fitness as told to Optuna, the rest from the folder's results.csv.

    Times are not recorded there: they are spread evenly over the trial's duration.
    """
    rows = [(step, {"fitness": value}) for step, value in trial.intermediate_values.items()]
    rows += _read_results(folder / "results.csv") if folder else []
    begin, end = milliseconds(trial.datetime_start), milliseconds(trial.datetime_complete)
    last = max((step for step, _ in rows), default=0)
    points: Points = {}
    for step, metrics in rows:
        moment = begin + (end - begin) * max(step, 0) // max(last, 1)
        points |= {(name, step): (value, moment) for name, value in epoch_metrics(metrics).items()}
    return points


def final_metrics(trial: FrozenTrial) -> dict[str, float]:
    """Return the metrics at a trial's end."""
    metrics = dict(trial.user_attrs.get("metrics") or {})
    own = {"fitness": value_of(trial), "trial_seconds": trial.user_attrs.get("seconds")}
    return clean({**metrics, **own})


def described(
    description: Mapping[str, Any], folder: Path, searched: Collection[str] = ()
) -> dict[str, str]:
    """Return as parameters what is known of a trial beside the `searched` values.

    These are the folder's hyp.yaml with the settings under its `train`, else the description's own
    `hyp` and `config`, and all else that the objective describes, by dotted names. They stand under
    `settings.`: MLflow's pages choose the first parameters of the alphabet.
    """
    facts = {name: value for name, value in description.items() if name not in ("hyp", "config")}
    values = _read_mapping(folder / "hyp.yaml")
    if not values:
        values = {**(description.get("hyp") or {}), "train": description.get("config")}
    train = values.pop("train", None)
    leaves = flat({**facts, **(train if isinstance(train, Mapping) else {}), **values})
    return {
        metric_name(f"{SETTINGS}{name}"): str(value)[:VALUE_LENGTH]
        for name, value in leaves.items()
        if isinstance(value, str | int | float) and value != "" and name not in (*searched, "seed")
    }


def data_of(description: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return name and digest of each split of the data that an objective describes.

    It says `data`, the name, and `digests`, a mapping from split to digest.
    """
    digests = description.get("digests")
    if not isinstance(digests, Mapping):
        return {}
    name = str(description.get("data") or "data")
    return {str(split): (f"{name} {split}", str(digest)) for split, digest in digests.items()}


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings under dotted names."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        deeper = isinstance(value, Mapping)
        leaves |= flat(value, f"{prefix}{name}.") if deeper else {f"{prefix}{name}": value}
    return leaves


def files_of(folder: Path) -> list[tuple[Path, str | None]]:
    """Return the files worth keeping of a trial, each with its folder in the record.

    Weights are not among them; of the pictures the first is.
    """
    files = [(folder / name, None) for name in TRIAL_FILES if (folder / name).is_file()]
    pictures = (path for pattern in PICTURES for path in sorted(folder.glob(pattern)))
    small = (path for path in pictures if path.stat().st_size <= PICTURE_BYTES)
    return [*files, *((path, "pictures") for path in list(small)[:1])]


def _read_results(path: Path) -> list[tuple[int, dict[str, float]]]:
    """Return (step, metrics) of each row; the step is the column `epoch`, else the row's number."""
    if not path.is_file():
        return []
    rows = []
    with path.open(newline="", encoding="utf-8") as file:
        for index, row in enumerate(csv.DictReader(file)):
            values = {name.strip(): _number(text) for name, text in row.items() if name}
            epoch = values.get("epoch", float(index))
            rows.append((int(epoch) if math.isfinite(epoch) else index, values))
    return rows


def _number(text: object) -> float:
    try:
        return float(str(text))
    except ValueError:
        return math.nan


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), YAML_LOADER)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return {str(name): value for name, value in tree.items()} if isinstance(tree, dict) else {}
