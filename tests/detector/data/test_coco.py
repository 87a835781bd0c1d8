import json
import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from detector.data.coco import class_names, find_json, read_coco
from detector.data.labels import Problems
from detector.data.sample import Sample
from detector.errors import DataError

NAMES = ("cat", "dog")


def write_image(path: Path, height: int = 40, width: int = 80) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", np.zeros((height, width, 3), np.uint8))[1].tobytes())


def content(*annotations: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a file with images 7 (a.png) and 9 (b.png), 80 x 40, and categories 3 and 5."""
    rows = [{"id": n, "image_id": 7, "category_id": 5, **row} for n, row in enumerate(annotations)]
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 80, "height": 40},
            {"id": 9, "file_name": "b.png"},
        ],
        "annotations": rows,
        "categories": [{"id": 5, "name": "dog"}, {"id": 3, "name": "cat"}],
        **changes,
    }


def write_set(root: Path, table: dict[str, Any] | list[Any]) -> Path:
    for name in ("a.png", "b.png"):
        write_image(root / "train" / name)
    (root / "train" / "_annotations.coco.json").write_text(json.dumps(table))
    return root


def read(root: Path, problems: Problems | None = None, **options: Any) -> list[Sample]:
    settings = {"names": NAMES, "ignore": (), **options}
    return read_coco(root, ["train"], problems=problems or Problems("set"), **settings)


def test_bbox_is_corner_and_size_and_names_decide_the_label(tmp_path: Path) -> None:
    table = content({"bbox": [10, 5, 20, 30]}, {"bbox": [0.5, 0, 2, 2], "category_id": 3})
    samples = read(write_set(tmp_path, table))
    assert [sample.id for sample in samples] == ["a", "b"]
    assert samples[0].boxes.tolist() == [[10, 5, 30, 35], [0.5, 0, 2.5, 2]]
    assert samples[0].labels.tolist() == [1, 0]
    assert samples[0].size == (40, 80)


def test_image_without_annotation_is_background_and_its_size_is_read(tmp_path: Path) -> None:
    sample = read(write_set(tmp_path, content()))[1]
    assert sample.boxes.shape == (0, 4) and sample.size == (40, 80)


def test_crowd_is_kept_and_marked(tmp_path: Path) -> None:
    table = content({"bbox": [1, 1, 9, 9], "iscrowd": 1}, {"bbox": [1, 1, 9, 9], "iscrowd": 0})
    assert read(write_set(tmp_path, table))[0].crowd.tolist() == [True, False]


def test_boxes_are_clipped_and_those_without_area_dropped_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = content({"bbox": [-5, 30, 20, 30]}, {"bbox": [3, 3, 0, 5]}, {"bbox": [80, 3, 9, 5]})
    problems = Problems("set")
    samples = read(write_set(tmp_path, table), problems)
    with caplog.at_level(logging.WARNING):
        problems.report()
    assert samples[0].boxes.tolist() == [[0, 30, 15, 40]]
    place = f"{tmp_path}/train/_annotations.coco.json: annotation id 1"
    assert caplog.messages == [f"set: dropped 2 box(es) without area, first in {place}"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"bbox": [1, 2, 3]}, r"annotation id 0: bbox \[1, 2, 3\] must be four numbers"),
        ({"bbox": [1, 2, 3, 4, 5]}, "must be four numbers"),
        ({"bbox": [1, 2, "3", 4]}, "must be four numbers"),
        ({"bbox": [1, 2, float("nan"), 4]}, "must be four numbers"),
        ({"bbox": None}, "must be four numbers"),
        ({"bbox": [9, 9, -3, 4]}, "annotation id 0: .* negative size"),
        ({"bbox": [1, 2, 3, 4], "image_id": 8}, "annotation id 0: unknown image id 8"),
        ({"bbox": [1, 2, 3, 4], "category_id": 4}, "annotation id 0: unknown category id 4"),
    ],
)
def test_bad_annotation_is_an_error_with_its_id_or_skipped(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    write_set(tmp_path, content(row, {"bbox": [1, 2, 3, 4]}))
    with pytest.raises(DataError, match=message):
        read(tmp_path)
    problems = Problems("set", skip=True)
    assert len(read(tmp_path, problems)[0].boxes) == 1
    assert len(problems.skipped) == 1


def test_category_with_boxes_that_is_not_named_is_an_error_unless_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_set(tmp_path, content({"bbox": [1, 2, 3, 4]}, {"bbox": [1, 2, 3, 4]}))
    with pytest.raises(DataError, match=r"category 'dog' has 2 box\(es\) and is not in names"):
        read(tmp_path, names=("cat",))
    problems = Problems("set")
    samples = read(tmp_path, problems, names=("cat",), ignore=("dog",))
    with caplog.at_level(logging.WARNING):
        problems.report()
    assert len(samples[0].boxes) == 0
    assert caplog.messages == ["set: ignored 2 box(es) of class 'dog' (ignore:)"]


def test_category_without_boxes_need_not_be_named(tmp_path: Path) -> None:
    write_set(tmp_path, content({"bbox": [1, 2, 3, 4]}))
    assert read(tmp_path, names=("dog",))[0].labels.tolist() == [0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": []}, "no images"),
        ({"images": None}, "no list 'images'"),
        ({"annotations": {}}, "no list 'annotations'"),
        ({"images": [{"id": 1}]}, "images: 'file_name' is missing"),
        ({"annotations": [{"id": 1, "image_id": 7, "bbox": []}]}, "'category_id' is missing"),
        ({"images": [{"id": 7, "file_name": "a.png"}] * 2}, "image id 7 occurs twice"),
        ({"categories": [{"id": 5, "name": "dog"}] * 2}, "category id 5 occurs twice"),
        ({"categories": [{"id": [5], "name": "dog"}]}, "ids are whole numbers or text"),
        ({"images": [{"id": 7, "file_name": "gone.png"}]}, "image id 7: no file .*gone.png"),
        (
            {"images": [{"id": 7, "file_name": "a.png", "width": 40, "height": 80}]},
            "image id 7: 40x80 here, but a.png has 80x40",
        ),
    ],
)
def test_damaged_table_is_an_error_naming_file_and_id(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_set(tmp_path, content(**changes))
    with pytest.raises(DataError, match=rf"_annotations\.coco\.json: .*{message}"):
        read(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null"])
def test_file_that_is_no_coco_json_is_an_error(tmp_path: Path, text: str) -> None:
    write_set(tmp_path, content())
    (tmp_path / "train" / "_annotations.coco.json").write_text(text)
    with pytest.raises(DataError, match=r"coco\.json: (not a json file|no list 'images')"):
        read(tmp_path)


def test_missing_json_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="train: 0 json files"):
        find_json(tmp_path, "train")
    with pytest.raises(DataError, match=r"x\.json: no such annotation file"):
        find_json(tmp_path, "x.json")


def test_names_follow_the_ids_and_leave_out_an_empty_super_category(tmp_path: Path) -> None:
    categories = [
        {"id": 10, "name": "dog", "supercategory": "animals"},
        {"id": 2, "name": "cat", "supercategory": "animals"},
        {"id": 0, "name": "animals", "supercategory": "none"},
        {"id": 4, "name": "cup", "supercategory": "cup"},
    ]
    table = content({"bbox": [1, 2, 3, 4], "category_id": 10}, categories=categories)
    write_set(tmp_path, table)
    assert class_names([find_json(tmp_path, "train")]) == ("cat", "cup", "dog")


@pytest.mark.parametrize("folder", ["train2017", "images/train2017", "images", "annotations"])
def test_official_layout_finds_the_image_folder(tmp_path: Path, folder: str) -> None:
    for name in ("a.png", "b.png"):
        write_image(tmp_path / folder / name)
    (tmp_path / "annotations").mkdir(exist_ok=True)
    file = tmp_path / "annotations" / "instances_train2017.json"
    file.write_text(json.dumps(content({"bbox": [1, 2, 3, 4]})))
    entry = "annotations/instances_train2017.json"
    samples = read_coco(tmp_path, [entry], NAMES, (), Problems("set"))
    assert [sample.path for sample in samples] == [
        tmp_path / folder / name for name in ("a.png", "b.png")
    ]


def test_text_ids_and_names_outside_ascii_work(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "ä 图.png")
    table = content(
        {"bbox": [1, 2, 3, 4], "image_id": "x7"},
        images=[{"id": "x7", "file_name": "ä 图.png"}],
    )
    write_set(tmp_path, table)
    assert len(read(tmp_path)[0].boxes) == 1


def test_rows_that_are_not_whole_can_be_skipped(tmp_path: Path) -> None:
    good, bad = {"bbox": [1, 1, 9, 9]}, {"bbox": [1, 1, 9, 9], "category_id": 1.5}
    images = [{"id": 7, "file_name": "a.png"}, {"file_name": "b.png"}, {"id": 7, "file_name": "c"}]
    table = content(good, bad, images=images)
    table["annotations"].append("text")
    problems = Problems("set", skip=True)
    (sample,) = read(write_set(tmp_path, table), problems)
    assert sample.id == "a" and len(sample.boxes) == 1
    assert len(problems.skipped) == 4  # an image without id, a second 7, two annotations
    assert class_names([find_json(tmp_path, "train")]) == ("cat", "dog")


# ---- masks


def test_segmentation_is_the_outline_of_its_box(tmp_path: Path) -> None:
    ring = [10, 5, 30, 5, 30, 35]
    runs = {"size": [40, 80], "counts": [40 * 3 + 2, 4, 40 * 80 - 40 * 3 - 6]}
    rows = (
        {"bbox": [10, 5, 0, 30], "segmentation": [ring]},  # no area: dropped with its mask
        {"bbox": [10, 5, 20, 30], "segmentation": [ring]},
        {"bbox": [1, 1, 2, 2]},
        {"bbox": [3, 2, 1, 4], "segmentation": runs},  # 4 pixels of column 3
        {"bbox": [0, 0, 9, 9], "segmentation": runs, "iscrowd": 1},
    )
    outlines = read(write_set(tmp_path, content(*rows)))[0].outlines
    assert outlines is not None
    assert outlines.objects.tolist() == [0, 2]
    assert outlines.rings([0])[0].tolist() == [[10, 5], [30, 5], [30, 35]]
    assert outlines.rings([2])[0].tolist() == [[3.5, 2.5], [3.5, 5.5]]


def test_bad_segmentation_costs_the_mask_alone_and_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    problems = Problems("set")
    rows = [{"bbox": [1, 1, 9, 9], "segmentation": [[1, 2, 3, 4]]}, {"bbox": [0, 0, 5, 5]}]
    sample = read(write_set(tmp_path, content(*rows)), problems)[0]
    assert len(sample.boxes) == 2 and sample.outlines is None
    problems.report()
    assert "1 mask(s) cannot be read" in caplog.text and "annotation id 0" in caplog.text
