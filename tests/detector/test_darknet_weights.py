"""Darknet weight files: hand-made bytes, round trips, cut and foreign files."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from detector.checkpoint import LoadReport, load_weights, model_content, save_checkpoint
from detector.darknet_weights import read_header, save_darknet
from detector.errors import CheckpointError
from detector.models import build_model

# Two convolutions: 2 filters of 1x1 on 3 channels with a batch norm, and the head's with a bias.
CFG = """[net]
width=32
height=32
[convolutional]
batch_normalize=1
filters=2
activation=leaky
[maxpool]
size=32
stride=32
[convolutional]
filters=7
activation=linear
[yolo]
anchors=10,10
classes=2
"""
FIRST = 4 * 2 + 2 * 3  # beta, gamma, mean, variance of 2 filters, and the kernel
HEAD = 7 + 7 * 2  # bias and kernel


def small(classes: int = 2) -> nn.Module:
    return build_model("small.cfg", classes, {"cfg": CFG})


def write(path: Path, numbers: np.ndarray, header: bytes | None = None) -> Path:
    header = struct.pack("<3iq", 0, 2, 5, 640) if header is None else header
    path.write_bytes(header + np.asarray(numbers, dtype="<f4").tobytes())
    return path


def ramp(count: int) -> np.ndarray:
    return np.arange(1, count + 1, dtype=np.float32)


def test_numbers_go_to_the_layers_in_darknets_order(tmp_path: Path) -> None:
    model = small()
    load_weights(model, write(tmp_path / "a.weights", ramp(FIRST + HEAD)))
    state = model.state_dict()
    # beta 1 2, gamma 3 4, mean 5 6, variance 7 8, kernel 9 ... 14 (filter by filter)
    assert state["backbone.0.bn.bias"].tolist() == [1, 2]
    assert state["backbone.0.bn.weight"].tolist() == [3, 4]
    assert state["backbone.0.bn.running_mean"].tolist() == [5, 6]
    assert state["backbone.0.bn.running_var"].tolist() == [7, 8]
    assert state["backbone.0.conv.weight"].flatten().tolist() == [9, 10, 11, 12, 13, 14]
    assert state["heads.0.conv.bias"].tolist() == [15, 16, 17, 18, 19, 20, 21]
    assert state["heads.0.conv.weight"].flatten().tolist() == list(range(22, 36))


@pytest.mark.parametrize(
    ("header", "version", "seen", "size"),
    [
        (struct.pack("<3ii", 0, 1, 0, 640), (0, 1, 0), 640, 16),
        (struct.pack("<3iq", 0, 2, 0, 1 << 40), (0, 2, 0), 1 << 40, 20),
        (struct.pack("<3iq", 0, 2, 5, 32_013_312), (0, 2, 5), 32_013_312, 20),
        (struct.pack("<3iq", 1, 0, 0, 7), (1, 0, 0), 7, 20),
    ],
)
def test_both_headers_are_read(
    tmp_path: Path, header: bytes, version: tuple[int, int, int], seen: int, size: int
) -> None:
    path = write(tmp_path / "a.weights", ramp(FIRST + HEAD), header)
    found = read_header(path)
    assert (found.version, found.seen, found.size) == (version, seen, size)
    model = small()
    load_weights(model, path)
    assert model.state_dict()["heads.0.conv.weight"].flatten()[-1] == FIRST + HEAD


def test_what_is_written_is_what_was_read_to_the_last_byte(tmp_path: Path) -> None:
    header = struct.pack("<3iq", 0, 2, 5, 1234)
    path = write(tmp_path / "a.weights", ramp(FIRST + HEAD) / 7, header)
    model = small()
    load_weights(model, path)
    save_darknet(model, tmp_path / "b.weights", seen=1234)
    assert (tmp_path / "b.weights").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["yolov3-tiny:width=0.125", "yolov3-spp:width=0.0625,depth=0.2"])
def test_a_network_comes_back_from_its_file(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    first, second = build_model(name, 3), build_model(name, 3)
    with torch.no_grad():
        for entry in first.state_dict().values():
            if entry.is_floating_point():
                entry.uniform_(0.1, 1)
    save_darknet(first, tmp_path / "a.weights")
    report = load_weights(second, tmp_path / "a.weights")
    assert not report.reinitialised and not report.skipped
    ours, theirs = first.state_dict(), second.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def cut(model: nn.Module, layers: int, path: Path) -> tuple[Path, LoadReport]:
    """Load a file that ends after so many convolutions."""
    save_darknet(model, path)
    count = 0
    for layer in model.layers[:layers]:
        if hasattr(layer, "conv"):
            norm = layer.bn is not None
            filters = layer.conv.out_channels
            count += layer.conv.weight.numel() + filters * (4 if norm else 1)
    path.write_bytes(path.read_bytes()[: 20 + 4 * count])
    return path, load_weights(build_model(model.name, 2), path)


def test_a_cut_off_file_fills_the_backbone_and_names_the_rest(tmp_path: Path) -> None:
    # the first 75 and 15 layers, as in darknet53.conv.74 and yolov3-tiny.conv.15
    for name, layers in (("yolov3:width=0.03125", 75), ("yolov3-tiny:width=0.0625", 15)):
        model = build_model(name, 5)  # classes do not matter: the heads are not in the file
        _, report = cut(model, layers, tmp_path / f"net.conv.{layers - 1}")
        assert all(key.startswith("backbone.") for key in report.loaded)
        assert all(key.startswith("heads.") for key in report.reinitialised)
        assert len(report.loaded) == sum(key.startswith("backbone.") for key in model.state_dict())


def test_a_file_for_other_classes_leaves_only_the_heads_convolutions(tmp_path: Path) -> None:
    model = build_model("yolov3-tiny:width=0.0625", 80)
    save_darknet(model, tmp_path / "coco.weights")
    own = build_model("yolov3-tiny:width=0.0625", 2)
    before = own.state_dict()["heads.0.conv.bias"].clone()
    report = load_weights(own, tmp_path / "coco.weights")
    heads = ["heads.0.conv.weight", "heads.0.conv.bias", "heads.7.conv.weight", "heads.7.conv.bias"]
    assert sorted(report.reinitialised) == sorted(heads)
    assert torch.equal(own.state_dict()["heads.0.conv.bias"], before)
    assert torch.equal(own.layers[21].conv.weight, model.layers[21].conv.weight)


WHOLE = 4 * (FIRST + HEAD)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (ramp(FIRST - 1), f"ends inside layer 0 of small.cfg: expected {4 * FIRST} bytes"),
        (ramp(FIRST - 1), f"found {4 * (FIRST - 1)} (the whole network has {WHOLE})"),
        (ramp(FIRST + 2), f"ends inside layer 2 of small.cfg: expected {WHOLE} bytes"),
        (ramp(FIRST + HEAD + 1), f"holds {WHOLE + 4} bytes of numbers, small.cfg with 2 classes"),
        (ramp(0), "holds no numbers after its header"),
        (ramp(FIRST + HEAD) * np.inf, "numbers of layer 0 are not finite"),
        (-ramp(FIRST + HEAD), "a variance of layer 0 is negative: the file is not of small.cfg"),
    ],
)
def test_a_file_of_the_wrong_size_is_one_line(
    tmp_path: Path, numbers: np.ndarray, message: str
) -> None:
    model = small()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, write(tmp_path / "a.weights", numbers))
    assert str(caught.value).startswith(f"{tmp_path / 'a.weights'}: ")
    assert message in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_odd_bytes_at_the_end_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.weights", ramp(FIRST + HEAD))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="139 bytes after its header are no float32 numbers"):
        load_weights(small(), path)  # 4 * 35 - 1


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 8, b"\x89PNG\r\n\x1a\n" + b"\x00" * 40, b"[net]\nwidth=416\nheight=416\n" * 4],
    ids=["empty", "short", "picture", "text"],
)
def test_a_foreign_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.weights").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.weights: not a readable checkpoint"):
        load_weights(small(), tmp_path / "a.weights")


def test_a_header_that_is_cut_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.weights", ramp(0), struct.pack("<4i", 0, 2, 5, 640))
    with pytest.raises(CheckpointError, match="ends inside its header: 16 of 20 bytes"):
        load_weights(small(), path)


def test_other_families_refuse_a_darknet_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.weights", ramp(FIRST + HEAD))
    with pytest.raises(CheckpointError, match=r"are for yolov3 models and \*\.cfg, not yolox-pico"):
        load_weights(build_model("yolox-pico", 2), path)


def test_our_own_checkpoint_fills_a_darknet_network_too(tmp_path: Path) -> None:
    model = small()
    save_checkpoint(tmp_path / "a.pt", model_content(model, ("a", "b"), 32))
    other = small()
    assert not load_weights(other, tmp_path / "a.pt").reinitialised
    assert torch.equal(other.layers[0].conv.weight, model.layers[0].conv.weight)
