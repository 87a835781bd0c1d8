"""TorchScript: `best.torchscript`, a traced network with its decoding that needs only libtorch."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from detector.onnx_graph import DecodedModel
from detector.runtimes.contract import Loaded, Request, unreadable

ENDING = "torchscript"
EXTRA_FILE = "metadata.json"  # inside the archive


def require() -> None:
    """Nothing is needed but torch."""


def convert(request: Request) -> list[Path]:
    """Trace, freeze and write the network; any batch size works."""
    path = request.file(ENDING)
    example = torch.zeros(2, 3, request.imgsz, request.imgsz)
    with _quiet(), torch.no_grad():
        traced = torch.jit.trace(DecodedModel(request.model).eval(), example, check_trace=False)
        frozen = torch.jit.freeze(traced.eval())
        frozen.save(str(path), _extra_files={EXTRA_FILE: json.dumps(dict(request.metadata))})
    return [path]


def load(path: Path, device: torch.device, threads: int | None) -> Loaded:
    """Read the file; it computes on the CPU, where its grids were traced, by torch's threads.

    Raises:
        CheckpointError: it is no TorchScript file of ours.
    """
    extra = {EXTRA_FILE: ""}
    try:
        with _quiet():
            module = torch.jit.load(str(path), map_location="cpu", _extra_files=extra)
        metadata = json.loads(extra[EXTRA_FILE])
    except (RuntimeError, ValueError) as error:
        raise unreadable(path, "TorchScript file of detector.export", error) from error

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return module(images)

    return Loaded(metadata, run)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's notes about deprecation and traced constants from the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
