"""The doctor on data that are broken on purpose, in every format."""

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from detector.data.checks import RULES, SEVERITIES
from detector.doctor import Examination, examine, main

Findings = dict[tuple[str, str], list[str]]


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DETECTOR_DATA", raising=False)


def picture(seed: int, height: int = 60, width: int = 80) -> np.ndarray:
    """Return a picture like no other: soft patches of colour, (height, width, 3) uint8."""
    patches = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return cv2.resize(patches, (width, height), interpolation=cv2.INTER_CUBIC)


def save(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
    return path


def found(examination: Examination) -> Findings:
    return {(one.rule, one.split): list(one.places) for one in examination.findings}


def counts(examination: Examination) -> dict[tuple[str, str], int]:
    return {key: len(places) for key, places in found(examination).items()}


GOOD = "0 0.5 0.5 0.5 0.5\n1 0.3 0.3 0.4 0.4\n"


def write_yolo(root: Path, images: int = 3) -> Path:
    """Write a sound set: train and val of different pictures, each with both classes."""
    for split, first in (("train", 0), ("val", 100)):
        for index in range(images):
            save(root / "images" / split / f"{split}{index}.png", picture(first + index))
            path = root / "labels" / split / f"{split}{index}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(GOOD)
    path = root / "data.yaml"
    path.write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")
    return path


def test_a_sound_set_has_no_findings_and_its_numbers_are_told(tmp_path: Path) -> None:
    report = examine(write_yolo(tmp_path)).report()
    assert report["findings"] == [] and (report["errors"], report["warnings"]) == (0, 0)
    assert report["names"] == ["cat", "dog"]
    assert report["splits"]["train"] == {
        "images": 3,
        "boxes": 6,
        "background": 0,
        "image_sizes": {"smallest": "80x60", "median": "80x60", "largest": "80x60"},
        "classes": {"cat": {"boxes": 3, "images": 3}, "dog": {"boxes": 3, "images": 3}},
    }


# ---- labels


BAD_ROWS = {  # row -> rule, what is said
    "0 0.5 0.5 0.5": ("label-columns", "4 columns"),
    "0 0.5 x 0.5 0.5": ("label-number", "'x' is not a number"),
    "0 0.5 1.5 0.5 0.5": ("label-range", "coordinate 1.5"),
    "0 0.5 -0.5 0.5 0.5": ("label-range", "coordinate -0.5"),
    "2 0.5 0.5 0.5 0.5": ("label-class", "class 2 must be a whole number from 0 to 1"),
    "-1 0.5 0.5 0.5 0.5": ("label-class", "class -1"),
    "0 0.5 0.5 0 0.5": ("box-empty", ""),
    "0 0.9 0.5 0.5 0.5": ("box-outside", "by 12 px"),  # 0.9 + 0.25 = 1.15: 0.15 x 80 px
    "0 0.2 0.2 0.001 0.5": ("box-thin", "0.1 x 32.0 px at 80 px"),  # 80 px wide at 80 px: as is
    "0 0.2 0.2 0.05 0.05": ("box-tiny", "4.0 x 3.0 px"),
}


def test_every_bad_row_of_a_file_is_told_with_its_line(tmp_path: Path) -> None:
    path = write_yolo(tmp_path)
    labels = tmp_path / "labels" / "train" / "train0.txt"
    labels.write_text(GOOD + "\n".join(BAD_ROWS) + "\n")
    # the thin row is 0.2 x 60 - 0.25 x 60 = -3 to 27 px high after clipping at 0: 0 to 27
    rows = {row: (rule, text.replace("32.0", "27.0")) for row, (rule, text) in BAD_ROWS.items()}
    places = found(examine(path, imgsz=80))
    for number, (rule, text) in enumerate(rows.values(), start=3):
        told = [place for place in places[rule, "train"] if f"train0.txt:{number}" in place]
        assert len(told) == 1 and text in told[0], (number, rule, text)
    assert len(places["label-range", "train"]) == 2  # all of them, not the first alone
    assert len(places["label-class", "train"]) == 2


def test_repeated_boxes_and_boxes_of_two_classes(tmp_path: Path) -> None:
    path = write_yolo(tmp_path)
    rows = "0 0.5 0.5 0.5 0.5\n0 0.5 0.5 0.5 0.5\n1 0.5 0.5 0.5 0.5\n"
    (tmp_path / "labels" / "val" / "val1.txt").write_text(rows)
    places = found(examine(path))
    assert places["box-duplicate", "val"][0].endswith(
        f"the same box as {tmp_path}/labels/val/val1.txt:1"
    )
    assert ":3:" in places["box-two-classes", "val"][0]


def test_polygons_and_boxes_in_one_file(tmp_path: Path) -> None:
    path = write_yolo(tmp_path)
    polygon = "0 0.2 0.2 0.6 0.2 0.6 0.7\n"
    (tmp_path / "labels" / "train" / "train0.txt").write_text(GOOD + polygon)
    (tmp_path / "labels" / "train" / "train1.txt").write_text(
        polygon + "1 0.3 0.3 0.8 0.3 0.5 0.9\n"
    )
    places = found(examine(path))
    assert list(places) == [("box-mixed", "train")]  # a file of polygons alone is all right
    assert places["box-mixed", "train"][0].endswith("train0.txt:3: 1 of 3 rows are polygons")


def test_missing_unreadable_and_unused_label_files(tmp_path: Path) -> None:
    path = write_yolo(tmp_path)
    labels = tmp_path / "labels" / "train"
    (labels / "train0.txt").unlink()
    (labels / "train1.txt").write_bytes(b"\xff\xfe\x80")
    (labels / "gone.txt").write_text(GOOD)
    assert counts(examine(path)) == {
        ("label-file", "train"): 1,
        ("background", "train"): 1,  # 2 of 3
        ("label-none", "train"): 1,
        ("label-unused", ""): 1,
    }


def test_split_without_boxes_is_an_error(tmp_path: Path) -> None:
    path = write_yolo(tmp_path)
    for file in (tmp_path / "labels" / "val").iterdir():
        file.write_text("")
    assert counts(examine(path)) == {("no-boxes", "val"): 1, ("class-unmeasured", "val"): 2}


def test_classes_that_are_unused_unlearned_or_rare(tmp_path: Path) -> None:
    path = write_yolo(tmp_path)
    path.write_text(path.read_text().replace("[cat, dog]", "[cat, dog, emu, fox, gnu]"))
    labels = tmp_path / "labels"
    (labels / "val" / "val0.txt").write_text("2 0.5 0.5 0.5 0.5\n" + GOOD)
    row = "0 0.{} 0.5 0.3 0.3\n"
    (labels / "train" / "train0.txt").write_text(
        "".join(row.format(i) for i in range(20, 57)) + "3 0.5 0.5 0.5 0.5\n"
    )
    places = found(examine(path))
    assert [place.rsplit(": ")[-1] for place in places["class-unused", ""]] == ["gnu"]
    assert [place.rsplit(": ")[-1] for place in places["class-untrained", ""]] == ["emu"]
    assert [place.rsplit(": ")[-1] for place in places["class-unmeasured", "val"]] == ["fox"]
    # cat: 37 + 2, dog: 2, fox: 1. 39 >= 20 x 1, but not 20 x 2
    assert [place.split(": ")[1] for place in places["class-rare", "train"]] == ["fox (1; cat"]


# ---- images


def test_images_that_are_damaged_missing_or_turned(tmp_path: Path) -> None:
    path = write_yolo(tmp_path, images=5)
    images = tmp_path / "images" / "train"
    (images / "train0.png").write_bytes(b"")
    (images / "train1.png").write_bytes(b"not an image")
    whole = (images / "train2.png").read_bytes()
    (images / "train2.png").write_bytes(whole[: len(whole) // 2])
    places = found(examine(path))
    assert list(places) == [("image-unreadable", "train")]  # their label files are not unused
    unreadable = places["image-unreadable", "train"]
    assert len(unreadable) == 3
    assert any("train0.png: the image file is empty (0 bytes)" in place for place in unreadable)
    assert any("train1.png: not a readable image" in place for place in unreadable)
    assert any("train2.png" in place for place in unreadable)


def test_exif_rotation_is_a_warning(tmp_path: Path) -> None:
    path = write_yolo(tmp_path)
    content = cv2.imencode(".jpg", picture(50))[1].tobytes()
    entry = b"\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00"  # tag 0x0112, one short: 6
    tiff = b"II\x2a\x00\x08\x00\x00\x00\x01\x00" + entry + bytes(4)
    body = b"Exif\x00\x00" + tiff
    segment = b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body
    (tmp_path / "images" / "train" / "train0.png").unlink()
    (tmp_path / "images" / "train" / "train0.jpg").write_bytes(content[:2] + segment + content[2:])
    places = found(examine(path))
    assert list(places) == [("image-turned", "train")]
    assert "train0.jpg: orientation 6" in places["image-turned", "train"][0]


def test_copies_in_a_split_and_across_splits(tmp_path: Path) -> None:
    path = write_yolo(tmp_path, images=4)
    path.write_text(path.read_text() + "test: images/test\n")
    images, labels = tmp_path / "images", tmp_path / "labels"
    shutil.copy(images / "train" / "train0.png", images / "train" / "train1.png")
    shutil.copy(images / "train" / "train0.png", images / "train" / "train2.png")
    (labels / "train" / "train2.txt").write_text("0 0.5 0.5 0.5 0.5\n1 0.3 0.3 0.2 0.4\n")
    shutil.copy(images / "train" / "train3.png", images / "val" / "val1.png")
    for name in ("a", "b"):
        save(images / "test" / f"{name}.png", picture(ord(name)))
        (labels / "test").mkdir(exist_ok=True)
        (labels / "test" / f"{name}.txt").write_text(GOOD)
    shutil.copy(images / "val" / "val2.png", images / "test" / "a.png")
    places = found(examine(path))
    assert {key: len(value) for key, value in places.items()} == {
        ("image-leak", "val"): 1,
        ("image-duplicate", "train"): 1,
        ("image-duplicate-labels", "train"): 1,
        ("image-shared", "test"): 1,
    }
    assert "val1.png: the same as" in places["image-leak", "val"][0]
    assert places["image-leak", "val"][0].endswith("train3.png in train")


def test_changed_copies_are_found_too(tmp_path: Path) -> None:
    path = write_yolo(tmp_path, images=6)
    images = tmp_path / "images"
    copy = cv2.imread(str(images / "train" / "train2.png"))[:, ::-1]  # mirrored and compressed
    (images / "val" / "val4.png").unlink()
    save(images / "val" / "val4.jpg", copy)
    brighter = np.clip(cv2.imread(str(images / "train" / "train0.png")) * 1.1, 0, 255)
    save(images / "train" / "train5.png", brighter.astype(np.uint8))
    places = found(examine(path))
    assert list(places) == [("image-leak-alike", "val"), ("image-alike", "train")]
    assert "val4.jpg: like" in places["image-leak-alike", "val"][0]
    assert "train2.png" in places["image-leak-alike", "val"][0]
    assert "train5.png: like" in places["image-alike", "train"][0]
    assert found(examine(path, quick=True)) == {}


def test_one_folder_for_train_and_val_is_a_leak_of_every_image(tiny_set: Path) -> None:
    examination = examine(tiny_set)
    assert counts(examination)["image-leak", "val"] == 8
    assert found(examination)["image-leak", "val"][0].endswith("the same file in train")


# ---- formats


def write_voc(root: Path, objects: dict[str, str]) -> Path:
    """Write a VOC set with these xml bodies: names that begin with v are val, others train."""
    for stem, body in objects.items():
        save(root / "JPEGImages" / f"{stem}.png", picture(len(stem) * 100 + ord(stem[-1])))
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{body}</annotation>")
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    val = [stem for stem in objects if stem[0] == "v"]
    (lists / "val.txt").write_text("\n".join(val))
    (lists / "train.txt").write_text("\n".join(stem for stem in objects if stem not in val))
    path = root / "data.yaml"
    path.write_text("format: voc\nnames: [cat, dog]\n")
    return path


def item(name: str, *corners: object) -> str:
    box = "".join(
        f"<{tag}>{corner}</{tag}>"
        for tag, corner in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    )
    return f"<object><name>{name}</name><bndbox>{box}</bndbox></object>"


BOTH = item("cat", 1, 1, 40, 40) + item("dog", 20, 20, 60, 50)


def test_voc_problems_are_all_found(tmp_path: Path) -> None:
    wrong = "<size><width>60</width><height>80</height></size>" + item("emu", 1, 1, 9, 9)
    wrong += item("fox", 1, 1, 9, 9) + item("cat", 5, 5, 5, 9) + item("cat", 1, "x", 9, 9) + BOTH
    path = write_voc(tmp_path, {"a": wrong, "b": BOTH, "c": "<object>", "va": BOTH, "vb": BOTH})
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\nb.png\nc\ngone\n")
    (tmp_path / "Annotations" / "b.xml").unlink()
    (tmp_path / "Annotations" / "lost.xml").write_text("<annotation/>")
    save(tmp_path / "JPEGImages" / "spare.png", picture(9))
    places = found(examine(path))
    assert {key: len(value) for key, value in places.items()} == {
        ("image-missing", "train"): 1,
        ("label-number", "train"): 1,
        ("label-class", "train"): 2,
        ("label-file", "train"): 1,
        ("label-size", "train"): 1,
        ("box-empty", "train"): 1,
        ("background", "train"): 1,  # b and c of three
        ("label-none", "train"): 1,
        ("label-unused", ""): 1,
        ("image-unused", ""): 1,
    }
    assert "train.txt:4: no image gone" in places["image-missing", "train"][0]
    assert (
        "class 'emu' is not in names; classes found: cat (2), dog (1), emu (1), fox (1)"
        in (places["label-class", "train"][0])
    )
    assert "a.xml: 60x80, the image has 80x60" in places["label-size", "train"][0]


def test_empty_list_of_images_is_told_and_the_other_split_is_read(tmp_path: Path) -> None:
    path = write_voc(tmp_path, {"a": BOTH, "va": BOTH})
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("\n \n")
    examination = examine(path)
    assert "train.txt: no images: the list is empty" in found(examination)["split", "train"][0]
    assert examination.tallies["val"].images == 1


def test_lines_twice_with_extensions_or_carriage_returns_are_one_image(tmp_path: Path) -> None:
    path = write_voc(tmp_path, {"a": BOTH, "va": BOTH})
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_bytes(b"a\r\na.png\r\n\r\na\r\n")
    examination = examine(path)
    assert examination.findings == [] and examination.tallies["train"].images == 1


def write_coco(root: Path, table: dict[str, Any]) -> Path:
    """Write a train split with this table and images a to c, and a sound val split."""
    for split, stems in (("train", "abc"), ("valid", "d")):
        for stem in stems:
            save(root / split / f"{stem}.png", picture(ord(stem)))
    sound = {
        "images": [{"id": 1, "file_name": "d.png"}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": n, "bbox": [5 * n, 5, 20, 20]} for n in (1, 2)
        ],
        "categories": CATEGORIES,
    }
    for split, content in (("train", table), ("valid", sound)):
        (root / split / "_annotations.coco.json").write_text(json.dumps(content))
    path = root / "data.yaml"
    path.write_text("format: coco\nnames: [cat, dog]\nignore: [gnu]\n")
    return path


CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "emu"},
              {"id": 4, "name": "gnu"}]  # fmt: skip


def test_coco_problems_are_all_found(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"image_id": 1, "category_id": 1, "bbox": [1, 1, 30, 30]},
        {"image_id": 1, "category_id": 2, "bbox": [1, 1, 30, 20]},
        {"image_id": 1, "category_id": 2, "bbox": [1, 1, 30]},
        {"image_id": 1, "category_id": 2, "bbox": [1, 1, -30, 20]},
        {"image_id": 1, "category_id": 2, "bbox": [70, 1, 30, 20]},
        {"image_id": 9, "category_id": 2, "bbox": [1, 1, 30, 20]},
        {"image_id": 1, "category_id": 9, "bbox": [1, 1, 30, 20]},
        {"image_id": 1, "category_id": 3, "bbox": [1, 1, 30, 20]},
        {"image_id": 1, "category_id": 4, "bbox": [1, 1, 30, 20]},
        {"image_id": 1, "category_id": 2, "bbox": [9, 9, 30, 20], "segmentation": [[1, 2, 3]]},
    ]
    table = {
        "images": [
            {"id": 1, "file_name": "a.png"},
            {"id": 1, "file_name": "b.png"},
            {"id": 3, "file_name": "c.png", "width": 60, "height": 80},
            {"id": 4, "file_name": "gone.png"},
            {"file_name": "b.png"},
        ],
        "annotations": [{"id": n, **row} for n, row in enumerate(rows)] + [{"id": 99}],
        "categories": CATEGORIES,
    }
    places = found(examine(write_coco(tmp_path, table)))
    assert {key: len(value) for key, value in places.items()} == {
        ("image-missing", "train"): 1,
        ("image-size", "train"): 1,
        ("label-columns", "train"): 3,  # an image without id, an empty annotation, three numbers
        ("label-range", "train"): 1,
        ("label-class", "train"): 1,
        ("annotation-id", "train"): 3,  # image 1 twice, image 9, category 9
        ("box-outside", "train"): 1,
        ("mask", "train"): 1,
        ("class-ignored", "train"): 1,
    }


def test_darknet_sets_are_looked_over_like_yolo(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    for split in ("train", "val"):
        names = [f"images/{split}/{split}{index}.png\n" for index in range(3)]
        (tmp_path / f"{split}.txt").write_text("".join(names) + "images/gone.png\n")
    (tmp_path / "my.names").write_text("cat\ndog\n")
    path = tmp_path / "my.data"
    path.write_text("classes = 2\ntrain = train.txt\nvalid = val.txt\nnames = my.names\n")
    (tmp_path / "labels" / "train" / "train0.txt").write_text("7 0.5 0.5 0.5 0.5\n" + GOOD)
    assert counts(examine(path)) == {
        ("image-missing", "train"): 1,
        ("image-missing", "val"): 1,
        ("label-class", "train"): 1,
    }


def test_drawn_shapes_are_sound(tmp_path: Path) -> None:
    path = tmp_path / "shapes.yaml"
    path.write_text("format: shapes\ntrain: 30\nval: 12\ntest: 0\nsize: 96\n")
    assert examine(path, imgsz=96).count("error") == 0


def test_several_sets_are_compared_with_each_other(tmp_path: Path) -> None:
    first, second = write_yolo(tmp_path / "one"), write_yolo(tmp_path / "two")
    for split, seed in (("train", 200), ("val", 300)):
        for index, file in enumerate(sorted((tmp_path / "two" / "images" / split).iterdir())):
            save(file, picture(seed + index))
    assert counts(examine(f"{first},{second}")) == {}
    source = tmp_path / "one" / "images" / "train" / "train1.png"
    shutil.copy(source, tmp_path / "two" / "images" / "val" / "val2.png")
    assert counts(examine(f"{first},{second}")) == {("image-leak", "val"): 1}
    second.write_text(second.read_text().replace("dog", "fox"))
    examination = examine(f"{first},{second}", quick=True)
    assert "lacks dog and has fox besides" in found(examination)["config", ""][0]
    assert examination.names == ["cat", "dog", "fox"]


# ---- description


def test_all_mistakes_of_a_description_are_told_and_the_rest_is_looked_at(tmp_path: Path) -> None:
    path = write_yolo(tmp_path)
    path.write_text(path.read_text() + "nc: 5\ncolour: red\non_error: perhaps\nsize: 7\n")
    (tmp_path / "labels" / "train" / "train0.txt").write_text("5 0.5 0.5 0.5 0.5\n" + GOOD)
    places = found(examine(path))
    assert list(places) == [("config", ""), ("label-class", "train")]
    said = " ".join(places["config", ""])
    assert len(places["config", ""]) == 4
    for text in ("nc is 5", "colour is not a known key", "'perhaps' must be", "size belongs to"):
        assert text in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n- b\n", "a description has lines"),
        ("train: images/train\nval: images/val\n", "names is missing"),
        ("train: images/train\nnames: 5\n", "names must be a list"),
        ("val: images/val\nnames: [cat, dog]\n", "no train split"),
        ("path: nowhere\nnames: [cat, dog]\n", "does not exist"),
    ],
)
def test_description_of_which_nothing_is_left_is_one_error(
    tmp_path: Path, text: str, said: str
) -> None:
    path = write_yolo(tmp_path)
    path.write_text(text)
    places = found(examine(path))
    assert len(places["config", ""]) == 1 and said in places["config", ""][0]


def test_parts_that_cannot_be_read_are_told_and_the_others_read(tmp_path: Path) -> None:
    path = write_yolo(tmp_path)
    text = "train: [images/train, images/more]\nnames: [cat, dog]\n"
    path.write_text(text)
    examination = examine(path)
    places = found(examination)
    assert examination.tallies["train"].images == 3
    assert "images/more: no such image folder" in places["split", "train"][0]
    assert "no val split" in places["split", "val"][0]


# ---- command


def test_exit_code_says_whether_there_are_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_yolo(tmp_path)
    assert main([str(path)]) == 0
    assert "ready for training: 0 errors, 0 warnings, 0 notes" in capsys.readouterr().out
    (tmp_path / "labels" / "train" / "train0.txt").write_text("0 0.5 0.5 0 0.5\n" + GOOD)
    assert main([str(path)]) == 0  # a warning
    assert "1 warning," in capsys.readouterr().out
    (tmp_path / "labels" / "train" / "train0.txt").write_text("5 0.5 0.5 0.1 0.5\n" * 7 + GOOD)
    assert main([str(path), "--limit", "2"]) == 1
    out = capsys.readouterr().out
    assert "not ready for training: 7 errors" in out
    assert "labels/train/train0.txt:2: class 5" in out and "train0.txt:3" not in out
    assert "... and 5 more" in out


def test_json_is_one_object_with_every_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_yolo(tmp_path)
    (tmp_path / "labels" / "train" / "train0.txt").write_text("5 0.5 0.5 0.1 0.5\n" * 7 + GOOD)
    assert main([str(path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    (finding,) = report["findings"]
    assert (finding["rule"], finding["severity"], finding["count"]) == ("label-class", "error", 7)
    assert len(finding["places"]) == 7 and report["errors"] == 7


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["gone.yaml"], "gone.yaml: no such data set description"),
        (["{data}", "--imgsz", "0"], "--imgsz 0 must be at least 1"),
        (["{data}", "--limit", "-1"], "--limit -1 must be 0"),
        (["{data},"], "a name is missing before or after a comma"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    tmp_path: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_yolo(tmp_path)
    assert main([option.replace("{data}", str(path)) for option in options]) == 2
    answer = capsys.readouterr()
    assert answer.out == "" and answer.err.count("\n") == 1 and said in answer.err


def test_every_rule_has_a_severity_and_says_what_it_means() -> None:
    assert {severity for severity, _ in RULES.values()} == set(SEVERITIES)
    order = [SEVERITIES.index(severity) for severity, _ in RULES.values()]
    assert order == sorted(order)  # errors are told first
    assert all(len(what) > 15 for _, what in RULES.values())


def test_the_manual_lists_every_rule_as_it_is() -> None:
    manual = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    for rule, (severity, what) in RULES.items():
        assert f"| {severity} | `{rule}` | {what} |" in manual
