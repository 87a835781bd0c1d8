from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from detector.backends import load_backend
from detector.decode import decode
from detector.errors import CheckpointError
from detector.runtimes import Request
from detector.runtimes import openvino as runtime

pytest.importorskip("openvino")


def test_half_precision_halves_the_file(request_of: Callable[..., Request]) -> None:
    whole, half = (runtime.convert(request_of(precision))[1] for precision in ("fp32", "fp16"))
    assert half.stat().st_size < 0.6 * whole.stat().st_size


@pytest.mark.slow  # nncf takes a quarter of a minute to begin
def test_int8_keeps_the_heads_and_the_decoding(
    request_of: Callable[..., Request], network: nn.Module, images: Tensor
) -> None:
    pytest.importorskip("nncf")
    path = runtime.convert(request_of("int8"))[0]
    decoded = load_backend(path, threads=1)(images)
    with torch.no_grad():
        expected = decode(network, network(images))
    gap = (decoded - expected).abs()
    assert 0 < gap[..., 4:].max() < 0.05  # int8, yet near
    assert gap[..., :2].max() < 2  # pixels


def test_a_file_without_its_weights_is_refused(request_of: Callable[..., Request]) -> None:
    request = request_of(dynamic=False)
    path, weights = runtime.convert(request)
    weights.unlink()
    with pytest.raises(CheckpointError, match=rf"{weights.name}: no such file"):
        load_backend(path)
