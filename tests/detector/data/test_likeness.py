from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.data.likeness import (
    Look,
    difference_bits,
    find_alike,
    likeness,
    look_at,
    look_at_all,
    mirrored_bits,
)
from detector.errors import DataError


def scene(seed: int) -> np.ndarray:
    """Return a picture of ten coloured discs on a soft background, (120, 160, 3) uint8."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(60, 200, (4, 5, 3)).astype(np.uint8)
    image = cv2.resize(patches, (160, 120), interpolation=cv2.INTER_CUBIC)
    for _ in range(10):
        centre = (int(rng.integers(160)), int(rng.integers(120)))
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        cv2.circle(image, centre, int(rng.integers(6, 22)), colour, -1)
    return image


def look(image: np.ndarray, folder: Path) -> Look:
    path = folder / "picture.png"
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return look_at(path)


def test_difference_hash_by_hand() -> None:
    # 9 x 8 cells of one pixel: columns 0 1 2 ... 8 get brighter, the last step falls
    gray = np.tile(np.array([0, 10, 20, 30, 40, 50, 60, 70, 5], np.uint8), (8, 1))
    gray[3] = 7  # one row of one brightness: never brighter
    expected = np.tile([1, 1, 1, 1, 1, 1, 1, -1], (8, 1))
    expected[3] = -1
    assert difference_bits(gray).reshape(8, 8).tolist() == expected.tolist()


def test_hash_of_the_mirrored_picture_is_the_mirrored_hash() -> None:
    gray = np.random.default_rng(0).permutation(72).astype(np.uint8).reshape(8, 9)
    mirrored = difference_bits(np.ascontiguousarray(gray[:, ::-1]))
    assert mirrored_bits(difference_bits(gray)[None])[0].tolist() == mirrored.tolist()


CHANGES = {
    "compressed": lambda image: cv2.imdecode(cv2.imencode(".jpg", image, [1, 30])[1], 1),
    "smaller": lambda image: cv2.resize(image, (80, 60), interpolation=cv2.INTER_AREA),
    "stretched": lambda image: cv2.resize(image, (120, 120)),
    "brighter": lambda image: np.clip(image * 1.15 + 8, 0, 255).astype(np.uint8),
    "gray": lambda image: cv2.cvtColor(cv2.cvtColor(image, 6), 8),
    "mirrored": lambda image: np.ascontiguousarray(image[:, ::-1]),
    "trimmed": lambda image: image[1:-1, 1:-1],
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_alike_and_other_pictures_are_not(change: str, tmp_path: Path) -> None:
    originals = [look(scene(seed), tmp_path) for seed in range(20)]
    copies = [look(CHANGES[change](scene(seed)), tmp_path) for seed in (3, 17, 5)]
    assert find_alike(copies, originals) == {0: 3, 1: 17, 2: 5}
    assert find_alike([look(scene(seed), tmp_path) for seed in range(20, 40)], originals) == {}


def test_pictures_of_one_colour_are_alike_to_each_other_only(tmp_path: Path) -> None:
    black, gray = (look(np.full((40, 60, 3), value, np.uint8), tmp_path) for value in (0, 128))
    slope = np.tile(np.arange(200, 140, -1, np.uint8)[None, :, None], (40, 1, 3))  # the same hash
    falling = look(slope, tmp_path)
    assert (falling.bits == black.bits).all()
    assert likeness(black, gray) == 1 and likeness(black, falling) == 0
    assert find_alike([gray, falling], [black]) == {0: 0}


def test_nothing_is_alike_to_nothing(tmp_path: Path) -> None:
    one = look(scene(0), tmp_path)
    assert find_alike([], [one]) == {} and find_alike([one], []) == {}


def test_files_are_looked_at_in_order_and_bad_ones_say_why(tmp_path: Path) -> None:
    good = cv2.imencode(".jpg", scene(0))[1].tobytes()
    contents = {"a.jpg": good, "b.jpg": b"text", "c.jpg": good[:-60], "d.jpg": good}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    names = [*contents, "none.jpg"]
    steps: list[int] = []
    found = list(look_at_all([tmp_path / name for name in names], lambda: steps.append(1)))
    assert [path.name for path, _ in found] == names and len(steps) == 5
    a, b, c, d, none = (result for _, result in found)
    assert isinstance(none, DataError) and "cannot read the image" in str(none)
    assert a.digest == d.digest and a.size == (120, 160) and not a.error and not a.cut_off
    assert b.error == "not a readable image"
    assert c.cut_off and c.digest != a.digest
