"""The sheet of detections at the end of a training: which pictures, what is drawn and said."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from detector.boxes import Detections
from detector.data.sample import Sample
from detector.draw import class_colour
from detector.finding import Settings
from detector.metrics import Prediction, Truth, count_hits
from detector.pictures import CELL, draw_found, typical

NAMES = ("square", "disc")


def sample(name: str, labels: list[int], folder: Path = Path()) -> Sample:
    """Return an image of 64 x 64 with one box of 16 pixels for each label, side by side."""
    boxes = np.array([[16 * i, 0, 16 * i + 16, 16] for i in range(len(labels))], np.float32)
    none = np.zeros(len(labels), bool)
    return Sample(
        folder / name, (64, 64), boxes.reshape(-1, 4), np.array(labels, np.int64), none, none
    )


def test_the_fullest_picture_and_typical_ones_of_other_classes_are_shown() -> None:
    samples = [
        sample("empty", []),
        sample("one", [0]),
        sample("two", [0, 0]),
        sample("other", [1, 1]),
        sample("full", [0, 0, 0, 0]),
        sample("more", [0, 0]),
    ]
    # full: most objects, all of class 0; other: the only class 1; then the first with the median 2
    assert [one.path.name for one in typical(samples)] == ["full", "other", "two"]
    assert typical(samples) == typical(samples)
    assert [one.path.name for one in typical(samples[:1])] == ["empty"]
    assert typical([]) == []


def test_hits_and_misses_of_one_picture_are_counted() -> None:
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]], np.float32)
    truth = Truth(boxes, np.array([0, 0, 1]), difficult=np.array([False, False, True]))
    # the first is hit once, and once too often; the second has the wrong class; the third, which is
    # difficult, counts neither way
    found = Prediction(boxes[[0, 0, 1, 2]], np.array([0.9, 0.8, 0.7, 0.6]), np.array([0, 0, 1, 1]))
    assert count_hits(truth, found, 2) == (1, 2, 2)


class FirstSquare:
    """Finds a square of 16 pixels in the corner of every image, with a score of 0.8."""

    def detect(self, images: Tensor, conf: float, iou: float, max_det: int) -> list[Detections]:
        box = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
        one = Detections(box, torch.tensor([0.8]), torch.tensor([0]))
        nothing = Detections(box[:0], one.scores[:0], one.labels[:0])
        return [one if conf <= 0.8 else nothing for _ in images]


@pytest.mark.parametrize(("confidence", "drawn"), [(0.5, True), (0.9, False)])
def test_objects_stand_at_the_left_and_what_is_found_at_the_right(
    tmp_path: Path, confidence: float, drawn: bool
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((64, 64, 3), 114, np.uint8))
    path = tmp_path / "pictures" / "detections.jpg"
    settings = Settings(64, conf=confidence)
    shown = [sample("a.png", [0, 1], tmp_path)]
    draw_found(FirstSquare(), shown, NAMES, path, settings, torch.device("cpu"))  # type: ignore[arg-type]
    sheet = cv2.imread(str(path)).astype(int)
    middle = sheet.shape[1] // 2
    assert middle == pytest.approx(CELL[1], abs=8)

    def coloured(half: np.ndarray, label: int) -> int:
        return int((np.abs(half - class_colour(label)).max(axis=2) < 40).sum())

    assert coloured(sheet[:, :middle], 0) > 100 and coloured(sheet[:, :middle], 1) > 100
    assert (coloured(sheet[:, middle:], 0) > 100) == drawn
    assert coloured(sheet[:, middle:], 1) == 0
