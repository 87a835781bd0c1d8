"""One suite for every runtime: what is converted gives the network's own predictions."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from detector import runtimes
from detector.backends import load_backend
from detector.decode import decode
from detector.errors import CheckpointError, MissingPackageError
from detector.runtimes import Request

PACKAGES = {  # of each format: what has to be there
    "openvino": ("openvino",),
    "ncnn": ("ncnn", "pnnx"),
    "torchscript": (),
    "executorch": ("executorch",),
}
Requests = Callable[..., Request]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.slow] if name == "executorch" else [])
        for name in runtimes.CONVERTERS
    ],
)
def converted(request: pytest.FixtureRequest, request_of: Requests) -> Path:
    for package in PACKAGES[request.param]:
        pytest.importorskip(package)
    return runtimes.CONVERTERS[request.param](request_of())[0]


def expected(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return decode(network, network(images))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_converted_network_returns_its_own_predictions(
    converted: Path, network: nn.Module, images: Tensor, count: int
) -> None:
    decoded = load_backend(converted, threads=1)(images[:count])
    assert decoded.shape == (count, 84, 8) and decoded.dtype == torch.float32
    torch.testing.assert_close(decoded, expected(network, images[:count]), atol=1e-3, rtol=1e-5)


def test_results_are_kept_when_the_next_image_is_run(converted: Path, images: Tensor) -> None:
    backend = load_backend(converted, threads=1)
    first = backend(images[:1])
    kept = first.clone()
    backend(images[1:2])
    torch.testing.assert_close(first, kept, rtol=0, atol=0)


def test_a_file_says_what_it_is(converted: Path) -> None:
    backend = load_backend(converted)
    assert backend.names == ("circle", "square", "Dreieck ü")
    assert (backend.imgsz, backend.input_convention) == (64, "bgr-255")
    assert backend.metadata["letterbox"] == {"pad": 114}


def test_a_torn_file_is_refused_in_one_line(converted: Path, tmp_path: Path) -> None:
    for file in converted.parent.glob(f"{converted.name.split('.')[0]}.*"):
        shutil.copy(file, tmp_path)
    torn = tmp_path / converted.name
    torn.write_bytes(converted.read_bytes()[:200])
    with pytest.raises(CheckpointError, match=converted.name) as caught:
        load_backend(torn)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", runtimes.LOADERS)
def test_a_text_file_is_refused_by_name(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"text{suffix}").write_text("hello")
    with pytest.raises((CheckpointError, MissingPackageError)) as caught:
        load_backend(tmp_path / f"text{suffix}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "module"), [("openvino", "openvino"), ("ncnn", "ncnn"), ("executorch", "executorch")]
)
def test_a_missing_runtime_says_what_to_install(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackageError, match=rf"pip install 'evolve-detector\[{name}\]'"):
        runtimes.REQUIRE[name]()


def test_every_format_has_all_its_functions() -> None:
    assert set(runtimes.CONVERTERS) == set(runtimes.REQUIRE) == set(runtimes.PRECISIONS)
    assert len(runtimes.LOADERS) == len(runtimes.CONVERTERS)
