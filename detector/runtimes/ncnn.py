"""ncnn: `best.ncnn.param`, `.bin` and a JSON sidecar; the only file with `ncnn` and `pnnx`.

ncnn has no slices with a step, so a YOLOX's Focus stem is folded into one convolution first.
"""

import copy
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detector import onnx_graph
from detector.errors import CheckpointError
from detector.files import write_whole
from detector.models.blocks import Focus
from detector.runtimes.contract import (
    Loaded,
    Request,
    missing,
    read_sidecar,
    write_sidecar,
)

ENDING = "ncnn.param"
OPSET = 17
HALF_OPTIONS = ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage")


def require() -> Any:
    """Import ncnn. Raises: MissingPackageError."""
    try:
        import ncnn
    except ImportError as error:
        raise missing("ncnn", error, "ncnn") from error
    return ncnn


def require_converter() -> str:
    """Import ncnn too, and return the path of the program pnnx. Raises: MissingPackageError."""
    require()
    try:
        import pnnx
    except ImportError as error:
        raise missing("pnnx, which writes ncnn's files,", error, "ncnn") from error
    return str(pnnx.EXEC_PATH)


def convert(request: Request) -> list[Path]:
    """Write .param, .bin and the sidecar; a file takes one image at a time.

    Raises:
        RuntimeError: pnnx fails, or leaves out a layer that ncnn does not know.
    """
    program = require_converter()
    graph = onnx_graph.trace(folded(request.model), request.imgsz, OPSET, dynamic=False)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "net.onnx").write_bytes(graph)
        half = f"fp16={int(request.precision == 'fp16')}"
        done = subprocess.run(
            [program, "net.onnx", half], cwd=folder, capture_output=True, text=True, check=False
        )
        files = [Path(folder) / f"net.ncnn.{ending}" for ending in ("param", "bin")]
        if done.returncode or not all(file.is_file() for file in files):
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            raise RuntimeError(f"pnnx could not convert the graph: {' '.join(said)}")
        contents = [file.read_bytes() for file in files]
    param = request.file(ENDING)
    targets = [param, param.with_suffix(".bin")]
    for target, content in zip(targets, contents, strict=True):
        write_whole(target, content)
    return [*targets, write_sidecar(targets, request.metadata)]


def folded(model: nn.Module) -> nn.Module:
    """Return a copy of the network whose Focus stems are one strided convolution each.

    A k x k convolution of the four pixels of 2 x 2 blocks is a 2k x 2k convolution of the pixels
    with stride 2: weight (g, y, x) of corner g = (row, column) is weight (2y + row, 2x + column).
    """
    model = copy.deepcopy(model).eval()
    stems = [(name, stem) for name, stem in model.named_modules() if isinstance(stem, Focus)]
    for name, stem in stems:
        conv = stem.conv.conv
        filters, channels, kernel = conv.out_channels, conv.in_channels // 4, conv.kernel_size[0]
        wide = nn.Conv2d(channels, filters, 2 * kernel, 2, padding=kernel - 1, bias=False)
        with torch.no_grad():
            corners = [(row, column) for column in (0, 1) for row in (0, 1)]  # as Focus has them
            for (row, column), part in zip(corners, conv.weight.split(channels, 1), strict=True):
                wide.weight[:, :, row::2, column::2] = part
        model.set_submodule(name, nn.Sequential(wide, stem.conv.bn, stem.conv.act))
    return model


def load(path: Path, device: torch.device, threads: int | None) -> Loaded:
    """Read .param, .bin and the sidecar; it computes on the CPU in fp32, by default in one thread.

    Its OpenMP threads wait by spinning: on a busy machine two of them can take a hundred times as
    long as one.

    Raises:
        CheckpointError, MissingPackageError.
    """
    weights = path.with_suffix(".bin")
    metadata = read_sidecar(path, [weights])
    ncnn = require()
    net = ncnn.Net()
    net.opt.num_threads = threads or 1
    for name in HALF_OPTIONS:
        setattr(net.opt, f"use_{name}", False)
    if net.load_param(str(path)) or net.load_model(str(weights)):
        raise CheckpointError(f"{path}: ncnn cannot load it")

    def run(images: Tensor) -> Tensor:
        return torch.stack([_run_one(ncnn, net, path, image) for image in images])

    return Loaded(metadata, run)


def _run_one(ncnn: Any, net: Any, path: Path, image: Tensor) -> Tensor:
    """Return the decoded predictions (N, 5 + C) of an image (3, H, W)."""
    pixels = np.ascontiguousarray(image.numpy())  # ncnn keeps no reference: it must outlive the run
    extractor = net.create_extractor()
    extractor.input("in0", ncnn.Mat(pixels))
    status, output = extractor.extract("out0")
    if status:
        raise RuntimeError(f"{path}: ncnn failed with status {status}")
    return torch.from_numpy(np.array(output))
