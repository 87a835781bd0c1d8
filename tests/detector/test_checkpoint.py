from pathlib import Path

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
