"""A small network with everything a runtime may be asked for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detector import onnx_graph
from detector.models import build_model
from detector.runtimes import Request

NAMES = ("circle", "square", "Dreieck ü")
SIZE = 64
METADATA: dict[str, Any] = {
    "names": list(NAMES),
    "imgsz": SIZE,
    "input_convention": "bgr-255",
    "letterbox": {"pad": 114},
}


@pytest.fixture(scope="session")
def network() -> nn.Module:
    torch.manual_seed(0)
    model = build_model("yolox-pico", num_classes=len(NAMES)).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.5)
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
    return model


@pytest.fixture(scope="session")
def graph(network: nn.Module) -> bytes:
    return onnx_graph.trace(network, SIZE, opset=17, dynamic=True)


@pytest.fixture(scope="session")
def images() -> Tensor:
    return torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 255


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("converted")


@pytest.fixture(scope="session")
def request_of(network: nn.Module, graph: bytes, folder: Path) -> Any:
    def make(precision: str = "fp32", dynamic: bool = True) -> Request:
        target = folder / f"{precision}-{dynamic}" / "best"
        target.parent.mkdir(exist_ok=True)
        return Request(network, graph, SIZE, dynamic, target, METADATA, precision)

    return make
