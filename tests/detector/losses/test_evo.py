"""The Evo loss: hand-worked numbers, laws, gradients."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from detector.config import Hyp
from detector.losses import EvoLoss
from detector.losses.evo import encode_sides
from detector.models.evo import raw_to_xyxy
from detector.models.yolox import flatten_raw, make_grid

NUM_CLASSES = 3
STRIDES = (8, 16, 32)
TINY = "evo:depth=0.33,width=0.125"


VALUES = Hyp(topk=13)


@pytest.mark.parametrize("focus", [0.0, 2.0])
def test_loss_gives_the_hand_worked_numbers(focus: float) -> None:
    # One map of one cell, stride 8, two classes, all raw outputs 0: each side is e^0 = 1 cell from
    # the centre (4, 4), so the box is (-4, -4, 12, 12). Against (0, 0, 8, 8): IoU = 64 / 256 = 1/4;
    # the hull is the box itself, so GIoU = 1/4 too. The only positive is the best one: quality 1/4.
    loss = EvoLoss((8,), replace(VALUES, cls=2.0, l1=3.0, focus=focus))
    loss.use_l1 = True
    target = {"boxes": torch.tensor([[0.0, 0, 8, 8]]), "labels": torch.tensor([1])}
    sums, count = loss.sums([torch.zeros(1, 6, 1, 1)], [target])
    assert count.item() == pytest.approx(0.25)
    assert sums["box"].item() == pytest.approx(5 * 0.75 * 0.25)
    # BCE of a score of 1/2 is ln 2 whatever the goal; (1/2 - 0)^2 + (1/2 - 1/4)^2 = 5/16
    assert sums["cls"].item() == pytest.approx(2 * math.log(2) * (5 / 16 if focus else 2))
    # each side should be half a cell away: ln(1/2) instead of 0, four times, weighted by 1/4
    assert sums["l1"].item() == pytest.approx(3 * 4 * math.log(2) * 0.25)


def test_an_image_without_objects_gives_the_class_part_only(
    random_maps: Callable, random_objects: Callable
) -> None:
    raw = [level.requires_grad_() for level in random_maps(4 + NUM_CLASSES, 2, seed=6)]
    loss = EvoLoss(STRIDES, VALUES)
    loss.use_l1 = True
    parts = loss(raw, random_objects([0, 0], seed=0))
    assert [parts[name].item() for name in ("box", "l1")] == [0, 0]
    assert parts["total"] == parts["cls"] > 0
    parts["total"].backward()
    for level in raw:
        assert level.grad is not None
        assert level.grad[:, 4:].abs().min() > 0
        assert level.grad[:, :4].abs().max() == 0


def test_a_quality_is_a_number_and_no_path(random_maps: Callable, random_objects: Callable) -> None:
    raw = [level.requires_grad_() for level in random_maps(4 + NUM_CLASSES, 1, seed=9)]
    targets = random_objects([3], seed=10)
    sums, count = EvoLoss(STRIDES, VALUES).sums(raw, targets)
    assert not count.requires_grad
    sums["cls"].backward()  # the box gets nothing from the goal of the score
    assert all(level.grad is not None and level.grad[:, :4].abs().max() == 0 for level in raw)


def test_encoding_is_the_inverse_of_decoding(random_maps: Callable) -> None:
    raw = random_maps(4 + NUM_CLASSES, 1, seed=13)
    cells, strides = make_grid(raw, STRIDES)
    table = flatten_raw(raw)[0]
    found = encode_sides(raw_to_xyxy(table, cells, strides), cells, strides)
    torch.testing.assert_close(found, table[:, :4], atol=1e-4, rtol=1e-4)
