"""Average precision by the rules of Pascal VOC, which give other numbers than COCO's.

Shapes: P predictions, T targets, H IoU thresholds. A prediction looks at the target that it
overlaps most, taken or not: the first of a target with IoU above the threshold is a hit, a further
one a false positive; a difficult target makes it neither. VOC adds a pixel to each side of a box,
because its corners are both inside; boxes here run from edge to edge (xmin - 1 to xmax), so that
pixel is in them already.

Source: Everingham et al. 2010, "The Pascal VOC challenge", section 4.2, and VOCdevkit 2007 and 2012
`VOCevaldet.m` (11 points until 2009, then all points).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detector.matching import (
    IOU_THRESHOLDS,
    Found,
    Judged,
    Prediction,
    Targets,
    Truth,
    class_slices,
    judge_all,
)

RULES = ("2007", "2012")  # the year whose AP it is: of 11 points, of all points
ALL = 1 << 30  # VOC has no limit of detections


@dataclass(frozen=True, eq=False)
class VocMetrics:
    """AP of the classes that have targets at IoU above 0.5, 0.55 ... 0.95, fractions 0 to 1."""

    labels: tuple[int, ...]
    absent: tuple[int, ...]  # classes without targets: part of no mean
    ap: dict[str, np.ndarray]  # of each rule: (K, H)

    def mean(self, rule: str) -> dict[str, float]:
        """Return the means over classes, at IoU 0.5 and over all thresholds; 0 without classes."""
        ap = self.ap[rule]
        if not len(ap):
            return {"mAP50": 0.0, "mAP50-95": 0.0}
        return {"mAP50": float(ap[:, 0].mean()), "mAP50-95": float(ap.mean())}

    def report(self, names: Sequence[str]) -> dict[str, dict[str, object]]:
        """Return plain values: of each rule the means and, by name, the AP of each class."""
        return {
            rule: {
                **self.mean(rule),
                "classes": {
                    names[label]: {"AP50": float(row[0]), "AP50-95": float(row.mean())}
                    for label, row in zip(self.labels, ap, strict=True)
                },
            }
            for rule, ap in self.ap.items()
        }


def evaluate_voc(
    truths: Sequence[Truth], predictions: Sequence[Prediction], num_classes: int
) -> VocMetrics:
    """Measure `predictions` against `truths`, one each per image, by the rules of VOC.

    Difficult and crowd targets are ignored. Raises: ValueError, as `judge_all`.
    """
    judged = judge_all(truths, predictions, num_classes, max_det=ALL)
    hit, miss = _verdicts(judged)
    positives = judged.whole.positives
    curves = []  # of each class: hits and misses (H, P of the class) by falling score
    for label, rows in class_slices(judged.found, judged.whole):
        hits, misses = np.cumsum(hit[:, rows], axis=1), np.cumsum(miss[:, rows], axis=1)
        curves.append((hits, misses, int(positives[label])))
    ap = {
        rule: np.array([_ap(*row) for row in curves]).reshape(-1, len(IOU_THRESHOLDS))
        for rule, _ap in zip(RULES, (eleven_point_ap, all_point_ap), strict=True)
    }
    labels, absent = np.flatnonzero(positives), np.flatnonzero(positives == 0)
    return VocMetrics(tuple(labels.tolist()), tuple(absent.tolist()), ap)


def _verdicts(judged: Judged) -> tuple[np.ndarray, np.ndarray]:
    """Return which predictions are hits and false positives at each threshold, (H, P) bool."""
    found, targets, pairs = judged.found, judged.targets, judged.pairs
    order = np.lexsort((pairs.target, -pairs.iou, pairs.prediction))
    first = np.flatnonzero(np.diff(pairs.prediction[order], prepend=-1))
    best = np.full(len(found.scores), -1)  # the target overlapped most, the earliest of equals
    overlap = np.zeros(len(found.scores))
    best[pairs.prediction[order[first]]] = pairs.target[order[first]]
    overlap[pairs.prediction[order[first]]] = pairs.iou[order[first]]
    hit = np.zeros((len(IOU_THRESHOLDS), len(best)), bool)
    miss = np.zeros_like(hit)
    for level, threshold in enumerate(IOU_THRESHOLDS):
        near = overlap > threshold  # strictly, unlike COCO
        hit[level], miss[level] = _judge(found, targets, np.where(near, best, -1))
    return hit, miss


def _judge(found: Found, targets: Targets, best: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return hits and false positives (P,); `best` is the target each wants, -1 for none."""
    wanting = found.by_class[best[found.by_class] >= 0]  # by falling score within a class
    _, first = np.unique(best[wanting], return_index=True)
    hit = np.zeros(len(best), bool)
    hit[wanting[first]] = True
    ignored = np.append(targets.ignored, False)[best]  # index -1 = no target
    return hit & ~ignored, ~hit & ~ignored


def eleven_point_ap(hits: np.ndarray, misses: np.ndarray, positives: int) -> np.ndarray:
    """Return the AP (H,) of 2007 from running counts (H, P): the mean of 11 best precisions.

    A recall of k / 10 is reached when 10 hits >= k positives: whole numbers, because neither 0.3
    nor its neighbours in floating point are 3 / 10 (B-55).
    """
    precision = hits / np.maximum(hits + misses, 1)
    best = [
        np.where(10 * hits >= k * positives, precision, 0.0).max(axis=1, initial=0.0)
        for k in range(11)
    ]
    return np.asarray(np.mean(best, axis=0))


def all_point_ap(hits: np.ndarray, misses: np.ndarray, positives: int) -> np.ndarray:
    """Return the AP (H,) since 2010 from running counts (H, P): the area below the envelope."""
    precision = hits / np.maximum(hits + misses, 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    steps = np.diff(hits, axis=1, prepend=0)
    return np.asarray((envelope * steps).sum(axis=1) / positives)
