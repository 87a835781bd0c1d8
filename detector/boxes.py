"""Boxes as torch tensors: conversion, overlap, clipping and non-maximum suppression.

Boxes are xyxy in pixels unless a name says cxcywh. Every function is pure and works on the last
dimension, so any leading shape is right. Letters: N, M boxes.
"""

import math
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor

EPS = 1e-9  # square pixels: keeps the overlap of two boxes without area at 0 instead of 0/0


@dataclass(frozen=True, eq=False)
class Detections:
    """The objects found in one image, by descending score."""

    boxes: Tensor  # (n, 4) float32 xyxy pixels
    scores: Tensor  # (n,) float32, 0 to 1
    labels: Tensor  # (n,) int64

    def __len__(self) -> int:
        return len(self.scores)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Corners (..., 4) to centre, width, height."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) / 2, high - low), dim=-1)


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Centre, width, height (..., 4) to corners."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def box_area(boxes: Tensor) -> Tensor:
    """Area (...,) in square pixels; a box turned inside out has none."""
    side = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return side[..., 0] * side[..., 1]


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut boxes (..., 4) at the borders of an image of `size` (height, width)."""
    height, width = size
    x = boxes[..., 0::2].clamp(0, width)
    y = boxes[..., 1::2].clamp(0, height)
    return torch.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), dim=-1)


def _intersection_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Areas shared and covered by boxes of broadcastable shapes (..., 4)."""
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., 2:], b[..., 2:])
    side = (high - low).clamp(min=0)
    shared = side[..., 0] * side[..., 1]
    return shared, box_area(a) + box_area(b) - shared


def elementwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU (...,) of boxes paired one to one; differentiable, 0 where they do not meet."""
    shared, union = _intersection_and_union(a, b)
    return shared / union.clamp(min=EPS)


@torch.no_grad()
def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU (..., N, M) of every box of `a` (..., N, 4) with every box of `b` (..., M, 4).

    Works in place, so it takes no gradient; `elementwise_iou` does.
    """
    ax1, ay1, ax2, ay2 = a[..., :, None, :].unbind(-1)
    bx1, by1, bx2, by2 = b[..., None, :, :].unbind(-1)
    # plain (N, M) planes: twice as fast on a CPU as the (N, M, 2) form of elementwise_iou
    width = torch.minimum(ax2, bx2).sub_(torch.maximum(ax1, bx1)).clamp_(min=0)
    height = torch.minimum(ay2, by2).sub_(torch.maximum(ay1, by1)).clamp_(min=0)
    shared = width.mul_(height)
    union = (box_area(a)[..., :, None] + box_area(b)[..., None, :]).sub_(shared).clamp_(min=EPS)
    return shared.div_(union)


def _hull(a: Tensor, b: Tensor) -> Tensor:
    """Width and height (..., 2) of the smallest box around each pair."""
    return torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])


def elementwise_giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU (...,), -1 to 1. Source: Rezatofighi et al. 2019, algorithm 1."""
    shared, union = _intersection_and_union(a, b)
    hull = _hull(a, b).prod(dim=-1).clamp(min=EPS)
    return shared / union.clamp(min=EPS) - (hull - union) / hull


def elementwise_diou(a: Tensor, b: Tensor) -> Tensor:
    """Distance IoU (...,), -1 to 1. Source: Zheng et al. 2020 (arXiv 1911.08287), equation 7."""
    diagonal = _hull(a, b).square().sum(dim=-1).clamp(min=EPS)
    centres = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2
    return elementwise_iou(a, b) - centres.square().sum(dim=-1) / diagonal


def elementwise_ciou(a: Tensor, b: Tensor) -> Tensor:
    """Complete IoU (...,). Source: Zheng et al. 2020 (arXiv 1911.08287), equations 8 to 11.

    The trade-off factor alpha takes no gradient, as in the paper.
    """
    side_a = (a[..., 2:] - a[..., :2]).clamp(min=EPS)
    side_b = (b[..., 2:] - b[..., :2]).clamp(min=EPS)
    angle = torch.atan(side_a[..., 0] / side_a[..., 1]) - torch.atan(
        side_b[..., 0] / side_b[..., 1]
    )
    shape = (4 / math.pi**2) * angle.square()
    with torch.no_grad():
        alpha = shape / (1 - elementwise_iou(a, b) + shape).clamp(min=EPS)
    return elementwise_diou(a, b) - alpha * shape


def batched_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> Tensor:
    """Indices (k,) of the boxes that survive per-class suppression, by descending score.

    `boxes` (n, 4), `scores` (n,), `labels` (n,). A box goes when a better one of its own label
    overlaps it by more than `iou`. Classes are moved apart so that one call does them all; in
    float64, because a float32 shift of 80 classes would cost the boxes up to a pixel.
    """
    if not len(boxes):
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    plane = boxes.double().clamp(-1e7, 1e7)  # an untrained network's exp() can be infinite
    shift = labels.double() * (plane.max() - plane.min() + 1)
    return torchvision.ops.nms(plane + shift[:, None], scores.double(), iou)
