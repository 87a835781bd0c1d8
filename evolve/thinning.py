"""Which of many trials are drawn: all that matter, and an even choice of the others."""

import math
from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

from evolve.record import fitness, ranking

DRAWN = 1000  # trials in the plots and the table; more are thinned out
BEST_DRAWN = 300  # of them the best ones, whatever their number


def is_measured(trial: FrozenTrial) -> bool:
    """Return whether a trial has a finite fitness."""
    if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED) or not trial.values:
        return False
    return math.isfinite(trial.values[0])


def thinned_out(trials: Sequence[FrozenTrial], kept: set[int], sign: float) -> list[FrozenTrial]:
    """Return at most about DRAWN trials: those to keep, the best, and the rest evenly spread."""
    if len(trials) <= DRAWN:
        return list(trials)
    complete = [trial for trial in ranking(trials) if is_measured(trial)]
    best = sorted(complete, key=lambda trial: -sign * fitness(trial))[:BEST_DRAWN]
    chosen = kept | {trial.number for trial in best}
    rest = [trial for trial in trials if trial.number not in chosen]
    count = DRAWN - len(chosen)
    chosen |= {rest[index * len(rest) // count].number for index in range(count)}
    return [trial for trial in trials if trial.number in chosen]
