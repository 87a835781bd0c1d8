"""How precision, recall and F1 follow the confidence, and whether a score means what it says.

Shapes: P predictions, K classes that have targets. All at IoU 0.5.
"""

from dataclasses import dataclass

import numpy as np

from detector.matching import Found, Judged, Verdict, class_slices

RECALL_GRID = np.linspace(0.0, 1.0, 101)
CONFIDENCE_GRID = np.linspace(0.0, 1.0, 501)
# Edges of the bins of scores. Lower scores are left out: they are many, nearly all of them are
# wrong, and nobody acts on them.
SCORE_BINS = np.linspace(0.1, 1.0, 10)


@dataclass(frozen=True, eq=False)
class Curves:
    """Curves at IoU 0.5 of the K classes that have targets, in the order of `labels`."""

    labels: np.ndarray  # (K,)
    recall_grid: np.ndarray  # (101,)
    precision_at_recall: np.ndarray  # (K, 101) the interpolated precision whose mean is AP50
    confidence: np.ndarray  # (501,)
    precision: (
        np.ndarray
    )  # (K, 501) of the predictions with score >= confidence; 0 when there are none
    recall: np.ndarray  # (K, 501)
    f1: np.ndarray  # (K, 501)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Scores beside the share of predictions that are right, in 9 bins of scores from 0.1 to 1."""

    count: np.ndarray  # (9,) predictions in the bin
    confidence: np.ndarray  # (9,) their mean score; 0 in an empty bin
    precision: np.ndarray  # (9,) the share of them that hit

    @property
    def error(self) -> float:
        """The mean distance of score and precision over the predictions; 0 when there are none.

        Source: Guo et al. 2017 (arXiv 1706.04599), equation 3; for detections Kueppers et al. 2020
        (arXiv 2004.13546), section 3, where the confidence alone makes the bins.
        """
        gaps = np.abs(self.confidence - self.precision)
        return float((self.count * gaps).sum() / max(self.count.sum(), 1))


def confidence_curves(found: Found, verdict: Verdict, grid50: np.ndarray) -> Curves:
    """Return the curves; `grid50` (K, 101) is the interpolated precision over the recall."""
    slices = class_slices(found, verdict)
    hits = np.zeros((len(slices), len(CONFIDENCE_GRID)))
    misses = np.zeros_like(hits)
    for k, (_, rows) in enumerate(slices):
        taken = np.searchsorted(-found.scores[rows], -CONFIDENCE_GRID, side="right")
        hits[k] = np.append(0, np.cumsum(verdict.hit[0, rows]))[taken]
        misses[k] = np.append(0, np.cumsum(verdict.miss[0, rows]))[taken]
    labels = np.array([label for label, _ in slices], np.int64)
    positives = verdict.positives[labels][:, None]  # (K, 1)
    return Curves(
        labels=labels,
        recall_grid=RECALL_GRID,
        precision_at_recall=grid50,
        confidence=CONFIDENCE_GRID,
        precision=hits / np.maximum(hits + misses, 1),
        recall=hits / positives,
        f1=2 * hits / (hits + misses + positives),
    )


def calibrate(found: Found, verdict: Verdict) -> Calibration:
    """Return how far scores are from being the probability of a hit."""
    counted = verdict.hit[0] | verdict.miss[0]
    scores, hit = found.scores[counted], verdict.hit[0, counted]
    number = len(SCORE_BINS) - 1
    index = np.searchsorted(SCORE_BINS, scores, side="right") - 1  # -1: below the first edge
    index = np.minimum(index, number - 1)
    scores, hit, index = scores[index >= 0], hit[index >= 0], index[index >= 0]
    count = np.bincount(index, minlength=number)
    total = np.bincount(index, weights=scores, minlength=number)
    hits = np.bincount(index, weights=hit, minlength=number)
    return Calibration(count, total / np.maximum(count, 1), hits / np.maximum(count, 1))


def image_counts(judged: Judged, confidence: float) -> np.ndarray:
    """Return hits, false positives and missed targets (images, 3) of scores >= `confidence`."""
    found, targets, verdict = judged.found, judged.targets, judged.whole
    taken = found.scores >= confidence

    def per_image(image: np.ndarray) -> np.ndarray:
        return np.bincount(image, minlength=judged.num_images)

    hits = per_image(found.image[taken & verdict.hit[0]])
    wrong = per_image(found.image[taken & verdict.miss[0]])
    missed = per_image(targets.image[~targets.ignored]) - hits
    return np.stack([hits, wrong, missed], axis=1)
