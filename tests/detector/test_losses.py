"""The YOLOX loss: hand-worked numbers, laws, gradients."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from detector.boxes import cxcywh_to_xyxy
from detector.decode import decode
from detector.losses import YoloxLoss, build_loss, encode_raw
from detector.models import build_model
from detector.models.yolox import make_grid

NUM_CLASSES = 3
STRIDES = (8, 16, 32)


@dataclass(frozen=True)
class LossValues:
    box: float = 5.0
    obj: float = 1.0
    cls: float = 1.0
    l1: float = 1.0
    center_radius: float = 1.5
    topk: int = 10
    iou_cost: float = 3.0
    cls_cost: float = 1.0


def make_raw(num_images: int, seed: int, side: int = 64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(num_images, 5 + NUM_CLASSES, side // s, side // s, generator=generator)
        for s in STRIDES
    ]


def make_targets(counts: list[int], seed: int, side: int = 64) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    targets = []
    for count in counts:
        low = torch.rand(count, 2, generator=generator) * (side - 10)
        high = low + 2 + torch.rand(count, 2, generator=generator) * (side - low - 2)
        labels = torch.randint(0, NUM_CLASSES, (count,), generator=generator)
        targets.append({"boxes": torch.cat((low, high), dim=1), "labels": labels})
    return targets


def test_loss_gives_the_hand_worked_numbers() -> None:
    # One map of one cell, stride 8, two classes, all raw outputs 0: the predicted box has centre
    # (0, 0) and size 8 x 8. Against (0, 0, 8, 8): shared 4 * 4 = 16, union 64 + 64 - 16 = 112.
    loss = YoloxLoss((8,), LossValues(obj=2.0, l1=3.0))
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
    sums, _ = YoloxLoss((8,), LossValues()).sums([raw], [target])
    # BCE(x, t) = ln(1 + e^x) - t x with t = 16/112 for class 0 and 0 for class 1
    expected = math.log1p(math.exp(2)) - 16 / 112 * 2 + math.log1p(math.exp(-1))
    assert sums["cls"].item() == pytest.approx(expected)


def test_parts_are_sums_over_positives_and_total_is_their_sum() -> None:
    raw, targets = make_raw(2, seed=0), make_targets([3, 5], seed=1)
    loss = YoloxLoss(STRIDES, LossValues())
    parts, (sums, count) = loss(raw, targets), loss.sums(raw, targets)
    assert set(parts) == {"box", "obj", "cls", "total"}
    assert count >= 8
    for name, value in sums.items():
        torch.testing.assert_close(parts[name], value / count)
    torch.testing.assert_close(parts["total"], parts["box"] + parts["obj"] + parts["cls"])


@pytest.mark.parametrize("name", ["box", "obj", "cls", "l1"])
def test_a_gain_multiplies_its_own_part_only(name: str) -> None:
    raw, targets = make_raw(1, seed=2), make_targets([4], seed=3)
    results = []
    for hyp in (LossValues(), replace(LossValues(), **{name: getattr(LossValues(), name) * 2})):
        loss = YoloxLoss(STRIDES, hyp)
        loss.use_l1 = True
        results.append(loss.sums(raw, targets)[0])
    plain, doubled = results
    for part in plain:
        torch.testing.assert_close(doubled[part], plain[part] * (2 if part == name else 1))


def test_micro_batches_add_up_to_the_batch() -> None:
    raw, targets = make_raw(6, seed=4), make_targets([3, 0, 7, 1, 30, 2], seed=5)
    loss = YoloxLoss(STRIDES, LossValues())
    loss.use_l1 = True
    whole, count = loss.sums(raw, targets)
    pieces = [loss.sums([level[i : i + 2] for level in raw], targets[i : i + 2]) for i in (0, 2, 4)]
    assert count == sum(piece_count for _, piece_count in pieces)
    for name, value in whole.items():
        torch.testing.assert_close(value, torch.stack([sums[name] for sums, _ in pieces]).sum())


def test_an_image_without_objects_gives_the_objectness_part_only() -> None:
    raw = [level.requires_grad_() for level in make_raw(2, seed=6)]
    loss = YoloxLoss(STRIDES, LossValues())
    loss.use_l1 = True
    parts = loss(raw, make_targets([0, 0], seed=0))
    assert [parts[name].item() for name in ("box", "cls", "l1")] == [0, 0, 0]
    assert parts["total"] == parts["obj"] > 0
    parts["total"].backward()
    for level in raw:
        assert level.grad is not None
        assert level.grad[:, 4].abs().min() > 0
        assert level.grad[:, [0, 1, 2, 3, 5, 6, 7]].abs().max() == 0


@pytest.mark.parametrize("counts", [[0, 2], [1, 130], [40, 0]])
@pytest.mark.parametrize("scale", [0.0, 1.0, 8.0])
def test_gradients_are_finite(counts: list[int], scale: float) -> None:
    raw = [(level * scale).requires_grad_() for level in make_raw(2, seed=7)]
    targets = make_targets(counts, seed=8)
    targets[1]["boxes"][:1] = torch.tensor([[63.9, 63.9, 64.0, 64.0]])  # tiny, in the corner
    loss = YoloxLoss(STRIDES, LossValues())
    loss.use_l1 = True
    parts = loss(raw, targets)
    parts["total"].backward()
    assert all(value.isfinite() for value in parts.values())
    assert all(level.grad is not None and level.grad.isfinite().all() for level in raw)


def test_targets_take_no_gradient_and_stay_as_they_are() -> None:
    raw = [level.requires_grad_() for level in make_raw(1, seed=9)]
    (target,) = make_targets([3], seed=10)
    before = {key: value.clone() for key, value in target.items()}
    loss = YoloxLoss(STRIDES, LossValues(cls=0.0, obj=0.0))
    loss.sums(raw, [target])[0]["box"].backward(retain_graph=True)
    assert all(torch.equal(target[key], value) for key, value in before.items())
    # the IoU inside the class target is a number, not a path: the box gets nothing from it
    again = [level.detach().clone().requires_grad_() for level in raw]
    YoloxLoss(STRIDES, LossValues()).sums(again, [target])[0]["cls"].backward()
    assert all(level.grad is not None and level.grad[:, :4].abs().max() == 0 for level in again)


def test_autocast_changes_nothing() -> None:
    raw, targets = make_raw(2, seed=11), make_targets([3, 5], seed=12)
    loss = YoloxLoss(STRIDES, LossValues())
    plain = loss(raw, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = loss(raw, targets)
    half = loss([level.half() for level in raw], targets)
    for name, value in plain.items():
        assert cast[name].dtype == half[name].dtype == torch.float32
        torch.testing.assert_close(cast[name], value)
        torch.testing.assert_close(half[name], value, rtol=0.1, atol=0.01)


def test_encoding_is_the_inverse_of_decoding() -> None:
    model = build_model("yolox-pico", NUM_CLASSES)
    raw = make_raw(1, seed=13)
    cells, strides = make_grid(raw, STRIDES)
    boxes = cxcywh_to_xyxy(decode(model, raw)[0, :, :4])
    expected = torch.cat([level[0, :4].flatten(1).T for level in raw])
    torch.testing.assert_close(encode_raw(boxes, cells, strides), expected, atol=1e-4, rtol=1e-4)


def test_descending_the_loss_finds_the_objects() -> None:
    model = build_model("yolox-pico", NUM_CLASSES)
    loss = build_loss(model, LossValues())
    loss.use_l1 = True
    raw = [(level * 0.1).requires_grad_() for level in make_raw(1, seed=14)]
    target = {
        "boxes": torch.tensor([[4.0, 6, 30, 28], [30, 34, 62, 60]]),
        "labels": torch.tensor([2, 0]),
    }
    optimizer = torch.optim.Adam(raw, lr=0.1)
    for _ in range(80):
        optimizer.zero_grad()
        loss(raw, [target])["total"].backward()
        optimizer.step()
    decoded = decode(model, raw)[0]
    for box, label in zip(target["boxes"], target["labels"], strict=True):
        scores = decoded[:, 4] * decoded[:, 5 + label]
        assert scores.max() > 0.8
        found = cxcywh_to_xyxy(decoded[scores.argmax(), :4])
        assert (found - box).abs().max() < 1.0  # pixels


def test_an_empty_batch_has_sums_and_gradients_of_zero() -> None:
    # A rank without images in a short last step takes part in the reduction with these.
    model = build_model("yolox-pico", 2).train()
    before = {name: value.clone() for name, value in model.named_buffers() if "running" in name}
    sums, count = YoloxLoss(model.strides, LossValues()).sums(model(torch.zeros(0, 3, 64, 64)), [])
    torch.stack(tuple(sums.values())).sum().backward()
    assert {name: value.item() for name, value in sums.items()} == {"box": 0, "obj": 0, "cls": 0}
    assert float(count) == 0
    assert all(not weight.grad.any() for weight in model.parameters())
    after = dict(model.named_buffers())
    assert all(torch.equal(value, after[name]) for name, value in before.items())
