"""Plots: the files are pictures, and what they show is what the numbers say."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from detector import plots
from detector.errors import DataError
from detector.metrics import DetectionMetrics, Prediction, Truth, evaluate_detections
from detector.plots import plot_calibration, plot_confusion, plot_curves, plot_training

RESULTS = """epoch,step,lr,train/box,train/total,mAP50-95,mAP50,precision,recall,F1,fitness,seconds
1,5,0.003,4.5,9.0,,,,,,,7
2,10,0.002,3.5,7.0,0.1,0.3,0.4,0.5,0.45,0.2,7
3,15,0.001,2.5,5.0,0.2,0.4,0.5,0.6,0.55,0.3,7
"""


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are saved, to look into."""
    saved: list[Any] = []
    save = plots._save
    monkeypatch.setattr(plots, "_save", lambda f, path: (saved.append(f), save(f, path)))
    return saved


def metrics_of(num_classes: int) -> DetectionMetrics:
    rng = np.random.default_rng(0)
    truths, predictions = [], []
    for label in range(num_classes):
        corner = rng.uniform(0, 90, (6, 2))
        boxes = np.concatenate([corner, corner + 20], axis=1)
        labels = np.full(6, label)
        truths.append(Truth(boxes, labels))
        predictions.append(Prediction(boxes + rng.normal(0, 3, (6, 4)), rng.random(6), labels))
    return evaluate_detections(truths, predictions, num_classes)


def line(axes: Any, start: str) -> Any:
    (found,) = (item for item in axes.lines if item.get_label().startswith(start))
    return found


def is_picture(path: str) -> bool:
    image = cv2.imread(path)
    return image is not None and image.std() > 1


def test_training_curves_show_the_columns(figures: list[Any]) -> None:
    Path("results.csv").write_text(RESULTS)
    plot_training("results.csv", "pictures/results.png")
    assert is_picture("pictures/results.png")
    losses, rate, metrics = figures[0].axes
    assert line(losses, "box").get_ydata().tolist() == [4.5, 3.5, 2.5]
    assert rate.lines[0].get_ydata().tolist() == [0.003, 0.002, 0.001]
    f1 = line(metrics, "F1")  # epoch 1 was not evaluated
    assert (f1.get_xdata().tolist(), f1.get_ydata().tolist()) == ([2, 3], [0.45, 0.55])


def test_one_epoch_is_enough() -> None:
    Path("results.csv").write_text("\n".join(RESULTS.splitlines()[:2]))
    plot_training("results.csv", "results.png")
    assert is_picture("results.png")


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "cannot read"), ("", "no epoch"), ("epoch,lr\n", "no epoch"), ("epoch\nx\n", "number")],
)
def test_results_without_numbers_are_refused(text: str | None, message: str) -> None:
    if text is not None:
        Path("results.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        plot_training("results.csv", "results.png")


def test_curves_carry_the_numbers_of_the_evaluation(figures: list[Any]) -> None:
    metrics = metrics_of(3)
    plot_curves(metrics, ("cell", "_odd $x$", "x"), "curves.png")
    assert is_picture("curves.png")
    by_recall, precision, recall, f1 = figures[0].axes
    assert line(by_recall, "mean").get_ydata().mean() == pytest.approx(metrics.map50)
    assert line(by_recall, "cell").get_ydata().mean() == pytest.approx(metrics.classes[0].ap50)
    for axes, value in ((precision, metrics.precision), (recall, metrics.recall), (f1, metrics.f1)):
        assert line(axes, "mean").get_label() == f"mean {value:.3f}"
        assert line(axes, "best F1").get_xdata()[0] == metrics.confidence
        assert len(axes.get_legend().get_texts()) == 5
    # above the highest score there is no precision: the line ends, and does not fall to 0
    assert np.isnan(line(precision, "cell").get_ydata()[-1])
    assert line(recall, "cell").get_ydata()[-1] == 0


def test_calibration_shows_the_share_that_is_right(figures: list[Any]) -> None:
    found = metrics_of(3).calibration
    plot_calibration(found, "calibration.png")
    assert is_picture("calibration.png")
    above, below = figures[0].axes
    heights = [bar.get_height() for bar in above.patches]
    assert heights == pytest.approx(found.precision[found.count > 0].tolist())
    assert [bar.get_height() for bar in below.patches] == found.count.tolist()
    assert f"{found.error:.3f}" in above.get_title()


def test_many_classes_have_no_endless_legend(figures: list[Any]) -> None:
    plot_curves(metrics_of(30), [f"class {n}" for n in range(30)], "curves.png")
    assert all(len(axes.get_legend().get_texts()) <= 2 for axes in figures[0].axes)
    assert all(len(axes.lines) >= 31 for axes in figures[0].axes)


def test_curves_without_targets_are_drawn() -> None:
    nothing = evaluate_detections([], [], 2)
    plot_curves(nothing, ("a", "b"), "curves.png")
    plot_confusion(nothing.confusion, ("a", "b"), "confusion.png")
    assert is_picture("curves.png") and is_picture("confusion.png")


def test_confusion_shows_counts_and_names(figures: list[Any]) -> None:
    plot_confusion(np.array([[5, 1, 0], [0, 7, 2], [3, 0, 0]]), ("cell", "$dot$"), "confusion.png")
    axes = figures[0].axes[0]
    assert sorted(text.get_text() for text in axes.texts) == ["1", "2", "3", "5", "7"]
    assert axes.get_yticklabels()[0].get_text() == "cell"
    share = axes.images[0].get_array()
    assert share[0].tolist() == pytest.approx([5 / 6, 1 / 6, 0])


def test_large_confusion_has_no_counts(figures: list[Any]) -> None:
    plot_confusion(np.eye(81, dtype=int), [f"class {n}" for n in range(80)], "confusion.png")
    assert not figures[0].axes[0].texts


def test_no_figure_stays_open() -> None:
    import matplotlib.pyplot

    Path("results.csv").write_text(RESULTS)
    plot_training("results.csv", "results.png")
    assert matplotlib.pyplot.get_fignums() == []
