from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.data.description import load_data, read_split
from detector.errors import DataError

GOOD = """# a comment
classes = 2
train=lists/train.txt   # the training images

valid = lists/val.txt
names = set.names
backup = backup/
eval = coco
"""


def write_set(root: Path, text: str = GOOD, names: str = "cat\n\ndog\n") -> Path:
    for split in ("train", "val"):
        folder = root / "images" / split
        folder.mkdir(parents=True)
        content = cv2.imencode(".png", np.zeros((40, 80, 3), np.uint8))[1].tobytes()
        (folder / "a.png").write_bytes(content)
    (root / "labels" / "train").mkdir(parents=True)
    (root / "labels" / "train" / "a.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    (root / "lists").mkdir()
    for split in ("train", "val"):
        (root / "lists" / f"{split}.txt").write_text(f"images/{split}/a.png\n")
    (root / "set.names").write_text(names)
    path = root / "set.data"
    path.write_text(text)
    return path


def test_data_file_gives_names_splits_and_boxes(tmp_path: Path) -> None:
    data = load_data(write_set(tmp_path))
    assert data.names == ("cat", "dog") and data.num_classes == 2
    assert list(data.splits) == ["train", "val"]
    (sample,) = read_split(data, "train")
    assert sample.boxes.tolist() == [[20, 10, 60, 30]] and sample.labels.tolist() == [1]
    assert len(read_split(data, "val")[0].boxes) == 0


def test_yaml_may_point_to_a_data_file(tmp_path: Path) -> None:
    write_set(tmp_path / "set")
    path = tmp_path / "mine.yaml"
    path.write_text("format: darknet\npath: set/set.data\non_error: skip\n")
    data = load_data(path)
    assert data.names == ("cat", "dog") and data.skip_bad
    assert len(read_split(data, "train")) == 1
    path.write_text("format: darknet\npath: set/set.data\nnames: [a, b]\n")
    with pytest.raises(DataError, match=r"names is said by the \.data file"):
        load_data(path)


def test_paths_may_be_written_from_the_folder_above(tmp_path: Path) -> None:
    text = GOOD.replace("lists/", "data/lists/").replace("set.names", "data/set.names")
    data = load_data(write_set(tmp_path / "data", text))
    assert data.names == ("cat", "dog")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("train=lists/train.txt", "train lists/train.txt"), r"set\.data:3: .*key = v"),
        (GOOD.replace("classes = 2", "classes ="), r"set\.data:2: .*key = value"),
        (GOOD.replace("classes = 2\n", ""), r"set\.data:\d+: the key classes is missing"),
        (GOOD.replace("train=lists/train.txt", ""), r"set\.data:\d+: the key train is missing"),
        (GOOD.replace("names = set.names", ""), r"set\.data:\d+: the key names is missing"),
        (GOOD.replace("valid = lists/val.txt", ""), r"set\.data:\d+: the key valid is missing"),
        (GOOD.replace("classes = 2", "classes = two"), r"set\.data:2: classes = two must be"),
        (GOOD.replace("classes = 2", "classes = 0"), r"set\.data:2: classes = 0 must be"),
        (GOOD.replace("classes", "clases"), r"set\.data:2: clases .*did you mean classes\?"),
        (GOOD + "eval = voc\n", r"set\.data:9: eval is given twice \(line 8\)"),
        (GOOD.replace("set.names", "gone.names"), r"set\.data:6: gone\.names does not exist"),
        (GOOD.replace("lists/val", "lists/x"), r"set\.data:5: lists/x\.txt does not exist"),
    ],
)
def test_bad_data_file_is_an_error_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = write_set(tmp_path, text)
    with pytest.raises(DataError, match=message):
        load_data(path)


def test_fewer_names_than_classes_is_an_error(tmp_path: Path) -> None:
    path = write_set(tmp_path, names="cat\n\n")
    with pytest.raises(DataError, match=r"set\.names: 1 names, but .*:2 says classes = 2"):
        load_data(path)


def test_more_names_than_classes_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = load_data(write_set(tmp_path, names="cat\ndog\ncow\n"))
    assert data.names == ("cat", "dog")
    assert "3 names, the first 2 are used" in caplog.text


def test_val_is_another_word_for_valid(tmp_path: Path) -> None:
    data = load_data(write_set(tmp_path, GOOD.replace("valid =", "val =")))
    assert list(data.splits) == ["train", "val"]
