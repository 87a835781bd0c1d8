"""torchvision's detectors under the family contract: losses, detections, a whole training."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from detector.config import Hyp, TrainConfig, resolve
from detector.errors import ConfigError
from detector.evaluate import evaluate
from detector.export import export
from detector.families import build_family
from detector.finding import Settings
from detector.models import build_model
from detector.models.blocks import IMAGENET_MEAN, IMAGENET_STD
from detector.predict import predict
from detector.train import train

SMALL = "backbone=mobilenet_v3_small,channels=32"
TINY = {
    "fasterrcnn": f"torchvision:fasterrcnn:{SMALL},anchor=8",
    "retinanet": f"torchvision:retinanet:{SMALL},anchor=8",
    "fcos": f"torchvision:fcos:{SMALL}",
    "ssd": "torchvision:ssdlite320_mobilenet_v3_large",
}
GAINS = Hyp(box=2.0, cls=3.0, obj=5.0)


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {kind: build_model(name, 2).eval() for kind, name in TINY.items()}


def pictures(count: int, side: int = 64) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(count)) * 255


def targets(*counts: int, side: int = 64) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for count in counts:
        low = torch.rand(count, 2, generator=generator) * side / 2
        boxes = torch.cat((low, low + 8 + torch.rand(count, 2, generator=generator) * 20), dim=1)
        found.append({"boxes": boxes, "labels": torch.arange(count) % 2})
    return found


def as_the_library(network: nn.Module, side: int = 64) -> nn.Module:
    """The same network with torchvision's own transform: a list of RGB images of 0 to 1."""
    library = copy.deepcopy(network)
    library.transform = GeneralizedRCNNTransform(side, side, IMAGENET_MEAN, IMAGENET_STD)
    return library


@pytest.mark.parametrize("kind", ["fasterrcnn", "retinanet", "fcos"])
def test_detections_are_those_of_torchvision(networks: dict[str, nn.Module], kind: str) -> None:
    network = networks[kind]
    found = build_family(network, Hyp()).detect(pictures(2), conf=0.001, iou=0.5, max_det=50)
    library = as_the_library(network)
    with torch.no_grad():
        expected = library([image.flip(0) / 255 for image in pictures(2)])
    for ours, theirs in zip(found, expected, strict=True):
        objects = theirs["labels"] > 0
        assert len(ours) > 0
        torch.testing.assert_close(ours.boxes, theirs["boxes"][objects], atol=1e-3, rtol=0)
        torch.testing.assert_close(ours.scores, theirs["scores"][objects], atol=1e-5, rtol=0)
        assert torch.equal(ours.labels, theirs["labels"][objects] - 1)


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_losses_are_those_of_torchvision(networks: dict[str, nn.Module], kind: str) -> None:
    network, boxes = networks[kind], targets(3, 0)
    library = as_the_library(network)
    library.training = True  # the norms stay in eval mode
    shifted = [{"boxes": one["boxes"], "labels": one["labels"] + 1} for one in boxes]
    with torch.no_grad():
        expected = library([image.flip(0) / 255 for image in pictures(2)], shifted)
        sums, count = build_family(network, GAINS).losses(pictures(2), boxes)
    means = {name: value / count for name, value in sums.items()}
    torch.testing.assert_close(means["cls"], 3 * expected["classification"])
    torch.testing.assert_close(means["box"], 2 * expected["bbox_regression"])
    if kind == "fcos":
        torch.testing.assert_close(means["obj"], 5 * expected["bbox_ctrness"])
    total = sum(value for name, value in means.items() if name != "total")
    torch.testing.assert_close(means["total"], total)


@pytest.mark.parametrize("kind", TINY)
def test_two_micro_batches_add_up_to_one_batch(networks: dict[str, nn.Module], kind: str) -> None:
    # in eval mode: batch norm looks at a micro-batch alone, as in every family
    network = networks[kind]
    if kind == "fasterrcnn":  # so that regions are not drawn but all taken
        network = copy.deepcopy(network)
        for sampler in (network.rpn.fg_bg_sampler, network.roi_heads.fg_bg_sampler):
            sampler.regions = sampler.positives = 10**6
    family, images, boxes = build_family(network, GAINS), pictures(4), targets(3, 0, 1, 4)
    with torch.no_grad():
        whole, count = family.losses(images, boxes)
        parts = [family.losses(images[i : i + 2], boxes[i : i + 2]) for i in (0, 2)]
    assert count == parts[0][1] + parts[1][1]
    if kind == "fasterrcnn":  # its means are over regions, of which images have different numbers
        assert whole["total"] == pytest.approx(float(sum(p["total"] for p, _ in parts)), rel=0.2)
        return
    for name in whole:
        torch.testing.assert_close(whole[name], parts[0][0][name] + parts[1][0][name])


@pytest.mark.parametrize("kind", TINY)
def test_images_without_objects_have_a_finite_loss_and_a_gradient(
    networks: dict[str, nn.Module], kind: str
) -> None:
    network = copy.deepcopy(networks[kind])
    sums, count = build_family(network, GAINS).losses(pictures(2), targets(0, 0))
    sums["total"].backward()
    assert torch.isfinite(sums["total"]) and count >= 0
    assert all(weight.grad is not None for weight in network.parameters())


@pytest.mark.parametrize("kind", TINY)
def test_no_images_give_zeros_of_every_part_and_gradients(
    networks: dict[str, nn.Module], kind: str
) -> None:
    network = copy.deepcopy(networks[kind])
    family = build_family(network, GAINS)
    with torch.no_grad():
        usual, _ = family.losses(pictures(1), targets(1))
    sums, count = family.losses(pictures(1)[:0], [])
    assert list(sums) == list(usual) and count == 0
    assert all(value == 0 for value in sums.values())
    sums["total"].backward()
    assert all(not weight.grad.any() for weight in network.parameters())
    assert family.detect(pictures(1)[:0], 0.1, 0.5, 10) == []


def test_a_box_without_area_is_left_out(networks: dict[str, nn.Module]) -> None:
    family, (one,) = build_family(networks["fcos"], GAINS), targets(2)
    flat = {
        "boxes": torch.cat((one["boxes"], torch.tensor([[5.0, 5, 5, 9]]))),
        "labels": torch.cat((one["labels"], torch.tensor([1]))),
    }
    with torch.no_grad():
        expected, _ = family.losses(pictures(1), [one])
        sums, _ = family.losses(pictures(1), [flat])
    assert torch.equal(sums["total"], expected["total"])


def test_validation_losses_leave_the_running_statistics_alone(
    networks: dict[str, nn.Module],
) -> None:
    network = networks["fasterrcnn"]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        build_family(network, GAINS).losses(pictures(2), targets(2, 1))
    changed = [k for k, v in network.state_dict().items() if not torch.equal(v, before[k])]
    assert changed == ["rpn.fg_bg_sampler.draws", "roi_heads.fg_bg_sampler.draws"]
    assert not any(module.training for module in network.modules())


@pytest.mark.parametrize("kind", ["retinanet", "fcos", "ssd"])
def test_losses_in_bfloat16_are_nearly_those_in_float32(
    networks: dict[str, nn.Module], kind: str
) -> None:
    # 320 px: rounded to bfloat16, a coordinate above 256 would be a multiple of 2
    family, boxes = build_family(networks[kind], GAINS), targets(3, 2, side=320)
    with torch.no_grad():
        exact, count = family.losses(pictures(2, 320), boxes)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough, rough_count = family.losses(pictures(2, 320), boxes)
    assert rough["total"].dtype == torch.float32
    assert rough_count == count  # anchors match the same objects
    for name in exact:
        torch.testing.assert_close(rough[name], exact[name], rtol=0.03, atol=1e-3)


def test_thresholds_are_those_that_are_asked_for(networks: dict[str, nn.Module]) -> None:
    for network in networks.values():
        family = build_family(network, Hyp())
        (found,) = family.detect(pictures(1), 0.0, 0.5, 7)
        assert 0 < len(found) <= 7
        assert torch.equal(found.scores, found.scores.sort(descending=True).values)
        assert found.labels.min() >= 0 and found.labels.max() <= 1
        (found,) = family.detect(pictures(1), 1.0, 0.5, 7)
        assert len(found) == 0


# ---- settings


@pytest.mark.parametrize("name", ["compile", "sync_bn"])
def test_settings_that_cannot_be_followed_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}=true does not go with model=torchvision:"):
        TrainConfig(model=TINY["fcos"], **{name: True})


def test_genes_that_a_detector_lacks_are_dead() -> None:
    config, hyp = resolve({"model": TINY["retinanet"]})
    dead = hyp.dead(config)
    assert {"obj", "l1", "center_radius", "topk", "iou_cost", "cls_cost"} <= set(dead)
    assert dead["obj"] == "this detector has no objectness loss"
    assert not {"box", "cls"} & set(dead)
    for kind in ("fcos", "fasterrcnn"):
        config, hyp = resolve({"model": TINY[kind]})
        assert "obj" not in hyp.dead(config)


# ---- the whole


STILL = dict.fromkeys(
    ("mosaic", "scale", "translate", "hsv_h", "hsv_s", "hsv_v", "fliplr", "flipud"), 0
)
QUICK = {"imgsz": 64, "device": "cpu", "batch": 4, "bn_momentum": 0.1, "ema_tau": 20}


@pytest.fixture(scope="module")
def learned(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of fcos that knows the eight pictures by heart."""
    folder = tmp_path_factory.mktemp("fcos")
    config, hyp = resolve({
        **QUICK, **STILL, "model": TINY["fcos"], "data": str(tiny_set), "epochs": 35,
        "val_every": 35, "ema_decay": 0.9,
    })  # fmt: skip
    result = train(config, hyp, folder)
    assert result.metrics["mAP50"] > 0.9
    return folder


def test_eight_images_are_learned_by_heart(learned: Path, tiny_set: Path) -> None:
    report = evaluate(learned / "weights" / "best.pt", tiny_set, device="cpu")
    assert report["mAP50"] > 0.9
    assert report["speed"]["network"] > 0


def test_prediction_needs_the_checkpoint_alone(learned: Path, tiny_set: Path) -> None:
    (first, *_) = predict(learned / "weights" / "best.pt", tiny_set.parent / "images", "cpu")
    rows = np.loadtxt(tiny_set.parent / "labels" / "000.txt", ndmin=2)
    best = first.labels[: len(rows)].tolist()  # the highest scores come first
    assert sorted(best) == sorted(rows[:, 0].astype(int).tolist())
    assert first.names == ("square", "disc")


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({"formats": "onnx,torchscript"}, "it can be exported with --format onnx only"),
        ({"formats": "onnx", "dynamic": True}, "its graph is for one image, not --dynamic"),
        ({"formats": "onnx", "precision": "fp16"}, "it can be exported in fp32 only, not in fp16"),
    ],
)
def test_an_export_that_cannot_be_had_is_refused_in_one_line(
    learned: Path, tmp_path: Path, options: dict[str, Any], answer: str
) -> None:
    with pytest.raises(ConfigError, match=rf"best\.pt: torchvision:fcos.*: {answer}"):
        export(learned / "weights" / "best.pt", out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_an_exported_file_finds_what_the_checkpoint_finds(
    learned: Path, tiny_set: Path, tmp_path: Path
) -> None:
    weights, images = learned / "weights" / "best.pt", tiny_set.parent / "images"
    (file,) = export(weights, "onnx", out=tmp_path)
    assert file.path.name == "best.nms.onnx" and file.difference is not None
    assert file.difference.harm < 1e-4
    reports = [evaluate(path, tiny_set, device="cpu") for path in (weights, file.path)]
    assert reports[0]["mAP50-95"] == pytest.approx(reports[1]["mAP50-95"], abs=1e-6)
    for got, wanted in zip(*(predict(p, images, "cpu") for p in (file.path, weights)), strict=True):
        assert len(wanted.labels) and got.labels.tolist() == wanted.labels.tolist()
        np.testing.assert_allclose(got.boxes, wanted.boxes, atol=0.01)
    with pytest.raises(ConfigError, match="its NMS is in the graph"):
        predict(file.path, images, "cpu", Settings(conf=0.25, iou=0.4))


def test_a_resumed_two_stage_training_equals_an_uninterrupted_one(
    tiny_set: Path, tmp_path: Path
) -> None:
    config, hyp = resolve({
        **QUICK, "model": TINY["fasterrcnn"], "data": str(tiny_set), "epochs": 2, "val_loss": True,
        "fraction": 0.25, "optimizer": "AdamW",
    })  # fmt: skip
    whole = train(config, hyp, tmp_path / "whole")
    train(config, hyp, tmp_path / "parts", report=lambda epoch, metrics: epoch == 1)
    assert train(config, hyp, tmp_path / "parts", resume=True).metrics == whole.metrics
    rows = [
        (tmp_path / name / "results.csv").read_text().splitlines() for name in ("whole", "parts")
    ]
    columns = [name for name in rows[0][0].split(",") if name.startswith(("train/", "val/"))]
    assert "train/rpn_box" in columns and "val/obj" in columns
    for one, other in zip(*rows, strict=True):
        values = [
            dict(zip(rows[0][0].split(","), row.split(","), strict=True)) for row in (one, other)
        ]
        assert [values[0][name] for name in columns] == [values[1][name] for name in columns]
