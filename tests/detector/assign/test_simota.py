"""SimOTA against a brute force, and what it promises.

The brute force is the plain rule of the paper with Python loops over targets and points.
"""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision.ops as ops
from torch import Tensor

from detector.assign import Level, Matches, PaddedTargets, pad_targets, simota
from detector.assign import targets as targets_module

SIDE = 128
LEVELS = [Level(SIDE // stride, SIDE // stride, stride) for stride in (8, 16, 32)]
NUM_POINTS = 16 * 16 + 8 * 8 + 4 * 4
NUM_CLASSES = 3
COSTS = {"center_radius": 1.5, "topk": 10, "iou_cost": 3.0, "cls_cost": 1.0}
Targets = list[dict[str, Tensor]]


def grid_points() -> tuple[Tensor, Tensor]:
    """Centres (P, 2) and strides (P,) of all points."""
    rows = [
        ((column + 0.5) * stride, (row + 0.5) * stride, stride)
        for height, width, stride in LEVELS
        for row in range(height)
        for column in range(width)
    ]
    table = torch.tensor(rows)
    return table[:, :2], table[:, 2]


def make_targets(counts: list[int], seed: int, largest: float = 60.0) -> Targets:
    """Random targets inside the image."""
    generator = torch.Generator().manual_seed(seed)
    targets = []
    for count in counts:
        centre = torch.rand(count, 2, generator=generator) * SIDE
        half = (torch.rand(count, 2, generator=generator) * largest + 1) / 2
        boxes = torch.cat((centre - half, centre + half), dim=1).clamp(0, SIDE)
        labels = torch.randint(0, NUM_CLASSES, (count,), generator=generator)
        targets.append({"boxes": boxes, "labels": labels})
    return targets


def make_predictions(num_images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Boxes near each point, as a half-trained network gives them, and logits."""
    generator = torch.Generator().manual_seed(seed)
    points, strides = grid_points()
    shift = torch.randn(num_images, NUM_POINTS, 2, generator=generator)
    centre = points + shift * strides[:, None] / 2
    size = (
        strides[:, None] * torch.rand(num_images, NUM_POINTS, 2, generator=generator).mul(2).exp()
    )
    logits = torch.randn(num_images, NUM_POINTS, 1 + NUM_CLASSES, generator=generator) * 2
    return torch.cat((centre - size / 2, centre + size / 2), dim=2), logits


def run(boxes: Tensor, logits: Tensor, targets: Targets, **changes: float) -> Matches:
    return simota(boxes, logits, pad_targets(targets, "cpu"), LEVELS, **{**COSTS, **changes})


def as_sets(matches: Matches, num_images: int) -> list[dict[int, int]]:
    """Per image {point: target}; fails when a point occurs twice."""
    found: list[dict[int, int]] = [{} for _ in range(num_images)]
    for image, point, target in torch.stack(matches, dim=1).tolist():
        assert point not in found[image]
        found[image][point] = target
    return found


def brute_costs(
    boxes: Tensor, logits: Tensor, target: dict[str, Tensor], costs: dict[str, float]
) -> list[Tensor]:
    """IoU, cost and "is near" (T, P) of one image."""
    points, strides = grid_points()
    near_rows, cost_rows = [], []
    iou = ops.box_iou(target["boxes"], boxes)
    for row, (box, label) in enumerate(zip(target["boxes"], target["labels"], strict=True)):
        centre = (box[:2] + box[2:]) / 2
        away = (points - centre).abs().amax(dim=1)
        near = away < costs["center_radius"] * strides
        if not near.any():
            near[(points - centre).square().sum(dim=1).argmin()] = True
        score = (logits[:, 1:].sigmoid() * logits[:, :1].sigmoid()).sqrt()
        one_hot = F.one_hot(label, NUM_CLASSES).float().expand_as(score)
        classes = F.binary_cross_entropy(score, one_hot, reduction="none").sum(dim=1)
        cost = costs["cls_cost"] * classes - costs["iou_cost"] * (iou[row] + 1e-8).log()
        cost_rows.append(cost + 1e6 * ~near)
        near_rows.append(near)
    near = torch.stack(near_rows)
    candidate = near.any(dim=0)
    return [iou * candidate, torch.stack(cost_rows).masked_fill(~candidate, math.inf), near]


def brute_simota(
    boxes: Tensor, logits: Tensor, target: dict[str, Tensor], costs: dict[str, float]
) -> dict[int, int]:
    """{point: target} of one image."""
    if not len(target["labels"]):
        return {}
    iou, cost, near = brute_costs(boxes, logits, target, costs)
    claims: dict[int, list[int]] = {}
    for row in range(len(cost)):
        wanted = max(1, int(iou[row].sort(descending=True).values[: int(costs["topk"])].sum()))
        for point in cost[row].argsort()[:wanted].tolist():
            claims.setdefault(point, []).append(row)
    owner = {
        point: rows[0] if len(rows) == 1 else int(cost[:, point].argmin())
        for point, rows in claims.items()
    }
    return brute_rescue(owner, cost, near)


def brute_rescue(owner: dict[int, int], cost: Tensor, near: Tensor) -> dict[int, int]:
    """Targets without a point take their cheapest one that is nobody's best, in rounds."""
    while True:
        orphans = [row for row in range(len(cost)) if row not in owner.values()]
        best = {
            min((p for p in owner if owner[p] == row), key=lambda p: float(cost[row, p]))
            for row in set(owner.values())
        }
        wishes: dict[int, list[int]] = {}
        for row in orphans:
            free = [p for p in near[row].nonzero().flatten().tolist() if p not in best]
            if free:
                wishes.setdefault(min(free, key=lambda p: float(cost[row, p])), []).append(row)
        if not wishes:
            return owner
        for point, rows in wishes.items():
            owner[point] = min(rows, key=lambda row: float(cost[row, point]))


@pytest.mark.parametrize(
    ("counts", "largest", "changes"),
    [
        pytest.param([1, 4, 9], 60, {}, id="usual"),
        pytest.param([0, 3, 0], 60, {}, id="images without objects"),
        pytest.param([40, 25], 100, {}, id="crowded"),
        pytest.param([130, 2], 60, {}, id="more than 120"),
        pytest.param([12, 6], 2, {}, id="tiny"),
        pytest.param([8, 8], 60, {"center_radius": 2.5, "topk": 13}, id="wide"),
        pytest.param([20, 30], 60, {"center_radius": 0.4}, id="narrow"),
        pytest.param([8, 8], 60, {"iou_cost": 0.5, "cls_cost": 4.0, "topk": 3}, id="other costs"),
    ],
)
def test_simota_agrees_with_brute_force(
    counts: list[int], largest: float, changes: dict[str, float]
) -> None:
    for seed in range(2):
        targets = make_targets(counts, seed, largest)
        boxes, logits = make_predictions(len(counts), seed + 100)
        found = as_sets(run(boxes, logits, targets, **changes), len(counts))
        for image, target in enumerate(targets):
            expected = brute_simota(boxes[image], logits[image], target, {**COSTS, **changes})
            assert found[image] == expected


def test_simota_gives_the_hand_worked_points() -> None:
    # One object of 32 x 32 px around (32, 32). Point 3 * 16 + 3 of stride 8 is at (28, 28); it and
    # point 3 * 16 + 4 at (36, 28) predict the object itself (IoU 1), all others far-off boxes
    # (IoU 0): k = int(1 + 1) = 2, and these two are the cheapest.
    boxes = torch.tensor([1000.0, 1000, 1010, 1010]).repeat(1, NUM_POINTS, 1)
    boxes[0, [51, 52]] = torch.tensor([16.0, 16, 48, 48])
    logits = torch.zeros(1, NUM_POINTS, 1 + NUM_CLASSES)
    target = {"boxes": torch.tensor([[16.0, 16, 48, 48]]), "labels": torch.tensor([1])}
    assert as_sets(run(boxes, logits, [target]), 1) == [{51: 0, 52: 0}]


def test_a_point_outside_the_radius_is_not_taken_however_good_it_is() -> None:
    boxes = torch.tensor([1000.0, 1000, 1010, 1010]).repeat(1, NUM_POINTS, 1)
    boxes[0, 0] = torch.tensor([80.0, 80, 120, 120])  # predicts the object from afar
    logits = torch.zeros(1, NUM_POINTS, 1 + NUM_CLASSES)
    near_it = {"boxes": torch.tensor([[80.0, 80, 120, 120]]), "labels": torch.tensor([1])}
    assert 0 not in as_sets(run(boxes, logits, [near_it]), 1)[0]


@pytest.mark.parametrize("radius", [0.1, 0.5, 1.5, 2.5])
@pytest.mark.parametrize("largest", [1.0, 60.0])
def test_simota_gives_every_object_a_cell(radius: float, largest: float) -> None:
    counts = [1, 0, 12, 18]
    for seed in range(5):
        targets = make_targets(counts, seed, largest)
        boxes, logits = make_predictions(len(counts), seed)
        found = as_sets(run(boxes, logits, targets, center_radius=1.5), len(counts))
        assert [set(owners.values()) for owners in found] == [set(range(n)) for n in counts]
        # with a narrow radius objects in one cell can have one candidate between them
        alone = [{key: value[:1] for key, value in target.items()} for target in targets]
        found = as_sets(run(boxes, logits, alone, center_radius=radius), len(counts))
        assert [set(owners.values()) for owners in found] == [{0}, set(), {0}, {0}]


def test_equal_objects_share_the_points_around_them() -> None:
    box = torch.tensor([[40.0, 40, 80, 80]])
    boxes, logits = make_predictions(1, seed=3)
    # 27 candidates (3 x 3 on each map): the 27 first can all have one, the others cannot
    for copies, served in ((2, 2), (20, 20), (40, 27)):
        target = {"boxes": box.repeat(copies, 1), "labels": torch.zeros(copies, dtype=torch.int64)}
        owners = as_sets(run(boxes, logits, [target]), 1)[0]
        assert len(set(owners.values())) == served


def test_a_tiny_object_between_points_gets_the_nearest_one() -> None:
    # The object is at (13, 5); the nearest points are (12, 4) on the first map, column 1, row 0,
    # and (8, 8) on the second. A radius of 0.1 is 0.8 pixels there: nothing is inside.
    target = {"boxes": torch.tensor([[12.5, 4.5, 13.5, 5.5]]), "labels": torch.tensor([0])}
    boxes, logits = make_predictions(1, seed=4)
    assert as_sets(run(boxes, logits, [target], center_radius=0.1), 1) == [{1: 0}]


def test_a_centre_on_the_far_border_is_fine() -> None:
    corner = {
        "boxes": torch.tensor([[118.0, 118, 138, 138], [127.9, 127.9, 128, 128]]),
        "labels": torch.tensor([0, 1]),
    }
    boxes, logits = make_predictions(1, seed=5)
    owners = as_sets(run(boxes, logits, [corner]), 1)[0]
    assert set(owners.values()) == {0, 1}
    points, strides = grid_points()
    centres = (corner["boxes"][:, :2] + corner["boxes"][:, 2:]) / 2  # the first one is (128, 128)
    for point, target in owners.items():
        assert (points[point] - centres[target]).abs().max() < 1.5 * strides[point]


def test_each_image_is_assigned_as_if_it_were_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = [5, 0, 30, 1, 12]
    targets = make_targets(counts, seed=6)
    boxes, logits = make_predictions(len(counts), seed=7)
    together = as_sets(run(boxes, logits, targets), len(counts))
    for image, target in enumerate(targets):
        alone = run(boxes[image : image + 1], logits[image : image + 1], [target])
        assert as_sets(alone, 1)[0] == together[image]
    monkeypatch.setattr(targets_module, "MAX_PAIRS", 1)  # one image at a time
    assert as_sets(run(boxes, logits, targets), len(counts)) == together


def test_the_order_of_the_targets_does_not_matter() -> None:
    (target,) = make_targets([25], seed=8)
    boxes, logits = make_predictions(1, seed=9)
    order = torch.randperm(25, generator=torch.Generator().manual_seed(10))
    shuffled = {key: value[order] for key, value in target.items()}
    (straight,) = as_sets(run(boxes, logits, [target]), 1)
    (mixed,) = as_sets(run(boxes, logits, [shuffled]), 1)
    assert {point: int(order[row]) for point, row in mixed.items()} == straight


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_diverging_network_still_gets_an_assignment(value: float) -> None:
    targets = make_targets([3, 20], seed=11)
    boxes, logits = make_predictions(2, seed=12)
    boxes[0], logits[1] = value, value
    found = as_sets(run(boxes, logits, targets), 2)
    assert [set(owners.values()) for owners in found] == [set(range(3)), set(range(20))]


def test_no_image_with_an_object_gives_no_match() -> None:
    boxes, logits = make_predictions(2, seed=13)
    for targets in (make_targets([0, 0], seed=0), make_targets([], seed=0)):
        matches = run(boxes[: len(targets)], logits[: len(targets)], targets)
        assert [tuple(part.shape) for part in matches] == [(0,)] * 3


def test_padding_keeps_the_targets_in_front() -> None:
    targets = make_targets([2, 0, 1], seed=14)
    padded = pad_targets(targets, "cpu")
    assert isinstance(padded, PaddedTargets)
    assert padded.counts == [2, 0, 1]
    assert padded.boxes.shape == (3, 2, 4)
    assert torch.equal(padded.boxes[0], targets[0]["boxes"])
    assert torch.equal(padded.boxes[2, :1], targets[2]["boxes"])
    assert padded.labels[1].tolist() == [0, 0]
