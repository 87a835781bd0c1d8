"""How much a place is worth trying: expected improvement, the chance to go well, and the cost.

Sources: Jones et al. 1998 (expected improvement); Ament et al. 2023, arXiv 2310.20708 (its
logarithm); Gardner et al. 2014 (times the probability that limits are kept); Snoek et al. 2012
(per second). Letters of array shapes: M places, G genes, N observations.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import log_ndtr, ndtr

from evolve.samplers.observations import Array, Observations, Scale
from evolve.samplers.surrogate import Beliefs, Hyper, Shape, Surrogate, fit

DEEP = -5.0  # standard deviations below the best from where the asymptotic formula is used
FAILURE_NOISE = 0.1  # variance of "failed", 0 or 1: some fail by chance
LEAST_COSTS = 5  # known durations from which a cost is modelled
EXACT = Beliefs(noise=(-4.0, 1.5))  # of durations and limits, which hardly vary between seeds


@dataclass(frozen=True)
class Knowledge:
    """Models of one study. `best` is the highest modelled value among the observed places."""

    scale: Scale
    values: Surrogate
    best: float
    limits: tuple[tuple[Surrogate, float], ...] = ()  # model of each limit and where 0 lies on it
    failures: tuple[Surrogate, float] | None = None  # model of failing, and its overall share
    seconds: Surrogate | None = None  # model of log(seconds) in standard units
    seconds_unit: float = 1.0

    def worth(self, cubes: Array) -> Array:
        """Return the logarithm of the merit of places (M, G), (M,)."""
        mean, sd = self.values.predict(cubes)
        worth = log_improvement(mean, sd, self.best) + self._informative(sd)
        for model, zero in self.limits:
            mean, sd = model.predict(cubes)
            worth += log_ndtr((zero - mean) / sd)
        if self.failures is not None:
            model, share = self.failures
            worth += np.log1p(-np.clip(share + model.predict(cubes)[0], 0.0, 0.99))
        if self.seconds is not None:
            worth -= self.seconds_unit * self.seconds.predict(cubes)[0]
        return worth

    def improvement(self, cube: Array) -> tuple[float, Array]:
        """Return its logarithm with what noise leaves of it at a place (G,), and the gradient."""
        mean, sd, mean_slope, sd_slope = self.values.slope(cube)
        u = (mean - self.best) / sd
        value = float(log_improvement(np.array([mean]), np.array([sd]), self.best)[0])
        if u > DEEP:
            density = math.exp(-0.5 * u * u) / math.sqrt(2.0 * math.pi)
            whole = density + u * float(ndtr(u))
            by_mean, by_sd = float(ndtr(u)) / whole / sd, density / whole / sd
        else:
            by_mean = (-u - 2.0 / u) / sd
            by_sd = 1.0 / sd - u * by_mean
        noise = self.values.hyper.noise
        both = sd**2 + noise
        share = 1.0 - math.sqrt(noise / both)
        by_sd += math.sqrt(noise) * sd * both**-1.5 / max(share, 1e-12)
        return value + math.log(max(share, 1e-12)), by_mean * mean_slope + by_sd * sd_slope

    def _informative(self, sd: Array) -> Array:
        """Return the log share of a place's uncertainty (M,) that a noisy trial can remove.

        Without it noise draws trial after trial to the best place. Source: Huang et al. 2006,
        equation 11 (augmented expected improvement).
        """
        noise = self.values.hyper.noise
        share: Array = np.log(np.maximum(1.0 - np.sqrt(noise / (sd**2 + noise)), 1e-12))
        return share


def log_improvement(mean: Array, sd: Array, best: float) -> Array:
    """Return the logarithm of the expected improvement over `best` of normal values (M,)."""
    u = (mean - best) / sd
    near = np.maximum(u, DEEP)
    density = np.exp(-0.5 * near**2) / math.sqrt(2.0 * math.pi)
    shallow = np.log(density + near * ndtr(near))
    far = np.minimum(u, DEEP)  # Mills' ratio: density / u^2
    deep = -0.5 * far**2 - 0.5 * math.log(2.0 * math.pi) - 2.0 * np.log(-far)
    found: Array = np.where(u > DEEP, shallow, deep) + np.log(sd)
    return found


def know(
    shape: Shape, seen: Observations, hyper: Hyper, scale: Scale, *, cost: float = 0.0
) -> Knowledge:
    """Return the models of what has been observed; running trials are believed to end as expected.

    `cost` is the power of the duration by which merit is divided; 0 leaves it out.
    """
    standard = scale.standard(seen.values)
    extra = seen.extra / scale.unit**2
    values = Surrogate(shape, seen.cubes, standard, hyper, extra)
    best = float(_kept(seen, values.predict(seen.cubes[seen.own])[0]).max())
    if len(seen.running):
        expected, _ = values.predict(seen.running)
        best = max(best, float(expected.max()))
        values = Surrogate(
            shape,
            np.vstack([seen.cubes, seen.running]),
            np.append(standard, expected),
            hyper,
            np.append(extra, np.zeros(len(expected))),
        )
    seconds, unit = _seconds(shape, seen) if cost else (None, 1.0)
    return Knowledge(
        scale,
        values,
        best,
        _limits(shape, seen),
        _failures(shape, seen, hyper),
        seconds,
        unit * cost,
    )


def _kept(seen: Observations, means: Array) -> Array:
    """Return the means of places that keep all limits; of all where none does."""
    kept = (seen.limits[seen.own] <= 0.0).all(axis=1)
    return means[kept] if kept.any() else means


def _limits(shape: Shape, seen: Observations) -> tuple[tuple[Surrogate, float], ...]:
    models = []
    cubes = seen.cubes[seen.own]
    for column in seen.limits[seen.own].T:
        centre, unit = float(column.mean()), float(column.std()) or 1.0
        standard = (column - centre) / unit
        hyper = fit(shape, cubes, standard, beliefs=EXACT)
        models.append((Surrogate(shape, cubes, standard, hyper), -centre / unit))
    return tuple(models)


def _failures(shape: Shape, seen: Observations, hyper: Hyper) -> tuple[Surrogate, float] | None:
    if not len(seen.failed):
        return None
    good = seen.cubes[seen.own]
    places = np.vstack([good, seen.failed])
    failed = np.repeat([0.0, 1.0], [len(good), len(seen.failed)])
    share = (len(seen.failed) + 0.5) / (len(failed) + 5.0)
    near = Hyper(np.minimum(hyper.lengths, 1.0), 0.25, FAILURE_NOISE)
    model = Surrogate(shape, places, failed - share, near)
    return model, share


def _seconds(shape: Shape, seen: Observations) -> tuple[Surrogate | None, float]:
    known = np.isfinite(seen.seconds) & (seen.seconds > 0.0) & (seen.extra == 0.0)
    if known.sum() < LEAST_COSTS:
        return None, 1.0
    durations = np.log(seen.seconds[known])
    unit = float(durations.std())
    if unit == 0.0:
        return None, 1.0
    standard = (durations - durations.mean()) / unit
    hyper = fit(shape, seen.cubes[known], standard, beliefs=EXACT)
    return Surrogate(shape, seen.cubes[known], standard, hyper), unit
