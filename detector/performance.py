"""A short training that is only timed: `python -m detector.train --performance`.

The lines and the log file follow the convention of the Ascend model zoo, which users' scripts read.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from detector.config import Hyp, TrainConfig
from detector.result import Result

WARM_UP = 5  # steps that are not timed: memory is being laid out
STEPS = 100  # timed steps, at most
SECONDS = 60.0  # of timing, at most
UNKNOWN = "not measured"


@dataclass
class Stopwatch:
    """Times the steps of a training; `on_step` is a callback that ends it after enough of them."""

    device: torch.device
    steps: int = 0  # after the first ones
    steps_timed: int = 0  # of these, those that `seconds` is about: each look waits for the device
    seconds: float = 0.0
    _began: float = field(default=0.0, repr=False)
    _total: Tensor | None = field(default=None, repr=False)

    def on_step(self, step: int, parts: Mapping[str, Tensor]) -> bool:
        """Note a step; True when enough are timed."""
        if step < WARM_UP:
            return False
        if step == WARM_UP:
            self._began = self._now()
            return False
        self.steps, self._total = self.steps + 1, parts["total"]
        over = time.monotonic() - self._began > SECONDS
        if self.device.type == "cpu" or self.steps % 10 == 0 or over:
            self.seconds, self.steps_timed = self._now() - self._began, self.steps
        return self.steps >= STEPS or over

    @property
    def loss(self) -> float | None:
        """The loss of the last timed step; None when there was none."""
        return None if self._total is None else float(self._total)

    def _now(self) -> float:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.monotonic()


def images_per_second(watch: Stopwatch, hyp: Hyp) -> float | None:
    """Return the training speed; None when no step was timed."""
    return watch.steps_timed * hyp.nbs / watch.seconds if watch.seconds > 0 else None


def final_lines(speed: float | None, accuracy: float | None, seconds: float) -> list[str]:
    """Return the lines that end a run; what was not measured says so."""
    return [
        "------------------ Final result ------------------",
        f"Final Performance images/sec : {_shown(speed)}",
        f"Final Train Accuracy : {_shown(accuracy)}",
        f"E2E Training Duration sec : {seconds:.0f}",
    ]


def write_log(
    folder: Path,
    config: TrainConfig,
    hyp: Hyp,
    ranks: int,
    watch: Stopwatch,
    result: Result,
) -> Path:
    """Write `<network>_bs<batch>_<ranks>p_perf.log` and return its path; times in milliseconds."""
    speed = images_per_second(watch, hyp)
    network = "".join(letter if letter.isalnum() else "_" for letter in config.model)
    case = f"{network}_bs{hyp.nbs}_{ranks}p_perf"
    rows = {
        "Network": config.model,
        "RankSize": ranks,
        "BatchSize": hyp.nbs,
        "DeviceType": watch.device.type,
        "CaseName": case,
        "ActualFPS": _shown(speed),
        "TrainingTime": _shown(1000.0 * hyp.nbs / speed if speed else None),
        "TrainAccuracy": _shown(result.metrics.get("mAP50-95")),
        "ActualLoss": _shown(watch.loss),
        "E2ETrainingTime": f"{result.seconds:.0f}",
    }
    path = folder / f"{case}.log"
    text = "".join(f"{name} = {value}\n" for name, value in rows.items())
    path.write_text(text, encoding="utf-8")
    return path


def _shown(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.4g}"
