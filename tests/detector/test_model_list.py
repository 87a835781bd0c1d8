"""The list of networks: parameters worked by hand, operations against the official table."""

import json

import pytest
import torch

from detector.cost import gflops, parameters
from detector.model_list import look_at, main
from detector.models import MODELS, build_model

# Official table (YOLOX README): side in pixels, parameters at 80 classes, GFLOPs.
OFFICIAL = {
    "yolox-nano": (416, 912_159, 1.08),
    "yolox-tiny": (416, 5_055_855, 6.45),
    "yolox-s": (640, 8_968_255, 26.8),
    "yolox-m": (640, 25_326_495, 73.8),
    "yolox-l": (640, 54_208_895, 155.6),
    "yolox-x": (640, 99_071_455, 281.9),
    "yolox-darknet53": (640, 63_724_767, 185.3),
}
# channels of the head: 256 x width; the class layers have (channels + 1) parameters per class,
# on each of three maps
HEAD = {"yolox-nano": 64, "yolox-tiny": 96, "yolox-s": 128, "yolox-m": 192, "yolox-l": 256,
        "yolox-x": 320, "yolox-darknet53": 256}  # fmt: skip


@pytest.mark.parametrize("name", OFFICIAL)
def test_operations_are_within_one_per_cent_of_the_official_table(name: str) -> None:
    side, _, official = OFFICIAL[name]
    facts = look_at(name)
    assert facts.imgsz == side
    assert facts.gflops == pytest.approx(official, rel=0.01)


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize("classes", [80, 20, 3])
def test_parameters_change_with_the_class_layers_alone(name: str, classes: int) -> None:
    _, at_80, _ = OFFICIAL[name]
    expected = at_80 - 3 * (HEAD[name] + 1) * (80 - classes)
    with torch.device("meta"):
        assert parameters(build_model(name, classes)) == expected


def test_operations_on_the_meta_device_are_those_of_a_real_pass() -> None:
    network = build_model("yolox-pico", 3).eval()
    real = gflops(network, 96, torch.device("cpu"))
    assert look_at("yolox-pico", 3, 96).gflops == real > 0


def test_the_list_shows_every_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in shown["models"]] == list(MODELS)
    assert all(row["parameters"] > 0 and row["gflops"] > 0 for row in shown["models"])
    assert shown["rule"].startswith("GFLOPs: ")


def test_a_name_shows_the_parts_of_one_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["yolox-pico", "--classes", "3", "--imgsz", "64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == ["yolox-pico", "64"]
    parts = {words[0]: int(words[1].replace(",", "")) for words in map(str.split, lines)
             if len(words) == 2 and words[1].replace(",", "").isdecimal()}  # fmt: skip
    assert parts["backbone"] + parts["head"] == look_at("yolox-pico", 3).parameters
    assert "backbone.backbone" in parts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["yolox-nan"], "model=yolox-nan is not a known network; did you mean yolox-nano?"),
        (["--imgsz", "100"], "imgsz=100 must be a multiple of 32: try 96"),
        (["--classes", "0"], "num_classes=0 must be at least 1"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
