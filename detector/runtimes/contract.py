"""What every runtime is asked for and gives back, and the sidecar of files that hold no text.

Shapes: B batch, N predictions of one image, C classes.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detector.errors import CheckpointError, MissingPackageError
from detector.files import write_whole

CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Request:
    """A network to convert, in the forms that the runtimes read."""

    model: nn.Module  # dense, eval mode, on the CPU
    graph: bytes  # its fp32 ONNX graph with decoding, from `onnx_graph.trace`
    imgsz: int  # side of the square input, pixels
    dynamic: bool  # leave the batch open where the runtime can
    target: Path  # folder and stem of the files: `runs/best` -> `runs/best.torchscript`
    metadata: Mapping[str, Any]  # what the files say about themselves
    precision: str = "fp32"  # or fp16, int8
    int8_graph: bytes | None = None  # for int8: the graph with 7-bit weights, QDQ

    def file(self, ending: str) -> Path:
        """Return the path of a file of the result."""
        return self.target.with_name(f"{self.target.name}.{ending}")


@dataclass(frozen=True, eq=False)
class Loaded:
    """A file that is ready to run."""

    metadata: Mapping[str, Any]
    run: Callable[[Tensor], Tensor]  # (B, 3, H, W) float32 on `device` -> (B, N, 5 + C) float32
    max_batch: int | None = None  # most images at once; None: no limit
    device: torch.device = CPU


def missing(what: str, error: BaseException, extra: str) -> MissingPackageError:
    """Return the error for a runtime that is not installed; `extra` is its name in the package."""
    return MissingPackageError(
        f"{what} cannot be imported ({one_line(error)}): pip install 'evolve-detector[{extra}]'"
    )


def unreadable(path: Path, what: str, error: BaseException) -> CheckpointError:
    """Return the error for a file that a runtime refuses."""
    return CheckpointError(f"{path}: not a readable {what} ({one_line(error)})")


def one_line(error: BaseException) -> str:
    """Return an error's text without line breaks, at most 300 characters of it."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."


# ---- sidecar


def sidecar_path(path: Path) -> Path:
    """Return the path of the sidecar: `best.ncnn.param` -> `best.ncnn.param.json`."""
    return path.with_name(f"{path.name}.json")


def write_sidecar(files: Sequence[Path], metadata: Mapping[str, Any]) -> Path:
    """Write metadata and the hashes of `files` beside the first of them; return its path."""
    content = {**metadata, "sha256": {file.name: _digest(file) for file in files}}
    path = sidecar_path(files[0])
    write_whole(path, json.dumps(content, indent=2).encode())
    return path


def read_sidecar(path: Path, others: Sequence[Path] = ()) -> dict[str, Any]:
    """Return the metadata beside `path`, whose files (`others` too) are those it describes.

    Raises:
        CheckpointError: the sidecar or a file is missing, unreadable or another one.
    """
    sidecar = sidecar_path(path)
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
        digests = dict(content["sha256"])
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: there is no {sidecar.name} beside it; python -m detector.export writes both"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{sidecar}: not a readable sidecar ({one_line(error)})") from error
    for file in (path, *others):
        if not file.is_file():
            raise CheckpointError(f"{file}: no such file; {path.name} needs it")
        if digests.get(file.name) != _digest(file):
            raise CheckpointError(
                f"{file}: not the file that {sidecar.name} describes (SHA-256 differs); "
                "export the checkpoint again"
            )
    return dict(content)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
