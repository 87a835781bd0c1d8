"""The YOLOv3 loss and its matching: hand-worked numbers, a plain loop, laws."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torchvision.ops as ops
from torch import Tensor

from detector.assign import AnchorLevel, match_anchors, pad_targets, shape_iou
from detector.boxes import cxcywh_to_xyxy
from detector.config import Hyp
from detector.decode import decode
from detector.losses import Yolov3Loss, build_loss
from detector.models import build_model
from detector.models.darknet import Darknet

VALUES = Hyp(xy=1.0, wh=1.0, iou_t=0.2)


@pytest.fixture
def maps(random_maps: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    """Return `maps(images, seed)`: random maps of `two_maps` and pictures of 96 px."""
    return partial(random_maps, 21, strides=(32, 16), side=96)


@pytest.fixture
def objects(random_objects: Callable) -> Callable[..., list[dict[str, Tensor]]]:
    """Return `objects(counts, seed)`: objects of two classes in such pictures."""
    return partial(random_objects, classes=2, side=96)


def one_cell() -> Darknet:
    """One map of one cell, 32 px wide, with one anchor of 16 x 16 px and two classes."""
    cfg = "[net]\nwidth=32\nheight=32\n[maxpool]\nsize=32\nstride=32\n[convolutional]\nfilters=7\n"
    cfg += "activation=linear\n[yolo]\nanchors=16,16\nclasses=2\n"
    return build_model("one.cfg", 2, {"cfg": cfg})


def two_maps() -> Darknet:
    """YOLOv3-tiny with two classes: strides 32 and 16, three anchors each."""
    return build_model("yolov3-tiny:width=0.0625", 2)


def target(*box: float, label: int = 1) -> dict[str, Tensor]:
    return {"boxes": torch.tensor([box]), "labels": torch.tensor([label])}


# ---- matching


def level(width: int, height: int, stride: int, *anchors: tuple[float, float]) -> AnchorLevel:
    return AnchorLevel(height, width, stride, torch.tensor(anchors))


def matched(
    boxes: list[tuple[float, ...]], levels: list[AnchorLevel], iou_t: float, best: bool = False
) -> list[tuple[int, int, int]]:
    """(point, target, level) of one image."""
    one = {"boxes": torch.tensor(boxes), "labels": torch.zeros(len(boxes), dtype=torch.int64)}
    found = match_anchors(pad_targets([one], "cpu"), levels, iou_t, best)
    return sorted(map(tuple, torch.stack((found.point, found.target, found.level), 1).tolist()))


def test_shape_iou_is_that_of_boxes_with_one_centre() -> None:
    # 10 x 20 and 20 x 10: shared 10 * 10, union 200 + 200 - 100; and with 10 x 10: 100 / 200
    found = shape_iou(torch.tensor([[10.0, 20]]), torch.tensor([[20.0, 10], [10, 10], [10, 20]]))
    torch.testing.assert_close(found, torch.tensor([[1 / 3, 1 / 2, 1.0]]))


def test_every_anchor_of_like_shape_takes_the_object_in_the_cell_of_its_centre() -> None:
    levels = [
        level(3, 2, 32, (20.0, 20.0), (40.0, 40.0)),  # points 0 to 11
        level(6, 4, 16, (20.0, 24.0)),  # points 12 to 35
    ]
    box = (60.0, 30.0, 80.0, 50.0)  # 20 x 20, centre (70, 40)
    # IoU with 20 x 20: 1; 40 x 40: 400 / 1600 = 0.25; 20 x 24: 400 / 480 = 0.83
    # cell at stride 32: column 2, row 1 -> 1 * 3 + 2 = 5; at stride 16: column 4, row 2 -> 16
    assert matched([box], levels, iou_t=0.3) == [(5, 0, 0), (12 + 16, 0, 1)]
    assert matched([box], levels, iou_t=0.2) == [(5, 0, 0), (6 + 5, 0, 0), (12 + 16, 0, 1)]
    assert matched([box], levels, iou_t=0.9) == [(5, 0, 0)]


def test_best_anchor_leaves_one_anchor_a_level_and_rejects_it_too() -> None:
    levels = [level(1, 1, 32, (20.0, 20.0), (24.0, 20.0), (60.0, 60.0)), level(2, 2, 16, (90, 90))]
    box = (0.0, 0.0, 22.0, 20.0)  # IoU 0.91, 0.92, 0.12 and 0.05
    assert matched([box], levels, iou_t=0.2) == [(0, 0, 0), (1, 0, 0)]
    assert matched([box], levels, iou_t=0.2, best=True) == [(1, 0, 0)]
    assert matched([box], levels, iou_t=0.95, best=True) == []


def test_an_object_like_no_anchor_is_learned_by_nobody() -> None:
    assert matched([(0.0, 0.0, 4.0, 4.0)], [level(1, 1, 32, (20.0, 20.0))], iou_t=0.2) == []


def test_the_threshold_itself_is_not_enough() -> None:
    box = (0.0, 0.0, 10.0, 20.0)  # against 20 x 20: exactly 0.5
    assert matched([box], [level(1, 1, 32, (20.0, 20.0))], iou_t=0.5) == []
    assert matched([box], [level(1, 1, 32, (20.0, 20.0))], iou_t=0.49) == [(0, 0, 0)]


def test_a_centre_on_the_border_belongs_to_the_last_cell() -> None:  # B-23
    levels = [level(2, 2, 32, (20.0, 20.0))]
    assert matched([(54.0, 54.0, 74.0, 74.0)], levels, iou_t=0.5) == [(3, 0, 0)]


def test_images_without_objects_have_no_positives(objects: Callable) -> None:
    found = match_anchors(
        pad_targets(objects([0, 3, 0], seed=0), "cpu"),
        [level(3, 3, 32, (50.0, 50.0))],
        0.0,
        False,
    )
    assert found.image.tolist() == [1, 1, 1]
    empty = match_anchors(pad_targets([], "cpu"), [level(3, 3, 32, (50.0, 50.0))], 0.0, True)
    assert len(empty.image) == 0


# ---- numbers


def test_the_giou_loss_gives_the_hand_worked_numbers() -> None:
    # All raw outputs 0: the prediction is the anchor in the middle of its cell, (8, 8, 24, 24).
    # Against (0, 0, 16, 16): shared 8 * 8 = 64, union 256 + 256 - 64 = 448, hull 24 * 24 = 576,
    # GIoU = 64 / 448 - (576 - 448) / 576 = 1/7 - 2/9 = -5/63.
    hyp = replace(VALUES, giou=3.0, obj=5.0, obj_pw=2.0, cls=7.0, cls_pw=3.0)
    sums, count = Yolov3Loss(one_cell(), hyp).sums(
        [torch.zeros(1, 7, 1, 1)], [target(0, 0, 16, 16)]
    )
    assert count.item() == 1
    assert set(sums) == {"giou", "obj", "cls"}
    assert sums["giou"].item() == pytest.approx(3 * (1 + 5 / 63))
    assert sums["obj"].item() == pytest.approx(
        5 * 2 * math.log(2)
    )  # one cell, BCE of 0.5 against 1
    # two classes, BCE of 0.5: once against 0, once against 1 with weight 3; the mean of both
    assert sums["cls"].item() == pytest.approx(7 * (math.log(2) + 3 * math.log(2)) / 2)


def test_the_squared_errors_give_the_hand_worked_numbers() -> None:
    # 16 x 32 px with its centre at (8, 16): 0.25 and 0.5 of the cell; 0.5 and 0.5 are predicted
    hyp = replace(VALUES, xywh=1, xy=2.0, wh=3.0)
    sums, _ = Yolov3Loss(one_cell(), hyp).sums([torch.zeros(1, 7, 1, 1)], [target(0, 0, 16, 32)])
    assert set(sums) == {"xy", "wh", "obj", "cls"}
    assert sums["xy"].item() == pytest.approx(2 * (0.25**2 + 0) / 2)
    assert sums["wh"].item() == pytest.approx(3 * (0 + math.log(32 / 16) ** 2) / 2)


def test_objectness_is_a_mean_over_all_cells_also_without_objects(objects: Callable) -> None:
    network = two_maps()
    raw = [torch.zeros(1, 21, 3, 3), torch.ones(1, 21, 6, 6)]
    sums, _ = Yolov3Loss(network, VALUES).sums(raw, objects([0], seed=0))
    # BCE against 0: ln(1 + e^x), the mean of each map
    assert sums["obj"].item() == pytest.approx(math.log(2) + math.log(1 + math.e), rel=1e-5)
    assert (sums["giou"].item(), sums["cls"].item()) == (0, 0)


@pytest.mark.parametrize("xywh", [0, 1])
def test_a_plain_loop_gives_the_same_loss_and_gradients(
    xywh: int, maps: Callable, objects: Callable
) -> None:
    network, hyp = two_maps(), replace(VALUES, obj_pw=1.7, cls_pw=0.6, xywh=xywh)
    raw, targets = (
        maps(3, seed=0),
        objects([4, 0, 9], seed=1),
    )
    raw, leaves = [[part.clone().requires_grad_() for part in raw] for _ in range(2)]
    names = ("xy", "wh", "obj", "cls") if xywh else ("giou", "obj", "cls")
    expected = {name: torch.zeros(()) for name in names}
    for image in range(3):
        for out, stride, anchors in zip(raw, (32, 16), network.anchors, strict=True):
            rows = out[image].view(3, 7, *out.shape[-2:])  # (A, 5 + C, H, W)
            goal = torch.zeros_like(rows[:, 4])
            found: dict[str, list[Tensor]] = {name: [] for name in expected}
            for box, label in zip(targets[image]["boxes"], targets[image]["labels"], strict=True):
                cx, cy, w, h = ops.box_convert(box, "xyxy", "cxcywh").tolist()
                column, row = int(cx / stride), int(cy / stride)
                for anchor, (aw, ah) in enumerate(anchors):
                    shared = min(w, aw) * min(h, ah)
                    if shared / (w * h + aw * ah - shared) <= hyp.iou_t:
                        continue
                    goal[anchor, row, column] = 1
                    x, y, tw, th, _, *classes = rows[anchor, :, row, column]
                    centre = torch.stack(((x.sigmoid() + column), (y.sigmoid() + row))) * stride
                    size = torch.stack((tw.exp() * aw, th.exp() * ah))
                    predicted = torch.cat((centre - size / 2, centre + size / 2))
                    one_hot = F.one_hot(label, 2).float()
                    weight = torch.tensor(hyp.cls_pw)
                    found["cls"].append(
                        F.binary_cross_entropy_with_logits(
                            torch.stack(classes), one_hot, pos_weight=weight
                        )
                    )
                    if xywh:
                        parts = torch.tensor([cx / stride - column, cy / stride - row])
                        found["xy"].append(F.mse_loss(torch.stack((x, y)).sigmoid(), parts))
                        logs = torch.tensor([math.log(w / aw), math.log(h / ah)])
                        found["wh"].append(F.mse_loss(torch.stack((tw, th)), logs))
                    else:
                        overlap = ops.generalized_box_iou(predicted[None], box[None])
                        found["giou"].append(1 - overlap.squeeze())
            for name, values in found.items():
                if values:
                    expected[name] = expected[name] + torch.stack(values).mean()
            expected["obj"] = expected["obj"] + F.binary_cross_entropy_with_logits(
                rows[:, 4], goal, pos_weight=torch.tensor(hyp.obj_pw)
            )
    sums, count = Yolov3Loss(network, hyp).sums(leaves, targets)
    assert count.item() == 3
    for name in names:
        assert expected[name] > 0
        torch.testing.assert_close(sums[name], expected[name], rtol=1e-4, atol=1e-5)
    torch.stack(tuple(expected.values())).sum().backward()
    torch.stack(tuple(sums.values())).sum().backward()
    for ours, theirs in zip(leaves, raw, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)


# ---- laws


@pytest.mark.parametrize(
    ("name", "value", "xywh", "acts"),
    [
        ("giou", 2.0, 0, True),
        ("giou", 2.0, 1, False),  # B-15
        ("xy", 2.0, 0, False),
        ("xy", 2.0, 1, True),
        ("wh", 2.0, 0, False),
        ("wh", 2.0, 1, True),
        ("obj_pw", 2.0, 0, True),
        ("cls_pw", 2.0, 0, True),
        ("iou_t", 0.6, 0, True),
        ("best_anchor", 1, 0, True),
    ],
)
def test_a_hyperparameter_acts_exactly_when_its_rule_says_so(
    name: str, value: float, xywh: int, acts: bool, maps: Callable, objects: Callable
) -> None:
    raw, targets = (
        maps(2, seed=2),
        objects([6, 2], seed=3),
    )
    hyp = replace(VALUES, xywh=xywh)
    totals = [
        Yolov3Loss(two_maps(), one)(raw, targets)["total"].item()
        for one in (hyp, replace(hyp, **{name: value}))
    ]
    assert (totals[0] != totals[1]) == acts


@pytest.mark.parametrize("xywh", [0, 1])
def test_descending_the_loss_finds_the_objects(xywh: int, maps: Callable) -> None:
    model = two_maps()
    loss = build_loss(model, replace(VALUES, xywh=xywh, xy=4.0, obj=20.0))
    raw = [(part * 0.1).requires_grad_() for part in maps(1, seed=14)]
    boxes = torch.tensor([[4.0, 6, 44, 38], [30, 34, 90, 92]])
    targets = [{"boxes": boxes, "labels": torch.tensor([1, 0])}]
    optimizer = torch.optim.Adam(raw, lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        loss(raw, targets)["total"].backward()
        optimizer.step()
    decoded = decode(model, raw)[0]
    for box, label in zip(boxes, (1, 0), strict=True):
        scores = decoded[:, 4] * decoded[:, 5 + label]
        assert scores.max() > 0.8
        found = cxcywh_to_xyxy(decoded[scores.argmax(), :4])
        assert (found - box).abs().max() < 1.5  # pixels
