"""Decoding raw maps, and choosing detections."""

import math

import pytest
import torch
import torchvision.ops as ops
from torch import Tensor, nn

from detector.boxes import cxcywh_to_xyxy
from detector.decode import MAX_CANDIDATES, decode, select
from detector.models import build_model


class Strides(nn.Module):
    """The part of a network that decoding looks at."""

    def __init__(self, *strides: int) -> None:
        super().__init__()
        self.strides = strides
        self.family = "yolox"

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return decode(self, [first, second])


def table(*rows: tuple[float, ...]) -> Tensor:
    """One image's decoded rows: cx, cy, w, h, objectness, classes."""
    return torch.tensor(rows)[None]


def test_decode_gives_the_hand_worked_numbers() -> None:
    raw = torch.zeros(1, 7, 2, 3)
    # cell in column 2 of row 1, stride 16
    raw[0, :, 1, 2] = torch.tensor([0.25, -0.5, math.log(2), math.log(0.5), 0.0, 2.0, -2.0])
    point = decode(Strides(16), [raw])[0, 1 * 3 + 2]
    # ((2 + 0.25) * 16, (1 - 0.5) * 16, 2 * 16, 0.5 * 16), sigmoid(0) = 0.5
    expected = [36, 8, 32, 8, 0.5, 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2))]
    torch.testing.assert_close(point, torch.tensor(expected))


def test_decode_covers_all_points_in_order() -> None:
    raw = [torch.zeros(2, 6, 4, 4), torch.zeros(2, 6, 2, 2), torch.zeros(2, 6, 1, 1)]
    decoded = decode(Strides(8, 16, 32), raw)
    assert decoded.shape == (2, 16 + 4 + 1, 6)
    assert decoded[0, :, 2].tolist() == [8] * 16 + [16] * 4 + [32]
    assert decoded[0, [1, 4, 17, 20], :2].tolist() == [[8, 0], [0, 8], [16, 0], [0, 0]]


def test_decode_does_not_change_the_raw_maps_and_answers_in_float32() -> None:
    raw = [torch.randn(1, 6, 4, 4, dtype=torch.float16)]
    before = raw[0].clone()
    assert decode(Strides(8), raw).dtype == torch.float32
    assert torch.equal(raw[0], before)


def test_decode_can_be_traced_with_a_dynamic_batch() -> None:
    model = Strides(8, 16)
    example = (torch.randn(2, 6, 4, 4), torch.randn(2, 6, 2, 2))
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, example, dynamic_shapes=({0: batch}, {0: batch}))
    for size in (1, 2, 5):
        raw = (torch.randn(size, 6, 4, 4), torch.randn(size, 6, 2, 2))
        torch.testing.assert_close(program.module()(*raw), model(*raw))


def test_whole_network_decodes_one_row_per_point() -> None:
    model = build_model("yolox-pico", 2).eval()
    with torch.no_grad():
        assert decode(model, model(torch.zeros(1, 3, 64, 96))).shape == (1, 96 + 24 + 6, 7)


def test_score_is_objectness_times_best_class_and_the_threshold_is_inclusive() -> None:
    decoded = table((10, 10, 4, 4, 0.5, 0.2, 0.5), (30, 30, 4, 8, 1.0, 0.75, 0.1))
    (found,) = select(decoded, conf=0.25, iou=0.5, max_det=10)
    assert found.scores.tolist() == [0.75, 0.25]
    assert found.labels.tolist() == [0, 1]
    assert found.boxes.tolist() == [[28, 26, 32, 34], [8, 8, 12, 12]]
    (found,) = select(decoded, conf=0.26, iou=0.5, max_det=10)
    assert found.scores.tolist() == [0.75]


def test_suppression_is_per_class() -> None:
    decoded = table(
        (10, 10, 8, 8, 0.9, 1, 0),
        (11, 10, 8, 8, 0.8, 1, 0),  # IoU 56/72 with the first, same class
        (10, 10, 8, 8, 0.7, 0, 1),
    )
    (found,) = select(decoded, conf=0.1, iou=0.65, max_det=10)
    assert found.labels.tolist() == [0, 1]
    (found,) = select(decoded, conf=0.1, iou=0.8, max_det=10)
    assert found.labels.tolist() == [0, 0, 1]


def random_decoded(num_images: int, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(num_images, count, 2, generator=generator) * 100
    size = torch.rand(num_images, count, 2, generator=generator) * 40 + 5
    rest = torch.rand(num_images, count, 4, generator=generator)
    return torch.cat((centre, size, rest), dim=2)


def test_select_agrees_with_torchvision() -> None:
    decoded = random_decoded(3, 200, seed=0)
    for image, found in zip(decoded, select(decoded, 0.1, 0.5, 30), strict=True):
        best, labels = image[:, 5:].max(dim=1)
        scores = best * image[:, 4]
        sure = scores >= 0.1
        boxes, scores, labels = cxcywh_to_xyxy(image[sure, :4]), scores[sure], labels[sure]
        keep = ops.batched_nms(boxes, scores, labels, 0.5)[:30]
        torch.testing.assert_close(found.boxes, boxes[keep])
        assert torch.equal(found.scores, scores[keep])
        assert torch.equal(found.labels, labels[keep])
        assert found.labels.dtype == torch.int64


@pytest.mark.parametrize("max_det", [1, 7, 1500])
def test_the_best_come_first_and_at_most_max_det(max_det: int) -> None:
    decoded = random_decoded(1, 2000, seed=1)
    (found,) = select(decoded, conf=0.0, iou=1.0, max_det=max_det)
    assert len(found) == max_det
    assert torch.equal(found.scores, found.scores.sort(descending=True).values)


def test_only_the_best_candidates_enter_suppression() -> None:
    decoded = random_decoded(1, MAX_CANDIDATES + 500, seed=2)
    (found,) = select(decoded, conf=0.0, iou=1.0, max_det=300)
    best = (decoded[0, :, 4] * decoded[0, :, 5:].amax(dim=1)).topk(300).values
    assert torch.equal(found.scores, best)


def test_nothing_found_is_an_empty_result() -> None:
    decoded = random_decoded(2, 10, seed=3)
    decoded[1, :, 4] = 0
    first, second = select(decoded, conf=0.01, iou=0.5, max_det=10)
    assert len(first) > 0
    assert (second.boxes.shape, second.scores.shape, second.labels.shape) == ((0, 4), (0,), (0,))
    assert select(decoded[:0], 0.1, 0.5, 10) == []


def test_half_precision_input_gives_float32_detections() -> None:
    (found,) = select(random_decoded(1, 10, seed=4).half(), 0.01, 0.5, 10)
    assert found.boxes.dtype == found.scores.dtype == torch.float32
