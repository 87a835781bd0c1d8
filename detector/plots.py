"""Curves and tables as PNG pictures, drawn with matplotlib without touching its global state.

Letters: C classes, K classes that have targets.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detector.curves import SCORE_BINS, Calibration
from detector.draw import PALETTE
from detector.errors import DataError, MissingPackageError
from detector.metrics import METRIC_NAMES, DetectionMetrics

MAX_NAMED_CLASSES = 12  # in a legend; beyond, classes are thin gray lines
MAX_COUNTED_CLASSES = 20  # in a confusion matrix with numbers
MAX_TICKS = 60  # classes with their names at the sides of a confusion matrix
LINES = tuple(f"#{code}" for code in PALETTE if code not in ("F0E442", "DDCC77"))  # too pale
GRAY = "#bbbbbb"
INK = "#222222"


def plot_training(results: str | Path, picture: str | Path) -> None:
    """Draw losses, learning rate and metrics over the epochs of a results.csv.

    Raises: DataError when the file cannot be read or has no row.
    """
    columns = _read_results(Path(results))
    losses = [name for name in columns if name.startswith(("train/", "val/"))]
    metrics = [name for name in (*METRIC_NAMES, "fitness") if name in columns]
    figure = _figure(15, 4.2)
    left, middle, right = figure.subplots(1, 3)
    _lines(left, columns, losses, "Loss")
    _lines(middle, columns, ["lr"] if "lr" in columns else [], "Learning rate")
    _lines(right, columns, metrics, "Metrics on the validation split")
    right.set_ylim(0, 1)
    _save(figure, picture)


def plot_curves(metrics: DetectionMetrics, names: Sequence[str], picture: str | Path) -> None:
    """Draw precision over recall, and precision, recall and F1 over confidence, at IoU 0.5.

    Each has a line a class and one for the mean; the number behind a name is its value: AP50, and
    else the value at the best confidence, which is a dashed line.
    """
    curves, rows = metrics.curves, metrics.classes
    # where no prediction is left, precision is not 0 but unknown: the line ends
    none_left = (curves.recall == 0) & (curves.precision == 0) & (curves.recall[:, :1] > 0)
    known = np.where(none_left, np.nan, curves.precision)
    figure = _figure(13.5, 9)
    panels = figure.subplots(2, 2)
    first, at = panels[0, 0], curves.recall_grid
    _class_lines(
        first, at, curves.precision_at_recall, curves.labels, names, [r.ap50 for r in rows]
    )
    _mean_line(first, at, curves.precision_at_recall, f"mean, mAP50 {metrics.map50:.3f}")
    first.set(title="Precision over recall", xlabel="Recall", ylabel="Precision")
    over = {
        "Precision": (
            panels[0, 1],
            known,
            metrics.precision,
            [r.precision for r in rows],
        ),
        "Recall": (panels[1, 0], curves.recall, metrics.recall, [r.recall for r in rows]),
        "F1": (panels[1, 1], curves.f1, metrics.f1, [r.f1 for r in rows]),
    }
    for name, (axes, values, mean, numbers) in over.items():
        _class_lines(axes, curves.confidence, values, curves.labels, names, numbers)
        _mean_line(axes, curves.confidence, values, f"mean {mean:.3f}")
        best = f"best F1 at {metrics.confidence:.3f}"
        axes.axvline(metrics.confidence, color=INK, linewidth=0.9, linestyle="--", label=best)
        axes.set(title=f"{name} over confidence", xlabel="Confidence", ylabel=name)
    for axes in panels.flat:
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9)
    figure.suptitle("At IoU 0.5")
    _save(figure, picture)


def plot_calibration(calibration: Calibration, picture: str | Path) -> None:
    """Draw how often a score is right: precision in bins of scores, and how many fall there."""
    figure = _figure(7, 6)
    axes, below = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    width = np.diff(SCORE_BINS)
    there = calibration.count > 0
    axes.bar(SCORE_BINS[:-1][there], calibration.precision[there], width[there], align="edge",
             color=LINES[1], edgecolor="white", label="share that is right (IoU 0.5)")  # fmt: skip
    axes.plot([0, 1], [0, 1], "--", color=INK, linewidth=0.9, label="a score that means its share")
    axes.set(ylabel="Share of the predictions", xlim=(0, 1), ylim=(0, 1.02),
             title=f"Calibration: scores off by {calibration.error:.3f} on average")  # fmt: skip
    axes.legend(loc="upper left", fontsize=9)
    below.bar(SCORE_BINS[:-1], calibration.count, width, align="edge", color=GRAY,
              edgecolor="white")  # fmt: skip
    below.set(xlabel="Score (below 0.1 is not shown)", ylabel="Predictions")
    for one in (axes, below):
        one.grid(alpha=0.3)
        one.set_axisbelow(True)
    _save(figure, picture)


@dataclass(frozen=True, eq=False)
class LabelFacts:
    """What the labels of a data set look like; all but `counts` is of the training split."""

    names: tuple[str, ...]
    counts: dict[str, np.ndarray]  # boxes of each class (C,), by split
    centres: np.ndarray  # (n, 2) x, y, fractions of the image
    sides: np.ndarray  # (n, 2) width and height in pixels of the input
    per_image: np.ndarray  # (images,) boxes
    imgsz: int


def plot_labels(facts: LabelFacts, picture: str | Path) -> None:
    """Draw boxes of each class and split, their places, their sizes and their number an image."""
    shown = min(len(facts.names), MAX_TICKS)
    figure = _figure(12, max(8.5, 4.5 + 0.3 * shown))
    (by_class, places), (sizes, numbers) = figure.subplots(2, 2)
    _class_bars(by_class, facts)
    low = dict(cmap="Blues", vmin=0)
    grid, _, _ = np.histogram2d(facts.centres[:, 1], facts.centres[:, 0], 32, [[0, 1], [0, 1]])
    image = places.imshow(grid, extent=(0, 1, 1, 0), **low)
    places.set(title="Where their centres are (train)", xlabel="x / image width",
               ylabel="y / image height")  # fmt: skip
    figure.colorbar(image, ax=places, label="Boxes")
    edges = np.geomspace(1, facts.imgsz, 33)
    grid, _, _ = np.histogram2d(facts.sides[:, 1], facts.sides[:, 0], edges)
    image = sizes.pcolormesh(edges, edges, grid, **low)
    sizes.set(title=f"How large they are at {facts.imgsz} px (train)", xlabel="Width, pixels",
              ylabel="Height, pixels", xscale="log", yscale="log", aspect="equal")  # fmt: skip
    for side in (8, 32, 96):
        if side < facts.imgsz:
            sizes.plot([1, side, side], [side, side, 1], "--", color=INK, linewidth=0.8)
            sizes.annotate(f"{side} px", (1, side), (3, 2), textcoords="offset points", fontsize=9)
    figure.colorbar(image, ax=sizes, label="Boxes")
    top = int(facts.per_image.max(initial=0))
    numbers.hist(facts.per_image, np.arange(-0.5, top + 1.5, max(1, top // 40)), color=LINES[1])
    numbers.set(title="How many stand in one image (train)", xlabel="Boxes", ylabel="Images")
    numbers.grid(alpha=0.3)
    numbers.set_axisbelow(True)
    _save(figure, picture)


def _class_bars(axes: Any, facts: LabelFacts) -> None:
    """Draw the number of boxes of each class, a bar a split; the most frequent classes only."""
    total = np.sum(list(facts.counts.values()), axis=0)
    order = np.argsort(-total, kind="stable")[:MAX_TICKS]
    place, left = np.arange(len(order)), np.zeros(len(order))
    for number, (split, counts) in enumerate(facts.counts.items()):
        label = f"{split} ({counts.sum()} boxes)"
        axes.barh(place, counts[order], 0.75, left, color=_colour(number), label=label)
        left = left + counts[order]
    if len(order) <= MAX_COUNTED_CLASSES:
        parts = np.stack(list(facts.counts.values()))[:, order].T  # (classes, splits)
        for at, end, row in zip(place, left, parts, strict=True):
            text = " + ".join(map(str, row.tolist()))
            axes.annotate(text, (end, at), (4, 0), textcoords="offset points", va="center",
                          fontsize=8)  # fmt: skip
    axes.set_yticks(place, [_plain(facts.names[label]) for label in order],
                    fontsize=10 if len(order) <= MAX_COUNTED_CLASSES else 7)  # fmt: skip
    axes.invert_yaxis()
    axes.set_xlim(0, 1.4 * max(1, left.max(initial=0)))  # room for the numbers
    title = "How many boxes each class has"
    if len(order) < len(facts.names):
        title += f" (the {len(order)} with most of {len(facts.names)})"
    axes.set(title=title, xlabel="Boxes")
    axes.grid(alpha=0.3, axis="x")
    axes.set_axisbelow(True)
    axes.legend(loc="lower right", fontsize=9)


def plot_confusion(confusion: np.ndarray, names: Sequence[str], picture: str | Path) -> None:
    """Draw a confusion matrix (C + 1, C + 1), [true, predicted], background last.

    Cells hold counts; the shade is the share of the row, that is of the true class.
    """
    count = len(confusion)
    labels = [_plain(name) for name in (*names, "background")]
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = min(16.0, 4.5 + 0.42 * count)
    figure = _figure(side + 1, side)
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="Share of the true class", shrink=0.8)
    if count <= MAX_COUNTED_CLASSES + 1:
        for (true, predicted), value in np.ndenumerate(confusion):
            colour = "white" if share[true, predicted] > 0.55 else INK
            if value:
                axes.text(predicted, true, f"{value}", ha="center", va="center", color=colour)
    ticks = range(count) if count <= MAX_TICKS else []
    size = 10 if count <= MAX_COUNTED_CLASSES else 7
    axes.set_xticks(ticks, [labels[i] for i in ticks], rotation=90, fontsize=size)
    axes.set_yticks(ticks, [labels[i] for i in ticks], fontsize=size)
    axes.set(xlabel="Predicted", ylabel="True", title="Confusion at the best confidence, IoU 0.5")
    _save(figure, picture)


def _read_results(path: Path) -> dict[str, np.ndarray]:
    """Return the columns of a results.csv; empty cells are NaN."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        columns = {
            name: np.array([float(row[name] or math.nan) for row in rows])
            for name in (rows[0] if rows else {})
        }
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror}") from error
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: not a table of numbers: {error}") from error
    if "epoch" not in columns:
        raise DataError(f"{path}: no epoch to draw")
    return columns


def _lines(axes: Any, columns: dict[str, np.ndarray], wanted: Sequence[str], title: str) -> None:
    """Draw `wanted` columns over the epoch; epochs without a value are passed over."""
    for index, name in enumerate(wanted):
        there = np.isfinite(columns[name])
        epochs = columns["epoch"][there]
        mark = "o" if len(epochs) <= 10 else ""
        summary = name in ("fitness", "train/total")
        colour = INK if summary else _colour(index)
        label = _plain(name.removeprefix("train/"))
        axes.plot(epochs, columns[name][there], marker=mark, markersize=4, color=colour,
                  linestyle="--" if summary else "-", label=label)  # fmt: skip
    axes.set(title=title, xlabel="Epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    if len(wanted) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9)


def _class_lines(
    axes: Any,
    at: np.ndarray,
    values: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    numbers: Sequence[float],
) -> None:
    """Draw a line for each class, values (K, points); named with its number if there are few."""
    for line, label, number in zip(values, labels, numbers, strict=True):
        if len(labels) <= MAX_NAMED_CLASSES:
            text = f"{_plain(names[label])} {number:.3f}"
            axes.plot(at, line, color=_colour(int(label)), linewidth=1.3, label=text)
        else:
            axes.plot(at, line, color=GRAY, linewidth=0.7)
    axes.grid(alpha=0.3)


def _mean_line(axes: Any, at: np.ndarray, values: np.ndarray, text: str) -> None:
    if len(values):
        axes.plot(at, values.mean(axis=0), color=INK, linewidth=2.5, label=text)
    else:
        axes.plot([], [], color=INK, label="no targets")


def _colour(index: int) -> str:
    return LINES[index % len(LINES)]


def _plain(text: str) -> str:
    """Return `text` so that matplotlib shows it as it is: `$` is no formula, `_` not hidden."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _figure(width: float, height: float) -> Any:
    """Return a figure of `width` x `height` inches that no global registry holds."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError("plots need matplotlib: pip install matplotlib") from error
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, picture: str | Path) -> None:
    try:
        Path(picture).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(picture, dpi=110, format="png")
    except OSError as error:
        raise DataError(f"{picture}: cannot be written: {error.strerror}") from error
