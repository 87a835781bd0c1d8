"""How good a detector is on a data set: for training, for `evaluate()`, for the command.

Letters: B images of a batch, n objects of an image. All three ways use the same settings, the same
letterbox and the same code, so they give the same numbers.
"""

import argparse
import itertools
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detector.augment import Images
from detector.backends import RUNTIMES, Backend, load_backend
from detector.boxes import Detections
from detector.cli import add_common, run_command
from detector.coco_results import coco_results, write_json
from detector.data.description import DataConfig, load_data, read_sets, single_class
from detector.data.sample import Sample
from detector.data.wrappers import SINGLE_CLASS
from detector.decode import select
from detector.distributed import (
    choose_device,
    first_on_machine,
    from_first,
    is_first,
    process_group,
)
from detector.errors import ConfigError
from detector.families import Family
from detector.finding import (
    Originals,
    Settings,
    find_objects_together,
)
from detector.metrics import DetectionMetrics, Prediction, Truth, evaluate_detections
from detector.plots import plot_confusion, plot_curves

log = logging.getLogger("detector")


def evaluate_family(
    family: Family,
    samples: Sequence[Sample],
    images: Images,
    settings: Settings,
    num_classes: int,
    device: torch.device,
) -> DetectionMetrics:
    """Evaluate a network in training, in eval mode meanwhile; `images[i]` is of `samples[i]`."""
    was_training = family.network.training
    family.network.eval()
    try:
        found = find_objects_together(family, samples, images, settings, device)
    finally:
        family.network.train(was_training)
    truths = [truth_of(sample) for sample in samples]
    return from_first(lambda: evaluate_detections(truths, found, num_classes))


def truth_of(sample: Sample) -> Truth:
    """Return the targets of a sample; `crowd` and `difficult` ones are ignored."""
    return Truth(sample.boxes, sample.labels, sample.crowd, sample.difficult)


# ---- stand-alone ---------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was found in a split, and how good it is; `found` are boxes in pixels of the images."""

    weights: Path
    dataset: DataConfig
    split: str
    settings: Settings
    samples: list[Sample]
    found: list[Prediction]
    metrics: DetectionMetrics
    seconds: dict[str, float]  # of the whole split, by stage
    sets: dict[str, DetectionMetrics]  # of each set by its name, if there are several

    def report(self) -> dict[str, Any]:
        """Return plain values: the metrics by their names, "classes" (by name), "coco" (the twelve
        numbers), "speed" (ms per image) and what was evaluated. With several data sets each one's
        metrics are there too, like "bccd/mAP50".
        """
        per_image = {name: 1000 * value / len(self.samples) for name, value in self.seconds.items()}
        return {
            **_as_dict(self.metrics, self.dataset.names),
            **{
                f"{set_name}/{name}": value
                for set_name, metrics in self.sets.items()
                for name, value in metrics.summary().items()
            },
            "speed": per_image,
            "weights": str(self.weights),
            "data": str(self.dataset.path),
            "split": self.split,
            **asdict(self.settings),
        }


def evaluate(
    weights: str | Path | Backend,
    data: str | Path,
    split: str = "val",
    device: str = "auto",
    settings: Settings | None = None,
) -> dict[str, Any]:
    """Evaluate a checkpoint or an exported file on a split of a data set; see `Evaluation.report`.

    `weights` may also be a `Backend` that is already loaded; then `device` is not looked at.
    A detector of a single class (`single_cls`) is measured with all classes of the set as one.
    Raises: UserError for a wrong option, data set or file.
    """
    return measure(weights, data, split, device, settings or Settings()).report()


def measure(
    weights: str | Path | Backend, data: str | Path, split: str, device: str, settings: Settings
) -> Evaluation:
    """Evaluate like `evaluate`, and keep the detections (of all ranks, on rank 0).

    Raises: UserError.
    """
    chosen = weights.device if isinstance(weights, Backend) else choose_device(device)
    with process_group(chosen):
        return _measure(weights, data, split, chosen, settings)


def _measure(
    weights: str | Path | Backend,
    data: str | Path,
    split: str,
    device: torch.device,
    settings: Settings,
) -> Evaluation:
    backend = weights if isinstance(weights, Backend) else load_backend(weights, device)
    settings = settings.sized(backend.imgsz)
    if settings.rect and not backend.any_size:
        raise ConfigError(
            f"{backend.path}: takes images of {backend.imgsz}x{backend.imgsz} only, not --rect"
        )
    with first_on_machine():
        dataset = load_data(data)
        if backend.names == (SINGLE_CLASS,):
            dataset = single_class(dataset)
        sets = read_sets(dataset, split)
    samples = [sample for part in sets.values() for sample in part]
    to_dataset = _label_map(backend, dataset)
    timed = _Timed(backend, settings.imgsz)
    found = find_objects_together(timed, samples, Originals(samples), settings, backend.device)
    found = [Prediction(p.boxes, p.scores, to_dataset[p.labels]) for p in found]
    started = time.perf_counter()
    truths = [truth_of(sample) for sample in samples]
    metrics = from_first(
        lambda: evaluate_detections(truths, found, dataset.num_classes, by_size=True)
    )
    seconds = {**timed.seconds, "metrics": time.perf_counter() - started}
    by_set = from_first(lambda: _measure_sets(sets, truths, found, dataset.num_classes))
    return Evaluation(
        backend.path, dataset, split, settings, samples, found, metrics, seconds, by_set
    )


def _measure_sets(
    sets: dict[str, list[Sample]], truths: list[Truth], found: list[Prediction], num_classes: int
) -> dict[str, DetectionMetrics]:
    """Return the metrics of each of several sets; `truths` and `found` hold them in their order."""
    if len(sets) == 1:
        return {}
    ends = dict(zip(sets, itertools.accumulate(map(len, sets.values())), strict=True))
    return {
        name: evaluate_detections(
            truths[end - len(sets[name]) : end], found[end - len(sets[name]) : end], num_classes
        )
        for name, end in ends.items()
    }


class _Timed:
    """A backend that notes the seconds in network (with decoding) and NMS, all batches included."""

    def __init__(self, backend: Backend, imgsz: int) -> None:
        self.backend = backend
        blank = torch.zeros(1, 3, imgsz, imgsz)
        backend.detect(blank, 1.0, 1.0, 1)  # the first call of a process is slow
        self.seconds = {"network": 0.0, "NMS": 0.0}

    def detect(self, images: Tensor, conf: float, iou: float, max_det: int) -> list[Detections]:
        start = self._now()
        if self.backend.find is not None:  # with NMS inside
            found = self.backend.detect(images, conf, iou, max_det)
            self.seconds["network"] += self._now() - start
            return found
        decoded = self.backend.decoded(images)
        middle = self._now()
        found = select(decoded, conf, iou, max_det)
        self.seconds["network"] += middle - start
        self.seconds["NMS"] += self._now() - middle
        return found

    def _now(self) -> float:
        if self.backend.device.type != "cpu":
            torch.accelerator.synchronize(self.backend.device)
        return time.perf_counter()


def _label_map(backend: Backend, dataset: DataConfig) -> np.ndarray:
    """Return the data set's label of each label of the model, by name, whatever the order."""
    if set(backend.names) != set(dataset.names):
        raise ConfigError(
            f"{backend.path} finds {', '.join(backend.names)}; "
            f"{dataset.path} has other classes: {', '.join(dataset.names)}"
        )
    return np.array([dataset.names.index(name) for name in backend.names], np.int64)


def _as_dict(metrics: DetectionMetrics, names: Sequence[str]) -> dict[str, Any]:
    classes = {
        names[row.label]: {
            "images": row.images,
            "targets": row.targets,
            "precision": row.precision,
            "recall": row.recall,
            "F1": row.f1,
            "mAP50": row.ap50,
            "mAP50-95": row.ap50_95,
        }
        for row in metrics.classes
    }
    return {
        **metrics.summary(),
        "mAP75": metrics.map75,
        "confidence": metrics.confidence,
        "images": metrics.images,
        "targets": metrics.targets,
        "classes": classes,
        "without_targets": [names[label] for label in metrics.absent],
        "confusion": metrics.confusion.tolist(),
        "coco": metrics.coco,
    }


# ---- command -------------------------------------------------------------------------------

EXAMPLES = """examples:
  python -m detector.evaluate --weights runs/train/bccd/weights/best.pt --data data/bccd.yaml
  python -m detector.evaluate --weights best.onnx --data data/bccd.yaml --split test --json
  python -m detector.evaluate --weights best.pt --data data/coco.yaml --save-json results.json
"""


def add_settings(parser: argparse.ArgumentParser, defaults: Settings) -> None:
    """Add the options of every command that finds objects with a weight file."""
    parser.add_argument(
        "--weights", required=True, metavar="FILE", help="checkpoint (.pt) or exported file"
    )
    parser.add_argument("--runtime", help=f"what runs an .onnx file: {' or '.join(RUNTIMES)}")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    for name, text in (
        ("imgsz", "input side, pixels; 0: the weights' own"),
        ("conf", "least score"),
        ("iou", "IoU of NMS"),
        ("max_det", "detections per image"),
    ):
        default = getattr(defaults, name)
        option, help_text = f"--{name.replace('_', '-')}", f"{text} (default {default})"
        parser.add_argument(option, type=type(default), default=default, help=help_text)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        "python -m detector.evaluate",
        description="Measure a checkpoint or an exported file on a data set.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_settings(parser, Settings())
    parser.add_argument("--data", required=True, help="data set description (yaml) or folder")
    parser.add_argument("--split", default="val", help="train, val or test (default val)")
    parser.add_argument("--batch", type=int, default=16, help="images at once (default 16)")
    parser.add_argument(
        "--rect", action="store_true", help="pad images to multiples of 32 only (.pt): faster"
    )
    parser.add_argument("--save-json", metavar="FILE", help="write detections as COCO results")
    parser.add_argument("--plots", metavar="FOLDER", help="write curves.png and confusion.png")
    add_common(parser)
    return run_command(_evaluate_command, parser, argv)


def _evaluate_command(options: argparse.Namespace) -> dict[str, Any]:
    settings = Settings(
        options.imgsz, options.batch, options.conf, options.iou, options.max_det, options.rect
    )
    weights = options.weights
    if options.runtime:
        weights = load_backend(weights, runtime=options.runtime)
    found = measure(weights, options.data, options.split, options.device, settings)
    if not is_first():
        return {}
    if options.save_json:
        rows = coco_results(found.dataset, found.split, found.samples, found.found)
        write_json(Path(options.save_json), rows)
    if options.plots:
        folder, names = Path(options.plots), found.dataset.names
        plot_curves(found.metrics, names, folder / "curves.png")
        plot_confusion(found.metrics.confusion, names, folder / "confusion.png")
    report = found.report()
    if not options.json:
        print(table(report))
    return report


def table(report: dict[str, Any]) -> str:
    """Return the result of `evaluate` as a table of fixed columns: all, then each class."""
    keys = ("precision", "recall", "F1", "mAP50", "mAP50-95")
    rows = [("all", report), *report["classes"].items()]
    width = max(len(name) for name, _ in [("Class", None), *rows])
    lines = [f"{'Class':<{width}}  Images  Targets      P      R     F1  mAP50  mAP50-95"]
    for name, row in rows:
        numbers = "".join(f"{row[key]:>{9 if key == 'mAP50-95' else 6}.3f} " for key in keys)
        lines.append(f"{name:<{width}}  {row['images']:>6}  {row['targets']:>7} {numbers}".rstrip())
    for key in (key for key in report if key.endswith("/mAP50-95")):
        name = key.removesuffix("/mAP50-95")
        numbers = ", ".join(f"{metric} {report[f'{name}/{metric}']:.3f}" for metric in keys)
        lines.append(f"{name} alone: {numbers}")
    if report["without_targets"]:
        lines.append(f"without targets, in no mean: {', '.join(report['without_targets'])}")
    speed = ", ".join(f"{name} {value:.1f} ms" for name, value in report["speed"].items())
    lines.append(f"P, R and F1 at IoU 0.5 and confidence {report['confidence']:.3f}")
    lines.append(f"per image: {speed}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
