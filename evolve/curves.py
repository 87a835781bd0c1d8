"""What early epochs say about the last one: rank correlation and forecast over trials' curves.

Letters of array shapes: T trials, S steps. Inside this file larger values are better.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from evolve.record import SEARCH, START, kind_of

Floats = NDArray[np.float64]

LEAST = 5  # whole trials that a rank correlation or a forecast can be computed from
Z90 = 1.645  # half width of a 90 % interval in standard errors
SHRINKAGE = 2.0  # imagined whole trials that show no slope, against few that show one by luck
HUBER = 2.0  # residuals beyond so many scales lose weight: a collapsed training bends no line
SCALE = 1.4826  # standard deviations of a normal distribution in a median absolute residual
TINY = 1e-150  # against division by 0
REFITS = 2  # rounds of robust weights


@dataclass(frozen=True)
class RankCheck:
    """How well the values at one step order whole trials: Spearman's rank correlation with the end.

    `trials` is the number of whole trials; `interval` holds 90 %; nan where nothing can be said.
    """

    step: int
    trials: int
    spearman: float
    interval: tuple[float, float]
    usable: bool


@dataclass(frozen=True)
class CheckOptions:
    """When a step may stop trials; in evolve.yaml beside the options of the rule."""

    check_after: int = 6  # whole trials, start values included, before anything is stopped
    min_rank: float = 0.3  # least lower end of the 90 % interval of the rank correlation

    def __post_init__(self) -> None:
        if not isinstance(self.check_after, int) or self.check_after < LEAST:
            raise ValueError(
                f"check_after={self.check_after!r} must be a whole number, at least {LEAST}"
            )
        if not isinstance(self.min_rank, int | float) or not -1 <= self.min_rank < 1:
            raise ValueError(f"min_rank={self.min_rank!r} must be -1 to 1 (-1: no check)")


@dataclass(frozen=True)
class Curves:
    """Reported values of trials, larger is better; a trial without reports is left out.

    `steps` (S,) ascending; `values` (T, S), nan where nothing was reported; `finals` (T,), nan for
    trials that are not whole; `last` (T,) column of a trial's last report.
    """

    trials: list[FrozenTrial]
    steps: NDArray[np.int64]
    values: Floats
    finals: Floats
    last: NDArray[np.int64]

    @classmethod
    def of(cls, trials: Iterable[FrozenTrial], *, maximize: bool) -> "Curves":
        """Collect the reports of trials in their order."""
        sign = 1.0 if maximize else -1.0
        chosen = [trial for trial in trials if trial.intermediate_values]
        steps = sorted(set().union(*(trial.intermediate_values for trial in chosen)))
        column = {step: index for index, step in enumerate(steps)}
        values = np.full((len(chosen), len(steps)), np.nan)
        for row, trial in enumerate(chosen):
            reports = trial.intermediate_values
            values[row, [column[step] for step in reports]] = list(reports.values())
        values[~np.isfinite(values)] = np.nan
        finals = [sign * _final(trial) for trial in chosen]
        last = [column[max(trial.intermediate_values)] for trial in chosen]
        return cls(
            chosen,
            np.array(steps, dtype=np.int64),
            sign * values,
            np.array(finals, dtype=np.float64),
            np.array(last, dtype=np.int64),
        )

    def check(self, column: int, options: CheckOptions) -> RankCheck:
        """Return what the values of one step say about the final ones."""
        reached = np.isfinite(self.values[:, column])
        whole = reached & np.isfinite(self.finals)
        early = self.values[whole, column]
        found = _rank_correlation(early, self.finals[whole], self.values[reached, column])
        return RankCheck(
            step=int(self.steps[column]),
            trials=int(whole.sum()),
            spearman=found[1],
            interval=(found[0], found[2]),
            usable=bool(
                whole.sum() >= options.check_after
                and found[0] >= options.min_rank  # nan where all values are equal
                and column < len(self.steps) - 1  # nothing is saved at the end
            ),
        )

    def forecasts(self) -> tuple[Floats, Floats]:
        """Return mean and sd of the final value of each trial, (T,) each; whole ones have sd 0."""
        whole = np.isfinite(self.finals)
        early = self.values[whole]  # (whole, S)
        judged = np.zeros(len(self.steps), dtype=bool)
        judged[self.last[~whole]] = True
        judged &= np.isfinite(early).sum(axis=0) >= LEAST
        means, sds = self.finals.copy(), np.where(whole, 0.0, np.nan)
        rows = np.flatnonzero(~whole & judged[self.last])
        if len(rows):
            line = np.cumsum(judged)[self.last[rows]] - 1  # which of the fitted lines
            ends = self.values[rows, self.last[rows]]
            means[rows], sds[rows] = _predicted(early[:, judged], self.finals[whole], line, ends)
        return means, sds


def _predicted(
    early: Floats, finals: Floats, line: NDArray[np.int64], ends: Floats
) -> tuple[Floats, Floats]:
    """Return mean and sd of the final values that belong to `ends`, by one line for each step.

    Lines through (early, finals), (whole, S) and (whole,), by Huber's weights; the slope is shrunk,
    the spread is that of Student's t. `line` is the column of `early` that each of `ends` is from.
    """
    seen = np.isfinite(early)
    counts = seen.sum(axis=0)
    early, finals = np.where(seen, early, 0.0), np.where(seen, finals[:, None], 0.0)
    weights = seen.astype(np.float64)
    for fit in range(REFITS + 1):
        total = weights.sum(axis=0)
        centre, level = (
            (weights * early).sum(axis=0) / total,
            (weights * finals).sum(axis=0) / total,
        )
        across, up = early - centre, finals - level
        spread = (weights * across**2).sum(axis=0)
        shrunk = np.maximum(spread * (1 + SHRINKAGE / total), TINY)
        slope = (weights * across * up).sum(axis=0) / shrunk
        residuals = np.abs(up - slope * across)
        if fit < REFITS:
            ordered = np.sort(np.where(seen, residuals, np.inf), axis=0)
            middle = np.maximum(ordered[(counts - 1) // 2, np.arange(len(counts))], TINY)
            weights = seen * np.minimum(1.0, HUBER * SCALE * middle / np.maximum(residuals, TINY))
    freedom = counts - 2
    variance = (weights * residuals**2).sum(axis=0) / np.maximum(total - 2, 1.0)
    variance = variance * freedom / np.maximum(freedom - 2, 1)
    away = ends - centre[line]
    leverage = np.where(spread[line] > 0, away**2 / np.maximum(spread[line], TINY), 0.0)
    return level[line] + slope[line] * away, np.sqrt(
        variance[line] * (1 + 1 / total[line] + leverage)
    )


def _rank_correlation(early: Floats, finals: Floats, reached: Floats) -> tuple[float, float, float]:
    """Return low end, Spearman's correlation and high end of its 90 % interval; nan if undefined.

    Whole trials are those that were not stopped, which hides the low end of the range; `reached`,
    the values at the step of all trials, undoes that (Thorndike 1949, case 2, on ranks).
    Source of the standard error: Bonett and Wright 2000, equation 3.
    """
    count = len(early)
    if count < LEAST or np.ptp(early) == 0 or np.ptp(finals) == 0:
        return math.nan, math.nan, math.nan
    found = float(np.corrcoef(_ranks(early), _ranks(finals))[0, 1])
    largest = 1 - 1 / count**2  # few trials never prove a perfect order
    found = min(max(found, -largest), largest)
    error = math.sqrt((1 + found**2 / 2) / (count - 3))
    ranks = _ranks(np.concatenate([early, reached]))
    widening = max(1.0, float(ranks[count:].std() / ranks[:count].std()))

    def corrected(shift: float) -> float:
        low = math.tanh(math.atanh(found) + shift * error)
        return low * widening / math.sqrt(1 + low**2 * (widening**2 - 1))

    return corrected(-Z90), corrected(0.0), corrected(Z90)


def _ranks(values: Floats) -> Floats:
    """Return ranks from 0; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Floats = (np.cumsum(counts) - (counts + 1) / 2)[inverse]
    return ranks


def is_whole(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE and kind_of(trial) in (START, SEARCH)


def _final(trial: FrozenTrial) -> float:
    if not is_whole(trial) or trial.values is None or len(trial.values) != 1:
        return math.nan
    return float(trial.values[0])
