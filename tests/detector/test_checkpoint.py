import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detector.checkpoint import (
    load_model,
    load_weights,
    model_content,
    read_checkpoint,
    save_checkpoint,
)
from detector.errors import CheckpointError
from detector.models import build_model


def saved(path: Path, num_classes: int = 2) -> torch.nn.Module:
    model = build_model("yolox-pico", num_classes).eval()
    names = tuple(f"class{index}" for index in range(num_classes))
    save_checkpoint(path, model_content(model, names, 64, metrics={"F1": 0.5}))
    return model


def test_a_loaded_model_computes_what_the_saved_one_did(tmp_path: Path) -> None:
    model = saved(tmp_path / "a.pt")
    loaded = load_model(tmp_path / "a.pt")
    images = torch.rand(1, 3, 64, 64) * 255
    with torch.no_grad():
        for ours, theirs in zip(model(images), loaded.model(images), strict=True):
            assert torch.equal(ours, theirs)
    assert (loaded.names, loaded.imgsz) == (("class0", "class1"), 64)
    assert loaded.meta["metrics"] == {"F1": 0.5}
    assert not loaded.model.training


@pytest.mark.parametrize("content", [b"", b"some text", b"PK\x03\x04 torn"])
def test_a_torn_or_foreign_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"bad\.pt: not a readable checkpoint"):
        load_model(path)


def test_half_a_checkpoint_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        read_checkpoint(tmp_path / "a.pt")


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"format": "evolve-detector/1", "model": Path("x")}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "a.pt")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"absent\.pt: no such checkpoint"):
        load_model("absent.pt")


def test_another_programs_file_is_refused(tmp_path: Path) -> None:
    torch.save({"start_epoch": 3}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint of this program"):
        read_checkpoint(tmp_path / "a.pt")


def test_a_failed_save_keeps_the_old_file(tmp_path: Path) -> None:
    saved(tmp_path / "a.pt")
    before = (tmp_path / "a.pt").read_bytes()
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(tmp_path / "a.pt", {"unsavable": lambda: None})
    assert (tmp_path / "a.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_weights_of_other_classes_leave_only_the_class_layers_new(tmp_path: Path) -> None:
    source = saved(tmp_path / "a.pt", num_classes=5)
    model = build_model("yolox-pico", 2)
    report = load_weights(model, tmp_path / "a.pt")
    assert report.reinitialised == tuple(
        f"head.cls_preds.{level}.{part}" for level in range(3) for part in ("weight", "bias")
    )
    name = "head.obj_preds.0.weight"
    assert torch.equal(model.state_dict()[name], source.state_dict()[name])


def test_the_official_yolox_layout_loads(tmp_path: Path) -> None:
    source = build_model("yolox-pico", 2)
    official = {"model": source.state_dict(), "start_epoch": 300, "optimizer": {}}
    torch.save(official, tmp_path / "yolox.pth")
    model = build_model("yolox-pico", 2)
    report = load_weights(model, tmp_path / "yolox.pth")
    assert len(report.loaded) == len(source.state_dict())
    assert not report.reinitialised and not report.skipped


def test_weights_of_which_nothing_fits_are_an_error(tmp_path: Path) -> None:  # B-47
    torch.save({"model": {"other.weight": torch.zeros(3)}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="not one tensor fits yolox-pico"):
        load_weights(build_model("yolox-pico", 2), tmp_path / "a.pth")


def test_weights_of_another_size_do_not_count_because_their_counters_fit(tmp_path: Path) -> None:
    torch.save({"model": build_model("yolox-tiny", 2).state_dict()}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="not one tensor fits yolox-nano"):
        load_weights(build_model("yolox-nano", 2), tmp_path / "a.pth")


State = dict[str, torch.Tensor]


def prefixed(word: str) -> Callable[[State], Any]:
    return lambda state: {f"{word}.{name}": value for name, value in state.items()}


def with_raw(key: str) -> Callable[[State], Any]:
    """Averaged weights under `key`, and others under "model"."""
    return lambda state: {"model": {k: v + 1 for k, v in state.items()}, key: state}


LAYOUTS: dict[str, Callable[[State], Any]] = {
    "raw": lambda state: state,
    "yolox": lambda state: {"model": state, "start_epoch": 9, "optimizer": {}, "amp": None},
    "yolox HEAD, numpy numbers": lambda state: {"model": state, "best_ap": np.float64(0.3)},
    "DDP": lambda state: {"model": prefixed("module")(state)},
    "compiled DDP": lambda state: prefixed("module._orig_mod")(state),
    "average of torch": lambda s: {"n_averaged": torch.tensor(3), **prefixed("module")(s)},
    "mmdetection": lambda state: {"meta": {"epoch": 3}, "state_dict": state},
    "ema": with_raw("ema"),
    "model_ema": with_raw("model_ema"),
    "ema_state_dict": lambda state: {"ema_state_dict": {"module": state}, "model": {}},
    "timm": with_raw("state_dict_ema"),
    "model of a model": lambda state: {"ema": {"model": prefixed("model")(state)}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_load_from_every_layout(tmp_path: Path, layout: str) -> None:
    torch.manual_seed(1)
    source = build_model("yolox-pico", 2).state_dict()
    torch.save(LAYOUTS[layout](source), tmp_path / "a.pth")
    model = build_model("yolox-pico", 2)
    report = load_weights(model, tmp_path / "a.pth")
    assert not report.reinitialised and not report.skipped
    assert all(torch.equal(value, source[name]) for name, value in model.state_dict().items())


def test_what_a_file_has_too_much_is_reported(tmp_path: Path) -> None:
    state = build_model("yolox-pico", 2).state_dict()
    torch.save({**state, "head.extra.weight": torch.zeros(3)}, tmp_path / "a.pth")
    report = load_weights(build_model("yolox-pico", 2), tmp_path / "a.pth")
    assert report.skipped == ("head.extra.weight",)


def test_a_pickled_network_is_refused_by_its_class(tmp_path: Path) -> None:
    torch.save({"model": build_model("yolox-pico", 2)}, tmp_path / "a.pt")
    message = r"a\.pt: not a readable checkpoint: it holds objects of a program \(detector\.models"
    with pytest.raises(CheckpointError, match=message):
        load_weights(build_model("yolox-pico", 2), tmp_path / "a.pt")


def test_weights_trained_on_other_pixels_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path / "a.pt")
    caplog.set_level(logging.WARNING, "detector")
    load_weights(build_model("yolox-pico", 2), tmp_path / "a.pt")
    assert not caplog.messages
    load_weights(build_model("yolox-pico:input=rgb-imagenet", 2), tmp_path / "a.pt")
    assert caplog.messages == [
        f"{tmp_path}/a.pt was trained with input_convention=bgr-255, "
        "yolox-pico:input=rgb-imagenet takes rgb-imagenet"
    ]


def edited(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite a checkpoint after `change` has been at its content."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("names"), "its names must be a list, but is missing"),
        (lambda c: c.update(weights=[1]), "its weights must be a dict, but is list"),
        (lambda c: c.update(imgsz="64"), "its imgsz must be a int, but is str"),
        (lambda c: c["names"].append("more"), "has 3 class names for 2 classes"),
        (lambda c: c["model"].pop("name"), "its model must have a name and num_classes"),
        (lambda c: c["model"].update(name="yolox-pica"), "did you mean yolox-pico?"),
        (
            lambda c: c["model"].update(name="yolox-tiny"),
            "is not a whole yolox-tiny: ",
        ),
        (
            lambda c: c["weights"].pop("head.cls_preds.0.bias"),
            r"is not a whole yolox-pico: 1 tensors missing \(first head.cls_preds.0.bias\)",
        ),
        (
            lambda c: c["weights"].update(more=torch.zeros(2)),
            r"1 tensors unknown \(first more\)",
        ),
        (
            lambda c: c["weights"].update({"head.cls_preds.0.bias": torch.zeros(9)}),
            r"1 tensors of another shape \(first head.cls_preds.0.bias\)",
        ),
        (lambda c: c["weights"].update({"head.cls_preds.0.bias": "no"}), "of another shape"),
        (
            lambda c: c.update(input_convention="rgb-255"),
            "takes rgb-255, not bgr-255",
        ),
    ],
)
def test_a_checkpoint_that_is_not_whole_says_what_is_wrong(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = tmp_path / "a.pt"
    saved(path)
    edited(path, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_file_with_bytes_too_many_is_refused_or_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    saved(path)
    path.write_bytes(path.read_bytes() + b"x" * 100_000)
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_model(path)


def test_a_checkpoint_says_all_that_is_needed_to_use_it(tmp_path: Path) -> None:
    model = build_model("yolox-pico:input=rgb-imagenet", 2)
    save_checkpoint(tmp_path / "a.pt", model_content(model, ("a", "b"), 96, hyp={"lr0": 0.1}))
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    assert content["model"] == {
        "name": "yolox-pico:input=rgb-imagenet", "num_classes": 2, "options": {},
    }  # fmt: skip
    assert (content["names"], content["imgsz"]) == (["a", "b"], 96)
    assert content["input_convention"] == "rgb-imagenet"
    assert set(content["versions"]) == {"torch", "torchvision", "python"}
    assert load_model(tmp_path / "a.pt").model.input_convention == "rgb-imagenet"
