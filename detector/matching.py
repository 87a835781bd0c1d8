"""Which prediction finds which target: the matching rules of COCO, on plain arrays.

Shapes: T targets, P predictions (of all images), C classes, H IoU thresholds. Boxes are xyxy in
pixels of the image on disk.

COCO goes through the predictions of one class and image by falling score; each takes the free
target that it overlaps most. That is a stable matching in which every target prefers the higher
score, so `match` finds it for all images, classes and thresholds at once by deferred acceptance
(predictions propose, targets keep the best): a few rounds instead of a loop over predictions.

Source: cocodataset/cocoapi `cocoeval.py` (rules); Gale and Shapley 1962 (matching).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # (H,)
ALL_AREAS = (0.0, 1e10)
PAIRS_AT_ONCE = 1 << 21  # bounds the memory of the IoU computation


@dataclass(frozen=True, eq=False)
class Truth:
    """The targets of one image. Crowd and difficult ones are neither hit nor missed."""

    boxes: np.ndarray  # (T, 4) xyxy pixels
    labels: np.ndarray  # (T,) 0 .. C - 1
    crowd: np.ndarray | None = None  # (T,) bool: takes any number of predictions
    difficult: np.ndarray | None = None  # (T,) bool
    areas: np.ndarray | None = None  # (T,) square pixels, for the size ranges; None: of the boxes


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a detector found in one image, in any order."""

    boxes: np.ndarray  # (P, 4) xyxy pixels
    scores: np.ndarray  # (P,)
    labels: np.ndarray  # (P,) 0 .. C - 1


# ---- flat arrays


class Targets(NamedTuple):
    """All targets of all images, in their order."""

    image: np.ndarray  # (T,)
    label: np.ndarray  # (T,)
    group: np.ndarray  # (T,) image * C + label
    boxes: np.ndarray  # (T, 4)
    areas: np.ndarray  # (T,)
    crowd: np.ndarray  # (T,) bool
    ignored: np.ndarray  # (T,) bool: crowd or difficult
    num_classes: int


class Found(NamedTuple):
    """All predictions that count, sorted by image, class and falling score (equal: as given)."""

    image: np.ndarray  # (P,)
    label: np.ndarray  # (P,)
    group: np.ndarray  # (P,) image * C + label
    boxes: np.ndarray  # (P, 4)
    scores: np.ndarray  # (P,)
    rank: np.ndarray  # (P,) 0 = the highest score of its class and image
    by_class: np.ndarray  # (P,) indices sorted by class and falling score


def flatten_truths(truths: Sequence[Truth], num_classes: int) -> Targets:
    """Join the targets of all images. Raises: ValueError for a label outside 0 .. C - 1."""
    image = _image_index([truth.labels for truth in truths])
    label = _joined_labels([truth.labels for truth in truths], num_classes)
    boxes = np.concatenate([np.zeros((0, 4)), *(t.boxes.reshape(-1, 4) for t in truths)])
    own_areas = box_areas(boxes)
    given = _filled([truth.areas for truth in truths], truths, np.nan)
    crowd = _filled([truth.crowd for truth in truths], truths, False).astype(bool)
    difficult = _filled([truth.difficult for truth in truths], truths, False).astype(bool)
    return Targets(
        image=image,
        label=label,
        group=image * num_classes + label,
        boxes=boxes,
        areas=np.where(np.isnan(given), own_areas, given),
        crowd=crowd,
        ignored=crowd | difficult,
        num_classes=num_classes,
    )


def flatten_predictions(predictions: Sequence[Prediction], num_classes: int, max_det: int) -> Found:
    """Join and sort the best `max_det` predictions of each class and image.

    Raises: ValueError for a label outside 0 .. C - 1 or a score that is not finite.
    """
    image = _image_index([p.labels for p in predictions])
    label = _joined_labels([p.labels for p in predictions], num_classes)
    boxes = np.concatenate([np.zeros((0, 4)), *(p.boxes.reshape(-1, 4) for p in predictions)])
    scores = np.concatenate([np.zeros(0), *(p.scores for p in predictions)])
    if not np.isfinite(scores).all():
        raise ValueError("a prediction has a score that is not finite")
    group = image * num_classes + label
    order = np.lexsort((-scores, group))  # stable, like COCO's mergesort
    sorted_group = group[order]
    rank = np.arange(len(order)) - np.searchsorted(sorted_group, sorted_group, side="left")
    order, rank = order[rank < max_det], rank[rank < max_det]
    by_class = np.lexsort((-scores[order], label[order]))
    return Found(
        image[order], label[order], group[order], boxes[order], scores[order], rank, by_class
    )


def _image_index(per_image: list[np.ndarray]) -> np.ndarray:
    return np.repeat(np.arange(len(per_image)), [len(values) for values in per_image])


def _joined_labels(labels: list[np.ndarray], num_classes: int) -> np.ndarray:
    label = np.concatenate([np.zeros(0, np.int64), *labels]).astype(np.int64)
    if len(label) and not 0 <= label.min() <= label.max() < num_classes:
        wrong = label[(label < 0) | (label >= num_classes)][0]
        raise ValueError(f"label {wrong} is outside 0 .. {num_classes - 1}")
    return label


def _filled(parts: list[np.ndarray | None], truths: Sequence[Truth], default: float) -> np.ndarray:
    """Join optional arrays of one value a target; an array that is not there is all `default`."""
    filled = (
        np.full(len(truth.labels), default) if part is None else part
        for part, truth in zip(parts, truths, strict=True)
    )
    return np.concatenate([np.zeros(0), *filled])


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """Return the areas (n,) of boxes (n, 4) xyxy."""
    areas: np.ndarray = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return areas


# ---- matching


class Pairs(NamedTuple):
    """Predictions and targets of one group that overlap enough, sorted by prediction."""

    prediction: np.ndarray
    target: np.ndarray
    iou: np.ndarray


def overlapping_pairs(
    group: np.ndarray,
    boxes: np.ndarray,
    target_group: np.ndarray,
    target_boxes: np.ndarray,
    crowd: np.ndarray,
    min_iou: float,
) -> Pairs:
    """Return the pairs of one group with IoU >= `min_iou`.

    A group, any whole number, is what may match at all: an image, or an image and a class.
    """
    by_group = np.argsort(target_group, kind="stable")
    ordered = target_group[by_group]
    first = np.searchsorted(ordered, group, side="left")
    count = np.searchsorted(ordered, group, side="right") - first  # (P,) targets in the group
    chunk = np.cumsum(count) // PAIRS_AT_ONCE
    bounds = np.searchsorted(chunk, np.arange(chunk[-1] + 2 if len(chunk) else 1))
    parts = []
    for start, stop in pairwise(bounds):
        counts = count[start:stop]
        p = np.repeat(np.arange(start, stop), counts)
        nth = np.arange(len(p)) - np.repeat(np.cumsum(counts) - counts, counts)
        t = by_group[first[p] + nth]
        iou = _iou(boxes[p], target_boxes[t], crowd[t])
        near = iou >= min_iou
        parts.append((p[near], t[near], iou[near]))
    if not parts:
        return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    return Pairs(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _iou(boxes: np.ndarray, target_boxes: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Return the IoU of each row; for a crowd, the share of the box that it covers."""
    low = np.maximum(boxes[:, :2], target_boxes[:, :2])
    sides = np.maximum(np.minimum(boxes[:, 2:], target_boxes[:, 2:]) - low, 0.0)
    overlap = sides[:, 0] * sides[:, 1]
    area = box_areas(boxes)
    union = np.where(crowd, area, area + box_areas(target_boxes) - overlap)
    iou: np.ndarray = np.divide(overlap, union, out=np.zeros_like(overlap), where=overlap > 0)
    return iou


def match(
    pairs: Pairs,
    ignored: np.ndarray,
    crowd: np.ndarray,
    thresholds: np.ndarray,
    num_predictions: int,
) -> np.ndarray:
    """Return the target of each prediction at each threshold, (H, P), -1 for none.

    Predictions come in order of precedence within their group. Each prefers targets that count,
    then the larger IoU, then the later target. A crowd takes everyone.
    """
    preference = np.lexsort((-pairs.target, -pairs.iou, ignored[pairs.target], pairs.prediction))
    prediction, target = pairs.prediction[preference], pairs.target[preference]
    level, entry = np.nonzero(pairs.iou[preference] >= thresholds[:, None])
    owner = level * num_predictions + prediction[entry]  # one run for each level and prediction
    # A suitor is such a run, its wishes from start to end; a smaller index has precedence.
    start = np.flatnonzero(np.diff(owner, prepend=-1))
    end = np.append(start[1:], len(owner))
    goal = level * len(ignored) + target[entry]
    choice = start.copy()
    nobody = len(start)
    holder = np.full(len(thresholds) * len(ignored), nobody)
    active = np.arange(nobody)
    while len(active):
        active = active[~crowd[target[entry[choice[active]]]]]
        wanted = goal[choice[active]]
        before = holder[wanted]
        np.minimum.at(holder, wanted, active)
        after = holder[wanted]
        displaced = np.unique(before[(before != after) & (before != nobody)])
        rejected = np.concatenate([active[after != active], displaced])
        choice[rejected] += 1
        active = rejected[choice[rejected] < end[rejected]]
    happy = choice < end
    matched = np.full(len(thresholds) * num_predictions, -1)
    matched[owner[start[happy]]] = target[entry[choice[happy]]]
    return matched.reshape(len(thresholds), num_predictions)


class Verdict(NamedTuple):
    """What became of each prediction, for targets of one range of areas."""

    hit: np.ndarray  # (H, P) bool: true positive
    miss: np.ndarray  # (H, P) bool: false positive; neither of both: ignored
    matched: np.ndarray  # (H, P) index of the target, -1 none
    positives: np.ndarray  # (C,) number of targets that count


def judge(found: Found, targets: Targets, pairs: Pairs, area_range: tuple[float, float]) -> Verdict:
    """Match, and count only targets with an area in `area_range` (square pixels, both ends in).

    A prediction without a target is a miss only if its own area lies in the range.
    """
    low, high = area_range
    ignored = targets.ignored | (targets.areas < low) | (targets.areas > high)
    matched = match(pairs, ignored, targets.crowd, IOU_THRESHOLDS, len(found.scores))
    areas = box_areas(found.boxes)
    outside = (areas < low) | (areas > high)
    padded = np.append(ignored, False)  # index -1 = unmatched
    return Verdict(
        hit=(matched >= 0) & ~padded[matched],
        miss=(matched < 0) & ~outside,
        matched=matched,
        positives=np.bincount(targets.label[~ignored], minlength=targets.num_classes),
    )


def class_slices(found: Found, verdict: Verdict) -> list[tuple[int, np.ndarray]]:
    """Return (label, predictions by falling score) of each class that has targets."""
    labels = np.flatnonzero(verdict.positives)
    ordered = found.label[found.by_class]
    first = np.searchsorted(ordered, labels, side="left")
    last = np.searchsorted(ordered, labels, side="right")
    return [(int(c), found.by_class[a:b]) for c, a, b in zip(labels, first, last, strict=True)]


class Judged(NamedTuple):
    """All images with what was found in them, and what became of it: what metrics are made of."""

    found: Found
    targets: Targets
    pairs: Pairs
    whole: Verdict  # for targets of any area
    num_images: int


def judge_all(
    truths: Sequence[Truth], predictions: Sequence[Prediction], num_classes: int, max_det: int = 100
) -> Judged:
    """Match the best `max_det` predictions of each class and image, one sequence item an image.

    Raises: ValueError for lists of different length, labels outside 0 .. C - 1, non-finite scores.
    """
    if len(predictions) != len(truths):
        raise ValueError(f"{len(predictions)} predictions for {len(truths)} images")
    targets = flatten_truths(truths, num_classes)
    found = flatten_predictions(predictions, num_classes, max_det)
    pairs = overlapping_pairs(
        found.group, found.boxes, targets.group, targets.boxes, targets.crowd, IOU_THRESHOLDS[0]
    )
    return Judged(found, targets, pairs, judge(found, targets, pairs, ALL_AREAS), len(truths))
