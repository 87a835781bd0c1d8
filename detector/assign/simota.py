"""Which prediction learns which object: SimOTA.

Source: Ge et al. 2021 (arXiv 2107.08430), section 2.1, with the candidate rule of YOLOX 0.3.

The whole batch is padded to the same number of targets and worked on at once; no value leaves the
device except one "is any object left without a point?". Letters: B images, T targets (padded),
P points, K candidates of one target, M candidates of one image (padded), C classes.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detector.assign.targets import Matches, PaddedTargets, image_groups
from detector.boxes import box_iou

OUTSIDE_COST = 1e6  # for a point that is a candidate of another object only


class Level(NamedTuple):
    """One map of the head: cells and pixels per cell."""

    height: int
    width: int
    stride: int


class Candidates(NamedTuple):
    """The points of an image that lie near at least one of its targets, each in one slot."""

    point: Tensor  # (B, M) int64: the point in each slot
    filled: Tensor  # (B, M) bool: False for padding
    own: Tensor  # (B, T, K) int64: slots of the points near this very target, M for none


@torch.no_grad()
def simota(
    pred_boxes: Tensor,
    logits: Tensor,
    targets: PaddedTargets,
    levels: Sequence[Level],
    *,
    center_radius: float,
    topk: int,
    iou_cost: float,
    cls_cost: float,
) -> Matches:
    """Choose the points that learn each target.

    A target's candidates lie less than `center_radius` strides from its centre (per axis; the
    nearest point of all when there is none). It takes the k cheapest points by
    cls_cost * BCE + iou_cost * -ln(IoU), where k is the sum of its `topk` largest IoUs; a point
    claimed twice goes to the cheapest target. A target that loses all its points that way takes
    its cheapest candidate that is not somebody's best one, so every object learns something.

    Args:
        pred_boxes: (B, P, 4) xyxy pixels.
        logits: (B, P, 1 + C) objectness, classes.
        targets: the batch from `pad_targets`.
        levels: the maps in the order of the points.
    """
    device, most = pred_boxes.device, max(targets.counts, default=0)
    num_points = sum(level.height * level.width for level in levels)
    per_target = 1 + len(levels) * math.ceil(2 * center_radius) ** 2
    parts = [torch.zeros(3, 0, dtype=torch.int64, device=device)]
    for images, boxes, labels, valid in image_groups(targets, min(num_points, most * per_target)):
        near = _find_candidates(boxes, valid, levels, center_radius)
        candidates = _gather_predictions(pred_boxes[images], logits[images], near)
        iou = box_iou(boxes, candidates[0])  # (B, T, M)
        cost = _class_cost(candidates[1], labels).mul_(cls_cost)
        cost -= (iou + 1e-8).log_().mul_(iou_cost)
        cost += _outside_cost(near)
        cost.masked_fill_(~valid[..., None], math.inf)
        owner = _match(iou, cost, valid, min(topk, cost.shape[2]))
        owner = _rescue(owner, cost, near.own, valid)  # (B, M)
        image, slot = (owner >= 0).nonzero(as_tuple=True)
        parts.append(
            torch.stack((image + images.start, near.point[image, slot], owner[image, slot]))
        )
    return Matches(*torch.cat(parts, dim=1).unbind(0))


def _window(boxes: Tensor, levels: Sequence[Level], radius: float) -> tuple[Tensor, Tensor]:
    """Point indices (B, T, K) around each box centre, and which of them are candidates.

    The last column is the nearest point of all, a candidate only where there is no other.
    """
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2  # (B, T, 2)
    offsets = torch.arange(math.ceil(2 * radius), device=boxes.device)
    indices, inside, nearest, distances = [], [], [], []
    start = 0
    for height, width, stride in levels:
        size = torch.full((2,), width, device=boxes.device)  # a tensor of both would wait for it
        size[1].fill_(height)
        place = centre / stride - 0.5  # in cells: whole numbers are points
        cell = (place - radius).floor()[..., None, :] + 1 + offsets[:, None]  # (B, T, window, 2)
        ok = ((cell - place[..., None, :]).abs() < radius) & (cell >= 0) & (cell < size)
        column, row = torch.minimum(cell.clamp(min=0), size - 1).long().unbind(-1)
        indices.append((start + row[..., :, None] * width + column[..., None, :]).flatten(2))
        inside.append((ok[..., :, None, 1] & ok[..., None, :, 0]).flatten(2))
        closest = torch.minimum(place.round().clamp(min=0), size - 1)
        distances.append(((closest - place) * stride).square().sum(-1))
        column, row = closest.long().unbind(-1)
        nearest.append(start + row * width + column)
        start += height * width
    level = torch.stack(distances, -1).argmin(-1, keepdim=True)  # (B, T, 1)
    index = torch.cat((*indices, torch.stack(nearest, -1).gather(2, level)), dim=2)
    candidate = torch.cat(inside, dim=2)
    return index, torch.cat((candidate, ~candidate.any(2, keepdim=True)), dim=2)


def _find_candidates(
    boxes: Tensor, valid: Tensor, levels: Sequence[Level], radius: float
) -> Candidates:
    """The union of the targets' candidates in each image, without repetition."""
    num_images, num_targets = valid.shape
    num_points = sum(level.height * level.width for level in levels)
    index, inside = _window(boxes, levels, radius)  # (B, T, K)
    inside = inside & valid[..., None]
    most = min(num_points, num_targets * index.shape[2])  # M; column M collects what is not wanted
    device = boxes.device
    marked = torch.zeros(num_images, num_points + 1, dtype=torch.bool, device=device)
    marked.scatter_(1, torch.where(inside, index, num_points).flatten(1), True)
    marked = marked[:, :num_points]
    slot = torch.where(marked, marked.cumsum(1) - 1, most)  # (B, P): place among the candidates
    everywhere = torch.arange(num_points, device=device).expand(num_images, -1)
    point = torch.zeros(num_images, most + 1, dtype=torch.int64, device=device)
    point.scatter_(1, slot, everywhere)
    filled = torch.arange(most, device=device) < marked.sum(1, keepdim=True)
    own = slot.gather(1, index.flatten(1)).view_as(index)
    return Candidates(point[:, :most], filled, torch.where(inside, own, most))


def _gather_predictions(
    pred_boxes: Tensor, logits: Tensor, near: Candidates
) -> tuple[Tensor, Tensor]:
    """Boxes (B, M, 4) and logits (B, M, 1 + C) of the candidates; padding gets an empty box.

    Numbers that are not finite (a diverging network) are replaced, so that costs can be compared.
    """
    rows = near.point[..., None]
    boxes = pred_boxes.gather(1, rows.expand(-1, -1, 4)).float()
    boxes = boxes.nan_to_num_(0).clamp_(-1e7, 1e7).masked_fill_(~near.filled[..., None], 0)
    return boxes, logits.gather(1, rows.expand(-1, -1, logits.shape[2])).float().nan_to_num_(0)


def _class_cost(logits: Tensor, labels: Tensor) -> Tensor:
    """BCE (B, T, M) of each candidate's scores (B, M, 1 + C) against each target's one-hot row.

    The score of a class is sqrt(class * objectness). The BCE is taken apart into "everything is
    background" and "the true class turned around": no (B, T, M, C) table is ever made.
    """
    scores = logits.sigmoid()
    joint = (scores[..., 1:] * scores[..., :1]).sqrt_()
    log_yes = joint.log().clamp_(min=-100)  # logarithms end at -100 as in torch's BCE
    log_no = torch.log1p(-joint).clamp_(min=-100)
    turn = (log_no - log_yes).transpose(1, 2).contiguous()  # (B, C, M)
    image = torch.arange(len(labels), device=labels.device)[:, None]
    return turn[image, labels] - log_no.sum(-1)[:, None, :]


def _outside_cost(near: Candidates) -> Tensor:
    """What (B, T, M) a point costs that is not near the target itself; infinity for padding."""
    num_slots = near.filled.shape[1]
    cost = torch.full(
        (*near.own.shape[:2], num_slots + 1), OUTSIDE_COST, device=near.own.device
    ).scatter_(2, near.own, 0.0)[..., :num_slots]
    return cost.masked_fill_(~near.filled[:, None, :], math.inf)


def _match(iou: Tensor, cost: Tensor, valid: Tensor, topk: int) -> Tensor:
    """The target (B, M) that each candidate learns, -1 for background."""
    num_images, num_targets, num_slots = cost.shape
    wanted = iou.topk(topk, dim=2).values.sum(2).int().clamp(1, topk)  # (B, T): dynamic k
    cheapest = cost.topk(topk, dim=2, largest=False).indices  # (B, T, topk), ascending
    rank = torch.arange(topk, device=cost.device)
    chosen = (rank < wanted[..., None]) & valid[..., None]
    slot = torch.where(chosen, cheapest, num_slots).flatten(1)  # the last column is thrown away
    name = torch.arange(num_targets, device=cost.device).repeat_interleave(topk).expand_as(slot)
    owner = torch.full((num_images, num_slots + 1), -1, device=cost.device)
    owner.scatter_(1, slot, name)
    claims = torch.zeros_like(owner).scatter_add_(1, slot, torch.ones_like(slot))
    return torch.where(claims[:, :-1] > 1, cost.argmin(1), owner[:, :-1])


def _cheapest_in_group(cost: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """Index (B, G) of the cheapest member of each group, the first one of equals.

    `cost` (B, N) finite; `group` (B, N), where `num_groups` means none. An empty group gets N.
    """
    shape, size = (len(cost), num_groups + 1), cost.shape[1]
    low = cost.new_full(shape, math.inf).scatter_reduce_(1, group, cost, "amin")
    index = torch.arange(size, device=cost.device)
    index = torch.where(cost <= low.gather(1, group), index, size)
    return group.new_full(shape, size).scatter_reduce_(1, group, index, "amin")[:, :num_groups]


def _rescue(owner: Tensor, cost: Tensor, own: Tensor, valid: Tensor) -> Tensor:
    """Give each target without a point its cheapest candidate that is nobody's best one.

    Nobody loses his last point, so each round serves at least one more target and the loop ends.
    """
    num_targets, num_slots = cost.shape[1:]
    own_cost = cost.gather(2, own.clamp(max=num_slots - 1))  # (B, T, K)
    while True:
        group = owner % (num_targets + 1)  # background, -1, is the last group
        owner_cost = cost.gather(1, owner.clamp(min=0)[:, None, :])[:, 0].clamp(max=1e30)  # (B, M)
        best = _cheapest_in_group(owner_cost, group, num_targets)  # (B, T) slots
        orphans = valid & (best == num_slots)
        if not bool(orphans.any()):
            return owner
        locked = torch.zeros(len(owner), num_slots + 1, dtype=torch.bool, device=owner.device)
        locked.scatter_(1, best, True)[:, num_slots] = True
        closed = locked.gather(1, own.flatten(1)).view_as(own) | ~orphans[..., None]
        wish_cost, wish = own_cost.masked_fill(closed, math.inf).min(2)  # (B, T)
        able = wish_cost < math.inf
        if not bool(able.any()):
            return owner  # more targets than points
        slot = torch.where(able, own.gather(2, wish[..., None])[..., 0], num_slots)
        winner = _cheapest_in_group(wish_cost.clamp(max=1e30), slot, num_slots)  # (B, M) targets
        owner = torch.where(winner < num_targets, winner, owner)
