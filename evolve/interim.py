"""Recommendations by what was measured alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from evolve.record import fitness, ranking
from evolve.space import Params, Space


@dataclass(frozen=True)
class Recommendation:
    """One measured configuration."""

    params: Params
    mean: float
    sd: float
    n: int
    interval: tuple[float, float]
    trial: int


def recommendations(
    trials: Sequence[FrozenTrial],
    space: Space,
    start: Mapping[str, Any],
    *,
    maximize: bool = True,
) -> list[Recommendation]:
    """Return the configurations as they rank, the start values only if nothing else is there."""
    found: dict[str, Recommendation] = {}
    for trial in ranking(trials):
        params = {name: trial.params[name] for name in space.names}
        nan = float("nan")
        one = Recommendation(params, fitness(trial), nan, 1, (nan, nan), trial.number)
        found.setdefault(repr(sorted(params.items())), one)
    given = {name: start[name] for name in space.names}
    others = [one for one in found.values() if one.params != given]
    return others or list(found.values())
