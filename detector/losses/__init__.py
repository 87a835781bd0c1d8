"""Raw maps and targets to named loss parts, one file per family."""

from collections.abc import Callable

from torch import nn

from detector.config import Hyp
from detector.losses.dense import DenseLoss
from detector.losses.evo import EvoLoss
from detector.losses.yolov3 import Yolov3Loss
from detector.losses.yolox import YoloxLoss, encode_raw

__all__ = [
    "LOSSES",
    "DenseLoss",
    "EvoLoss",
    "Yolov3Loss",
    "YoloxLoss",
    "build_loss",
    "encode_raw",
]


# By the `family` of the network.
LOSSES: dict[str, Callable[[nn.Module, Hyp], DenseLoss]] = {
    "yolox": lambda network, hyp: YoloxLoss(network.strides, hyp),
    "evo": lambda network, hyp: EvoLoss(network.strides, hyp),
    "yolov3": Yolov3Loss,
}


def build_loss(model: nn.Module, hyp: Hyp) -> DenseLoss:
    """Return the loss that belongs to a dense network."""
    return LOSSES[model.family](model, hyp)
