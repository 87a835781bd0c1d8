"""The data sets that the repository describes, where they are on this machine."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from detector.data import layout
from detector.data.description import DataConfig, load_data, read_split
from detector.data.sample import Sample
from detector.doctor import examine

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the environment, or a folder beside the repository, say where the real sets are."""
    if layout.data_home() is None:
        monkeypatch.setenv("DETECTOR_DATA", str(REPOSITORY.parent / "shared" / "datasets"))


def load_real(name: str) -> DataConfig:
    """Return one of the repository's sets, without ever downloading it."""
    path = REPOSITORY / "data" / f"{name}.yaml"
    if not any(layout.is_filled(folder) for folder in layout.candidates(path, name)):
        pytest.skip(f"the data set {name} is not on this machine")
    return load_data(path)


def num_boxes(samples: Sequence[Sample]) -> int:
    return sum(len(sample.boxes) for sample in samples)


@pytest.mark.usefixtures("real")
def test_bccd_has_its_images_and_boxes(caplog: pytest.LogCaptureFixture) -> None:
    data = load_real("bccd")
    samples = {split: read_split(data, split) for split in ("train", "val", "test")}
    assert [len(split) for split in samples.values()] == [205, 87, 72]
    assert sum(num_boxes(split) for split in samples.values()) == 4888 - 2  # two have no area
    labels = np.concatenate([item.labels for split in samples.values() for item in split])
    assert data.names == ("RBC", "WBC", "Platelets")
    assert np.bincount(labels).tolist() == [4155 - 2, 372, 361]
    dropped = [line for line in caplog.messages if "dropped 1 box" in line]
    assert len(dropped) == 2
    assert "BloodImage_00343.xml" in dropped[0] and "BloodImage_00338.xml" in dropped[1]


@pytest.mark.usefixtures("real")
def test_chess_has_its_images_and_boxes_without_the_slip(
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = load_real("chess")
    samples = {split: read_split(data, split) for split in ("train", "val", "test")}
    assert [len(split) for split in samples.values()] == [66, 22, 14]
    assert sum(num_boxes(split) for split in samples.values()) == 1160 - 1
    assert data.num_classes == 12
    assert sum(len(item.boxes) == 0 for item in samples["test"]) == 1  # a background image
    assert [line for line in caplog.messages if "ignored 1 box(es) of class 'bishop'" in line]
    assert all(item.size == (1371, 2048) for item in samples["val"])


@pytest.mark.usefixtures("real")
def test_bccd_gives_equal_targets_as_coco_and_yolo(tmp_path: Path) -> None:
    expected = read_split(load_real("bccd"), "val")
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    images, annotations = [], []
    for index, sample in enumerate(expected):
        height, width = sample.size
        (tmp_path / "images" / sample.path.name).symlink_to(sample.path.absolute())
        images.append({"id": index, "file_name": sample.path.name})
        rows = []
        for (x1, y1, x2, y2), label in zip(sample.boxes.tolist(), sample.labels, strict=True):
            bbox = [x1, y1, x2 - x1, y2 - y1]
            annotations.append(
                {"id": len(annotations), "image_id": index, "category_id": int(label), "bbox": bbox}
            )
            centre = f"{(x1 + x2) / 2 / width:.9f} {(y1 + y2) / 2 / height:.9f}"
            rows.append(f"{label} {centre} {(x2 - x1) / width:.9f} {(y2 - y1) / height:.9f}")
        (tmp_path / "labels" / f"{sample.id}.txt").write_text("\n".join(rows))
    categories = [{"id": i, "name": name} for i, name in enumerate(("RBC", "WBC", "Platelets"))]
    table = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "all.json").write_text(json.dumps(table))
    names = "names: [RBC, WBC, Platelets]\n"
    path = tmp_path / "all.yaml"
    for entry in ("all.json", "images"):
        path.write_text(f"train: {entry}\n{names}")
        data = load_data(path)
        found = sorted(read_split(data, "train"), key=lambda item: item.id)
        assert data.format == ("coco" if entry == "all.json" else "yolo")
        for one, other in zip(found, sorted(expected, key=lambda item: item.id), strict=True):
            assert one.id == other.id and one.size == other.size
            assert one.labels.tolist() == other.labels.tolist()
            np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-4)


def test_shapes_description_is_valid_and_its_classes_are_known(tmp_path: Path) -> None:
    text = (REPOSITORY / "data" / "shapes.yaml").read_text()
    small = text.replace("train: 320", "train: 4").replace("96", "1")
    (tmp_path / "shapes.yaml").write_text(small)
    data = load_data(tmp_path / "shapes.yaml")
    assert data.names == ("circle", "triangle", "square")
    assert len(read_split(data, "train")) == 4


@pytest.mark.usefixtures("real")
def test_doctor_finds_what_is_known_of_bccd() -> None:
    load_real("bccd")
    examination = examine(REPOSITORY / "data" / "bccd.yaml")
    places = {(one.rule, one.split): one.places for one in examination.findings}
    assert list(places) == [
        ("image-leak-alike", "val"), ("box-empty", "train"), ("box-empty", "val")
    ]  # fmt: skip
    assert "BloodImage_00343.xml" in places["box-empty", "train"][0]
    assert "BloodImage_00338.xml" in places["box-empty", "val"][0]
    (pair,) = places["image-leak-alike", "val"]  # one field, seen twice with another focus
    assert "BloodImage_00037.jpg: like" in pair and "BloodImage_00038.jpg" in pair


@pytest.mark.usefixtures("real")
def test_doctor_finds_what_is_known_of_chess() -> None:
    load_real("chess")
    examination = examine(REPOSITORY / "data" / "chess.yaml", quick=True)
    places = {(one.rule, one.split): one.places for one in examination.findings}
    assert list(places) == [("box-duplicate", "train"), ("class-ignored", "train")]
    assert "annotation id 1325: the same box as" in places["box-duplicate", "train"][0]
    assert places["class-ignored", "train"][0].endswith("1 of class 'bishop'")
    assert examination.tallies["test"].background == 1
