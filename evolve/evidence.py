"""Measures of how much each gene matters, each with what chance alone would show.

Optuna's PED-ANOVA and fANOVA are computed on the unit cube together with *shadows*: copies of genes
whose values were shuffled among neighbouring trials. A search drifts, so that a gene without any
effect goes along with those that have one; its shadow does the same and shows how much that counts.

Letters of array shapes: T trials, G genes, K shadows.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from evolve.errors import ConfigError
from evolve.fidelity import final_values
from evolve.gene import Gene
from evolve.record import CONFIRM, kind_of
from evolve.space import Space

if TYPE_CHECKING:
    from optuna.importance import BaseImportanceEvaluator

Floats = NDArray[np.float64]

LEAST = 30  # complete trials before importance is told
PED, FANOVA, MODEL = "ped-anova", "fanova", "model"
NEIGHBOURS = 10  # trials in a row among which a shadow's values are shuffled
SHADOWS = 6  # of each gene, for PED-ANOVA
FOREST_SHADOWS = 8  # in all, for fANOVA, whose time grows with them
FOREST: dict[str, int] = {"n_trees": 24, "max_depth": 8}
SIGMAS = 3.0  # standard deviations of its shadows that a gene must stand above them
TOP = 0.4  # share of trials that PED-ANOVA compares with all; a tenth is too noisy in local search
MARGIN = 1.5  # times the best shadow's score, that a gene needs in fANOVA
WINDOW = 7  # trials on each side whose median is a search's trend


@dataclass(frozen=True)
class Evidence:
    """Trials on the unit cube in their order; larger values are better.

    `cube` (T, G), `active` (T, G): whether a gene's conditions hold; `values` (T,).
    """

    space: Space
    cube: Floats
    active: NDArray[np.bool_]
    values: Floats

    @classmethod
    def of(cls, trials: Sequence[FrozenTrial], space: Space, maximize: bool) -> "Evidence | None":
        """Return what can be judged; None if fewer than 30 complete trials hold all genes."""
        sign = 1.0 if maximize else -1.0
        single = all(len(trial.values or [0]) == 1 for trial in trials)
        forecasts = final_values(trials, maximize) if single else {}
        rows, complete = [], 0
        for trial in sorted(trials, key=lambda trial: trial.number):
            if kind_of(trial) == CONFIRM or any(n not in trial.params for n in space.names):
                continue
            whole = trial.state == TrialState.COMPLETE and trial.values is not None
            value = trial.values[0] if whole else forecasts.get(trial.number, (math.nan,))[0]
            if not math.isfinite(value):
                continue
            try:
                point = space.to_unit(trial.params)
            except ConfigError:
                continue  # a choice that the space no longer has
            rows.append((point, space.active(trial.params), sign * value))
            complete += whole
        if complete < LEAST or not space.genes:
            return None
        points, active, values = zip(*rows, strict=True)
        return cls(space, np.array(points), np.array(active), _fenced(np.array(values)))

    def part(self, rows: slice) -> "Evidence":
        """Return some of the trials."""
        return Evidence(self.space, self.cube[rows], self.active[rows], self.values[rows])

    def shuffled(self, rng: np.random.Generator) -> "Evidence":
        """Return the trials with each gene's values shuffled among neighbours, one by one."""
        cube, active = self.cube.copy(), self.active.copy()
        for begin in range(0, len(cube), NEIGHBOURS):
            block = slice(begin, begin + NEIGHBOURS)
            order = rng.permuted(
                np.tile(np.arange(len(cube[block]))[:, None], cube.shape[1]), axis=0
            )
            cube[block] = np.take_along_axis(cube[block], order, axis=0)
            active[block] = np.take_along_axis(active[block], order, axis=0)
        return Evidence(self.space, cube, active, self.values)


@dataclass(frozen=True)
class Finding:
    """One measure: `scores` (G,), how far they are above chance (`excess`), and who is `seen`."""

    measure: str
    scores: Floats
    excess: Floats
    seen: NDArray[np.bool_]


def ped_anova(data: Evidence, rng: np.random.Generator) -> Finding:
    """Compare the values of the top trials with those of all, gene by gene."""
    scores = _ped_scores(data, [data])
    shadows = _ped_scores(data, [data.shuffled(rng) for _ in range(SHADOWS)])  # (K, G)
    chance = shadows.mean(axis=0)
    spread = math.sqrt(float(shadows.var(axis=0, ddof=1).mean()))
    excess = scores[0] - chance
    return Finding(PED, scores[0], np.maximum(excess, 0.0), excess > SIGMAS * spread)


def _ped_scores(data: Evidence, versions: Sequence[Evidence]) -> Floats:
    """Return PED-ANOVA's raw scores of every version's genes, (versions, G)."""
    from optuna.importance import PedAnovaImportanceEvaluator

    columns = {
        f"{index} {gene.name}": _Column(gene, version.cube[:, place], version.active[:, place])
        for index, version in enumerate(versions)
        for place, gene in enumerate(data.space.genes)
    }
    found = _evaluated(PedAnovaImportanceEvaluator(target_quantile=TOP), columns, data.values)
    return found.reshape(len(versions), len(data.space.genes))


def fanova(data: Evidence, rng: np.random.Generator) -> Finding:
    """Share out the variance of a random forest's prediction; inactive genes stand still in it.

    The forest learns fitness less the search's trend, or all genes that drift would explain it.
    """
    from optuna.importance import FanovaImportanceEvaluator

    genes = data.space.genes
    columns = {
        gene.name: _Column(gene, data.cube[:, place], None) for place, gene in enumerate(genes)
    }
    shadow = data.shuffled(rng)
    chosen = rng.permutation(len(genes))[:FOREST_SHADOWS]
    for place in chosen:
        columns[f"{place} shadow"] = _Column(genes[place], shadow.cube[:, place], None)
    forest = FanovaImportanceEvaluator(**FOREST, seed=int(rng.integers(2**31)))
    found = _evaluated(forest, columns, _fenced(_without_trend(data.values)))
    scores, shadows = found[: len(genes)], found[len(genes) :]
    chance = float(shadows.mean())
    threshold = max(MARGIN * float(shadows.max()), chance + SIGMAS * float(shadows.std()))
    return Finding(FANOVA, scores, np.maximum(scores - chance, 0.0), scores > threshold)


def model(space: Space, length_scales: Mapping[str, float]) -> Finding:
    """Short length scales are important; the model sees nothing where a share is below half."""
    scales = [length_scales.get(name, math.inf) for name in space.names]
    scores = np.array([1.0 / scale if scale > 0 else 0.0 for scale in scales])
    seen = scores >= 0.5 * scores.mean()
    return Finding(MODEL, scores, np.where(seen, scores, 0.0), seen & (scores > 0))


def steady_genes(data: Evidence) -> NDArray[np.bool_]:
    """Return for which genes the even and the odd trials alike score above the middle one."""
    halves = [data.part(slice(begin, None, 2)) for begin in (0, 1)]
    scores = np.array([_ped_scores(half, [half])[0] for half in halves])
    steady: NDArray[np.bool_] = (scores > np.median(scores, axis=1, keepdims=True)).all(axis=0)
    return steady


# ---- Optuna's evaluators on arrays


@dataclass(frozen=True)
class _Column:
    """Values of one gene on the cube, (T,); trials where it is not active lack it."""

    gene: Gene
    values: Floats
    active: NDArray[np.bool_] | None

    def distribution(self) -> BaseDistribution:
        if self.gene.choices:
            return CategoricalDistribution(tuple(range(len(self.gene.choices))))
        return FloatDistribution(0.0, 1.0)

    def listed(self) -> list[Any]:
        """Return what stands in the trials: places on [0, 1], or indices of choices."""
        if self.gene.choices:
            count = len(self.gene.choices)
            return [min(int(value * count), count - 1) for value in self.values]
        return [float(value) for value in self.values]


class _Sample(Study):
    """Trials as a study, for evaluators that ask for one; nothing is stored anywhere."""

    def __init__(self, trials: list[FrozenTrial]) -> None:
        self._sample = trials

    @property
    def directions(self) -> list[StudyDirection]:
        return [StudyDirection.MAXIMIZE]

    def get_trials(self, deepcopy: bool = True, states: Any = None) -> list[FrozenTrial]:
        return self._sample


def _evaluated(
    evaluator: "BaseImportanceEvaluator", columns: Mapping[str, _Column], values: Floats
) -> Floats:
    """Return the raw importance of each column, in their order."""
    from optuna.importance import get_param_importances  # loads scikit-learn, which takes seconds

    kinds = {name: column.distribution() for name, column in columns.items()}
    lists = {name: column.listed() for name, column in columns.items()}
    now = datetime.now()
    trials = []
    for row, value in enumerate(values):
        names = [n for n, column in columns.items() if column.active is None or column.active[row]]
        trials.append(
            FrozenTrial(
                number=row,
                state=TrialState.COMPLETE,
                value=float(value),
                datetime_start=now,
                datetime_complete=now,
                params={name: lists[name][row] for name in names},
                distributions={name: kinds[name] for name in names},
                user_attrs={},
                system_attrs={},
                intermediate_values={},
                trial_id=row,
            )
        )
    present = [n for n, column in columns.items() if column.active is None or column.active.any()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental; rare regimes of a conditional gene
        found = get_param_importances(
            _Sample(trials), evaluator=evaluator, params=present, normalize=False
        )
    scores = np.array([found.get(name, 0.0) for name in columns], dtype=np.float64)
    return np.where(np.isfinite(scores), np.maximum(scores, 0.0), 0.0)


def _fenced(values: Floats) -> Floats:
    """Pull collapsed trials up to the lower fence of a box plot: variance is not theirs alone."""
    low, high = np.quantile(values, (0.25, 0.75))
    fenced: Floats = np.maximum(values, low - 1.5 * (high - low))
    return fenced


def _without_trend(values: Floats) -> Floats:
    """Return the values less the median of their neighbours in the order of the search."""
    windows = [values[max(0, row - WINDOW) : row + WINDOW + 1] for row in range(len(values))]
    trend: Floats = np.array([np.median(window) for window in windows])
    return values - trend


def normalised(scores: Floats) -> Floats:
    total = float(scores.sum())
    return scores / total if total > 0 else np.zeros(len(scores))
