"""Epochs as fidelity: which trials are stopped early, on Optuna's pruner interface.

A rule (Optuna's, or our forecast) names the trials that it would stop. Before any of them is
stopped on a step, a rank check over whole trials must have shown that values at this step order
trials as their final values do. Everything is a function of the study's trials, so that a reopened
study goes on as if it had never been closed.
"""

import inspect
import math
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from optuna import Study
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    SuccessiveHalvingPruner,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from evolve.config import Plugin
from evolve.curves import LEAST, CheckOptions, Curves, RankCheck, is_whole
from evolve.errors import ConfigError, did_you_mean
from evolve.record import COUNTED, SEARCH, START, kind_of, search_trials

DEFAULTS: dict[str, dict[str, Any]] = {
    # Optuna's "auto" rung needs a finished trial first; the first report is a rung everywhere
    "successive-halving": {"min_resource": 1, "reduction_factor": 3},
    "hyperband": {"min_resource": 1, "reduction_factor": 3},
}


class ForecastPruner(BasePruner):
    """Stops a trial that will hardly end among the best: its final value is forecast at each step.

    The forecast is a robust line through (value at this step, final value) of whole trials. To be
    among the `best` is asked for, not to beat the best: that one was lucky. The few best of many
    were all lucky, so their number grows with the study: `share` of its trials.

    Args:
        best: a trial is a candidate if it ends above the so-many-th best value.
        share: of all trials, where that is more than `best`.
        chance: least probability of that; below it the trial stops.
    """

    def __init__(self, best: int = 5, chance: float = 0.05, share: float = 0.2) -> None:
        if not isinstance(best, int) or best < 1:
            raise ValueError(f"best={best!r} must be a whole number, at least 1")
        if not isinstance(chance, int | float) or not 0 <= chance < 0.5:
            raise ValueError(f"chance={chance!r} must be 0 or more and below 0.5")
        if not isinstance(share, int | float) or not 0 <= share < 1:
            raise ValueError(f"share={share!r} must be 0 or more and below 1")
        self._best = best
        self._chance = chance
        self._share = share

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Return whether the trial should stop."""
        step = trial.last_step
        if step is None:
            return False
        others = [other for other in _counted(study) if other.number != trial.number]
        curves = Curves.of([*others, trial], maximize=_maximize(study))
        means, sds = curves.forecasts()
        mean, sd, ends = means[-1], sds[-1], means[:-1]
        ends = np.sort(ends[np.isfinite(ends)])
        if not math.isfinite(mean) or len(ends) < LEAST:
            return False
        candidates = max(self._best, math.ceil(self._share * len(ends)))
        target = ends[-min(candidates, len(ends))]
        return _above(target, float(mean), float(sd)) < self._chance


class CheckedPruner(BasePruner):
    """A rule whose stops count only on steps that pass the rank check.

    The rule is asked on every step, because Optuna's write down who passed which rung.
    """

    def __init__(self, rule: BasePruner, options: CheckOptions | None = None) -> None:
        self.rule = rule
        self._options = options or CheckOptions()

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Return whether the trial should stop."""
        step = trial.last_step
        if not self.rule.prune(study, trial) or step is None:
            return False
        others = [other for other in _counted(study) if other.number != trial.number]
        curves = Curves.of([*others, trial], maximize=_maximize(study))
        column = int(np.searchsorted(curves.steps, step))
        return curves.check(column, self._options).usable


PRUNERS: dict[str, type[BasePruner]] = {
    "none": NopPruner,
    "successive-halving": SuccessiveHalvingPruner,
    "hyperband": HyperbandPruner,
    "median": MedianPruner,
    "forecast": ForecastPruner,
}


def build_pruner(pruning: Plugin) -> BasePruner:
    """Return the pruner of a rule, with its rank check. Raises: ConfigError."""
    name = pruning.name.replace("_", "-")
    if name not in PRUNERS:
        raise ConfigError(f"pruning {pruning.name} is not known{did_you_mean(name, PRUNERS)}")
    kind = PRUNERS[name]
    checks = {field.name for field in fields(CheckOptions)}
    takes = {*inspect.signature(kind).parameters, *checks} if kind is not NopPruner else {}
    for option in pruning.options:
        if option not in takes:
            raise ConfigError(
                f"pruning {pruning.name} has no option {option}{did_you_mean(option, takes)}"
            )
    own = {key: value for key, value in pruning.options.items() if key not in checks}
    check = {key: value for key, value in pruning.options.items() if key in checks}
    try:
        rule = kind(**{**DEFAULTS.get(name, {}), **own})
        return rule if kind is NopPruner else CheckedPruner(rule, CheckOptions(**check))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"pruning {pruning.name}: {error}") from error


def may_be_pruned(trial: FrozenTrial) -> bool:
    """Return whether a trial may be stopped; start values and repeats are measured whole."""
    return kind_of(trial) == SEARCH


def rank_check(
    trials: Iterable[FrozenTrial], maximize: bool = True, options: CheckOptions | None = None
) -> list[RankCheck]:
    """Return one check for each reported step in order; the last one stops nothing."""
    curves = Curves.of(_finished(trials), maximize=maximize)
    return [curves.check(column, options or CheckOptions()) for column in range(len(curves.steps))]


def rank_text(checks: Sequence[RankCheck]) -> str:
    """Return in one or two sentences from which epoch on trials can be judged; "" without curves.

    Steps that count from 0 are shown from 1.
    """
    if len(checks) < 2:
        return ""
    shift = 1 if checks[0].step == 0 else 0
    end = f"of {checks[-1].step + shift}"
    usable = [check for check in checks if check.usable]
    known = [check for check in checks[:-1] if math.isfinite(check.spearman)]
    if usable:
        text = f"epoch {usable[0].step + shift} {end} ranks trials like the last one:"
        text = f"{text} {_rank_numbers(usable[0])}."
        return text + (" Earlier epochs say too little." if usable[0] is not checks[0] else "")
    if not known:
        return f"{checks[-1].trials} whole trials: too few to tell which epoch ranks like the last."
    best = max(known, key=lambda check: check.interval[0])
    text = f"epoch {best.step + shift} {end} comes nearest to the last one's ranking:"
    return f"{text} {_rank_numbers(best)}. That is not enough to stop trials early."


def final_values(
    trials: Iterable[FrozenTrial], maximize: bool = True, *, running: bool = False
) -> dict[int, tuple[float, float]]:
    """Return trial number: (mean, sd) of the final value that a trial would have had.

    For pruned trials, and for those that still run where asked for; a trial that no forecast
    exists for (too few whole trials reported its last step) is left out.
    """
    wanted = {TrialState.PRUNED, TrialState.RUNNING} if running else {TrialState.PRUNED}
    known = [trial for trial in trials if trial.state in wanted or is_whole(trial)]
    curves = Curves.of(known, maximize=maximize)
    means, sds = curves.forecasts()
    sign = 1.0 if maximize else -1.0
    return {
        trial.number: (sign * float(mean), float(sd))
        for trial, mean, sd in zip(curves.trials, means, sds, strict=True)
        if trial.state in wanted and math.isfinite(mean)
    }


def forecast_final(trial: FrozenTrial, trials: Iterable[FrozenTrial]) -> tuple[float, float] | None:
    """Return mean and sd of the final value of one trial that was stopped, or still runs."""
    whole = [other for other in trials if is_whole(other) and other.number != trial.number]
    curves = Curves.of([*whole, trial], maximize=True)
    if not curves.trials or curves.trials[-1] is not trial:
        return None  # it reported nothing
    means, sds = curves.forecasts()
    return (float(means[-1]), float(sds[-1])) if math.isfinite(means[-1]) else None


def saved_share(trials: Iterable[FrozenTrial]) -> float:
    """Return the share of reports (epochs) that stopping saved over all trials of the search."""
    counted = [
        trial for trial in trials if trial.state in COUNTED and kind_of(trial) in (SEARCH, START)
    ]
    lengths = [len(trial.intermediate_values) for trial in counted]
    complete = [
        length
        for trial, length in zip(counted, lengths, strict=True)
        if trial.state == TrialState.COMPLETE
    ]
    whole = max(complete, default=0) * len(counted)
    return 1.0 - sum(lengths) / whole if whole else 0.0


def _rank_numbers(check: RankCheck) -> str:
    low, high = check.interval
    interval = f"({low:.2f} to {high:.2f}) over {check.trials} whole trials"
    return f"rank correlation {check.spearman:.2f} {interval}"


def _above(target: float, mean: float, sd: float) -> float:
    """Return the probability that a normal value is above the target."""
    return 0.5 * math.erfc((target - mean) / (max(sd, 1e-12) * math.sqrt(2)))


def _maximize(study: Study) -> bool:
    return study.direction == StudyDirection.MAXIMIZE


def _counted(study: Study) -> list[FrozenTrial]:
    return _finished(search_trials(study))


def _finished(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials whose curves are evidence: whole ones, and stopped ones."""
    return [trial for trial in trials if trial.state == TrialState.PRUNED or is_whole(trial)]
