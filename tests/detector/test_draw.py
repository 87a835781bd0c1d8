"""Drawings: what is where, not how it looks."""

import numpy as np
import pytest

from detector.draw import (
    PALETTE,
    Tile,
    class_colour,
    draw_detections,
    draw_grid,
    place_labels,
    text_colour,
)

NAMES = ("cell", "a very long name of a class")
BOX = np.array([[20.0, 40.0, 60.0, 80.0]])
FIRST = np.array([0])


def gray(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 114, np.uint8)


def test_box_has_the_colour_of_its_class_and_the_image_is_untouched() -> None:
    image = gray(100, 120)
    drawn = draw_detections(image, BOX, FIRST, np.array([0.5]), NAMES)
    assert (image == 114).all()
    assert drawn[60, 20].tolist() == drawn[60, 60].tolist() == list(class_colour(0))
    assert (drawn[45:75, 25:55] == 114).all()  # the inside stays free


def test_label_stands_above_the_box() -> None:
    drawn = draw_detections(gray(100, 120), BOX, FIRST, None, NAMES)
    changed = np.flatnonzero((drawn != 114).any(axis=(1, 2)))
    assert 20 < changed.min() < 36
    assert changed.max() <= 81


@pytest.mark.parametrize(
    "box", [[-50, -50, 5, 5], [110, 90, 500, 500], [0, 0, 120, 100], [np.nan] * 4, [30, 30, 30, 30]]
)
@pytest.mark.parametrize("size", [(100, 120), (3, 5), (1, 1)])
def test_odd_boxes_and_tiny_images_are_drawn(box: list[float], size: tuple[int, int]) -> None:
    drawn = draw_detections(gray(*size), np.array([box]), np.array([1]), np.array([0.1]), NAMES)
    assert drawn.shape == (*size, 3)


def test_no_boxes_leave_the_picture_as_it_is() -> None:
    image = gray(50, 60)
    empty = draw_detections(image, np.zeros((0, 4)), np.zeros(0, int), np.zeros(0), NAMES)
    assert np.array_equal(empty, image)
    assert empty is not image


def test_lines_grow_with_the_image() -> None:
    thin = draw_detections(gray(200, 200), BOX, FIRST, None, NAMES)
    scaled = draw_detections(gray(3200, 3200), 16 * BOX, FIRST, None, NAMES)
    colour = np.array(class_colour(0))
    assert (thin[60] == colour).all(axis=1).sum() <= 4
    assert (scaled[16 * 60] == colour).all(axis=1).sum() >= 16


def test_text_is_smaller_where_the_objects_of_a_large_picture_are() -> None:
    def label_height(side: float) -> int:
        box = np.array([[1000.0, 1000.0, 1000 + side, 1000 + side]])
        drawn = draw_detections(gray(3000, 3000), box, FIRST, np.array([0.5]), NAMES)
        return 1000 - int(np.flatnonzero((drawn != 114).any(axis=(1, 2))).min())

    assert 0.4 * label_height(900) < label_height(40) < 0.7 * label_height(900)


def test_read_only_and_flipped_images_are_fine() -> None:
    image = gray(100, 120)
    image.flags.writeable = False
    assert (draw_detections(image[:, ::-1], BOX, FIRST, None, NAMES) != 114).any()


def test_labels_stay_inside_and_do_not_overlap() -> None:
    rng = np.random.default_rng(0)
    corner = rng.integers(0, 560, (12, 2))
    boxes = [tuple(row) for row in np.concatenate([corner, corner + 60], axis=1).tolist()]
    boxes += [boxes[0]] * 3
    sizes = [(18, 70)] * len(boxes)
    places = place_labels(boxes, sizes, (640, 640))  # type: ignore[arg-type]
    covered = np.zeros((640, 640), int)
    for place in places:
        assert place is not None
        y, x = place
        assert 0 <= y <= 640 - 18 and 0 <= x <= 640 - 70
        covered[y : y + 18, x : x + 70] += 1
    assert covered.max() == 1


def test_label_wider_than_the_image_starts_at_its_border() -> None:
    (place,) = place_labels([(5, 5, 9, 9)], [(18, 200)], (30, 100))
    assert place is not None and place[1] == 0


def test_a_label_without_a_free_place_is_left_out() -> None:
    # 18 high labels in a picture of 30: the first takes the only row that there is
    places = place_labels([(5, 5, 9, 9)] * 3, [(18, 100)] * 3, (30, 100))
    assert places[0] is not None and places[1:] == [None, None]


def test_a_label_makes_way_for_a_small_object() -> None:
    # above the lower object stands another one: the label goes below
    boxes = [(20, 60, 40, 80), (20, 42, 60, 60)]
    places = place_labels(boxes, [(18, 50), (18, 50)], (200, 200))
    assert places[0] == (80, 20)
    large = [(0, 100, 200, 199), (0, 0, 200, 99)]  # objects that no label can hide
    assert place_labels(large, [(18, 50)] * 2, (200, 200))[0] == (83, 0)


def test_small_picture_is_not_covered_by_labels() -> None:
    rng = np.random.default_rng(0)
    corner = rng.integers(0, 100, (40, 2))
    boxes = np.concatenate([corner, corner + 10], axis=1).astype(float)
    image = gray(128, 128)
    scores = rng.random(40)
    drawn = draw_detections(image, boxes, np.ones(40, int), scores, NAMES)
    names_only = draw_detections(image, boxes, np.zeros(40, int), None, NAMES)
    assert (drawn == 114).all(axis=2).mean() > 0.4
    assert (names_only == 114).all(axis=2).mean() > 0.4


def test_text_is_black_on_light_and_white_on_dark() -> None:
    assert text_colour((255, 255, 255)) == text_colour((66, 228, 240)) == (0, 0, 0)
    assert text_colour((0, 0, 0)) == text_colour((136, 34, 51)) == (255, 255, 255)


def test_colours_repeat_after_the_palette() -> None:
    assert class_colour(0) == (0, 159, 230)
    assert class_colour(len(PALETTE)) == class_colour(0)
    assert len({class_colour(label) for label in range(len(PALETTE))}) == len(PALETTE)


# ---- sheets


def tile(height: int, width: int, caption: str = "a.png") -> Tile:
    box = np.array([[0.25 * width, 0.25 * height, 0.75 * width, 0.75 * height]])
    return Tile(gray(height, width), box, FIRST, None, caption)


def test_sheet_holds_every_tile_with_its_box() -> None:
    tiles = [tile(100, 100), tile(50, 200), tile(300, 30), tile(400, 400, "long " * 50)]
    sheet = draw_grid(tiles, NAMES, columns=2, cell=(200, 200))
    rows, columns = np.array(sheet.shape[:2]) // 2
    colour = np.array(class_colour(0))
    for n in range(4):
        part = sheet[n // 2 * rows : (n // 2 + 1) * rows, n % 2 * columns : (n % 2 + 1) * columns]
        assert (part == colour).all(axis=2).sum() > 50
        assert (part == 114).all(axis=2).sum() > 1000
    assert (sheet[-4:] == 255).all() and (sheet[:, -4:] == 255).all()  # captions are cut


def test_boxes_follow_the_size_of_the_tile() -> None:
    sheet = draw_grid([tile(50, 100)], NAMES, columns=1, cell=(100, 200))
    found = np.argwhere((sheet == np.array(class_colour(0))).all(axis=2))
    assert found[:, 1].min() == pytest.approx(4 + 50, abs=2)
    assert found[:, 1].max() == pytest.approx(4 + 150, abs=2)


def test_sheet_without_tiles_is_blank() -> None:
    assert (draw_grid([], NAMES) == 255).all()


def test_colours_of_several_classes_are_explained_below() -> None:
    one = tile(100, 100)
    two = Tile(one.image, np.tile(one.boxes, (2, 1)), np.array([0, 1]), None, "both")
    plain, both = (draw_grid([each], NAMES, columns=1, cell=(100, 200)) for each in (one, two))
    strip = both[len(plain) :]
    for label in (0, 1):
        assert (strip == np.array(class_colour(label))).all(axis=2).sum() > 100
