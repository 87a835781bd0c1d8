"""What our training loop costs: `train()` beside a bare step on the same batches, in turn."""

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from detector.callbacks import Callbacks
from detector.config import Hyp, TrainConfig, resolve
from detector.data.cache import ImageCache
from detector.data.description import load_data, read_split
from detector.data.loader import Batch, TrainingLoader, TrainingPictures
from detector.families import build_family
from detector.memory import keep_freed_memory
from detector.models import build_model
from detector.optim import build_optimizer
from detector.train import train, windows

STRETCH_STEPS = 10  # of the training, then as many bare ones


@dataclass(frozen=True)
class Setting:
    """What is trained: the same for all parts."""

    data: str = "data/bccd.yaml"
    model: str = "yolox-nano"
    imgsz: int = 320
    epochs: int = 30
    seed: int = 0


class BareStep:
    """Forward, loss, backward and optimizer step, on batches that lie in memory already."""

    def __init__(self, config: TrainConfig, hyp: Hyp) -> None:
        data = load_data(config.data)
        samples = read_split(data, "train")
        self.count = len(samples)
        pictures = TrainingPictures(
            samples, ImageCache(samples, config.imgsz), config.imgsz, hyp, config.seed
        )
        self.loader = TrainingLoader(pictures, hyp.nbs, config.batch, workers=0, pin_memory=False)
        self.parts = -(-hyp.nbs // config.batch)  # micro-batches of a step
        network = build_model(config.model, data.num_classes)
        network = network.to(memory_format=torch.channels_last)
        self.family = build_family(network, hyp)
        self.optimizer = build_optimizer(config.optimizer, network, hyp)

    def batches(self, epoch: int) -> list[Batch]:
        """Return what the training sees in `epoch`, as the network takes it."""
        device = torch.device("cpu")
        return [batch.to(device) for batch in self.loader.epoch(epoch, tail=False)]

    def seconds(self, batches: Sequence[Batch]) -> float:
        """Train once through `batches`; returns the seconds that it took."""
        self.family.network.train()
        began = time.monotonic()
        for window in windows(batches, self.parts):
            for batch in window:
                sums, count = self.family.losses(batch.images, batch.targets)
                (sums["total"] / count.clamp(min=1)).backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return time.monotonic() - began


class Interleaved:
    """Callbacks of a training: after every few of its steps the same batches go through `bare`."""

    def __init__(self, bare: BareStep, steps: int) -> None:
        self.bare, self.stretch = bare, steps * bare.parts  # in micro-batches
        self.rows: list[dict[str, float]] = []
        self._begin(1)

    def _begin(self, epoch: int) -> None:
        self.batches, self.done, self.seen = self.bare.batches(epoch), 0, 0
        self.bare_seconds = self.paused = 0.0

    def _run_bare(self) -> None:
        began = time.monotonic()
        self.bare_seconds += self.bare.seconds(self.batches[self.done : self.seen])
        self.done = self.seen
        self.paused += time.monotonic() - began

    def on_step(self, step: int, parts: Mapping[str, torch.Tensor]) -> None:
        """Count a step, and pause the training for a stretch of bare steps."""
        self.seen += self.bare.parts
        if self.seen - self.done >= self.stretch:
            self._run_bare()

    def on_epoch(self, epoch: int, row: Mapping[str, float]) -> None:
        """Compare an epoch, pauses taken off, with the bare steps of the same batches."""
        images, paused = self.bare.count, self.paused
        self.seen = len(self.batches)
        self._run_bare()  # after the last whole stretch: the epoch's own clock has stopped
        own = images / (images / row["images_per_second"] - paused)
        bare = images / self.bare_seconds
        found = {"epoch": epoch, "train": own, "bare": bare, "ratio": own / bare}
        found["with_evaluation"] = images / (row["seconds"] - paused)
        self.rows.append(found)
        print(f"loop: epoch {epoch}: {own:.1f} of {bare:.1f} images/s", file=sys.stderr, flush=True)
        self._begin(epoch + 1)


def measure_loop(setting: Setting, epochs: int, threads: int, folder: Path) -> dict[str, Any]:
    """Train `epochs` epochs with a bare step on the same batches after every few steps.

    The ratio is what all of the training, between the start of an epoch and its evaluation, keeps
    of the bare step's images/s.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()  # as the command does
    values = asdict(setting) | {"epochs": epochs, "device": "cpu", "no_aug_epochs": 0}
    config, hyp = resolve(values)
    bare = BareStep(config, hyp)
    bare.seconds(bare.batches(0))  # the first steps of a process are slow
    both = Interleaved(bare, STRETCH_STEPS)
    train(config, hyp, folder, callbacks=Callbacks(both.on_step, both.on_epoch))
    ratios = [row["ratio"] for row in both.rows]
    return {"threads": threads, "epochs": both.rows, "ratio": statistics.median(ratios)}
