"""What the repeats say on data that nothing was chosen by: metrics named `test/...`.

The search chooses by the validation split, and so its winner looks a little better there than it
is. An objective that finds `test/` among `context.wanted` returns the metrics of a test split too.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from evolve.confirm import CONFIDENCE, Gain, Verdict, paired_gain
from evolve.objective import fitness_of
from evolve.record import CONFIRM, kind_of

HELD_OUT = "test/"  # how the names of these metrics begin


@dataclass(frozen=True)
class HeldOut:
    """Fitness on the test split by repeat, of the start values and of what is recommended."""

    start: dict[int, float]
    recommended: dict[int, float]
    gain: Gain

    @property
    def text(self) -> str:
        """The result in one sentence."""
        means = [statistics.fmean(side.values()) for side in (self.recommended, self.start)]
        head = f"on the test split: fitness {means[0]:.4f}, start values {means[1]:.4f}"
        if not math.isfinite(self.gain.low):
            return f"{head} (n {self.gain.n})"
        return (
            f"{head}, gain {self.gain.mean:+.4f} (n {self.gain.n}; {100 * CONFIDENCE:.0f} %"
            f" interval {self.gain.low:+.4f} to {self.gain.high:+.4f})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it in JSON types."""
        finite = math.isfinite(self.gain.low)
        return {
            "start": list(self.start.values()),
            "recommended": list(self.recommended.values()),
            "gain": self.gain.mean,
            "interval": [self.gain.low, self.gain.high] if finite else None,
        }


def held_out(
    trials: Sequence[FrozenTrial], verdict: Verdict, weights: Mapping[str, float]
) -> HeldOut | None:
    """Return what the repeats measured on the test split; None if nothing, or of one side only.

    `weights` are those of fitness.
    """
    if verdict.start is None or verdict.recommended is None:
        return None
    start, recommended = (
        _by_repeat(trials, measured.configuration.of, weights)
        for measured in (verdict.start, verdict.recommended)
    )
    gain = paired_gain(start, recommended)
    return HeldOut(start, recommended, gain) if gain.n else None


def _by_repeat(
    trials: Sequence[FrozenTrial], number: int, weights: Mapping[str, float]
) -> dict[int, float]:
    found = {}
    for trial in trials:
        if kind_of(trial) != CONFIRM or trial.user_attrs.get("of") != number:
            continue
        metrics = _held_out_metrics(trial)
        if trial.state == TrialState.COMPLETE and all(name in metrics for name in weights):
            found[int(trial.user_attrs["repeat"])] = fitness_of(metrics, weights)
    return found


def _held_out_metrics(trial: FrozenTrial) -> dict[str, float]:
    """Return the metrics of the test split under their plain names."""
    metrics = trial.user_attrs.get("metrics") or {}
    return {
        name.removeprefix(HELD_OUT): value
        for name, value in metrics.items()
        if name.startswith(HELD_OUT)
    }
