"""Converting there and back loses no box, and what cannot be kept is told."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.convert import convert, main
from detector.data.description import load_data, read_split
from detector.data.formats import Target, file_names, write_set
from detector.data.outlines import pack_outlines
from detector.data.sample import Sample
from detector.errors import DataError

NAMES = ("cat", "a <dog> & ümlaut")
RING = np.array([[4.0, 4], [30, 6], [20, 30]], np.float32)


def make_samples(root: Path) -> list[Sample]:
    """Three pictures of odd sizes: objects with fractions, one of each kind, and background."""
    rng = np.random.default_rng(0)
    samples = []
    for number, size in enumerate([(77, 123), (480, 641), (33, 40)]):
        path = root / f"folder{number}" / "same.png"
        path.parent.mkdir(parents=True)
        cv2.imwrite(str(path), rng.integers(0, 255, (*size, 3)).astype(np.uint8))
        n = 0 if number == 2 else 4
        corner = rng.uniform(0, 0.5, (n, 2)) * size[::-1]
        boxes = np.concatenate([corner, corner + rng.uniform(1.5, 15, (n, 2))], axis=1)
        marks = np.zeros((2, n), bool)
        marks[:, :2] = np.eye(2, dtype=bool)[:, : min(n, 2)]  # the first difficult, then a crowd
        outlines = pack_outlines([[]] * 3 + [[RING]]) if n else None
        labels = rng.integers(0, 2, n)
        samples.append(
            Sample(path, size, boxes.astype(np.float32), labels, marks[0], marks[1], outlines)
        )
    return samples


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A COCO set of these samples, train and val alike: its description."""
    samples = make_samples(tmp_path / "images")
    splits = {"train": samples, "val": samples[1:]}
    return write_set("coco", splits, Target(tmp_path / "source", NAMES))


def assert_equal(before: list[Sample], after: list[Sample], *, marks: bool) -> None:
    ways = [sorted(samples, key=lambda sample: sample.size) for samples in (before, after)]
    for old, new in zip(*ways, strict=True):  # a folder of images is read in the order of names
        assert np.abs(old.boxes - new.boxes).max(initial=0) < 1e-3
        assert old.labels.tolist() == new.labels.tolist()
        assert old.size == new.size
        if marks:
            assert old.difficult.tolist() == new.difficult.tolist()
            assert old.crowd.tolist() == new.crowd.tolist()


@pytest.mark.parametrize("way", [("voc",), ("coco",), ("voc", "coco"), ("yolo", "voc", "coco")])
def test_there_and_back_no_box_is_lost(source: Path, tmp_path: Path, way: tuple[str, ...]) -> None:
    path = source
    for number, kind in enumerate(way):
        path = convert(path, kind, tmp_path / f"step{number}").description
    before, after = load_data(source), load_data(path)
    assert before.names == after.names == NAMES
    for split in ("train", "val"):
        old, new = read_split(before, split), read_split(after, split)
        if "yolo" in way:  # has no crowds
            old = [
                replace(one, boxes=one.boxes[~one.crowd], labels=one.labels[~one.crowd])
                for one in old
            ]
        assert_equal(old, new, marks=way == ("coco",))


def test_what_a_format_cannot_hold_is_counted(source: Path, tmp_path: Path) -> None:
    yolo = convert(source, "yolo", tmp_path / "yolo")
    assert yolo.missing == 0
    assert sorted(yolo.losses) == [
        "3 boxes no longer marked difficult: YOLO has no such mark",
        "3 crowd boxes left out: YOLO has no such thing",
        "3 masks left out (--masks keeps those of one polygon)",
    ]
    voc = convert(source, "voc", tmp_path / "voc")
    assert "3 crowd boxes marked difficult: VOC has no crowds" in voc.losses
    assert convert(source, "coco", tmp_path / "coco").losses == []


def test_masks_become_polygon_rows(source: Path, tmp_path: Path) -> None:
    path = convert(source, "yolo", tmp_path / "yolo", masks=True).description
    first = read_split(load_data(path), "train")[0]
    assert first.outlines is not None
    (ring,) = first.outlines.rings([2])  # the crowd before it is left out
    assert ring == pytest.approx(RING, abs=1e-3)


def test_equal_names_of_several_folders_stay_apart(tmp_path: Path) -> None:
    samples = make_samples(tmp_path / "images")
    names = file_names({"train": samples, "val": samples[1:]})
    assert list(names.values()) == ["same.png", "same-2.png", "same-3.png"]


@pytest.mark.parametrize("placing", ["link", "symlink"])
def test_images_may_be_linked(source: Path, tmp_path: Path, placing: str) -> None:
    convert(source, "yolo", tmp_path / "out", placing)
    original = tmp_path / "source" / "images" / "train" / "same.png"
    linked = tmp_path / "out" / "images" / "train" / "same.png"
    assert linked.samefile(original) and linked.is_symlink() == (placing == "symlink")


def test_a_box_of_one_pixel_is_missed_by_readers_of_voc(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (first, *_) = make_samples(tmp_path / "images")
    none = np.zeros(1, bool)
    box = np.array([[5, 5, 6, 20]], np.float32)
    tiny = replace(
        first, boxes=box, labels=np.zeros(1, int), difficult=none, crowd=none, outlines=None
    )
    path = write_set("coco", {"train": [tiny]}, Target(tmp_path / "tiny", NAMES))
    assert main([str(path), "--to", "voc", "--out", str(tmp_path / "voc"), "--json"]) == 1
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["missing"] == 1 and "1 boxes are not read again" in captured.err
    assert report["losses"] == [
        "1 boxes of one pixel or less, which readers of VOC take for a slip"
    ]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (["--to", "coc"], "--to coc: is no format; did you mean coco?"),
        (["--images", "move"], "--images move: is not known; allowed: copy, link, symlink"),
        (["--out", "taken"], "--out taken: exists already"),
    ],
)
def test_wrong_options_are_one_line(
    source: Path, change: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("taken").mkdir()
    argv = [str(source), "--to", "voc", "--out", "new", *change]
    assert main(argv) == 2
    assert text in capsys.readouterr().err.splitlines()[-1]


def test_a_box_that_moved_is_an_error(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detector.data.formats._joined", lambda values: "0.5 0.5 0.01 0.01")
    with pytest.raises(DataError, match=r"same\.png: holds a box that .*same\.png has not"):
        convert(source, "yolo", tmp_path / "out")
