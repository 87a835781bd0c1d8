"""Conversions, overlaps, clipping and suppression of boxes."""

from collections.abc import Callable

import pytest
import torch
import torchvision.ops as ops
from torch import Tensor

from detector.boxes import (
    Detections,
    batched_nms,
    box_area,
    box_iou,
    clip_boxes,
    cxcywh_to_xyxy,
    elementwise_ciou,
    elementwise_diou,
    elementwise_giou,
    elementwise_iou,
    xyxy_to_cxcywh,
)


def random_boxes(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) * 100 - 20
    return torch.cat((low, low + 1 + torch.rand(count, 2, generator=generator) * 60), dim=1)


def test_conversion_gives_the_hand_worked_numbers_and_leaves_its_argument_alone() -> None:
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0]])
    # centre ((10+30)/2, (20+60)/2), size (30-10, 60-20)
    assert xyxy_to_cxcywh(boxes).tolist() == [[20, 40, 20, 40]]
    assert boxes.tolist() == [[10, 20, 30, 60]]


@pytest.mark.parametrize("shape", [(0, 4), (7, 4), (2, 3, 4)])
def test_conversion_round_trip_is_identity(shape: tuple[int, ...]) -> None:
    boxes = random_boxes(42, seed=1)[: torch.Size(shape[:-1]).numel()].reshape(shape)
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes)


def test_clip_cuts_at_the_borders() -> None:
    boxes = torch.tensor([[-5.0, -1.0, 300.0, 90.0], [10.0, 20.0, 30.0, 40.0]])
    expected = [[0, 0, 200, 90], [10, 20, 30, 40]]
    assert clip_boxes(boxes, (100, 200)).tolist() == expected  # (height, width)
    assert clip_boxes(torch.zeros(0, 4), (100, 200)).shape == (0, 4)


def test_iou_gives_the_hand_worked_number() -> None:
    a = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    b = torch.tensor([[2.0, 2.0, 6.0, 6.0]])
    # shared 2*2 = 4; union 16 + 16 - 4 = 28; hull 6*6 = 36
    assert elementwise_iou(a, b).item() == pytest.approx(4 / 28)
    assert elementwise_giou(a, b).item() == pytest.approx(4 / 28 - (36 - 28) / 36)
    # centres (2, 2) and (4, 4): distance^2 8; hull diagonal^2 72; equal shapes
    assert elementwise_diou(a, b).item() == pytest.approx(4 / 28 - 8 / 72)
    assert elementwise_ciou(a, b).item() == pytest.approx(4 / 28 - 8 / 72)


def test_overlaps_agree_with_torchvision() -> None:
    a, b = random_boxes(30, seed=2), random_boxes(20, seed=3)
    torch.testing.assert_close(box_iou(a, b), ops.box_iou(a, b))
    torch.testing.assert_close(box_area(a), ops.box_area(a))
    pairs, against = a[:20], b
    for ours, theirs in (
        (elementwise_iou, ops.box_iou),
        (elementwise_giou, ops.generalized_box_iou),
        (elementwise_diou, ops.distance_box_iou),
        (elementwise_ciou, ops.complete_box_iou),
    ):
        torch.testing.assert_close(
            ours(pairs, against), theirs(pairs, against).diagonal(), atol=1e-5, rtol=1e-5
        )


def test_pairwise_iou_works_on_batches_and_on_nothing() -> None:
    a, b = random_boxes(6, seed=4).reshape(2, 3, 4), random_boxes(8, seed=5).reshape(2, 4, 4)
    expected = torch.stack([ops.box_iou(first, second) for first, second in zip(a, b, strict=True)])
    torch.testing.assert_close(box_iou(a, b), expected)
    assert box_iou(torch.zeros(0, 4), b[0]).shape == (0, 4)


def test_boxes_without_area_overlap_by_zero() -> None:
    empty = torch.tensor([[5.0, 5.0, 5.0, 5.0]])
    assert elementwise_iou(empty, empty).item() == 0
    assert box_iou(empty, empty).item() == 0


@pytest.mark.parametrize(
    "overlap", [elementwise_iou, elementwise_giou, elementwise_diou, elementwise_ciou]
)
def test_gradients_are_finite_for_any_pair(
    overlap: Callable[[Tensor, Tensor], Tensor],
) -> None:
    boxes = torch.tensor(
        [
            [0.0, 0.0, 4.0, 4.0],  # the same box
            [50.0, 50.0, 60.0, 60.0],  # far away
            [4.0, 0.0, 8.0, 4.0],  # touching
            [2.0, 2.0, 2.0, 2.0],  # no area
        ],
        requires_grad=True,
    )
    overlap(boxes, torch.tensor([[0.0, 0.0, 4.0, 4.0]]).expand(4, 4)).sum().backward()
    assert boxes.grad is not None
    assert boxes.grad.isfinite().all()


def brute_force_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> list[int]:
    kept: list[int] = []
    for index in scores.argsort(descending=True).tolist():
        rivals = [other for other in kept if labels[other] == labels[index]]
        if all(ops.box_iou(boxes[None, index], boxes[None, o]).item() <= iou for o in rivals):
            kept.append(index)
    return kept


def test_nms_agrees_with_brute_force_within_each_class() -> None:
    boxes = random_boxes(80, seed=6)  # some reach to negative coordinates
    generator = torch.Generator().manual_seed(7)
    scores = torch.rand(80, generator=generator)
    labels = torch.randint(0, 3, (80,), generator=generator)
    kept = batched_nms(boxes, scores, labels, 0.4).tolist()
    assert kept == brute_force_nms(boxes, scores, labels, 0.4)
    assert len(kept) < 80


def test_nms_keeps_exact_overlaps_in_spite_of_a_huge_box() -> None:
    # 79 * 2e6 px of class shift: float32 would round the coordinates of the small boxes to 16 px
    boxes = torch.tensor([[0.0, 0, 2e6, 2e6], [10, 10, 20, 20], [12, 10, 22, 20], [15, 10, 25, 20]])
    scores, labels = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0, 79, 79, 79])
    # IoU of the small ones with the first of them: 80/120 = 0.667 and 50/150 = 0.333
    assert batched_nms(boxes, scores, labels, 0.5).tolist() == [0, 1, 3]


def test_nms_survives_infinite_boxes_and_none_at_all() -> None:
    boxes = torch.tensor([[-torch.inf, 0, torch.inf, 5], [1, 1, 2, 2]])
    kept = batched_nms(boxes, torch.tensor([0.5, 0.6]), torch.tensor([0, 0]), 0.5)
    assert kept.tolist() == [1, 0]
    none = batched_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), 0.5)
    assert none.tolist() == []


def test_detections_have_a_length() -> None:
    found = Detections(torch.zeros(3, 4), torch.zeros(3), torch.zeros(3, dtype=torch.int64))
    assert len(found) == 3
