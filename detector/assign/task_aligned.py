"""Which prediction learns which object: the points whose score and box agree with it best.

Source: Feng et al. 2021 (arXiv 2108.07755), section 3.2, task-aligned assignment.

Letters: B images, T targets (padded), P points, C classes, n positives.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from detector.assign.targets import Matches, PaddedTargets, image_groups
from detector.boxes import box_iou

MIN_QUALITY = 0.1  # of an object's best point: a box that is far off learns, too


class Aligned(NamedTuple):
    """The positives, and how good each is: what its score should be, 0 to 1."""

    matches: Matches
    quality: Tensor  # (n,) float32


@torch.no_grad()
def aligned(
    pred_boxes: Tensor,
    logits: Tensor,
    targets: PaddedTargets,
    points: Tensor,
    *,
    topk: int,
    cls_power: float,
    iou_power: float,
) -> Aligned:
    """Choose the points that learn each target, and what their scores should be.

    A target's candidates are the points inside of its box (the nearest point of all when there is
    none). It takes the `topk` best by score^cls_power * IoU^iou_power; a point claimed twice goes
    to the target with the larger IoU. The best point of a target should score the largest IoU among
    its points (at least MIN_QUALITY), each other one as much less as it is aligned less.

    Args:
        pred_boxes: (B, P, 4) xyxy pixels.
        logits: (B, P, C).
        targets: the batch from `pad_targets`.
        points: (P, 2) centres of the cells, pixels.
    """
    device = pred_boxes.device
    rows = [torch.zeros(3, 0, dtype=torch.int64, device=device)]
    qualities = [torch.zeros(0, device=device)]
    for images, boxes, labels, valid in image_groups(targets, len(points)):
        candidate = _candidates(boxes, valid, points)
        iou = box_iou(boxes, pred_boxes[images].float().nan_to_num(0).clamp(-1e7, 1e7))
        scores = logits[images].float().nan_to_num(0).sigmoid().transpose(1, 2)  # (B, C, P)
        image = torch.arange(len(labels), device=device)[:, None]
        metric = scores[image, labels].pow_(cls_power).mul_(iou.pow(iou_power))  # (B, T, P)
        chosen = _best(metric, candidate, min(topk, len(points)))
        image, point, target, quality = _settle(chosen, metric, iou)
        rows.append(torch.stack((image + images.start, point, target)))
        qualities.append(quality)
    return Aligned(Matches(*torch.cat(rows, dim=1).unbind(0)), torch.cat(qualities))


def _candidates(boxes: Tensor, valid: Tensor, points: Tensor) -> Tensor:
    """Which points (B, T, P) lie inside of each box (B, T, 4); the nearest one if none does."""
    x, y = points.unbind(-1)
    left, top, right, bottom = boxes[..., None].unbind(-2)  # (B, T, 1)
    inside = (x > left) & (x < right)
    inside &= (y > top) & (y < bottom)
    lonely = valid & ~inside.any(2)  # (B, T)
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    distance = (centre[..., :1] - x).square() + (centre[..., 1:] - y).square()
    nearest = torch.zeros_like(inside).scatter_(2, distance.argmin(2, keepdim=True), True)
    return (inside & valid[..., None]) | (nearest & lonely[..., None])


def _best(metric: Tensor, candidate: Tensor, topk: int) -> Tensor:
    """Which points (B, T, P) are among the `topk` best candidates of each target."""
    best = metric.masked_fill(~candidate, -1.0).topk(topk, dim=2).indices
    return torch.zeros_like(candidate).scatter_(2, best, True) & candidate


def _settle(chosen: Tensor, metric: Tensor, iou: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Image, point, target and quality (n,) of each point that somebody chose."""
    owner = iou.masked_fill(~chosen, -1.0).argmax(1)  # (B, P)
    image, point = chosen.any(1).nonzero(as_tuple=True)
    target = owner[image, point]
    own, own_iou = metric[image, target, point], iou[image, target, point]
    row = image * chosen.shape[1] + target
    empty = own.new_zeros(chosen.shape[0] * chosen.shape[1])
    top = empty.scatter_reduce(0, row, own, "amax")[row]
    top_iou = empty.scatter_reduce(0, row, own_iou, "amax")[row]
    share = torch.where(top > 0, own / top.clamp(min=math.ulp(0.0)), 1.0)
    return image, point, target, share * top_iou.clamp(min=MIN_QUALITY)
