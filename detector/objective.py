"""The bridge to a search: a training as a function from parameters to metrics.

`evolve` calls this module by name (`objective: detector.objective`) and knows nothing else of the
detector. Inside a study nothing is tracked here: the study's process logs what it is told.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import cv2
import torch

from detector.config import ORDERED_PAIRS, TRAIN_NAMES, resolve
from detector.data.description import digest, load_data, read_split
from detector.metrics import METRIC_NAMES, fitness
from detector.train import train

# The hyperparameters and settings that activity rules read.
RULE_GENES = ("mosaic", "mixup", "no_aug_epochs", "ema_decay", "warmup_epochs", "epochs")


class Context(Protocol):
    """What a study tells a trial; see DESIGN section 4."""

    seed: int
    directory: Path
    devices: list[str]
    threads: int
    attempt: int

    def report(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Tell the study how far the trial is; True asks the trial to stop now."""


def evaluate(params: Mapping[str, Any], context: Context) -> dict[str, float]:
    """Train with `params` and return the metrics of the last epoch's averaged weights.

    Goes on from `weights/last.pt` in the context's directory if an earlier attempt left one.
    """
    torch.set_num_threads(context.threads)
    cv2.setNumThreads(context.threads)
    own = {"seed": context.seed, "device": context.devices[0]}
    config, hyp = resolve({**params, **own})
    result = train(config, hyp, context.directory, report=context.report, resume=True)
    return result.metrics


def preflight(params: Mapping[str, Any], space: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Check settings and data before a study, and return its dead hyperparameters with reasons.

    `space` maps each searched name to its keys (low, high, choices). A name is dead when its
    activity rule fails at every corner of the space that could make it act.

    Raises: `UserError` (a `ValueError`) for wrong settings, names, bounds or data.
    """
    config, _ = resolve(params)
    fitness(dict.fromkeys(METRIC_NAMES, 0.0), config.fitness)
    data = load_data(config.data)
    for split in ("train", "val"):
        read_split(data, split)
    reasons: dict[str, str] | None = None
    for corner in _corners(params, space):
        config, hyp = resolve(corner)
        dead = hyp.dead(config)
        reasons = dead if reasons is None else {k: v for k, v in reasons.items() if k in dead}
    return {name: reason for name, reason in (reasons or {}).items() if name in space}


def _corners(
    params: Mapping[str, Any], space: Mapping[str, Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield the start, each gene at each of its ends, and every mix that an activity rule reads."""
    ends = {name: (keys["low"], keys["high"]) for name, keys in space.items() if "low" in keys}
    choices = {name: keys["choices"] for name, keys in space.items() if keys.get("choices")}
    rules = [name for name in RULE_GENES if name in ends]
    for chosen in itertools.product(*choices.values()):
        picked = {**params, **dict(zip(choices, chosen, strict=True))}
        yield picked
        yield from (picked | {name: end} for name, pair in ends.items() for end in pair)
        for mixed in itertools.product(*(ends[name] for name in rules)):
            yield picked | dict(zip(rules, mixed, strict=True))
        for low, high in ORDERED_PAIRS:
            if low in ends and high in ends:
                yield picked | {low: ends[low][1], high: ends[high][0]}


def train_fields() -> set[str]:
    """Return the names that are settings of a training, not hyperparameters."""
    return set(TRAIN_NAMES)


def describe(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a tracker should know of a study: data, its digests, versions, all values."""
    config, hyp = resolve(params)
    data = load_data(config.data)
    return {
        "data": config.data,
        "digests": _digests(config.data),
        "classes": list(data.names),
        "torch": torch.__version__,
        "config": dataclasses.asdict(config),
        "hyp": dataclasses.asdict(hyp),
    }


@functools.cache  # a worker describes each of its trials; the data set stays the same
def _digests(data: str) -> dict[str, str]:
    described = load_data(data)
    return {split: digest(read_split(described, split)) for split in ("train", "val")}


def export(checkpoint: str | Path, formats: Sequence[str] | None, out: str | Path) -> list[Path]:
    """Write the checkpoint in the given formats into `out`; return all files written."""
    from detector.export import export as export_model

    files = export_model(checkpoint, formats, out=out)
    return [path for file in files for path in (file.path, file.sidecar) if path is not None]
