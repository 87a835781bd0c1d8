"""Splits: shares, rare classes, images that look alike."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.data.description import load_data, read_split
from detector.data.formats import Target, write_set
from detector.data.sample import Sample
from detector.split import main, split_data, stratify

NAMES = ("common", "rare")


def make_set(root: Path, kind: str, count: int = 20) -> Path:
    """Pictures of noise with a common object; every fifth a rare one; 0 and 1 are one picture."""
    rng = np.random.default_rng(0)
    (root / "made").mkdir(parents=True)
    samples = []
    for number in range(count):
        cells = np.random.default_rng(max(1, number)).integers(0, 255, (6, 6, 3))
        image = cv2.resize(cells.astype(np.uint8), (48, 48), interpolation=cv2.INTER_CUBIC)
        path = root / "made" / f"{number:02}.png"
        cv2.imwrite(str(path), image)
        labels = np.array([0, 1] if number % 5 == 0 else [0])
        corner = rng.uniform(0, 20, (len(labels), 2))
        boxes = np.concatenate([corner, corner + 12], axis=1).astype(np.float32)
        none = np.zeros(len(labels), bool)
        samples.append(Sample(path, (48, 48), boxes, labels, none, none))
    return write_set(kind, {"train": samples}, Target(root / "set", NAMES))


@pytest.mark.parametrize("kind", ["yolo", "voc", "coco"])
def test_the_lists_are_read_in_every_format(tmp_path: Path, kind: str) -> None:
    source = make_set(tmp_path, kind)
    found = split_data(source, tmp_path / "lists", val=0.2, test=0.2)
    data = load_data(found.description)
    read = {split: read_split(data, split) for split in ("train", "val", "test")}
    assert [len(samples) for samples in read.values()] == [12, 4, 4]
    paths = [sample.path for samples in read.values() for sample in samples]
    assert len(set(paths)) == 20
    before = {one.path.name: one for one in read_split(load_data(source), "train")}
    for sample in (sample for samples in read.values() for sample in samples):
        assert np.abs(sample.boxes - before[sample.path.name].boxes).max() < 1e-3
        assert sample.labels.tolist() == before[sample.path.name].labels.tolist()
    # the four images with a rare object are spread: 60, 20, 20 % of four
    assert [found.boxes(split)["rare"] for split in read] in ([2, 1, 1], [3, 1, 0], [3, 0, 1])


def test_images_that_look_alike_stay_together(tmp_path: Path) -> None:
    source = make_set(tmp_path, "yolo")
    for seed in range(4):
        found = split_data(source, tmp_path / f"s{seed}", val=0.5, seed=seed)
        assert found.groups == 19
        homes = {
            split for split, samples in found.parts.items() for sample in samples
            if sample.id in ("00", "01")
        }  # fmt: skip
        assert len(homes) == 1
    assert split_data(source, tmp_path / "quick", alike=False).groups == 20


def test_a_seed_repeats_its_split_and_another_gives_another(tmp_path: Path) -> None:
    source = make_set(tmp_path, "yolo")

    def val(name: str, seed: int) -> list[str]:
        return [one.id for one in split_data(source, tmp_path / name, seed=seed).parts["val"]]

    assert val("a", 1) == val("b", 1) != val("c", 2)


def test_shares_hold_for_every_class_of_a_large_set() -> None:
    rng = np.random.default_rng(0)
    counts = (rng.random((2000, 6)) < [0.9, 0.5, 0.2, 0.05, 0.02, 0.1]).astype(int)
    chosen = stratify(counts, np.arange(2000), np.array([0.7, 0.2, 0.1]), seed=0)
    assert np.bincount(chosen) / 2000 == pytest.approx([0.7, 0.2, 0.1], abs=0.02)
    for label in range(6):
        share = np.bincount(chosen[counts[:, label] > 0], minlength=3) / counts[:, label].sum()
        assert share == pytest.approx([0.7, 0.2, 0.1], abs=0.05)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--val", "0"], "--val 0 --test 0: shares are 0 to 1 and leave some for train"),
        (["--val", "0.6", "--test", "0.4"], "leave some for train"),
        (["--out", "taken"], "--out taken: exists already"),
        (["--seed", "-1"], "--seed -1 must be 0 or more"),
        (["--val", "0.2", "--test", "0.2"], "2 images are too few: "),
    ],
)
def test_impossible_splits_are_one_line(
    tmp_path: Path, options: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_set(tmp_path / "few", "yolo", count=2)
    Path("taken").mkdir()
    assert main([str(source), "--out", "new", "--quick", *options]) == 2
    assert text in capsys.readouterr().err.splitlines()[-1]
