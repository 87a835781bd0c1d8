"""Accuracy and speed of any number of files, side by side: `python -m detector.benchmark`.

A call is network and decoding, without NMS, which is the same code for all. Files take turns in
short stretches, so that other work on the machine slows all of them alike.
"""

import argparse
import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from detector import parity
from detector.backends import RUNTIMES, Backend, load_backend, wrap_checkpoint
from detector.checkpoint import LoadedModel, load_model
from detector.cli import add_common, run_command
from detector.distributed import choose_device
from detector.errors import CheckpointError, ConfigError
from detector.evaluate import measure
from detector.finding import Settings

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


@dataclass(frozen=True)
class Row:
    """What was measured of a file; None: not measured."""

    file: str
    format: str
    precision: str
    device: str
    imgsz: int
    megabytes: float  # of all its files
    median_ms: float  # of a call with one image
    p90_ms: float
    p99_ms: float
    images_per_second: float  # of calls with `batch` images
    ratio: float | None  # how many times as fast as its checkpoint in eager PyTorch, one image
    map50_95: float | None
    map50: float | None
    box_px: float | None  # largest difference from the checkpoint, pixels of the input
    score: float | None


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

    def run_for(self, images: Tensor, seconds: float) -> list[float]:
        """Call it again and again; return the seconds of each call but the first."""
        took: list[float] = []
        self._call(images)
        began = time.perf_counter()
        while not took or time.perf_counter() - began < seconds:
            start = time.perf_counter()
            self._call(images)
            took.append(time.perf_counter() - start)
        return took

    def _call(self, images: Tensor) -> None:
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
        for reader in readers if path.suffix.lower() == ".onnx" else (None,):
            backend = load_backend(path, device, threads, reader)
            origin = backend.metadata.get("checkpoint_sha256")
            kind = reader or FORMATS.get(path.suffix.lower()) or str(backend.metadata["format"])
            contenders.append(Contender(path, kind, backend, origin))
    for one in contenders:
        if one.checkpoint and one.checkpoint not in checkpoints:
            found = _beside(one)
            if found is None:
                log.warning("%s: its checkpoint is not beside it: not compared", one.path)
            else:
                checkpoints[one.checkpoint] = load_model(found, device)
    first = [_eager(loaded, digest, device) for digest, loaded in checkpoints.items()]
    return first + contenders, checkpoints


def _eager(loaded: LoadedModel, digest: str, device: torch.device) -> Contender:
    if device.type != "cpu":
        loaded.model.to(memory_format=torch.channels_last)
    backend = wrap_checkpoint(loaded, device)
    if backend.run is None:
        raise ConfigError(f"{loaded.path}: selects its detections itself: not comparable")
    return Contender(loaded.path, "pytorch", backend, digest)


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


def _megabytes(path: Path) -> float:
    files = [path]
    if path.suffix.lower() in (".xml", ".param"):
        files.append(path.with_suffix(".bin"))
    return sum(file.stat().st_size for file in files) / 1e6


# ---- measuring


def take_turns(contenders: Sequence[Contender], batch: int, seconds: float) -> Iterator[str]:
    """Time all files in turns, `seconds` each with one image and with `batch`; yield who is on."""
    rounds = max(LEAST_ROUNDS, round(seconds / STRETCH))
    inputs = {id(one): (one.images(1), one.images(batch)) for one in contenders}
    for one in contenders:
        yield f"warm-up: {one.path.name}"
        for images in inputs[id(one)]:
            for _ in range(WARM_UP):
                one._call(images)
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


def difference(one: Contender, loaded: LoadedModel | None) -> parity.Difference | None:
    """Return the largest difference from the checkpoint on real images, if that is here."""
    if loaded is None or one.format == "pytorch":
        return None
    images, source = parity.comparison_images(loaded, one.backend.imgsz)
    reference = wrap_checkpoint(loaded, next(loaded.model.parameters()).device)
    return parity.measure(reference, one.backend, images, source)


def accuracy(one: Contender, data: str | None) -> dict[str, Any]:
    """Return the metrics on the validation split of `data`; nothing without data."""
    if data is None:
        return {}
    settings = Settings(imgsz=one.backend.imgsz)
    return measure(one.backend, data, "val", str(one.backend.device), settings).report()


def _row(
    one: Contender,
    eager: Contender | None,
    metrics: dict[str, Any],
    gap: parity.Difference | None,
) -> Row:
    times = 1000 * np.concatenate(one.single)
    median, p90, p99 = (float(value) for value in np.percentile(times, (50, 90, 99)))
    return Row(
        file=str(one.path),
        format=one.format,
        precision=one.precision,
        device=str(one.backend.device),
        imgsz=one.backend.imgsz,
        megabytes=_megabytes(one.path),
        median_ms=median,
        p90_ms=p90,
        p99_ms=p99,
        images_per_second=float(np.median(one.rates)),
        ratio=ratio(eager, one),
        map50_95=metrics.get("mAP50-95"),
        map50=metrics.get("mAP50"),
        box_px=None if gap is None else gap.box_px,
        score=None if gap is None else gap.score,
    )


def benchmark(
    files: Sequence[str | Path],
    data: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    batch: int = 1,
    seconds: float = 5.0,
    runtimes: Sequence[str] = RUNTIMES[:1],
) -> list[Row]:
    """Measure files side by side; their checkpoints come first, whether given or found beside them.

    `data` is by default what the first checkpoint was trained with, if that is on this machine;
    "none" leaves accuracy out. `runtimes` are those that run .onnx files, one row each. Sets the
    number of torch's threads when `threads` is given.

    Raises: UserError.
    """
    for name, value in (("batch", batch), ("threads", threads), ("seconds", seconds)):
        if value is not None and not value > 0:
            raise ConfigError(f"--{name} {value} must be above 0")
    if threads is not None:
        torch.set_num_threads(threads)
    threads = threads or torch.get_num_threads()
    chosen = choose_device(device)
    contenders, checkpoints = load_contenders([*map(Path, files)], chosen, threads, runtimes)
    if data is None:
        data = next(filter(None, map(parity.own_data, checkpoints.values())), None)
        log.info("accuracy on %s", data or "no data: give --data")
    data = None if data == "none" else data
    results = []
    for one in contenders:
        log.info("accuracy and difference: %s by %s", one.path.name, one.format)
        loaded = checkpoints.get(one.checkpoint or "")
        results.append((accuracy(one, data), difference(one, loaded)))
    log.info("speed: %d files in turns", len(contenders))
    turns = tqdm(take_turns(contenders, batch, seconds), leave=False, disable=None)
    for text in turns:
        turns.set_description_str(text)
    eager = {one.checkpoint: one for one in contenders if one.format == "pytorch"}
    return [
        _row(one, eager.get(one.checkpoint), metrics, gap)
        for one, (metrics, gap) in zip(contenders, results, strict=True)
    ]


# ---- command

COLUMNS = {  # heading -> field, its format
    "file": ("file", "{}"),
    "run by": ("format", "{}"),
    "precision": ("precision", "{}"),
    "device": ("device", "{}"),
    "MB": ("megabytes", "{:.2f}"),
    "ms median": ("median_ms", "{:.2f}"),
    "p90": ("p90_ms", "{:.2f}"),
    "p99": ("p99_ms", "{:.2f}"),
    "images/s": ("images_per_second", "{:.1f}"),
    "x eager": ("ratio", "{:.2f}"),
    "mAP50-95": ("map50_95", "{:.4f}"),
    "mAP50": ("map50", "{:.4f}"),
    "box px": ("box_px", "{:.1e}"),
    "score": ("score", "{:.1e}"),
}

EXAMPLES = """examples:
  python -m detector.benchmark best.pt best.onnx best.openvino.xml --threads 1
  python -m detector.benchmark best.* --data data/bccd.yaml --batch 16 --json
  python -m detector.benchmark best.onnx --runtime onnxruntime,opencv --data none
"""


def table(rows: Sequence[Row]) -> str:
    """Return rows as a table that Markdown understands too; `-`: not measured."""
    cells = [list(COLUMNS)]
    for row in rows:
        values = {**asdict(row), "file": Path(row.file).name}
        cells.append(
            [
                "-" if values[name] is None else shape.format(values[name])
                for name, shape in COLUMNS.values()
            ]
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        "python -m detector.benchmark",
        description="Measure accuracy, speed and size of checkpoints and exported files.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="checkpoint or exported file")
    parser.add_argument(
        "--data", help="data set to validate on (default: the checkpoint's own; none: not at all)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--threads", type=int, help="threads of each runtime (default: torch's)")
    parser.add_argument("--batch", type=int, default=1, help="images at once, for images/s")
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each file (default 5)")
    parser.add_argument(
        "--runtime",
        default=RUNTIMES[0],
        help=f"what runs .onnx files: {', '.join(RUNTIMES)}; several: a row each",
    )
    add_common(parser)
    return run_command(_body, parser, argv)


def _body(options: argparse.Namespace) -> dict[str, Any]:
    rows = benchmark(
        options.files,
        data=options.data,
        device=options.device,
        threads=options.threads,
        batch=options.batch,
        seconds=options.seconds,
        runtimes=[name.strip() for name in options.runtime.split(",")],
    )
    if not options.json:
        print(table(rows))
    return {
        "files": [asdict(row) for row in rows],
        "batch": options.batch,
        "threads": options.threads or torch.get_num_threads(),
        "torch": str(torch.__version__),
    }


if __name__ == "__main__":
    raise SystemExit(main())
