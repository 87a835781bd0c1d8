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

from detector.checkpoint import load_model
from detector.config import ORDERED_PAIRS, TRAIN_NAMES, TrainConfig, resolve
from detector.cost import gflops, latency_ms, parameters
from detector.data.description import digest, load_data, read_split
from detector.distributed import choose_device
from detector.errors import ConfigError, UserError
from detector.evaluate import evaluate as evaluate_checkpoint
from detector.finding import Settings
from detector.guest import train_guest
from detector.memory import keep_freed_memory
from detector.metrics import METRIC_NAMES, fitness
from detector.models import build_model

# The hyperparameters and settings that activity rules read: numbers, and names to choose from.
RULE_GENES = ("mosaic", "mixup", "no_aug_epochs", "ema_decay", "warmup_epochs", "epochs", "xywh")
RULE_CHOICES = ("schedule", "optimizer", "model")
HELD_OUT = "test/"  # how metrics of a split that nothing is chosen by are named
SPEED_SECONDS = 2.0  # of a file in measure_speed


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

    Several devices train together, a process each.
    `parameters` and `gflops` stand beside them, and `latency_ms` if `context.wanted` names it.
    If `context.wanted` has `test/`, the same metrics of the test split stand there as well, named
    `test/mAP50-95` and so on. Goes on from `weights/last.pt` in the context's directory if an
    earlier attempt left one.
    """
    torch.set_num_threads(context.threads)
    cv2.setNumThreads(context.threads)
    keep_freed_memory()
    own = {"seed": context.seed, "device": context.devices[0]}
    config, hyp = resolve({**params, **own})
    if not config.validate:
        raise ConfigError("validate=False leaves a search without a fitness")
    place = (context.directory, context.devices, context.threads)
    result = train_guest(config, hyp, *place, report=context.report)
    costs = _costs(result.best_checkpoint, config, context)
    return {**result.metrics, **costs, **_held_out(config, context)}


def _held_out(config: TrainConfig, context: Context) -> dict[str, float]:
    """Return the metrics of the last epoch's averaged weights on the test split, if wanted."""
    wanted = HELD_OUT in getattr(context, "wanted", ())
    if not wanted or "test" not in load_data(config.data).splits:
        return {}
    checkpoint = context.directory / "weights" / "last.pt"
    settings = Settings(imgsz=config.imgsz)
    found = evaluate_checkpoint(checkpoint, config.data, "test", config.device, settings)
    return {f"{HELD_OUT}{name}": found[name] for name in METRIC_NAMES}


def _costs(checkpoint: Path, config: TrainConfig, context: Context) -> dict[str, float]:
    """Return what the trained network costs; its latency only if the study wants it."""
    device = choose_device(config.device)
    network = load_model(checkpoint, device).model
    costs = {
        "parameters": float(parameters(network)),
        "gflops": gflops(network, config.imgsz, device),
    }
    if "latency_ms" in getattr(context, "wanted", ()):
        costs["latency_ms"] = latency_ms(network, config.imgsz, device)
    return costs


def preflight(
    params: Mapping[str, Any], space: Mapping[str, Mapping[str, Any]]
) -> dict[str, str | dict[str, Any]]:
    """Check settings and data before a study, and return its dead hyperparameters with reasons.

    `space` maps each searched name to its keys (low, high, choices). A name is dead when its
    activity rule fails at every corner of the space that could make it act; one that is dead only
    for some choices of another gets `{"when": {other: choices}, "reason": ...}`.

    Raises: `UserError` (a `ValueError`) for wrong settings, names, bounds or data.
    """
    config, _ = resolve(params)
    fitness(dict.fromkeys(METRIC_NAMES, 0.0), config.fitness)
    _check_files(config, space)
    dead_where: list[tuple[dict[str, Any], dict[str, str]]] = []
    for chosen in _chosen(space):
        reasons: dict[str, str] | None = None
        rest = {name: keys for name, keys in space.items() if name not in chosen}
        for corner in _corners({**params, **chosen}, rest):
            config, hyp = resolve(corner)
            dead = hyp.dead(config)
            reasons = dead if reasons is None else {k: v for k, v in reasons.items() if k in dead}
        dead_where.append((chosen, reasons or {}))
    found = {name: _finding(name, space, dead_where) for name in space}
    if "copy_paste" in space and not found["copy_paste"]:
        found["copy_paste"] = _without_masks(config, space)
    return {name: finding for name, finding in found.items() if finding}


def _check_files(config: TrainConfig, space: Mapping[str, Mapping[str, Any]]) -> None:
    """Read every data set and build every network of the space, without memory for its weights."""
    for path in space.get("data", {}).get("choices", [config.data]):
        data = load_data(path)
        for split in ("train", "val"):
            read_split(data, split)
        with torch.device("meta"):
            for model in space.get("model", {}).get("choices", [config.model]):
                build_model(model, data.num_classes)


def _without_masks(
    config: TrainConfig, space: Mapping[str, Mapping[str, Any]]
) -> str | dict[str, Any]:
    """Return why copy-paste is dead, for which data sets alone it acts, or nothing."""
    choices = space.get("data", {}).get("choices", [config.data])
    samples = {path: read_split(load_data(path), "train") for path in choices}
    acting = [
        path for path in choices if any(sample.outlines is not None for sample in samples[path])
    ]
    if len(acting) == len(choices):
        return ""
    reason = "the data has no masks"
    return {"when": {"data": acting}, "reason": reason} if acting else reason


def _chosen(space: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield every mix of the choices that an activity rule may read."""
    choices = {
        name: keys["choices"]
        for name, keys in space.items()
        if keys.get("choices") and name in (*RULE_GENES, *RULE_CHOICES)
    }
    for values in itertools.product(*choices.values()):
        yield dict(zip(choices, values, strict=True))


def _finding(
    name: str,
    space: Mapping[str, Mapping[str, Any]],
    dead_where: Sequence[tuple[dict[str, Any], dict[str, str]]],
) -> str | dict[str, Any]:
    """Return why a name is dead, for which choices alone it acts, or nothing."""
    reasons = [dead[name] for _, dead in dead_where if name in dead]
    acting = [chosen for chosen, dead in dead_where if name not in dead]
    if not reasons or not acting:
        return reasons[0] if reasons else ""
    when = {}
    for other in (other for other in acting[0] if other != name):
        choices = space[other]["choices"]
        kept = [choice for choice in choices if any(chosen[other] == choice for chosen in acting)]
        if len(kept) < len(choices):
            when[other] = kept
    return {"when": when, "reason": reasons[0]} if when else ""


def _corners(
    params: Mapping[str, Any], space: Mapping[str, Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield `params`, each gene at all its choices or ends, and every mix that a rule reads."""
    yield dict(params)
    for name, keys in space.items():
        values = keys["choices"] if "choices" in keys else _places(keys)
        yield from ({**params, name: value} for value in values)
    ends = {name: (keys["low"], keys["high"]) for name, keys in space.items() if "low" in keys}
    rules = [name for name in RULE_GENES if name in ends]
    for mixed in itertools.product(*(ends[name] for name in rules)):
        yield {**params, **dict(zip(rules, mixed, strict=True))}
    for low, high in ORDERED_PAIRS:
        if low in ends and high in ends:
            yield {**params, low: ends[low][1], high: ends[high][0]}


def _places(keys: Mapping[str, Any]) -> tuple[float, float, float]:
    """Return low, high and a value between, which finds a range that fits at its ends alone."""
    low, high = keys["low"], keys["high"]
    whole = isinstance(low, int) and isinstance(high, int)
    step = keys.get("step") or (1 if whole else 0.381966 * (high - low))
    return low, high, low + step


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


def export(
    checkpoint: str | Path,
    formats: Sequence[str] | None,
    out: str | Path,
    precision: str = "fp32",
) -> list[Path]:
    """Write the checkpoint in the given formats into `out`; return all files written."""
    from detector.export import export as export_model

    files = export_model(checkpoint, formats, out=out, precision=precision)
    return [path for file in files for path in (file.path, file.sidecar) if path is not None]


def measure_speed(checkpoint: str | Path, files: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Return size, latency and throughput of a checkpoint and of what was made of it, a row each.

    Engines that are not for this machine are left out; the CPU computes with one thread, as other
    work on the machine would else decide.
    """
    from detector.benchmark import benchmark

    chosen = [checkpoint, *files]
    try:
        rows = benchmark(chosen, data="none", threads=1, seconds=SPEED_SECONDS)
    except UserError:  # an engine that is not for this machine
        chosen = [file for file in chosen if Path(file).suffix != ".engine"]
        rows = benchmark(chosen, data="none", threads=1, seconds=SPEED_SECONDS)
    return [
        {
            "file": Path(row.file).name,
            "run by": row.format,
            "precision": row.precision,
            "device": "1 thread" if row.device == "cpu" else row.device,
            "MB": row.megabytes,
            "median ms": row.median_ms,
            "p90 ms": row.p90_ms,
            "images/s": row.images_per_second,
            "x eager": row.ratio,
        }
        for row in rows
    ]
