"""Darknet networks: sizes, contract, and OpenCV 4's Darknet importer as a second implementation."""

from pathlib import Path

import numpy as np
import pytest
import torch

from detector.checkpoint import load_weights
from detector.cost import gflops
from detector.decode import decode
from detector.errors import ConfigError
from detector.models import build_model
from detector.models.darknet import PoolLayer, ShortcutLayer
from detector.models.darknet_blocks import MaxPool, Shortcut

FIXTURE = Path(__file__).with_name("darknet_opencv.npz")  # made by tests/oracles/darknet_opencv.py
COUNTS = {
    # A class has three rows of weights and a bias in each head: 3 * (1024 + 512 + 256 + 3) = 5385
    # of them in YOLOv3, 3 * (512 + 256 + 2) = 2310 in YOLOv3-tiny.
    "yolov3": {80: 61_949_149, 20: 61_949_149 - 60 * 5385, 3: 61_949_149 - 77 * 5385},
    "yolov3-spp": {80: 62_998_749, 20: 62_998_749 - 60 * 5385, 3: 62_998_749 - 77 * 5385},
    "yolov3-tiny": {80: 8_852_366, 20: 8_852_366 - 60 * 2310, 3: 8_852_366 - 77 * 2310},
}
TENSORS = {"yolov3": 222, "yolov3-spp": 225, "yolov3-tiny": 37}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_those_of_the_published_networks(name: str) -> None:
    for classes, count in COUNTS[name].items():
        with torch.device("meta"):
            model = build_model(name, classes)
        sizes = [weight.numel() for weight in model.parameters()]
        assert (sum(sizes), len(sizes)) == (count, TENSORS[name])


@pytest.mark.parametrize(
    ("name", "side", "published"),
    [  # 10^9 operations from the authors' own table, which counts convolutions without norms
        ("yolov3", 416, 65.86),
        ("yolov3", 608, 140.69),
        ("yolov3-spp", 608, 141.45),
        ("yolov3-tiny", 416, 5.56),
    ],
)
def test_operations_are_those_of_the_published_networks(
    name: str, side: int, published: float
) -> None:
    with torch.device("meta"):
        model = build_model(name, 80).eval()
    assert gflops(model, side, torch.device("meta")) == pytest.approx(published, rel=0.006)


@pytest.mark.parametrize("name", COUNTS)
def test_strides_maps_and_backbone_are_those_of_the_family(name: str) -> None:
    with torch.device("meta"):
        model = build_model(name, 4)
        raw = model(torch.zeros(2, 3, 96, 64))
    strides = (32, 16, 8)[: len(model.strides)]
    assert model.strides == strides
    assert [tuple(level.shape) for level in raw] == [(2, 27, 96 // s, 64 // s) for s in strides]
    assert (model.family, model.input_convention, model.input_size) == ("yolov3", "rgb-255", 416)
    # darknet53.conv.74 and yolov3-tiny.conv.15 hold what is frozen as the backbone
    assert len(model.backbone) == (15 if name == "yolov3-tiny" else 75)


def test_raw_maps_have_the_same_form_in_train_and_eval_mode() -> None:
    model = build_model("yolov3-spp:width=0.03125,depth=0.1", 2)
    images = torch.rand(2, 3, 64, 64) * 255
    trained, found = model(images), model.eval()(images)
    assert [level.shape for level in trained] == [level.shape for level in found]
    assert all(level.requires_grad for level in trained)


def test_a_fresh_head_expects_few_objects_and_all_classes_alike() -> None:
    model = build_model("yolov3-tiny:width=0.0625", 3).eval()
    with torch.no_grad():
        for layer in model.layers:
            if getattr(layer, "bn", None) is None and hasattr(layer, "conv"):
                layer.conv.weight.zero_()  # what is left is the bias of the heads
        scores = decode(model, model(torch.zeros(1, 3, 32, 32)))[..., 4:]
    torch.testing.assert_close(scores[..., 0].unique(), torch.tensor([0.01]))
    torch.testing.assert_close(scores[..., 1:].unique(), torch.tensor([1 / 3]))


@pytest.mark.parametrize("name", ["pooled", "residual", "activated"])
def test_opencv_computes_the_same_maps_and_boxes(name: str, tmp_path: Path) -> None:
    with np.load(FIXTURE) as stored:
        content = {key: stored[key] for key in stored.files}
    cfg, weights = tmp_path / f"{name}.cfg", tmp_path / f"{name}.weights"
    cfg.write_text(str(content[f"{name}/cfg"]))
    weights.write_bytes(content[f"{name}/weights"].tobytes())
    model = build_model(str(cfg), 2).eval()
    report = load_weights(model, weights)
    assert not report.reinitialised and not report.skipped
    images = torch.from_numpy(content["image"]).permute(2, 0, 1)[None].float()  # RGB, 0 to 255
    with torch.no_grad():
        raw = model(images)
        decoded = decode(model, raw)[0]  # (P, 5 + C)
    start = 0
    for index, level in enumerate(raw):
        torch.testing.assert_close(
            level, torch.from_numpy(content[f"{name}/raw{index}"]), rtol=1e-3, atol=1e-4
        )
        _, rows, height, width = level.shape
        count = rows // 7
        own = decoded[start : start + count * height * width].view(count, height, width, 7)
        start += count * height * width
        # OpenCV goes cell by cell, in a cell anchor by anchor; boxes are fractions of the image,
        # class scores are multiplied by the objectness and 0 below 0.2
        theirs = torch.from_numpy(content[f"{name}/decoded{index}"]).view(height, width, count, 7)
        theirs = theirs.permute(2, 0, 1, 3)
        torch.testing.assert_close(own[..., :4] / 64, theirs[..., :4], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(own[..., 4], theirs[..., 4], rtol=1e-3, atol=1e-4)
        scores = own[..., 4:5] * own[..., 5:]
        sure = theirs[..., 5:] > 0
        assert sure.any()
        torch.testing.assert_close(scores[sure], theirs[..., 5:][sure], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "stride", "padding", "expected"),
    [
        # windows start at i * stride - padding // 2; cells outside count as minus infinity
        (2, 1, 1, [2, 3, 5, 5, 4]),  # (1 2) (2 3) (3 5) (5 4) (4 .)
        (2, 2, 1, [2, 5, 4]),  # (1 2) (3 5) (4 .)
        (3, 1, 2, [2, 3, 5, 5, 5]),  # (. 1 2) (1 2 3) (2 3 5) (3 5 4) (5 4 .)
        (4, 4, 3, [3, 5]),  # (. 1 2 3) (5 4 . .)
        (3, 2, 2, [2, 5, 5]),  # (. 1 2) (2 3 5) (5 4 .)
    ],
)
def test_pooling_starts_its_windows_where_darknet_does(
    size: int, stride: int, padding: int, expected: list[float]
) -> None:
    row = torch.tensor([1.0, 2, 3, 5, 4]) - 10  # all below 0: a border of zeros would win
    pooled = PoolLayer(MaxPool(size, stride, padding))(row.expand(1, 1, 5, 5))
    assert (pooled[0, 0, 0] + 10).tolist() == expected


@pytest.mark.parametrize(
    ("own", "added", "expected"),
    [([1, 2], [10, 20], [11, 22]), ([1, 2], [10], [11, 2]), ([1], [10, 20], [11])],
)
def test_a_shortcut_adds_the_channels_that_both_have(
    own: list[float], added: list[float], expected: list[float]
) -> None:
    first, second = (torch.tensor(part).float().view(1, -1, 1, 1) for part in (own, added))
    assert ShortcutLayer(Shortcut(0))((first, second)).flatten().tolist() == expected


def test_one_class_is_certain_wherever_there_is_an_object() -> None:
    model = build_model("yolov3-tiny:width=0.0625", 1)
    decoded = decode(model, [torch.randn(1, 18, 2, 2), torch.randn(1, 18, 4, 4)])
    assert decoded[..., 5].unique().tolist() == [1.0]
    assert decoded[..., 4].unique().numel() > 1


def test_decode_gives_the_hand_worked_numbers() -> None:
    cfg = "[net]\nwidth=64\nheight=64\n[maxpool]\nsize=16\nstride=16\n[convolutional]\nfilters=14\n"
    cfg += "activation=linear\n[yolo]\nanchors=10,20,30,40\nclasses=2\nscale_x_y=1.2\n"
    model = build_model("x.cfg", 2, {"cfg": cfg})
    raw = torch.zeros(1, 14, 2, 3)
    # second anchor, column 2 of row 1, stride 16
    raw[0, 7:, 1, 2] = torch.tensor([0.0, 2.0, 0.5, -0.5, 1.0, -1.0, 3.0])
    point = decode(model, [raw])[0, 6 + 1 * 3 + 2]

    def sigmoid(x: float) -> float:
        return 1 / (1 + np.exp(-x))

    # centre: (1.2 * sigmoid - 0.1 + cell) * 16
    expected = [(0.6 - 0.1 + 2) * 16, (1.2 * sigmoid(2) - 0.1 + 1) * 16]
    expected += [30 * np.exp(0.5), 40 * np.exp(-0.5), sigmoid(1), sigmoid(-1), sigmoid(3)]
    torch.testing.assert_close(point, torch.tensor(expected, dtype=torch.float32))


def test_a_network_is_built_again_from_its_own_options() -> None:
    model = build_model("yolov3-tiny:width=0.0625", 3)
    model.set_anchors([((50.5, 60), (70, 80), (90, 100)), ((5, 6), (7, 8), (9, 10.25))])
    again = build_model(model.name, 3, model.options)
    assert again.anchors == model.anchors
    assert again.layout.blocks == model.layout.blocks
    assert [table.tolist() for table in again.anchor_tables] == [
        [list(size) for size in head] for head in model.anchors
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("yolov3-huge", "did you mean yolov3"),
        ("yolov3:widht=0.5", "widht is not an option of yolov3; did you mean width?"),
        ("yolov3:width=0", "width=0 must be a number from 0.03 to 4"),
        ("yolov3:depth=deep", "depth=deep must be a number from 0.03 to 4"),
        ("yolov3-tiny:depth=0.5", "yolov3-tiny has no repeats"),
        ("absent.cfg", "model=absent.cfg: no such file"),
    ],
)
def test_a_wrong_name_is_one_line(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_model(name, 2)
    assert message in str(caught.value)


def test_an_image_of_another_size_is_named() -> None:
    model = build_model("yolov3-tiny:width=0.0625", 2)
    with pytest.raises(ConfigError, match=r"image_size=40 must be a multiple .*: try 32"):
        model(torch.zeros(1, 3, 64, 40))


def test_a_map_that_does_not_divide_the_input_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.cfg"
    path.write_text(
        "[net]\nwidth=64\nheight=64\n[convolutional]\nsize=3\nfilters=7\nactivation=linear\n"
        "[yolo]\nanchors=8,8\nclasses=2\n"
    )
    with pytest.raises(ConfigError, match=r"a\.cfg:8: a map of 62 x 62 cells does not divide"):
        build_model(str(path), 2)
