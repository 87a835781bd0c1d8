"""How far chance in the choice of images moves the metrics: the bootstrap over images.

A resample draws as many images as there are, with replacement; an image that is drawn twice counts
twice. So its metrics are those of the same matches with whole-number weights: nothing is matched
again. Shapes: I images, K classes with targets, H IoU thresholds, P predictions of a class.

Source: Efron and Tibshirani 1993, "An introduction to the bootstrap", chapters 6 and 13 (percentile
intervals).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from detector.curves import RECALL_GRID
from detector.errors import ConfigError
from detector.matching import Judged, class_slices
from detector.metrics import METRIC_NAMES, fitness

RESAMPLES = 1000
CONFIDENCE = 0.95  # of the intervals
FEWEST = 100  # resamples: fewer say nothing about the ends of an interval


@dataclass(frozen=True, eq=False)
class _Level:
    """The hits of one class at one IoU threshold by falling score: all that its AP depends on."""

    rank: np.ndarray  # (n,) place of each hit among the predictions of the class
    image: np.ndarray  # (n,) its image
    ignored_image: np.ndarray  # (m,) images of the predictions that are neither hit nor miss
    ignored_before: np.ndarray  # (n,) how many of these come before each hit

    @classmethod
    def of(cls, hit: np.ndarray, miss: np.ndarray, image: np.ndarray) -> "_Level":
        rank, ignored = np.flatnonzero(hit), np.flatnonzero(~hit & ~miss)
        return cls(rank, image[rank], image[ignored], np.searchsorted(ignored, rank))

    def average_precision(self, weights: np.ndarray, seen: np.ndarray, positives: int) -> float:
        """Return the 101-point AP; `seen` (P,) is the running weight of the predictions."""
        if not len(self.rank):
            return 0.0
        hits = np.cumsum(weights[self.image])
        ignored = np.append(0, np.cumsum(weights[self.ignored_image]))[self.ignored_before]
        precision = hits / np.maximum(seen[self.rank] - ignored, 1)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        place = np.searchsorted(hits / positives, RECALL_GRID, side="left")
        return float(np.append(envelope, 0.0)[place].mean())


@dataclass(frozen=True, eq=False)
class _ClassRows:
    """The predictions of one class by falling score."""

    image: np.ndarray  # (P,)
    hit: np.ndarray  # (P,) bool at IoU 0.5
    miss: np.ndarray  # (P,) bool at IoU 0.5
    targets: np.ndarray  # (I,) targets of the class in each image
    levels: tuple[_Level, ...]  # (H,)


class Resampler:
    """Computes the metrics of weighted images; weights of 1 give the metrics themselves."""

    def __init__(self, judged: Judged) -> None:
        self.num_images = judged.num_images
        self.classes: list[_ClassRows] = []
        scores = []
        counted = ~judged.targets.ignored
        for label, rows in class_slices(judged.found, judged.whole):
            hit, miss = judged.whole.hit[:, rows], judged.whole.miss[:, rows]
            image = judged.found.image[rows]
            own = counted & (judged.targets.label == label)
            in_image = np.bincount(judged.targets.image[own], minlength=self.num_images)
            levels = tuple(_Level.of(h, m, image) for h, m in zip(hit, miss, strict=True))
            self.classes.append(_ClassRows(image, hit[0], miss[0], in_image, levels))
            scores.append(judged.found.scores[rows])
        joined = np.concatenate([np.zeros(0), *scores])
        self._order = np.argsort(-joined, kind="stable")
        falling = joined[self._order]
        self._last_of_equals = np.append(falling[1:] != falling[:-1], True)[: len(falling)]

    def metrics(self, weights: np.ndarray) -> np.ndarray:
        """Return the values (5,) of METRIC_NAMES for images with whole-number `weights` (I,)."""
        ap, changes, counts = [], [], []
        for rows in self.classes:
            positives = int(rows.targets @ weights)
            weight = weights[rows.image]
            hits, misses = np.cumsum(weight * rows.hit), np.cumsum(weight * rows.miss)
            counts.append((hits, misses, positives))
            if positives:
                seen = np.cumsum(weight)
                ap.append([one.average_precision(weights, seen, positives) for one in rows.levels])
                changes.append(np.diff(2 * hits / (hits + misses + positives), prepend=0.0))
            else:  # the class is not in this resample: no part of its means
                changes.append(np.zeros(len(weight)))
        if not ap:
            return np.zeros(len(METRIC_NAMES))
        kept = self._best(changes)
        table = [
            _precision_recall_f1(*one, number)
            for one, number in zip(counts, kept, strict=True)
            if one[2]
        ]
        mean_ap = np.mean(ap, axis=0)  # (H,)
        return np.array([mean_ap.mean(), mean_ap[0], *np.mean(table, axis=0)])

    def _best(self, changes: list[np.ndarray]) -> list[int]:
        """Return how many predictions of each class the confidence of the best mean F1 keeps."""
        if not len(self._order):
            return [0] * len(self.classes)
        total = np.cumsum(np.concatenate(changes)[self._order])
        total = np.where(self._last_of_equals, np.round(total, 12), -1.0)
        kept = np.sort(self._order[: int(np.argmax(total)) + 1])
        bounds = np.cumsum([0, *(len(rows.image) for rows in self.classes)])
        return np.diff(np.searchsorted(kept, bounds)).tolist()


def _precision_recall_f1(
    hits: np.ndarray, misses: np.ndarray, positives: int, kept: int
) -> tuple[float, float, float]:
    """Return the three numbers of the best `kept` predictions of a class."""
    hit, miss = (int(hits[kept - 1]), int(misses[kept - 1])) if kept else (0, 0)
    return hit / max(hit + miss, 1), hit / positives, 2 * hit / (hit + miss + positives)


# ---- intervals


def drawn_weights(num_images: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield the weights (I,) of each resample; they depend on the three numbers alone.

    Raises: ConfigError: too few resamples.
    """
    if resamples < FEWEST:
        raise ConfigError(
            f"bootstrap: {resamples} resamples are too few; allowed: {FEWEST} or more"
        )
    rng = np.random.default_rng([seed, 5])
    for _ in range(resamples):
        yield np.bincount(rng.integers(0, num_images, num_images), minlength=num_images)


def with_fitness(values: np.ndarray, weights: Mapping[str, float]) -> dict[str, float]:
    """Return metrics (5,) by their names, and the fitness."""
    named = dict(zip(METRIC_NAMES, values.tolist(), strict=True))
    return {"fitness": fitness(named, weights), **named}


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Return the ends between which the middle 95 % of the resampled values lie."""
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(values, (tail, 100 - tail))
    return float(low), float(high)


def bootstrap(
    judged: Judged, weights: Mapping[str, float], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return the 95 % interval of each metric and of the fitness over resampled images.

    Raises: ConfigError: wrong fitness weights, or too few resamples.
    """
    resampler = Resampler(judged)
    rows = [
        with_fitness(resampler.metrics(drawn), weights)
        for drawn in drawn_weights(judged.num_images, resamples, seed)
    ]
    return {name: interval([row[name] for row in rows]) for name in rows[0]}


@dataclass(frozen=True)
class Difference:
    """What a second detector has more than a first one on the same images."""

    first: float
    second: float
    low: float  # 95 % interval of second - first over resampled images
    high: float
    p: float  # of a difference as far from 0 by chance alone, both sides

    @property
    def value(self) -> float:
        return self.second - self.first


def paired_differences(
    first: Judged,
    second: Judged,
    weights: Mapping[str, float],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Difference]:
    """Compare two detectors on the same images; both see the same resamples.

    Raises: ConfigError: wrong fitness weights, or too few resamples.
    """
    pair = Resampler(first), Resampler(second)
    ones = np.ones(first.num_images, np.int64)
    whole = [with_fitness(one.metrics(ones), weights) for one in pair]
    drawn = [
        [with_fitness(one.metrics(weight), weights) for one in pair]
        for weight in drawn_weights(first.num_images, resamples, seed)
    ]
    found = {}
    for name, value in whole[0].items():
        gaps = np.array([b[name] - a[name] for a, b in drawn])
        low, high = interval(gaps)
        beyond = min((gaps <= 0).mean(), (gaps >= 0).mean())
        p = max(min(2 * float(beyond), 1.0), 1 / resamples)
        found[name] = Difference(value, whole[1][name], low, high, p)
    return found
