"""The ONNX graph of a network: plain pixels in, decoded predictions out; the only file with `onnx`.

Shapes: B batch, H and W input pixels, N predictions of one image, C classes.
"""

import json
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detector import graph_nms
from detector.decode import decode
from detector.errors import CheckpointError, ConfigError, MissingPackageError

INPUT = "images"
OUTPUT = "output"
OPSETS = range(11, 21)  # 11: first with the Resize that upsampling needs; 20: last of the exporter
INSTALL = "pip install 'evolve-detector[export]'"


class DecodedModel(nn.Module):
    """A network and its decoding as one module: images (B, 3, H, W) -> (B, N, 5 + C)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return decode(self.model, self.model(images))


class SelectedModel(nn.Module):
    """A network that selects its detections itself: one image -> rows (1, D, 6), see graph_nms."""

    def __init__(self, model: nn.Module, rows: int) -> None:
        super().__init__()
        self.model, self.rows = model, rows

    def forward(self, images: Tensor) -> Tensor:
        (found,) = self.model(images)
        labels = found["labels"][:, None].float() - 1  # 0 is the background
        table = torch.cat((found["boxes"].float(), found["scores"][:, None].float(), labels), dim=1)
        table = table[found["labels"] > 0]
        unused = torch.zeros(self.rows, 6)
        unused[:, 5] = -1
        return torch.cat((table, unused))[None, : self.rows]


def require_packages() -> None:
    """Import what writing an ONNX file needs, so that nothing starts that cannot end.

    Raises:
        MissingPackageError: onnx or onnxslim cannot be imported.
    """
    try:
        import onnx  # noqa: F401
        import onnxslim  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            f"ONNX export needs onnx and onnxslim ({error}): {INSTALL}"
        ) from error


def check_opset(opset: int) -> None:
    """Raise ConfigError when the exporter cannot write this version of the operator set."""
    if opset not in OPSETS:
        raise ConfigError(f"opset={opset} is not available; allowed: {OPSETS[0]} to {OPSETS[-1]}")


def trace(model: nn.Module, imgsz: int, opset: int, dynamic: bool) -> bytes:
    """Return the slimmed ONNX graph of `model` with its decoding, for square images of `imgsz`.

    `dynamic` leaves the batch open; without it the graph takes one image at a time.
    The TorchScript exporter is used: with torch 2.14 it takes 0.4 s where the dynamo exporter takes
    7 to 11 s, and after slimming both graphs have the same nodes. Its notes about deprecation and
    traced constants are kept from the user: the caller compares the outputs.
    """
    example = torch.zeros(2 if dynamic else 1, 3, imgsz, imgsz)
    return _traced(DecodedModel(model).eval(), example, OUTPUT, opset, dynamic)


def trace_selected(model: nn.Module, imgsz: int, opset: int, rows: int) -> bytes:
    """Return the ONNX graph of a network that selects its detections itself, for one image.

    The thresholds are those that the network has now. It is traced on noise: tracing needs some
    candidates for detections. Not slimmed: it takes half a minute, for nothing that ONNX Runtime
    does not do itself.
    """
    random = torch.Generator().manual_seed(0)
    example = torch.rand(1, 3, imgsz, imgsz, generator=random) * 255
    wrapper = SelectedModel(model, rows).eval()
    return _traced(wrapper, example, graph_nms.OUTPUT, opset, dynamic=False, slim=False)


def _traced(
    wrapper: nn.Module, example: Tensor, output: str, opset: int, dynamic: bool, slim: bool = True
) -> bytes:
    import onnx
    import onnxslim

    open_batch = {INPUT: {0: "batch"}, output: {0: "batch"}} if dynamic else None
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        path = Path(folder) / "traced.onnx"
        torch.onnx.export(
            wrapper,
            (example,),
            str(path),
            dynamo=False,
            opset_version=opset,
            input_names=[INPUT],
            output_names=[output],
            dynamic_axes=open_batch,
        )
        graph = onnx.load(str(path))
        graph = onnxslim.slim(graph) if slim else graph
    return bytes(graph.SerializeToString())


def with_nms(graph: bytes, rule: graph_nms.GraphNms) -> bytes:
    """Return a graph that ends in `detections` (B, D, 6) instead of `output` (B, N, 5 + C).

    NMS is in float32, whatever the precision of the network.
    """
    import onnx
    import onnx.parser

    model = onnx.load_from_string(graph)
    (decoded,) = model.graph.output
    _, predictions, columns = (dim.dim_value for dim in decoded.type.tensor_type.shape.dim)
    (opset,) = (one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))
    text = graph_nms.text(rule, predictions, columns - 5, model.ir_version, opset)
    added = onnx.parser.parse_model(text).graph
    model.graph.node.extend(added.node)
    model.graph.initializer.extend(added.initializer)
    model.graph.input.extend(added.input[1:])  # the first is `output`, which is there
    model.graph.output[0].CopyFrom(added.output[0])
    return bytes(model.SerializeToString())


def with_metadata(graph: bytes, metadata: Mapping[str, Any]) -> bytes:
    """Return `graph` with `metadata` inside: strings as they are, everything else as JSON.

    The result has passed the ONNX checker, shape inference included.
    """
    import onnx

    model = onnx.load_from_string(graph)
    onnx.helper.set_model_props(
        model,
        {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in metadata.items()
        },
    )
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def read_facts(path: Path) -> tuple[dict[str, Any], int | None]:
    """Return the metadata of an ONNX file of ours and its batch size (None: open).

    Raises:
        CheckpointError: it cannot be read.
        MissingPackageError: onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingPackageError(
            f"reading an ONNX file needs onnx ({error}): {INSTALL}"
        ) from error
    try:
        model = onnx.load(str(path))
        batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    except Exception as error:  # protobuf's own errors share no base below Exception
        raise CheckpointError(f"{path}: not a readable ONNX file") from error
    metadata = {item.key: plain(item.value) for item in model.metadata_props}
    return metadata, batch.dim_value or None


def plain(text: str) -> Any:
    """Return the value that `with_metadata` wrote: JSON, or else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
