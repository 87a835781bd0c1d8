import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from detector.config import TrainConfig, resolve
from detector.data.sample import Sample
from detector.data.wrappers import (
    chosen_samples,
    class_balanced,
    image_weights,
    label_map,
    relabel,
    repeat,
    take_fraction,
)
from detector.errors import ConfigError, DataError


def sample(name: str, labels: list[int], crowd: list[bool] | None = None) -> Sample:
    count = len(labels)
    boxes = np.tile(np.array([[1, 1, 9, 9]], np.float32), (count, 1))
    crowds = np.array(crowd or [False] * count, bool)
    return Sample(
        Path(f"{name}.png"), (10, 10), boxes, np.array(labels, np.int64),
        np.zeros(count, bool), crowds,
    )  # fmt: skip


def names(samples: list[Sample]) -> list[str]:
    return [item.id for item in samples]


LETTERS = [sample(letter, [0]) for letter in "abcdefgh"]


# ---- fraction and repeat


def test_fraction_takes_the_stated_share_in_order_by_the_seed() -> None:
    half = take_fraction(LETTERS, 0.5, seed=1)
    assert len(half) == 4 and names(half) == sorted(names(half))
    assert names(take_fraction(LETTERS, 0.5, seed=1)) == names(half)
    assert any(names(take_fraction(LETTERS, 0.5, seed=seed)) != names(half) for seed in range(2, 5))
    assert take_fraction(LETTERS, 1.0, seed=1) == LETTERS


def test_a_smaller_fraction_is_part_of_a_larger_one() -> None:
    shares = [set(names(take_fraction(LETTERS, share, 3))) for share in (0.01, 0.25, 0.6, 1.0)]
    assert [len(share) for share in shares] == [1, 2, 5, 8]  # at least one; round(4.8) = 5
    assert all(small < large for small, large in itertools.pairwise(shares))


@pytest.mark.parametrize("fraction", [0, -0.5, 1.5, float("nan")])
def test_fraction_out_of_range_is_an_error(fraction: float) -> None:
    with pytest.raises(ConfigError, match=r"fraction=.*above 0 and at most 1"):
        take_fraction(LETTERS, fraction, 0)


def test_repeat_goes_round() -> None:
    three = LETTERS[:3]
    assert [three.index(item) for item in repeat(three, 2)] == [0, 1, 2, 0, 1, 2]  # idx % n


@pytest.mark.parametrize("times", [0, -1, 1.5, True])
def test_repeat_needs_a_whole_number(times: object) -> None:
    with pytest.raises(ConfigError, match=f"repeat={times} must be a whole number"):
        repeat(LETTERS, times)  # type: ignore[arg-type]


# ---- class balance


def test_class_balance_by_hand() -> None:
    # 8 images: class 0 in 7 (f = 7/8), class 1 in 2 (f = 1/4), class 2 in 1 (f = 1/8).
    # threshold 1/2: r(0) = max(1, sqrt(4/7)) = 1, r(1) = sqrt(2) = 1.41, r(2) = sqrt(4) = 2.
    # ceil of the largest: images with class 1: 2 times, with class 2: 2 times, the rest once.
    samples = [sample(str(i), [0, 0]) for i in range(5)]
    samples += [sample("one", [0, 1]), sample("both", [1, 0]), sample("two", [2])]
    counts = Counter(names(class_balanced(samples, 0.5)))
    assert counts == {**dict.fromkeys("01234", 1), "one": 2, "both": 2, "two": 2}
    # threshold 1: r(1) = sqrt(4) = 2, r(2) = sqrt(8) = 2.83 -> 3; r(0) = sqrt(8/7) = 1.07 -> 2
    counts = Counter(names(class_balanced(samples, 1.0)))
    assert counts == {**dict.fromkeys("01234", 2), "one": 2, "both": 2, "two": 3}


def test_background_images_are_a_class_of_their_own() -> None:
    # 9 images with class 0, 1 without: f = 1/10, threshold 0.4: sqrt(4) = 2
    samples = [*(sample(str(i), [0]) for i in range(9)), sample("none", [])]
    assert Counter(names(class_balanced(samples, 0.4)))["none"] == 2
    # a crowd region is not trained on: f = 2/10, sqrt(2) = 1.41 -> 2
    samples[0] = sample("crowd", [0], [True])
    assert Counter(names(class_balanced(samples, 0.4)))["crowd"] == 2


@pytest.mark.parametrize("threshold", [0, -0.1, 1.01, float("nan")])
def test_threshold_out_of_range_is_an_error(threshold: float) -> None:
    with pytest.raises(ConfigError, match=r"class_balanced=.*above 0 and at most 1"):
        class_balanced(LETTERS, threshold)


# ---- image weights


def test_image_weights_by_hand() -> None:
    # boxes: class 0: 4, class 1: 1, class 2: none (counts as 1). 1/count = 1/4, 1, 1; sum 9/4.
    # class weights 1/9, 4/9, 4/9; times 1 - mAP (0.5, 0.75, 0): 1/18, 1/9, 4/9.
    # images: 3 boxes of class 0: 3/18; one of each: 1/18 + 2/18 = 3/18; none: 0. Sum 6/18.
    samples = [sample("a", [0, 0, 0]), sample("b", [0, 1]), sample("c", [])]
    assert image_weights(samples, [0.5, 0.75, 0.0]) == pytest.approx([0.5, 0.5, 0.0])


def test_where_nothing_is_left_to_learn_all_images_weigh_the_same() -> None:
    samples = [sample("a", [0]), sample("b", [1])]
    assert image_weights(samples, [1.0, 1.0]) == pytest.approx([0.5, 0.5])
    assert image_weights([sample("c", []), sample("d", [])], [0.0]) == pytest.approx([0.5, 0.5])


def test_crowd_regions_give_no_weight() -> None:
    samples = [sample("a", [0], [True]), sample("b", [0])]
    assert image_weights(samples, [0.0]) == pytest.approx([0.0, 1.0])


# ---- classes


def test_labels_follow_the_names_whatever_their_order() -> None:  # B-63
    assert label_map("b.yaml", ("dog", "cat"), ("cat", "dog")) == [1, 0]
    (moved,) = relabel([sample("a", [0, 1, 1])], [1, 0])
    assert moved.labels.tolist() == [1, 0, 0] and moved.labels.dtype == np.int64
    (empty,) = relabel([sample("b", [])], [1, 0])
    assert empty.labels.shape == (0,) and empty.labels.dtype == np.int64


def test_other_classes_are_refused_with_the_difference() -> None:  # B-63
    with pytest.raises(DataError) as error:
        label_map("b.yaml", ("cat", "emu", "fox"), ("cat", "dog"))
    assert str(error.value).startswith("b.yaml: lacks dog and has emu, fox besides")
    with pytest.raises(DataError, match=r"b\.yaml: lacks dog; sets"):
        label_map("b.yaml", ("cat",), ("cat", "dog"))


# ---- all together


def test_settings_choose_fraction_then_balance_then_repeats() -> None:
    samples = [*LETTERS, sample("rare", [1])]
    assert chosen_samples(samples, TrainConfig()) == samples
    config = TrainConfig(class_balanced=0.4, repeat=2)  # f(1) = 1/9: sqrt(3.6) = 1.9 -> 2
    counts = Counter(names(chosen_samples(samples, config)))
    assert counts == {**dict.fromkeys("abcdefgh", 2), "rare": 4}
    config = TrainConfig(fraction=0.5, repeat=3, seed=1)
    expected = [item for item in take_fraction(samples, 0.5, 1) for _ in range(3)]
    assert sorted(names(chosen_samples(samples, config))) == names(expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [("fraction", 0), ("fraction", 1.1), ("class_balanced", -0.1), ("class_balanced", 2),
     ("repeat", 0), ("repeat", 1.5), ("single_cls", "maybe")],
)  # fmt: skip
def test_wrong_settings_are_named(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        resolve({name: value})
