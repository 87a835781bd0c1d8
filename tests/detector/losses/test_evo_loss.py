"""The Evo loss: hand-worked numbers, laws, gradients."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from detector.boxes import cxcywh_to_xyxy
from detector.decode import decode
from detector.losses import EvoLoss, build_loss
from detector.losses.evo import encode_sides
from detector.models import build_model
from detector.models.evo import raw_to_xyxy
from detector.models.yolox import flatten_raw, make_grid

NUM_CLASSES = 3
STRIDES = (8, 16, 32)
TINY = "evo:depth=0.33,width=0.125"


@dataclass(frozen=True)
class LossValues:
    box: float = 5.0
    cls: float = 1.0
    l1: float = 1.0
    focus: float = 0.0
    topk: int = 13
    cls_power: float = 0.5
    iou_power: float = 6.0


def make_raw(num_images: int, seed: int, side: int = 64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(num_images, 4 + NUM_CLASSES, side // s, side // s, generator=generator)
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


@pytest.mark.parametrize("focus", [0.0, 2.0])
def test_loss_gives_the_hand_worked_numbers(focus: float) -> None:
    # One map of one cell, stride 8, two classes, all raw outputs 0: each side is e^0 = 1 cell from
    # the centre (4, 4), so the box is (-4, -4, 12, 12). Against (0, 0, 8, 8): IoU = 64 / 256 = 1/4;
    # the hull is the box itself, so GIoU = 1/4 too. The only positive is the best one: quality 1/4.
    loss = EvoLoss((8,), LossValues(cls=2.0, l1=3.0, focus=focus))
    loss.use_l1 = True
    target = {"boxes": torch.tensor([[0.0, 0, 8, 8]]), "labels": torch.tensor([1])}
    sums, count = loss.sums([torch.zeros(1, 6, 1, 1)], [target])
    assert count.item() == pytest.approx(0.25)
    assert sums["box"].item() == pytest.approx(5 * 0.75 * 0.25)
    # BCE of a score of 1/2 is ln 2 whatever the goal; (1/2 - 0)^2 + (1/2 - 1/4)^2 = 5/16
    assert sums["cls"].item() == pytest.approx(2 * math.log(2) * (5 / 16 if focus else 2))
    # each side should be half a cell away: ln(1/2) instead of 0, four times, weighted by 1/4
    assert sums["l1"].item() == pytest.approx(3 * 4 * math.log(2) * 0.25)


@pytest.mark.parametrize("name", ["box", "cls", "l1"])
def test_a_gain_multiplies_its_own_part_only(name: str) -> None:
    raw, targets = make_raw(1, seed=2), make_targets([4], seed=3)
    results = []
    for hyp in (LossValues(), replace(LossValues(), **{name: getattr(LossValues(), name) * 2})):
        loss = EvoLoss(STRIDES, hyp)
        loss.use_l1 = True
        results.append(loss.sums(raw, targets)[0])
    plain, doubled = results
    for part in plain:
        torch.testing.assert_close(doubled[part], plain[part] * (2 if part == name else 1))


def test_parts_are_sums_over_the_qualities_and_total_is_their_sum() -> None:
    raw, targets = make_raw(2, seed=0), make_targets([9, 9], seed=1)
    loss = EvoLoss(STRIDES, LossValues())
    parts, (sums, count) = loss(raw, targets), loss.sums(raw, targets)
    assert count > 1
    for name, value in sums.items():
        torch.testing.assert_close(parts[name], value / count)
    torch.testing.assert_close(parts["total"], parts["box"] + parts["cls"])


def test_micro_batches_add_up_to_the_batch() -> None:
    raw, targets = make_raw(6, seed=4), make_targets([3, 0, 7, 1, 30, 2], seed=5)
    loss = EvoLoss(STRIDES, LossValues())
    loss.use_l1 = True
    whole, count = loss.sums(raw, targets)
    pieces = [loss.sums([level[i : i + 2] for level in raw], targets[i : i + 2]) for i in (0, 2, 4)]
    torch.testing.assert_close(count, torch.stack([piece for _, piece in pieces]).sum())
    for name, value in whole.items():
        torch.testing.assert_close(value, torch.stack([sums[name] for sums, _ in pieces]).sum())


def test_an_image_without_objects_gives_the_class_part_only() -> None:
    raw = [level.requires_grad_() for level in make_raw(2, seed=6)]
    loss = EvoLoss(STRIDES, LossValues())
    loss.use_l1 = True
    parts = loss(raw, make_targets([0, 0], seed=0))
    assert [parts[name].item() for name in ("box", "l1")] == [0, 0]
    assert parts["total"] == parts["cls"] > 0
    parts["total"].backward()
    for level in raw:
        assert level.grad is not None
        assert level.grad[:, 4:].abs().min() > 0
        assert level.grad[:, :4].abs().max() == 0


@pytest.mark.parametrize("counts", [[0, 2], [1, 130], [40, 0]])
@pytest.mark.parametrize("scale", [0.0, 1.0, 8.0])
def test_gradients_are_finite(counts: list[int], scale: float) -> None:
    raw = [(level * scale).requires_grad_() for level in make_raw(2, seed=7)]
    targets = make_targets(counts, seed=8)
    targets[1]["boxes"][:1] = torch.tensor([[63.9, 63.9, 64.0, 64.0]])  # tiny, in the corner
    loss = EvoLoss(STRIDES, LossValues(focus=2.0))
    loss.use_l1 = True
    parts = loss(raw, targets)
    parts["total"].backward()
    assert all(value.isfinite() for value in parts.values())
    assert all(level.grad is not None and level.grad.isfinite().all() for level in raw)


def test_a_quality_is_a_number_and_no_path() -> None:
    raw = [level.requires_grad_() for level in make_raw(1, seed=9)]
    targets = make_targets([3], seed=10)
    sums, count = EvoLoss(STRIDES, LossValues()).sums(raw, targets)
    assert not count.requires_grad
    sums["cls"].backward()  # the box gets nothing from the goal of the score
    assert all(level.grad is not None and level.grad[:, :4].abs().max() == 0 for level in raw)


def test_autocast_changes_nothing() -> None:
    raw, targets = make_raw(2, seed=11), make_targets([3, 5], seed=12)
    loss = EvoLoss(STRIDES, LossValues())
    plain = loss(raw, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = loss(raw, targets)
    for name, value in plain.items():
        assert cast[name].dtype == torch.float32
        torch.testing.assert_close(cast[name], value)


def test_encoding_is_the_inverse_of_decoding() -> None:
    raw = make_raw(1, seed=13)
    cells, strides = make_grid(raw, STRIDES)
    table = flatten_raw(raw)[0]
    found = encode_sides(raw_to_xyxy(table, cells, strides), cells, strides)
    torch.testing.assert_close(found, table[:, :4], atol=1e-4, rtol=1e-4)


def test_descending_the_loss_finds_the_objects() -> None:
    model = build_model(TINY, NUM_CLASSES)
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
    model = build_model(TINY, 2).train()
    sums, count = EvoLoss(model.strides, LossValues()).sums(model(torch.zeros(0, 3, 64, 64)), [])
    torch.stack(tuple(sums.values())).sum().backward()
    assert {name: value.item() for name, value in sums.items()} == {"box": 0, "cls": 0}
    assert float(count) == 0
    assert all(not weight.grad.any() for weight in model.parameters())
