"""The YOLOv3 loss on anchors of like shape: GIoU or squared errors, objectness, classes.

Source: Redmon and Farhadi 2018 (arXiv 1804.02767), in the form of the 2019 PyTorch trainers; GIoU:
Rezatofighi et al. 2019 (arXiv 1902.09630).

Letters: B images, P predictions, C classes, n positives.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.assign import AnchorLevel, AnchorMatches, PaddedTargets, match_anchors, pad_targets
from detector.boxes import cxcywh_to_xyxy, elementwise_giou, xyxy_to_cxcywh
from detector.config import Hyp
from detector.losses.dense import DenseLoss, Targets
from detector.models.darknet import (
    AnchorGrid,
    Darknet,
    anchor_grid,
    flatten_heads,
    predicted_centres,
    predicted_cxcywh,
)

SMALLEST = 1e-6  # pixels: an object's side, before its logarithm


class Yolov3Loss(DenseLoss):
    """Parts "giou" (or "xy" and "wh"), "obj" and "cls", each added up over the levels of the head.

    The rule of 2019: on each level the mean over its positives (objectness: over all its cells and
    anchors), and each batch of bs images counts bs/64 in a step of 64. Such a mean depends on how
    a step is cut into batches. Here the batch of that rule is one image, however the step is cut:
    the mean over the positives of each image and level, added up over the images, and the count
    to divide by is the number of images. So k micro-batches give one batch's gradient, and the
    gains mean what they did.
    """

    def __init__(self, network: Darknet, hyp: Hyp) -> None:
        super().__init__(hyp)
        self._network = (network,)  # in a tuple: the loss has no parameters of its own

    def sums(self, raw: Sequence[Tensor], targets: Targets) -> tuple[dict[str, Tensor], Tensor]:
        """Gain-weighted sums over the images, and the number of images.
        See `DenseLoss.sums`.
        """
        (network,) = self._network
        with torch.autocast(raw[0].device.type, enabled=False):
            table = flatten_heads(raw, network.num_classes)  # (B, P, 5 + C)
            grid = anchor_grid(network, raw)
            levels = [
                AnchorLevel(level.shape[-2], level.shape[-1], stride, anchors.float())
                for level, stride, anchors in zip(
                    raw, network.strides, network.anchor_tables, strict=True
                )
            ]
            padded = pad_targets(targets, table.device)
            matches = match_anchors(padded, levels, self.hyp.iou_t, bool(self.hyp.best_anchor))
            parts = self._box_parts(table, grid, padded, matches, len(levels))
            parts["obj"] = self.hyp.obj * self._objectness(table, levels, matches)
            parts["cls"] = self.hyp.cls * self._classes(table, padded, matches, len(levels))
        return parts, table.new_full((), float(len(table)))

    def _box_parts(
        self,
        table: Tensor,
        grid: AnchorGrid,
        padded: PaddedTargets,
        matches: AnchorMatches,
        num_levels: int,
    ) -> dict[str, Tensor]:
        found = table[matches.image, matches.point]  # (n, 5 + C)
        own = AnchorGrid(*(column[matches.point] for column in grid))
        goal = padded.boxes[matches.image, matches.target]  # (n, 4) xyxy
        weights = _shares(matches, len(table), num_levels)
        if not self.hyp.xywh:
            giou = elementwise_giou(cxcywh_to_xyxy(predicted_cxcywh(found, own)), goal)
            return {"giou": self.hyp.giou * ((1 - giou) * weights).sum()}
        cxcywh = xyxy_to_cxcywh(goal)
        centre = cxcywh[:, :2] / own.strides - own.cells  # 0 to 1 in the cell
        size = (cxcywh[:, 2:].clamp(min=SMALLEST) / own.anchors).log()
        xy = (predicted_centres(found, own.reach) - centre).square().mean(dim=1)
        wh = (found[:, 2:4] - size).square().mean(dim=1)
        return {
            "xy": self.hyp.xy * (xy * weights).sum(),
            "wh": self.hyp.wh * (wh * weights).sum(),
        }

    def _objectness(
        self, table: Tensor, levels: Sequence[AnchorLevel], matches: AnchorMatches
    ) -> Tensor:
        """BCE of all predictions: the mean over each level, added up over levels and images."""
        goal = torch.zeros_like(table[..., 4])  # (B, P)
        goal[matches.image, matches.point] = 1.0
        sizes = [len(level.anchors) * level.height * level.width for level in levels]
        weights = torch.cat([table.new_full((size,), 1 / size) for size in sizes])
        positive = table.new_full((), self.hyp.obj_pw)
        return F.binary_cross_entropy_with_logits(
            table[..., 4], goal, weights, pos_weight=positive, reduction="sum"
        )

    def _classes(
        self, table: Tensor, padded: PaddedTargets, matches: AnchorMatches, num_levels: int
    ) -> Tensor:
        """BCE of the positives' classes: the mean over classes and positives of image and level."""
        logits = table[matches.image, matches.point, 5:]  # (n, C)
        labels = padded.labels[matches.image, matches.target]
        goal = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
        weights = _shares(matches, len(table), num_levels) / logits.shape[1]
        positive = table.new_full((), self.hyp.cls_pw)
        return F.binary_cross_entropy_with_logits(
            logits, goal, weights[:, None], pos_weight=positive, reduction="sum"
        )


def _shares(matches: AnchorMatches, num_images: int, num_levels: int) -> Tensor:
    """1 / the number of positives of its image and level, for each positive (n,)."""
    group = matches.image * num_levels + matches.level
    counts = torch.zeros(max(num_images * num_levels, 1), device=group.device)
    counts.index_add_(0, group, torch.ones(len(group), device=group.device))
    return 1 / counts[group]
