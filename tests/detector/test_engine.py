import contextlib
import ctypes
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytest import CaptureFixture

from detector import engine, onnx_graph
from detector.backends import load_backend
from detector.checkpoint import load_model, model_content, save_checkpoint
from detector.engine_wish import EngineWish
from detector.errors import CheckpointError, MissingPackageError, UserError
from detector.export import EngineNotBuilt, export, main
from detector.models import build_model

rtx = pytest.importorskip("tensorrt_rtx", reason="engines are built by tensorrt-rtx")
GPU = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "pico.pt"
    model = build_model("yolox-pico", num_classes=2)
    save_checkpoint(path, model_content(model, ("cat", "dog"), 32))
    return path


@pytest.fixture(scope="module")
def dynamic_graph(checkpoint: Path) -> bytes:
    return onnx_graph.trace(load_model(checkpoint).model, 32, opset=17, dynamic=True)


@pytest.fixture(scope="module")
def built(checkpoint: Path, dynamic_graph: bytes) -> tuple[bytes, bytes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_graph, "trace", lambda *_: dynamic_graph)
        file = export(checkpoint, "tensorrt-rtx", dynamic=True)[1]
    assert file.sidecar is not None
    return file.path.read_bytes(), file.sidecar.read_bytes()


@pytest.fixture(scope="module")
def fixed_graph(checkpoint: Path) -> bytes:
    return onnx_graph.trace(load_model(checkpoint).model, 32, opset=17, dynamic=False)


@pytest.fixture
def traced(fixed_graph: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let exports use the graph that `checkpoint` gives: tracing is what takes the time."""
    monkeypatch.setattr(onnx_graph, "trace", lambda *_: fixed_graph)


@pytest.fixture
def path(built: tuple[bytes, bytes], tmp_path: Path) -> Path:
    """An engine and its sidecar in a folder of their own."""
    path = tmp_path / "pico.engine"
    path.write_bytes(built[0])
    engine.sidecar_path(path).write_bytes(built[1])
    return path


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)


def change_sidecar(path: Path, **changes: object) -> None:
    sidecar = engine.sidecar_path(path)
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), **changes}))


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        engine.verify(path, GPU)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_a_whole_engine_passes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, "GPU A", (8, 9))
    sidecar, plan = engine.verify(path, GPU)
    assert plan == path.read_bytes() and sidecar["names"] == ["cat", "dog"]


def test_an_engine_is_refused_without_a_gpu(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CheckpointError, match="needs an NVIDIA GPU and none is available"):
        load_backend(path)


def test_an_engine_is_refused_on_the_cpu(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, "GPU A", (8, 9))
    with pytest.raises(CheckpointError, match="not on device=cpu"):
        load_backend(path, device="cpu")


def test_one_changed_byte_is_refused(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "SHA-256 differs" in (text := refusal(path))
    assert "rebuild it by: python -m detector.export --weights" in text


def test_the_sidecar_of_another_engine_is_refused(path: Path) -> None:
    change_sidecar(path, engine_sha256="0" * 64)
    assert "not the one its sidecar describes" in refusal(path)


def test_a_missing_sidecar_is_refused(path: Path) -> None:
    engine.sidecar_path(path).unlink()
    text = refusal(path)
    assert "its sidecar is missing" in text and "pico.engine.json" in text


def test_a_text_file_is_not_an_engine(tmp_path: Path) -> None:
    (tmp_path / "x.engine").write_text("hello")
    assert "not a TensorRT engine" in refusal(tmp_path / "x.engine")


@pytest.mark.parametrize("content", ["", "[]", "{}", "{", '{"format": "tensorrt-rtx"}'])
def test_a_broken_sidecar_is_refused(path: Path, content: str) -> None:
    engine.sidecar_path(path).write_text(content)
    assert "sidecar" in refusal(path)


def test_another_version_of_the_library_is_refused(path: Path) -> None:
    change_sidecar(path, library_version="1.0.0")
    text = refusal(path)
    assert f"built by tensorrt_rtx 1.0.0, installed is {rtx.__version__}" in text
    assert "rebuild it by" in text


def test_an_unknown_format_is_refused(path: Path) -> None:
    change_sidecar(path, format="tensorrt-7")
    assert "'tensorrt-7' is unknown" in refusal(path)


def test_a_missing_library_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingPackageError, match=r"evolve-detector\[tensorrt-rtx\]"):
        engine.verify(path, GPU)


def test_an_older_gpu_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, "GPU T", (7, 5))
    assert "needs compute capability 8.0 or later, GPU T has 7.5" in refusal(path)


def test_which_gpus_an_engine_is_for() -> None:
    rtx_engine = {"name": None, "compute_capability": None, "minimum": "8.0"}
    assert engine.wrong_gpu(rtx_engine, "any", "8.0") is None
    assert engine.wrong_gpu(rtx_engine, "any", "12.0") is None  # as numbers, not as text
    assert engine.wrong_gpu(rtx_engine, "any", "7.5") is not None
    one_gpu = {"name": "A", "compute_capability": "9.0", "minimum": None}
    assert engine.wrong_gpu(one_gpu, "A", "9.0") is None
    assert engine.wrong_gpu(one_gpu, "B", "9.0") is not None
    assert engine.wrong_gpu(one_gpu, "A", "8.0") is not None


def test_an_engine_for_listed_capabilities_runs_on_no_other() -> None:
    listed = {"name": None, "compute_capability": None, "minimum": "8.6"}
    listed |= {"capabilities": ["8.6", "12.0"]}
    assert engine.wrong_gpu(listed, "A", "8.6") is None
    assert engine.wrong_gpu(listed, "A", "12.0") is None
    reason = engine.wrong_gpu(listed, "A", "8.9")
    assert reason == "built for compute capability 8.6, 12.0, A has 8.9"


def test_what_is_asked_of_an_engine_is_built_recorded_and_asked_again(
    checkpoint: Path, dynamic_graph: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_graph, "trace", lambda *_: dynamic_graph)
    options = ["--capability", "8.6,8.9", "--workspace", "0.5", "--batch", "2,3,8"]
    argv = ["--weights", str(checkpoint), "--format", "tensorrt-rtx", "--dynamic", *options]
    assert main([*argv, "--out", str(tmp_path)]) == 0
    path = tmp_path / "pico.tensorrt-rtx.engine"
    sidecar = engine.read_sidecar(path)
    assert sidecar["gpu"]["capabilities"] == ["8.6", "8.9"] and sidecar["gpu"]["minimum"] == "8.6"
    assert sidecar["workspace_gib"] == 0.5
    assert sidecar["batch"] == {"min": 2, "opt": 3, "max": 8}
    assert " ".join(options) in sidecar["rebuild"]
    pretend_gpu(monkeypatch, "GPU A", (8, 9))
    assert engine.verify(path, GPU)[0]["names"] == ["cat", "dog"]
    pretend_gpu(monkeypatch, "GPU B", (12, 0))
    assert "built for compute capability 8.6, 8.9, GPU B has 12.0; rebuild it by" in refusal(path)


def test_the_library_is_told_what_is_asked(
    fixed_graph: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured, seen = engine._configured, []

    def note(*arguments: Any) -> Any:
        seen.append(configured(*arguments))
        return seen[-1]

    monkeypatch.setattr(engine, "_configured", note)
    wish = EngineWish(capabilities=("8.9", "12.0"), workspace=0.25)
    engine.build("tensorrt-rtx", fixed_graph, dynamic=False, wish=wish)
    (config,) = seen
    assert config.get_memory_pool_limit(rtx.MemoryPoolType.WORKSPACE) == 2**28
    assert config.num_compute_capabilities == 2
    assert [config.get_compute_capability(i).name for i in (0, 1)] == ["SM89", "SM120"]


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        (["--capability", "9.0"], "has 7.5, 8.0, 8.6, 8.9, 12.0, 12.1"),
        (["--capability", "8.6,"], "--capability : tensorrt_rtx"),
        (["--capability", "8.6", "--format", "tensorrt"], "for --format tensorrt-rtx only"),
        (["--workspace", "0"], "--workspace 0 must be above 0 (GiB)"),
        (["--workspace", "1", "--format", "onnx"], "--workspace is about engines: add tensorrt or"),
        (["--batch", "1,8,32"], "add --dynamic"),
        (["--batch", "8,1,32", "--dynamic"], "--batch 8,1,32 must rise from 1 on"),
        (["--batch", "1,8", "--dynamic"], "--batch 1,8 must be three whole numbers"),
    ],
)
def test_what_cannot_be_asked_is_one_line_and_writes_nothing(
    checkpoint: Path, tmp_path: Path, capsys: CaptureFixture[str], options: list[str], answer: str
) -> None:
    argv = ["--weights", str(checkpoint), "--format", "tensorrt-rtx", "--out", str(tmp_path / "o")]
    assert main([*argv, *options]) == 2
    error = capsys.readouterr().err
    assert answer in error and error.count("\n") == 1
    assert not (tmp_path / "o").exists()


@pytest.mark.usefixtures("traced")
def test_tensorrt_needs_the_gpu_it_builds_for(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", rtx)  # stands in for TensorRT: the same calls
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineNotBuilt, match="no NVIDIA GPU is available here") as caught:
        export(checkpoint, "tensorrt", out=tmp_path)
    assert [file.format for file in caught.value.files] == ["onnx"]


@pytest.mark.usefixtures("traced")
def test_a_tensorrt_engine_is_for_the_gpu_that_built_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", rtx)
    pretend_gpu(monkeypatch, "GPU A", (9, 0))
    path = export(checkpoint, "tensorrt", out=tmp_path)[1].path
    assert engine.verify(path, GPU)[0]["batch"] == {"min": 1, "opt": 1, "max": 1}
    pretend_gpu(monkeypatch, "GPU B", (9, 0))
    assert "built for GPU A (compute capability 9.0), this is GPU B (9.0)" in refusal(path)


def test_a_broken_graph_is_a_failure_with_its_reason() -> None:
    with pytest.raises(RuntimeError, match=r"cannot read the ONNX graph: .*parse"):
        engine.build("tensorrt-rtx", b"junk", dynamic=False)


def test_the_first_importable_library_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", rtx)
    assert engine.first_available() == "tensorrt"
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert engine.first_available() == "tensorrt-rtx"
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert engine.first_available() is None


class FakeContext:
    """An execution context in main memory: answers with twice the mean of each image."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "images"
        self.shape = shape
        return 1 <= shape[0] <= 16 and shape[1:] == (3, 32, 32)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert name == "output"
        return (self.shape[0], 21, 7)

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        source = (ctypes.c_float * math.prod(self.shape)).from_address(self.addresses["images"])
        images = torch.frombuffer(source, dtype=torch.float32).reshape(self.shape)
        output = images.mean(dim=(1, 2, 3), keepdim=True)[..., 0] * 2 * torch.ones(1, 21, 7)
        ctypes.memmove(self.addresses["output"], output.data_ptr(), output.nbytes)
        return stream == 7


@pytest.fixture
def without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything that `load` does around the library happen in main memory."""
    stream = SimpleNamespace(
        wait_stream=lambda other: None, synchronize=lambda: None, cuda_stream=7
    )
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(
        engine, "verify", lambda path, device: (engine.read_sidecar(path), path.read_bytes())
    )


@pytest.mark.usefixtures("without_cuda")
def test_images_are_done_in_parts_of_the_largest_batch(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = SimpleNamespace(
        ILogger=rtx.ILogger,
        Runtime=lambda logger: SimpleNamespace(
            deserialize_cuda_engine=lambda plan: SimpleNamespace(
                create_execution_context=FakeContext
            )
        ),
    )
    monkeypatch.setattr(engine, "load_library", lambda engine_format: fake)
    backend = load_backend(path)
    assert (backend.names, backend.imgsz, backend.max_batch) == (("cat", "dog"), 32, 16)
    images = torch.rand(20, 3, 32, 32)
    decoded = backend(images)
    assert decoded.shape == (20, 21, 7)
    torch.testing.assert_close(decoded[:, 20, 6], images.mean(dim=(1, 2, 3)) * 2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the library would find the GPU")
@pytest.mark.usefixtures("without_cuda")
def test_the_librarys_own_refusal_is_passed_on(path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tensorrt_rtx cannot load it \(.*cudaError"):
        load_backend(path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="runs an engine")
def test_an_engine_returns_the_checkpoints_predictions(path: Path, checkpoint: Path) -> None:
    try:
        backend = load_backend(path, device="cuda")
    except UserError as error:
        pytest.skip(f"this GPU is not supported by TensorRT-RTX: {error}")
    images = torch.rand(20, 3, 32, 32) * 255  # more than the largest batch of the profile
    expected = load_backend(checkpoint)(images)
    torch.testing.assert_close(backend(images), expected, atol=0.05, rtol=1e-3)
