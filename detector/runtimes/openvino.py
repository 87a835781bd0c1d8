"""OpenVINO: `best.openvino.xml` and `.bin`; the only file with `openvino`.

By itself OpenVINO computes in bf16 or fp16 where the processor is fast at it; here a file computes
in what it says: fp32 means fp32, and fp16 is about the stored weights.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detector.errors import CheckpointError
from detector.runtimes.contract import Loaded, Request, missing, unreadable

ENDING = "openvino.xml"
RT_INFO = ["evolve_detector", "metadata"]  # where the file says what it is


def require() -> Any:
    """Import OpenVINO. Raises: MissingPackageError."""
    try:
        import openvino
    except ImportError as error:
        raise missing("OpenVINO", error, "openvino") from error
    return openvino


def convert(request: Request) -> list[Path]:
    """Write the .xml and the .bin; int8 is what the request's int8 graph has in int8.

    Source of that choice: measured, see docs/export.md; nncf costs a small network more accuracy.
    """
    openvino = require()
    model = openvino.Core().read_model(request.int8_graph or request.graph)
    model.set_rt_info(json.dumps(dict(request.metadata)), RT_INFO)
    path = request.file(ENDING)
    openvino.save_model(model, str(path), compress_to_fp16=request.precision == "fp16")
    return [path, path.with_suffix(".bin")]


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
