"""The family contract: all that training and evaluation ask of a detector.

    losses(images, targets) -> (named sums, count)     detect(images, conf, iou, max_det)

A dense family (YOLOX, Evo) builds both from raw maps, loss, decode and NMS; torchvision's detectors
bring their own. A network says by its attribute `family` how it is trained and asked.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from detector.boxes import Detections
from detector.config import Hyp
from detector.decode import decode, select
from detector.losses import build_loss
from detector.models.channels import in_convention
from detector.torchvision_family import TorchvisionFamily


class Family(Protocol):
    """A detector that can be trained and asked. Images are (B, 3, H, W) float32, 0 to 255, BGR."""

    network: nn.Module

    def losses(
        self, images: Tensor, targets: list[dict[str, Tensor]]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return loss parts as sums with their gains and "total", and the count to divide by."""

    def detect(self, images: Tensor, conf: float, iou: float, max_det: int) -> list[Detections]:
        """Return the detections of each image, boxes in input pixels, best score first."""

    def enter_tail(self) -> None:
        """Switch to the losses of the no-augmentation tail."""


class DenseFamily:
    """A network whose forward returns raw maps, with the loss and decoding of its kind."""

    def __init__(self, network: nn.Module, hyp: Hyp) -> None:
        self.network = network
        self.criterion = build_loss(network, hyp)

    def losses(
        self, images: Tensor, targets: list[dict[str, Tensor]]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """See `Family.losses`."""
        parts, count = self.criterion.sums(self._raw(images), targets)
        return parts | {"total": torch.stack(tuple(parts.values())).sum()}, count

    @torch.inference_mode()
    def detect(self, images: Tensor, conf: float, iou: float, max_det: int) -> list[Detections]:
        """See `Family.detect`."""
        return select(decode(self.network, self._raw(images)), conf, iou, max_det)

    def enter_tail(self) -> None:
        """Add the L1 part (YOLOX, Evo)."""
        self.criterion.use_l1 = True

    def _raw(self, images: Tensor) -> list[Tensor]:
        return self.network(in_convention(images, self.network.input_convention))


# By the `family` of the network.
FAMILIES: dict[str, Callable[[nn.Module, Hyp], Family]] = {
    "yolox": DenseFamily,
    "evo": DenseFamily,
    "yolov3": DenseFamily,
    "torchvision": TorchvisionFamily,
}


def build_family(network: nn.Module, hyp: Hyp) -> Family:
    """Return the family that `network` belongs to."""
    return FAMILIES[network.family](network, hyp)
