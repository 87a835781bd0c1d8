"""Accuracy and speed of any number of files, side by side: `python -m detector.benchmark`.

A call is network and decoding, without NMS, which is the same code for all; only a file with NMS in
its graph, and a network that selects its detections itself, is timed with it. Files take turns in
short stretches, so that other work on the machine slows all of them alike.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from detector import parity, training_speed
from detector.backends import RUNTIMES, wrap_checkpoint
from detector.checkpoint import LoadedModel
from detector.cli import add_common, run_command
from detector.config import TrainConfig
from detector.contender import Contender, load_contenders, megabytes, ratio, take_turns
from detector.distributed import choose_device
from detector.errors import ConfigError
from detector.evaluate import measure
from detector.finding import Settings

log = logging.getLogger("detector")

TRAINING_BATCH = 8  # images of a training step, by default


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
    nms: bool  # a call has NMS in it


# ---- measuring


def difference(one: Contender, loaded: LoadedModel | None) -> parity.Difference | None:
    """Return the largest difference from the checkpoint on real images, if that is here."""
    if loaded is None or one.format == "pytorch":
        return None
    images, source = parity.comparison_images(loaded, one.backend.imgsz)
    reference = wrap_checkpoint(loaded, next(loaded.model.parameters()).device)
    if one.backend.run is None:
        return parity.measure_detections(reference, one.backend, images, source, one.rule)
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
        megabytes=megabytes(one.path),
        median_ms=median,
        p90_ms=p90,
        p99_ms=p99,
        images_per_second=float(np.median(one.rates)),
        ratio=ratio(eager, one),
        map50_95=metrics.get("mAP50-95"),
        map50=metrics.get("mAP50"),
        box_px=None if gap is None else gap.box_px,
        score=None if gap is None else gap.score,
        nms=one.backend.run is None,
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
    _check(batch, threads, seconds)
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


def benchmark_training(
    models: Sequence[str],
    imgsz: int = TrainConfig.imgsz,
    batch: int = TRAINING_BATCH,
    device: str = "auto",
    threads: int | None = None,
    seconds: float = 5.0,
) -> list[training_speed.TrainingRow]:
    """Measure how fast networks train, with and without channels-last and mixed precision.

    Sets the number of torch's threads when `threads` is given.

    Raises: UserError; OutOfMemory.
    """
    _check(batch, threads, seconds)
    group = training_speed.trainees(models, imgsz, batch, device)
    turns = tqdm(training_speed.take_turns(group, seconds), leave=False, disable=None)
    for text in turns:
        turns.set_description_str(text)
    return training_speed.rows(group)


def _check(batch: int, threads: int | None, seconds: float) -> None:
    """Raise ConfigError for numbers that are not above 0; set the threads."""
    for name, value in (("batch", batch), ("threads", threads), ("seconds", seconds)):
        if value is not None and not value > 0:
            raise ConfigError(f"--{name} {value} must be above 0")
    if threads is not None:
        torch.set_num_threads(threads)


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

TRAINING_COLUMNS = {
    "model": ("model", "{}"),
    "device": ("device", "{}"),
    "precision": ("precision", "{}"),
    "layout": ("layout", "{}"),
    "imgsz": ("imgsz", "{}"),
    "batch": ("batch", "{}"),
    "images/s": ("images_per_second", "{:.1f}"),
    "ms a step": ("step_ms", "{:.1f}"),
    "p90": ("step_p90_ms", "{:.1f}"),
    "x first": ("ratio", "{:.2f}"),
}

EXAMPLES = """examples:
  python -m detector.benchmark best.pt best.onnx best.openvino.xml --threads 1
  python -m detector.benchmark best.* --data data/bccd.yaml --batch 16 --json
  python -m detector.benchmark best.onnx --runtime onnxruntime,opencv --data none
  python -m detector.benchmark --training yolox-nano yolox-s --imgsz 640 --batch 8
"""


def table(rows: Sequence[Row]) -> str:
    """Return rows as a table that Markdown understands too; `-`: not measured."""
    return _table([{**asdict(row), "file": Path(row.file).name} for row in rows], COLUMNS)


def training_table(rows: Sequence[training_speed.TrainingRow]) -> str:
    """Return rows as a table that Markdown understands too."""
    return _table([asdict(row) for row in rows], TRAINING_COLUMNS)


def _table(rows: Sequence[dict[str, Any]], columns: dict[str, tuple[str, str]]) -> str:
    cells = [list(columns)]
    for values in rows:
        cells.append(
            [
                "-" if values[name] is None else shape.format(values[name])
                for name, shape in columns.values()
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
        description="Measure accuracy, speed and size of checkpoints and exported files, "
        "or with --training how fast networks train.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="checkpoint or exported file; a model to train"
    )
    parser.add_argument("--training", action="store_true", help="time training: FILEs are models")
    parser.add_argument("--imgsz", type=int, help="side in pixels, for --training (default 416)")
    parser.add_argument(
        "--data", help="data set to validate on (default: the checkpoint's own; none: not at all)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--threads", type=int, help="threads of each runtime (default: torch's)")
    parser.add_argument(
        "--batch",
        type=int,
        help=f"images at once, for images/s (default 1; of a training step {TRAINING_BATCH})",
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each file (default 5)")
    parser.add_argument(
        "--runtime",
        default=RUNTIMES[0],
        help=f"what runs .onnx files: {', '.join(RUNTIMES)}; several: a row each",
    )
    add_common(parser)
    return run_command(_body, parser, argv)


def _train_body(options: argparse.Namespace) -> dict[str, Any]:
    rows = benchmark_training(
        options.files,
        imgsz=TrainConfig.imgsz if options.imgsz is None else options.imgsz,
        batch=TRAINING_BATCH if options.batch is None else options.batch,
        device=options.device,
        threads=options.threads,
        seconds=options.seconds,
    )
    if not options.json:
        print(training_table(rows))
    return {
        "training": [asdict(row) for row in rows],
        "threads": options.threads or torch.get_num_threads(),
        "torch": str(torch.__version__),
    }


def _body(options: argparse.Namespace) -> dict[str, Any]:
    if options.training:
        if options.data is not None:
            raise ConfigError("--data is for files: --training reads no data set")
        return _train_body(options)
    if options.imgsz is not None:
        raise ConfigError("--imgsz is for --training: a file has its own size")
    batch = 1 if options.batch is None else options.batch
    rows = benchmark(
        options.files,
        data=options.data,
        device=options.device,
        threads=options.threads,
        batch=batch,
        seconds=options.seconds,
        runtimes=[name.strip() for name in options.runtime.split(",")],
    )
    if not options.json:
        print(table(rows))
    return {
        "files": [asdict(row) for row in rows],
        "batch": batch,
        "threads": options.threads or torch.get_num_threads(),
        "torch": str(torch.__version__),
    }


if __name__ == "__main__":
    raise SystemExit(main())
