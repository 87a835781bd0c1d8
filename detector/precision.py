"""An fp32 ONNX graph in fp16 or int8: the precision that every runtime then finds in the graph.

Decoding stays in fp32: a box at 1000 px has steps of 0.5 px in fp16, and of more in int8.
"""

import copy
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from detector.backends import onnxruntime
from detector.parity import object_harm

PRECISIONS = ("fp32", "fp16", "int8")
CALIBRATION_IMAGES = 64
SMOOTHED_IMAGES = 16  # of these: ranges of channels
JUDGED_IMAGES = 8  # of these: what int8 finds is compared with fp32 on them
HARM = 0.15  # allowed by `parity.object_harm`: 0.000 of mAP on BCCD; 0.2 costs 0.02
WEIGHTED = ("Conv", "Gemm", "MatMul", "ConvTranspose")

log = logging.getLogger(__name__)


def to_fp16(graph: bytes) -> bytes:
    """Return the graph with weights and activations in fp16; inputs and outputs stay float32."""
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(graph))
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    kinds |= {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    singles = {name for name in weights if weights[name].data_type == onnx.TensorProto.FLOAT}
    floats = {name for name, kind in kinds.items() if kind == onnx.TensorProto.FLOAT} - set(weights)
    decoding = set(decoding_nodes(model))
    made = {value.name for value in model.graph.input}  # float32, outside of the network
    nodes, casts, halves = [], set[str](), dict[str, Any]()
    for index, node in enumerate(model.graph.node):
        inside = index not in decoding
        for place, name in enumerate(node.input):
            scales = node.op_type == "Resize" and place > 0  # float32 by definition
            if name in singles and inside and not scales:
                halves[name] = _half(weights[name])
                node.input[place] = halves[name].name
            elif name in floats and inside == (name in made):
                cast = f"{name}_{'fp16' if inside else 'fp32'}"
                if cast not in casts:
                    to = onnx.TensorProto.FLOAT16 if inside else onnx.TensorProto.FLOAT
                    nodes.append(onnx.helper.make_node("Cast", [name], [cast], cast, to=to))
                    casts.add(cast)
                node.input[place] = cast
        if not inside:
            made.update(node.output)
        nodes.append(node)
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(halves.values())
    _drop_unused(model)
    return bytes(model.SerializeToString())


def _drop_unused(model: Any) -> None:
    """Remove the weights that no node takes any more."""
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _half(tensor: Any) -> Any:
    """Return a float32 tensor of weights in fp16, under another name."""
    from onnx import numpy_helper

    limit = np.finfo(np.float16).max
    values = numpy_helper.to_array(tensor).clip(-limit, limit).astype(np.float16)
    return numpy_helper.from_array(values, f"{tensor.name}_fp16")


def to_int8(graph: bytes, images: Tensor) -> tuple[bytes, int, int]:
    """Return the graph with convolutions in int8, how many are, and how many there are.

    `images` (K, 3, H, W) calibrate it. Symmetric, weights by channel, biases in float: what
    TensorRT reads too. The heads' last convolutions stay in float, and so do as few others as it
    takes, the most harmful first, until what the network finds on the images is nearly the same.
    Source: ONNX Runtime's guide to quantization, QDQ format; harm of single layers as in
    arXiv 2004.09602, section 5 (partial quantization).
    """
    import onnx

    model = onnx.load_from_string(_prepared(graph))
    _smooth(model, images[:SMOOTHED_IMAGES])
    model = onnx.shape_inference.infer_shapes(model)
    heads = set(_named(model, last_convolutions(model)))
    every = [node.name for node in model.graph.node if node.op_type == "Conv"]
    ranges = _calibrate(model, images)
    choices = [name for name in every if name not in heads]
    trial = _Switched(model, _quantized(model, choices, ranges), choices, images[:JUDGED_IMAGES])
    harm = {name: trial.harm([name]) for name in tqdm(choices, "int8 layers", leave=False)}
    ordered = sorted(harm, key=lambda name: harm[name])  # the harmless first
    low, high = 0, len(ordered)  # `low` in int8 are good enough, `high` + 1 are not known to be
    while low < high:
        middle = (low + high + 1) // 2
        good = trial.harm(ordered[:middle]) <= HARM
        low, high = (middle, high) if good else (low, middle - 1)
    log.info("int8: %d of %d convolutions", low, len(every))
    chosen = _quantized(model, ordered[:low], ranges) if low else model
    return bytes(chosen.SerializeToString()), low, len(every)


def _quantized(model: Any, names: Sequence[str], ranges: Any) -> Any:
    """Return a copy of the model with the convolutions `names` in int8."""
    from onnxruntime import quantization
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.transformers.onnx_model import OnnxModel

    quantizer = QDQQuantizer(
        copy.deepcopy(model),
        per_channel=True,
        reduce_range=False,
        weight_qType=quantization.QuantType.QInt8,
        activation_qType=quantization.QuantType.QInt8,
        tensors_range=ranges,
        nodes_to_quantize=list(names),
        nodes_to_exclude=[],
        op_types_to_quantize=["Conv"],
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,  # TensorRT takes no int32 bias
            "OpTypesToExcludeOutputQuantization": ["Conv"],
        },
    )
    with _quiet():
        quantizer.quantize_model()
    done = quantizer.model.model
    OnnxModel.graph_topological_sort(done.graph)
    return done


def with_7_bit_weights(graph: bytes) -> bytes:
    """Return an int8 graph whose weights use 7 of the 8 bits: -64 to 64, at twice the scale.

    Processors without VNNI add two products of 8 bits in 16, which full weights overflow.
    Source: ONNX Runtime's guide to quantization, `reduce_range`.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load_from_string(graph)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in tensors:
            weights, scales = (tensors[name] for name in node.input[:2])
            halved = np.round(numpy_helper.to_array(weights) / 2).astype(np.int8)
            doubled = numpy_helper.to_array(scales) * np.float32(2)
            weights.CopyFrom(numpy_helper.from_array(halved, weights.name))
            scales.CopyFrom(numpy_helper.from_array(doubled, scales.name))
    return bytes(model.SerializeToString())


class _Switched:
    """A graph whose convolutions can be put into int8 one by one, without building it again.

    What a convolution takes is x + s (q(x) - x) with a graph input s of 0 or 1; so its weights.
    """

    def __init__(self, model: Any, quantized: Any, names: Sequence[str], images: Tensor) -> None:
        from onnx import TensorProto, helper

        plain = {node.name: node.input[:2] for node in model.graph.node if node.op_type == "Conv"}
        both = copy.deepcopy(quantized)
        held = {tensor.name for tensor in both.graph.initializer}
        both.graph.initializer.extend(t for t in model.graph.initializer if t.name not in held)
        nodes = []
        for node in both.graph.node:
            if node.name in names:
                switch = f"{node.name}_switch"
                both.graph.input.append(
                    helper.make_tensor_value_info(switch, TensorProto.FLOAT, [])
                )
                for place, source in enumerate(plain[node.name]):
                    ends = [f"{switch}_{place}_{step}" for step in ("gap", "part", "sum")]
                    nodes += [
                        helper.make_node("Sub", [node.input[place], source], [ends[0]]),
                        helper.make_node("Mul", [ends[0], switch], [ends[1]]),
                        helper.make_node("Add", [source, ends[1]], [ends[2]]),
                    ]
                    node.input[place] = ends[2]
            nodes.append(node)
        del both.graph.node[:]
        both.graph.node.extend(nodes)
        self._session, self._names = _session(both.SerializeToString()), list(names)
        self._images, self._source = images, model.graph.input[0].name
        self._truth = self._outputs([])

    def harm(self, names: Sequence[str]) -> float:
        """Return how much worse the objects are found with the convolutions `names` in int8."""
        return object_harm(self._truth, self._outputs(names))

    def _outputs(self, names: Sequence[str]) -> Tensor:
        """Return what the graph answers to its images: (K, N, 5 + C)."""
        switches = {f"{name}_switch": np.array(name in names, np.float32) for name in self._names}
        feeds = ({self._source: image[None].numpy(), **switches} for image in self._images)
        return torch.from_numpy(np.concatenate([self._session.run(None, f)[0] for f in feeds]))


def _prepared(graph: bytes) -> bytes:
    """Return the graph with the shapes of all tensors, as the quantizer wants it."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, target = Path(folder) / "source.onnx", Path(folder) / "prepared.onnx"
        source.write_bytes(graph)
        quant_pre_process(str(source), str(target), skip_symbolic_shape=True)
        return target.read_bytes()


def _smooth(model: Any, images: Tensor) -> None:
    """Divide the channels that a convolution takes by their ranges, and multiply its weights.

    Channels of one tensor differ in range by a hundred after SiLU, and in int8 they share one
    scale. Source: SmoothQuant (arXiv 2211.10438), alpha = 0.5; for depthwise convolutions 1.0,
    because their weights have a scale for each channel.
    """
    from onnx import helper, numpy_helper

    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    first = {value.name for value in model.graph.input}
    chosen = [
        node
        for node in model.graph.node
        if node.op_type == "Conv" and node.input[1] in weights and node.input[0] not in first
    ]
    ranges = _channel_ranges(model, list(dict.fromkeys(node.input[0] for node in chosen)), images)
    added: dict[str, Any] = {}  # by the output of the node that divides
    for node in chosen:
        values = numpy_helper.to_array(weights[node.input[1]])  # (out, in / groups, k, k)
        channels = np.maximum(ranges[node.input[0]], 1e-6)
        depthwise = values.shape[1] == 1 and values.shape[0] == len(channels)
        if values.shape[1] != len(channels) and not depthwise:
            continue  # other groups
        along = np.abs(values).max(axis=(1, 2, 3) if depthwise else (0, 2, 3))
        scale = channels if depthwise else np.sqrt(channels / np.maximum(along, 1e-6))
        scale = (scale / np.exp(np.log(scale).mean())).astype(np.float32)
        shape = (-1, 1, 1, 1) if depthwise else (1, -1, 1, 1)
        name = f"{node.output[0]}_smooth"
        own = numpy_helper.from_array(values * scale.reshape(shape), f"{name}_weight")
        by = numpy_helper.from_array(1 / scale.reshape(1, -1, 1, 1), f"{name}_divisor")
        model.graph.initializer.extend([own, by])
        added[node.name or node.output[0]] = helper.make_node(
            "Mul", [node.input[0], by.name], [name], name
        )
        node.input[0], node.input[1] = name, own.name
    nodes = []
    for node in model.graph.node:
        divide = added.get(node.name or node.output[0]) if node.op_type == "Conv" else None
        nodes += [divide, node] if divide is not None else [node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    _drop_unused(model)


def _channel_ranges(model: Any, tensors: Sequence[str], images: Tensor) -> dict[str, np.ndarray]:
    """Return the largest magnitude in each channel of `tensors`, over all images."""
    from onnx import TensorProto, helper

    probe = copy.deepcopy(model)
    for name in tensors:
        probe.graph.node.append(helper.make_node("Abs", [name], [f"{name}_abs"]))
        probe.graph.node.append(helper.make_node("GlobalMaxPool", [f"{name}_abs"], [f"{name}_max"]))
        value = helper.make_tensor_value_info(f"{name}_max", TensorProto.FLOAT, None)
        probe.graph.output.append(value)
    session = _session(probe.SerializeToString())
    source, asked = session.get_inputs()[0].name, [f"{name}_max" for name in tensors]
    found = [session.run(asked, {source: image[None].numpy()}) for image in images]
    largest = [np.max([one[i].ravel() for one in found], axis=0) for i in range(len(tensors))]
    return dict(zip(tensors, largest, strict=True))


def _session(graph: bytes) -> Any:
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _calibrate(model: Any, images: Tensor) -> Any:
    """Return the range of each tensor that a convolution takes, over all images."""
    import onnx
    from onnxruntime.quantization import calibrate

    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "model.onnx"
        onnx.save(model, str(path))
        calibrator = calibrate.create_calibrator(
            path, ["Conv"], str(Path(folder) / "augmented.onnx"), extra_options={"symmetric": True}
        )
        calibrator.collect_data(_Calibration(model.graph.input[0].name, images))
        return calibrator.compute_data()


def decoding_nodes(model: Any) -> list[int]:
    """Return the indices of the nodes that come after all convolutions."""
    weighted = _leads_to_weights(model)
    return [
        index
        for index, node in enumerate(model.graph.node)
        if not weighted[index] and node.op_type not in WEIGHTED
    ]


def last_convolutions(model: Any) -> list[int]:
    """Return the indices of the convolutions that no other one follows: the heads' outputs."""
    weighted = _leads_to_weights(model)
    return [
        index
        for index, node in enumerate(model.graph.node)
        if node.op_type in WEIGHTED and not weighted[index]
    ]


def _leads_to_weights(model: Any) -> list[bool]:
    """Return for each node whether a node with weights comes after it; nodes are in order."""
    needed: set[str] = set()  # tensors that a node with weights needs
    found = []
    for node in reversed(model.graph.node):
        leads = any(name in needed for name in node.output)
        found.append(leads)
        if leads or node.op_type in WEIGHTED:
            needed.update(node.input)
    return found[::-1]


def _named(model: Any, indices: list[int]) -> list[str]:
    """Return the names of nodes, and give names to those that have none or share one."""
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{index}"
    return [model.graph.node[index].name for index in indices]


class _Calibration:
    """ONNX Runtime's reader of calibration data: one image after the other."""

    def __init__(self, name: str, images: Tensor) -> None:
        self._feeds: Iterator[dict[str, np.ndarray]] = (
            {name: image[None].contiguous().numpy()} for image in images
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next image, None after the last."""
        return next(self._feeds, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the notes of ONNX Runtime's quantizer off the terminal."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
