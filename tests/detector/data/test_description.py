import json
import logging
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.data.description import (
    digest,
    load_data,
    read_sets,
    read_split,
    short_name,
    single_class,
)
from detector.errors import DataError

YAML = "path: set\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n"


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DETECTOR_DATA", raising=False)


def write_yolo(root: Path, folders: Sequence[str] = ("images/train", "images/val")) -> Path:
    """Write one 80 x 40 image with a dog (class 1) in each folder of images."""
    for index, folder in enumerate(folders):
        images = root / folder
        labels = root / folder.replace("images", "labels")
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        picture = np.full((40, 80, 3), index, np.uint8)
        (images / f"{index}.png").write_bytes(cv2.imencode(".png", picture)[1].tobytes())
        (labels / f"{index}.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    return root


def write_voc(root: Path) -> Path:
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / name).mkdir(parents=True)
    picture = np.zeros((40, 80, 3), np.uint8)
    for split in ("train", "val"):
        (root / "JPEGImages" / f"{split}.png").write_bytes(
            cv2.imencode(".png", picture)[1].tobytes()
        )
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(f"{split}\n")
        (root / "Annotations" / f"{split}.xml").write_text(
            "<annotation><object><name>dog</name><bndbox><xmin>21</xmin><ymin>11</ymin>"
            "<xmax>60</xmax><ymax>30</ymax></bndbox></object></annotation>"
        )
    return root


def write_roboflow(root: Path) -> Path:
    for split in ("train", "valid"):
        (root / split).mkdir(parents=True)
        picture = np.zeros((40, 80, 3), np.uint8)
        (root / split / "a.png").write_bytes(cv2.imencode(".png", picture)[1].tobytes())
        table = {
            "images": [{"id": 0, "file_name": "a.png"}],
            "annotations": [{"id": 0, "image_id": 0, "category_id": 1, "bbox": [20, 10, 40, 20]}],
            "categories": [
                {"id": 0, "name": "animals", "supercategory": "none"},
                {"id": 1, "name": "dog", "supercategory": "animals"},
            ],
        }
        (root / split / "_annotations.coco.json").write_text(json.dumps(table))
    return root


def write_yaml(folder: Path, text: str = YAML, name: str = "mine.yaml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# ---- formats and layouts


def test_yaml_gives_names_splits_and_samples(tmp_path: Path) -> None:
    write_yolo(tmp_path / "set")
    data = load_data(write_yaml(tmp_path))
    assert data.root == tmp_path / "set" and data.format == "yolo"
    assert data.names == ("cat", "dog") and data.num_classes == 2
    assert list(data.splits) == ["train", "val"]
    assert read_split(data, "val")[0].boxes.tolist() == [[20, 10, 60, 30]]


@pytest.mark.parametrize(
    ("write", "kind", "labels"),
    [(write_voc, "voc", [0]), (write_roboflow, "coco", [0])],
)
def test_folder_alone_is_enough_where_labels_have_names(
    tmp_path: Path, write: object, kind: str, labels: list[int]
) -> None:
    root = write(tmp_path / "set")  # type: ignore[operator]
    data = load_data(root)
    assert (data.format, data.names, list(data.splits)) == (kind, ("dog",), ["train", "val"])
    (sample,) = read_split(data, "train")
    assert sample.boxes.tolist() == [[20, 10, 60, 30]] and sample.labels.tolist() == labels


def test_official_coco_folder_is_found(tmp_path: Path) -> None:
    write_roboflow(tmp_path)
    (tmp_path / "annotations").mkdir()
    for split, name in (("train", "train2017"), ("valid", "val2017")):
        (tmp_path / split / "_annotations.coco.json").rename(
            tmp_path / "annotations" / f"instances_{name}.json"
        )
        (tmp_path / split).rename(tmp_path / name)
    data = load_data(tmp_path)
    assert data.splits["val"] == ("annotations/instances_val2017.json",)
    assert read_split(data, "val")[0].path == tmp_path / "val2017" / "a.png"


def test_voc_years_are_found_and_joined(tmp_path: Path) -> None:
    write_voc(tmp_path / "VOC2007")
    write_voc(tmp_path / "VOC2012")
    data = load_data(tmp_path)
    assert data.format == "voc" and len(read_split(data, "train")) == 2


def test_yolo_folder_needs_names_from_somewhere(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    with pytest.raises(DataError, match="names is missing"):
        load_data(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert load_data(tmp_path).names == ("cat", "dog")


def test_yolo_lists_beside_the_images_are_found(tmp_path: Path) -> None:
    write_yolo(tmp_path, ["images"])
    (tmp_path / "train.txt").write_text("images/0.png\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert [sample.id for sample in read_split(load_data(tmp_path), "train")] == ["0"]


def test_exported_folder_brings_its_own_description(tmp_path: Path) -> None:
    # as Roboflow writes it: `valid`, extra keys, and `../` before paths inside the set
    write_yolo(tmp_path / "set", ["train/images", "valid/images"])
    write_yaml(
        tmp_path / "set",
        "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['cat', 'dog']\n"
        "roboflow:\n  workspace: somebody\n",
        "data.yaml",
    )
    data = load_data(tmp_path / "set")
    assert data.names == ("cat", "dog")
    assert [len(read_split(data, split)) for split in ("train", "val")] == [1, 1]


def test_numbered_names_several_folders_and_a_foreign_download_are_accepted(
    tmp_path: Path,
) -> None:
    write_yolo(tmp_path / "set", ["a/images", "b/images"])
    text = (
        f"path: {tmp_path}/set\ntrain:\n  - a/images\n  - b/images\nval: b/images\ntest:\n"
        "names:\n  1: dog\n  0: cat\ndownload: https://example.org/set.zip\n"
    )
    data = load_data(write_yaml(tmp_path / "elsewhere", text))
    assert data.names == ("cat", "dog") and list(data.splits) == ["train", "val"]
    assert len(read_split(data, "train")) == 2


def test_same_objects_are_equal_in_every_format(tmp_path: Path) -> None:
    yolo = write_yolo(tmp_path / "yolo")
    for path in yolo.glob("labels/*/*.txt"):
        path.write_text("0 0.5 0.5 0.5 0.5")
    (yolo / "classes.txt").write_text("dog")
    sets = [write_voc(tmp_path / "voc"), write_roboflow(tmp_path / "coco"), yolo]
    data = [load_data(root) for root in sets]
    assert [item.format for item in data] == ["voc", "coco", "yolo"]
    assert len({digest(read_split(item, "train")) for item in data}) == 1


# ---- where the images are


def test_folder_is_found_absolute_beside_the_yaml_and_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_yolo(tmp_path / "here" / "set")
    path = write_yaml(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"mine\.yaml: the folder set does not exist"):
        load_data(path)
    monkeypatch.chdir(tmp_path / "here")
    assert load_data(path).root == tmp_path / "here" / "set"
    absolute = YAML.replace("set", str(tmp_path / "here" / "set"))
    assert load_data(write_yaml(tmp_path / "third", absolute)).root == tmp_path / "here" / "set"
    write_yolo(tmp_path / "elsewhere" / "set")  # beside the yaml comes first
    assert load_data(path).root == tmp_path / "elsewhere" / "set"


@pytest.mark.parametrize("name", ["set", "mine"])
def test_environment_folder_wins_when_it_holds_the_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_yolo(tmp_path / "set")
    path = write_yaml(tmp_path)
    (tmp_path / "home" / name).mkdir(parents=True)
    monkeypatch.setenv("DETECTOR_DATA", str(tmp_path / "home"))
    assert load_data(path).root == tmp_path / "set"  # an empty folder does not hold it
    write_yolo(tmp_path / "home" / name)
    assert load_data(path).root == tmp_path / "home" / name


def test_description_in_its_own_set_stays_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_yolo(tmp_path / "set")
    write_yolo(tmp_path / "home" / "data")
    monkeypatch.setenv("DETECTOR_DATA", str(tmp_path / "home"))
    path = write_yaml(tmp_path / "set", YAML.replace("path: set\n", ""), "data.yaml")
    assert load_data(path).root == tmp_path / "set"


def test_folder_may_be_named_relative_to_the_environment_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_voc(tmp_path / "home" / "cells")
    monkeypatch.setenv("DETECTOR_DATA", str(tmp_path / "home"))
    assert load_data("cells").root == tmp_path / "home" / "cells"


# ---- what is wrong


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("train:", "trian:"), r"trian is not a known key; did you mean train\?"),
        (("train: images/train", "1: x"), "1 is not a known key"),
        (("path: set", "path: set\nformat: yollo"), r"format yollo .*did you mean yolo\?"),
        (("path: set", "path: 5"), "path: 5 must be text"),
        (("path: set", "path: gone"), "the folder gone does not exist; put it by hand into"),
        (("train: images/train", "train: [1]"), "train: 1 must be a folder"),
        (("train: images/train\n", ""), "no train split"),
        (("names: [cat, dog]", ""), "names is missing"),
        (("names: [cat, dog]", "names: []"), "names is empty"),
        (("names: [cat, dog]", "names: cat"), "names must be a list"),
        (("names: [cat, dog]", "names: [cat, cat]"), "class name cat occurs twice"),
        (("names: [cat, dog]", "names: [yes, no]"), "class name True must be text; write it in q"),
        (("names: [cat, dog]", "names: {0: cat, 2: dog}"), "numbered 0 to 1 without gaps"),
        (("names: [cat, dog]", "names: [cat, dog]\nnc: 3"), "nc is 3, but there are 2 names"),
        (("path: set", "path: set\nignore: 5"), "ignore: 5 must be a list"),
        (("path: set", "path: set\nignore: [cow]"), "ignore: is for voc and coco"),
        (("path: set", "path: set\nformat: voc\nignore: [cat]"), "cat is in names and in ignore"),
        (("path: set", "path: set\non_error: stop"), "on_error: 'stop' must be raise or skip"),
        (("path: set", "path: set\nseed: 3"), "seed belongs to format: shapes only"),
        (("path: set", "path: [set"), "not a yaml file"),
    ],
)
def test_wrong_description_is_one_line_naming_the_file(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    write_yolo(tmp_path / "set")
    path = write_yaml(tmp_path, YAML.replace(*change))
    with pytest.raises(DataError, match=rf"mine\.yaml: .*{message}") as caught:
        load_data(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "just words", "- a\n- b\n"])
def test_yaml_without_keys_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"mine\.yaml: a description has lines"):
        load_data(write_yaml(tmp_path, text))


def test_missing_description_suggests_a_near_one(tmp_path: Path) -> None:
    write_yaml(tmp_path, name="shapes.yaml")
    with pytest.raises(DataError, match=r"shape\.yaml: no such .*did you mean .*shapes\.yaml\?"):
        load_data(tmp_path / "shape.yaml")
    with pytest.raises(DataError, match="no such data set description"):
        load_data(tmp_path / "gone" / "x.yaml")


def test_binary_description_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"mine\.yaml: not a text file"):
        load_data(tmp_path / "mine.yaml")


def test_folder_without_a_known_layout_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError, match="cannot tell the format"):
        load_data(tmp_path)


def test_split_that_is_not_there_is_an_error_listing_the_others(tmp_path: Path) -> None:
    write_yolo(tmp_path / "set")
    data = load_data(write_yaml(tmp_path))
    with pytest.raises(DataError, match="there is no test split; there are: train, val"):
        read_split(data, "test")


def test_skipping_leaves_out_bad_images_but_not_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_yolo(tmp_path / "set")
    (tmp_path / "set/images/train/empty.jpg").write_bytes(b"")
    path = write_yaml(tmp_path)
    with pytest.raises(DataError, match=r"empty\.jpg: the image file is empty"):
        read_split(load_data(path), "train")
    data = load_data(write_yaml(tmp_path, YAML + "on_error: skip\n"))
    with caplog.at_level(logging.WARNING):
        assert len(read_split(data, "train")) == 1
    assert any("skipped 1 bad" in line and "empty.jpg" in line for line in caplog.messages)
    (tmp_path / "set/images/train/0.png").write_bytes(b"text")
    with pytest.raises(DataError, match="the train split has no images that can be read"):
        read_split(data, "train")


def test_class_without_boxes_and_split_without_boxes_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_yolo(tmp_path / "set")
    (tmp_path / "set/labels/val/1.txt").unlink()
    data = load_data(write_yaml(tmp_path))
    with caplog.at_level(logging.WARNING):
        read_split(data, "train")
        read_split(data, "val")
    assert caplog.messages == [
        f"{tmp_path}/mine.yaml: no box in the train split for: cat",
        f"{tmp_path}/mine.yaml: the val split has no boxes at all",
    ]


# ---- several sets at once


@pytest.fixture
def two_sets(tmp_path: Path) -> str:
    """Two sets with one dog each in train; the second names its classes the other way round."""
    write_yolo(tmp_path / "one")
    write_yolo(tmp_path / "two", ["images/train"])
    first = write_yaml(tmp_path, YAML.replace("path: set", "path: one"), "one.yaml")
    text = "path: two\ntrain: images/train\nnames: [dog, cat]\n"
    return f"{first},{write_yaml(tmp_path, text, 'two.yaml')}"


def test_several_sets_are_joined_by_the_names_of_the_first(two_sets: str) -> None:  # B-63
    data = load_data(two_sets)
    assert data.names == ("cat", "dog") and list(data.splits) == ["train", "val"]
    train = read_split(data, "train")
    assert [sample.path.parts[-4] for sample in train] == ["one", "two"]
    # class 1 is a dog in the first set and a cat in the second, where it is called 1 too
    assert [sample.labels.tolist() for sample in train] == [[1], [0]]


def test_each_set_can_be_read_by_its_name(two_sets: str) -> None:
    data = load_data(two_sets)
    assert {name: len(found) for name, found in read_sets(data, "train").items()} == {
        "one": 1,
        "two": 1,
    }
    assert list(read_sets(data, "val")) == ["one"]  # the second has no val split
    with pytest.raises(DataError, match="there is no test split; there are: train, val"):
        read_split(data, "test")


def test_sets_of_exports_are_called_by_their_folders(tmp_path: Path) -> None:
    paths = [write_yaml(write_yolo(tmp_path / name), YAML, "data.yaml") for name in ("a", "b")]
    for path in paths:
        path.write_text(YAML.replace("path: set\n", ""))
    data = load_data(",".join(map(str, paths)))
    assert list(read_sets(data, "train")) == ["a", "b"]


def test_sets_with_other_classes_are_refused_with_the_difference(two_sets: str) -> None:  # B-63
    first, second = two_sets.split(",")
    path = Path(second)
    path.write_text(path.read_text().replace("cat", "emu"))
    with pytest.raises(DataError, match=r"two\.yaml: lacks cat and has emu besides"):
        load_data(two_sets)
    with pytest.raises(DataError, match=r"one\.yaml: is given twice"):
        load_data(f"{first},{first}")
    with pytest.raises(DataError, match="a name is missing before or after a comma"):
        load_data(f"{first},")


def test_a_comma_in_a_name_that_exists_is_no_list(tmp_path: Path) -> None:
    write_yolo(tmp_path / "set")
    assert load_data(write_yaml(tmp_path, name="a,b.yaml")).names == ("cat", "dog")


def test_short_names_of_runs() -> None:
    assert short_name("data/bccd.yaml") == "bccd"
    assert short_name("data/a.yaml, data/b.yaml") == "a+b"


def test_all_classes_as_one(two_sets: str) -> None:
    for description in (two_sets, two_sets.split(",")[0]):
        data = single_class(load_data(description))
        assert data.names == ("object",) and data.num_classes == 1
        samples = read_split(data, "train")
        assert len(samples) == description.count(",") + 1
        assert [sample.labels.tolist() for sample in samples] == [[0]] * len(samples)
