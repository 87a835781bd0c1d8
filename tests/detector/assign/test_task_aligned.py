"""Task-aligned assignment: hand-worked numbers, a brute force, and what it promises."""

import pytest
import torch
from torch import Tensor

from detector.assign import Aligned, aligned, pad_targets
from detector.assign import targets as targets_module
from detector.assign.task_aligned import MIN_QUALITY
from detector.boxes import elementwise_iou

POWERS = {"cls_power": 0.5, "iou_power": 6.0}
NUM_CLASSES = 3
Targets = list[dict[str, Tensor]]


def grid(side: int, strides: tuple[int, ...] = (8, 16, 32)) -> Tensor:
    """Centres (P, 2) of all cells of a square image."""
    rows = [
        ((column + 0.5) * stride, (row + 0.5) * stride)
        for stride in strides
        for row in range(side // stride)
        for column in range(side // stride)
    ]
    return torch.tensor(rows)


def make_case(counts: list[int], seed: int, side: int = 96) -> tuple[Tensor, Tensor, Targets]:
    """Predictions near each point, as a half-trained network gives them, and random targets."""
    generator = torch.Generator().manual_seed(seed)
    points = grid(side)
    half = 4 + 30 * torch.rand(len(counts), len(points), 2, generator=generator)
    centre = points + 8 * torch.randn(half.shape, generator=generator)
    logits = torch.randn(len(counts), len(points), NUM_CLASSES, generator=generator)
    targets = []
    for count in counts:
        low = torch.rand(count, 2, generator=generator) * (side - 6)
        high = low + 4 + torch.rand(count, 2, generator=generator) * 40
        labels = torch.randint(0, NUM_CLASSES, (count,), generator=generator)
        targets.append({"boxes": torch.cat((low, high), dim=1), "labels": labels})
    return torch.cat((centre - half, centre + half), dim=2), logits, targets


def assign(boxes: Tensor, logits: Tensor, targets: Targets, points: Tensor, topk: int) -> Aligned:
    return aligned(boxes, logits, pad_targets(targets, "cpu"), points, topk=topk, **POWERS)


def as_dict(found: Aligned) -> dict[tuple[int, int], tuple[int, float]]:
    """(image, point) -> (target, quality)."""
    (image, point, target), quality = found
    keys = zip(image.tolist(), point.tolist(), strict=True)
    return dict(zip(keys, zip(target.tolist(), quality.tolist(), strict=True), strict=True))


def test_qualities_are_the_hand_worked_numbers() -> None:
    # Points at (4, 4) and (12, 4). The target is 16 wide and 8 high and holds both. The first
    # prediction is the target itself (IoU 1), the second its right half (IoU 1/2); scores are 1/2.
    # Alignment: sqrt(1/2) and sqrt(1/2) / 64, so the second point's quality is 1/64 of the best.
    boxes = torch.tensor([[[0.0, 0, 16, 8], [8, 0, 16, 8]]])
    target = {"boxes": torch.tensor([[0.0, 0, 16, 8]]), "labels": torch.tensor([1])}
    points = torch.tensor([[4.0, 4.0], [12.0, 4.0]])
    found = as_dict(assign(boxes, torch.zeros(1, 2, 2), [target], points, topk=2))
    assert found == {(0, 0): (0, 1.0), (0, 1): (0, pytest.approx(1 / 64))}
    # with room for one, the best one stays
    assert set(as_dict(assign(boxes, torch.zeros(1, 2, 2), [target], points, topk=1))) == {(0, 0)}


def test_a_point_claimed_twice_goes_to_the_larger_iou() -> None:
    # as above, and a second target that is the right half: the second point is its own
    boxes = torch.tensor([[[0.0, 0, 16, 8], [8, 0, 16, 8]]])
    target = {
        "boxes": torch.tensor([[0.0, 0, 16, 8], [8, 0, 16, 8]]),
        "labels": torch.tensor([0, 1]),
    }
    points = torch.tensor([[4.0, 4.0], [12.0, 4.0]])
    found = as_dict(assign(boxes, torch.zeros(1, 2, 2), [target], points, topk=2))
    assert found == {(0, 0): (0, 1.0), (0, 1): (1, 1.0)}


def test_a_score_of_the_right_class_decides_between_equal_boxes() -> None:
    boxes = torch.tensor([[[0.0, 0, 16, 8], [0, 0, 16, 8]]])
    target = {"boxes": torch.tensor([[0.0, 0, 16, 8]]), "labels": torch.tensor([1])}
    logits = torch.tensor([[[3.0, -1.0], [-3.0, 1.0]]])
    points = torch.tensor([[4.0, 4.0], [12.0, 4.0]])
    assert set(as_dict(assign(boxes, logits, [target], points, topk=1))) == {(0, 1)}


def test_an_object_between_the_points_takes_the_nearest_and_learns_something() -> None:
    # a box of 2 px around (7, 7) holds no centre; of (4, 4), (12, 4), ... and, after the 16 of
    # stride 8, (8, 8), ... the last one is nearest, on the box's very corner
    points = grid(32)
    boxes = torch.cat((points + 100, points + 110), dim=1)[None]  # all far off: IoU 0
    target = {"boxes": torch.tensor([[6.0, 6, 8, 8]]), "labels": torch.tensor([0])}
    found = as_dict(assign(boxes, torch.zeros(1, len(points), 1), [target], points, topk=5))
    assert found == {(0, 16): (0, pytest.approx(MIN_QUALITY))}


def brute_force(
    boxes: Tensor, logits: Tensor, targets: Targets, points: Tensor, topk: int
) -> dict[tuple[int, int], tuple[int, float]]:
    """The rule of the docstring with loops over images, targets and points."""
    result = {}
    for image, target in enumerate(targets):
        claims: dict[int, list[tuple[float, int, float]]] = {}
        for name, (box, label) in enumerate(zip(target["boxes"], target["labels"], strict=True)):
            inside = [
                index
                for index, (x, y) in enumerate(points.tolist())
                if box[0] < x < box[2] and box[1] < y < box[3]
            ]
            if not inside:
                centre = (box[:2] + box[2:]) / 2
                inside = [int((points - centre).square().sum(1).argmin())]
            scored = []
            for index in inside:
                iou = float(elementwise_iou(boxes[image, index], box))
                score = float(logits[image, index, label].sigmoid())
                scored.append((score**0.5 * iou**6, index, iou))
            for metric, index, iou in sorted(scored, reverse=True)[:topk]:
                claims.setdefault(index, []).append((iou, name, metric))
        owned: dict[int, list[tuple[int, float, float]]] = {}
        for index, wishes in claims.items():
            iou, name, metric = max(wishes, key=lambda wish: wish[0])
            owned.setdefault(name, []).append((index, metric, iou))
        for name, members in owned.items():
            top = max(metric for _, metric, _ in members)
            top_iou = max(max(iou for _, _, iou in members), MIN_QUALITY)
            for index, metric, _ in members:
                result[image, index] = (name, metric / top * top_iou if top else top_iou)
    return result


@pytest.mark.parametrize("counts", [[5], [0, 12, 3], [40, 1]])
@pytest.mark.parametrize("topk", [1, 4, 13])
def test_it_is_the_brute_force(counts: list[int], topk: int) -> None:
    boxes, logits, targets = make_case(counts, seed=len(counts) + topk)
    points = grid(96)
    found = as_dict(assign(boxes, logits, targets, points, topk))
    expected = brute_force(boxes, logits, targets, points, topk)
    assert {key: name for key, (name, _) in found.items()} == {
        key: name for key, (name, _) in expected.items()
    }
    for key, (_, quality) in expected.items():
        assert found[key][1] == pytest.approx(quality, rel=1e-3, abs=1e-6)


def test_images_of_a_batch_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes, logits, targets = make_case([7, 0, 150, 20], seed=3)
    points = grid(96)
    whole = assign(boxes, logits, targets, points, 13)
    alone = [
        assign(boxes[i : i + 1], logits[i : i + 1], targets[i : i + 1], points, 13)
        for i in range(4)
    ]
    assert whole.matches.point.tolist() == [int(p) for one in alone for p in one.matches.point]
    torch.testing.assert_close(whole.quality, torch.cat([one.quality for one in alone]))
    monkeypatch.setattr(targets_module, "MAX_PAIRS", 1)  # one image at a time
    assert torch.equal(assign(boxes, logits, targets, points, 13).quality, whole.quality)


def test_qualities_are_fractions_and_numbers_that_are_not_finite_do_no_harm() -> None:
    boxes, logits, targets = make_case([9, 4], seed=5)
    boxes[0, ::3], logits[1, ::2] = float("nan"), float("inf")
    (image, _, target), quality = assign(boxes, logits, targets, grid(96), 13)
    assert ((quality >= 0) & (quality <= 1)).all()
    assert set(target[image == 1].tolist()) <= {0, 1, 2, 3}


def test_no_objects_give_no_positives() -> None:
    boxes, logits, targets = make_case([0, 0], seed=6)
    found = assign(boxes, logits, targets, grid(96), 13)
    assert as_dict(found) == {}
    assert as_dict(assign(boxes[:0], logits[:0], [], grid(96), 13)) == {}
