"""Files to be measured side by side: loaded, with their checkpoints, taking turns.

Turns are short stretches, so that other work on the machine slows all of them alike.
"""

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from detector.backends import Backend, load_backend, wrap_checkpoint
from detector.checkpoint import LoadedModel, load_model
from detector.errors import CheckpointError, ConfigError
from detector.graph_nms import GraphNms, rule_of

log = logging.getLogger("detector")

COMPANIONS = (".bin", ".json", ".cfg", ".weights")  # beside files to measure: `best.*` is fine
STRETCH = 0.5  # seconds that a file runs before the next one has its turn
WARM_UP = 5  # calls that are not timed, at the beginning
LEAST_ROUNDS = 3
FORMATS = {  # by suffix; an .onnx file is called after what runs it, an engine after its library
    ".pt": "pytorch",
    ".xml": "openvino",
    ".param": "ncnn",
    ".torchscript": "torchscript",
    ".pte": "executorch",
}


@dataclass(eq=False)
class Contender:
    """A file that is being measured."""

    path: Path
    format: str
    backend: Backend
    checkpoint: str | None  # SHA-256 of the checkpoint that it is, or was made from
    single: list[list[float]] = field(default_factory=list)  # seconds of calls, by round
    rates: list[float] = field(default_factory=list)  # images a second, by round

    @property
    def precision(self) -> str:
        """What the file says about itself."""
        return str(self.backend.metadata.get("precision", "fp32"))

    @property
    def rule(self) -> GraphNms:
        """Thresholds of its NMS, if it has NMS inside."""
        return rule_of(self.path, self.backend.metadata) or GraphNms()

    def run_for(self, images: Tensor, seconds: float) -> list[float]:
        """Call it again and again; return the seconds of each call but the first."""
        took: list[float] = []
        self.call(images)
        began = time.perf_counter()
        while not took or time.perf_counter() - began < seconds:
            start = time.perf_counter()
            self.call(images)
            took.append(time.perf_counter() - start)
        return took

    def call(self, images: Tensor) -> None:
        """Run it once, and wait for the end; with NMS if that is part of the network or file."""
        if self.backend.run is None:
            self.backend.detect(images, self.rule.conf, self.rule.iou, self.rule.max_det)
        else:
            self.backend(images)
        if self.backend.device.type != "cpu":
            torch.accelerator.synchronize(self.backend.device)

    def images(self, count: int) -> Tensor:
        """Return noise to run on, where and as the network computes fastest."""
        side = self.backend.imgsz
        images = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 255
        images = images.to(self.backend.device)
        if self.format == "pytorch" and self.backend.device.type != "cpu":
            return images.contiguous(memory_format=torch.channels_last)
        return images


# ---- files and their checkpoints


def load_contenders(
    files: Sequence[Path], device: torch.device, threads: int, readers: Sequence[str]
) -> tuple[list[Contender], dict[str, LoadedModel]]:
    """Return the files with their checkpoints first, and the checkpoints by their SHA-256.

    A checkpoint that is not among the files is looked for beside the files that were made from it.
    """
    checkpoints: dict[str, LoadedModel] = {}
    contenders = []
    if all(path.suffix.lower() in COMPANIONS for path in files):
        raise ConfigError(f"{', '.join(map(str, files))}: nothing that can be run is among them")
    files = [path for path in files if path.suffix.lower() not in COMPANIONS]
    for path in files:
        if path.suffix.lower() == ".pt":
            checkpoints.setdefault(_digest(path), load_model(path, device))
            continue
        if path.suffix.lower() == ".onnx" and len(readers) > 1:
            contenders += _all_that_run(path, threads, readers)
        else:
            reader = readers[0] if path.suffix.lower() == ".onnx" else None
            contenders.append(_contender(path, device, threads, reader))
    for one in contenders:
        if one.checkpoint and one.checkpoint not in checkpoints:
            found = _beside(one)
            if found is None:
                log.warning("%s: its checkpoint is not beside it: not compared", one.path)
            else:
                checkpoints[one.checkpoint] = load_model(found, device)
    first = [_eager(loaded, digest, device) for digest, loaded in checkpoints.items()]
    return first + contenders, checkpoints


def _contender(path: Path, device: torch.device, threads: int, reader: str | None) -> Contender:
    backend = load_backend(path, device, threads, reader)
    kind = reader or FORMATS.get(path.suffix.lower()) or str(backend.metadata["format"])
    return Contender(path, kind, backend, backend.metadata.get("checkpoint_sha256"))


def _all_that_run(path: Path, threads: int, readers: Sequence[str]) -> list[Contender]:
    """Return an ONNX file with each of several runtimes, but for those that do not take it."""
    found = []
    for reader in readers:
        try:
            one = _contender(path, torch.device("cpu"), threads, reader)
            one.call(one.images(1))
        except CheckpointError as error:
            log.warning("left out: %s by %s: %s", path.name, reader, error)
        else:
            found.append(one)
    if not found:
        raise CheckpointError(f"{path}: none of {', '.join(readers)} takes it")
    return found


def _eager(loaded: LoadedModel, digest: str, device: torch.device) -> Contender:
    if device.type != "cpu":
        loaded.model.to(memory_format=torch.channels_last)
    return Contender(loaded.path, "pytorch", wrap_checkpoint(loaded, device), digest)


def _beside(one: Contender) -> Path | None:
    """Return the checkpoint in a file's folder that the file was made from, if it is there."""
    folder = one.path.parent
    told = folder / str(one.backend.metadata.get("checkpoint", ""))
    for path in dict.fromkeys((told, *sorted(folder.glob("*.pt")))):
        if path.is_file() and _digest(path) == one.checkpoint:
            return path
    return None


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error


def megabytes(path: Path) -> float:
    files = [path]
    if path.suffix.lower() in (".xml", ".param"):
        files.append(path.with_suffix(".bin"))
    return sum(file.stat().st_size for file in files) / 1e6


# ---- turns


def take_turns(contenders: Sequence[Contender], batch: int, seconds: float) -> Iterator[str]:
    """Time all files in turns, `seconds` each with one image and with `batch`; yield who is on."""
    rounds = max(LEAST_ROUNDS, round(seconds / STRETCH))
    inputs = {id(one): (one.images(1), one.images(batch)) for one in contenders}
    for one in contenders:
        yield f"warm-up: {one.path.name}"
        for images in inputs[id(one)]:
            for _ in range(WARM_UP):
                one.call(images)
    for number in range(rounds):
        for one in contenders:
            yield f"round {number + 1}/{rounds}: {one.path.name}"
            single, many = inputs[id(one)]
            one.single.append(one.run_for(single, seconds / rounds))
            calls = one.single[-1] if batch == 1 else one.run_for(many, seconds / rounds)
            one.rates.append(batch / float(np.median(calls)))


def ratio(reference: Contender | None, one: Contender) -> float | None:
    """Return how many times as fast as `reference` a file is: the median over the rounds."""
    if reference is None or reference.backend.imgsz != one.backend.imgsz:
        return None
    pairs = zip(reference.single, one.single, strict=True)
    return float(np.median([np.median(theirs) / np.median(own) for theirs, own in pairs]))
