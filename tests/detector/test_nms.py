"""Kinds of NMS on boxes whose overlaps are worked by hand."""

import math

import pytest
import torch

from detector.boxes import Detections
from detector.nms import KINDS, suppress

# a, and b with 80 of 120 pixels shared (IoU 2/3), of one class; c lies on a with another class
BOXES = [[0.0, 0, 10, 10], [2, 0, 12, 10], [0, 0, 10, 10], [50, 50, 60, 60]]
SCORES = [0.9, 0.6, 0.5, 0.3]
LABELS = [0, 0, 1, 0]


def candidates(boxes: list, scores: list[float], labels: list[int]) -> Detections:
    return Detections(
        torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores), torch.tensor(labels).long()
    )


def left(kind: str, iou: float = 0.5, conf: float = 0.0, max_det: int = 9) -> Detections:
    return suppress(candidates(BOXES, SCORES, LABELS), iou, kind, conf, max_det)


def test_class_keeps_the_best_of_each_class() -> None:
    assert left("class").scores.tolist() == pytest.approx([0.9, 0.5, 0.3])
    assert left("class", iou=0.7).scores.tolist() == pytest.approx(SCORES)


def test_agnostic_keeps_the_best_of_all() -> None:
    assert left("agnostic").scores.tolist() == pytest.approx([0.9, 0.3])


def test_merge_is_the_mean_by_score_within_a_class() -> None:
    found = left("merge")
    # (0.9 * 0 + 0.6 * 2) / 1.5 = 0.8; right edge 10.8
    assert found.boxes[0].tolist() == pytest.approx([0.8, 0, 10.8, 10])
    assert found.boxes[1].tolist() == [0, 0, 10, 10]
    assert found.scores.tolist() == pytest.approx([0.9, 0.5, 0.3])


def test_merge_gives_a_box_to_the_best_that_it_overlaps_only() -> None:
    # b overlaps a and d by more than 0.3; a and d overlap by 60 of 140: both stay at 0.45
    boxes = [[0.0, 0, 10, 10], [4, 0, 14, 10], [2, 0, 12, 10]]
    found = suppress(candidates(boxes, [0.9, 0.8, 0.1], [0, 0, 0]), 0.45, "merge", 0.0, 9)
    assert found.boxes[0].tolist() == pytest.approx([0.2, 0, 10.2, 10])
    assert found.boxes[1].tolist() == [4, 0, 14, 10]


def test_soft_lowers_scores_by_the_overlap_and_drops_what_falls_below_conf() -> None:
    faded = 0.6 * math.exp(-((2 / 3) ** 2) / 0.5)  # 0.247
    assert left("soft").scores.tolist() == pytest.approx([0.9, 0.5, 0.3, faded])
    assert left("soft").labels.tolist() == [0, 1, 0, 0]
    assert left("soft", conf=0.25).scores.tolist() == pytest.approx([0.9, 0.5, 0.3])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_cuts_to_the_best_and_takes_nothing_for_an_answer(kind: str) -> None:
    assert left(kind, max_det=1).scores.tolist() == pytest.approx([0.9])
    empty = suppress(candidates([], [], []), 0.5, kind, 0.1, 9)
    assert (tuple(empty.boxes.shape), len(empty.scores), len(empty.labels)) == ((0, 4), 0, 0)


def test_soft_does_not_change_its_argument() -> None:
    given = candidates(BOXES, SCORES, LABELS)
    suppress(given, 0.5, "soft", 0.0, 9)
    assert given.scores.tolist() == pytest.approx(SCORES)
