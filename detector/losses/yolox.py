"""The YOLOX loss on SimOTA's positives.

Source: Ge et al. 2021 (arXiv 2107.08430) and YOLOX 0.3.

Letters: B images, P points, C classes, n positives.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.assign import Level, Matches, PaddedTargets, pad_targets, simota
from detector.boxes import cxcywh_to_xyxy, elementwise_iou, xyxy_to_cxcywh
from detector.config import Hyp
from detector.losses.dense import DenseLoss, Targets
from detector.models.yolox import flatten_raw, make_grid, raw_to_cxcywh


class YoloxLoss(DenseLoss):
    """IoU, objectness, class and (late in training) L1 loss on SimOTA's positives.

    `use_l1` turns the L1 part on: the last epochs, without mosaic, fit the boxes tightly.
    """

    def __init__(self, strides: Sequence[int], hyp: Hyp) -> None:
        super().__init__(hyp)
        self.strides = tuple(strides)

    def sums(self, raw: Sequence[Tensor], targets: Targets) -> tuple[dict[str, Tensor], Tensor]:
        """Gain-weighted sums "box", "obj", "cls" and perhaps "l1", and the number of positives.
        See `DenseLoss.sums`.
        """
        with torch.autocast(raw[0].device.type, enabled=False):
            table = flatten_raw(raw)  # (B, P, 5 + C)
            cells, strides = make_grid(raw, self.strides)
            pred_cxcywh = raw_to_cxcywh(table, cells, strides)
            pred_boxes = cxcywh_to_xyxy(pred_cxcywh)
            padded = pad_targets(targets, table.device)
            matches = self._assign(raw, pred_boxes, table, padded)
            parts = self._parts(table, pred_boxes, padded, matches)
            if self.use_l1:
                goal = padded.boxes[matches.image, matches.target]
                raw_goal = encode_raw(goal, cells[matches.point], strides[matches.point])
                found = table[matches.image, matches.point, :4]
                parts["l1"] = self.hyp.l1 * (found - raw_goal).abs().sum()
        return parts, table.new_full((), float(len(matches.point)))  # no wait for the device

    def _assign(
        self, raw: Sequence[Tensor], pred_boxes: Tensor, table: Tensor, padded: PaddedTargets
    ) -> Matches:
        """The positives of the batch."""
        levels = [
            Level(level.shape[-2], level.shape[-1], stride)
            for level, stride in zip(raw, self.strides, strict=True)
        ]
        return simota(
            pred_boxes.detach(),
            table[..., 4:].detach(),
            padded,
            levels,
            center_radius=self.hyp.center_radius,
            topk=self.hyp.topk,
            iou_cost=self.hyp.iou_cost,
            cls_cost=self.hyp.cls_cost,
        )

    def _parts(
        self, table: Tensor, pred_boxes: Tensor, padded: PaddedTargets, matches: Matches
    ) -> dict[str, Tensor]:
        """Box, objectness and class sums."""
        image, point, target = matches
        iou = elementwise_iou(pred_boxes[image, point], padded.boxes[image, target])  # (n,)
        obj_target = torch.zeros_like(table[..., 4])  # (B, P)
        obj_target[image, point] = 1.0
        cls_logits = table[image, point, 5:]  # (n, C)
        one_hot = F.one_hot(padded.labels[image, target], cls_logits.shape[1])
        cls_target = one_hot * iou.detach()[:, None]  # a class is as sure as its box is good
        bce = F.binary_cross_entropy_with_logits
        return {
            "box": self.hyp.box * (1 - iou.square()).sum(),
            "obj": self.hyp.obj * bce(table[..., 4], obj_target, reduction="sum"),
            "cls": self.hyp.cls * bce(cls_logits, cls_target, reduction="sum"),
        }


def encode_raw(boxes: Tensor, cells: Tensor, strides: Tensor) -> Tensor:
    """The raw outputs (n, 4) that decode to `boxes` (n, 4) xyxy at these cells (n, 2)."""
    cxcywh = xyxy_to_cxcywh(boxes) / strides
    return torch.cat((cxcywh[:, :2] - cells, (cxcywh[:, 2:] + 1e-8).log()), dim=1)
