"""Shared fixtures: small data sets drawn on the spot, and a quiet, bounded machine."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

CLASSES = ("square", "disc")


@pytest.fixture(autouse=True, scope="session")
def few_threads() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    cv2.setNumThreads(1)


def draw_picture(rng: np.random.Generator, side: int) -> tuple[np.ndarray, list[str]]:
    """Return a noisy picture with one to three coloured objects, and its YOLO label rows."""
    image = rng.integers(90, 130, (side, side, 3)).astype(np.uint8)
    rows = []
    for column in rng.permutation(3)[: rng.integers(1, 4)]:
        size = int(rng.integers(side // 5, side // 3))
        left = int(column) * side // 3 + int(rng.integers(0, side // 3 - size + 1))
        top = int(rng.integers(0, side - size))
        label = int(rng.integers(2))
        if label == 0:
            cv2.rectangle(image, (left, top), (left + size - 1, top + size - 1), (40, 40, 230), -1)
        else:
            centre = (left + size // 2, top + size // 2)
            cv2.circle(image, centre, size // 2, (230, 200, 40), -1)
        centre_x, centre_y = (left + size / 2) / side, (top + size / 2) / side
        rows.append(f"{label} {centre_x:.6f} {centre_y:.6f} {size / side:.6f} {size / side:.6f}")
    return image, rows


def write_yolo_set(root: Path, count: int, side: int = 64, seed: int = 0) -> Path:
    """Write a YOLO data set of `count` pictures, train and val alike; return its yaml."""
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for index in range(count):
        image, rows = draw_picture(rng, side)
        cv2.imwrite(str(root / "images" / f"{index:03}.png"), image)
        (root / "labels" / f"{index:03}.txt").write_text("\n".join(rows) + "\n")
    path = root / "data.yaml"
    path.write_text(f"path: {root}\ntrain: images\nval: images\nnames: [{', '.join(CLASSES)}]\n")
    return path


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight 64 px pictures with two classes: the yaml of a data set to overfit."""
    return write_yolo_set(tmp_path_factory.mktemp("tiny"), 8)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test in a folder of its own: runs/ and caches must not touch the repository."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
