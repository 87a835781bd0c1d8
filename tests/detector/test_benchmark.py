import json
import shutil
from pathlib import Path

import pytest
import torch

from detector import runtimes
from detector.benchmark import benchmark, main, table
from detector.checkpoint import model_content, save_checkpoint
from detector.errors import CheckpointError
from detector.export import export
from detector.models import build_model

NAMES = ("square", "disc")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pico.pt and the pico.onnx that was made from it."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("files")
    save_checkpoint(root / "pico.pt", model_content(build_model("yolox-pico", 2), NAMES, 64))
    export(root / "pico.pt", "onnx")
    return root


def test_a_checkpoint_is_found_by_its_hash(folder: Path, tmp_path: Path, tiny_set: Path) -> None:
    shutil.copy(folder / "pico.onnx", tmp_path / "a.onnx")
    shutil.copy(folder / "pico.pt", tmp_path / "renamed.pt")
    torch.manual_seed(1)
    other = model_content(build_model("yolox-pico", 2), NAMES, 64)
    save_checkpoint(tmp_path / "another.pt", other)
    eager, row = benchmark([tmp_path / "a.onnx"], data=str(tiny_set), device="cpu", seconds=0.01)
    assert (Path(eager.file).name, eager.format) == ("renamed.pt", "pytorch")
    assert row.box_px is not None and row.box_px < 0.05 and row.score is not None
    assert row.map50 == pytest.approx(eager.map50, abs=1e-6) and row.map50 is not None
    assert row.ratio is not None and eager.ratio == 1.0
    assert row.median_ms <= row.p90_ms <= row.p99_ms
    assert row.megabytes == pytest.approx((tmp_path / "a.onnx").stat().st_size / 1e6)


def test_without_its_checkpoint_a_file_is_not_compared(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "pico.onnx", tmp_path)
    (row,) = benchmark([tmp_path / "pico.onnx"], data="none", device="cpu", seconds=0.01)
    assert row.ratio is row.box_px is row.map50 is None and row.images_per_second > 0


def test_every_runtime_of_an_onnx_file_has_a_row(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(path) for path in sorted(folder.glob("pico.*"))]
    argv += ["--data", "none", "--device", "cpu", "--seconds", "0.01", "--json"]
    assert main([*argv, "--runtime", "onnxruntime,opencv"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [row["format"] for row in answer["files"]] == ["pytorch", "onnxruntime", "opencv"]
    assert answer["batch"] == 1


def test_the_table_is_aligned_and_marks_what_is_missing(folder: Path) -> None:
    lines = table(benchmark([folder / "pico.pt"], "none", "cpu", seconds=0.01)).splitlines()
    assert len(lines) == 3 and len({len(line) for line in lines}) == 1
    assert lines[0].startswith("| file") and "| pico.pt | pytorch | fp32" in lines[2]
    assert lines[2].split("|")[-2].strip() == "-"  # a checkpoint differs from itself by nothing


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["no.pt"], "no.pt: cannot be read"),
        (["no.onnx"], "no.onnx: no such file"),
        (["a.json"], "a.json: nothing that can be run is among them"),
        (["a.txt"], "a.txt: unknown kind of model file"),
        (["no.pt", "--batch", "0"], "--batch 0 must be above 0"),
        (["pico.onnx", "--runtime", "opencw"], "--runtime opencw: no such runtime"),
        (["pico.onnx", "--data", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_bad_input_is_one_line(
    folder: Path,
    argv: list[str],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    (folder / "a.txt").write_text("hello")
    (folder / "a.json").write_text("{}")
    assert main([*argv, "--device", "cpu", "--seconds", "0.01"]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(error) == 1 and text in error[0]


def test_a_runtime_that_does_not_take_a_file_is_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path, *_: object) -> None:
        raise CheckpointError(f"{path}: int8 is not for me")

    monkeypatch.setitem(runtimes.ONNX_LOADERS, "opencv", refuse)
    readers = ["onnxruntime", "opencv"]
    rows = benchmark([folder / "pico.onnx"], "none", "cpu", seconds=0.01, runtimes=readers)
    assert [row.format for row in rows] == ["pytorch", "onnxruntime"]
    assert "left out: pico.onnx by opencv" in caplog.text
    with pytest.raises(CheckpointError, match="int8 is not for me"):  # it alone was asked for
        benchmark([folder / "pico.onnx"], "none", "cpu", seconds=0.01, runtimes=["opencv"])
