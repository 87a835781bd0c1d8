"""ExecuTorch: `best.pte` with a JSON sidecar; the only file with `executorch`.

The program is for XNNPACK, the processor's own kernels, and takes one image at a time.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detector.files import write_whole
from detector.onnx_graph import DecodedModel
from detector.runtimes.contract import (
    Loaded,
    Request,
    missing,
    read_sidecar,
    unreadable,
    write_sidecar,
)

ENDING = "pte"


def require() -> Any:
    """Import ExecuTorch's runtime. Raises: MissingPackageError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from executorch import runtime
    except (ImportError, OSError) as error:  # OSError: made for another version of torch
        raise missing("ExecuTorch", error, "executorch") from error
    return runtime


def convert(request: Request) -> list[Path]:
    """Write the program and its sidecar; this takes a minute or more."""
    require()
    example = torch.zeros(1, 3, request.imgsz, request.imgsz)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        program = torch.export.export(DecodedModel(request.model).eval(), (example,))
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        content = lowered.to_executorch().buffer
    path = request.file(ENDING)
    write_whole(path, content)
    return [path, write_sidecar([path], request.metadata)]


def load(path: Path, device: torch.device, threads: int | None) -> Loaded:
    """Read a .pte with its sidecar; it computes on the CPU, and has its own number of threads.

    Raises:
        CheckpointError, MissingPackageError.
    """
    metadata = read_sidecar(path)
    runtime = require()
    try:
        program = runtime.Runtime.get().load_program(path)
        method = program.load_method("forward")
    except RuntimeError as error:
        raise unreadable(path, "ExecuTorch program", error) from error

    def run(images: Tensor) -> Tensor:
        (decoded,) = method.execute([images.contiguous()])
        return decoded.clone()  # the next run writes over it

    return Loaded(metadata, run, max_batch=1)
