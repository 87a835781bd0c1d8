"""How torchvision's detectors are trained and asked: the family contract, from their own losses.

Letters: B images of a micro-batch, n objects of an image.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.ssd import SSD

from detector.boxes import Detections
from detector.config import Hyp
from detector.models.channels import in_convention

# torchvision's name of a loss part: ours, and the hyperparameter that is its gain.
PARTS = {
    "loss_classifier": ("cls", "cls"),
    "classification": ("cls", "cls"),
    "loss_box_reg": ("box", "box"),
    "bbox_regression": ("box", "box"),
    "loss_rpn_box_reg": ("rpn_box", "box"),
    "loss_objectness": ("obj", "obj"),  # of the region proposals
    "bbox_ctrness": ("obj", "obj"),  # FCOS: centre-ness
}


class TorchvisionFamily:
    """A detector of torchvision: it computes its losses and selects its detections itself.

    torchvision returns means. They are turned into sums by what they were divided by, so that the
    one division of an optimizer step gives the mean over the whole step:

    - FCOS and SSD: the positives of all images. k micro-batches give one batch's gradient.
    - RetinaNet: the positives of each image, then the images. The same.
    - Faster R-CNN: the regions drawn from all images, up to 256 proposals and 512 regions of each.
      Counted as images: the same wherever every image has enough regions to draw from.

    With batch norm (as in all families) a micro-batch has statistics of its own.
    """

    def __init__(self, network: nn.Module, hyp: Hyp) -> None:
        self.network = network
        self.gains = {name: float(getattr(hyp, name)) for name in ("box", "cls", "obj")}
        two_stages = hasattr(network, "rpn")
        self.parts = ["box", "cls"]  # that are there even for no images: ranks add up their sums
        self.parts += ["obj"] if two_stages or isinstance(network, FCOS) else []
        self.parts += ["rpn_box"] if two_stages else []

    def losses(
        self, images: Tensor, targets: list[dict[str, Tensor]]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """See `Family.losses`; works in eval mode too, with the running statistics."""
        if not len(images):
            return self._no_losses()
        pixels = in_convention(images, self.network.input_convention)
        with _losses_wanted(self.network), _counted(self.network) as positives:
            means = self.network(pixels, [_with_background(one) for one in targets])
        count = torch.stack(positives).sum() if positives else images.new_tensor(len(images))
        found = {}
        for name, mean in means.items():
            part, gain = PARTS[name]
            found[part] = self.gains[gain] * mean * count.clamp(min=1)
        sums = {part: found[part] for part in self.parts}
        return sums | {"total": torch.stack(tuple(sums.values())).sum()}, count.float()

    @torch.inference_mode()
    def detect(self, images: Tensor, conf: float, iou: float, max_det: int) -> list[Detections]:
        """See `Family.detect`."""
        if not len(images):
            return []
        set_thresholds(self.network, conf, iou, max_det)
        found = self.network(in_convention(images, self.network.input_convention))
        return [_without_background(one) for one in found]

    def enter_tail(self) -> None:
        """Nothing changes: torchvision has no L1 part."""

    def _no_losses(self) -> tuple[dict[str, Tensor], Tensor]:
        """Zeros that depend on every weight: all ranks then have gradients for the same ones."""
        zero = torch.stack([weight.sum() for weight in self.network.parameters()]).sum() * 0.0
        return dict.fromkeys([*self.parts, "total"], zero), zero.detach()


def set_thresholds(network: nn.Module, conf: float, iou: float, max_det: int) -> None:
    """Set what the network selects its detections by, in place."""
    selector = getattr(network, "roi_heads", network)
    selector.score_thresh, selector.nms_thresh = conf, iou
    selector.detections_per_img = max_det


def _with_background(target: dict[str, Tensor]) -> dict[str, Tensor]:
    """A target with torchvision's labels, without boxes that have no area: it refuses these."""
    boxes = target["boxes"]
    kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return {"boxes": boxes[kept], "labels": target["labels"][kept] + 1}


def _without_background(found: dict[str, Tensor]) -> Detections:
    kept = found["labels"] > 0  # FCOS and RetinaNet have an output for label 0, which means nothing
    boxes, scores = found["boxes"][kept].float(), found["scores"][kept].float()
    return Detections(boxes, scores, found["labels"][kept] - 1)


@contextmanager
def _losses_wanted(network: nn.Module) -> Iterator[None]:
    """Let torchvision compute losses: it does so for parts that are in training mode."""
    parts = [network]
    parts += [network.rpn, network.roi_heads] if hasattr(network, "rpn") else []
    modes = [part.training for part in parts]
    for part in parts:  # not their children: norms stay as they are
        part.training = True
    try:
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode


@contextmanager
def _counted(network: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the number of positives (0-dim) that FCOS and SSD divide their losses by."""
    owner = network.head if isinstance(network, FCOS) else network
    counts: list[Tensor] = []
    if not isinstance(network, FCOS | SSD):
        yield counts
        return
    compute: Callable[..., Any] = owner.compute_loss

    def compute_loss(
        targets: Any, outputs: Any, anchors: Any, matched_idxs: Sequence[Tensor]
    ) -> Any:
        counts.extend((matched >= 0).sum() for matched in matched_idxs)
        return compute(targets, outputs, anchors, matched_idxs)

    owner.compute_loss = compute_loss
    try:
        yield counts
    finally:
        del owner.compute_loss
