"""torchvision's detectors as networks of ours: names, structure, weight files."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import get_model, get_model_weights

from detector.checkpoint import load_weights
from detector.cost import parameters
from detector.errors import CheckpointError, ConfigError
from detector.models import MODELS, build_model
from detector.models.torchvision import NAMES, CountedSampler, dense_pass
from detector.models.torchvision_weights import own_names
from detector.optim import freeze

SMALL = "backbone=mobilenet_v3_small,channels=32"
META = torch.device("meta")


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_those_that_torchvision_publishes(name: str) -> None:
    with META:
        network = build_model(f"torchvision:{name}", num_classes=90)  # and the background
        plain = get_model(name, weights=None, weights_backbone=None)
    published = next(iter(get_model_weights(name))).meta["num_params"]
    # the published ones of the first versions have frozen norms, which are no parameters
    norms = sum(
        parameters(module) for module in network.backbone.modules()
        if isinstance(module, nn.BatchNorm2d)
    )  # fmt: skip
    assert parameters(network) in (published, published + norms)
    shapes = {key: value.shape for key, value in plain.state_dict().items()}
    counters = [key for key in network.state_dict() if key.endswith("fg_bg_sampler.draws")]
    assert {k: v.shape for k, v in network.state_dict().items() if k not in counters} == shapes


def test_every_box_detector_is_listed_and_none_that_needs_more() -> None:
    asked = ("fasterrcnn_resnet50_fpn_v2", "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn",
             "fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large",
             "ssd300_vgg16")  # fmt: skip
    assert set(asked) <= set(NAMES)
    assert {f"torchvision:{name}" for name in NAMES} <= set(MODELS)
    assert not [name for name in NAMES if "mask" in name or "keypoint" in name]


@pytest.mark.parametrize(
    ("spelled", "canonical"),
    [
        ("torchvision:FCOS-ResNet50-FPN", "torchvision:fcos_resnet50_fpn"),
        (
            "torchvision:fcos: channels=32, backbone=resnet18",
            "torchvision:fcos:backbone=resnet18,channels=32",
        ),
        (
            "torchvision:retinanet:backbone=resnet18",
            "torchvision:retinanet:backbone=resnet18,channels=256,anchor=32",
        ),
    ],
)
def test_a_name_builds_the_network_again(spelled: str, canonical: str) -> None:
    with META:
        network = build_model(spelled, 2)
        assert network.name == canonical
        assert build_model(canonical, 2).name == canonical
    assert (network.family, network.num_classes) == ("torchvision", 2)
    assert network.input_convention == "rgb-imagenet"


def test_input_sizes_are_those_of_torchvision_up_to_the_stride() -> None:
    sizes = {}
    for name in ("ssd300_vgg16", "ssdlite320_mobilenet_v3_large", "fcos_resnet50_fpn"):
        with META:
            network = build_model(f"torchvision:{name}", 1)
        sizes[name] = network.input_size, network.input_convention
    assert sizes == {
        "ssd300_vgg16": (320, "rgb-255"),  # 300, rounded up to a multiple of 32
        "ssdlite320_mobilenet_v3_large": (320, "rgb-255"),
        "fcos_resnet50_fpn": (800, "rgb-imagenet"),
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:fcos_resnet5_fpn", "did you mean fcos_resnet50_fpn?"),
        ("torchvision:maskrcnn_resnet50_fpn", "needs masks or keypoints"),
        ("torchvision:ssd300_vgg16:channels=3", "ssd300_vgg16 has no options; only fasterrcnn"),
        ("torchvision:fcos:anchor=8", "anchor is not an option of fcos"),
        ("torchvision:fcos:channel=8", "did you mean channels?"),
        ("torchvision:fcos:channels=48", "channels=48 must be a multiple of 32 up to 1024"),
        ("torchvision:fasterrcnn:anchor=big", "anchor=big must be 1 to 512 pixels"),
        ("torchvision:fcos:backbone=resnet19", "backbone=resnet19 is unknown; did you mean"),
        ("torchvision", "model=torchvision is not a known network"),
    ],
)
def test_a_wrong_name_is_one_clear_line(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_model(name, 3)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_first_layer_gets_normalised_rgb() -> None:
    network = build_model(f"torchvision:fcos:{SMALL}", 1)
    images = torch.tensor([255.0, 114.0, 0.0]).reshape(1, 3, 1, 1).expand(1, 3, 64, 64)
    seen, _ = network.transform(images)
    # (1 - 0.485) / 0.229, (114 / 255 - 0.456) / 0.224, (0 - 0.406) / 0.225
    expected = torch.tensor([2.248908, -0.039916, -1.804444])
    torch.testing.assert_close(seen.tensors[0, :, 0, 0], expected, atol=1e-5, rtol=0)
    assert seen.image_sizes == [(64, 64)]


def test_an_image_too_small_for_a_network_is_named() -> None:
    with META:
        network = build_model("torchvision:ssd300_vgg16", 1).eval()
    with pytest.raises(
        ConfigError, match=r"imgsz=256 is too small for .*ssd300_vgg16: 288 or more"
    ):
        network.transform(torch.zeros(1, 3, 256, 288))
    network.transform(torch.zeros(1, 3, 288, 288, device=META))
    with torch.no_grad():
        dense_pass(network, torch.zeros(1, 3, 288, 288, device=META))
        with pytest.raises(RuntimeError, match="Kernel size"):  # 288 is no guess
            dense_pass(network, torch.zeros(1, 3, 256, 288, device=META))


def test_operations_of_the_box_head_count_for_every_region() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with META:
        network = build_model(f"torchvision:fasterrcnn:{SMALL}", 2).eval()
        image = torch.zeros(1, 3, 64, 64)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        dense_pass(network, image)
    counts = counter.get_flop_counts()
    # 1000 regions: 32 x 7 x 7 to 128, 128 to 128, then 3 scores and 12 offsets; times two
    expected = 2 * 1000 * (32 * 49 * 128 + 128 * 128 + 128 * (3 + 12))
    assert counts["Global"][torch.ops.aten.addmm] == expected  # nothing else is a matrix product


# ---- regions drawn for the loss


def test_regions_are_drawn_in_the_wanted_numbers() -> None:
    class Wanted:
        batch_size_per_image, positive_fraction = 8, 0.25

    sampler = CountedSampler(Wanted())
    labels = torch.tensor([1, 1, 1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0])
    (positive,), (negative,) = sampler([labels])
    assert positive.sum() == 2 and negative.sum() == 6  # 8 * 0.25, and the rest
    assert (labels[positive] == 1).all() and (labels[negative] == 0).all()
    few = torch.tensor([1, 0, 0, -1])
    (positive,), (negative,) = sampler([few])
    assert positive.tolist() == [True, False, False, False]
    assert negative.tolist() == [False, True, True, False]


def test_a_sampler_goes_on_where_its_state_was_saved() -> None:
    class Wanted:
        batch_size_per_image, positive_fraction = 4, 0.5

    labels = [torch.zeros(200)]
    first, second = CountedSampler(Wanted()), CountedSampler(Wanted())
    draws = [first(labels)[1][0] for _ in range(3)]
    assert not torch.equal(draws[0], draws[1])
    first(labels)
    second.load_state_dict(first.state_dict())
    torch.manual_seed(5)
    assert torch.equal(first(labels)[1][0], second(labels)[1][0])


# ---- frozen parts


def test_the_backbone_of_a_pyramid_is_what_is_frozen() -> None:
    network = build_model(f"torchvision:fcos:{SMALL}", 1)
    freeze(network, "backbone")
    frozen = {name.split(".")[1] for name, value in network.named_parameters()
              if not value.requires_grad}  # fmt: skip
    assert frozen == {"body"}
    assert not network.backbone.body.training and network.backbone.fpn.training


# ---- weight files


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's folder for what it once downloaded."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def without_counters(network: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict as in torchvision's older files."""
    return {k: v for k, v in network.state_dict().items() if not k.endswith("batches_tracked")}


def test_imagenet_weights_come_from_torchs_cache(cache: Path) -> None:
    source = get_model("mobilenet_v3_small", weights=None)
    url = next(iter(get_model_weights("mobilenet_v3_small"))).url
    torch.save(without_counters(source), cache / url.rsplit("/", 1)[-1])
    network = build_model(f"torchvision:fcos:{SMALL}", 1)
    report = load_weights(network, "imagenet")
    body = network.backbone.body.state_dict()
    for name, value in without_counters(source.features).items():
        assert torch.equal(body[name], value), name
    assert not report.skipped
    assert {name.split(".")[1] for name in report.reinitialised} == {
        "fpn", "classification_head", "regression_head",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("model", "backbone"),
    [
        ("retinanet_resnet50_fpn_v2", "resnet50"),
        ("ssd300_vgg16", "vgg16"),
        ("fasterrcnn_mobilenet_v3_large_fpn", "mobilenet_v3_large"),
    ],
)
def test_an_imagenet_file_fills_the_whole_backbone(model: str, backbone: str) -> None:
    with META:
        network, source = build_model(f"torchvision:{model}", 1), get_model(backbone, weights=None)
    own, given = network.state_dict(), source.state_dict()
    renamed = own_names(network, given)
    features = [name for name in without_counters(source)
                if not name.startswith(("fc.", "classifier."))]  # fmt: skip
    assert len(renamed) == len(features)
    assert all(value.shape == own[name].shape for name, value in renamed.items())
    (convolution,) = (name for name, value in renamed.items() if value is given[features[-1]])
    assert features[-1].rsplit(".", 1)[-1] == convolution.rsplit(".", 1)[-1]  # weight or bias


def test_weights_that_are_not_in_the_cache_are_named_with_their_address(cache: Path) -> None:
    network = build_model(f"torchvision:fcos:{SMALL}", 1)
    with pytest.raises(CheckpointError) as caught:
        load_weights(network, "imagenet")
    assert "weights=imagenet: mobilenet_v3_small-" in str(caught.value)
    assert "nothing is downloaded by itself: put https://" in str(caught.value)
    with pytest.raises(CheckpointError, match="weights=coco: torchvision has none for"):
        load_weights(network, "coco")


def test_a_detector_of_another_class_number_leaves_the_class_layers_new(cache: Path) -> None:
    source = get_model("ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None)
    url = next(iter(get_model_weights("ssdlite320_mobilenet_v3_large"))).url
    torch.save(source.state_dict(), cache / url.rsplit("/", 1)[-1])
    report = load_weights(build_model("torchvision:ssdlite320_mobilenet_v3_large", 2), "coco")
    assert set(report.reinitialised) == {
        f"head.classification_head.module_list.{level}.1.{part}"
        for level in range(6) for part in ("weight", "bias")
    }  # fmt: skip


def test_heads_of_earlier_versions_of_torchvision_get_their_new_names() -> None:
    with META:
        two_stages = build_model(f"torchvision:fasterrcnn:{SMALL}", 1)
        one_stage = build_model("torchvision:retinanet_resnet50_fpn", 1)
    new = two_stages.state_dict()
    old = {name.replace("rpn.head.conv.0.0.", "rpn.head.conv."): new[name] for name in new}
    assert set(old) != set(new)
    assert own_names(two_stages, old) == new
    new, old = one_stage.state_dict(), {}
    for name, value in new.items():
        parts = name.split(".")
        if "_head.conv." in name:  # conv.1.0.weight was conv.2.weight
            parts = [*parts[:3], str(2 * int(parts[3])), parts[5]]
        old[".".join(parts)] = value
    assert set(old) != set(new)
    assert own_names(one_stage, old) == new


def test_weights_of_another_backbone_are_refused(tmp_path: Path) -> None:
    torch.save(get_model("mobilenet_v2", weights=None).state_dict(), tmp_path / "other.pth")
    network = build_model(f"torchvision:fcos:{SMALL}", 1)
    with pytest.raises(CheckpointError, match="not one tensor fits torchvision:fcos"):
        load_weights(network, tmp_path / "other.pth")
