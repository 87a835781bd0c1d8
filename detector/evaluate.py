"""How good a detector is on a data set: for training, for `evaluate()`, for the command.

Letters: B images of a batch, n objects of an image. All three ways use the same settings, the same
letterbox and the same code, so they give the same numbers.
"""

import argparse
import itertools
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detector.augment import Images
from detector.backends import RUNTIMES, Backend, load_backend
from detector.cli import add_common, run_command
from detector.coco_results import coco_results, write_json
from detector.data.description import DataConfig, load_data, read_sets, single_class
from detector.data.sample import Sample
from detector.data.wrappers import SINGLE_CLASS
from detector.distributed import (
    choose_device,
    first_on_machine,
    from_first,
    is_first,
    process_group,
)
from detector.errors import ConfigError
from detector.families import Family
from detector.finding import Originals, Settings, find_objects_together
from detector.looking import Looker
from detector.matching import judge_all
from detector.metrics import (
    DetectionMetrics,
    Prediction,
    Truth,
    evaluate_detections,
    measure_judged,
)
from detector.nms import KINDS
from detector.resampling import RESAMPLES, bootstrap
from detector.scorecard import Evaluation, Measures, draw_evaluation, table, truth_of
from detector.voc_metrics import evaluate_voc
from detector.voc_results import write_voc_results

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


# ---- stand-alone ---------------------------------------------------------------------------


def evaluate(
    weights: str | Path | Backend,
    data: str | Path,
    split: str = "val",
    device: str = "auto",
    settings: Settings | None = None,
    measures: Measures | None = None,
) -> dict[str, Any]:
    """Evaluate a checkpoint or an exported file on a split of a data set; see `Evaluation.report`.

    `weights` may also be a `Backend` that is already loaded; then `device` is not looked at.
    A detector of a single class (`single_cls`) is measured with all classes of the set as one.
    Raises: UserError for a wrong option, data set or file.
    """
    return measure(weights, data, split, device, settings or Settings(), measures).report()


def measure(
    weights: str | Path | Backend,
    data: str | Path,
    split: str,
    device: str,
    settings: Settings,
    measures: Measures | None = None,
) -> Evaluation:
    """Evaluate like `evaluate`, and keep the detections (of all ranks, on rank 0).

    Raises: UserError.
    """
    chosen = weights.device if isinstance(weights, Backend) else choose_device(device)
    with process_group(chosen):
        return _measure(weights, data, split, chosen, settings, measures or Measures())


def _measure(
    weights: str | Path | Backend,
    data: str | Path,
    split: str,
    device: torch.device,
    settings: Settings,
    measures: Measures,
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
    looker = Looker(backend, settings)
    found = find_objects_together(looker, samples, Originals(samples), settings, backend.device)
    found = [Prediction(p.boxes, p.scores, to_dataset[p.labels]) for p in found]
    truths, count = [truth_of(sample) for sample in samples], dataset.num_classes

    def measured() -> dict[str, Any]:
        started = time.perf_counter()
        judged = judge_all(truths, found, count)
        metrics = measure_judged(judged, by_size=True)
        seconds = {**looker.seconds, "metrics": time.perf_counter() - started}
        resamples = measures.bootstrap
        return {
            "metrics": metrics,
            "seconds": seconds,
            "sets": _measure_sets(sets, truths, found, count),
            "intervals": bootstrap(judged, measures.fitness, resamples) if resamples else {},
            "voc": evaluate_voc(truths, found, count) if measures.voc else None,
        }

    return Evaluation(
        backend.path, dataset, split, settings, measures, samples, found, **from_first(measured)
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


def _label_map(backend: Backend, dataset: DataConfig) -> np.ndarray:
    """Return the data set's label of each label of the model, by name, whatever the order."""
    if set(backend.names) != set(dataset.names):
        raise ConfigError(
            f"{backend.path} finds {', '.join(backend.names)}; "
            f"{dataset.path} has other classes: {', '.join(dataset.names)}"
        )
    return np.array([dataset.names.index(name) for name in backend.names], np.int64)


# ---- command -------------------------------------------------------------------------------

EXAMPLES = """examples:
  python -m detector.evaluate --weights runs/train/bccd/weights/best.pt --data data/bccd.yaml
  python -m detector.evaluate --weights best.onnx --data data/bccd.yaml --split test --json
  python -m detector.evaluate --weights best.pt --data data/bccd.yaml --bootstrap --plots pictures
  python -m detector.evaluate --weights best.pt --data data/bccd.yaml --voc --save-voc results
  python -m detector.evaluate --weights best.pt --data data/coco.yaml --save-json results.json
"""


def add_settings(parser: argparse.ArgumentParser, defaults: Settings) -> None:
    """Add the options of every command that finds objects with a weight file."""
    parser.add_argument(
        "--weights", required=True, metavar="FILE", help="checkpoint (.pt) or exported file"
    )
    parser.add_argument("--runtime", help=f"what runs an .onnx file: {' or '.join(RUNTIMES)}")
    add_finding(parser, defaults)


def add_finding(parser: argparse.ArgumentParser, defaults: Settings) -> None:
    """Add the options that say how objects are found."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    for name, text in (
        ("imgsz", "input side, pixels; 0: the weights' own"),
        ("batch", "images at once"),
        ("conf", "least score"),
        ("iou", "IoU of NMS"),
        ("max_det", "detections per image"),
    ):
        default = getattr(defaults, name)
        option, help_text = f"--{name.replace('_', '-')}", f"{text} (default {default})"
        parser.add_argument(option, type=type(default), default=default, help=help_text)
    parser.add_argument("--nms", default="class", help=f"{', '.join(KINDS)} (default class)")
    parser.add_argument(
        "--augment", action="store_true", help="look at each picture mirrored and smaller too"
    )


def settings_of(options: argparse.Namespace) -> Settings:
    """Return what the options of `add_finding` say. Raises: ConfigError."""
    return Settings(
        imgsz=options.imgsz,
        batch=options.batch,
        conf=options.conf,
        iou=options.iou,
        max_det=options.max_det,
        rect=getattr(options, "rect", False),
        nms=options.nms,
        augment=options.augment,
    )


def add_measures(parser: argparse.ArgumentParser, resamples: int) -> None:
    """Add the options of what is measured; `resamples` is the default of --bootstrap."""
    parser.add_argument("--data", required=True, help="data set description (yaml) or folder")
    parser.add_argument("--split", default="val", help="train, val or test (default val)")
    parser.add_argument(
        "--rect", action="store_true", help="pad images to multiples of 32 only (.pt): faster"
    )
    parser.add_argument(
        "--fitness", metavar="NAME=WEIGHT,...", help="weights that sum to 1, like mAP50=0.4,F1=0.6"
    )
    parser.add_argument(
        "--bootstrap", type=int, nargs="?", const=RESAMPLES, default=resamples, metavar="N",
        help=f"95 %% intervals over N resamples of the images ({RESAMPLES} if N is left out)",
    )  # fmt: skip


def fitness_weights(text: str | None) -> dict[str, float]:
    """Return the weights of `mAP50=0.4,F1=0.6`, or the defaults. Raises: ConfigError."""
    if text is None:
        return dict(Measures().fitness)
    weights = {}
    for part in text.split(","):
        name, equals, number = (word.strip() for word in part.partition("="))
        try:
            weights[name] = float(number)
        except ValueError:
            equals = ""
        if not equals:
            raise ConfigError(f"--fitness {text}: {part!r} is not like mAP50=0.4")
    return weights


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        "python -m detector.evaluate",
        description="Measure a checkpoint or an exported file on a data set.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_settings(parser, Settings())
    add_measures(parser, resamples=0)
    parser.add_argument("--voc", action="store_true", help="AP by the rules of VOC too")
    parser.add_argument("--save-json", metavar="FILE", help="write detections as COCO results")
    parser.add_argument(
        "--save-voc", metavar="FOLDER", help="write detections as comp4_det_test_<class>.txt"
    )
    parser.add_argument(
        "--plots", metavar="FOLDER",
        help="write curves.png, confusion.png, calibration.png and worst.jpg",
    )  # fmt: skip
    add_common(parser)
    return run_command(_evaluate_command, parser, argv)


def _evaluate_command(options: argparse.Namespace) -> dict[str, Any]:
    for folder in (options.save_voc, options.plots, options.save_json):
        if folder:  # before the work: what cannot be written is known now
            _make(Path(folder).parent if folder == options.save_json else Path(folder))
    weights = options.weights
    if options.runtime:
        weights = load_backend(weights, runtime=options.runtime)
    measures = Measures(fitness_weights(options.fitness), options.bootstrap, options.voc)
    found = measure(
        weights, options.data, options.split, options.device, settings_of(options), measures
    )
    if not is_first():
        return {}
    if options.save_json:
        rows = coco_results(found.dataset, found.split, found.samples, found.found)
        write_json(Path(options.save_json), rows)
    if options.save_voc:
        write_voc_results(Path(options.save_voc), found.samples, found.found, found.dataset.names)
    if options.plots:
        draw_evaluation(found, Path(options.plots))
    report = found.report()
    if not options.json:
        print(table(report))
    return report


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be created: {error.strerror}") from error


if __name__ == "__main__":
    raise SystemExit(main())
