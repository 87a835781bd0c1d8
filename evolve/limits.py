"""Limits: what a trial's metrics may be at most or at least, as the constraints of Optuna."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from evolve.errors import ConfigError, did_you_mean

WORST = 1e6  # constraint of a metric that is no number: it keeps no limit


@dataclass(frozen=True)
class Limit:
    """The allowed range of a metric; None is no bound."""

    min: float | None = None
    max: float | None = None


def constraints(metrics: Mapping[str, float], limits: Mapping[str, Limit]) -> list[float]:
    """Return how far the metrics are beyond their limits, in shares of them; 0 and below is kept.

    Raises: ConfigError if a limited metric is missing.
    """
    beyond: list[float] = []
    for name, sign, bound in _bounds(limits):
        value = named_metric(metrics, name, "limits")
        scale = abs(bound) or 1.0
        beyond.append(sign * (value - bound) / scale if math.isfinite(value) else WORST)
    return beyond


def named_metric(metrics: Mapping[str, float], name: str, section: str) -> float:
    """Return a metric that a section of evolve.yaml names. Raises: ConfigError if it is missing."""
    if name not in metrics:
        raise ConfigError(
            f"{section}: evolve.yaml names the metric {name}, which evaluate did not return"
            f"{did_you_mean(name, metrics)} (it returned {', '.join(sorted(metrics)) or 'nothing'})"
        )
    return metrics[name]


def limits_text(limits: Mapping[str, Limit]) -> str:
    """Return the limits in words: `latency_ms at most 5, mAP50 at least 0.5`."""
    words = {1.0: "at most", -1.0: "at least"}
    return ", ".join(f"{name} {words[sign]} {bound:g}" for name, sign, bound in _bounds(limits))


def _bounds(limits: Mapping[str, Limit]) -> Iterator[tuple[str, float, float]]:
    """Yield (metric, 1 for a maximum and -1 for a minimum, bound)."""
    for name, limit in limits.items():
        if limit.min is not None:
            yield name, -1.0, limit.min
        if limit.max is not None:
            yield name, 1.0, limit.max
