"""The YOLOX loss: hand-worked numbers, laws, gradients."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from detector.boxes import cxcywh_to_xyxy
from detector.config import Hyp
from detector.decode import decode
from detector.losses import YoloxLoss, encode_raw
from detector.models import build_model
from detector.models.yolox import make_grid

NUM_CLASSES = 3
STRIDES = (8, 16, 32)


VALUES = Hyp()


def test_loss_gives_the_hand_worked_numbers() -> None:
    # One map of one cell, stride 8, two classes, all raw outputs 0: the predicted box has centre
    # (0, 0) and size 8 x 8. Against (0, 0, 8, 8): shared 4 * 4 = 16, union 64 + 64 - 16 = 112.
    loss = YoloxLoss((8,), replace(VALUES, obj=2.0, l1=3.0))
    loss.use_l1 = True
    target = {"boxes": torch.tensor([[0.0, 0, 8, 8]]), "labels": torch.tensor([1])}
    sums, count = loss.sums([torch.zeros(1, 7, 1, 1)], [target])
    assert count.item() == 1
    assert sums["box"].item() == pytest.approx(5 * (1 - (16 / 112) ** 2))
    assert sums["obj"].item() == pytest.approx(2 * math.log(2))  # BCE of 0.5 against 1
    assert sums["cls"].item() == pytest.approx(2 * math.log(2))  # 0.5 against anything, two classes
    # the raw goal is (4/8 - 0, 4/8 - 0, ln(8/8), ln(8/8)) = (0.5, 0.5, 0, 0)
    assert sums["l1"].item() == pytest.approx(3 * 1.0, abs=1e-6)
    assert set(sums) == {"box", "obj", "cls", "l1"}


def test_class_target_is_one_hot_times_iou() -> None:
    raw = torch.zeros(1, 7, 1, 1)
    raw[0, 5:, 0, 0] = torch.tensor([2.0, -1.0])
    target = {"boxes": torch.tensor([[0.0, 0, 8, 8]]), "labels": torch.tensor([0])}
    sums, _ = YoloxLoss((8,), VALUES).sums([raw], [target])
    # BCE(x, t) = ln(1 + e^x) - t x with t = 16/112 for class 0 and 0 for class 1
    expected = math.log1p(math.exp(2)) - 16 / 112 * 2 + math.log1p(math.exp(-1))
    assert sums["cls"].item() == pytest.approx(expected)


def test_an_image_without_objects_gives_the_objectness_part_only(
    random_maps: Callable, random_objects: Callable
) -> None:
    raw = [level.requires_grad_() for level in random_maps(5 + NUM_CLASSES, 2, seed=6)]
    loss = YoloxLoss(STRIDES, VALUES)
    loss.use_l1 = True
    parts = loss(raw, random_objects([0, 0], seed=0))
    assert [parts[name].item() for name in ("box", "cls", "l1")] == [0, 0, 0]
    assert parts["total"] == parts["obj"] > 0
    parts["total"].backward()
    for level in raw:
        assert level.grad is not None
        assert level.grad[:, 4].abs().min() > 0
        assert level.grad[:, [0, 1, 2, 3, 5, 6, 7]].abs().max() == 0


def test_targets_take_no_gradient_and_stay_as_they_are(
    random_maps: Callable, random_objects: Callable
) -> None:
    raw = [level.requires_grad_() for level in random_maps(5 + NUM_CLASSES, 1, seed=9)]
    (target,) = random_objects([3], seed=10)
    before = {key: value.clone() for key, value in target.items()}
    loss = YoloxLoss(STRIDES, replace(VALUES, cls=0.0, obj=0.0))
    loss.sums(raw, [target])[0]["box"].backward(retain_graph=True)
    assert all(torch.equal(target[key], value) for key, value in before.items())
    # the IoU inside the class target is a number, not a path: the box gets nothing from it
    again = [level.detach().clone().requires_grad_() for level in raw]
    YoloxLoss(STRIDES, VALUES).sums(again, [target])[0]["cls"].backward()
    assert all(level.grad is not None and level.grad[:, :4].abs().max() == 0 for level in again)


def test_encoding_is_the_inverse_of_decoding(random_maps: Callable) -> None:
    model = build_model("yolox-pico", NUM_CLASSES)
    raw = random_maps(5 + NUM_CLASSES, 1, seed=13)
    cells, strides = make_grid(raw, STRIDES)
    boxes = cxcywh_to_xyxy(decode(model, raw)[0, :, :4])
    expected = torch.cat([level[0, :4].flatten(1).T for level in raw])
    torch.testing.assert_close(encode_raw(boxes, cells, strides), expected, atol=1e-4, rtol=1e-4)
