"""The bootstrap: weights against repeated images, intervals and pairs."""

import numpy as np
import pytest

from detector.curves import image_counts
from detector.errors import ConfigError
from detector.matching import Prediction, Truth, judge_all
from detector.metrics import METRIC_NAMES, evaluate_detections
from detector.resampling import Resampler, bootstrap, drawn_weights, paired_differences

WEIGHTS = {"mAP50-95": 0.5, "F1": 0.5}


def scene(images: int, noise: float, seed: int = 0) -> tuple[list[Truth], list[Prediction]]:
    """Targets of two classes, predictions that are off by `noise` pixels, and false ones."""
    rng = np.random.default_rng(seed)
    truths, guesses = [], []
    for _ in range(images):
        t = int(rng.integers(0, 6))
        corner = rng.uniform(0, 200, (t, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(20, 60, (t, 2))], axis=1)
        labels = rng.integers(0, 2, t)
        truths.append(Truth(boxes, labels, rng.random(t) < 0.1))
        false = rng.uniform(0, 200, (3, 2))
        moved = [boxes + rng.normal(0, noise, (t, 4)), np.concatenate([false, false + 30], axis=1)]
        own = np.concatenate([labels, rng.integers(0, 2, 3)])
        guesses.append(Prediction(np.concatenate(moved), rng.random(t + 3), own))
    return truths, guesses


def test_weights_are_repeated_images() -> None:
    truths, guesses = scene(12, 5)
    resampler = Resampler(judge_all(truths, guesses, 2))
    for weights in [np.ones(12, int), *drawn_weights(12, 100, 3)]:
        chosen = np.repeat(np.arange(12), weights)
        repeated = evaluate_detections([truths[i] for i in chosen], [guesses[i] for i in chosen], 2)
        values = dict(zip(METRIC_NAMES, resampler.metrics(weights), strict=True))
        assert values == pytest.approx(repeated.summary(), abs=1e-9)


def test_a_resample_without_a_class_has_the_mean_of_the_others() -> None:
    box = np.array([[0.0, 0, 10, 10]])
    truths = [Truth(box, np.array([label])) for label in (0, 1)]
    guesses = [Prediction(box, np.array([0.9]), np.array([0])) for _ in range(2)]
    resampler = Resampler(judge_all(truths, guesses, 2))
    assert resampler.metrics(np.array([2, 0])).tolist() == [1.0] * 5
    assert resampler.metrics(np.array([0, 2])).tolist() == [0.0] * 5
    assert Resampler(judge_all([], [], 2)).metrics(np.zeros(0, int)).tolist() == [0.0] * 5


def test_intervals_hold_the_value_and_shrink_with_more_images() -> None:
    widths = []
    for images in (15, 150):
        truths, guesses = scene(images, 6)
        value = evaluate_detections(truths, guesses, 2).summary()["mAP50-95"]
        low, high = bootstrap(judge_all(truths, guesses, 2), WEIGHTS, 200)["mAP50-95"]
        assert low < value < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2  # a tenth of the variance


def test_a_better_detector_is_told_from_its_equal() -> None:
    truths, good = scene(60, 2)
    _, bad = scene(60, 9)
    judged = [judge_all(truths, guesses, 2) for guesses in (bad, good)]
    found = paired_differences(judged[0], judged[1], WEIGHTS, 200)
    assert found["fitness"].low > 0 and found["fitness"].p <= 0.02
    assert found["fitness"].value == pytest.approx(
        0.5 * (found["mAP50-95"].value + found["F1"].value)
    )
    same = paired_differences(judged[0], judged[0], WEIGHTS, 100)["fitness"]
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_few_resamples_are_refused() -> None:
    with pytest.raises(ConfigError, match="99 resamples are too few; allowed: 100 or more"):
        bootstrap(judge_all(*scene(3, 1), 2), WEIGHTS, 99)


def test_counts_of_each_image_add_up_to_precision_and_recall() -> None:
    truths, guesses = scene(20, 5)
    judged = judge_all(truths, guesses, 2)
    result = evaluate_detections(truths, guesses, 2)
    hits, wrong, missed = image_counts(judged, result.confidence).sum(axis=0)
    assert hits == result.confusion[:2, :2].trace()
    assert hits + wrong == result.confusion[:, :2].sum()
    assert hits + missed == result.targets
