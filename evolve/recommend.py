"""Which configuration to trust: measurements blended with what a model makes of all trials.

The best of many noisy values was lucky, and a model alone believes its own smoothness. A Gaussian
process that is conditioned on every measurement does both: a place measured often speaks for
itself, one measured once is judged by its neighbours too. Of equals the surer gain over the start
values is recommended, so that a study rarely ends worse than it began.
Source: Frazier 2018, arXiv 1807.02811, section 5.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from evolve.record import excess
from evolve.samplers.observations import Array, Observations, Places, Scale, observe, shape_of
from evolve.samplers.surrogate import Hyper, Shape, Surrogate, fit
from evolve.space import Params, Space

LEAST = 8  # trials from which a model is made; of fewer the best measured one is taken
CAUTION = 1.0  # standard errors by which a gain over the start values is counted for less
DOUBT = 1.3  # errors are so much larger: one set of model hyperparameters is taken for true
TRUST = 4  # one measurement with all that its neighbours say counts as so many, at most
Z90 = 1.6448536269514722  # half width of a 90 % interval in standard errors


@dataclass(frozen=True)
class Recommendation:
    """One measured configuration, judged with all that the study knows.

    Args:
        mean: estimated true fitness. sd: standard deviation of one measurement.
        n: how often it was measured. interval: of 90 % for the true fitness.
        trial: number of the first trial with these values.
    """

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
    """Return the measured configurations, best first; the start values only if nothing else is.

    Configurations that keep all limits stand first.
    """
    known = observe(trials, Places(space, dict(start)), maximize=maximize)
    groups: dict[bytes, list[int]] = {}  # rows of each configuration
    for row, trial in enumerate(known.trials):
        if trial.state == TrialState.COMPLETE:
            groups.setdefault(known.cubes[row].tobytes(), []).append(row)
    at_start = space.to_unit({name: start[name] for name in space.names})
    if len(groups) > 1:
        groups.pop(at_start.tobytes(), None)
    estimates = _estimated(known, space, at_start)

    def order(rows: list[int]) -> tuple[float, float, int]:
        row = rows[0]
        return excess(known.trials[row]), -estimates.safe_gains[row], known.trials[row].number

    ranked = sorted(groups.values(), key=order)
    return [_recommended(rows, known, estimates, 1.0 if maximize else -1.0) for rows in ranked]


def length_scales(
    trials: Sequence[FrozenTrial],
    space: Space,
    start: Mapping[str, Any],
    *,
    maximize: bool = True,
) -> dict[str, float]:
    """Return the length scale of each gene on the cube in the model that recommends.

    Long ones matter little. Empty with too few trials for a model.
    """
    known = observe(trials, Places(space, dict(start)), maximize=maximize)
    if len(known.values) < LEAST or not space.genes:
        return {}
    lengths = _hyper_of(known, shape_of(space), Scale.of(known.values)).lengths
    return dict(zip(space.names, map(float, lengths), strict=True))


@dataclass(frozen=True)
class _Estimates:
    """Of each observed place (N,): mean and standard error of its true value, larger is better.

    `safe_gains` is the gain over the start values less what caution takes from it.
    """

    means: Array
    errors: Array
    safe_gains: Array
    noise: float


def _estimated(known: Observations, space: Space, start: Array) -> _Estimates:
    if len(known.values) < LEAST or not space.genes:
        unknown = np.full(len(known.values), math.nan)
        return _Estimates(known.values, unknown, known.values, math.nan)
    scale = Scale.of(known.values)
    shape = shape_of(space)
    standard, extra = scale.standard(known.values), scale.variance(known.values, known.extra)
    hyper = _hyper_of(known, shape, scale)
    model = Surrogate(shape, known.cubes, standard, hyper, extra)
    means, errors = model.predict(known.cubes)
    gains, gain_errors = model.difference(known.cubes, start)
    return _Estimates(
        means=scale.original(means),
        errors=DOUBT * errors * scale.unit,
        safe_gains=gains - CAUTION * gain_errors,
        noise=math.sqrt(hyper.noise) * scale.unit,
    )


def _hyper_of(known: Observations, shape: Shape, scale: Scale) -> Hyper:
    arrays = (known.cubes, scale.standard(known.values), scale.variance(known.values, known.extra))
    return _fitted(shape.choices, *(array.tobytes() for array in arrays))


@lru_cache(maxsize=2)  # a command asks twice about the same trials: whom to trust, what matters
def _fitted(choices: tuple[int, ...], cubes: bytes, values: bytes, extra: bytes) -> Hyper:
    places, standard, variances = map(np.frombuffer, (cubes, values, extra))
    return fit(Shape(choices), places.reshape(len(standard), -1), standard, variances)


def _recommended(
    rows: list[int], known: Observations, estimates: _Estimates, sign: float
) -> Recommendation:
    trial = known.trials[rows[0]]
    mean = sign * float(estimates.means[rows[0]])
    # late in a study many neighbours make the model surer of a place than it is right about it
    least = estimates.noise / math.sqrt(len(rows) - 1 + TRUST)
    half = Z90 * max(float(estimates.errors[rows[0]]), least)
    return Recommendation(
        params=dict(trial.params),
        mean=mean,
        sd=estimates.noise,
        n=len(rows),
        interval=(mean - half, mean + half),
        trial=trial.number,
    )
