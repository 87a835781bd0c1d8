"""The preview shows the pictures that a training begins an epoch with."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.config import Hyp, TrainConfig
from detector.data.cache import ImageCache
from detector.data.description import load_data, read_split
from detector.data.loader import TrainingLoader, TrainingPictures
from detector.preview import label_facts, main, preview


def test_pictures_are_those_of_the_training(
    tiny_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []
    monkeypatch.setattr(
        "detector.preview.draw_batch", lambda batch, *args, **more: shown.append(batch)
    )
    config = TrainConfig(data=str(tiny_set), imgsz=64, seed=3, batch=4)
    hyp = Hyp(nbs=4, mosaic=0.5, degrees=10.0)
    preview(config, hyp, "out", count=4, epoch=2)
    samples = read_split(load_data(tiny_set), "train")
    pictures = TrainingPictures(samples, ImageCache(samples, 64, where="none"), 64, hyp, 3)
    trained = next(
        iter(TrainingLoader(pictures, 4, 4, workers=0, pin_memory=False).epoch(2, False))
    )
    assert np.array_equal(shown[0].images.numpy(), trained.images.numpy())  # type: ignore[union-attr]
    assert np.array_equal(shown[0].boxes.numpy(), trained.boxes.numpy())


def test_command_writes_two_pictures_into_a_new_folder(tiny_set: Path) -> None:
    Path("out").mkdir()
    argv = ["--data", str(tiny_set), "--imgsz", "64", "--count", "3", "--set", "mosaic=1"]
    assert main([*argv, "--out", "out", "--tail"]) == 0
    for name in ("batch.jpg", "labels.png"):
        assert cv2.imread(f"out-2/{name}").std() > 1


def test_label_facts_by_hand(tiny_set: Path) -> None:
    samples = read_split(load_data(tiny_set), "train")
    facts = label_facts({"train": samples}, ("square", "disc"), 128)
    boxes = np.concatenate([sample.boxes for sample in samples])
    assert facts.counts["train"].sum() == len(boxes) == facts.per_image.sum()
    assert facts.sides == pytest.approx(2 * (boxes[:, 2:] - boxes[:, :2]))  # 64 px shown at 128
    assert facts.centres == pytest.approx((boxes[:, :2] + boxes[:, 2:]) / 128, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--count", "0"], "--count 0 must be at least 1"),
        (["--set", "mosiac=1"], "did you mean mosaic?"),
        (["--data", "gone.yaml"], "gone.yaml: no such data set description"),
        (["--hyp", "gone.yaml"], "gone.yaml"),
    ],
)
def test_wrong_options_are_one_line(
    tiny_set: Path, options: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data", str(tiny_set), "--imgsz", "64", "--out", "o", *options]) == 2
    assert text in capsys.readouterr().err.splitlines()[-1]
