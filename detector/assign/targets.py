"""The targets of a batch in rectangular tensors, and the pairs that assignments return.

Letters: B images, T targets (padded), n positives.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

MAX_PAIRS = 1 << 22  # pairs (image, target, candidate) in memory at once


class PaddedTargets(NamedTuple):
    """The targets of a batch in rectangular tensors; `counts[b]` rows of image b are real."""

    boxes: Tensor  # (B, T, 4) float32 xyxy pixels
    labels: Tensor  # (B, T) int64
    counts: list[int]


class Matches(NamedTuple):
    """The positives: row i says that point `point[i]` of image `image[i]` learns `target[i]`."""

    image: Tensor  # (n,) int64
    point: Tensor  # (n,) int64, 0 .. P - 1
    target: Tensor  # (n,) int64, index among the targets of that image


def pad_targets(targets: Sequence[dict[str, Tensor]], device: torch.device | str) -> PaddedTargets:
    """Stack per-image targets {"boxes": (n, 4), "labels": (n,)}; zeros fill the missing rows."""
    counts = [len(target["labels"]) for target in targets]
    most = max(counts, default=0)
    boxes = torch.zeros(len(counts) * most, 4, device=device)
    labels = torch.zeros(len(counts) * most, dtype=torch.int64, device=device)
    filled = [target for target, count in zip(targets, counts, strict=True) if count]
    if filled:
        # All rows go to their places at once: one call for the batch, not one an image.
        real = torch.arange(most) < torch.tensor(counts)[:, None]
        rows = real.flatten().nonzero()[:, 0].to(device, non_blocking=True)
        boxes[rows] = torch.cat([target["boxes"] for target in filled]).to(boxes)
        labels[rows] = torch.cat([target["labels"] for target in filled]).to(labels)
    return PaddedTargets(boxes.view(len(counts), most, 4), labels.view(len(counts), most), counts)


class Group(NamedTuple):
    """Images that are worked on at once, with at least one target among them."""

    images: slice
    boxes: Tensor  # (B, T, 4) of these images
    labels: Tensor  # (B, T)
    valid: Tensor  # (B, T) bool: False for padding


def image_groups(targets: PaddedTargets, candidates: int) -> Iterator[Group]:
    """Yield groups of images with at most MAX_PAIRS pairs of a target and a candidate.

    `candidates` is the most that an image can have. A single image may have more pairs.
    """
    most = max(targets.counts, default=0)
    size = max(1, MAX_PAIRS // max(1, most * candidates))
    for first in range(0, len(targets.counts), size):
        images = slice(first, first + size)
        counts = targets.counts[images]
        most = max(counts)
        if most:
            real = torch.arange(most) < torch.tensor(counts)[:, None]
            valid = real.to(targets.boxes.device, non_blocking=True)
            yield Group(images, targets.boxes[images, :most], targets.labels[images, :most], valid)
