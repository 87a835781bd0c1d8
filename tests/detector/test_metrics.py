"""Metrics against numbers worked by hand, COCOeval, and brute force."""

import contextlib
import io
import logging

import numpy as np
import pytest

from detector.errors import ConfigError
from detector.metrics import (
    DetectionMetrics,
    Prediction,
    Truth,
    evaluate_detections,
    fitness,
)


def boxes_of(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 4)


def found(*rows: tuple[float, float, float, float, float, int]) -> Prediction:
    """Rows of x1, y1, x2, y2, score, label."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Prediction(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


def wanted(*rows: tuple[float, float, float, float, int], **masks: list[bool]) -> Truth:
    """Rows of x1, y1, x2, y2, label."""
    table = np.array(rows, np.float32).reshape(-1, 5)
    arrays = {name: np.array(mask, bool) for name, mask in masks.items()}
    return Truth(table[:, :4], table[:, 4].astype(np.int64), **arrays)


# ---- by hand


def test_perfect_detections_score_one_everywhere() -> None:
    truths = [wanted((0, 0, 10, 10, 0), (20, 20, 40, 50, 1)), wanted((5, 5, 9, 9, 1))]
    exact = [
        found((0, 0, 10, 10, 0.9, 0), (20, 20, 40, 50, 0.6, 1)),
        found((5, 5, 9, 9, 0.4, 1)),
    ]
    result = evaluate_detections(truths, exact, 2)
    assert result.summary() == dict.fromkeys(
        ("mAP50-95", "mAP50", "precision", "recall", "F1"), 1.0
    )
    assert result.map75 == 1.0
    assert result.confidence == pytest.approx(0.4)
    assert result.confusion.tolist() == [[1, 0, 0], [0, 2, 0], [0, 0, 0]]


def test_ap_of_three_predictions_by_hand() -> None:
    # Two targets; predictions by score: hit (IoU 1), miss, hit (IoU 0.6: 60 of 100 pixels).
    truths = [wanted((0, 0, 10, 10, 0), (50, 50, 60, 60, 0))]
    guesses = [found((0, 0, 10, 10, 0.9, 0), (80, 80, 90, 90, 0.8, 0), (50, 50, 60, 56, 0.7, 0))]
    result = evaluate_detections(truths, guesses, 1)
    # IoU 0.5: recall 0.5 with precision 1 (51 grid points 0 .. 0.5), then recall 1 with
    # precision 2/3 (50 points).
    assert result.map50 == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)
    # IoU 0.75: only the first one hits.
    assert result.map75 == pytest.approx(51 / 101)
    # The mean over the thresholds: the third hits up to its IoU of 60 / 100.
    thresholds = np.linspace(0.5, 0.95, 10)
    hits = sum(thresholds <= 0.6)
    expected = (hits * (51 + 100 / 3) + (10 - hits) * 51) / 1010
    assert result.map50_95 == pytest.approx(expected)
    # F1 = 2 hits / (hits + misses + 2): 2/3 after one, 2/4 after two, 4/5 after three.
    assert (result.f1, result.precision, result.recall) == pytest.approx((0.8, 2 / 3, 1.0))
    assert result.confidence == pytest.approx(0.7)


def test_second_prediction_of_one_target_is_a_false_positive() -> None:
    truths = [wanted((0, 0, 10, 10, 0))]
    twice = [found((0, 0, 10, 10, 0.9, 0), (0, 0, 10, 10, 0.8, 0))]
    result = evaluate_detections(truths, twice, 1)
    assert result.map50 == 1.0
    assert result.confidence == pytest.approx(0.9)
    low = evaluate_detections(truths, [found((0, 0, 10, 10, 0.9, 0), (0, 0, 10, 10, 0.9, 0))], 1)
    assert (low.precision, low.recall) == (0.5, 1.0)  # equal scores cannot be told apart


def test_of_two_targets_with_equal_iou_the_later_one_is_taken() -> None:
    # Both targets share 80 of 120 pixels with the first prediction, which takes the later one, as
    # COCOeval does; so the second prediction, which reaches only that, is a miss.
    truths = [wanted((0, 0, 10, 10, 0), (4, 0, 14, 10, 0))]
    guesses = [found((2, 0, 12, 10, 0.9, 0), (6, 0, 16, 10, 0.8, 0))]
    assert evaluate_detections(truths, guesses, 1).map50 == pytest.approx(51 / 101)


def test_crowd_is_neither_hit_nor_missed_and_takes_many() -> None:
    truths = [wanted((0, 0, 100, 100, 0), (200, 0, 210, 10, 0), crowd=[True, False])]
    guesses = [
        found(
            (10, 10, 20, 20, 0.9, 0),  # inside the crowd: IoU over its own area is 1
            (30, 30, 40, 40, 0.8, 0),
            (200, 0, 210, 10, 0.7, 0),
        )
    ]
    result = evaluate_detections(truths, guesses, 1)
    assert result.targets == 1
    assert result.map50 == 1.0
    assert result.confusion.tolist() == [[1, 0], [0, 0]]


def test_difficult_target_is_neither_hit_nor_missed() -> None:
    truths = [wanted((0, 0, 10, 10, 0), (50, 50, 60, 60, 0), difficult=[True, False])]
    both = evaluate_detections(truths, [found((0, 0, 10, 10, 0.9, 0), (50, 50, 60, 60, 0.8, 0))], 1)
    neither = evaluate_detections(truths, [found((50, 50, 60, 60, 0.8, 0))], 1)
    assert both.summary() == neither.summary() == dict.fromkeys(both.summary(), 1.0)


def test_class_without_targets_is_in_no_mean_and_is_named() -> None:
    truths = [wanted((0, 0, 10, 10, 2))]
    guesses = [found((0, 0, 10, 10, 0.9, 2), (0, 0, 10, 10, 0.95, 0))]
    result = evaluate_detections(truths, guesses, 3)
    assert result.map50 == 1.0
    assert result.precision == 1.0
    assert result.absent == (0, 1)
    assert [row.label for row in result.classes] == [2]
    assert result.class_map() == [0.0, 0.0, 1.0]


def test_no_targets_give_zeros_and_one_message(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        result = evaluate_detections(
            [wanted(), wanted()], [found(), found((0, 0, 1, 1, 0.5, 0))], 2
        )
    assert result.summary() == dict.fromkeys(result.summary(), 0.0)
    assert "no targets" in caplog.text
    assert result.confidence == 0.0


def test_nothing_found_gives_zeros() -> None:
    result = evaluate_detections([wanted((0, 0, 10, 10, 0)), wanted()], [found(), found()], 1)
    assert result.summary() == dict.fromkeys(result.summary(), 0.0)
    assert result.confusion.tolist() == [[0, 1], [0, 0]]


def test_no_images_at_all_give_zeros() -> None:
    result = evaluate_detections([], [], 3, by_size=True)
    assert result.summary() == dict.fromkeys(result.summary(), 0.0)
    assert result.coco["AP"] == -1


def test_false_positives_on_background_images_count() -> None:
    truths = [wanted((0, 0, 10, 10, 0)), wanted()]
    guesses = [found((0, 0, 10, 10, 0.5, 0)), found((0, 0, 10, 10, 0.9, 0))]
    assert evaluate_detections(truths, guesses, 1).map50 == pytest.approx(0.5)


def test_only_the_best_predictions_of_class_and_image_count() -> None:
    truths = [wanted((0, 0, 10, 10, 0))]
    guesses = [found((50, 50, 60, 60, 0.9, 0), (0, 0, 10, 10, 0.8, 0))]
    assert evaluate_detections(truths, guesses, 1, max_det=1).map50 == 0.0
    assert evaluate_detections(truths, guesses, 1, max_det=2).map50 == pytest.approx(0.5)


def test_confusion_shows_swapped_class_missed_and_invented() -> None:
    truths = [wanted((0, 0, 10, 10, 0), (20, 20, 30, 30, 1), (40, 40, 50, 50, 1))]
    guesses = [
        found(
            (0, 0, 10, 10, 0.9, 1),  # a 0 called 1
            (20, 20, 30, 30, 0.9, 1),  # right
            (70, 70, 80, 80, 0.9, 0),  # nothing there
        )
    ]
    result = evaluate_detections(truths, guesses, 2)
    # rows: truth 0, 1, background; columns: predicted 0, 1, background
    assert result.confusion.tolist() == [[0, 1, 0], [0, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize(
    ("truth", "guess", "text"),
    [
        (wanted((0, 0, 1, 1, 2)), found(), "label 2 is outside 0 .. 1"),
        (wanted(), found((0, 0, 1, 1, 0.5, -1)), "label -1 is outside 0 .. 1"),
        (wanted(), found((0, 0, 1, 1, np.nan, 0)), "not finite"),
    ],
)
def test_bad_labels_and_scores_are_refused(truth: Truth, guess: Prediction, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        evaluate_detections([truth], [guess], 2)


def test_one_prediction_for_each_image_is_needed() -> None:
    with pytest.raises(ValueError, match="1 predictions for 2 images"):
        evaluate_detections([wanted(), wanted()], [found()], 1)


# ---- against other implementations


def random_case(
    rng: np.random.Generator, num_images: int, num_classes: int, coarse: bool
) -> tuple[list[Truth], list[Prediction]]:
    """Draw targets and noisy predictions; `coarse`: whole pixels and few scores, so many ties."""
    truths, predictions = [], []
    used = max(1, num_classes - 1)  # the last class stays empty
    for _ in range(num_images):
        t, extra = int(rng.integers(0, 8)), int(rng.integers(0, 30))
        corner, side = rng.uniform(0, 200, (t, 2)), np.exp(rng.uniform(1.5, 5, (t, 2)))
        boxes = np.concatenate([corner, corner + side], axis=1)
        labels = rng.integers(0, used, t)
        near = rng.integers(0, t, 3 * t) if t else np.zeros(0, int)
        moved = boxes[near] + rng.normal(0, 0.12, (len(near), 4)) * np.tile(side[near], 2)
        other_corner = rng.uniform(0, 200, (extra, 2))
        other = np.concatenate(
            [other_corner, other_corner + rng.uniform(4, 90, (extra, 2))], axis=1
        )
        guesses = np.concatenate([moved, other])
        guesses[:, 2:] = np.maximum(guesses[:, 2:], guesses[:, :2] + 1)
        guess_labels = np.concatenate([labels[near], rng.integers(0, num_classes, extra)])
        scores = rng.uniform(0.001, 1, len(guesses))
        if coarse:
            boxes, guesses = np.round(boxes / 8) * 8, np.round(guesses / 8) * 8
            boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 8)
            guesses[:, 2:] = np.maximum(guesses[:, 2:], guesses[:, :2] + 8)
            scores = np.round(scores, 1)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) * rng.uniform(0.5, 1, t)
        crowd = rng.random(t) < 0.15
        truths.append(Truth(boxes.astype(np.float32), labels, crowd, None, areas))
        predictions.append(
            Prediction(guesses.astype(np.float32), scores.astype(np.float32), guess_labels)
        )
    return truths, predictions


def cocoeval(
    truths: list[Truth], predictions: list[Prediction], num_classes: int
) -> tuple[list[float], np.ndarray]:
    """Return the twelve numbers and precision (H, 101, C, areas, max_dets) of pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations, results = [], []
    for image, (truth, guess) in enumerate(zip(truths, predictions, strict=True), 1):
        for n, box in enumerate(truth.boxes.astype(float)):
            assert truth.areas is not None and truth.crowd is not None
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(truth.labels[n]),
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                    "area": float(truth.areas[n]),
                    "iscrowd": int(truth.crowd[n]),
                }
            )
        for n, box in enumerate(guess.boxes.astype(float)):
            results.append(
                {
                    "image_id": image,
                    "category_id": int(guess.labels[n]),
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                    "score": float(guess.scores[n]),
                }
            )
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": n + 1} for n in range(len(truths))],
            "annotations": annotations,
            "categories": [{"id": n} for n in range(num_classes)],
        }
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(results), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return list(judge.stats), judge.eval["precision"]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("coarse", [False, True], ids=["random", "ties"])
def test_equal_to_pycocotools(seed: int, coarse: bool) -> None:
    rng = np.random.default_rng([seed, coarse])
    truths, predictions = random_case(rng, 12, 4, coarse)
    ours = evaluate_detections(truths, predictions, 4, by_size=True)
    stats, precision = cocoeval(truths, predictions, 4)
    assert list(ours.coco.values()) == pytest.approx(stats, abs=1e-6)
    assert (ours.map50_95, ours.map50, ours.map75) == pytest.approx(stats[:3], abs=1e-6)
    for row in ours.classes:
        by_coco = precision[:, :, row.label, 0, 2]
        assert row.ap50_95 == pytest.approx(by_coco.mean(), abs=1e-6)
        assert row.ap50 == pytest.approx(by_coco[0].mean(), abs=1e-6)
    assert {row.label for row in ours.classes} == set(
        np.flatnonzero(precision[0, 0, :, 0, 2] > -1).tolist()
    )


def test_equal_to_pycocotools_with_more_than_100_predictions() -> None:
    rng = np.random.default_rng(5)
    truths, few = random_case(rng, 3, 2, False)
    many = []
    for truth, guess in zip(truths, few, strict=True):
        start = rng.uniform(0, 200, (300, 2))
        boxes = np.concatenate([start, start + rng.uniform(4, 90, (300, 2))], axis=1)
        boxes = np.concatenate([guess.boxes, boxes.astype(np.float32), truth.boxes])
        scores = rng.uniform(0.001, 1, len(boxes)).astype(np.float32)
        labels = np.concatenate([guess.labels, rng.integers(0, 2, 300), truth.labels])
        many.append(Prediction(boxes, scores, labels))
    ours = evaluate_detections(truths, many, 2, by_size=True)
    assert list(ours.coco.values()) == pytest.approx(cocoeval(truths, many, 2)[0], abs=1e-6)


def f1_at(truths: list[Truth], predictions: list[Prediction], confidence: float) -> float:
    """Brute force: the recall and precision of the predictions above a confidence alone."""
    kept = [
        Prediction(*(values[guess.scores >= confidence] for values in vars(guess).values()))
        for guess in predictions
    ]
    result = evaluate_detections(truths, kept, 4)
    lowest = min((guess.scores.min() for guess in kept if len(guess.scores)), default=1.0)
    at_all = np.searchsorted(result.curves.confidence, lowest, side="right") - 1
    return float(result.curves.f1[:, at_all].mean())


@pytest.mark.parametrize("coarse", [False, True], ids=["random", "ties"])
def test_no_other_confidence_has_a_higher_mean_f1(coarse: bool) -> None:
    truths, predictions = random_case(np.random.default_rng(11), 6, 4, coarse)
    result = evaluate_detections(truths, predictions, 4)
    tried = np.unique(np.concatenate([guess.scores for guess in predictions]))
    scores = [f1_at(truths, predictions, c) for c in tried]
    assert result.f1 == pytest.approx(max(scores), abs=1e-9)
    assert result.confidence == pytest.approx(float(tried[::-1][np.argmax(scores[::-1])]))


def test_confusion_agrees_with_precision_and_recall() -> None:
    truths, predictions = random_case(np.random.default_rng(3), 20, 4, False)
    result = evaluate_detections(truths, predictions, 4)
    for row in result.classes:
        hits = result.confusion[row.label, row.label]
        assert row.recall == pytest.approx(hits / result.confusion[row.label].sum())
        assert row.precision == pytest.approx(hits / result.confusion[:, row.label].sum())
        assert row.targets == result.confusion[row.label].sum()


def test_curves_agree_with_the_numbers() -> None:
    truths, predictions = random_case(np.random.default_rng(4), 20, 4, False)
    result = evaluate_detections(truths, predictions, 4)
    curves = result.curves
    ap50 = [row.ap50 for row in result.classes]
    assert curves.precision_at_recall.mean(axis=1) == pytest.approx(np.array(ap50))
    assert curves.f1.mean(axis=0).max() <= result.f1 + 1e-12
    product = curves.precision * curves.recall
    total = curves.precision + curves.recall
    harmonic = np.divide(2 * product, total, out=np.zeros_like(total), where=total > 0)
    assert curves.f1 == pytest.approx(harmonic)


def test_order_of_images_and_small_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    truths, predictions = random_case(np.random.default_rng(7), 15, 4, False)
    plain = evaluate_detections(truths, predictions, 4, by_size=True)
    backwards = evaluate_detections(truths[::-1], predictions[::-1], 4, by_size=True)
    monkeypatch.setattr("detector.matching.PAIRS_AT_ONCE", 7)
    chunked = evaluate_detections(truths, predictions, 4, by_size=True)
    assert chunked.coco == plain.coco
    assert backwards.coco == pytest.approx(plain.coco)
    assert backwards.summary() == pytest.approx(plain.summary())


# ---- fitness


def test_fitness_is_the_weighted_sum() -> None:
    metrics = {"mAP50-95": 0.4, "F1": 0.8, "recall": 0.1}
    assert fitness(metrics, {"mAP50-95": 0.5, "F1": 0.5}) == pytest.approx(0.6)
    assert fitness(metrics, {"F1": 1}) == 0.8


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ({"mAP": 1.0}, "mAP is no metric; did you mean mAP50"),
        ({"F1": 0.5}, "the weights sum to 0.5; they must sum to 1"),
        ({}, "sum to 0"),
        ({"F1": 1.5, "recall": -0.5}, "recall is -0.5; it must be 0 to 1"),
        ({"F1": float("nan")}, "F1 is nan"),
        ({"mAP50": 1.0}, "mAP50 was not measured; given: F1, recall"),
    ],
)
def test_fitness_refuses_wrong_weights(weights: dict[str, float], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        fitness({"F1": 0.5, "recall": 0.5}, weights)


def test_result_is_one_frozen_object() -> None:
    result = evaluate_detections([wanted()], [found()], 1)
    assert isinstance(result, DetectionMetrics)
    with pytest.raises(AttributeError):
        result.f1 = 1.0  # type: ignore[misc]
