"""Two detectors on the same pictures: one that finds red squares, one that is off."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detector.backends import Backend
from detector.compare import compare, main
from detector.errors import ConfigError


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """Ten pictures with a red square each: the yaml of a data set."""
    root = tmp_path / "squares"
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(10):
        image = np.full((64, 64, 3), 114, np.uint8)
        x, y = rng.integers(2, 30, 2).tolist()
        image[y : y + 24, x : x + 24] = (0, 0, 255)
        cv2.imwrite(str(root / "images" / f"{index}.png"), image)
        row = f"0 {(x + 12) / 64} {(y + 12) / 64} {24 / 64} {24 / 64}\n"
        (root / "labels" / f"{index}.txt").write_text(row)
    path = root / "data.yaml"
    path.write_text(f"path: {root}\ntrain: images\nval: images\nnames: [square]\n")
    return path


@pytest.fixture(autouse=True)
def detectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """`good.pt` finds the square; `bad.pt` is 6 pixels off, `twin.pt` is good once more."""

    def load(path: str | Path, device: object = None) -> Backend:
        shift = 6 if Path(path).stem == "bad" else 0

        def run(images: torch.Tensor) -> torch.Tensor:
            rows = []
            for image in images.permute(0, 2, 3, 1).numpy():
                red = ((image[..., 2] > 180) & (image[..., 0] < 60)).astype(np.uint8)
                x, y, w, h = cv2.boundingRect(red)
                rows.append([[x + w / 2 + shift, y + h / 2, w, h, 0.9, 1.0]])
            return torch.tensor(rows)

        return Backend(Path(path), ("square",), 64, "bgr-255", torch.device("cpu"), run)

    monkeypatch.setattr("detector.evaluate.load_backend", load)


def test_the_better_one_is_named_with_an_interval(squares: Path) -> None:
    found = compare("bad.pt", "good.pt", squares, resamples=100)
    assert found.verdict == "better" and found.images == 10
    assert found.differences["mAP50-95"].low > 0.2
    assert found.sentence().startswith("the second is better: fitness +")
    assert compare("good.pt", "bad.pt", squares, resamples=100).verdict == "worse"
    first, second = found.classes["square"]
    assert second == pytest.approx(1.0) and first < 0.4


def test_equals_are_not_told_apart(squares: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["good.pt", "twin.pt", "--data", str(squares), "--bootstrap", "100"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "first   good.pt"
    assert lines[-2].startswith("no difference shown: fitness of the second is +0.0000")


def test_at_iou_half_alone_both_are_right(
    squares: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["bad.pt", "good.pt", "--data", str(squares), "--metric", "mAP50", "--json"]
    assert main([*argv, "--bootstrap", "100"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["verdict"] == "no difference shown"
    assert report["differences"]["mAP50"]["difference"] == 0
    assert report["differences"]["mAP50-95"]["low"] > 0


def test_unknown_metric_is_refused(squares: Path) -> None:
    with pytest.raises(ConfigError, match="--metric map50: is no metric; did you mean mAP50"):
        compare("good.pt", "bad.pt", squares, metric="map50")
