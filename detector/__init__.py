"""A YOLO trainer: a function from a configuration to a result.

Functions that share a module's name are imported from it, so that `python -m` stays clean:
`from detector.train import train`, likewise `evaluate`, `predict`, `export`.
"""

from detector.checkpoint import load_weights
from detector.config import Hyp, TrainConfig
from detector.decode import decode
from detector.losses import build_loss
from detector.models import build_model
from detector.result import Result

__all__ = [
    "Hyp",
    "Result",
    "TrainConfig",
    "build_loss",
    "build_model",
    "decode",
    "load_weights",
]
