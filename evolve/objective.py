"""The seam between a search and what it searches: an objective found by name, and its context.

An objective is a module with `evaluate(params, context) -> metrics`, or `module:function`. A module
may also offer `preflight`, `describe`, `export` and `train_fields`. What it does is unknown here.
"""

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evolve.errors import ConfigError, did_you_mean

Metrics = dict[str, float]


@dataclass(frozen=True)
class Context:
    """What a trial may know: its seed, folder, devices, threads, attempt (1 is the first).

    `report(step, metrics)` tells the study how far the trial is, and answers True to stop now.
    `wanted` are the metrics that the study looks at: what costs time need not be measured else.
    """

    seed: int
    directory: Path
    devices: list[str]
    threads: int
    attempt: int
    report: Callable[[int, Mapping[str, float]], bool]
    wanted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Objective:
    """A loaded objective; `optional` finds what a module may offer besides evaluate."""

    name: str
    evaluate: Callable[[dict[str, Any], Context], Any]
    module: Any = None

    def optional(self, function: str) -> Callable[..., Any] | None:
        """Return a function of the objective's module, or None if it has no such function."""
        found = getattr(self.module, function, None)
        return found if callable(found) else None


def load_objective(name: str) -> Objective:
    """Import `module` or `module:function`. Raises: ConfigError with the real cause."""
    module_name, colon, function = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # any fault of a foreign module is reported as what it is
        missing = isinstance(error, ModuleNotFoundError) and error.name
        if missing and (module_name == missing or module_name.startswith(f"{missing}.")):
            raise ConfigError(f"objective: there is no module {missing} (from {name})") from error
        raise ConfigError(
            f"objective: importing {module_name} failed: {type(error).__name__}: {error}"
        ) from error
    attribute = function or "evaluate"
    found = getattr(module, attribute, None)
    if not callable(found):
        functions = [key for key, value in vars(module).items() if callable(value)]
        raise ConfigError(
            f"objective: {module_name} has no function {attribute}"
            f"{did_you_mean(attribute, functions)}"
        )
    return Objective(name, found, None if colon else module)


def as_metrics(result: Any) -> Metrics:
    """Return what evaluate gave as numbers by name; one bare number is the fitness.

    Raises: TypeError for anything else.
    """
    if isinstance(result, Mapping):
        return {str(name): float(value) for name, value in result.items()}
    if isinstance(result, int | float) and not isinstance(result, bool):
        return {"fitness": float(result)}
    raise TypeError(f"evaluate must return metrics by name, got {type(result).__name__}")


def fitness_of(metrics: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Return the weighted sum of the metrics; larger is better, may be NaN.

    Raises: ConfigError if a weighted metric is not among them.
    """
    for name in weights:
        if name not in metrics:
            raise ConfigError(
                f"fitness needs the metric {name}, which evaluate did not return"
                f"{did_you_mean(name, metrics)}"
            )
    return math.fsum(weight * metrics[name] for name, weight in weights.items())
