"""What a training writes for people: its settings, one row an epoch, its result, its log lines."""

import csv
import dataclasses
import json
from datetime import timedelta
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from detector.config import Hyp, TrainConfig, dump
from detector.device_memory import peak_memory
from detector.metrics import METRIC_NAMES
from detector.result import Result

Row = dict[str, float]  # one epoch: epoch, step, lr, train/<loss part>, metrics, seconds, ...


def write_settings(directory: Path, config: TrainConfig, hyp: Hyp) -> None:
    """Write `hyp.yaml`, which repeats the run, and `config.yaml`, the settings alone."""
    directory.mkdir(parents=True, exist_ok=True)
    header = "Repeat this run: python -m detector.train --hyp this-file"
    (directory / "hyp.yaml").write_text(dump(config, hyp, header), encoding="utf-8")
    settings = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)
    (directory / "config.yaml").write_text(settings, encoding="utf-8")


def write_results(path: Path, history: list[Row]) -> None:
    """Write `results.csv` whole; what an epoch did not measure is blank."""
    names = list(dict.fromkeys(name for row in history for name in row))
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(history)
    partial.replace(path)


def write_result(path: Path, result: Result) -> None:
    """Write `result.json`."""
    values = dataclasses.asdict(result)
    path.write_text(json.dumps(values, default=str, indent=2) + "\n", encoding="utf-8")


def headline(config: TrainConfig, hyp: Hyp, network: nn.Module) -> str:
    """Return what is about to be trained."""
    millions = sum(weight.numel() for weight in network.parameters()) / 1e6
    return (
        f"{network.name} ({millions:.2f} M parameters) on {config.data} at {config.imgsz} px, "
        f"{config.epochs} epochs, {hyp.nbs} images a step, {config.optimizer}"
    )


def progress_text(parts: dict[str, Tensor], rate: float, side: int, device: torch.device) -> str:
    """Return what stands behind the progress bar; reading the loss waits for the device."""
    losses = " ".join(f"{name} {float(value):.3g}" for name, value in parts.items())
    return f"{losses} lr {rate:.2g} {side} px {peak_memory(device) / 1e9:.1f} GB"


def epoch_line(row: Row, epochs: int, done: list[Row]) -> str:
    """Return losses, learning rate, metrics, speed and time left; `done` are this run's epochs."""
    losses = " ".join(
        f"{name.removeprefix('train/')} {value:.3f}"
        for name, value in row.items()
        if name.startswith("train/")
    )
    names = ("fitness", *METRIC_NAMES)
    scores = " ".join(f"{name} {row[name]:.3f}" for name in names if name in row)
    left = sum(item["seconds"] for item in done) / len(done) * (epochs - row["epoch"])
    return (
        f"epoch {row['epoch']}/{epochs}  {losses}  lr {row['lr']:.2g}  {scores}  "
        f"{row['images_per_second']:.0f} img/s  {row['memory'] / 1e9:.1f} GB  "
        f"ETA {timedelta(seconds=round(left))}"
    )


def summary_lines(result: Result) -> list[str]:
    """Return what a training ends with: last and best epoch, how it ended, where its files are."""
    lines = []
    if result.metrics:
        lines.append("last epoch: " + _scores(result.metrics))
        best = {name: value for name, value in result.best.items() if name != "epoch"}
        lines.append(f"best epoch {result.best['epoch']}: {_scores(best)}")
    minutes = timedelta(seconds=round(result.seconds))
    lines.append(
        f"{result.ended}: {result.epochs} epochs in {minutes}; files in {result.directory}"
    )
    return lines


def _scores(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
