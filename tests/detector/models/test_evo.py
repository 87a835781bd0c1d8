"""Evo networks: structure, names, shapes, decoding, export, and learning by heart."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from detector import onnx_graph
from detector.config import resolve
from detector.cost import gflops, parameters
from detector.decode import decode
from detector.errors import ConfigError
from detector.models import MODELS, build_model
from detector.models.evo import Evo, Stage
from detector.optim import freeze
from detector.train import train

TINY = "evo:depth=0.33,width=0.125"


@pytest.fixture(scope="module")
def tiny() -> Evo:
    torch.manual_seed(0)
    model = build_model(TINY, num_classes=3)
    assert isinstance(model, Evo)
    return model


def test_raw_maps_have_the_documented_shapes_in_train_and_eval(tiny: Evo) -> None:
    images = torch.rand(2, 3, 64, 96) * 255
    for training in (True, False):
        tiny.train(training)
        shapes = [tuple(level.shape) for level in tiny(images)]
        assert shapes == [(2, 7, 8, 12), (2, 7, 4, 6), (2, 7, 2, 3)]


def test_attributes_describe_the_model(tiny: Evo) -> None:
    assert (tiny.name, tiny.family) == (TINY, "evo")
    assert (tiny.num_classes, tiny.strides, tiny.input_convention) == (3, (8, 16, 32), "bgr-255")
    assert {name: MODELS[name](1).input_size for name in ("evo-nano", "evo-s")} == {
        "evo-nano": 416,
        "evo-s": 640,
    }


@pytest.mark.parametrize(
    ("own", "other", "imgsz"), [("evo-nano", "yolox-nano", 320), ("evo-s", "yolox-s", 640)]
)
def test_it_costs_no_more_than_its_rival(own: str, other: str, imgsz: int) -> None:
    with torch.device("meta"):
        models = [build_model(name, 3).eval() for name in (own, other)]
    cost, bound = (gflops(model, imgsz, torch.device("meta")) for model in models)
    assert 0.8 * bound < cost <= bound


def test_a_stage_has_the_weights_counted_by_hand() -> None:
    # 8 channels in and out, 4 in each half, two steps; a norm has two numbers a channel:
    # split 8*8 + 16, steps 2 * (4*4*9 + 8), join 16*8 + 16
    assert parameters(Stage(8, 8, 2)) == 80 + 2 * 152 + 144


def test_every_parameter_gets_a_gradient(tiny: Evo) -> None:
    tiny.train()
    tiny.zero_grad()
    sum(level.square().sum() for level in tiny(torch.rand(2, 3, 64, 64) * 255)).backward()
    silent = [name for name, value in tiny.named_parameters() if not value.grad.abs().sum() > 0]
    assert silent == []
    tiny.zero_grad()


def test_the_maps_share_the_kernels_of_the_head_but_not_its_norms(tiny: Evo) -> None:
    tiny.train()
    own = tiny.head.box_conv
    before = [norm.running_mean.clone() for norm in own.spatial_norms]
    with torch.no_grad():
        own(torch.rand(1, own.mixing.in_channels, 8, 8) + 1, level=1)
    moved = [
        not torch.equal(norm.running_mean, old)
        for norm, old in zip(own.spatial_norms, before, strict=True)
    ]
    assert moved == [False, True, False]
    assert sum(1 for name, _ in own.named_parameters() if name.endswith("spatial.weight")) == 1


def test_a_fresh_network_doubts_every_class(tiny: Evo) -> None:
    for layer in tiny.head.class_preds:
        # sigmoid(-ln 99) = 0.01
        torch.testing.assert_close(layer.bias, torch.full_like(layer.bias, -math.log(99)))


def test_decoded_boxes_are_the_hand_worked_numbers() -> None:
    # Stride 8, second cell of the first row: centre (12, 4). Distances 1/2, 1/4, 1 and 1/2 cells:
    # the box is (12 - 4, 4 - 2, 12 + 8, 4 + 4) = (8, 2, 20, 8), centre (14, 5), size 12 x 6.
    model = build_model(TINY, 2)
    raw = [torch.zeros(1, 6, 4, 4), torch.zeros(1, 6, 2, 2), torch.zeros(1, 6, 1, 1)]
    raw[0][0, 4:] = -80.0  # the cells around have no say
    raw[0][0, :4, 0, 1] = torch.tensor([0.5, 0.25, 1.0, 0.5]).log()
    raw[0][0, 4:, 0, 1] = torch.tensor([math.log(3), -math.log(3)])  # scores 3/4 and 1/4
    row = decode(model, raw)[0, 1]
    torch.testing.assert_close(row, torch.tensor([14.0, 5, 12, 6, 1, 0.75, 0.25]))


def test_an_onnx_graph_answers_like_the_network(tiny: Evo) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    for name, buffer in tiny.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(1))
    tiny.eval()
    graph = onnx_graph.trace(tiny, 64, opset=17, dynamic=True)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).uniform(0, 255, (3, 3, 64, 64)).astype(np.float32)
    (got,) = session.run(["output"], {"images": images})
    with torch.no_grad():
        expected = decode(tiny, tiny(torch.from_numpy(images)))
    assert got.shape == (3, 8 * 8 + 4 * 4 + 2 * 2, 8)
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-3)


def test_the_backbone_can_be_frozen() -> None:
    model = build_model(TINY, 2)
    freeze(model, "backbone")
    trained = {name.split(".")[0] for name, w in model.named_parameters() if w.requires_grad}
    assert trained == {"neck", "head"}


def test_free_sizes_equal_the_named_ones() -> None:
    free, named = build_model("evo:depth=0.33, width=0.25", 3), build_model("evo-nano", 3)
    assert free.name == "evo:depth=0.33,width=0.25"
    assert [v.shape for v in free.parameters()] == [v.shape for v in named.parameters()]
    assert build_model(free.name, 3).name == free.name


def test_an_uneven_width_still_fits_together() -> None:
    model = build_model("evo:depth=0.1,width=0.17", 1).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 32, 32))[2].shape == (1, 5, 1, 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("evo-nana", "model=evo-nana is not a known network; did you mean evo-nano?"),
        ("evo:widht=1", "model=evo:widht=1: widht is not an option of evo; did you mean width"),
        ("evo:width=wide", "width=wide must be a number from 0.05 to 4"),
        ("evo:depth=9", "depth=9 must be a number from 0.01 to 4"),
        ("evo:depthwise=true", "depthwise is not an option of evo"),
    ],
)
def test_a_wrong_name_is_one_clear_line(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_model(name, 3)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_image_size_names_the_nearest_right_one(tiny: Evo) -> None:
    with pytest.raises(ConfigError, match=r"image_size=600 must be a multiple of .*: try 608$"):
        tiny(torch.zeros(1, 3, 64, 600))


def test_eight_images_are_learned_by_heart(tiny_set: Path, tmp_path: Path) -> None:
    still = {"scale": 0, "translate": 0, "hsv_h": 0, "hsv_s": 0, "hsv_v": 0, "fliplr": 0}
    short = {"epochs": 40, "val_every": 40, "ema_decay": 0.9, "ema_tau": 20, "bn_momentum": 0.1}
    small = {"model": TINY, "imgsz": 64, "device": "cpu", "mosaic": 0, "warmup_epochs": 1}
    config, hyp = resolve({**small, **still, **short, "data": str(tiny_set)})
    assert train(config, hyp, tmp_path / "run").metrics["mAP50"] > 0.9
