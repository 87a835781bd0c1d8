"""What an evaluation found, as plain values, as a table and as pictures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from detector.config import TrainConfig
from detector.data.description import DataConfig
from detector.data.sample import Sample
from detector.draw import Tile, draw_grid, write_picture
from detector.errors import ConfigError
from detector.finding import Originals, Settings
from detector.matching import Judged, Prediction, Truth, judge_all
from detector.metrics import SIZES, DetectionMetrics, fitness
from detector.plots import plot_calibration, plot_confusion, plot_curves
from detector.voc_metrics import VocMetrics

METRICS = ("precision", "recall", "F1", "mAP50", "mAP50-95")
WORST = 8  # images on the sheet of the worst


@dataclass(frozen=True)
class Measures:
    """What is measured beside the metrics. Raises: ConfigError for wrong weights."""

    fitness: Mapping[str, float] = field(default_factory=lambda: TrainConfig().fitness)
    bootstrap: int = 0  # resamples of the images; 0: no intervals
    voc: bool = False  # AP by the rules of VOC too

    def __post_init__(self) -> None:
        fitness(dict.fromkeys(METRICS, 0.0), self.fitness)
        if self.bootstrap < 0:
            raise ConfigError(f"bootstrap={self.bootstrap} must be 0 (off) or more")


def truth_of(sample: Sample) -> Truth:
    """Return the targets of a sample; `crowd` and `difficult` ones are ignored."""
    return Truth(sample.boxes, sample.labels, sample.crowd, sample.difficult)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was found in a split, and how good it is; `found` are boxes in pixels of the images."""

    weights: Path
    dataset: DataConfig
    split: str
    settings: Settings
    measures: Measures
    samples: list[Sample]
    found: list[Prediction]
    metrics: DetectionMetrics
    seconds: dict[str, float]  # of the whole split, by stage
    sets: dict[str, DetectionMetrics]  # of each set by its name, if there are several
    intervals: dict[str, tuple[float, float]]  # 95 %, by metric; empty without bootstrap
    voc: VocMetrics | None

    def judged(self) -> Judged:
        """Return the matches that the metrics are made of."""
        truths = [truth_of(sample) for sample in self.samples]
        return judge_all(truths, self.found, self.dataset.num_classes)

    def report(self) -> dict[str, Any]:
        """Return plain values: the metrics by their names, "classes" (by name), "coco" (the twelve
        numbers), "speed" (ms per image) and what was evaluated. With several data sets each one's
        metrics are there too, like "bccd/mAP50".
        """
        per_image = {name: 1000 * value / len(self.samples) for name, value in self.seconds.items()}
        report = {
            **_as_dict(self.metrics, self.dataset.names, self.measures.fitness),
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
        if self.intervals:
            report["intervals"] = {name: list(ends) for name, ends in self.intervals.items()}
            report["bootstrap"] = self.measures.bootstrap
        if self.voc:
            report["voc"] = self.voc.report(self.dataset.names)
        return report


def _as_dict(
    metrics: DetectionMetrics, names: Sequence[str], weights: Mapping[str, float]
) -> dict[str, Any]:
    classes = {
        names[row.label]: {
            "images": row.images,
            "targets": row.targets,
            "precision": row.precision,
            "recall": row.recall,
            "F1": row.f1,
            "mAP50": row.ap50,
            "mAP50-95": row.ap50_95,
            **{
                f"mAP_{size}": ap[row.label]
                for size, ap in metrics.class_sizes.items()
                if row.label in ap
            },
        }
        for row in metrics.classes
    }
    calibration = metrics.calibration
    return {
        "fitness": fitness(metrics.summary(), weights),
        **metrics.summary(),
        "mAP75": metrics.map75,
        "confidence": metrics.confidence,
        "images": metrics.images,
        "targets": metrics.targets,
        "classes": classes,
        "without_targets": [names[label] for label in metrics.absent],
        "confusion": metrics.confusion.tolist(),
        "coco": metrics.coco,
        "calibration": {
            "error": calibration.error,
            "count": calibration.count.tolist(),
            "confidence": calibration.confidence.tolist(),
            "precision": calibration.precision.tolist(),
        },
    }


# ---- table ---------------------------------------------------------------------------------


def table(report: dict[str, Any]) -> str:
    """Return the result of `evaluate` as a table of fixed columns: all, then each class."""
    rows = [("all", report), *report["classes"].items()]
    width = max(len(name) for name, _ in [("Class", None), *rows])
    lines = [f"{'Class':<{width}}  Images  Targets      P      R     F1  mAP50  mAP50-95"]
    for name, row in rows:
        numbers = "".join(f"{row[key]:>{9 if key == 'mAP50-95' else 6}.3f} " for key in METRICS)
        lines.append(f"{name:<{width}}  {row['images']:>6}  {row['targets']:>7} {numbers}".rstrip())
    lines += _set_lines(report)
    if report["without_targets"]:
        lines.append(f"without targets, in no mean: {', '.join(report['without_targets'])}")
    lines += [*_interval_lines(report), *_voc_lines(report)]
    if any(report["coco"].get(f"AP_{size}", -1) >= 0 for size in SIZES):
        lines.append(f"mAP50-95 by size: {_by_size(report['coco'])}")
    lines.append(f"P, R and F1 at IoU 0.5 and confidence {report['confidence']:.3f}")
    error = report["calibration"]["error"]
    lines.append(f"fitness {report['fitness']:.4f}, calibration error {error:.3f}")
    speed = ", ".join(f"{name} {value:.1f} ms" for name, value in report["speed"].items())
    lines.append(f"per image: {speed}")
    return "\n".join(lines)


def _set_lines(report: dict[str, Any]) -> Iterator[str]:
    for key in (key for key in report if key.endswith("/mAP50-95")):
        name = key.removesuffix("/mAP50-95")
        numbers = ", ".join(f"{metric} {report[f'{name}/{metric}']:.3f}" for metric in METRICS)
        yield f"{name} alone: {numbers}"


def _interval_lines(report: dict[str, Any]) -> Iterator[str]:
    if "intervals" in report:
        parts = (
            f"{name} {report[name]:.3f} ({low:.3f} to {high:.3f})"
            for name, (low, high) in report["intervals"].items()
        )
        yield f"95 % over images: {', '.join(parts)}"


def _voc_lines(report: dict[str, Any]) -> Iterator[str]:
    rules = {"2007": "VOC 2007 (11 points)", "2012": "VOC 2012 (all points)"}
    for rule, values in report.get("voc", {}).items():
        each = ", ".join(f"{name} {row['AP50']:.3f}" for name, row in values["classes"].items())
        means = f"mAP50 {values['mAP50']:.3f}, mAP50-95 {values['mAP50-95']:.3f}"
        yield f"{rules[rule]}: {means}; AP50 of {each}"


def _by_size(coco: dict[str, float]) -> str:
    def shown(size: str) -> str:
        value = coco[f"AP_{size}"]
        return f"{size} " + ("-" if value < 0 else f"{value:.3f}")

    return ", ".join(map(shown, SIZES)) + " (sides of 32 and 96 px part them)"


# ---- pictures ------------------------------------------------------------------------------


def draw_evaluation(one: Evaluation, folder: Path) -> None:
    """Write curves.png, confusion.png, calibration.png and worst.jpg into a folder."""
    names = one.dataset.names
    plot_curves(one.metrics, names, folder / "curves.png")
    plot_confusion(one.metrics.confusion, names, folder / "confusion.png")
    plot_calibration(one.metrics.calibration, folder / "calibration.png")
    draw_worst(one, folder / "worst.jpg")


def worst(counts: np.ndarray, number: int = WORST) -> list[int]:
    """Return the images with the least F1, of equals those with the most errors.

    `counts` (images, 3) are hits, false positives and missed targets. Images without an error are
    left out.
    """
    hits, wrong, missed = counts.T
    errors = wrong + missed
    f1 = 2 * hits / np.maximum(2 * hits + errors, 1)
    order = np.lexsort((-errors, f1))
    return [int(index) for index in order if errors[index]][:number]


def draw_worst(one: Evaluation, path: Path) -> None:
    """Write a sheet of the worst images: at the left what is there, at the right what was found."""
    images, names = Originals(one.samples), one.dataset.names
    confidence = one.metrics.confidence
    tiles = []
    for index in worst(one.metrics.image_counts):
        sample, found = one.samples[index], one.found[index]
        hits, wrong, missed = one.metrics.image_counts[index].tolist()
        image, sure = images[index], found.scores >= confidence
        true = f"true: {hits + missed} ({sample.path.name})"
        text = f"found: {hits} right, {wrong} wrong, {missed} missed"
        tiles.append(Tile(image, sample.boxes, sample.labels, None, true))
        tiles.append(Tile(image, found.boxes[sure], found.labels[sure], found.scores[sure], text))
    write_picture(path, draw_grid(tiles, names, columns=4, cell=(300, 400)))
