"""The state of a training: what last.pt holds, so that an interrupted run goes on as if it had not.

The order of the images and their augmentation are functions of (seed, epoch, image), and the
learning rate of the step, so no generator and no scheduler has a state of its own.
"""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detector.checkpoint import LAST, model_content, newest_state, save_state
from detector.config import Hyp, TrainConfig
from detector.errors import CheckpointError
from detector.metrics import METRIC_NAMES, DetectionMetrics
from detector.optim import WeightAverage

log = logging.getLogger("detector")

# Settings that may differ between two parts of a run: they do not change what is computed.
FREE = (
    *("device", "workers", "batch", "compile", "cache", "render"),
    *("val_every", "validate", "val_loss", "patience", "time"),
)
METRICS = ("fitness", *METRIC_NAMES)


@dataclass
class TrainingState:
    """The parts that are trained, and how far they are.

    `epoch` counts whole epochs, `epoch_step` the optimizer steps of the one that is under way and
    `totals` their summed loss parts (0-dim). `epochs` is the planned number: a time budget may
    change it.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: WeightAverage
    epochs: int
    step: int = 0
    epoch: int = 0
    epoch_step: int = 0
    totals: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=lambda: {"epoch": 0})
    class_map: list[float] = field(default_factory=list)  # of the last evaluation, like the next
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    confidence: float = 0.25  # where F1 is best

    COUNTED = (
        *("epochs", "step", "epoch", "epoch_step", "totals", "history", "best"),
        *("class_map", "per_class", "confidence"),
    )

    def content(self) -> dict[str, Any]:
        """Return the state as tensors and plain values."""
        parts = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.module.state_dict(),
        }
        return parts | {name: getattr(self, name) for name in self.COUNTED}

    def load(self, content: dict[str, Any], device: torch.device) -> None:
        """Take over a state that `content` returned."""
        self.network.load_state_dict(content["network"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        self.average.module.load_state_dict(content["average"])
        self.average.updates = content["step"]
        for name in self.COUNTED:
            if name in content:  # files of earlier versions hold whole epochs only
                setattr(self, name, content[name])
        self.totals = {name: value.to(device) for name, value in self.totals.items()}

    def evaluated(self, metrics: DetectionMetrics, names: Sequence[str]) -> None:
        """Keep what the end of a training tells of its last evaluation."""
        self.class_map, self.per_class = metrics.class_map(), metrics.per_class(names)
        self.confidence = metrics.confidence

    def finish_epoch(self, row: dict[str, Any]) -> None:
        """Count an epoch whose row of results.csv this is; the best is the one of highest fitness.

        Where nothing is evaluated, the latest weights are the best.
        """
        self.epoch, self.epoch_step, self.totals = self.epoch + 1, 0, {}
        self.history.append(row)
        evaluated = any("fitness" in one for one in self.history)
        if not evaluated or row.get("fitness", -1.0) > self.best.get("fitness", -1.0):
            self.best = {name: row[name] for name in ("epoch", *METRICS) if name in row}

    def save(
        self, weights: Path, config: TrainConfig, hyp: Hyp, names: tuple[str, ...]
    ) -> dict[str, Any]:
        """Write last.pt into the folder `weights`; return its content without this state."""
        row = self.history[-1] if self.history else {}
        content = model_content(
            self.average.module,
            names,
            config.imgsz,
            config=dataclasses.asdict(config),
            hyp=dataclasses.asdict(hyp),
            metrics={name: row[name] for name in METRICS if name in row},
            epoch=self.epoch,
        )
        save_state(weights / LAST, content | {"state": self.content()})
        return content


def read_state(
    weights: Path, config: TrainConfig, hyp: Hyp, names: tuple[str, ...]
) -> dict[str, Any] | None:
    """Return the newest training state of a run, or None when it has none yet.

    Raises: `CheckpointError` if no file is whole, or if they are of another run.
    """
    found = newest_state(weights)
    if found is None:
        return None
    path, content = found
    if content["names"] != list(names):
        raise CheckpointError(
            f"{path}: was trained on the classes {', '.join(content['names'])},"
            f" not {', '.join(names)}"
        )
    for old, new in ((content["config"], config), (content["hyp"], hyp)):
        for name, value in dataclasses.asdict(new).items():
            if name not in FREE and name in old and old[name] != value:
                raise CheckpointError(
                    f"{path}: was trained with {name}={old[name]}, not {value}; "
                    "resume with the same settings or choose another --name"
                )
    return content["state"]
