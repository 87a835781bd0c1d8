"""Search strategies by name: our own, Optuna's, and `module:Class`."""

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import optuna
from optuna.samplers import BaseSampler

from evolve.config import Plugin
from evolve.errors import ConfigError, did_you_mean
from evolve.samplers.borrowed import BorrowedSampler
from evolve.samplers.classic import ClassicSampler
from evolve.samplers.genetic import GeneticOptions, GeneticSampler
from evolve.samplers.guided import GuidedOptions, GuidedSampler
from evolve.space import Params, Space

LOCAL_STARTS = 10  # trials near the start values before a borrowed model takes over

BORROWED: dict[str, tuple[type[BaseSampler], int]] = {  # name: class, local proposals first
    "tpe": (optuna.samplers.TPESampler, LOCAL_STARTS),
    "gp": (optuna.samplers.GPSampler, LOCAL_STARTS),
    "cmaes": (optuna.samplers.CmaEsSampler, LOCAL_STARTS),
    "random": (optuna.samplers.RandomSampler, 0),
    "nsga2": (optuna.samplers.NSGAIISampler, LOCAL_STARTS),
}
NEEDS = {"gp": "torch", "cmaes": "cmaes"}  # packages that Optuna imports for them
OURS: dict[str, tuple[type[GeneticSampler], type | None]] = {  # name: class, class of its options
    "guided": (GuidedSampler, GuidedOptions),
    "genetic": (GeneticSampler, GeneticOptions),
    "classic": (ClassicSampler, None),
}
STRATEGIES = (*OURS, *BORROWED)


def build_sampler(
    strategy: Plugin, *, space: Space, start: Params, seed: int, budget: int | None = None
) -> BaseSampler:
    """Return the sampler of a strategy for the searched genes. Raises: ConfigError."""
    name = strategy.name
    ours: dict[str, Any] = {"space": space, "start": start, "seed": seed, "budget": budget}
    if ":" in name:
        return _foreign(strategy, ours)
    if name in OURS:
        sampler, options_kind = OURS[name]
        _check_options(strategy, options_kind or object, {})
        if options_kind is None:
            return sampler(**ours)
        return _built(strategy, lambda: sampler(**ours, options=options_kind(**strategy.options)))
    if name not in BORROWED:
        raise ConfigError(
            f"strategy {name} is not known{did_you_mean(name, STRATEGIES)}"
            f" (there are {', '.join(STRATEGIES)} and module:Class)"
        )
    package = NEEDS.get(name)
    if package and importlib.util.find_spec(package) is None:
        raise ConfigError(f"strategy {name} needs the package {package}: pip install {package}")
    kind, local = BORROWED[name]
    _check_options(strategy, kind, {"seed": seed})

    def make(sampler_seed: int) -> BaseSampler:
        options: dict[str, Any] = {**_defaults(name), **strategy.options, "seed": sampler_seed}
        return kind(**options)

    return _built(
        strategy, lambda: BorrowedSampler(make, space=space, start=start, seed=seed, local=local)
    )


def _defaults(name: str) -> dict[str, Any]:
    """Return options that differ from Optuna's: the local proposals are its start-up trials."""
    if name == "tpe":
        return {"n_startup_trials": LOCAL_STARTS, "multivariate": True}
    if name in ("gp", "cmaes"):
        return {"n_startup_trials": LOCAL_STARTS}
    return {}


def _foreign(strategy: Plugin, ours: dict[str, Any]) -> BaseSampler:
    """Build anybody's sampler; it gets space, start, seed and budget as far as it takes them."""
    module_name, _, class_name = strategy.name.partition(":")
    try:
        kind = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"strategy {strategy.name}: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, BaseSampler)):
        raise ConfigError(f"strategy {strategy.name} is not a subclass of optuna's BaseSampler")
    takes = inspect.signature(kind).parameters
    given = {name: value for name, value in ours.items() if name in takes}
    _check_options(strategy, kind, given)
    return _built(strategy, lambda: kind(**given, **strategy.options))


def _check_options(strategy: Plugin, kind: type, given: dict[str, Any]) -> None:
    allowed = [name for name in inspect.signature(kind).parameters if name not in given]
    for option in strategy.options:
        if option not in allowed:
            raise ConfigError(
                f"strategy {strategy.name} has no option {option}{did_you_mean(option, allowed)}"
            )


def _built(strategy: Plugin, build: Callable[[], BaseSampler]) -> BaseSampler:
    try:
        return build()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"strategy {strategy.name}: {error}") from error
