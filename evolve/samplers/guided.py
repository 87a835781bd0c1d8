"""Guided search: genetic proposals around known-good values, chosen among by a Gaussian process.

Start values first, then neighbours of them, then for every trial: the elite by modelled value is
mutated and crossed, a few places come from anywhere, and what the model expects most of is climbed
uphill and tried. The model knows noise, running, pruned and failed trials, limits and durations.

Every proposal is a function of the study's trials and `default_rng([seed, trial_number])`, so that
a reopened study goes on exactly as if it had never been closed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from optuna import Study
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from scipy.optimize import minimize

from evolve.record import COUNTED
from evolve.samplers.genetic import GeneticSampler, check_options, reflected
from evolve.samplers.merit import Knowledge, know
from evolve.samplers.observations import (
    MODELLED,
    Array,
    Observations,
    Places,
    Scale,
    observe,
    shape_of,
)
from evolve.samplers.prior import PRIOR, Prior
from evolve.samplers.seen import Seen
from evolve.samplers.surrogate import Hyper, fit
from evolve.space import Params, Space

if TYPE_CHECKING:
    from evolve.recommend import Recommendation

SHORT = 0.05  # shortest step of a candidate in sigmas: late in a study the best is near
LONG = 1.5
CLIMB = 30  # iterations of a climb
FINE = 16, 60  # trials up to which the model is fitted anew for each; then for every 3rd, 6th
REPEATS = 8, 100  # trials after which the start values are measured once more
SETTLED = 30  # generations before which a search never ends by itself
NEGLIGIBLE = 1e-3  # of a study's spread: what is not worth another trial without noise


@dataclass(frozen=True)
class GuidedOptions:
    """How trials are chosen; in evolve.yaml `strategy: {name: guided, cost: 0.5}`."""

    startup: int = 10  # trials around the start values before the model takes over
    candidates: int = 400  # places that the model chooses among
    elites: int = 8  # the number of best places that become parents, at most
    global_share: float = 0.05  # share of candidates from anywhere
    climbs: int = 4  # candidates that are climbed from
    reach: float = 0.5  # how far a climb may go from the best place: share of each range
    cost: float = 0.0  # 1: improvement per second of training; 0: durations do not matter

    def __post_init__(self) -> None:
        counts = {"startup": 1, "candidates": 20, "elites": 1, "climbs": 0}
        check_options(self, counts, ("global_share", "reach", "cost"))


class GuidedSampler(GeneticSampler):
    """Proposes what a noise-aware model expects most of, in any Optuna study.

    Args:
        space: the genes; None takes what the study's trials have in common.
        start: values of trial 0 and centre of the search; None starts in the middle.
        budget: expected number of trials, a hint that is never needed: the last of them measures
            the blend that `recommend` would name.
    """

    def __init__(
        self,
        *,
        space: Space | None = None,
        start: Mapping[str, Any] | None = None,
        seed: int = 0,
        budget: int | None = None,
        options: GuidedOptions | None = None,
    ) -> None:
        super().__init__(space=space, start=start, seed=seed, budget=budget)
        self._guided = options or GuidedOptions()
        self._places: Places | None = None
        self._prior: tuple[list[Any], Prior | None] | None = None
        self._fitted: tuple[bytes, Hyper] | None = None  # the last fit, and of what

    def propose(self, study: Study, seen: Seen, number: int) -> Params:
        """Return the values of trial `number`, given what all other trials say."""
        space = seen.space
        start = {name: seen.start[name] for name in space.names}
        if not seen.has(start):
            return start
        rng = np.random.default_rng([self._seed, number])
        known = self._observed(study, seen.sample(MODELLED), space, seen.start)
        if _wants_start(known, seen):
            return start
        if len(known.values) + len(known.running) < self._guided.startup or len(known.values) < 3:
            return self._child(seen, space.to_unit(start)[None, :], rng, 1.0)
        blend = self._blend(study, space, start) if self._is_last(seen) else None
        if blend is not None and not seen.has(blend.params):
            return blend.params
        knowledge = self._know(known, space)
        places = _ranked(self._candidates(known, knowledge, seen, rng), knowledge)
        ranked = (space.settled(space.from_unit(cube), seen.start) for cube in places)
        first = next(ranked)
        if not seen.has(first):
            return first
        return next((params for params in ranked if not seen.has(params)), first)

    def recommend(self, study: Study) -> "Recommendation":
        """Return the configuration that is probably best, judged with all that the study knows.

        It may be a blend of the best ones, which nobody has measured. Raises: ValueError if no
        trial is complete.
        """
        measured = super().recommend(study)
        space = self._space_of(study)
        blend = self._blend(study, space, {**space.middle(), **(self._start or {})})
        return measured if blend is None else blend

    def _is_last(self, seen: Seen) -> bool:
        begun = sum(trial.state in COUNTED for trial in seen.finished) + len(seen.running)
        return self._budget is not None and begun >= self._budget - 1

    def _blend(self, study: Study, space: Space, start: Params) -> "Recommendation | None":
        from evolve.recommend import surest_blend

        maximize = study.directions[0] == StudyDirection.MAXIMIZE
        return surest_blend(study.get_trials(deepcopy=False), space, start, maximize=maximize)

    def stop_reason(self, study: Study) -> str:
        """Return why another trial does not pay, "" while it may.

        The most that can be hoped for, the upper bound of any place over the lower bound of the
        best one, is below one standard deviation of the noise. Source: Makarova et al. 2022,
        arXiv 2104.08166.
        """
        space = self._space_of(study)
        seen = self._history(study, space)
        known = self._observed(study, seen.sample(MODELLED), space, seen.start)
        if len(known.values) - known.borrowed < SETTLED:
            return ""
        knowledge = self._know(known, space)
        rng = np.random.default_rng([self._seed, len(known.values), 1])
        places = self._candidates(known, knowledge, seen, rng)
        mean, sd = knowledge.values.predict(np.vstack([places, known.cubes]))
        observed_mean, observed_sd = knowledge.values.predict(known.cubes[known.own])
        hope = float((mean + sd).max() - (observed_mean - observed_sd).max())
        noise = max(_noise(known, knowledge), NEGLIGIBLE)
        if not hope < noise:
            return ""
        unit = knowledge.scale.unit
        return (
            f"another trial can hardly gain more than {hope * unit:.2g},"
            f" which is below the noise of one ({noise * unit:.2g})"
        )

    def length_scales(self, study: Study) -> dict[str, float]:
        """Return the model's length scale of each gene on the cube; long ones matter little.

        Raises: ValueError with fewer than three complete trials.
        """
        space = self._space_of(study)
        seen = self._history(study, space)
        known = self._observed(study, seen.sample(MODELLED), space, seen.start)
        if len(known.values) < 3:
            raise ValueError(f"study {study.study_name}: 3 complete trials are needed")
        lengths = self._know(known, space).values.hyper.lengths
        return dict(zip(space.names, map(float, lengths), strict=True))

    # ---- the model

    def _observed(
        self, study: Study, trials: Sequence[FrozenTrial], space: Space, start: Params
    ) -> Observations:
        if self._places is None or self._places.space != space:
            self._places = Places(space, start)
        maximize = study.directions[0] == StudyDirection.MAXIMIZE
        known = observe(trials, self._places, maximize=maximize)
        prior = self._prior_of(study, space, maximize=maximize)
        return known if prior is None else prior.added(known)

    def _prior_of(self, study: Study, space: Space, *, maximize: bool) -> Prior | None:
        """Return what earlier studies say, which a warm start keeps in the study."""
        # a pruner may show a sampler a study without attributes
        entries = study._storage.get_study_user_attrs(study._study_id).get(PRIOR, [])
        if self._prior is None or self._prior[0] != entries:
            assert self._places is not None
            found = Prior.of(entries, self._places, shape_of(space), maximize=maximize)
            self._prior = (entries, found)
        return self._prior[1]

    def _know(self, known: Observations, space: Space) -> Knowledge:
        """Return the models, fitted to the first trials up to a round number of them."""
        shape = shape_of(space)
        count = len(known.values)
        every = 1 if count <= FINE[0] else 3 if count <= FINE[1] else 6
        count -= count % every
        cubes, values, extra = known.cubes[:count], known.values[:count], known.extra[:count]
        key = b"".join(array.tobytes() for array in (cubes, values, extra))
        if self._fitted is None or self._fitted[0] != key:
            scale = Scale.of(values)
            hyper = fit(shape, cubes, scale.standard(values), extra / scale.unit**2)
            self._fitted = (key, hyper)
        scale = Scale.of(known.values)
        return know(shape, known, self._fitted[1], scale, cost=self._guided.cost)

    # ---- candidates

    def _elite(self, known: Observations, knowledge: Knowledge) -> NDArray[Any]:
        """Return the best places by modelled value, those within all limits first."""
        mean, _ = knowledge.values.predict(known.cubes)
        count = min(self._guided.elites, max(3, len(mean) // 3))
        beyond = np.nan_to_num(np.maximum(known.limits, 0.0), nan=np.inf).sum(axis=1)
        return known.cubes[np.lexsort((-mean, beyond))[:count]]

    def _candidates(
        self, known: Observations, knowledge: Knowledge, seen: Seen, rng: np.random.Generator
    ) -> Array:
        """Return places worth a look (M, G): children of the elite, a few uniform ones, climbs."""
        options, space = self._guided, seen.space
        elite = self._elite(known, knowledge)
        quarter = options.candidates // 4
        parents = np.concatenate(
            [
                np.repeat(elite, math.ceil(2 * quarter / len(elite)), axis=0)[: 2 * quarter],
                np.repeat(elite[:1], quarter, axis=0),
            ]
        )
        few = np.arange(len(parents)) >= 2 * quarter
        children = _mutations(space, parents, few, rng)
        blends = rng.dirichlet(np.ones(len(elite)), quarter) @ elite
        unordered = np.array([bool(gene.choices) for gene in space.genes])
        blends = np.where(unordered, elite[0], blends)  # there is nothing between two choices
        anywhere = rng.random((math.ceil(options.global_share * options.candidates), len(elite[0])))
        held = np.array([gene.sigma == 0 for gene in space.genes])
        anywhere = np.where(held, elite[0], anywhere)
        found = _settled(np.vstack([children, blends, anywhere]), seen)
        best = np.argsort(-knowledge.worth(found), kind="stable")[: options.climbs]
        climbs = [self._climbed(cube, elite[0], held, knowledge) for cube in found[best]]
        return np.vstack([_settled(np.vstack(climbs), seen), found]) if climbs else found

    def _climbed(
        self, cube: Array, centre: Array, held: NDArray[np.bool_], knowledge: Knowledge
    ) -> Array:
        """Return the top of the hill of expected improvement that a place is on."""
        low = np.maximum(0.0, np.minimum(cube, centre - self._guided.reach))
        high = np.minimum(1.0, np.maximum(cube, centre + self._guided.reach))
        fixed = held | ~knowledge.values.shape.ordered
        low, high = np.where(fixed, cube, low), np.where(fixed, cube, high)

        def loss(place: Array) -> tuple[float, Array]:
            value, slope = knowledge.improvement(place)
            return -value, -slope

        found = minimize(
            loss,
            cube,
            jac=True,
            method="L-BFGS-B",
            bounds=list(zip(low, high, strict=True)),
            options={"maxiter": CLIMB},
        )
        top: Array = np.clip(found.x, 0.0, 1.0)[None, :]
        return top


def _wants_start(known: Observations, seen: Seen) -> bool:
    """Return whether the start values should be measured again: their spread is the noise's.

    They are what every gain is measured against. Where two runs were equal there is no noise.
    """
    runs = (known.cubes[known.own] == seen.space.to_unit(seen.start)).all(axis=1)
    values = known.values[known.own][runs]
    if len(values) > 1 and np.ptp(values) == 0.0:
        return False
    tried = len(runs) + len(known.running)
    return seen.count(seen.start) < 1 + sum(tried >= moment for moment in REPEATS)


def _mutations(
    space: Space, parents: Array, few: NDArray[np.bool_], rng: np.random.Generator
) -> Array:
    """Return a child of each parent (M, G); `few` of them move about three genes."""
    count, genes = parents.shape
    sigma = np.array([gene.sigma for gene in space.genes])
    cells = np.array([gene.cells for gene in space.genes])
    unordered = np.array([bool(gene.choices) for gene in space.genes])
    share = np.where(few, 3.0 / genes * np.exp(rng.normal(0.0, 0.7, count)), rng.random(count))
    chosen = rng.random((count, genes)) < share[:, None]
    chosen[np.arange(count), rng.integers(genes, size=count)] = True
    length = np.exp(rng.uniform(math.log(SHORT), math.log(LONG), count))[:, None]
    # a gene on a grid moves by about a cell at least, or short steps would be rounded away
    deviation = np.maximum(sigma * length, np.where(cells > 0, 1.0 / np.maximum(cells, 1), 0.0))
    moved = reflected(parents + deviation * rng.standard_normal((count, genes)))
    moved = np.where(unordered, rng.random((count, genes)), moved)
    return np.where(chosen & (sigma > 0), moved, parents)


def _settled(places: Array, seen: Seen) -> Array:
    """Return places (M, G) as they would be tried: on their grids, inactive genes at the start."""
    space = seen.space
    if any(gene.when for gene in space.genes):
        rows = [space.settled(space.from_unit(place), seen.start) for place in places]
        return np.array([space.to_unit(params) for params in rows])
    settled = places.copy()
    for index, gene in enumerate(space.genes):
        if gene.cells:
            column = [gene.to_unit(gene.from_unit(float(place))) for place in places[:, index]]
            settled[:, index] = column
    return settled


def _noise(known: Observations, knowledge: Knowledge) -> float:
    """Return the noise of one trial in standard units: of repeats, or less if the model says so.

    What a model cannot follow it takes for noise; places that were measured twice know better.
    """
    modelled = math.sqrt(knowledge.values.hyper.noise)
    own = known.own
    _, groups = np.unique(known.cubes[own], axis=0, return_inverse=True)
    values = knowledge.scale.standard(known.values[own])
    counts = np.bincount(groups)
    freedom = int((counts - 1).sum())
    if not freedom:
        return modelled
    means = np.bincount(groups, values) / counts
    pooled = math.sqrt(float(((values - means[groups]) ** 2).sum()) / freedom)
    return min(modelled, pooled)


def _ranked(places: Array, knowledge: Knowledge) -> Array:
    return places[np.argsort(-knowledge.worth(places), kind="stable")]
