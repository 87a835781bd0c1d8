"""Runtimes beside ONNX Runtime and TensorRT: one file each, with `convert` and `load`.

`convert(request)` writes the files of a runtime and returns their paths, the one to load first;
`load(path, device, threads)` returns it ready to run. A library is imported inside the function
that needs it.
"""

from collections.abc import Callable
from pathlib import Path

import torch

from detector.runtimes import executorch, ncnn, opencv, openvino, torchscript
from detector.runtimes.contract import Loaded, Request

Converter = Callable[[Request], list[Path]]
Loader = Callable[[Path, torch.device, int | None], Loaded]

CONVERTERS: dict[str, Converter] = {  # by the name of the format
    "openvino": openvino.convert,
    "ncnn": ncnn.convert,
    "torchscript": torchscript.convert,
    "executorch": executorch.convert,
}
REQUIRE: dict[str, Callable[[], object]] = {  # raise MissingPackageError before anything is done
    "openvino": openvino.require,
    "ncnn": ncnn.require_converter,
    "torchscript": torchscript.require,
    "executorch": executorch.require,
}
PRECISIONS: dict[str, tuple[str, ...]] = {
    "openvino": ("fp32", "fp16", "int8"),
    "ncnn": ("fp32", "fp16"),
    "torchscript": ("fp32",),
    "executorch": ("fp32",),
}
LOADERS: dict[str, Loader] = {  # by the suffix of the file to load
    ".xml": openvino.load,
    ".param": ncnn.load,
    ".torchscript": torchscript.load,
    ".pte": executorch.load,
}
ONNX_LOADERS: dict[str, Loader] = {"opencv": opencv.load}  # others that read .onnx, by their name

__all__ = ["CONVERTERS", "LOADERS", "ONNX_LOADERS", "PRECISIONS", "REQUIRE", "Loaded", "Request"]
