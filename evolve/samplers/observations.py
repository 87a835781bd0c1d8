"""What a model sees of a study: places on the unit cube and values, larger is better.

Letters of array shapes: N observations, G genes, R running, F failed trials, C limits.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from evolve.fidelity import final_values
from evolve.record import CONSTRAINTS, value_of
from evolve.samplers.surrogate import Shape
from evolve.space import Params, Space

Array = NDArray[np.float64]

MODELLED = 400  # observations that a model takes at most
HUGE = 1e150  # what is beyond is no measurement: its square overflows
TAIL = 2.0  # spreads below the middle from where on values count by their logarithm


@dataclass(frozen=True)
class Observations:
    """Finished trials as rows: places (N, G), values (N,), variance known beforehand (N,).

    A pruned trial has its forecast final value, and the forecast's variance. `limits` (N, C) is how
    far each is beyond each limit, NaN where that is not known; C is 0 where there are none.
    """

    cubes: Array
    values: Array
    extra: Array
    seconds: Array  # (N,) NaN where nobody knows
    limits: Array
    trials: tuple[FrozenTrial, ...]
    running: Array  # (R, G)
    failed: Array  # (F, G)
    borrowed: int = 0  # the first so many rows are of an earlier study

    @property
    def own(self) -> slice:
        """Rows of this study."""
        return slice(self.borrowed, None)


class Places:
    """Places of trials on the cube, each worked out once; a finished trial never changes."""

    def __init__(self, space: Space, start: Params) -> None:
        self.space = space
        self.start = start
        self._known: dict[int, tuple[Params, Array]] = {}

    def of(self, trials: Sequence[FrozenTrial]) -> Array:
        """Return the places (trials, genes); a missing or inactive gene stands at its start."""
        rows = [self._place(trial) for trial in trials]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(self.space.genes))

    def _place(self, trial: FrozenTrial) -> Array:
        known = self._known.get(trial.number)
        if known is not None and known[0] == trial.params:
            return known[1]
        place = self.space.to_unit(self.settled(trial.params))
        self._known[trial.number] = (trial.params, place)
        return place

    def settled(self, params: Mapping[str, Any]) -> Params:
        """Return values for all genes, the inactive ones at their start."""
        return self.space.settled({**self.start, **params}, self.start)


def shape_of(space: Space) -> Shape:
    """Return how the genes of a space become features of a model."""
    return Shape(tuple(len(gene.choices) for gene in space.genes))


def observe(trials: Sequence[FrozenTrial], places: Places, *, maximize: bool) -> Observations:
    """Return what the trials say; of very many, the best and the latest."""
    sign = 1.0 if maximize else -1.0
    ends = final_values(trials, maximize) if _any(trials, TrialState.PRUNED) else {}
    rows: list[tuple[FrozenTrial, float, float]] = []
    for trial in trials:
        value = value_of(trial)
        if trial.state == TrialState.COMPLETE and value is not None and abs(value) < HUGE:
            rows.append((trial, sign * value, 0.0))
        elif trial.number in ends:
            mean, sd = ends[trial.number]
            rows.append((trial, sign * mean, sd**2))
    rows = _chosen(rows)
    used = [trial for trial, _, _ in rows]
    running = [t for t in trials if t.state == TrialState.RUNNING and t.params]
    failed = [t for t in trials if t.state == TrialState.FAIL and t.params][-MODELLED:]
    return Observations(
        cubes=places.of(used),
        values=np.array([value for _, value, _ in rows]),
        extra=np.array([variance for _, _, variance in rows]),
        seconds=np.array([_seconds(trial) for trial in used]),
        limits=_limits(used),
        trials=tuple(used),
        running=places.of(running),
        failed=places.of(failed),
    )


def _chosen(
    rows: list[tuple[FrozenTrial, float, float]],
) -> list[tuple[FrozenTrial, float, float]]:
    if len(rows) <= MODELLED:
        return rows
    ranked = sorted(range(len(rows)), key=lambda index: -rows[index][1])
    kept = {*ranked[: MODELLED // 2], *range(len(rows) - MODELLED // 2, len(rows))}
    return [rows[index] for index in sorted(kept)]


@dataclass(frozen=True)
class Scale:
    """Standard units: values far below the middle count by their logarithm, and then no more.

    A diverging configuration is bad; how bad says nothing about the good ones.
    """

    middle: float
    spread: float
    mean: float
    sd: float

    @staticmethod
    def of(values: Array) -> "Scale":
        """Return the scale of values (N,): the spread is that of the better half."""
        middle = float(np.median(values))
        better = values[values >= middle] - middle
        most = float(better.max()) or 1.0
        spread = most * math.sqrt(float(np.mean((better / most) ** 2))) or 1.0
        bent = _bent((values - middle) / spread)
        return Scale(middle, spread, float(bent.mean()), float(bent.std()) or 1.0)

    @property
    def unit(self) -> float:
        """Size of one standard unit among good values."""
        return self.spread * self.sd

    def standard(self, values: Array) -> Array:
        """Return values in standard units."""
        return (_bent((values - self.middle) / self.spread) - self.mean) / self.sd

    def variance(self, values: Array, variances: Array) -> Array:
        """Return variances (N,) of values (N,) in standard units."""
        depth = np.maximum(-TAIL - (values - self.middle) / self.spread, 0.0)
        return variances / self.unit**2 / (1.0 + depth) ** 2

    def original(self, standard: Array) -> Array:
        """Return values of standard units."""
        bent = standard * self.sd + self.mean
        return self.middle + self.spread * np.where(
            bent < -TAIL, -TAIL - np.expm1(np.minimum(-TAIL - bent, 50.0)), bent
        )


def _bent(steps: Array) -> Array:
    tail = -TAIL - np.minimum(np.log1p(np.maximum(-TAIL - steps, 0.0)), 1.0)
    return np.where(steps < -TAIL, tail, steps)


def _any(trials: Sequence[FrozenTrial], state: TrialState) -> bool:
    return any(trial.state == state for trial in trials)


def _seconds(trial: FrozenTrial) -> float:
    seconds: float = trial.user_attrs.get("seconds", math.nan)
    return seconds


def _limits(trials: Sequence[FrozenTrial]) -> Array:
    rows = [trial.system_attrs.get(CONSTRAINTS) or () for trial in trials]
    count = max((len(row) for row in rows), default=0)
    filled = [[*row, *[math.nan] * (count - len(row))] for row in rows]
    return np.array(filled, dtype=np.float64).reshape(len(rows), count)
