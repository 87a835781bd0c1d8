"""Calibration by hand."""

import numpy as np
import pytest

from detector.matching import Prediction, Truth
from detector.metrics import evaluate_detections


def test_calibration_by_hand() -> None:
    # scores 0.92 and 0.94: right and wrong; 0.55: right; 0.05 lies below the first bin
    truths = [Truth(np.array([[0.0, 0, 10, 10], [50, 0, 60, 10]]), np.array([0, 0]))]
    boxes = np.array([[0.0, 0, 10, 10], [90, 0, 99, 9], [50, 0, 60, 10], [70, 0, 80, 10]])
    guesses = [Prediction(boxes, np.array([0.92, 0.94, 0.55, 0.05]), np.zeros(4, int))]
    found = evaluate_detections(truths, guesses, 1).calibration
    assert found.count.tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 2]
    assert found.confidence[[4, 8]] == pytest.approx([0.55, 0.93])
    assert found.precision[[4, 8]] == pytest.approx([1.0, 0.5])
    assert found.error == pytest.approx((1 * 0.45 + 2 * 0.43) / 3)


def test_a_score_of_one_has_a_bin_and_nothing_found_has_no_error() -> None:
    box = np.array([[0.0, 0, 10, 10]])
    sure = evaluate_detections(
        [Truth(box, np.array([0]))], [Prediction(box, np.ones(1), np.array([0]))], 1
    )
    assert sure.calibration.count[-1] == 1 and sure.calibration.error == 0
    nothing = Prediction(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    assert evaluate_detections([Truth(box, np.array([0]))], [nothing], 1).calibration.error == 0
