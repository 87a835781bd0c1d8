"""Detection metrics by the COCO rules, and the fitness that a search maximises.

Shapes: P predictions, C classes, K classes that have targets, H IoU thresholds. Nothing here needs
torch or an image: arrays in, numbers out. `matching.py` decides what is a hit.

Source: cocodataset/cocoapi `cocoeval.py`.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from detector.curves import (
    RECALL_GRID,
    Calibration,
    Curves,
    calibrate,
    confidence_curves,
    image_counts,
)
from detector.errors import ConfigError, did_you_mean
from detector.matching import (
    IOU_THRESHOLDS,
    Found,
    Judged,
    Prediction,
    Targets,
    Truth,
    Verdict,
    class_slices,
    judge,
    judge_all,
    match,
    overlapping_pairs,
)

logger = logging.getLogger(__name__)

METRIC_NAMES = ("mAP50-95", "mAP50", "precision", "recall", "F1")

SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}


@dataclass(frozen=True)
class ClassMetrics:
    """The numbers of one class; precision, recall and F1 at IoU 0.5 and the common confidence."""

    label: int
    images: int  # with at least one target of the class
    targets: int
    precision: float
    recall: float
    f1: float
    ap50: float
    ap50_95: float


@dataclass(frozen=True, eq=False)
class DetectionMetrics:
    """The result of one evaluation, fractions 0 to 1; means run over the classes that have targets.

    `precision`, `recall` and `f1` belong to IoU 0.5 and `confidence`, the one threshold for all
    classes that maximises the mean F1.
    """

    map50_95: float
    map50: float
    map75: float
    precision: float
    recall: float
    f1: float
    confidence: float
    images: int
    targets: int
    classes: tuple[ClassMetrics, ...]  # classes that have targets, by label
    absent: tuple[int, ...]  # classes without targets: part of no mean
    confusion: np.ndarray  # (C + 1, C + 1) int64, [true, predicted]; the last one is background
    curves: Curves
    calibration: Calibration
    image_counts: np.ndarray  # (images, 3) hits, false positives, missed targets at `confidence`
    coco: dict[str, float] = field(default_factory=dict)  # the twelve COCO numbers, -1 = undefined
    # {"small": {label: AP50-95}, "medium": ..., "large": ...} of classes with targets of the size
    class_sizes: dict[str, dict[int, float]] = field(default_factory=dict)

    def summary(self) -> dict[str, float]:
        """Return the metrics under the names that results.csv, MLflow and fitness weights use."""
        values = (self.map50_95, self.map50, self.precision, self.recall, self.f1)
        return dict(zip(METRIC_NAMES, values, strict=True))

    def class_map(self) -> list[float]:
        """Return the mAP50-95 of every class by its label; 0 for a class without targets."""
        values = {row.label: row.ap50_95 for row in self.classes}
        return [values.get(label, 0.0) for label in range(len(self.confusion) - 1)]

    def per_class(self, names: Sequence[str]) -> dict[str, dict[str, float]]:
        """Return AP50-95, AP50 and the number of objects of each class that has some, by name."""
        return {
            names[row.label]: {"AP50-95": row.ap50_95, "AP50": row.ap50, "objects": row.targets}
            for row in self.classes
        }


def fitness(metrics: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Return the weighted sum of `metrics`.

    Raises: ConfigError unless the weights name known metrics, are not negative and sum to 1.
    """
    for name, weight in weights.items():
        if name not in METRIC_NAMES:
            raise ConfigError(f"fitness: {name} is no metric{did_you_mean(name, METRIC_NAMES)}")
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"fitness: the weight of {name} is {weight}; it must be 0 to 1")
        if name not in metrics:
            raise ConfigError(f"fitness: {name} was not measured; given: {', '.join(metrics)}")
    total = math.fsum(weights.values())
    if abs(total - 1.0) > 1e-6:
        raise ConfigError(f"fitness: the weights sum to {total:g}; they must sum to 1")
    return math.fsum(weight * metrics[name] for name, weight in weights.items())


def evaluate_detections(
    truths: Sequence[Truth],
    predictions: Sequence[Prediction],
    num_classes: int,
    *,
    max_det: int = 100,
    by_size: bool = False,
) -> DetectionMetrics:
    """Measure `predictions` against `truths`, one each per image, by the rules of COCO.

    At most `max_det` predictions of a class and image count. `by_size` adds the twelve COCO
    numbers, which costs three more matchings.
    Raises: ValueError for lists of different length, labels outside 0 .. C - 1, non-finite scores.
    """
    return measure_judged(judge_all(truths, predictions, num_classes, max_det), by_size)


def measure_judged(judged: Judged, by_size: bool = False) -> DetectionMetrics:
    """Return the metrics of predictions that are matched already; see `evaluate_detections`."""
    found, targets, whole = judged.found, judged.targets, judged.whole
    if not whole.positives.any():
        logger.warning("no targets to evaluate in %d images: every metric is 0", judged.num_images)
    ap, grid50 = _average_precision(found, whole)
    confidence = _best_confidence(found, whole)
    classes = _class_table(found, targets, whole, ap, confidence)
    coco, class_sizes = _coco_numbers(judged, ap) if by_size else ({}, {})
    return DetectionMetrics(
        map50_95=_mean(ap),
        map50=_mean(ap[:, 0]),
        map75=_mean(ap[:, 5]),
        precision=_mean([row.precision for row in classes]),
        recall=_mean([row.recall for row in classes]),
        f1=_mean([row.f1 for row in classes]),
        confidence=confidence,
        images=judged.num_images,
        targets=int(whole.positives.sum()),
        classes=classes,
        absent=tuple(np.flatnonzero(whole.positives == 0).tolist()),
        confusion=_confusion(found, targets, whole, confidence),
        curves=confidence_curves(found, whole, grid50),
        calibration=calibrate(found, whole),
        image_counts=image_counts(judged, confidence),
        coco=coco,
        class_sizes=class_sizes,
    )


def count_hits(truth: Truth, found: Prediction, num_classes: int) -> tuple[int, int, int]:
    """Return the hits and misses of one image's predictions at IoU 0.5, and its objects."""
    verdict = judge_all([truth], [found], num_classes).whole
    return int(verdict.hit[0].sum()), int(verdict.miss[0].sum()), int(verdict.positives.sum())


# ---- numbers


def _mean(values: np.ndarray | list[float]) -> float:
    return float(np.mean(values)) if len(values) else 0.0


def _average_precision(found: Found, verdict: Verdict) -> tuple[np.ndarray, np.ndarray]:
    """Return 101-point AP (K, H) and the interpolated precision at IoU 0.5 (K, 101)."""
    slices = class_slices(found, verdict)
    ap = np.zeros((len(slices), len(IOU_THRESHOLDS)))
    grid50 = np.zeros((len(slices), len(RECALL_GRID)))
    for k, (label, rows) in enumerate(slices):
        hits = np.cumsum(verdict.hit[:, rows], axis=1)  # (H, P of the class)
        misses = np.cumsum(verdict.miss[:, rows], axis=1)
        recall = hits / verdict.positives[label]
        precision = hits / np.maximum(hits + misses, 1)
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        padded = np.pad(envelope, ((0, 0), (0, 1)))  # recall that is never reached: precision 0
        for h in range(len(IOU_THRESHOLDS)):
            sampled = padded[h, np.searchsorted(recall[h], RECALL_GRID, side="left")]
            ap[k, h] = sampled.mean()
            if h == 0:
                grid50[k] = sampled
    return ap, grid50


def _best_confidence(found: Found, verdict: Verdict) -> float:
    """Return the score threshold that maximises the mean F1 at IoU 0.5, exact over all scores.

    Each prediction changes F1 = 2 hits / (hits + misses + positives) of its own class only, so the
    sum over classes at every score is the running sum of these changes by falling score.
    """
    rows_of_all, changes = [], []
    for label, rows in class_slices(found, verdict):
        hits, misses = np.cumsum(verdict.hit[0, rows]), np.cumsum(verdict.miss[0, rows])
        f1 = 2 * hits / (hits + misses + verdict.positives[label])
        rows_of_all.append(rows)
        changes.append(np.diff(f1, prepend=0.0))
    rows = np.concatenate([np.zeros(0, np.int64), *rows_of_all])
    if not len(rows):
        return 0.0
    order = np.argsort(-found.scores[rows], kind="stable")
    scores = found.scores[rows][order]
    total = np.cumsum(np.concatenate(changes)[order])
    last_of_equals = np.append(scores[1:] != scores[:-1], True)
    total = np.where(last_of_equals, np.round(total, 12), -1.0)  # equal F1: the higher score
    return float(scores[np.argmax(total)])


def _class_table(
    found: Found, targets: Targets, verdict: Verdict, ap: np.ndarray, confidence: float
) -> tuple[ClassMetrics, ...]:
    taken = found.scores >= confidence
    num_classes = targets.num_classes
    hits = np.bincount(found.label[taken & verdict.hit[0]], minlength=num_classes)
    misses = np.bincount(found.label[taken & verdict.miss[0]], minlength=num_classes)
    with_class = np.unique(targets.group[~targets.ignored]) % num_classes
    images = np.bincount(with_class, minlength=num_classes)
    table = []
    for c, ap_of_class in zip(np.flatnonzero(verdict.positives), ap, strict=True):
        positives = int(verdict.positives[c])
        row = ClassMetrics(
            label=int(c),
            images=int(images[c]),
            targets=positives,
            precision=float(hits[c] / max(hits[c] + misses[c], 1)),
            recall=float(hits[c] / positives),
            f1=float(2 * hits[c] / (hits[c] + misses[c] + positives)),
            ap50=float(ap_of_class[0]),
            ap50_95=float(ap_of_class.mean()),
        )
        table.append(row)
    return tuple(table)


def _confusion(found: Found, targets: Targets, verdict: Verdict, confidence: float) -> np.ndarray:
    """Return the (C + 1, C + 1) counts at IoU 0.5 of the predictions with score >= `confidence`.

    First come the matches that precision and recall count: the diagonal holds their hits, a column
    (without background) sums to hits + misses. What is left is matched across classes by score.
    """
    background = targets.num_classes
    taken = found.scores >= confidence
    matrix = np.zeros((background + 1, background + 1), np.int64)
    hit = taken & verdict.hit[0]
    np.add.at(matrix, (found.label[hit], found.label[hit]), 1)
    missed = ~targets.ignored
    missed[verdict.matched[0, hit]] = False
    left_targets = np.flatnonzero(missed)
    wrong = np.flatnonzero(taken & verdict.miss[0])
    wrong = wrong[np.lexsort((-found.scores[wrong], found.image[wrong]))]
    no_crowd = np.zeros(len(left_targets), bool)
    pairs = overlapping_pairs(
        found.image[wrong],
        found.boxes[wrong],
        targets.image[left_targets],
        targets.boxes[left_targets],
        no_crowd,
        IOU_THRESHOLDS[0],
    )
    partner = match(pairs, no_crowd, no_crowd, IOU_THRESHOLDS[:1], len(wrong))[0]
    true_labels = np.append(targets.label[left_targets], background)  # index -1 = no partner
    np.add.at(matrix, (true_labels[partner], found.label[wrong]), 1)
    lonely = np.setdiff1d(np.arange(len(left_targets)), partner)
    np.add.at(matrix, (targets.label[left_targets[lonely]], background), 1)
    return matrix


def _coco_numbers(
    judged: Judged, ap: np.ndarray
) -> tuple[dict[str, float], dict[str, dict[int, float]]]:
    """Return the twelve numbers of `COCOeval.summarize` in its order, and AP by size and class."""
    found, targets, whole = judged.found, judged.targets, judged.whole

    def mean_recall(verdict: Verdict, max_rank: int) -> float:
        present = np.flatnonzero(verdict.positives)
        counted = verdict.hit & (found.rank < max_rank)
        hits = np.array(
            [np.bincount(found.label[row], minlength=targets.num_classes) for row in counted]
        )
        recall = hits[:, present] / verdict.positives[present]  # (H, K)
        return float(recall.mean()) if recall.size else -1.0

    sized = {name: judge(found, targets, judged.pairs, area) for name, area in SIZES.items()}
    numbers = {
        name: float(values.mean()) if values.size else -1.0
        for name, values in {"AP": ap, "AP50": ap[:, 0], "AP75": ap[:, 5]}.items()
    }
    by_class = {}
    for name, verdict in sized.items():
        size_ap, _ = _average_precision(found, verdict)
        numbers[f"AP_{name}"] = float(size_ap.mean()) if size_ap.size else -1.0
        labels = np.flatnonzero(verdict.positives).tolist()
        by_class[name] = dict(zip(labels, size_ap.mean(axis=1).tolist(), strict=True))
    for count in (1, 10, 100):
        numbers[f"AR{count}"] = mean_recall(whole, count)
    for name, verdict in sized.items():
        numbers[f"AR_{name}"] = mean_recall(verdict, 100)
    return numbers, by_class
