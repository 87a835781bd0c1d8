"""What an exported file says about itself: what to feed it, what comes out, where it is from."""

import hashlib
import importlib.metadata
import math
from typing import Any

import torch

from detector.checkpoint import LoadedModel

LETTERBOX = {
    "mode": "top-left",
    "scale": "r = min(imgsz / height, imgsz / width)",
    "size": "(max(1, round(height * r)), max(1, round(width * r)))",
    "interpolation": "bilinear (OpenCV INTER_LINEAR)",
    "pad": 114,
    "boxes": "pixels of the original image = pixels of the input / r",
}
OUTPUT_LAYOUT = {
    "shape": "(B, N, 5 + C)",
    "columns": ["cx", "cy", "w", "h", "objectness", "class probabilities, in the order of names"],
    "boxes": "centre and size in pixels of the input",
    "score": "objectness * class probability",
    "nms": "not in the graph",
}


def describe(loaded: LoadedModel, imgsz: int, precision: str) -> dict[str, Any]:
    """Return what a user of the exported file has to know, and where the file comes from."""
    with loaded.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "names": list(loaded.names),
        "imgsz": imgsz,
        "stride": list(getattr(loaded.model, "strides", ())),
        "letterbox": LETTERBOX,
        "precision": precision,
        "input_convention": str(loaded.model.input_convention),
        "output_layout": OUTPUT_LAYOUT,
        "model": str(loaded.model.name),
        "metrics": _finite(loaded.meta.get("metrics") or {}),
        "checkpoint": loaded.path.name,
        "checkpoint_sha256": digest,
        "torch_version": str(torch.__version__),
        "evolve_detector_version": _version(),
    }


def _finite(metrics: dict[str, Any]) -> dict[str, float]:
    """Return the metrics that JSON has a spelling for: the finite numbers."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _version() -> str:
    try:
        return importlib.metadata.version("evolve-detector")
    except importlib.metadata.PackageNotFoundError:  # run from a folder, not installed
        return "not installed"
