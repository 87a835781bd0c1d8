"""Learning rate and momentum as pure functions of the optimizer step.

Letters: x progress from the end of the warm-up (0) to the last step (1), f the fraction of lr0.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from detector.config import Hyp


@dataclass(frozen=True)
class Schedule:
    """Learning rate and momentum of optimizer step `step`, counted from 0.

    The last step of the warm-up has the full rate, and the first step of all if there is none;
    from there `FACTORS[name]` says which fraction of lr0 is left. `scale` multiplies all rates.
    """

    name: str
    hyp: Hyp
    epochs: int
    steps_per_epoch: int
    warmup_kind: str = "quadratic"
    scale: float = 1.0

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of optimizer step `step`."""
        warm = self._warm(step)
        if warm < 1:
            rate = self.hyp.warmup_lr + (self.hyp.lr0 - self.hyp.warmup_lr) * warm
        else:
            rate = self.hyp.lr0 * FACTORS[self.name](self, step)
        return self.scale * rate

    def momentum(self, step: int) -> float:
        """Return the momentum of optimizer step `step`."""
        hyp = self.hyp
        return hyp.warmup_momentum + (hyp.momentum - hyp.warmup_momentum) * self._warm(step)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    @property
    def warmup(self) -> int:
        """Steps of the warm-up, at most half of the run."""
        return min(round(self.hyp.warmup_epochs * self.steps_per_epoch), self.steps // 2)

    def progress(self, step: int, tail: int = 0) -> float:
        """Return x, which reaches 1 `tail` steps before the last one."""
        first = max(1, self.warmup) - 1  # the step at full rate
        return min(1.0, max(0, step - first) / max(1, self.steps - tail - 1 - first))

    def _warm(self, step: int) -> float:
        """How much of the warm-up is done at `step`: above 0, and 1 from its last step on."""
        power = WARMUPS[self.warmup_kind]
        return min(1.0, ((step + 1) / self.warmup) ** power) if self.warmup else 1.0


# Source: quadratic is YOLOX (yoloxwarmcos), burn-in is Darknet's.
WARMUPS: dict[str, int] = {"quadratic": 2, "linear": 1, "burn-in": 4}  # powers of the progress


def _constant(schedule: Schedule, step: int) -> float:
    return 1.0


def _half_wave(x: float, final: float) -> float:
    """Half a cosine wave from 1 (x = 0) to `final` (x = 1)."""
    return final + 0.5 * (1 - final) * (1 + math.cos(math.pi * x))


def _cosine(schedule: Schedule, step: int) -> float:
    return _half_wave(schedule.progress(step), schedule.hyp.lrf)


def _yolox(schedule: Schedule, step: int) -> float:
    """Cosine that is down when the tail begins, and constant in it."""
    tail = schedule.hyp.no_aug_epochs * schedule.steps_per_epoch
    return _half_wave(schedule.progress(step, tail), schedule.hyp.lrf)


def _multistep(schedule: Schedule, step: int) -> float:
    """x 0.1 from epoch round(0.8 E) on, and again from round(0.9 E), epochs counted from 0."""
    epoch = step // schedule.steps_per_epoch
    passed = sum(epoch >= round(part * schedule.epochs) for part in (0.8, 0.9))
    return 0.1**passed


def _linear(schedule: Schedule, step: int) -> float:
    return 1 - (1 - schedule.hyp.lrf) * schedule.progress(step)


def _exponential(schedule: Schedule, step: int) -> float:
    """10^(x log10(lrf)): the same factor at every step."""
    return schedule.hyp.lrf ** schedule.progress(step)


def _inverse(schedule: Schedule, step: int) -> float:
    """The exponential ramp turned around its middle: stays high, falls at the end."""
    final = schedule.hyp.lrf
    return 1 + final - final ** (1 - schedule.progress(step))


FACTORS: dict[str, Callable[[Schedule, int], float]] = {
    "cosine": _cosine,
    "yolox": _yolox,
    "multistep": _multistep,
    "constant": _constant,
    "linear": _linear,
    "exponential": _exponential,
    "inverse": _inverse,
}
