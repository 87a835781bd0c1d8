"""Which prediction learns which object: anchors of like shape.

Source: Redmon and Farhadi 2018 (arXiv 1804.02767), with the threshold of the 2019 PyTorch trainers:
an object may have several anchors, or none.

Letters: B images, T targets (padded), A anchors of a level, P predictions: level by level, in a
level anchor by anchor, in an anchor row by row.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detector.assign.targets import PaddedTargets
from detector.boxes import EPS


class AnchorLevel(NamedTuple):
    """One map of the head: cells, pixels per cell, anchors."""

    height: int
    width: int
    stride: int
    anchors: Tensor  # (A, 2) width and height, pixels


class AnchorMatches(NamedTuple):
    """The positives: prediction `point[i]` of image `image[i]` learns `target[i]`."""

    image: Tensor  # (n,) int64
    point: Tensor  # (n,) int64, 0 .. P - 1
    target: Tensor  # (n,) int64, index among the targets of that image
    level: Tensor  # (n,) int64


def shape_iou(sizes: Tensor, anchors: Tensor) -> Tensor:
    """IoU (..., A) of boxes by their sizes (..., 2) alone, as if their centres were one."""
    shared = torch.minimum(sizes[..., None, :], anchors).prod(dim=-1)
    areas = sizes.prod(dim=-1)[..., None] + anchors.prod(dim=-1)
    return shared / (areas - shared).clamp(min=EPS)


@torch.no_grad()
def match_anchors(
    targets: PaddedTargets, levels: Sequence[AnchorLevel], iou_t: float, best_anchor: bool
) -> AnchorMatches:
    """Give each target, in the cell of its centre, every anchor whose shape IoU is above `iou_t`.

    With `best_anchor` only the best anchor of each level may take it (the first of equals). A
    centre on the right or lower border belongs to the last cell.
    """
    sizes = targets.boxes[..., 2:] - targets.boxes[..., :2]  # (B, T, 2)
    centres = (targets.boxes[..., 2:] + targets.boxes[..., :2]) / 2
    chosen, points, indices, start = [], [], [], 0
    for index, (height, width, stride, anchors) in enumerate(levels):
        iou = shape_iou(sizes, anchors)  # (B, T, A); padding has no area, so never above iou_t
        wanted = iou > iou_t
        place = torch.arange(len(anchors), device=iou.device)
        if best_anchor:
            wanted &= place == iou.argmax(dim=-1, keepdim=True)
        cell = (centres / stride).floor().long()
        column, row = cell[..., 0].clamp(0, width - 1), cell[..., 1].clamp(0, height - 1)
        points.append(start + place * (height * width) + (row * width + column)[..., None])
        chosen.append(wanted)
        indices.append(torch.full_like(place, index))
        start += len(anchors) * height * width
    image, target, anchor = torch.cat(chosen, dim=-1).nonzero(as_tuple=True)
    point = torch.cat(points, dim=-1)[image, target, anchor]
    return AnchorMatches(image, point, target, torch.cat(indices)[anchor])
