import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.data.labels import Problems
from detector.data.sample import Sample
from detector.data.yolo import label_path, parse_row, read_yolo
from detector.errors import DataError

NAMES = ("cat", "dog")


def write_image(path: Path, height: int = 40, width: int = 80) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", np.zeros((height, width, 3), np.uint8))[1].tobytes())


def one(root: Path, rows: str, skip: bool = False) -> Sample:
    """Return the sample of an 80 x 40 image with these label rows."""
    write_image(root / "images" / "a.png")
    (root / "labels").mkdir(exist_ok=True)
    (root / "labels" / "a.txt").write_text(rows, encoding="utf-8")
    return read_yolo(root, ["images"], NAMES, Problems("here", skip))[0]


def test_row_is_centre_and_size_in_fractions_of_the_image(tmp_path: Path) -> None:
    sample = one(tmp_path, "1 0.5 0.5 0.25 0.5\n")
    # width 80: 40 +- 10; height 40: 20 +- 10
    assert sample.boxes.tolist() == [[30, 10, 50, 30]]
    assert sample.labels.tolist() == [1]
    assert sample.size == (40, 80)
    assert sample.boxes.dtype == np.float32 and sample.labels.dtype == np.int64
    assert not sample.difficult.any() and not sample.crowd.any()


def test_polygon_row_becomes_the_box_around_it(tmp_path: Path) -> None:
    sample = one(tmp_path, "0 0.25 0.5 0.5 0.25 0.75 0.75\n1 0.5 0.5 0.25 0.5\n")
    assert sample.boxes.tolist() == [[20, 10, 60, 30], [30, 10, 50, 30]]


def test_four_point_polygon_is_no_box(tmp_path: Path) -> None:
    sample = one(tmp_path, "0 0.25 0.25 0.5 0.25 0.5 0.5 0.25 0.5\n")
    assert sample.boxes.tolist() == [[20, 10, 40, 20]]


def test_blank_lines_crlf_bom_and_a_float_class_are_fine(tmp_path: Path) -> None:
    sample = one(tmp_path, "\ufeff\r\n1.0 0.5 0.5 0.25 0.5\r\n\r\n")
    assert sample.labels.tolist() == [1]


def test_rounding_just_outside_is_clipped(tmp_path: Path) -> None:
    sample = one(tmp_path, "0 0.5 0.5 1.0005 1.0\n0 1.0 -0.0005 0.5 0.5\n")
    assert sample.boxes.tolist() == [[0, 0, 80, 40], [60, 0, 80, 10]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0 0.5 0.5 0.5", "4 columns"),
        ("0 0.5 0.5 0.5 0.5 0.9", "6 columns"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "8 columns"),
        ("0 0.5 0.5 -0.5 0.5", "coordinate -0.5"),
        ("0 0.5 1.5 0.5 0.5", "coordinate 1.5"),
        ("0 320 200 50 50", "coordinate 320"),
        ("2 0.5 0.5 0.5 0.5", "class 2 must be a whole number from 0 to 1"),
        ("-1 0.5 0.5 0.5 0.5", "class -1"),
        ("0.5 0.5 0.5 0.5 0.5", "class 0.5"),
        ("cat 0.5 0.5 0.5 0.5", "'cat' is not a number"),
        ("0 0.5 x 0.5 0.5", "'x' is not a number"),
        ("0 nan 0.5 0.5 0.5", "'nan' is not a number"),
        ("inf 0.5 0.5 0.5 0.5", "'inf' is not a number"),
    ],
)
def test_bad_row_is_an_error_with_file_and_line(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        one(tmp_path, f"0 0.5 0.5 0.5 0.5\n\n{row}\n")
    text = str(caught.value)
    assert f"{tmp_path}/labels/a.txt:3: " in text and message in text and "\n" not in text


def test_bad_rows_are_counted_when_they_are_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_image(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "broken.png").write_bytes(b"")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n5 1 1 1 1\nx\n")
    problems = Problems("set: train", skip=True)
    samples = read_yolo(tmp_path, ["images"], NAMES, problems)
    with caplog.at_level(logging.WARNING):
        problems.report()
    assert [len(sample.boxes) for sample in samples] == [1]
    assert len(caplog.messages) == 1
    assert "set: train: skipped 3 bad" in caplog.messages[0] and "a.txt:2" in caplog.messages[0]


def test_boxes_without_area_are_dropped_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_image(tmp_path / "images" / "a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0 0.5\n0 0.5 0.5 0.5 0.5\n1 0 0 0.1 0\n")
    problems = Problems("set")
    samples = read_yolo(tmp_path, ["images"], NAMES, problems)
    with caplog.at_level(logging.WARNING):
        problems.report()
    assert samples[0].boxes.tolist() == [[20, 10, 60, 30]]
    assert caplog.messages == [
        f"set: dropped 2 box(es) without area, first in {tmp_path}/labels/a.txt:1"
    ]


def test_image_without_label_file_is_background(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.png")
    sample = read_yolo(tmp_path, ["images"], NAMES, Problems("set"))[0]
    assert sample.boxes.shape == (0, 4) and sample.boxes.dtype == np.float32
    assert sample.labels.shape == (0,) and sample.labels.dtype == np.int64


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("/images/set/images/train/a.jpg", "/images/set/labels/train/a.txt"),
        ("set/images/a.b.JPEG", "set/labels/a.b.txt"),
        ("images/my_images/a.jpg", "labels/my_images/a.txt"),
        ("set/photos/images.jpg", "set/photos/images.txt"),
        ("x.jpg/images/jpg.jpg", "x.jpg/labels/jpg.txt"),
    ],
)
def test_only_the_last_images_folder_becomes_labels(image: str, label: str) -> None:
    assert label_path(Path(image)) == Path(label)


def test_list_file_takes_paths_from_several_places_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("set/images/a.png", "set/lists/images/b.png", "images/c.png", "d.png"):
        write_image(tmp_path / name)
    lines = ["./images/a.png", "images/b.png", "", "images/c.png", f"{tmp_path}/d.png"]
    (tmp_path / "set/lists/train.txt").write_text("\r\n".join([*lines, "images/a.png", ""]))
    monkeypatch.chdir(tmp_path)
    samples = read_yolo(tmp_path / "set", ["lists/train.txt"], NAMES, Problems("set"))
    assert [sample.id for sample in samples] == ["a", "b", "c", "d"]


def test_missing_image_in_a_list_is_an_error_with_its_line(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.png")
    (tmp_path / "train.txt").write_text("images/a.png\nimages/gone.png\n")
    with pytest.raises(DataError, match=r"train\.txt:2: image images/gone\.png does not exist"):
        read_yolo(tmp_path, ["train.txt"], NAMES, Problems("set"))


@pytest.mark.parametrize("text", ["", "\n\r\n"])
def test_empty_list_has_no_images(tmp_path: Path, text: str) -> None:
    (tmp_path / "train.txt").write_text(text)
    with pytest.raises(DataError, match=r"train\.txt: no images"):
        read_yolo(tmp_path, ["train.txt"], NAMES, Problems("set"))


def test_empty_or_missing_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="images: no images"):
        read_yolo(tmp_path, ["images"], NAMES, Problems("set"))
    with pytest.raises(DataError, match="no such image folder or list file"):
        read_yolo(tmp_path, ["elsewhere"], NAMES, Problems("set"))


def test_binary_label_file_is_named(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"a\.txt: not a text file"):
        read_yolo(tmp_path, ["images"], NAMES, Problems("set"))


def test_negative_size_within_the_tolerance_has_no_area() -> None:
    assert parse_row("0 0.5 0.5 -0.0001 0.5", 1) == (0, (0.5, 0.25, 0.5, 0.75), None)


def test_label_file_that_is_no_text_is_one_bad_label(tmp_path: Path) -> None:
    one(tmp_path, "0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "labels" / "a.txt").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(DataError, match=r"a\.txt: not a text file"):
        read_yolo(tmp_path, ["images"], NAMES, Problems("here"))
    problems = Problems("here", skip=True)
    assert read_yolo(tmp_path, ["images"], NAMES, problems)[0].boxes.shape == (0, 4)
    assert len(problems.skipped) == 1


def test_polygon_row_keeps_its_polygon_as_the_mask_in_pixels(tmp_path: Path) -> None:
    sample = one(tmp_path, "0 0.5 0.5 0.2 0.2\n1 0.1 0.2 0.5 0.2 0.5 0.6\n")
    height, width = sample.size
    assert sample.outlines is not None
    assert sample.outlines.objects.tolist() == [1]
    expected = np.array([[0.1, 0.2], [0.5, 0.2], [0.5, 0.6]]) * [width, height]
    assert sample.outlines.rings([1])[0] == pytest.approx(expected)
