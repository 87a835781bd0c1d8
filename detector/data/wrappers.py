"""Which images an epoch shows and how often: pure functions from a list of samples to another.

A sample that is to be shown twice stands in the list twice; the image cache holds it once.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from detector.config import TrainConfig
from detector.data.sample import Sample
from detector.errors import ConfigError, DataError

FRACTION_STREAM = 101  # of the seed's streams: 0 orders epochs, 1 augments
SINGLE_CLASS = "object"


def relabel(samples: Sequence[Sample], labels: Sequence[int]) -> list[Sample]:
    """Return the samples with label i replaced by `labels[i]`."""
    table = np.asarray(labels, dtype=np.int64)
    return [replace(sample, labels=table[sample.labels]) for sample in samples]


def label_map(source: str, names: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Return the label among `wanted` of each of a set's `names`, whatever their order (B-63).

    Raises: DataError: the two do not hold the same classes; `source` is the set with `names`.
    """
    missing = [name for name in wanted if name not in names]
    extra = [name for name in names if name not in wanted]
    if missing or extra:
        parts = [f"lacks {', '.join(missing)}"] if missing else []
        parts += [f"has {', '.join(extra)} besides"] if extra else []
        raise DataError(
            f"{source}: {' and '.join(parts)}; sets that are used together need the same names "
            "(a class without boxes may stand there)"
        )
    return [list(wanted).index(name) for name in names]


def chosen_samples(samples: Sequence[Sample], config: TrainConfig) -> list[Sample]:
    """Return the training samples of an epoch as the settings want them."""
    chosen = take_fraction(samples, config.fraction, config.seed)
    if config.class_balanced:
        chosen = class_balanced(chosen, config.class_balanced)
    return repeat(chosen, config.repeat)


def take_fraction(samples: Sequence[Sample], fraction: float, seed: int) -> list[Sample]:
    """Return a share of the samples, at least one, in their order; a function of the seed.

    With one seed a smaller share is part of every larger one.
    Raises: ConfigError: the fraction is not above 0 and at most 1.
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction={fraction} must be above 0 and at most 1")
    count = max(1, round(fraction * len(samples)))
    order = np.random.default_rng([seed, FRACTION_STREAM]).permutation(len(samples))
    return [samples[index] for index in sorted(order[:count])]


def repeat(samples: Sequence[Sample], times: int) -> list[Sample]:
    """Return the list `times` over: item i is sample i % n. Raises: ConfigError: times < 1."""
    if isinstance(times, bool) or not isinstance(times, int) or times < 1:
        raise ConfigError(f"repeat={times} must be a whole number, at least 1")
    return list(samples) * times


def class_balanced(samples: Sequence[Sample], threshold: float) -> list[Sample]:
    """Return the samples with each image as often as its rarest class asks for.

    f(c) is the share of images with class c, r(c) = max(1, sqrt(threshold / f(c))), and an image
    stands there ceil(max r(c)) times. Images without objects count as a class of their own.

    Raises: ConfigError: the threshold is not above 0 and at most 1.
    Source: LVIS, arXiv 1908.03195, appendix B.2.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"class_balanced={threshold} must be above 0 and at most 1")
    classes = [set(trained_labels(sample).tolist()) or {-1} for sample in samples]
    images = Counter(label for found in classes for label in found)
    factor = {
        label: max(1.0, math.sqrt(threshold * len(samples) / count))
        for label, count in images.items()
    }
    return [
        sample
        for sample, found in zip(samples, classes, strict=True)
        for _ in range(math.ceil(max(factor[label] for label in found)))
    ]


def image_weights(samples: Sequence[Sample], class_map: Sequence[float]) -> np.ndarray:
    """Return each sample's probability to be drawn, (n,) float64 with sum 1.

    `class_map` is the last mAP of each class, 0 to 1. A class weighs 1 / its boxes (1 if it has
    none), normalised, times 1 - mAP; an image weighs the sum over its boxes. Where no image weighs
    anything, all weigh the same.
    """
    num_classes = len(class_map)
    boxes = np.array([_class_counts(sample, num_classes) for sample in samples], np.float64)
    weights = 1 / np.maximum(boxes.sum(axis=0), 1)  # boxes: images x classes
    weights = weights / weights.sum() * (1 - np.asarray(class_map, np.float64))
    images = boxes @ weights
    total = images.sum()
    return images / total if total > 0 else np.full(len(samples), 1 / max(1, len(samples)))


def numbered(drawn: np.ndarray, count: int) -> np.ndarray:
    """Return draws from `count` images with i + k x count for the k-th further time of image i.

    So that each time it is shown it is augmented in its own way.
    """
    order = np.argsort(drawn, kind="stable")
    ordered = drawn[order]
    times = np.arange(len(drawn)) - np.searchsorted(ordered, ordered)
    again = np.empty_like(drawn)
    again[order] = times
    return drawn + again * count


def trained_labels(sample: Sample) -> np.ndarray:
    """Return the labels that are trained on: crowd regions are not."""
    return sample.labels[~sample.crowd]


def _class_counts(sample: Sample, num_classes: int) -> np.ndarray:
    return np.bincount(trained_labels(sample), minlength=num_classes)
