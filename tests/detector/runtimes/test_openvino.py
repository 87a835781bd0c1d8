from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from detector.backends import load_backend
from detector.decode import decode
from detector.errors import CheckpointError
from detector.parity import object_harm
from detector.precision import to_int8, with_7_bit_weights
from detector.runtimes import Request
from detector.runtimes import openvino as runtime

pytest.importorskip("openvino")


def test_half_precision_halves_the_file(request_of: Callable[..., Request]) -> None:
    whole, half = (runtime.convert(request_of(precision))[1] for precision in ("fp32", "fp16"))
    assert half.stat().st_size < 0.6 * whole.stat().st_size


def test_int8_is_what_the_int8_graph_says(
    request_of: Callable[..., Request], graph: bytes, network: nn.Module, images: Tensor
) -> None:
    reduced = with_7_bit_weights(to_int8(graph, images)[0])
    path = runtime.convert(replace(request_of("int8"), int8_graph=reduced))[0]
    decoded = load_backend(path, threads=1)(images)
    with torch.no_grad():
        expected = decode(network, network(images))
    assert (decoded - expected).abs()[..., 4:].max() > 0  # int8, yet near
    assert object_harm(expected, decoded) < 0.1


def test_a_file_without_its_weights_is_refused(request_of: Callable[..., Request]) -> None:
    request = request_of(dynamic=False)
    path, weights = runtime.convert(request)
    weights.unlink()
    with pytest.raises(CheckpointError, match=rf"{weights.name}: no such file"):
        load_backend(path)
