"""Box voting: neighbouring predictions of one object agree on its box.

Source: Gidaris and Komodakis 2015 (arXiv 1505.01749), section 5, box voting; here before NMS, among
the cells around each cell, so that it is part of the decoded output and of an exported graph.
Letters: B images, P points, K cells of a neighbourhood, H, W.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.boxes import elementwise_iou

RADIUS = 2  # cells to each side
IOU_POWER = 6  # a neighbour whose IoU is 1/2 has 1/64 of the say
MIN_SCORE = 1e-3  # lower ones count alike: runtimes differ in the digits of a tiny sigmoid


def vote(boxes: Tensor, scores: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Return boxes (B, P, 4) xyxy: the mean of each cell's box and those of the cells around it.

    A neighbour's weight is its score times its IoU with the cell's own box to the power of
    IOU_POWER, so another object has no say. `scores` (B, P); `sizes` are (H, W) of the maps in the
    order of the points.
    """
    table = torch.cat((boxes, scores.clamp(min=MIN_SCORE)[..., None]), dim=-1)  # (B, P, 5)
    parts = table.split([height * width for height, width in sizes], dim=1)
    voted = [
        _vote_on_map(part, height, width)
        for part, (height, width) in zip(parts, sizes, strict=True)
    ]
    return torch.cat(voted, dim=1)


def _vote_on_map(rows: Tensor, height: int, width: int) -> Tensor:
    """Boxes (B, H * W, 4) after the vote on one map, from its boxes and scores (B, H * W, 5)."""
    side = 2 * RADIUS + 1
    # an open batch is -1 here: a traced graph must take any number of images
    grid = rows.transpose(1, 2).reshape(-1, 5, height, width)
    # outside of the map: boxes without area and score, which have no say
    around = F.unfold(grid, side, padding=RADIUS).reshape(-1, 5, side * side, height * width)
    own, near = rows[..., :4], around[:, :4].movedim(1, -1)  # (B, H * W, 4), (B, K, H * W, 4)
    weights = around[:, 4] * elementwise_iou(near, own[:, None]).pow(IOU_POWER)  # (B, K, H * W)
    total = weights.sum(1)[..., None]
    mean = (weights[..., None] * near).sum(1) / total.clamp(min=torch.finfo(total.dtype).tiny)
    return torch.where(total > 0, mean, own)
