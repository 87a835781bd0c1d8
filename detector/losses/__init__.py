"""Raw maps and targets to named loss parts, one file per family."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor, nn

from detector.config import Hyp
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


class DenseLoss(Protocol):
    """The loss of a dense family; targets are {"boxes" (n, 4) xyxy pixels, "labels" (n,)}."""

    use_l1: bool  # the no-augmentation tail has begun; families without an L1 part ignore it

    def sums(
        self, raw: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return gain-weighted sums of the parts, and the count to divide them by; 0-dim."""

    def __call__(
        self, raw: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return the parts divided by max(count, 1), and their sum as "total"."""


# By the `family` of the network.
LOSSES: dict[str, Callable[[nn.Module, Hyp], DenseLoss]] = {
    "yolox": lambda network, hyp: YoloxLoss(network.strides, hyp),
    "evo": lambda network, hyp: EvoLoss(network.strides, hyp),
    "yolov3": Yolov3Loss,
}


def build_loss(model: nn.Module, hyp: Hyp) -> DenseLoss:
    """Return the loss that belongs to a dense network."""
    return LOSSES[model.family](model, hyp)
