"""The loss of the Evo family on task-aligned positives.

Sources: quality as the class target, Li et al. 2020 (arXiv 2006.04388); normalised alignment as
that quality and as the weight of the box, Feng et al. 2021 (arXiv 2108.07755), equations 3 to 6;
GIoU, Rezatofighi et al. 2019.

Letters: B images, P points, C classes, n positives.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.assign import Aligned, PaddedTargets, aligned, pad_targets
from detector.boxes import elementwise_giou
from detector.config import Hyp
from detector.losses.dense import DenseLoss, Targets
from detector.models.evo import raw_to_xyxy
from detector.models.yolox import flatten_raw, make_grid


class EvoLoss(DenseLoss):
    """Class, GIoU and (late in training) L1 loss; each positive counts as much as it is good.

    `use_l1` turns the L1 part on: the last epochs, without mosaic, fit the boxes tightly.
    """

    def __init__(self, strides: Sequence[int], hyp: Hyp) -> None:
        super().__init__(hyp)
        self.strides = tuple(strides)

    def sums(self, raw: Sequence[Tensor], targets: Targets) -> tuple[dict[str, Tensor], Tensor]:
        """Gain-weighted sums "box", "cls" and perhaps "l1", and the sum of the qualities.
        See `DenseLoss.sums`.
        """
        with torch.autocast(raw[0].device.type, enabled=False):
            table = flatten_raw(raw)  # (B, P, 4 + C)
            cells, strides = make_grid(raw, self.strides)
            pred_boxes = raw_to_xyxy(table, cells, strides)
            logits = table[..., 4:]
            padded = pad_targets(targets, table.device)
            (image, point, target), quality = self._assign(
                pred_boxes, logits, padded, (cells + 0.5) * strides
            )
            goal, label = padded.boxes[image, target], padded.labels[image, target]  # (n, 4), (n,)
            cls_target = torch.zeros_like(logits)
            cls_target[image, point, label] = quality
            giou = elementwise_giou(pred_boxes[image, point], goal)
            parts = {
                "box": self.hyp.box * ((1 - giou) * quality).sum(),
                "cls": self.hyp.cls * self._class_error(logits, cls_target),
            }
            if self.use_l1:
                raw_goal = encode_sides(goal, cells[point], strides[point])
                error = (table[image, point, :4] - raw_goal).abs().sum(1)
                parts["l1"] = self.hyp.l1 * (error * quality).sum()
        return parts, quality.sum()

    def _assign(
        self, pred_boxes: Tensor, logits: Tensor, padded: PaddedTargets, points: Tensor
    ) -> Aligned:
        """The positives of the batch and their qualities."""
        return aligned(
            pred_boxes.detach(),
            logits.detach(),
            padded,
            points,
            topk=self.hyp.topk,
            cls_power=self.hyp.cls_power,
            iou_power=self.hyp.iou_power,
        )

    def _class_error(self, logits: Tensor, goal: Tensor) -> Tensor:
        """Sum of the BCE, each entry weighted by |score - goal|^focus."""
        error = F.binary_cross_entropy_with_logits(logits, goal, reduction="none")
        if self.hyp.focus:
            error = error * (logits.sigmoid() - goal).abs().pow(self.hyp.focus)
        return error.sum()


def encode_sides(boxes: Tensor, cells: Tensor, strides: Tensor) -> Tensor:
    """The raw outputs (n, 4) that decode to `boxes` (n, 4) xyxy at these cells (n, 2).

    A side on the wrong side of the cell's centre counts as a hundredth of a cell away.
    """
    centre = (cells + 0.5) * strides
    sides = torch.cat((centre - boxes[:, :2], boxes[:, 2:] - centre), dim=1) / strides
    return sides.clamp(min=0.01).log()
