"""Epochs as fidelity: which trials are stopped early, on Optuna's pruner interface."""

import inspect
from collections.abc import Iterable
from typing import Any

from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    SuccessiveHalvingPruner,
)
from optuna.trial import FrozenTrial, TrialState

from evolve.config import Plugin
from evolve.errors import ConfigError, did_you_mean
from evolve.record import COUNTED, SEARCH, kind_of

PRUNERS: dict[str, type[BasePruner]] = {
    "none": NopPruner,
    "successive-halving": SuccessiveHalvingPruner,
    "hyperband": HyperbandPruner,
    "median": MedianPruner,
}
# Optuna's "auto" rung needs a finished trial first; the first report is a rung everywhere
DEFAULTS: dict[str, dict[str, Any]] = {
    "successive-halving": {"min_resource": 1, "reduction_factor": 3},
    "hyperband": {"min_resource": 1, "reduction_factor": 3},
}


def build_pruner(pruning: Plugin) -> BasePruner:
    """Return the pruner of a rule. Raises: ConfigError."""
    name = pruning.name.replace("_", "-")
    if name not in PRUNERS:
        raise ConfigError(f"pruning {pruning.name} is not known{did_you_mean(name, PRUNERS)}")
    kind = PRUNERS[name]
    takes = inspect.signature(kind).parameters if kind is not NopPruner else {}
    for option in pruning.options:
        if option not in takes:
            raise ConfigError(
                f"pruning {pruning.name} has no option {option}{did_you_mean(option, takes)}"
            )
    try:
        return kind(**{**DEFAULTS.get(name, {}), **pruning.options})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"pruning {pruning.name}: {error}") from error


def may_be_pruned(trial: FrozenTrial) -> bool:
    """Return whether a trial may be stopped; start values and repeats are measured whole."""
    return kind_of(trial) == SEARCH


def saved_share(trials: Iterable[FrozenTrial]) -> float:
    """Return the share of reports (epochs) that stopping saved over all trials of the search."""
    counted = [
        trial for trial in trials if trial.state in COUNTED and kind_of(trial) in (SEARCH, "start")
    ]
    lengths = [len(trial.intermediate_values) for trial in counted]
    complete = [
        length
        for trial, length in zip(counted, lengths, strict=True)
        if trial.state == TrialState.COMPLETE
    ]
    whole = max(complete, default=0) * len(counted)
    return 1.0 - sum(lengths) / whole if whole else 0.0
