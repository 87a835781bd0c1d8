"""fp16 and int8 graphs, on a network of four convolutions that is hard to quantize."""

import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from detector.parity import object_harm
from detector.precision import (
    _channel_ranges,
    _smooth,
    decoding_nodes,
    last_convolutions,
    to_fp16,
    to_int8,
    with_7_bit_weights,
)

IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 255


class Toy(nn.Module):
    """Convolutions with channels of very different ranges, then a decoding with exp."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.deep = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.mix = nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 6, 1)
        with torch.no_grad():
            self.stem.weight *= 0.02
            self.stem.weight[0] *= 200.0  # one channel outshines the others
            self.deep.weight[0] *= 0.01

    def forward(self, images: Tensor) -> Tensor:
        x = nn.functional.silu(self.stem(images))
        x = nn.functional.silu(self.mix(nn.functional.silu(self.deep(x))))
        table = self.head(x).flatten(2).transpose(1, 2)  # (B, N, 6)
        boxes = torch.cat((table[..., :2] * 4 + 8, 4 * (table[..., 2:4] + 12).exp()), dim=-1)
        return torch.cat((boxes, table[..., 4:].sigmoid()), dim=-1)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("precision") / "toy.onnx"
    names = {"input_names": ["images"], "output_names": ["output"], "opset_version": 17}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, as in detector.onnx_graph
        torch.onnx.export(Toy().eval(), (IMAGES[:1],), str(path), dynamo=False, **names)
    return path.read_bytes()


def run(graph: bytes) -> Tensor:
    """Return the outputs for all images; the graph is checked as a file of ours is."""
    onnx.checker.check_model(onnx.load_from_string(graph), full_check=True)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    feeds = [{"images": image[None].numpy()} for image in IMAGES]
    return torch.from_numpy(np.concatenate([session.run(None, feed)[0] for feed in feeds]))


def test_decoding_is_what_comes_after_all_convolutions(graph: bytes) -> None:
    model = onnx.load_from_string(graph)
    heads = [model.graph.node[i].output[0] for i in last_convolutions(model)]
    assert len(heads) == 1 and "head" in heads[0]
    kinds = {model.graph.node[i].op_type for i in decoding_nodes(model)}
    assert {"Exp", "Concat", "Reshape"} & kinds == {"Exp", "Concat", "Reshape"}
    assert "Conv" not in kinds


def test_fp16_halves_the_weights_and_decodes_in_float(graph: bytes) -> None:
    half = to_fp16(graph)
    model = onnx.load_from_string(half)
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 4
    for node in convolutions:
        assert {kinds[name] for name in node.input[1:]} == {onnx.TensorProto.FLOAT16}
    outputs = run(half)  # float32, although exp(12) * 4 is beyond fp16
    assert outputs.dtype == torch.float32 and outputs.isfinite().all()
    assert outputs[..., 2:4].max() > np.finfo(np.float16).max
    assert object_harm(run(graph), outputs) < 0.02


def test_int8_finds_the_same_objects_despite_uneven_channels(graph: bytes) -> None:
    quantized, count, every = to_int8(graph, IMAGES)
    assert every == 4 and 1 <= count <= 3  # the head stays in float
    kinds = [node.op_type for node in onnx.load_from_string(quantized).graph.node]
    # of each convolution in int8 what goes in and its weights; nothing that TensorRT refuses
    assert kinds.count("QuantizeLinear") == count
    assert kinds.count("DequantizeLinear") == 2 * count
    assert object_harm(run(graph), run(quantized)) <= 0.15


def test_uneven_channels_are_evened_out_without_a_change(graph: bytes) -> None:
    model = onnx.load_from_string(graph)
    _smooth(model, IMAGES)
    torch.testing.assert_close(run(model.SerializeToString()), run(graph), rtol=1e-3, atol=1e-2)
    # the tensor that goes into the depthwise convolution has one range in all channels
    (node,) = [n for n in model.graph.node if n.op_type == "Conv" and "deep" in n.output[0]]
    before = onnx.load_from_string(graph)
    (plain,) = [n for n in before.graph.node if n.op_type == "Conv" and "deep" in n.output[0]]
    assert spread(model, node.input[0]) < 1.01 < 10 < spread(before, plain.input[0])


def spread(model: onnx.ModelProto, tensor: str) -> float:
    """Return the largest range of a channel over the smallest."""
    ranges = _channel_ranges(model, [tensor], IMAGES)[tensor]
    return float(ranges.max() / ranges.min())


def test_convolutions_that_harm_stay_in_float(
    graph: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detector.precision.HARM", 0.0)
    quantized, count, every = to_int8(graph, IMAGES)
    assert (count, every) == (0, 4)
    assert object_harm(run(graph), run(quantized)) == pytest.approx(0.0, abs=1e-3)


def test_7_bit_weights_mean_nearly_the_same(graph: bytes) -> None:
    whole = to_int8(graph, IMAGES)[0]
    halved = with_7_bit_weights(whole)
    tensors = [t for t in onnx.load_from_string(halved).graph.initializer if t.data_type == 3]
    weights = [onnx.numpy_helper.to_array(t) for t in tensors if len(t.dims) == 4]
    assert weights and all(abs(w.astype(int)).max() == 64 for w in weights)
    assert object_harm(run(whole), run(halved)) < 0.05
