import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.data.labels import Problems
from detector.data.sample import Sample
from detector.data.voc import class_names, read_voc, warn_overlap
from detector.errors import DataError

NAMES = ("cat", "dog")


def write_image(path: Path, height: int = 40, width: int = 80) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", np.zeros((height, width, 3), np.uint8))[1].tobytes())


def item(name: str, corners: tuple[object, ...], extra: str = "") -> str:
    tags = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(tags, corners, strict=True))
    return f"<object><name>{name}</name>{extra}<bndbox>{box}</bndbox></object>"


def write_set(root: Path, xmls: dict[str, str | None], suffix: str = ".png") -> Path:
    """Write images of 80 x 40 pixels with these objects (None: no xml) and a train list."""
    (root / "Annotations").mkdir(parents=True, exist_ok=True)
    for stem, objects in xmls.items():
        write_image(root / "JPEGImages" / f"{stem}{suffix}")
        if objects is not None:
            text = f"<annotation>{objects}</annotation>"
            (root / "Annotations" / f"{stem}.xml").write_text(text, encoding="utf-8")
    write_list(root, "train", "\n".join(xmls) + "\n")
    return root


def write_list(root: Path, name: str, text: str) -> None:
    folder = root / "ImageSets" / "Main"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.txt").write_bytes(text.encode())


def read(
    root: Path, problems: Problems | None = None, ignore: tuple[str, ...] = ()
) -> list[Sample]:
    return read_voc(root, ["train"], NAMES, ignore, problems or Problems("set"))


def test_corners_count_from_one_and_are_inside(tmp_path: Path) -> None:
    # columns 11..30 are 20 pixels: 10 to 30 when the edges between pixels count from 0
    sample = read(write_set(tmp_path, {"a": item("dog", (11, 6, 30, 25))}))[0]
    assert sample.boxes.tolist() == [[10, 5, 30, 25]]
    assert sample.labels.tolist() == [1]
    assert sample.size == (40, 80)


def test_whole_image_is_a_box_of_the_whole_image(tmp_path: Path) -> None:
    sample = read(write_set(tmp_path, {"a": item("dog", (1, 1, 80, 40))}))[0]
    assert sample.boxes.tolist() == [[0, 0, 80, 40]]


def test_fractions_spaces_and_missing_fields_are_accepted(tmp_path: Path) -> None:
    objects = item(" dog\n", ("11.5", " 6 ", "30.0", "25.25"))
    sample = read(write_set(tmp_path, {"a": objects}))[0]
    assert sample.boxes.tolist() == [[10.5, 5, 30, 25.25]]
    assert sample.difficult.tolist() == [False]


def test_difficult_is_kept_and_text_in_unused_fields_does_not_matter(tmp_path: Path) -> None:
    extra = "<pose>?</pose><truncated>Unspecified</truncated><difficult>1</difficult>"
    objects = item("dog", (1, 1, 9, 9), extra) + item("cat", (1, 1, 9, 9), "<difficult/>")
    sample = read(write_set(tmp_path, {"a": objects}))[0]
    assert sample.difficult.tolist() == [True, False]


def test_wrong_size_in_the_xml_does_not_matter(tmp_path: Path) -> None:
    size = "<size><width>0</width><height>7</height></size>"
    sample = read(write_set(tmp_path, {"a": size + item("dog", (1, 1, 80, 40))}))[0]
    assert sample.size == (40, 80) and sample.boxes.tolist() == [[0, 0, 80, 40]]


def test_boxes_are_clipped_to_the_image(tmp_path: Path) -> None:
    sample = read(write_set(tmp_path, {"a": item("dog", (-4, 0, 95, 41))}))[0]
    assert sample.boxes.tolist() == [[0, 0, 80, 40]]


def test_image_without_xml_is_background(tmp_path: Path) -> None:
    samples = read(write_set(tmp_path, {"a": item("dog", (1, 1, 9, 9)), "b": None}))
    assert [len(sample.boxes) for sample in samples] == [1, 0]
    assert samples[1].boxes.shape == (0, 4)


@pytest.mark.parametrize("suffix", [".jpg", ".JPG", ".jpeg", ".png", ".PNG", ".bmp"])
def test_images_with_any_extension_are_found(tmp_path: Path, suffix: str) -> None:
    samples = read(write_set(tmp_path, {"a.rf.0": item("dog", (1, 1, 9, 9))}, suffix))
    assert [sample.path.name for sample in samples] == [f"a.rf.0{suffix}"]


def test_list_may_have_extensions_crlf_blank_and_repeated_lines(tmp_path: Path) -> None:
    write_set(tmp_path, {"a": None, "b.1": None, "c": None})
    write_list(tmp_path, "train", "b.1.png\r\n\r\na\r\na.xml\r\n  c  \r\nJPEGImages/b.1.png\r\n")
    assert [sample.id for sample in read(tmp_path)] == ["b.1", "a", "c"]


def test_unknown_class_is_an_error_that_lists_the_classes_found(tmp_path: Path) -> None:
    write_set(
        tmp_path,
        {
            "a": item("dog", (1, 1, 9, 9)),
            "b": item("Dog", (1, 1, 9, 9)) + item("cow", (1, 1, 9, 9)),
        },
    )
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    text = str(caught.value)
    assert f"{tmp_path}/Annotations/b.xml" in text and "class 'Dog' is not in names" in text
    assert text.endswith("classes found: Dog (1), cow (1), dog (1)")


def test_ignored_class_is_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_set(tmp_path, {"a": item("dog", (1, 1, 9, 9)) + 2 * item("cow", (1, 1, 9, 9))})
    problems = Problems("set")
    with caplog.at_level(logging.WARNING):
        samples = read(tmp_path, problems, ignore=("cow",))
        problems.report()
    assert samples[0].labels.tolist() == [1]
    assert caplog.messages == ["set: ignored 2 box(es) of class 'cow' (ignore:)"]


def test_boxes_without_area_are_dropped_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    objects = item("dog", (5, 5, 5, 5)) + item("dog", (9, 1, 3, 9)) + item("dog", (99, 1, 120, 9))
    write_set(tmp_path, {"a": objects + item("cat", (1, 1, 2, 2))})
    problems = Problems("set")
    with caplog.at_level(logging.WARNING):
        samples = read(tmp_path, problems)
        problems.report()
    assert samples[0].boxes.tolist() == [[0, 0, 2, 2]]
    place = f"{tmp_path}/Annotations/a.xml: object 1 (dog)"
    assert caplog.messages == [f"set: dropped 3 box(es) without area, first in {place}"]


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        (item("dog", ("x", 1, 9, 9)), "object 1: xmin 'x' is not a number"),
        (item("dog", (1, 1, "", 9)), "object 1: xmax '' is not a number"),
        (item("dog", (1, 1, "nan", 9)), "object 1: xmax 'nan' is not a number"),
        (item("dog", (1, 1, 9, 9), "<difficult>yes</difficult>"), "difficult 'yes' is not"),
        (item("", (1, 1, 9, 9)), "object 1: no class name"),
        ("<object><name>dog</name></object>", "object 1: dog: no bndbox"),
        ("<object>", "not a readable annotation"),
    ],
)
def test_damaged_xml_is_an_error_naming_the_file(
    tmp_path: Path, objects: str, message: str
) -> None:
    write_set(tmp_path, {"a": objects})
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path}/Annotations/a.xml: ") and message in text
    problems = Problems("set", skip=True)
    assert len(read(tmp_path, problems)) == 1 and len(problems.skipped) == 1


@pytest.mark.parametrize("text", ["", "\r\n \n"])
def test_empty_list_is_an_error(tmp_path: Path, text: str) -> None:
    write_set(tmp_path, {"a": None})
    write_list(tmp_path, "train", text)
    with pytest.raises(DataError, match=r"train\.txt: no images: the list is empty"):
        read(tmp_path)


def test_missing_list_image_and_folder_are_errors(tmp_path: Path) -> None:
    write_set(tmp_path, {"a": None})
    with pytest.raises(DataError, match=r"Main/val\.txt: no such list of images \(split 'val'\)"):
        read_voc(tmp_path, ["val"], NAMES, (), Problems("set"))
    write_list(tmp_path, "train", "a\ngone\n")
    with pytest.raises(DataError, match=r"train\.txt:2: no image gone in .*JPEGImages"):
        read(tmp_path)
    (tmp_path / "JPEGImages").rename(tmp_path / "Images")
    with pytest.raises(DataError, match="JPEGImages: no such folder"):
        read(tmp_path)


def test_several_years_and_a_list_file_elsewhere_can_be_joined(tmp_path: Path) -> None:
    write_set(tmp_path / "VOC2007", {"a": item("dog", (1, 1, 9, 9))})
    write_set(tmp_path / "VOC2012", {"b": item("cat", (1, 1, 9, 9))})
    entries = ["VOC2007/train", "VOC2012/ImageSets/Main/train.txt"]
    samples = read_voc(tmp_path, entries, NAMES, (), Problems("set"))
    assert [(sample.id, sample.labels.tolist()) for sample in samples] == [("a", [1]), ("b", [0])]
    assert class_names(tmp_path) == ("cat", "dog")


def test_class_names_need_an_object(tmp_path: Path) -> None:
    write_set(tmp_path, {"a": ""})
    with pytest.raises(DataError, match="no labelled object"):
        class_names(tmp_path)


def test_image_in_two_splits_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_set(tmp_path, {"a": None, "b": None})
    write_list(tmp_path, "val", "b.png\nc\n")
    with caplog.at_level(logging.WARNING):
        warn_overlap(tmp_path, "val", ["val"], ["train"])
    assert caplog.messages == [
        f"{tmp_path}: 1 image(s) of the val split are in train too, first: b"
    ]
