import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.data.description import digest, load_data, read_split
from detector.data.shapes import (
    CLASSES,
    CORNERS,
    HIDDEN_LIMIT,
    MIN_BOX,
    ShapesConfig,
    _area,
    _Canvas,
    _outline,
    draw_image,
    generate,
)
from detector.errors import DataError

SMALL = ShapesConfig(train=6, val=3, test=2, size=96, seed=3)
YAML = "format: shapes\npath: shapes\ntrain: 6\nval: 3\ntest: 2\nsize: 96\nseed: 3\n"


def test_folder_has_the_images_and_labels_asked_for(tmp_path: Path) -> None:
    root = generate(SMALL, tmp_path)
    for split, count in (("train", 6), ("val", 3), ("test", 2)):
        images = sorted((root / "images" / split).iterdir())
        assert len(images) == count
        assert all(cv2.imread(str(path)).shape == (96, 96, 3) for path in images)
    assert sorted(path.name for path in tmp_path.iterdir()) == [SMALL.key]  # nothing half-made


def test_pictures_are_the_same_for_the_same_parameters(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "s.yaml").write_text(YAML)
    one, two = (load_data(tmp_path / name / "s.yaml") for name in ("a", "b"))
    assert one.root != two.root
    assert digest(read_split(one, "train")) == digest(read_split(two, "train"))
    assert digest(read_split(one, "train")) != digest(read_split(one, "val"))


@pytest.mark.parametrize("change", ["train: 5", "seed: 4", "size: 64", "test: 0"])
def test_changed_parameters_make_another_set(tmp_path: Path, change: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(YAML)
    first = load_data(path).root
    key = change.split(":")[0]
    lines = [line for line in YAML.splitlines() if not line.startswith(f"{key}:")]
    path.write_text("\n".join([*lines, change]))
    second = load_data(path)
    assert second.root != first and second.root.parent == first.parent
    assert ("test" in second.splits) == (change != "test: 0")


def test_more_images_keep_the_first_ones(tmp_path: Path) -> None:
    longer = ShapesConfig(train=7, val=3, test=2, size=96, seed=3)
    one, two = generate(SMALL, tmp_path), generate(longer, tmp_path)
    name = "images/train/00005.png"
    assert (one / name).read_bytes() == (two / name).read_bytes()


def test_set_is_made_once(tmp_path: Path) -> None:
    root = generate(SMALL, tmp_path)
    (root / "mark").touch()
    assert generate(SMALL, tmp_path) == root and (root / "mark").exists()


def test_writers_at_once_are_all_right(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        roots = list(pool.map(lambda _: generate(SMALL, tmp_path), range(4)))
    assert set(roots) == {tmp_path / SMALL.key}
    assert len(list(roots[0].rglob("*.png"))) == len(list(roots[0].rglob("*.txt"))) == 11
    assert sorted(path.name for path in tmp_path.iterdir()) == [SMALL.key]


@pytest.mark.slow  # every new process imports torch
def test_processes_at_once_are_all_right(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        roots = pool.starmap(generate, [(SMALL, tmp_path)] * 3)
    assert set(roots) == {tmp_path / SMALL.key}
    assert len(list(roots[0].rglob("*.png"))) == len(list(roots[0].rglob("*.txt"))) == 11
    assert sorted(path.name for path in tmp_path.iterdir()) == [SMALL.key]


def test_every_class_and_small_and_large_objects_occur() -> None:
    labels, sides, counts = set(), [], []
    for seed in range(60):
        _, found = draw_image(160, np.random.default_rng(seed))
        counts.append(len(found))
        labels |= {label for label, _ in found}
        sides += [max(x2 - x1, y2 - y1) for _, (x1, y1, x2, y2) in found]
        for _, (x1, y1, x2, y2) in found:
            assert 0 <= x1 < x2 <= 160 and 0 <= y1 < y2 <= 160
            assert min(x2 - x1, y2 - y1) >= MIN_BOX
    assert labels == set(range(len(CLASSES)))
    assert min(counts) >= 1 and max(counts) >= 4
    assert min(sides) < 20 and max(sides) > 70


def test_boxes_fit_what_is_visible_and_hidden_objects_have_none() -> None:
    canvas = _Canvas(96, np.random.default_rng(0))
    canvas.objects = [(1, 100.0), (2, 100.0), (3, 100.0)]
    canvas.owner[10:15, 20:32] = 0  # 60 of 100 pixels
    canvas.owner[50:60, 40:44] = 1  # 40 of 100: exactly the limit
    canvas.owner[70:73, 80:93] = 2  # 39 of 100: more than the limit is hidden
    assert pytest.approx(0.6) == HIDDEN_LIMIT
    assert canvas.visible_objects() == [(1, (20, 10, 32, 15)), (2, (40, 50, 44, 60))]


@pytest.mark.parametrize("name", CLASSES)
def test_shapes_of_all_classes_have_the_same_area(name: str) -> None:
    outline = _outline(name, 10, np.array([50.0, 50.0]), np.random.default_rng(1))
    assert outline.shape == (CORNERS[name], 2)
    assert _area(outline) == pytest.approx(np.pi * 10**2)  # that of a circle of this radius


def test_area_of_a_rectangle() -> None:
    assert _area(np.array([[0, 0], [4, 0], [4, 3], [0, 3]])) == 12


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train: 0", "train=0 must be a whole number, at least 1"),
        ("val: many", "val=many must be"),
        ("size: 16", "size=16 must be a whole number, at least 32"),
        ("seed: -1", "seed=-1"),
        ("test: true", "test=True"),
        ("sise: 96", r"sise is not a known key; did you mean size\?"),
        ("names: [a, b]", "names of format shapes are circle, triangle"),
    ],
)
def test_wrong_parameter_is_an_error_naming_the_file(
    tmp_path: Path, line: str, message: str
) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(f"format: shapes\n{line}\n")
    with pytest.raises(DataError, match=rf"s\.yaml: .*{message}"):
        load_data(path)


def test_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "shapes").write_text("a file")
    with pytest.raises(DataError, match="shapes: cannot write the data set"):
        generate(SMALL, tmp_path / "shapes")
