import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from detector import engine, onnx_graph, precision
from detector.backends import load_backend
from detector.checkpoint import load_model, model_content, save_checkpoint
from detector.decode import decode
from detector.errors import CheckpointError, ConfigError, MissingPackageError
from detector.export import EngineNotBuilt, check_formats, export, main
from detector.export_job import FORMATS
from detector.models import build_model
from detector.runtimes import CONVERTERS, Request

NAMES = ("circle", "square", "Dreieck ü")
SIZE = 64
POINTS = 8 * 8 + 4 * 4 + 2 * 2  # of a 64 px image at strides 8, 16, 32


def write_checkpoint(path: Path, **more: object) -> Path:
    """Write a yolox-pico with random weights whose outputs depend on the picture."""
    torch.manual_seed(0)
    model = build_model("yolox-pico", num_classes=len(NAMES))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.5)
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
    save_checkpoint(path, model_content(model, NAMES, SIZE, **more))
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    metrics = {"mAP50": 0.5, "loss": float("nan")}
    return write_checkpoint(tmp_path_factory.mktemp("weights") / "pico.pt", metrics=metrics)


@pytest.fixture(scope="module")
def dynamic_file(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dynamic")
    (file,) = export(checkpoint, "onnx", out=out, dynamic=True)
    return file.path


@pytest.fixture(scope="module")
def fixed_graph(checkpoint: Path) -> bytes:
    return onnx_graph.trace(load_model(checkpoint).model, SIZE, opset=17, dynamic=False)


@pytest.fixture
def traced(fixed_graph: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let exports use the graph that `checkpoint` gives: tracing is what takes the time."""
    monkeypatch.setattr(onnx_graph, "trace", lambda *_: fixed_graph)


def forget(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Let the import of these modules fail as if they were not installed."""
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


def torch_outputs(checkpoint: Path, images: np.ndarray) -> np.ndarray:
    model = load_model(checkpoint).model
    with torch.no_grad():
        return decode(model, model(torch.from_numpy(images))).numpy()


def onnx_outputs(path: Path, images: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["output"], {"images": images})[0]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_dynamic_onnx_file_returns_the_checkpoints_predictions(
    checkpoint: Path, dynamic_file: Path, batch: int
) -> None:
    images = np.random.default_rng(batch).uniform(0, 255, (batch, 3, SIZE, SIZE))
    images = images.astype(np.float32)
    got = onnx_outputs(dynamic_file, images)
    assert got.shape == (batch, POINTS, 5 + len(NAMES))
    np.testing.assert_allclose(got, torch_outputs(checkpoint, images), atol=1e-4)
    assert np.ptp(got[0, :, 0]) > SIZE / 2  # centres lie all over the picture


@pytest.mark.parametrize("opset", [11, 20])
def test_first_and_last_opset_return_the_checkpoints_predictions(
    checkpoint: Path, tmp_path: Path, opset: int
) -> None:
    import onnx

    (file,) = export(checkpoint, "onnx", out=tmp_path, imgsz=32, opset=opset)
    assert onnx.load(file.path).opset_import[0].version == opset
    images = np.random.default_rng(0).uniform(0, 255, (1, 3, 32, 32)).astype(np.float32)
    expected = torch_outputs(checkpoint, images)
    np.testing.assert_allclose(onnx_outputs(file.path, images), expected, atol=1e-4)


def test_the_onnx_file_says_what_it_is(checkpoint: Path, dynamic_file: Path) -> None:
    import hashlib

    import onnx

    model = onnx.load(dynamic_file)
    metadata = {item.key: item.value for item in model.metadata_props}
    assert json.loads(metadata["names"]) == list(NAMES)
    assert (metadata["imgsz"], metadata["stride"]) == ("64", "[8, 16, 32]")
    assert metadata["input_convention"] == "bgr-255"
    letterbox = json.loads(metadata["letterbox"])
    assert (letterbox["mode"], letterbox["pad"]) == ("top-left", 114)
    assert json.loads(metadata["output_layout"])["shape"] == "(B, N, 5 + C)"
    assert metadata["model"] == "yolox-pico"
    assert json.loads(metadata["metrics"]) == {"mAP50": 0.5}  # NaN has no spelling in JSON
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert metadata["checkpoint_sha256"] == digest
    assert metadata["torch_version"] == str(torch.__version__)
    assert metadata["evolve_detector_version"]
    (source,), (target,) = model.graph.input, model.graph.output
    assert (source.name, target.name) == ("images", "output")
    assert source.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [d.dim_value for d in target.type.tensor_type.shape.dim][1:] == [POINTS, 8]


@pytest.mark.usefixtures("traced")
def test_the_difference_is_returned_and_stored(checkpoint: Path, tmp_path: Path) -> None:
    import onnx

    (file,) = export(checkpoint, ["onnx"], out=tmp_path)
    assert file.difference is not None
    assert 0 < file.difference.box_px < 1e-3 and file.difference.score < 1e-5
    metadata = {item.key: item.value for item in onnx.load(file.path).metadata_props}
    stored = json.loads(metadata["difference"])
    assert stored == {
        "box_px": file.difference.box_px,
        "score": file.difference.score,
        "images": 8,
        "source": "drawn",
        "harm": file.difference.harm,
    }
    assert file.difference.harm < 1e-4


def test_the_same_checkpoint_gives_the_same_file(
    checkpoint: Path, dynamic_file: Path, tmp_path: Path
) -> None:
    (file,) = export(checkpoint, "onnx", out=tmp_path, dynamic=True)
    assert file.path.read_bytes() == dynamic_file.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["pico.onnx"]  # nothing is left behind


@pytest.mark.usefixtures("traced")
def test_files_go_beside_the_checkpoint_by_default(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "here.pt")
    (file,) = export(checkpoint, "onnx")
    assert file.path == tmp_path / "here.onnx"


@pytest.mark.usefixtures("traced")
def test_a_graph_that_disagrees_is_not_written(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["weights"]["head.cls_preds.0.bias"].add_(1.0)
    save_checkpoint(tmp_path / "other.pt", content)
    assert main(["--weights", str(tmp_path / "other.pt"), "--format", "onnx"]) == 1
    error = capsys.readouterr().err
    assert "disagrees with the checkpoint" in error and error.count("\n") == 1
    assert not (tmp_path / "other.onnx").exists()


@pytest.mark.usefixtures("traced")
def test_a_checkpoint_with_nan_is_not_exported(checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["weights"]["head.obj_preds.0.bias"].fill_(float("nan"))
    save_checkpoint(tmp_path / "nan.pt", content)
    with pytest.raises(RuntimeError, match="scores differ by up to nan"):
        export(tmp_path / "nan.pt", "onnx")
    assert not (tmp_path / "nan.onnx").exists()


# ---- engines


def test_a_tensorrt_rtx_engine_has_a_sidecar(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rtx = pytest.importorskip("tensorrt_rtx")
    argv = ["--weights", str(checkpoint), "--format", "onnx,tensorrt-rtx", "--dynamic", "--json"]
    assert main([*argv, "--out", str(tmp_path)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [file["format"] for file in answer["files"]] == ["onnx", "tensorrt-rtx"]
    path = Path(answer["files"][1]["path"])
    assert path.name == "pico.tensorrt-rtx.engine" and path.stat().st_size > 100_000
    assert Path(answer["files"][1]["sidecar"]) == engine.sidecar_path(path)
    sidecar = engine.read_sidecar(path)
    assert (sidecar["library"], sidecar["library_version"]) == ("tensorrt_rtx", rtx.__version__)
    images = {"name": "images", "shape": [-1, 3, SIZE, SIZE], "dtype": "float32"}
    assert sidecar["inputs"] == [images]
    assert sidecar["outputs"] == [{"name": "output", "shape": [-1, POINTS, 8], "dtype": "float32"}]
    assert sidecar["batch"] == {"min": 1, "opt": 4, "max": 16}
    assert sidecar["names"] == list(NAMES) and sidecar["letterbox"]["pad"] == 114
    assert sidecar["gpu"] == {"name": None, "compute_capability": None, "minimum": "8.0"}
    assert sidecar["precision"] == "fp32" and sidecar["tf32"] is False
    assert sidecar["onnx_difference"]["box_px"] < 1e-3
    assert sidecar["rebuild"].startswith("python -m detector.export --weights ")
    assert sidecar["rebuild"].endswith(f"--imgsz 64 --dynamic --out {tmp_path}")


@pytest.mark.usefixtures("traced")
def test_tensorrt_missing_keeps_the_onnx_file(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    forget(monkeypatch, "tensorrt")
    argv = ["--weights", str(checkpoint), "--format", "tensorrt", "--out", str(tmp_path)]
    assert main(argv) == 2
    out, error = capsys.readouterr()
    assert (tmp_path / "pico.onnx").is_file() and str(tmp_path / "pico.onnx") in out
    assert error.count("\n") == 1
    assert "pip install tensorrt" in error and "--format tensorrt-rtx" in error


@pytest.mark.usefixtures("traced")
def test_a_stub_of_tensorrt_counts_as_missing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    with pytest.raises(EngineNotBuilt, match="without its libraries") as caught:
        export(checkpoint, "tensorrt", out=tmp_path)
    assert [file.path for file in caught.value.files] == [tmp_path / "pico.onnx"]


@pytest.mark.usefixtures("traced")
def test_a_missing_engine_does_not_keep_another_from_being_built(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    forget(monkeypatch, "tensorrt")
    with pytest.raises(EngineNotBuilt) as caught:
        export(checkpoint, "tensorrt,tensorrt-rtx", out=tmp_path)
    assert [file.format for file in caught.value.files] == ["onnx", "tensorrt-rtx"]


@pytest.mark.usefixtures("traced")
def test_without_format_tensorrt_rtx_is_built_when_tensorrt_is_missing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    forget(monkeypatch, "tensorrt")
    files = export(checkpoint, out=tmp_path)
    assert [file.format for file in files] == ["onnx", "tensorrt-rtx"]


@pytest.mark.usefixtures("traced")
def test_without_format_and_tensorrt_there_is_onnx_and_exit_code_2(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    forget(monkeypatch, "tensorrt", "tensorrt_rtx")
    assert main(["--weights", str(checkpoint), "--out", str(tmp_path), "--json"]) == 2
    out, error = capsys.readouterr()
    answer = json.loads(out)
    assert [file["path"] for file in answer["files"]] == [str(tmp_path / "pico.onnx")]
    assert answer["error"] in error and error.count("\n") == 1
    assert "pip install 'evolve-detector[tensorrt-rtx]'" in error


# ---- wrong input


@pytest.mark.parametrize("package", ["onnx", "onnxslim", "onnxruntime"])
def test_missing_onnx_packages_are_named_and_nothing_is_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    forget(monkeypatch, package)
    with pytest.raises(MissingPackageError, match=r"pip install 'evolve-detector\[export\]'"):
        export(checkpoint, "onnx", out=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "value", "answer"),
    [
        ("--format", "tnn", "there are: onnx, tensorrt, tensorrt-rtx"),
        ("--format", "onnx,,", "there are: onnx, tensorrt, tensorrt-rtx"),
        ("--imgsz", "600", "try 608"),
        ("--imgsz", "0", "try 32"),
        ("--imgsz", "-64", "try 32"),
        ("--opset", "21", "allowed: 11 to 20"),
        ("--weights", "nowhere.pt", "nowhere.pt"),
    ],
)
def test_wrong_options_are_one_line_and_exit_code_2(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    option: str,
    value: str,
    answer: str,
) -> None:
    options = {"--weights": str(checkpoint), "--format": "onnx", "--out": str(tmp_path / "out")}
    options[option] = value
    assert main([word for pair in options.items() for word in pair]) == 2
    out, error = capsys.readouterr()
    assert out == "" and answer in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_out_must_be_a_folder(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file: not a folder"):
        export(checkpoint, "onnx", out=tmp_path / "file")


def test_a_text_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match=r"x\.pt"):
        export(tmp_path / "x.pt", "onnx")


def test_formats_are_read_from_lists_and_text() -> None:
    assert check_formats("ONNX, tensorrt_rtx,onnx") == ("onnx", "tensorrt-rtx")
    assert check_formats(["tensorrt"]) == ("tensorrt",)


def test_help_names_the_formats_and_precisions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(name in text for name in (*FORMATS, "--half", "--int8"))


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        (["--half", "--int8"], "not allowed with"),
        (["--int8"], "name a data set of like images with --data"),
        (["--half", "--format", "darknet"], "--format darknet has no fp16; it has fp32"),
        (["--int8", "--format", "torchscript"], "--format torchscript has no int8; it has fp32"),
    ],
)
def test_a_precision_that_cannot_be_had_is_one_line(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], options: list[str], answer: str
) -> None:
    assert main(["--weights", str(checkpoint), *options]) == 2
    assert answer in capsys.readouterr().err


def test_fp16_files_have_names_and_facts_of_their_own(checkpoint: Path, tmp_path: Path) -> None:
    (file,) = export(checkpoint, "onnx", out=tmp_path, precision="fp16")
    assert file.path.name == "pico.fp16.onnx"
    backend = load_backend(file.path)
    assert backend.metadata["precision"] == "fp16"
    assert file.difference is not None and 0 < file.difference.harm < 0.02


def test_other_runtimes_are_compared_too(checkpoint: Path, tmp_path: Path) -> None:
    _, file = export(checkpoint, "onnx,torchscript", out=tmp_path)
    assert (file.format, file.path.name) == ("torchscript", "pico.torchscript")
    assert file.difference is not None and file.difference.box_px < 1e-3


# ---- int8


@pytest.fixture
def drawn_data(tmp_path: Path) -> Path:
    path = tmp_path / "shapes.yaml"
    path.write_text("format: shapes\ntrain: 3\nval: 2\nsize: 64\n")
    return path


@pytest.mark.usefixtures("traced")
def test_an_interrupted_int8_export_leaves_nothing(
    checkpoint: Path,
    drawn_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(self: object, names: object) -> float:
        raise KeyboardInterrupt  # in the middle of the search for layers

    monkeypatch.setattr(precision._Switched, "harm", interrupt)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    argv = ["--weights", str(checkpoint), "--format", "onnx", "--int8", "--data", str(drawn_data)]
    assert main([*argv, "--out", str(tmp_path / "out")]) == 130
    assert "interrupted\n" in capsys.readouterr().err
    for folder in ("out", "here", "temporary"):
        assert list((tmp_path / folder).iterdir()) == []


@pytest.mark.parametrize("what", ["empty", "missing"])
def test_nothing_to_calibrate_on_is_one_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    for folder in ("images/train", "images/val"):
        (tmp_path / folder).mkdir(parents=True)
    data = tmp_path / f"{what}.yaml"
    (tmp_path / "empty.yaml").write_text(
        "path: .\ntrain: images/train\nval: images/val\nnames: [a]\n"
    )
    argv = ["--weights", str(checkpoint), "--format", "onnx", "--int8", "--data", str(data)]
    assert main([*argv, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    reason = {"empty": "images/train: no images", "missing": "missing.yaml: no such data set"}
    assert error.startswith("error: int8: no images to calibrate on (") and error.count("\n") == 1
    assert reason[what] in error and "name a data set of like images with --data" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("traced")
def test_an_interrupted_conversion_keeps_what_was_there(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pico.torchscript").write_text("older")

    def interrupt(request: Request) -> list[Path]:
        request.file("torchscript").write_text("half of it")
        raise KeyboardInterrupt

    monkeypatch.setitem(CONVERTERS, "torchscript", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(checkpoint, "torchscript", out=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pico.onnx", "pico.torchscript"]
    assert (tmp_path / "pico.torchscript").read_text() == "older"
