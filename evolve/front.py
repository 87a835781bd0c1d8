"""Several objectives: a trial's values, their directions, and the best trade-offs.

Fitness always stands first, so that the first value of a trial is its fitness in every study.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from optuna.trial import FrozenTrial

from evolve.limits import named_metric
from evolve.record import feasible, ranking

FITNESS = "fitness"
MAXIMIZE, MINIMIZE = "maximize", "minimize"
CAPABLE = ("tpe", "nsga2", "random")  # strategies that can search for trade-offs


def directions(objectives: Mapping[str, str]) -> list[str]:
    """Return the directions of an Optuna study; no objectives are fitness alone."""
    return list(objectives.values()) or [MAXIMIZE]


def objective_values(
    metrics: Mapping[str, float], fitness: float, objectives: Mapping[str, str]
) -> dict[str, float]:
    """Return the values to tell Optuna by name, fitness first.

    Raises: ConfigError if a metric that is an objective is missing.
    """
    others = [name for name in objectives if name != FITNESS]
    return {FITNESS: fitness} | {name: named_metric(metrics, name, "objectives") for name in others}


def pareto_front(trials: Iterable[FrozenTrial], objectives: Mapping[str, str]) -> list[FrozenTrial]:
    """Return the complete trials of the search that no other one beats in all, by fitness.

    Trials beyond a limit are left out as long as one keeps them all.
    """
    ranked = ranking(trials)
    ranked = [trial for trial in ranked if feasible(trial)] or ranked
    signs = [1.0 if direction == MAXIMIZE else -1.0 for direction in directions(objectives)]
    points = [[s * v for s, v in zip(signs, t.values, strict=True)] for t in ranked]
    front = [
        trial
        for trial, point in zip(ranked, points, strict=True)
        if not any(_dominates(other, point) for other in points)
    ]
    return [trial for i, trial in enumerate(front) if trial.values not in _values(front[:i])]


def front_table(front: Sequence[FrozenTrial], objectives: Mapping[str, str]) -> list[str]:
    """Return the trade-offs as lines of a table: one trial each, one column an objective."""
    heads = [f"{name} ({direction[:3]})" for name, direction in objectives.items()]
    width = max(10, *(len(head) for head in heads))
    lines = ["  trial  " + "  ".join(f"{head:>{width}}" for head in heads)]
    for trial in front:
        cells = (f"{value:.5g}" if math.isfinite(value) else str(value) for value in trial.values)
        lines.append(f"  {trial.number:>5}  " + "  ".join(f"{cell:>{width}}" for cell in cells))
    return lines


def _dominates(other: Sequence[float], point: Sequence[float]) -> bool:
    pairs = list(zip(other, point, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def _values(trials: Iterable[FrozenTrial]) -> list[list[float]]:
    return [trial.values for trial in trials]
