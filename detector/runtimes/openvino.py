"""OpenVINO: `best.openvino.xml` and `.bin`; the only file with `openvino` and `nncf`.

By itself OpenVINO computes in bf16 or fp16 where the processor is fast at it; here a file computes
in what it says: fp32 means fp32, and fp16 is about the stored weights.
"""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detector.errors import CheckpointError
from detector.runtimes.contract import Loaded, Request, missing, unreadable

ENDING = "openvino.xml"
RT_INFO = ["evolve_detector", "metadata"]  # where the file says what it is
WEIGHTED = ("Convolution", "GroupConvolution", "MatMul")


def require() -> Any:
    """Import OpenVINO. Raises: MissingPackageError."""
    try:
        import openvino
    except ImportError as error:
        raise missing("OpenVINO", error, "openvino") from error
    return openvino


def _require_nncf() -> Any:
    try:
        import nncf
    except ImportError as error:
        raise missing("nncf, which int8 for OpenVINO needs,", error, "openvino") from error
    nncf.set_log_level(logging.ERROR)
    return nncf


def convert(request: Request) -> list[Path]:
    """Write the .xml and the .bin; int8 needs `nncf` and calibration images."""
    openvino = require()
    model = openvino.Core().read_model(request.graph)
    if request.precision == "int8":
        model = _quantized(model, request)
    model.set_rt_info(json.dumps(dict(request.metadata)), RT_INFO)
    path = request.file(ENDING)
    openvino.save_model(model, str(path), compress_to_fp16=request.precision == "fp16")
    return [path, path.with_suffix(".bin")]


def _quantized(model: Any, request: Request) -> Any:
    """Return the model in int8, but for its last convolutions and the decoding after them."""
    nncf = _require_nncf()
    assert request.calibration is not None
    images = [image[None].contiguous().numpy() for image in request.calibration]
    return nncf.quantize(
        model,
        nncf.Dataset(images),
        preset=nncf.QuantizationPreset.MIXED,  # SiLU is not symmetric
        subset_size=len(images),
        ignored_scope=nncf.IgnoredScope(names=_last_layers(model)),
    )


def _last_layers(model: Any) -> list[str]:
    """Return the names of the operations that no convolution follows."""
    leading: set[str] = set()  # operations that a convolution needs
    last = []
    for node in reversed(model.get_ordered_ops()):
        name = node.get_friendly_name()
        if name in leading or node.get_type_name() in WEIGHTED:
            sources = (source.get_source_output().get_node() for source in node.inputs())
            leading.update(source.get_friendly_name() for source in sources)
        if name not in leading and node.get_type_name() not in ("Constant", "Result"):
            last.append(name)
    return last


def load(path: Path, device: torch.device, threads: int | None) -> Loaded:
    """Read a .xml with its .bin; it computes on the CPU.

    Raises:
        CheckpointError, MissingPackageError.
    """
    openvino = require()
    if not path.with_suffix(".bin").is_file():
        raise CheckpointError(f"{path.with_suffix('.bin')}: no such file; {path.name} needs it")
    core = openvino.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
    }
    try:
        model = core.read_model(str(path))
        metadata = json.loads(model.get_rt_info(RT_INFO).astype(str))
        compiled = core.compile_model(model, "CPU", settings)
    except (RuntimeError, ValueError) as error:
        raise unreadable(path, "OpenVINO file of detector.export", error) from error
    batch = model.inputs[0].get_partial_shape()[0]

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(compiled(images.contiguous().numpy())[0].copy())

    return Loaded(metadata, run, None if batch.is_dynamic else batch.get_length())
