"""YOLOX networks: structure, names, shapes, and names of models."""

import hashlib
import math

import pytest
import torch
import torch.nn.functional as F

from detector.errors import ConfigError
from detector.models import MODELS, build_model
from detector.models.blocks import Focus, SPPBottleneck
from detector.models.yolox import YOLOX, flatten_raw, make_grid

# parameters, digest of all names and shapes in order; printed by the
# official code (Megvii YOLOX 0.3) at 80 classes
OFFICIAL = {
    "yolox-nano": (912_159, "9fa53d1d1c97cbe4"),
    "yolox-tiny": (5_055_855, "4681677cdc4f4f10"),
    "yolox-s": (8_968_255, "5a8c60ccf1f80653"),
    "yolox-m": (25_326_495, "c273cc27f2944baf"),
    "yolox-l": (54_208_895, "caf94815e536e3c4"),
    "yolox-x": (99_071_455, "f06b2e38175aea46"),
    "yolox-darknet53": (63_724_767, "8f468c845627a4f1"),
}


@pytest.fixture(scope="module")
def pico() -> YOLOX:
    torch.manual_seed(0)
    model = build_model("yolox-pico", num_classes=3)
    assert isinstance(model, YOLOX)
    return model


@pytest.mark.parametrize("name", OFFICIAL)
def test_structure_is_the_official_one(name: str) -> None:
    with torch.device("meta"):
        model = build_model(name, num_classes=80)
    parameters, digest = OFFICIAL[name]
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    lines = [f"{key} {tuple(value.shape)}" for key, value in model.state_dict().items()]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == digest


def test_raw_maps_have_the_documented_shapes_in_train_and_eval(pico: YOLOX) -> None:
    images = torch.rand(2, 3, 64, 96) * 255
    for training in (True, False):
        pico.train(training)
        shapes = [tuple(level.shape) for level in pico(images)]
        assert shapes == [(2, 8, 8, 12), (2, 8, 4, 6), (2, 8, 2, 3)]


def test_attributes_describe_the_model(pico: YOLOX) -> None:
    assert (pico.name, pico.num_classes, pico.strides) == ("yolox-pico", 3, (8, 16, 32))
    assert pico.input_convention == "bgr-255"
    sizes = {name: MODELS[name](1).input_size for name in ("yolox-pico", "yolox-nano", "yolox-s")}
    assert sizes == {"yolox-pico": 416, "yolox-nano": 416, "yolox-s": 640}


def test_batch_norm_and_biases_start_as_in_the_paper(pico: YOLOX) -> None:
    norms = [module for module in pico.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.03)}
    for layer in (*pico.head.cls_preds, *pico.head.obj_preds):
        # sigmoid(-ln 99) = 0.01
        torch.testing.assert_close(layer.bias, torch.full_like(layer.bias, -math.log(99)))


def test_every_parameter_gets_a_gradient(pico: YOLOX) -> None:
    pico.train()
    pico.zero_grad()
    sum(level.square().sum() for level in pico(torch.rand(2, 3, 64, 64) * 255)).backward()
    silent = [name for name, value in pico.named_parameters() if not value.grad.abs().sum() > 0]
    assert silent == []
    pico.zero_grad()


def test_box_and_class_branches_are_decoupled(pico: YOLOX) -> None:
    pico.eval()
    images = torch.rand(1, 3, 64, 64) * 255
    with torch.no_grad():
        before = pico(images)
        weight = pico.head.cls_convs[0][0].pconv.conv.weight
        original = weight.clone()
        weight.mul_(0.5)
        after = pico(images)
        weight.copy_(original)
    assert torch.equal(before[0][:, :5], after[0][:, :5])  # cx cy w h objectness
    assert not torch.equal(before[0][:, 5:], after[0][:, 5:])
    assert torch.equal(before[1], after[1])


@pytest.mark.parametrize(("side", "nearest"), [(600, 608), (33, 32), (9, 32)])
def test_a_wrong_image_size_names_the_nearest_right_one(
    pico: YOLOX, side: int, nearest: int
) -> None:
    message = rf"image_size={side} must be a multiple of the largest stride \(32\): try {nearest}$"
    for size in ((side, 64), (64, side)):
        with pytest.raises(ConfigError, match=message):
            pico(torch.zeros(1, 3, *size))


def test_focus_takes_columns_before_rows() -> None:
    focus = Focus(1, 4, kernel=1)
    focus.conv = torch.nn.Identity()
    folded = focus(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
    # top-left 1, bottom-left 3, top-right 2, bottom-right 4
    assert folded.flatten().tolist() == [1, 3, 2, 4]


def test_spp_equals_windows_of_5_9_and_13() -> None:
    spp = SPPBottleneck(8, 8).eval()
    features = torch.randn(2, 8, 10, 7)
    with torch.no_grad():
        own = spp.conv1(features)
        windows = [F.max_pool2d(own, size, stride=1, padding=size // 2) for size in (5, 9, 13)]
        expected = spp.conv2(torch.cat((own, *windows), dim=1))
        torch.testing.assert_close(spp(features), expected)


def test_points_run_row_by_row_from_fine_to_coarse() -> None:
    raw = [torch.arange(6.0).reshape(1, 1, 2, 3), torch.full((1, 1, 1, 1), 9.0)]
    assert flatten_raw(raw).flatten().tolist() == [0, 1, 2, 3, 4, 5, 9]
    cells, strides = make_grid(raw, (8, 16))
    assert cells.tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1], [0, 0]]
    assert strides.flatten().tolist() == [8, 8, 8, 8, 8, 8, 16]


@pytest.mark.parametrize("name", ["yolox_pico", "YOLOX-Pico", " yolox-pico "])
def test_spelling_variants_name_the_same_model(name: str) -> None:
    assert build_model(name, 2).name == "yolox-pico"


def test_free_sizes_equal_the_named_ones() -> None:
    free = build_model("yolox:depth=0.33, width=0.125, depthwise=true", 3)
    assert free.name == "yolox:depth=0.33,width=0.125,depthwise=true"
    named = build_model("yolox-pico", 3)
    assert [v.shape for v in free.parameters()] == [v.shape for v in named.parameters()]
    assert build_model(free.name, 3).name == free.name


def test_an_uneven_width_still_fits_together() -> None:
    model = build_model("yolox:depth=0.1,width=0.17", 1).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 32, 32))[2].shape == (1, 6, 1, 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("yolox-nana", "model=yolox-nana is not a known network; did you mean yolox-nano?"),
        (
            "yolox:widht=1",
            "model=yolox:widht=1: widht is not an option of yolox; did you mean width",
        ),
        ("yolox:width=wide", "width=wide must be a number from 0.05 to 4"),
        ("yolox:width=-1", "width=-1 must be a number from 0.05 to 4"),
        ("yolox:width=nan", "width=nan must be a number from 0.05 to 4"),
        ("yolox:depth=9", "depth=9 must be a number from 0.01 to 4"),
        ("yolox:depthwise=yes", "depthwise=yes must be true or false"),
        ("yolox-s:input=rgb", "input=rgb must be bgr-255 or rgb-imagenet"),
        ("yolox-s:depth=1", "depth is not an option of yolox; allowed: input"),
    ],
)
def test_a_wrong_name_is_one_clear_line(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_model(name, 3)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_needs_a_class() -> None:
    with pytest.raises(ConfigError, match="num_classes=0 must be at least 1"):
        build_model("yolox-nano", 0)


def test_the_pixels_of_version_0_1_0_are_normalised_inside(pico: YOLOX) -> None:
    legacy = build_model("yolox_pico:input=rgb_imagenet", 3).eval()
    assert (legacy.name, legacy.input_convention) == (
        "yolox-pico:input=rgb-imagenet",
        "rgb-imagenet",
    )
    assert list(legacy.state_dict()) == list(pico.state_dict())  # the official names
    legacy.load_state_dict(pico.state_dict())
    pico.eval()
    images = torch.rand(1, 3, 64, 64) * 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = (images / 255 - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        for ours, expected in zip(legacy(images), pico(normalised), strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_free_sizes_have_conventions_too() -> None:
    free = build_model("yolox:input=rgb-imagenet,width=0.25,depth=0.33", 3)
    assert free.name == "yolox:depth=0.33,width=0.25,depthwise=false,input=rgb-imagenet"
    assert build_model(free.name, 3).input_convention == "rgb-imagenet"
