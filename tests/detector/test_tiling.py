"""Where tiles lie, and which boxes they may keep."""

import itertools

import numpy as np
import pytest

from detector.errors import ConfigError
from detector.tiling import Tiles, whole_objects


def test_small_pictures_are_not_cut() -> None:
    assert Tiles(100).regions((100, 80)) == [(0, 0, 80, 100)]
    assert Tiles(0).regions((4000, 3)) == [(0, 0, 3, 4000)]


def test_tiles_cover_the_picture_and_overlap_by_the_share() -> None:
    assert Tiles(100, 0.2).regions((100, 260)) == [
        (0, 0, 260, 100), (0, 0, 100, 100), (80, 0, 180, 100), (160, 0, 260, 100),
    ]  # fmt: skip
    assert Tiles(100, 0.0).regions((3, 250))[1:] == [
        (0, 0, 100, 3), (75, 0, 175, 3), (150, 0, 250, 3),
    ]  # fmt: skip


@pytest.mark.parametrize("size", [(101, 99), (333, 1000), (640, 641)])
def test_every_spot_is_covered_and_neighbours_share_enough(size: tuple[int, int]) -> None:
    tiles = Tiles(100, 0.25).regions(size)[1:]
    seen = np.zeros(size, int)
    for x1, y1, x2, y2 in tiles:
        assert (y2 - y1, x2 - x1) == (min(100, size[0]), min(100, size[1]))
        seen[y1:y2, x1:x2] += 1
    assert seen.min() >= 1
    lefts = sorted({x1 for x1, *_ in tiles})
    assert all(b - a <= 75 for a, b in itertools.pairwise(lefts))


def test_boxes_cut_by_an_inner_edge_go_and_those_at_the_border_stay() -> None:
    region, size = (100, 0, 200, 100), (100, 300)
    boxes = np.array(
        [
            [120, 0, 150, 100],  # touches the picture's own border: nothing is behind it
            [100.5, 10, 150, 50],  # goes on to the left
            [150, 10, 199.5, 50],  # goes on to the right
            [102, 10, 198, 50],
        ]
    )
    assert whole_objects(boxes, region, size).tolist() == [True, False, False, True]
    assert whole_objects(boxes[:, :], (0, 0, 300, 100), size).all()


def test_impossible_tiles_are_refused() -> None:
    with pytest.raises(ConfigError, match="tile=20 must be 0"):
        Tiles(20)
    with pytest.raises(ConfigError, match=r"overlap=1.0 must be 0 to 0.9"):
        Tiles(640, 1.0)
