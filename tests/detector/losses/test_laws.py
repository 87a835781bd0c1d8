"""Laws that hold for the loss of every dense family."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detector.boxes import cxcywh_to_xyxy
from detector.config import Hyp
from detector.decode import decode
from detector.losses import LOSSES, DenseLoss, build_loss
from detector.models import build_model

CLASSES, SIDE = 3, 64
# Of each family a small network, and what its hyperparameters are changed by.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "yolox": ("yolox-pico", {}),
    "evo": ("evo:depth=0.33,width=0.125", {}),
    "evo, focus": ("evo:depth=0.33,width=0.125", {"focus": 2.0}),
    "yolov3": ("yolov3-tiny:width=0.0625", {"iou_t": 0.0}),
    "yolov3, xywh": ("yolov3-tiny:width=0.0625", {"iou_t": 0.0, "xywh": 1}),
}
every_case = pytest.mark.parametrize("case", CASES)
Maps = Callable[[int, int], list[Tensor]]


def network_and_loss(case: str) -> tuple[nn.Module, DenseLoss]:
    name, changes = CASES[case]
    network = build_model(name, CLASSES)
    loss = build_loss(network, replace(Hyp.for_model(name), **changes))
    loss.use_l1 = True
    return network, loss


@pytest.fixture
def maps(case: str, random_maps: Callable[..., list[Tensor]]) -> Maps:
    """Return `maps(images, seed)`: random maps like those of the case's network."""
    network, _ = network_and_loss(case)
    with torch.no_grad():
        channels = network(torch.zeros(1, 3, SIDE, SIDE))[0].shape[1]
    return lambda images, seed: random_maps(channels, images, seed, network.strides)


def test_every_dense_family_is_here() -> None:
    assert {build_model(name, 1).family for name, _ in CASES.values()} == set(LOSSES)


@every_case
@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 5), (6,)])
def test_micro_batches_add_up_to_the_batch(
    case: str, sizes: tuple[int, ...], maps: Maps, random_objects: Callable
) -> None:
    raw, targets = maps(6, 4), random_objects([3, 0, 7, 1, 30, 2], seed=5)
    _, loss = network_and_loss(case)
    whole, count = loss.sums(raw, targets)
    ends = torch.tensor(sizes).cumsum(0).tolist()
    pieces = [
        loss.sums([level[end - size : end] for level in raw], targets[end - size : end])
        for size, end in zip(sizes, ends, strict=True)
    ]
    torch.testing.assert_close(count, torch.stack([piece for _, piece in pieces]).sum())
    for name, value in whole.items():
        torch.testing.assert_close(value, torch.stack([sums[name] for sums, _ in pieces]).sum())


@every_case
def test_parts_are_sums_over_the_count_and_total_is_their_sum(
    case: str, maps: Maps, random_objects: Callable
) -> None:
    raw, targets = maps(6, 0), random_objects([30] * 6, seed=1)
    _, loss = network_and_loss(case)
    parts, (sums, count) = loss(raw, targets), loss.sums(raw, targets)
    assert count > 1  # so that the division shows
    for name, value in sums.items():
        torch.testing.assert_close(parts[name], value / count)
    torch.testing.assert_close(parts["total"], torch.stack([parts[name] for name in sums]).sum())


@every_case
def test_a_gain_multiplies_its_own_part_only(
    case: str, maps: Maps, random_objects: Callable
) -> None:
    raw, targets = maps(2, 2), random_objects([4, 2], seed=3)
    _, loss = network_and_loss(case)
    plain, hyp = loss.sums(raw, targets)[0], loss.hyp
    for gain in plain:  # a part has the name of its gain
        loss.hyp = replace(hyp, **{gain: 2 * getattr(hyp, gain)})
        doubled = loss.sums(raw, targets)[0]
        for part, value in plain.items():
            assert value > 0
            torch.testing.assert_close(doubled[part], value * (2 if part == gain else 1))


@every_case
@pytest.mark.parametrize("counts", [[0, 2], [1, 130], [40, 0], [0, 0]])
@pytest.mark.parametrize("scale", [0.0, 1.0, 8.0])
def test_gradients_are_finite(
    case: str, counts: list[int], scale: float, maps: Maps, random_objects: Callable
) -> None:
    raw = [(level * scale).requires_grad_() for level in maps(2, 7)]
    targets = random_objects(counts, seed=8)
    tiny = torch.tensor([[63.9, 63.9, 64.0, 64.0]])  # in the corner
    targets[1]["boxes"][:1] = tiny
    _, loss = network_and_loss(case)
    parts = loss(raw, targets)
    parts["total"].backward()
    assert all(value.isfinite() for value in parts.values())
    assert all(level.grad is not None and level.grad.isfinite().all() for level in raw)


@every_case
def test_targets_stay_as_they_are(case: str, maps: Maps, random_objects: Callable) -> None:
    (target,) = random_objects([3], seed=10)
    before = {key: value.clone() for key, value in target.items()}
    _, loss = network_and_loss(case)
    loss([level.requires_grad_() for level in maps(1, 9)], [target])["total"].backward()
    assert all(torch.equal(target[key], value) for key, value in before.items())


@every_case
def test_autocast_changes_nothing(case: str, maps: Maps, random_objects: Callable) -> None:
    raw, targets = maps(2, 11), random_objects([3, 5], seed=12)
    _, loss = network_and_loss(case)
    plain = loss(raw, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = loss(raw, targets)
    half = loss([level.half() for level in raw], targets)
    for name, value in plain.items():
        assert cast[name].dtype == half[name].dtype == torch.float32
        torch.testing.assert_close(cast[name], value)
        torch.testing.assert_close(half[name], value, rtol=0.1, atol=0.01)


@every_case
def test_an_empty_batch_has_sums_and_gradients_of_zero(case: str) -> None:
    # A rank without images in a short last step takes part in the reduction with these.
    network, loss = network_and_loss(case)
    network.train()
    before = {name: value.clone() for name, value in network.named_buffers() if "running" in name}
    sums, count = loss.sums(network(torch.zeros(0, 3, SIDE, SIDE)), [])
    torch.stack(tuple(sums.values())).sum().backward()
    assert {value.item() for value in sums.values()} == {0}
    assert float(count) == 0
    assert all(not weight.grad.any() for weight in network.parameters())
    after = dict(network.named_buffers())
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("case", ["yolox", "evo"])
def test_descending_the_loss_finds_the_objects(case: str, maps: Maps) -> None:
    network, loss = network_and_loss(case)
    raw = [(level * 0.1).requires_grad_() for level in maps(1, 14)]
    target = {
        "boxes": torch.tensor([[4.0, 6, 30, 28], [30, 34, 62, 60]]),
        "labels": torch.tensor([2, 0]),
    }
    optimizer = torch.optim.Adam(raw, lr=0.1)
    for _ in range(80):
        optimizer.zero_grad()
        loss(raw, [target])["total"].backward()
        optimizer.step()
    decoded = decode(network, raw)[0]
    for box, label in zip(target["boxes"], target["labels"], strict=True):
        scores = decoded[:, 4] * decoded[:, 5 + label]
        assert scores.max() > 0.8
        found = cxcywh_to_xyxy(decoded[scores.argmax(), :4])
        assert (found - box).abs().max() < 1.0  # pixels
