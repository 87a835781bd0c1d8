"""OpenCV's DNN module: reads the same `.onnx` files, where nothing but OpenCV is installed."""

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from detector import onnx_graph
from detector.errors import CheckpointError
from detector.runtimes.contract import Loaded, unreadable


def load(path: Path, device: torch.device, threads: int | None) -> Loaded:
    """Read an ONNX file of `detector.export`; it computes on the CPU.

    OpenCV has one number of threads for all it does; it is set during a run only.

    Raises:
        CheckpointError: OpenCV does not take it.
        MissingPackageError: the file's metadata cannot be read without onnx.
    """
    metadata, batch = onnx_graph.read_facts(path)
    if "nms" in metadata:
        raise CheckpointError(f"{path}: has NMS in its graph, which OpenCV does not run")
    try:
        net = cv2.dnn.readNetFromONNX(np.frombuffer(path.read_bytes(), np.uint8))
    except cv2.error as error:
        raise unreadable(path, "ONNX file for OpenCV", error) from error
    threads = threads or torch.get_num_threads()

    def run(images: Tensor) -> Tensor:
        before = cv2.getNumThreads()
        if before != threads:
            cv2.setNumThreads(threads)
        try:
            net.setInput(images.contiguous().numpy())
            return torch.from_numpy(net.forward().copy())
        except cv2.error as error:
            raise unreadable(path, "ONNX file for OpenCV", error) from error
        finally:
            if before != threads:
                cv2.setNumThreads(before)

    return Loaded(metadata, run, batch)
