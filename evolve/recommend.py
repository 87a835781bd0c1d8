"""Which configuration to trust: measurements blended with what a model makes of all trials.

The best of many noisy values was lucky, and a model alone believes its own smoothness. A Gaussian
process that is conditioned on every measurement does both: a place measured often speaks for
itself, one measured once is judged by its neighbours too. Of equals the surer gain over the start
values is recommended, so that a study rarely ends worse than it began.
Source: Frazier 2018, arXiv 1807.02811, section 5.

Where noise chose among the best, the middle of them is better than each: their errors cancel out,
what they have in common stays. Source: Beyer 1995, "Toward a theory of evolution strategies: on the
benefits of sex" (genetic repair); weights of Hansen 2016, arXiv 1604.00772, equation 49.
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
BLEND_DOUBT = 1.5  # of a place between the measured ones
TRUST = 4  # one measurement with all that its neighbours say counts as so many, at most
Z90 = 1.6448536269514722  # half width of a 90 % interval in standard errors
BLENDED = 2, 3, 5, 8  # how many of the best are blended
UNMEASURED = -1  # the trial of a blend


@dataclass(frozen=True)
class Recommendation:
    """One configuration, judged with all that the study knows.

    Args:
        mean: estimated true fitness. sd: standard deviation of one measurement.
        n: how often it was measured. interval: of 90 % for the true fitness.
        trial: number of the first trial with these values, -1 of a blend nobody has measured.
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
    estimates = _estimated(known, space, _cube(start, space))
    ranked = _ranked(known, estimates, _cube(start, space))
    return [_recommended(rows, known, estimates, 1.0 if maximize else -1.0) for rows in ranked]


def surest_blend(
    trials: Sequence[FrozenTrial],
    space: Space,
    start: Mapping[str, Any],
    *,
    maximize: bool = True,
) -> Recommendation | None:
    """Return the blend of the best configurations that gains more surely than each of them.

    None if there is none, and under limits, which a new place may not keep.
    """
    known = observe(trials, Places(space, dict(start)), maximize=maximize)
    at_start = _cube(start, space)
    estimates = _estimated(known, space, at_start)
    model, scale, ranked = estimates.model, estimates.scale, _ranked(known, estimates, at_start)
    if model is None or scale is None or known.limits.shape[1]:
        return None
    best = np.array([known.cubes[rows[0]] for rows in ranked[: BLENDED[-1]]])
    middles = [_middle(best[:count], model.shape) for count in BLENDED if count <= len(best)]
    blends = [space.settled(space.from_unit(middle), dict(start)) for middle in middles]
    places = np.array([_cube(params, space) for params in blends]).reshape(-1, len(at_start))
    gains, errors = model.difference(places, at_start)
    tried = (places[:, None, :] == known.cubes[None, :, :]).all(axis=2).any(axis=1)
    safe_gains = np.where(tried, -math.inf, gains - CAUTION * errors)
    if not (safe_gains > estimates.safe_gains[ranked[0][0]]).any():
        return None
    index = int(np.argmax(safe_gains))
    means, errors = model.predict(places[index : index + 1])
    mean = float(scale.original(means)[0]) * (1.0 if maximize else -1.0)
    half = _half(BLEND_DOUBT * float(errors[0]) * scale.unit, estimates.noise, BLENDED[0])
    return Recommendation(
        blends[index], mean, estimates.noise, 0, (mean - half, mean + half), UNMEASURED
    )


def _middle(best: Array, shape: Shape) -> Array:
    """Return the weighted mean (G,) of the best places (M, G), best first; choices of the first."""
    count = len(best)
    weights = math.log(count + 1) - np.log(np.arange(1, count + 1))
    found: Array = np.where(shape.ordered, weights @ best / weights.sum(), best[0])
    return found


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

    `safe_gains` is the gain over the start values less what caution takes from it. `model` speaks
    in the standard units of `scale`; with few trials there is none.
    """

    means: Array
    errors: Array
    safe_gains: Array
    noise: float
    scale: Scale | None = None
    model: Surrogate | None = None


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
        scale=scale,
        model=model,
    )


def _ranked(known: Observations, estimates: _Estimates, at_start: Array) -> list[list[int]]:
    """Return the rows of each configuration, best first; the start values only if nothing else."""
    groups: dict[bytes, list[int]] = {}
    for row, trial in enumerate(known.trials):
        if trial.state == TrialState.COMPLETE:
            groups.setdefault(known.cubes[row].tobytes(), []).append(row)
    if len(groups) > 1:
        groups.pop(at_start.tobytes(), None)

    def order(rows: list[int]) -> tuple[float, float, int]:
        row = rows[0]
        return excess(known.trials[row]), -estimates.safe_gains[row], known.trials[row].number

    return sorted(groups.values(), key=order)


def _cube(params: Mapping[str, Any], space: Space) -> Array:
    return space.to_unit({name: params[name] for name in space.names})


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
    half = _half(float(estimates.errors[rows[0]]), estimates.noise, len(rows))
    return Recommendation(
        params=dict(trial.params),
        mean=mean,
        sd=estimates.noise,
        n=len(rows),
        interval=(mean - half, mean + half),
        trial=trial.number,
    )


def _half(error: float, noise: float, n: int) -> float:
    """Return half the width of a 90 % interval of what n measurements speak for."""
    # late in a study many neighbours make the model surer of a place than it is right about it
    return Z90 * max(error, noise / math.sqrt(n - 1 + TRUST))
