"""VOC's AP against numbers worked by hand and a loop over predictions as VOCdevkit writes it."""

import numpy as np
import pytest

from detector.matching import Prediction, Truth
from detector.metrics import evaluate_detections
from detector.voc_metrics import VocMetrics, evaluate_voc


def truth(*rows: tuple[float, ...], difficult: list[bool] | None = None) -> Truth:
    """Rows of x1, y1, x2, y2, label."""
    table = np.array(rows, float).reshape(-1, 5)
    mask = None if difficult is None else np.array(difficult)
    return Truth(table[:, :4], table[:, 4].astype(int), None, mask)


def found(*rows: tuple[float, ...]) -> Prediction:
    """Rows of x1, y1, x2, y2, score, label."""
    table = np.array(rows, float).reshape(-1, 6)
    return Prediction(table[:, :4], table[:, 4], table[:, 5].astype(int))


def ap50(result: VocMetrics, rule: str) -> list[float]:
    return result.ap[rule][:, 0].tolist()


def row_of_targets(count: int) -> list[tuple[float, ...]]:
    return [(20 * n, 0, 20 * n + 10, 10, 0) for n in range(count)]


@pytest.mark.parametrize("hits", [3, 6, 7])
def test_a_recall_of_tenths_is_reached_exactly(hits: int) -> None:
    # B-55. Of ten targets the first `hits` are found, then a false positive, then one more.
    # Recall hits / 10 has precision 1: the points 0, .1 ... hits / 10 count 1 each. The next one
    # has precision (hits + 1) / (hits + 2), the others 0. np.arange(0, 1.1, 0.1) holds
    # 0.30000000000000004 and alike for 3, 6 and 7, and gives one point less.
    targets = row_of_targets(10)
    rows = [(*box[:4], 0.9 - n / 100, 0) for n, box in enumerate(targets[: hits + 1])]
    late = (*rows[-1][:4], 0.1, 0)
    result = evaluate_voc(
        [truth(*targets)], [found(*rows[:-1], (900, 0, 910, 10, 0.5, 0), late)], 1
    )
    expected = (hits + 1 + (hits + 1) / (hits + 2)) / 11
    assert ap50(result, "2007") == pytest.approx([expected])


def test_two_ways_to_one_area_by_hand() -> None:
    # Four targets; by score: hit, miss, hit, hit. Precisions 1, 1/2, 2/3, 3/4 at recalls 1/4, 1/4,
    # 2/4, 3/4; the envelope is 1 up to 1/4, then 3/4 up to 3/4.
    targets = row_of_targets(4)
    guesses = found(
        (*targets[0][:4], 0.9, 0), (900, 0, 910, 10, 0.8, 0),
        (*targets[1][:4], 0.7, 0), (*targets[2][:4], 0.6, 0),
    )  # fmt: skip
    result = evaluate_voc([truth(*targets)], [guesses], 1)
    assert ap50(result, "2012") == pytest.approx([0.25 * 1 + 0.5 * 0.75])
    # points 0, .1, .2: 1; .3 to .7: 3/4; .8, .9, 1: 0
    assert ap50(result, "2007") == pytest.approx([(3 * 1 + 5 * 0.75) / 11])


def test_a_class_without_targets_is_excluded_and_named() -> None:
    # B-54: dividing by no targets, or counting the class as 0, halves the mean.
    guesses = found((0, 0, 10, 10, 0.9, 0), (0, 0, 10, 10, 0.95, 1))
    result = evaluate_voc([truth((0, 0, 10, 10, 0))], [guesses], 2)
    assert (result.labels, result.absent) == ((0,), (1,))
    assert result.mean("2007")["mAP50"] == result.mean("2012")["mAP50"] == 1.0
    assert list(result.report(("cat", "dog"))["2007"]["classes"]) == ["cat"]  # type: ignore[call-overload]


def test_no_targets_at_all_give_zeros() -> None:
    result = evaluate_voc([truth()], [found((0, 0, 1, 1, 0.5, 0))], 2)
    assert result.absent == (0, 1)
    assert result.mean("2007") == {"mAP50": 0.0, "mAP50-95": 0.0}


def test_difficult_targets_are_neither_right_nor_wrong_and_a_second_look_is_wrong() -> None:
    targets = truth((0, 0, 10, 10, 0), (50, 0, 60, 10, 0), difficult=[False, True])
    once = found((0, 0, 10, 10, 0.9, 0), (50, 0, 60, 10, 0.95, 0), (50, 0, 60, 10, 0.94, 0))
    assert ap50(evaluate_voc([targets], [once], 1), "2012") == [1.0]
    twice = found((0, 0, 10, 10, 0.8, 0), (0, 0, 10, 10, 0.9, 0), (90, 0, 95, 5, 0.85, 0))
    # by score: hit, miss (nothing there), miss (taken): the area is 1 all the same
    assert ap50(evaluate_voc([targets], [twice], 1), "2012") == [1.0]
    reverse = found((0, 0, 10, 10, 0.8, 0), (90, 0, 95, 5, 0.9, 0))
    assert ap50(evaluate_voc([targets], [reverse], 1), "2012") == [0.5]


def test_the_nearest_target_is_wanted_even_if_it_is_taken() -> None:
    # Both predictions are nearest to the first target. COCO gives the second one the target that
    # is left (IoU 0.6); VOC calls it a duplicate.
    targets = truth((0, 0, 10, 10, 0), (4, 0, 14, 10, 0))
    guesses = found((0, 0, 10, 10, 0.9, 0), (1.5, 0, 11.5, 10, 0.8, 0))
    assert ap50(evaluate_voc([targets], [guesses], 1), "2012") == [0.5]
    assert evaluate_detections([targets], [guesses], 1).map50 == 1.0


def test_an_iou_of_exactly_the_threshold_is_not_enough() -> None:
    # 10 x 10 against its left half of 5 x 10: 50 of 100 pixels
    half = found((0, 0, 5, 10, 0.9, 0))
    assert ap50(evaluate_voc([truth((0, 0, 10, 10, 0))], [half], 1), "2012") == [0.0]
    assert evaluate_detections([truth((0, 0, 10, 10, 0))], [half], 1).map50 == 1.0


# ---- as VOCdevkit does it


def devkit(truths: list[Truth], guesses: list[Prediction], label: int, limit: float) -> list[float]:
    """AP of 11 and of all points by VOCevaldet's loop, boxes in VOC's pixels with its +1."""

    def corners(boxes: np.ndarray) -> np.ndarray:
        return boxes + np.array([1, 1, 0, 0])  # ours -> xmin, ymin, xmax, ymax

    boxes = [corners(t.boxes[t.labels == label]) for t in truths]
    difficult = [t.difficult[t.labels == label] for t in truths]  # type: ignore[index]
    taken = [np.zeros(len(one), bool) for one in boxes]
    positives = sum(int((~one).sum()) for one in difficult)
    rows = [
        (score, image, box)
        for image, guess in enumerate(guesses)
        for score, box, own in zip(guess.scores, corners(guess.boxes), guess.labels, strict=True)
        if own == label
    ]
    hits, misses, curve = 0, 0, []
    for _, image, box in sorted(rows, key=lambda row: -row[0]):
        best, place = -1.0, -1
        for n, other in enumerate(boxes[image]):
            width = min(box[2], other[2]) - max(box[0], other[0]) + 1
            height = min(box[3], other[3]) - max(box[1], other[1]) + 1
            if width > 0 and height > 0:
                area = sum((b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (box, other))
                overlap = width * height / (area - width * height)
                best, place = (overlap, n) if overlap > best else (best, place)
        if best > limit and difficult[image][place]:
            continue
        if best > limit and not taken[image][place]:
            taken[image][place] = True
            hits += 1
        else:
            misses += 1
        curve.append((hits / positives, hits / (hits + misses)))
    eleven = [max([p for r, p in curve if r >= k / 10 - 1e-9], default=0.0) for k in range(11)]
    recalls = [0.0, *(r for r, _ in curve)]
    area = sum(
        (recalls[n + 1] - recalls[n]) * max(p for _, p in curve[n:]) for n in range(len(curve))
    )
    return [sum(eleven) / 11, area]


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_the_loop_of_the_devkit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truths, guesses = [], []
    for _ in range(8):
        t = int(rng.integers(0, 7))
        corner = rng.uniform(0, 60, (t, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(8, 40, (t, 2))], axis=1)
        labels = rng.integers(0, 2, t)
        truths.append(Truth(boxes, labels, None, rng.random(t) < 0.2))
        near = rng.integers(0, t, 4 * t) if t else np.zeros(0, int)
        moved = boxes[near] + rng.normal(0, 3, (len(near), 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        guesses.append(Prediction(moved, rng.random(len(near)), labels[near]))
    result = evaluate_voc(truths, guesses, 2)
    for k, label in enumerate(result.labels):
        for level, limit in ((0, 0.5), (5, 0.75)):
            ours = [result.ap[rule][k, level] for rule in ("2007", "2012")]
            assert ours == pytest.approx(devkit(truths, guesses, label, limit), abs=1e-9)
