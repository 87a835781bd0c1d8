"""How good a detector is on a data set: for training, for `evaluate()`, for the command.

Letters: B images of a batch, n objects of an image. All three ways use the same settings, the same
letterbox and the same code, so they give the same numbers.
"""

import argparse
import itertools
import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from detector.augment import Images, letterbox
from detector.backends import Backend, load_backend
from detector.boxes import Detections
from detector.cli import add_common, run_command
from detector.coco_results import coco_results, write_json
from detector.data.cache import scaled_size
from detector.data.description import DataConfig, load_data, read_sets, single_class
from detector.data.images import read_image
from detector.data.rect import Size, rect_size
from detector.data.sample import Sample
from detector.data.wrappers import SINGLE_CLASS
from detector.decode import select
from detector.distributed import (
    choose_device,
    first_on_machine,
    from_first,
    gathered,
    is_first,
    process_group,
    rank,
    world_size,
)
from detector.errors import ConfigError
from detector.families import Family
from detector.metrics import DetectionMetrics, Prediction, Truth, evaluate_detections
from detector.plots import plot_confusion, plot_curves

log = logging.getLogger("detector")

LOADER_THREADS = 2  # decoding runs beside the network
BATCHES_AHEAD = 2

Group = tuple[list[int], Size]  # the images of a batch, and the (height, width) of its pictures


class Detector(Protocol):
    """What finds objects: a `Family` or a `Backend`."""

    def detect(self, images: Tensor, conf: float, iou: float, max_det: int) -> list[Detections]:
        """Return the detections of each image, boxes in input pixels."""


class Originals:
    """The images of `samples` as stored on disk, decoded when they are asked for."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples

    def __getitem__(self, index: int, /) -> np.ndarray:
        return read_image(self._samples[index].path)


@dataclass(frozen=True)
class Settings:
    """How detections are made for an evaluation. Raises: ConfigError for values out of range."""

    imgsz: int = 0  # side of the square input, pixels; 0: what the weights were made for
    batch: int = 16
    conf: float = 0.001  # lower scores are dropped
    iou: float = 0.65  # of NMS
    max_det: int = 300  # per image; of these, 100 per class and image count
    rect: bool = False  # images of like shape together, padded to multiples of 32 only

    def __post_init__(self) -> None:
        if self.imgsz < 0 or self.imgsz % 32:
            nearest = max(32, round(self.imgsz / 32) * 32)
            raise ConfigError(f"imgsz={self.imgsz} must be a multiple of 32: try {nearest}")
        for name in ("batch", "max_det"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("conf", "iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be 0 to 1")

    def sized(self, imgsz: int) -> "Settings":
        """Return the settings with an input side: their own, or else `imgsz`."""
        return replace(self, imgsz=self.imgsz or imgsz)


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


def find_objects(
    detector: Detector,
    samples: Sequence[Sample],
    images: Images,
    settings: Settings,
    device: torch.device,
) -> list[Prediction]:
    """Return what `detector` finds in each image, in pixels of the image on disk."""
    found = _found(detector, samples, images, settings, device)
    return [prediction for _, prediction in sorted(found, key=itemgetter(0))]


def find_objects_together(
    detector: Detector,
    samples: Sequence[Sample],
    images: Images,
    settings: Settings,
    device: torch.device,
) -> list[Prediction]:
    """Find objects like `find_objects`, on all ranks (collective).

    The ranks take whole batches in turn, so every image is seen as by one process; rank 0 returns
    what all of them found, the others an empty list.
    """
    shares = _found(detector, samples, images, settings, device, rank(), world_size())
    in_order = sorted((share for ranks in gathered(shares) for share in ranks), key=itemgetter(0))
    return [prediction for _, prediction in in_order]


def _found(
    detector: Detector,
    samples: Sequence[Sample],
    images: Images,
    settings: Settings,
    device: torch.device,
    first: int = 0,
    every: int = 1,
) -> list[tuple[int, Prediction]]:
    """Return the index and the prediction of each image of every n-th batch from `first` on."""
    sizes = [sample.size for sample in samples]
    groups = batches_of(sizes, settings)[first::every]
    shares: list[tuple[int, Prediction]] = []
    batches = letterboxed_batches(images, groups)
    for (indices, _), pictures in zip(groups, batches, strict=True):
        inputs = pictures.to(device).float()
        detections = detector.detect(inputs, settings.conf, settings.iou, settings.max_det)
        for index, one in zip(indices, detections, strict=True):
            shares.append((index, in_image_pixels(one, sizes[index], settings.imgsz)))
    return shares


def batches_of(sizes: Sequence[Size], settings: Settings) -> list[Group]:
    """Return the batches of images of these sizes: in their order, or with `rect` by shape."""
    shapes = [scaled_size(size, settings.imgsz) for size in sizes]
    order = list(range(len(sizes)))
    if settings.rect:
        order.sort(key=lambda index: shapes[index][1] / shapes[index][0])
    starts = range(0, len(order), settings.batch)
    parts = [order[start : start + settings.batch] for start in starts]
    square = (settings.imgsz, settings.imgsz)
    return [
        (part, rect_size([shapes[index] for index in part]) if settings.rect else square)
        for part in parts
    ]


def in_image_pixels(detections: Detections, size: tuple[int, int], imgsz: int) -> Prediction:
    """Undo the letterbox: boxes in pixels of an image of `size` (height, width), clipped to it.

    Each axis has its own scale, because the letterbox rounds the sides to whole pixels.
    """
    height, width = scaled_size(size, imgsz)
    boxes = detections.boxes.cpu().numpy() * np.tile([size[1] / width, size[0] / height], 2)
    boxes = boxes.clip(0, np.array([size[1], size[0], size[1], size[0]])).astype(np.float32)
    return Prediction(boxes, detections.scores.cpu().numpy(), detections.labels.cpu().numpy())


def letterboxed_batches(images: Images, groups: Sequence[Group]) -> Iterator[Tensor]:
    """Yield letterboxed batches (B, 3, H, W) uint8, loaded a little ahead by threads."""

    def load(group: Group) -> Tensor:
        indices, size = group
        pictures = np.stack([letterbox(images[index], size)[0] for index in indices])
        return torch.from_numpy(pictures).permute(0, 3, 1, 2)

    with ThreadPoolExecutor(LOADER_THREADS) as pool:
        pending: deque[Future[Tensor]] = deque()
        for group in groups:
            pending.append(pool.submit(load, group))
            if len(pending) > BATCHES_AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


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
    weights: str | Path,
    data: str | Path,
    split: str = "val",
    device: str = "auto",
    settings: Settings | None = None,
) -> dict[str, Any]:
    """Evaluate a checkpoint or an exported file on a split of a data set; see `Evaluation.report`.

    A detector of a single class (`single_cls`) is measured with all classes of the set as one.
    Raises: UserError for a wrong option, data set or file.
    """
    return measure(weights, data, split, device, settings or Settings()).report()


def measure(
    weights: str | Path, data: str | Path, split: str, device: str, settings: Settings
) -> Evaluation:
    """Evaluate like `evaluate`, and keep the detections (of all ranks, on rank 0).

    Raises: UserError.
    """
    chosen = choose_device(device)
    with process_group(chosen):
        return _measure(weights, data, split, chosen, settings)


def _measure(
    weights: str | Path, data: str | Path, split: str, device: torch.device, settings: Settings
) -> Evaluation:
    backend = load_backend(weights, device)
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
        Path(weights), dataset, split, settings, samples, found, metrics, seconds, by_set
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
        backend(torch.zeros(1, 3, imgsz, imgsz))  # the first call of a process is slow
        self.seconds = {"network": 0.0, "NMS": 0.0}

    def detect(self, images: Tensor, conf: float, iou: float, max_det: int) -> list[Detections]:
        start = self._now()
        decoded = self.backend(images)
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
    parser.add_argument("--weights", required=True, metavar="FILE", help=".pt, .onnx or .engine")
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
    found = measure(options.weights, options.data, options.split, options.device, settings)
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
