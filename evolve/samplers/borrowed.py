"""Optuna's own samplers, and anybody's, made to start at known-good values and to resume exactly.

For every trial a fresh sampler is built, seeded by the study's seed and the trial's number, so that
nothing is carried from one trial to the next but what the study holds.
"""

from collections.abc import Callable, Container, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from evolve.record import CONFIRM, COUNTED, kind_of, search_trials
from evolve.samplers.genetic import GeneticOptions, GeneticSampler, recommended
from evolve.space import Params, Space

if TYPE_CHECKING:
    from evolve.recommend import Recommendation


class BorrowedSampler(BaseSampler):
    """A sampler built anew for every trial by `make(seed)`; the first `local` proposals are ours.

    Args:
        make: builds the sampler that is borrowed from a seed.
        space: the genes. start: values of trial 0 and centre of the local proposals.
        local: counted trials up to which proposals are neighbours of the start values.
    """

    def __init__(
        self,
        make: Callable[[int], BaseSampler],
        *,
        space: Space,
        start: Params,
        seed: int = 0,
        local: int = 0,
    ) -> None:
        self._make = make
        self._space = space.decided(start).searched()
        self._start = {**space.middle(), **start}
        self._seed = seed
        self._local = local
        # one elite and no crossover: neighbours of the best values so far, first of the start
        near = GeneticOptions(elites=1, crossover=0.0, global_share=0.0)
        self._near = GeneticSampler(space=space, start=start, seed=seed, options=near)
        self._inner: BaseSampler = make(0)
        self._is_local = False

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Build the sampler of this trial."""
        trials = [other for other in search_trials(study) if other.number != trial.number]
        counted = sum(other.state in COUNTED for other in trials)
        # the start values come first, also where nobody has queued them
        begun = any(other.params or other.state.is_finished() for other in trials)
        self._is_local = counted < self._local or not begun
        sequence = np.random.SeedSequence([self._seed, trial.number])
        self._inner = self._make(int(sequence.generate_state(1)[0]))
        self._inner.before_trial(_of_search(study), trial)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Let the borrowed sampler store what it stores with a trial."""
        self._inner.after_trial(_of_search(study), trial, state, values)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the genes, all of them: conditions need the values together."""
        return self._space.distributions()

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Params:
        """Return the values to try next, inactive genes at their start value."""
        if self._is_local:
            return self._near.sample_relative(study, trial, search_space)
        view = _of_search(study)
        together = self._inner.infer_relative_search_space(view, trial)
        params = self._inner.sample_relative(view, trial, together)
        for name, kind in search_space.items():
            if name not in params:
                params[name] = self._inner.sample_independent(view, trial, name, kind)
        return self._space.settled({name: params[name] for name in search_space}, self._start)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return a value for a name that is not searched; a locked gene stays at its start."""
        return self._near.sample_independent(study, trial, param_name, param_distribution)

    def recommend(self, study: Study) -> "Recommendation":
        """Return the probably best configuration. Raises: ValueError if none is complete."""
        return recommended(study, self._space, self._start)


class _SearchView(Study):
    """A study without its confirmation trials."""

    def __init__(self, study: Study) -> None:
        super().__init__(
            study_name=study.study_name,
            storage=study._storage,
            sampler=study.sampler,
            pruner=study.pruner,
        )
        self._whole = study

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        trials = self._whole._get_trials(deepcopy, states, use_cache)
        return [trial for trial in trials if kind_of(trial) != CONFIRM]


def _of_search(study: Study) -> Study:
    """Return the study as a borrowed sampler should see it: without repeats."""
    trials = study.get_trials(deepcopy=False)
    return _SearchView(study) if any(kind_of(trial) == CONFIRM for trial in trials) else study
