import csv
import re
from pathlib import Path

import torch

from detector.record import epoch_line, progress_text, write_results


def row(epoch: int, **more: float) -> dict[str, float]:
    return {
        "epoch": epoch,
        "train/box": 1.5,
        "lr": 0.01,
        "images_per_second": 20.4,
        "memory": 2.5e9,
        **more,
    }


def test_what_an_epoch_did_not_measure_is_blank(tmp_path: Path) -> None:  # B-17
    write_results(tmp_path / "results.csv", [row(1), row(2, fitness=0.25)])
    with (tmp_path / "results.csv").open() as file:
        fitness = [line["fitness"] for line in csv.DictReader(file)]
    assert fitness == ["", "0.25"]
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


def test_the_line_of_an_epoch_tells_losses_metrics_speed_and_time_left() -> None:
    done = [row(1, seconds=10.0), row(2, seconds=20.0)]
    # 15 seconds an epoch, 6000 are left: 90000 s = 1 day and 1 hour
    line = epoch_line({**done[-1], "fitness": 0.5}, 6002, done)
    assert line == (
        "epoch 2/6002  box 1.500  lr 0.01  fitness 0.500  20 img/s  2.5 GB  ETA 1 day, 1:00:00"
    )


def test_the_progress_tells_losses_rate_size_and_memory() -> None:
    parts = {"box": torch.tensor(1.25), "total": torch.tensor(4.0)}
    text = progress_text(parts, 0.01, 416, torch.device("cpu"))
    assert re.fullmatch(r"box 1\.25 total 4 lr 0\.01 416 px \d+\.\d GB", text)
