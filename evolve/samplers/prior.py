"""Trials of earlier studies as evidence, which counts for less where they rank differently.

They were other data or another model: their values are moved to where this study's are, and get a
variance of their own. It is small while both studies order the same places alike, and grows as
their ranking disagrees, down to no evidence at all. Letters: K earlier trials, N own, G genes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evolve.samplers.observations import Array, Observations, Places, Scale
from evolve.samplers.surrogate import Shape, Surrogate, fit

PRIOR = "prior"  # user attribute of a study: [{"params": ..., "value": ...}, ...]
LEAST = 3  # earlier trials, and own ones, that evidence is made of
TRUST = 0.6  # rank correlation that is believed before there are own trials
IMAGINED = 6.0  # own trials that this belief weighs as much as
USELESS = 0.15  # rank correlation below which earlier trials are left out
LEAST_VARIANCE = 0.05  # of an earlier value, in units of the own spread: it was another study
TAKEN = 100  # earlier trials, at most: those at the front


@dataclass(frozen=True)
class Prior:
    """A model of the earlier trials: places (K, G), values (K,) in its standard units."""

    cubes: Array
    scale: Scale
    values: Array
    model: Surrogate

    @staticmethod
    def of(
        entries: Sequence[Mapping[str, Any]], places: Places, shape: Shape, *, maximize: bool
    ) -> "Prior | None":
        """Return the model of a study's attribute `prior`; None with too few trials."""
        if len(entries) < LEAST:
            return None
        sign = 1.0 if maximize else -1.0
        rows = [places.space.to_unit(places.settled(entry["params"])) for entry in entries[:TAKEN]]
        values = np.array([sign * float(entry["value"]) for entry in entries[:TAKEN]])
        kept = np.isfinite(values)
        cubes, values = np.array(rows)[kept], values[kept]
        if len(values) < LEAST:
            return None
        scale = Scale.of(values)
        standard = scale.standard(values)
        hyper = fit(shape, cubes, standard)
        return Prior(cubes, scale, standard, Surrogate(shape, cubes, standard, hyper))

    def agreement(self, seen: Observations) -> float:
        """Return how well the earlier trials rank the own ones, 1 alike to -1 reversed.

        It begins at what is believed beforehand, and own trials outweigh that as they come.
        """
        count = len(seen.values)
        if count < LEAST or np.ptp(seen.values) == 0.0:
            return TRUST
        predicted, _ = self.model.predict(seen.cubes)
        if np.ptp(predicted) == 0.0:
            return TRUST * IMAGINED / (IMAGINED + count)
        from scipy.stats import spearmanr  # slow to load, and of use to a warm start alone

        found = float(spearmanr(predicted, seen.values).statistic)
        return (IMAGINED * TRUST + count * found) / (IMAGINED + count)

    def added(self, seen: Observations) -> Observations:
        """Return the own observations behind the earlier ones, or alone where those mislead."""
        trust = self.agreement(seen)
        if not len(seen.values) or trust < USELESS:
            return seen
        predicted, _ = self.model.predict(seen.cubes)
        unit = (Scale.of(seen.values) if len(seen.values) >= LEAST else self.scale).unit
        centre = float(np.median(seen.values - unit * predicted))
        # a value that explains the share trust^2 of another's variance leaves this much open
        variance = unit**2 * max(1.0 / trust**2 - 1.0, LEAST_VARIANCE)
        count = len(self.values)
        return replace(
            seen,
            borrowed=count,
            cubes=np.vstack([self.cubes, seen.cubes]),
            values=np.append(centre + unit * self.values, seen.values),
            extra=np.append(np.full(count, variance), seen.extra),
            seconds=np.append(np.full(count, np.nan), seen.seconds),
            limits=np.vstack([np.full((count, seen.limits.shape[1]), np.nan), seen.limits]),
        )
