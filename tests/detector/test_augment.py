import numpy as np
import pytest

from detector.augment import (
    GRAY,
    Donors,
    Layer,
    Plan,
    letterbox,
    place_boxes,
    plain_plan,
    sample_plan,
)
from detector.config import Hyp
from detector.data.outlines import pack_outlines
from detector.render import render

STILL = {
    "mosaic": 0.0,
    "scale": 0.0,
    "translate": 0.0,
    "hsv_h": 0.0,
    "hsv_s": 0.0,
    "hsv_v": 0.0,
    "fliplr": 0.0,
    "flipud": 0.0,
}


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_letterbox_fills_the_longer_side_and_pads_right_and_below() -> None:
    boxed, scale = letterbox(np.full((50, 100, 3), 7, np.uint8), (64, 64))
    assert scale == pytest.approx(0.64)
    assert (boxed[:32] == 7).all()
    assert (boxed[32:] == GRAY).all()


def test_letterbox_of_a_very_thin_picture_keeps_a_pixel() -> None:  # B-51
    boxed, scale = letterbox(np.full((3, 4000, 3), 7, np.uint8), (64, 64))
    assert (boxed[0] == 7).all()
    assert scale == pytest.approx(0.016)


def test_a_plan_without_changes_is_the_letterbox() -> None:
    image = picture(32, 64)
    plan = sample_plan(0, [(32, 64)], (64, 64), Hyp(**STILL), rng())
    assert np.array_equal(render(plan, [image]), letterbox(image, (64, 64))[0])


def test_flips_twice_are_the_identity() -> None:
    image = picture(64, 64)
    hyp = Hyp(**{**STILL, "fliplr": 1.0, "flipud": 1.0})
    once = render(sample_plan(0, [(64, 64)], (64, 64), hyp, rng()), [image])
    assert np.array_equal(once, image[::-1, ::-1])
    assert np.array_equal(render(sample_plan(0, [(64, 64)], (64, 64), hyp, rng()), [once]), image)


def test_flips_move_boxes_with_the_picture() -> None:
    hyp = Hyp(**{**STILL, "fliplr": 1.0})
    plan = sample_plan(0, [(64, 64)], (64, 64), hyp, rng())
    boxes, labels = place_boxes(plan, [np.array([[10.0, 5, 30, 25]])], [np.array([3])])
    assert boxes.tolist() == [[34, 5, 54, 25]]  # 64 - 30, 64 - 10
    assert labels.tolist() == [3]


def test_translation_uses_the_own_axis_of_each_side() -> None:  # B-28
    hyp = Hyp(**{**STILL, "translate": 0.5})
    shifts = np.array(
        [
            sample_plan(0, [(32, 320)], (32, 320), hyp, rng(seed)).scenes[0][0].matrix[:2, 2]
            for seed in range(50)
        ]
    )
    assert np.abs(shifts[:, 0]).max() > 100
    assert np.abs(shifts[:, 1]).max() <= 16


@pytest.mark.parametrize("seed", range(8))
def test_a_box_stays_on_its_object_through_every_change(seed: int) -> None:
    # A white rectangle on black; wherever it lands, its box must be the bound of the white pixels.
    image = np.zeros((96, 96, 3), np.uint8)
    image[40:60, 30:70] = 255
    hyp = Hyp(**{**STILL, "degrees": 20, "shear": 5, "scale": 0.3, "translate": 0.1, "fliplr": 0.5})
    plan = sample_plan(0, [(96, 96)], (96, 96), hyp, rng(seed))
    white = (render(plan, [image]) > 128).all(axis=-1) & (render(plan, [image]) != GRAY).all(-1)
    rows, columns = np.nonzero(white)
    boxes, _ = place_boxes(plan, [np.array([[30.0, 40, 70, 60]])], [np.array([0])])
    bound = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert boxes[0] == pytest.approx(bound, abs=1.6)


def test_mosaic_shows_four_sources_around_one_centre() -> None:
    images = [np.full((64, 64, 3), level, np.uint8) for level in (10, 60, 180, 240)]
    hyp = Hyp(**{**STILL, "mosaic": 1.0, "mosaic_scale_min": 0.5, "mosaic_scale_max": 0.5})
    for seed in range(20):
        plan = sample_plan(0, [(64, 64)] * 4, (64, 64), hyp, rng(seed))
        drawn = set(np.unique(render(plan, images)))
        assert {10, 60, 180, 240}.issuperset(drawn - {GRAY}) or len(drawn) > 4  # blended borders
        assert len(plan.scenes[0]) == 4


def test_mosaic_of_one_image_uses_it_four_times() -> None:
    plan = sample_plan(0, [(64, 64)], (64, 64), Hyp(**{**STILL, "mosaic": 1.0}), rng())
    assert [layer.index for layer in plan.scenes[0]] == [0, 0, 0, 0]


def test_mixup_keeps_the_objects_of_both_scenes() -> None:
    still = {**STILL, "mixup_scale_min": 1.0, "mixup_scale_max": 1.0}
    plan = sample_plan(0, [(64, 64)], (64, 64), Hyp(**{**still, "mosaic": 1, "mixup": 1}), rng())
    assert len(plan.scenes) == 2
    only_second = Plan(plan.size, (plan.scenes[1],))
    boxes, _ = place_boxes(only_second, [np.array([[8.0, 8, 40, 40]])], [np.array([0])])
    assert boxes.tolist() == [[8, 8, 40, 40]]


def test_mixup_of_images_without_objects_ends() -> None:  # B-53
    hyp = Hyp(**{**STILL, "mosaic": 1.0, "mixup": 1.0})
    plan = sample_plan(0, [(64, 64)] * 2, (64, 64), hyp, rng())
    boxes, labels = place_boxes(plan, [np.zeros((0, 4))] * 2, [np.zeros(0, np.int64)] * 2)
    assert boxes.shape == (0, 4)
    assert labels.shape == (0,)


def test_the_tail_has_no_mosaic_mixup_or_affine() -> None:
    hyp = Hyp(mosaic=1.0, mixup=1.0, degrees=45, fliplr=0, flipud=0)
    plan = sample_plan(0, [(32, 64)], (64, 64), hyp, rng(), tail=True)
    expected = plain_plan(0, (32, 64), (64, 64)).scenes[0][0].matrix
    assert len(plan.scenes) == 1
    assert np.array_equal(plan.scenes[0][0].matrix, expected)


def test_boxes_that_leave_the_picture_or_become_thin_are_dropped() -> None:
    shift = np.array([[1, 0, 50.0], [0, 1, 0], [0, 0, 1]])
    plan = Plan((64, 64), ((Layer(0, shift),),))
    boxes = np.array([[0.0, 0, 10, 10], [8, 0, 60, 20], [13, 0, 40, 20], [0, 0, 1, 60]])
    kept, labels = place_boxes(plan, [boxes], [np.arange(4)])
    # 0 stays whole; 1 keeps 6 of 52 pixels (0.115); 2 keeps 1 of 27; 3 is 1 pixel thin
    assert labels.tolist() == [0, 1]
    assert kept.tolist() == [[50, 0, 60, 10], [58, 0, 64, 20]]


def test_drawing_never_changes_the_source() -> None:  # B-27
    image = picture(64, 64)
    before = image.copy()
    hyp = Hyp(mosaic=0, hsv_h=0.5, hsv_s=1, hsv_v=1)
    for seed in range(5):
        render(sample_plan(0, [(64, 64)], (64, 64), hyp, rng(seed)), [image])
    assert np.array_equal(image, before)


def test_value_gain_brightens_by_its_factor() -> None:
    plan = plain_plan(0, (8, 8), (8, 8))
    bright = Plan(plan.size, plan.scenes, (0.0, 1.0, 1.5))
    image = np.full((8, 8, 3), 100, np.uint8)
    assert (render(bright, [image]) == 150).all()


def test_the_same_seed_gives_the_same_plan() -> None:
    shapes = [(64, 64)] * 5
    hyp = Hyp(mixup=0.5)
    pictures = [picture(64, 64, index) for index in range(5)]
    first = render(sample_plan(2, shapes, (64, 64), hyp, rng(7)), pictures)
    again = render(sample_plan(2, shapes, (64, 64), hyp, rng(7)), pictures)
    assert np.array_equal(first, again)


def test_an_object_behind_a_steep_perspective_has_no_box() -> None:
    tilt = np.array([[1, 0, 0], [0, 1, 0], [-0.02, 0, 1]])  # w = 1 - 0.02 x: 0 at x = 50
    plan = Plan((64, 64), ((Layer(0, tilt),),))
    boxes = np.array([[5.0, 5, 15, 15], [30, 5, 60, 15], [55, 5, 60, 15]])
    _, labels = place_boxes(plan, [boxes], [np.arange(3)])
    assert labels.tolist() == [0]


# ---- copy-paste


def square(left: float, top: float, side: float) -> np.ndarray:
    right, bottom = left + side, top + side
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def donors() -> Donors:
    """Source 0 has no mask; source 1 two objects, each a square, of which the second has one."""
    boxes = [np.array([[0.0, 0, 64, 64]]), np.array([[2.0, 2, 12, 12], [20, 10, 40, 30]])]
    outlines = pack_outlines([[], [square(20, 10, 20)]])
    return Donors(boxes, [None, outlines], np.array([1]))


def pasted_plan(seed: int = 0, **values: float) -> Plan:
    hyp = Hyp(**{**STILL, "copy_paste": 1.0, **values})
    return sample_plan(0, [(64, 64)] * 2, (64, 64), hyp, rng(seed), donors=donors())


def test_an_object_is_cut_out_of_another_image_and_brings_its_box() -> None:
    plan = pasted_plan()
    assert [layer.objects for layer in plan.scenes[0]] == [None, (1,)]
    dark, light = np.full((64, 64, 3), 50, np.uint8), np.full((64, 64, 3), 250, np.uint8)
    drawn = render(plan, [dark, light])[..., 0]
    assert (drawn[11:29, 21:39] == 250).all()
    drawn[9:32, 19:42] = 50  # the square and a pixel around it
    assert (drawn == 50).all()
    boxes, labels = place_boxes(plan, donors().boxes, [np.array([7]), np.array([8, 9])])
    assert boxes.tolist() == [[0, 0, 64, 64], [20, 10, 40, 30]]
    assert labels.tolist() == [7, 9]


@pytest.mark.parametrize("seed", range(6))
def test_a_pasted_object_and_its_box_follow_one_matrix(seed: int) -> None:
    plan = pasted_plan(seed, degrees=30, shear=5, scale=0.4, translate=0.2, fliplr=0.5, flipud=0.5)
    assert len(plan.scenes[0]) == 2
    only = Plan(plan.size, (plan.scenes[0][1:],))
    white = np.full((64, 64, 3), 250, np.uint8)
    rows, columns = np.nonzero(render(only, [white, white])[..., 0] == 250)
    boxes, _ = place_boxes(only, donors().boxes, [np.zeros(1, int), np.zeros(2, int)])
    bound = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert boxes[0] == pytest.approx(bound, abs=1.6)


@pytest.mark.parametrize(("side", "kept"), [(18.0, False), (17.0, True)])
def test_an_object_that_a_pasted_one_covers_loses_its_box(side: float, kept: bool) -> None:
    # The box has 20 x 20 = 400 pixels. A pasted square of 18 between pixel centres fills 19 x 19,
    # as both edges are drawn: 400 - 361 = 39 are left, less than a tenth; one of 17 leaves 76.
    below = Layer(0, np.eye(3))
    above = Layer(1, np.eye(3), (0,), (square(10.5, 10.5, side),))
    plan = Plan((64, 64), ((below, above),))
    box = np.array([[10.0, 10, 30, 30]])
    _, labels = place_boxes(plan, [box, box], [np.array([0]), np.array([1])])
    assert labels.tolist() == ([0, 1] if kept else [1])


def test_boxes_of_another_scene_are_not_covered() -> None:
    above = Layer(1, np.eye(3), (0,), (square(0, 0, 63),))
    plan = Plan((64, 64), ((Layer(0, np.eye(3)), above), (Layer(0, np.eye(3)),)))
    box = np.array([[10.0, 10, 30, 30]])
    _, labels = place_boxes(plan, [box, box], [np.array([0]), np.array([1])])
    assert labels.tolist() == [1, 0]


def test_the_tail_and_data_without_masks_paste_nothing() -> None:
    hyp = Hyp(copy_paste=1.0)
    shapes = [(64, 64)] * 2
    tail = sample_plan(0, shapes, (64, 64), hyp, rng(), tail=True, donors=donors())
    assert len(tail.scenes[0]) == 1
    plain = sample_plan(0, shapes, (64, 64), hyp, rng())
    without = sample_plan(0, shapes, (64, 64), Hyp(), rng(), donors=donors())
    for ours, other in zip(plain.scenes[0], without.scenes[0], strict=True):
        assert np.array_equal(ours.matrix, other.matrix)  # and no other number changes


def test_a_pasted_object_that_lands_outside_is_not_there() -> None:
    found = [pasted_plan(seed, translate=1.0) for seed in range(40)]
    counts = {len(plan.scenes[0]) for plan in found}
    assert counts == {1, 2}
    for plan in found:
        boxes, _ = place_boxes(plan, donors().boxes, [np.zeros(1, int), np.zeros(2, int)])
        shown = sum(len(layer.objects or ()) for layer in plan.scenes[0])
        assert len(boxes) <= 1 + shown
