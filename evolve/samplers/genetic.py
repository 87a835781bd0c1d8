"""Genetic search around known-good values: crossover of the elite and mutation on the unit cube.

Every proposal is a function of the study's trials and `default_rng([seed, trial_number])`, so that
a reopened study goes on exactly as if it had never been closed. Only the elite and the last trials
are put on the cube: trial 10,000 is asked for as fast as a study reads its trials.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from evolve.samplers.seen import Seen
from evolve.space import Cube, Params, Space

if TYPE_CHECKING:
    from evolve.recommend import Recommendation

ATTEMPTS = 20  # draws to find a proposal that no other trial has
SHORTEST, LONGEST = 0.3, 1.5  # steps of a mutation in units of a gene's sigma
BLEND = 2 / 3  # share of crossovers that average the elite; the others mix two gene by gene


@dataclass(frozen=True)
class GeneticOptions:
    """How children are made; in evolve.yaml `strategy: {name: genetic, elites: 8}`."""

    elites: int = 6  # the number of best trials that become parents
    crossover: float = 0.75  # probability that a child has more than one parent
    global_share: float = 0.05  # share of uniform proposals, against being caught at one place
    startup: int = 10  # uniform trials before the first child where there are no start values

    def __post_init__(self) -> None:
        check_options(self, {"elites": 1, "startup": 0}, ("crossover", "global_share"))


class GeneticSampler(BaseSampler):
    """Proposes the start values, then children of the best trials, in any Optuna study.

    Args:
        space: the genes; None takes what the study's trials have in common.
        start: values of trial 0 and centre of the search; None starts uniformly.
        budget: expected number of trials; steps shrink towards it. A hint that is never needed.
    """

    def __init__(
        self,
        *,
        space: Space | None = None,
        start: Mapping[str, Any] | None = None,
        seed: int = 0,
        budget: int | None = None,
        options: GeneticOptions | None = None,
    ) -> None:
        decided = None if space is None else space.decided(start or {})
        self._space = None if decided is None else decided.searched()
        self._held = {gene.name for gene in decided.genes if gene.locked} if decided else set()
        self._start = dict(start) if start is not None else None
        self._seed = seed
        self._budget = budget
        self._options = options or GeneticOptions()
        self._seen: tuple[Any, Seen] | None = None  # of which study, and what
        self._lock = threading.Lock()  # for a study that is optimised by several threads

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the distributions of the genes that are searched."""
        if self._space is not None:
            return self._space.distributions()
        common = IntersectionSearchSpace().calculate(study)
        return {name: kind for name, kind in common.items() if not kind.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Params:
        """Return the values to try next."""
        space = self._space or Space.from_distributions(search_space)
        if not space.genes:
            return {}
        with self._lock:
            return self.propose(study, self._history(study, space, trial.number), trial.number)

    def recommend(self, study: Study) -> "Recommendation":
        """Return the configuration that is probably best, judged with all that the study knows.

        Raises: ValueError if no trial is complete.
        """
        space = self._space_of(study)
        return recommended(study, space, {**space.middle(), **(self._start or {})})

    def _space_of(self, study: Study) -> Space:
        common = IntersectionSearchSpace().calculate
        return self._space or Space.from_distributions(common(study))

    def propose(self, study: Study, seen: Seen, number: int) -> Params:
        """Return the values of trial `number`, given what all other trials say."""
        space = seen.space
        start = {name: seen.start[name] for name in space.names}
        if self._start is not None and not seen.has(start):
            return start
        rng = np.random.default_rng([self._seed, number])
        count = min(self._options.elites, max(1, len(seen.best(3 * self._options.elites)) // 3))
        # a young study has few trials to tell merit from luck: the elite grows with it
        parents = seen.cube(seen.best(count))
        if self._start is None and len(seen) < self._options.startup:
            parents = parents[:0]
        elif not len(parents):
            parents = space.to_unit(start)[None, :]
        return self._child(seen, parents, rng, self._longest(len(seen)))

    def _history(self, study: Study, space: Space, current: int = -1) -> Seen:
        """Return all that is known of a study; a sampler may serve several in turn."""
        key = (study._storage, study._study_id, space)
        if self._seen is None or self._seen[0] != key:
            start = {**space.middle(), **(self._start or {})}
            allowed = {gene.name: gene.nearest(start[gene.name], "start") for gene in space.genes}
            start |= allowed
            maximize = study.directions[0] == StudyDirection.MAXIMIZE
            self._seen = (key, Seen(space, (), start, maximize=maximize))
        self._seen[1].update(study._get_trials(deepcopy=False), current)
        return self._seen[1]

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return a value for a name that is not searched.

        It is the start value in trial 0, and always for a locked gene; else it is uniform.
        """
        gene = Space.from_distributions({param_name: param_distribution}).genes[0]
        held = trial.number == 0 or param_name in self._held
        if self._start is not None and param_name in self._start and held:
            return gene.nearest(self._start[param_name], "start")
        letters = [ord(letter) for letter in param_name]
        rng = np.random.default_rng([self._seed, trial.number, *letters])
        return gene.from_unit(float(rng.random()))

    def _longest(self, tried: int) -> float:
        """Return the longest step in units of sigma; it shrinks only towards a known budget."""
        done = min(1.0, tried / self._budget) if self._budget else 0.0
        return float(LONGEST * 0.4**done)

    def _child(
        self, seen: "Seen", parents: NDArray[Any], rng: np.random.Generator, longest: float
    ) -> Params:
        """Return a child that no trial has tried and that is not among failed ones, if it can be.

        Where all has been tried, any child is returned.
        """
        params: Params = {}
        genes = seen.space.genes
        held = np.array([gene.sigma == 0 for gene in genes])
        at_start = seen.space.to_unit(seen.start)
        for attempt in range(ATTEMPTS):
            uniform = rng.random() < self._options.global_share or 2 * attempt > ATTEMPTS
            if uniform or not len(parents):
                cube = np.where(held, at_start, rng.random(len(genes)))
                params = seen.space.from_unit(cube)
            else:
                params = self._bred(seen.space, parents, rng, longest)
            params = seen.space.settled(params, seen.start)
            if not seen.has(params) and not seen.warns_of(params):
                break
        return params

    def _bred(
        self, space: Space, parents: NDArray[Any], rng: np.random.Generator, longest: float
    ) -> Params:
        """Return the values of one child."""
        return space.from_unit(mutated(space, self._crossed(space, parents, rng), rng, longest))

    def _crossed(self, space: Space, parents: NDArray[Any], rng: np.random.Generator) -> Cube:
        """Return a parent, a mix of two, or an average of the elite; better ranks weigh more."""
        weights = np.log(len(parents) + 0.5) - np.log(np.arange(len(parents)) + 1.0)
        first, second = rng.choice(len(parents), size=2, p=weights / weights.sum())
        child: Cube = parents[first]
        if rng.random() >= self._options.crossover:
            return child
        if rng.random() < BLEND:
            blend = rng.dirichlet(2.0 * weights) @ parents  # (genes,)
            unordered = np.array([bool(gene.choices) for gene in space.genes])
            return np.where(unordered, child, blend)  # there is nothing between two choices
        return np.where(rng.random(len(child)) < 0.5, parents[second], child)


def mutated(space: Space, cube: Cube, rng: np.random.Generator, longest: float = LONGEST) -> Cube:
    """Return a neighbour of a point: some genes moved by their sigma, at least one of them.

    How many genes move and how far, up to `longest` sigmas, is drawn anew for every child: long
    steps leave a poor start, short ones refine a good one, and no schedule has to know the budget.
    """
    sigma = np.array([gene.sigma for gene in space.genes])  # (genes,)
    cells = np.array([gene.cells for gene in space.genes])
    unordered = np.array([bool(gene.choices) for gene in space.genes])
    movable = np.flatnonzero(sigma > 0)
    if not len(movable):
        return cube
    chosen = (rng.random(len(cube)) < rng.random()) & (sigma > 0)
    chosen[rng.choice(movable)] = True
    length = np.exp(rng.uniform(np.log(SHORTEST), np.log(longest)))
    # a gene on a grid moves by about a cell at least, or short steps would be rounded away
    deviation = np.maximum(sigma * length, np.where(cells > 0, 1.0 / np.maximum(cells, 1), 0.0))
    moved = reflected(cube + deviation * rng.standard_normal(len(cube)))
    moved = np.where(unordered, rng.random(len(cube)), moved)  # no choice is nearer than another
    return np.where(chosen, moved, cube)


def check_options(options: object, counts: Mapping[str, int], shares: Sequence[str]) -> None:
    """Check whole numbers against their least values, and shares. Raises: ValueError."""
    for name, least in counts.items():
        value = getattr(options, name)
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value!r} must be a whole number, at least {least}")
    for name in shares:
        value = getattr(options, name)
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError(f"{name}={value!r} must be 0 to 1")


def reflected(cube: Cube) -> Cube:
    """Return the point folded back into [0, 1], so that bounds do not collect proposals."""
    folded = np.abs(cube) % 2.0
    return np.where(folded > 1.0, 2.0 - folded, folded)


def recommended(study: Study, space: Space, start: Params) -> "Recommendation":
    """Return the best of a study's recommendations. Raises: ValueError if no trial is complete."""
    from evolve.recommend import recommendations

    maximize = study.directions[0] == StudyDirection.MAXIMIZE
    found = recommendations(study.get_trials(deepcopy=False), space, start, maximize=maximize)
    if not found:
        raise ValueError(f"study {study.study_name} has no complete trial to recommend")
    return found[0]
