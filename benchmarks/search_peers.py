"""Every search strategy of the benchmark by name: Optuna's, what a user could wire up, and ours."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from evolve.config import Plugin
from evolve.samplers import build_sampler
from evolve.space import Params, Space

SWITCH = 100  # trials after which gp-cmaes leaves the Gaussian process
REPEATED = 5  # configurations that gp-repeat measures again
OPTUNA = ("random", "tpe", "tpe-uv", "gp", "cmaes", "cmaes-x0")
WIRED = ("tpe-local", "gp-local", "gp-cmaes", "gp-repeat")
YOLO = ("classic", "present-ga")


@dataclass(frozen=True)
class Setting:
    """What a strategy is told."""

    space: Space
    start: Params
    seed: int
    trials: int  # the number that will be run
    hint: bool = False  # whether ours are told that number


class Wrapped(BaseSampler):
    """A sampler that is another one; the base of those wired up from parts."""

    def __init__(self, inner: BaseSampler) -> None:
        self.inner = inner

    def active(self, study: Study) -> BaseSampler:
        """Return the sampler of the next trial."""
        return self.inner

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the names that are proposed together."""
        return self.active(study).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Params:
        """Return the values to try next."""
        return self.active(study).sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return a value for one name."""
        return self.active(study).sample_independent(study, trial, param_name, param_distribution)


class GpThenCma(Wrapped):
    """Optuna's Gaussian process, and CMA-ES from the best values after SWITCH trials."""

    def __init__(self, seed: int) -> None:
        super().__init__(gp(seed))
        self._seed = seed
        self._second: BaseSampler | None = None

    def active(self, study: Study) -> BaseSampler:
        """Return the sampler of the next trial."""
        if self._second is None and len(finished(study)) >= SWITCH:
            self._second = cmaes(self._seed, study.best_params, 0.1)
        return self._second or self.inner


@dataclass(frozen=True)
class BestMean:
    """A configuration with the mean of its measurements."""

    params: Params
    mean: float
    n: int


class GpThenRepeats(Wrapped):
    """Optuna's Gaussian process; the last tenth of the trials repeats the five best."""

    def __init__(self, seed: int, trials: int) -> None:
        super().__init__(gp(seed))
        self._searching = trials - max(1, trials // 10)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Params:
        """Return new values, or at the end one of the five best, the least measured first."""
        done = finished(study)
        if len(done) < self._searching:
            return self.inner.sample_relative(study, trial, search_space)
        best = sorted(done[: self._searching], key=value_of, reverse=True)[:REPEATED]
        counts = [sum(other.params == one.params for other in done) for one in best]
        return dict(best[int(np.argmin(counts))].params)

    def recommend(self, study: Study) -> BestMean:
        """Return the best mean among those measured most often."""
        values: dict[str, list[float]] = {}
        params: dict[str, Params] = {}
        for trial in finished(study):
            key = repr(sorted(trial.params.items()))
            values.setdefault(key, []).append(value_of(trial))
            params[key] = trial.params
        repeated = {key: found for key, found in values.items() if len(found) > 1} or values
        key = max(repeated, key=lambda one: float(np.mean(repeated[one])))
        return BestMean(params[key], float(np.mean(repeated[key])), len(repeated[key]))


class Multiplying(BaseSampler):
    """The mutation rules of the YOLO trainers: a parent's raw values times a random gain.

    Choices have no gain and stay; a value of zero stays zero; values are clipped to their range.
    """

    def __init__(self, space: Space, start: Params, seed: int) -> None:
        self._space = space
        self._start = start
        self._seed = seed

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the distributions of all genes."""
        return self._space.distributions()

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Params:
        """Return a child of the trials so far."""
        done = finished(study)
        if not done:
            return dict(self._start)
        rng = np.random.default_rng([self._seed, trial.number])
        parent = self._parent(done, rng)
        gains = self._gains(len(self._space.genes), rng)
        child = dict(parent.params)
        for gene, gain in zip(self._space.genes, gains, strict=True):
            if not gene.choices:
                child[gene.name] = gene.nearest(child[gene.name] * float(gain), "child")
        return child

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return the start value of a name."""
        return self._start[param_name]

    def _parent(self, done: list[FrozenTrial], rng: np.random.Generator) -> FrozenTrial:
        raise NotImplementedError

    def _gains(self, count: int, rng: np.random.Generator) -> Any:
        raise NotImplementedError


class Rule2019(Multiplying):
    """The single best row so far, every value times (1 + 0.15 z)^2 (SPEC.md 1.1)."""

    def _parent(self, done: list[FrozenTrial], rng: np.random.Generator) -> FrozenTrial:
        return max(done, key=value_of)

    def _gains(self, count: int, rng: np.random.Generator) -> Any:
        return (1.0 + 0.15 * rng.standard_normal(count)) ** 2


class RuleToday(Multiplying):
    """A weighted draw among the best, each value with probability 0.8 times 1 + 0.2 z."""

    TOP = 9

    def _parent(self, done: list[FrozenTrial], rng: np.random.Generator) -> FrozenTrial:
        best = sorted(done, key=value_of, reverse=True)[: self.TOP]
        fitness = np.array([value_of(trial) for trial in best])
        weights = fitness - fitness.min() + 1e-6
        return best[int(rng.choice(len(best), p=weights / weights.sum()))]

    def _gains(self, count: int, rng: np.random.Generator) -> Any:
        gains = np.ones(count)
        while (gains == 1.0).all():
            moved = rng.random(count) < 0.8
            drawn = 1.0 + 0.2 * rng.random() * rng.standard_normal(count)
            gains = np.clip(np.where(moved, drawn, 1.0), 0.3, 3.0)
        return gains


def finished(study: Study) -> list[FrozenTrial]:
    """Return the complete trials in the order of their numbers."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def value_of(trial: FrozenTrial) -> float:
    """Return the value of a complete trial."""
    assert trial.value is not None
    return trial.value


def gp(seed: int) -> BaseSampler:
    """Return Optuna's Gaussian process for a noisy objective."""
    return GPSampler(seed=seed, deterministic_objective=False)


def cmaes(seed: int, start: Params | None = None, sigma: float | None = None) -> BaseSampler:
    """Return Optuna's CMA-ES as shipped, or from start values with a step of the unit cube."""
    with warnings.catch_warnings():  # Optuna 5 would rather see x0 in another package
        warnings.simplefilter("ignore")
        return CmaEsSampler(seed=seed, x0=start, sigma0=sigma, warn_independent_sampling=False)


def _ours(name: str, setting: Setting) -> BaseSampler:
    """Build a strategy of evolve; `guided+key=value` gives it options."""
    base, *pairs = name.split("+")
    options = {key: _number(value) for key, _, value in (pair.partition("=") for pair in pairs)}
    return build_sampler(
        Plugin(base, options),
        space=setting.space,
        start=setting.start,
        seed=setting.seed,
        budget=setting.trials if setting.hint else None,
    )


def _number(text: str) -> Any:
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return {"true": True, "false": False}.get(text, text)


PEERS: dict[str, Callable[[Setting], BaseSampler]] = {
    "random": lambda known: RandomSampler(seed=known.seed),
    "tpe": lambda known: TPESampler(seed=known.seed),
    "tpe-uv": lambda known: TPESampler(seed=known.seed, multivariate=False),
    "gp": lambda known: gp(known.seed),
    "cmaes": lambda known: cmaes(known.seed),
    "cmaes-x0": lambda known: cmaes(known.seed, known.start, 0.2),
    "tpe-local": lambda known: _ours("tpe", known),
    "gp-local": lambda known: _ours("gp", known),
    "gp-cmaes": lambda known: GpThenCma(known.seed),
    "gp-repeat": lambda known: GpThenRepeats(known.seed, known.trials),
    "classic": lambda known: Rule2019(known.space, known.start, known.seed),
    "classic-mended": lambda known: _ours("classic", known),  # evolve's own
    "present-ga": lambda known: RuleToday(known.space, known.start, known.seed),
}
ENQUEUED = (*OPTUNA, "gp-cmaes", "gp-repeat")  # those that do not know the start values


def sampler_of(name: str, setting: Setting) -> BaseSampler:
    """Return a strategy's sampler; names that are not a peer's are those of evolve.

    Raises: ConfigError.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return PEERS[name](setting) if name in PEERS else _ours(name, setting)
