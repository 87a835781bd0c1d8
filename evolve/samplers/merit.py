"""How much a place is worth trying: expected improvement, the chance to go well, and the cost.

Sources: Jones et al. 1998 (expected improvement); Ament et al. 2023, arXiv 2310.20708 (its
logarithm); Gardner et al. 2014 (times the probability that limits are kept); Snoek et al. 2012
(per second); Rasmussen and Williams 2006, section 6.5 (failing as a regression of 0 and 1).
Letters of array shapes: M places, G genes, N observations.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import erfcx, log_ndtr, ndtr

from evolve.samplers.observations import Array, Observations, Scale
from evolve.samplers.surrogate import Beliefs, Hyper, Shape, Surrogate, fit

NEAR, DEEP = -1.0, -1e4  # standard deviations above the best: where the formula is rewritten
FAILURE_NOISE = 0.03  # variance of "failed", 0 or 1: some fail by chance
FAILURE_LENGTH = 1.0  # longest length scale of failing on the cube: there are cliffs
FAR = 5.0  # usual distances from a limit beyond which it counts no more how far
LEAST_COSTS = 5  # known durations from which a cost is modelled
EXACT = Beliefs(noise=(-4.0, 1.5))  # of durations and limits, which hardly vary between seeds


@dataclass(frozen=True)
class Knowledge:
    """Models of one study. `best` is the highest modelled value among the observed places."""

    scale: Scale
    values: Surrogate
    best: float
    limits: tuple[tuple[Surrogate, float], ...] = ()  # model of each limit and where 0 lies on it
    failures: Surrogate | None = None  # of failing: 1, and not failing: 0
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
            mean, sd = self.failures.predict(cubes)
            worth += log_ndtr((0.5 - mean) / sd)
        if self.seconds is not None:
            worth -= self.seconds_unit * self.seconds.predict(cubes)[0]
        return worth

    def improvement(self, cube: Array) -> tuple[float, Array]:
        """Return its logarithm with what noise leaves of it at a place (G,), and the gradient."""
        mean, sd, mean_slope, sd_slope = self.values.slope(cube)
        u = (mean - self.best) / sd
        value = float(log_improvement(np.array([mean]), np.array([sd]), self.best)[0])
        # EI = sd (phi + u Phi); by the mean it is Phi, by the sd phi
        gained = value - math.log(sd)
        density = -0.5 * u * u - 0.5 * math.log(2.0 * math.pi)
        by_mean = math.exp(float(log_ndtr(u)) - gained) / sd
        by_sd = math.exp(density - gained) / sd
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
    # phi(u) + u Phi(u) = phi(u) (1 + u Phi(u) / phi(u)); far below, the bracket is about 1 / u^2
    low = np.clip(u, DEEP, NEAR)
    ratio = math.sqrt(math.pi / 2.0) * erfcx(-low / math.sqrt(2.0))
    below = -0.5 * low**2 - 0.5 * math.log(2.0 * math.pi) + np.log1p(low * ratio)
    above = np.log(np.maximum(u * ndtr(u) + np.exp(-0.5 * u**2) / math.sqrt(2.0 * math.pi), 1e-300))
    deep = -0.5 * u**2 - 0.5 * math.log(2.0 * math.pi) - 2.0 * np.log(np.maximum(-u, 1.0))
    found: Array = np.where(u > NEAR, above, np.where(u > DEEP, below, deep)) + np.log(sd)
    return found


def know(
    shape: Shape, seen: Observations, hyper: Hyper, scale: Scale, *, cost: float = 0.0
) -> Knowledge:
    """Return the models of what has been observed; running trials are believed to end as expected.

    `cost` is the power of the duration by which merit is divided; 0 leaves it out.
    """
    standard = scale.standard(seen.values)
    extra = scale.variance(seen.values, seen.extra)
    values = Surrogate(shape, seen.cubes, standard, hyper, extra)
    best = float(_kept(seen, values.predict(seen.cubes[seen.own])[0]).max())
    if len(seen.running):
        expected, _ = values.predict(seen.running)
        if not seen.limits.shape[1]:  # else it may turn out to be beyond one
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
    for column in seen.limits.T:
        known = np.isfinite(column)
        if not known.any():
            continue
        cubes, column = seen.cubes[known], column[known]
        reach = FAR * (float(np.median(np.abs(column))) or 1.0)
        column = np.clip(column, -reach, reach)
        centre, unit = float(column.mean()), float(column.std()) or 1.0
        standard = (column - centre) / unit
        hyper = fit(shape, cubes, standard, beliefs=EXACT)
        models.append((Surrogate(shape, cubes, standard, hyper), -centre / unit))
    return tuple(models)


def _failures(shape: Shape, seen: Observations, hyper: Hyper) -> Surrogate | None:
    if not len(seen.failed):
        return None
    good = seen.cubes[seen.own]
    places = np.vstack([good, seen.failed])
    failed = np.repeat([0.0, 1.0], [len(good), len(seen.failed)])
    near = Hyper(np.minimum(hyper.lengths, FAILURE_LENGTH), 0.25, FAILURE_NOISE)
    return Surrogate(shape, places, failed, near)


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
