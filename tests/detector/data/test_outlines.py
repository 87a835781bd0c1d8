from typing import Any

import cv2
import numpy as np
import pytest

from detector.data.outlines import (
    fill_rings,
    keep_objects,
    pack_outlines,
    parse_segmentation,
    rings_of_mask,
)
from detector.errors import DataError


def square(left: float, top: float, side: float) -> np.ndarray:
    right, bottom = left + side, top + side
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def test_rings_come_back_by_object() -> None:
    first, second, third = square(1, 2, 3), square(5, 6, 7), square(0, 0, 1)
    outlines = pack_outlines([[first, second], [], [third]])
    assert outlines is not None
    assert outlines.objects.tolist() == [0, 2]
    assert [ring.tolist() for ring in outlines.rings([0])] == [first.tolist(), second.tolist()]
    assert outlines.rings([1]) == []
    kept = keep_objects(outlines, np.array([False, True, True]))
    assert kept is not None and kept.objects.tolist() == [1]
    assert kept.rings([1])[0].tolist() == third.tolist()
    assert keep_objects(outlines, np.array([False, True, False])) is None
    assert outlines.scaled(2, 3).rings([2])[0].tolist() == (third * [2, 3]).tolist()


def test_no_polygon_is_no_outlines() -> None:
    assert pack_outlines([]) is None
    assert pack_outlines([[], []]) is None


def test_filled_rings_are_a_union_without_a_hole_where_they_overlap() -> None:
    mask = fill_rings([square(2, 2, 4), square(4, 2, 4)], (8, 10))
    # Pixels 2..5 of the first and 4..7 of the second, with the pixel that the far edge touches.
    assert mask[3].tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1, 0]
    assert mask.dtype == np.uint8


def test_polygon_of_coco_is_pairs_of_x_and_y() -> None:
    (ring,) = parse_segmentation([[1, 2, 3, 2, 3, 4.5]])
    assert ring.tolist() == [[1, 2], [3, 2], [3, 4.5]]
    assert parse_segmentation(None) == parse_segmentation([]) == []


def test_run_lengths_go_down_the_columns() -> None:
    # 3 rows, 4 columns; 4 background pixels, then 2 of the object: rows 1 and 2 of column 1.
    (ring,) = parse_segmentation({"size": [3, 4], "counts": [4, 2, 6]})
    assert fill_rings([ring], (3, 4)).tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]]


@pytest.mark.parametrize("seed", range(6))
def test_compressed_run_lengths_are_those_of_pycocotools(seed: int) -> None:
    mask_tools = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(seed)
    mask = np.zeros((70, 90), np.uint8)
    for _ in range(3):
        centre = (int(rng.integers(90)), int(rng.integers(70)))
        cv2.circle(mask, centre, int(rng.integers(1, 25)), (1,), -1)
    packed = mask_tools.encode(np.asfortranarray(mask))
    value = {"size": list(packed["size"]), "counts": packed["counts"].decode()}
    assert np.array_equal(fill_rings(parse_segmentation(value), (70, 90)), mask)


def test_rings_of_a_mask_fill_the_same_mask() -> None:
    mask = np.zeros((20, 30), np.uint8)
    cv2.circle(mask, (8, 8), 5, (1,), -1)
    mask[3, 25] = 1  # a single pixel is an object as well
    assert np.array_equal(fill_rings(rings_of_mask(mask), (20, 30)), mask)


@pytest.mark.parametrize(
    "value",
    [
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5, 6, 7]],
        [[1, 2, 3, 4, 5, "x"]],
        [[1, 2, 3, 4, 5, float("nan")]],
        [1, 2, 3, 4, 5, 6],
        "text",
        {"size": [3, 4]},
        {"counts": [12]},
        {"size": [3, 4], "counts": [4, 2]},
        {"size": [3, 4], "counts": [14, -2]},
        {"size": [3, 4], "counts": "\\x7f"},
        {"size": [3, 4], "counts": "o"},
        {"size": 3, "counts": [12]},
    ],
)
def test_what_is_no_segmentation_is_named(value: Any) -> None:
    with pytest.raises(DataError, match="segmentation"):
        parse_segmentation(value)
