from pathlib import Path

import cv2
import pytest
import torch
from torch import Tensor, nn

from detector import onnx_graph
from detector.backends import load_backend
from detector.decode import decode
from detector.errors import CheckpointError, ConfigError

METADATA = {"names": ["circle", "square", "Dreieck ü"], "imgsz": 64, "input_convention": "bgr-255"}


@pytest.fixture(scope="module")
def file(graph: bytes, folder: Path) -> Path:
    path = folder / "cv.onnx"
    path.write_bytes(onnx_graph.with_metadata(graph, METADATA))
    return path


@pytest.mark.parametrize("count", [0, 1, 3])
def test_opencv_runs_an_onnx_file_like_the_network(
    file: Path, network: nn.Module, images: Tensor, count: int
) -> None:
    threads = cv2.getNumThreads()
    backend = load_backend(file, threads=2, runtime="opencv")
    assert backend.names[2] == "Dreieck ü" and backend.imgsz == 64
    with torch.no_grad():
        expected = decode(network, network(images[:count]))
    torch.testing.assert_close(backend(images[:count]), expected, atol=1e-3, rtol=1e-5)
    assert cv2.getNumThreads() == threads  # it is the program's, not ours


def test_a_text_file_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.onnx").write_text("hello")
    with pytest.raises(CheckpointError, match=r"a\.onnx: not a readable ONNX file"):
        load_backend(tmp_path / "a.onnx", runtime="opencv")


def test_a_runtime_must_exist_and_read_the_file(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--runtime opencw: .*did you mean opencv"):
        load_backend(file, runtime="opencw")
    (tmp_path / "a.pt").write_text("hello")
    with pytest.raises(ConfigError, match=r"--runtime opencv: reads \.onnx files only"):
        load_backend(tmp_path / "a.pt", runtime="opencv")
