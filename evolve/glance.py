"""What one sees of a study at a glance: its curve in one line, what its winner changed."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from evolve.errors import ConfigError
from evolve.gene import Gene, same_value
from evolve.record import CONFIRM, feasible, fitness, kind_of
from evolve.space import Space

BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int) -> str:
    """Return a curve as blocks, at most `width` of them; each shows the last value of its share."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite or width < 1:
        return ""
    count = min(width, len(finite))
    shown = [finite[(index + 1) * len(finite) // count - 1] for index in range(count)]
    low, span = min(shown), max(shown) - min(shown)
    if not span:
        return BLOCKS[0] * count
    top = len(BLOCKS) - 1
    return "".join(BLOCKS[round((value - low) / span * top)] for value in shown)


def best_so_far(trials: Iterable[FrozenTrial]) -> list[float]:
    """Return the best fitness after each complete trial of the search that keeps its limits."""
    best: list[float] = []
    for trial in trials:
        if trial.state != TrialState.COMPLETE or kind_of(trial) == CONFIRM or not feasible(trial):
            continue
        value = fitness(trial)
        best.append(max(value, best[-1]) if best else value)
    return best


def moves(
    best: FrozenTrial, params: Mapping[str, Any], start: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """Return (name, start value, value) of what differs, the longest way in its range first.

    `best` is a trial that knows the ranges.
    """
    found = []
    for gene in Space.from_distributions(best.distributions).genes:
        old, new = start.get(gene.name), params.get(gene.name)
        if old is not None and new is not None and not same_value(old, new):
            found.append((_way(gene, old, new), gene.name, old, new))
    return [(name, old, new) for _, name, old, new in sorted(found, key=lambda one: -one[0])]


def moves_text(found: Sequence[tuple[str, Any, Any]], width: int) -> str:
    """Return as many of the moves as fit into `width` characters, and how many do not."""
    parts = [f"{name} {short(old)} → {short(new)}" for name, old, new in found]
    for count in range(len(parts), 0, -1):
        rest = len(parts) - count
        text = ", ".join(parts[:count]) + (f", {rest} more" if rest else "")
        if len(text) <= width:
            return text
    return parts[0] if parts and len(parts[0]) <= width else ""


def short(value: Any) -> str:
    """Return a value in three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _way(gene: Gene, old: Any, new: Any) -> float:
    """Return how far apart two values are on the range of a gene, 0 to 1; choices differ wholly."""
    if gene.choices:
        return 1.0
    try:
        return abs(gene.to_unit(new) - gene.to_unit(old))
    except (ConfigError, ValueError, TypeError):  # a value from outside the range
        return 1.0
