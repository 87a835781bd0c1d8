"""The problems of the search benchmark: test functions with and without noise, and real trainings.

Everything is a function of the problem's name, the benchmark seed and the trial's seed. The search
sees names, ranges and start values only; `true` is what the report compares.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.search_trainings import TRAININGS
from evolve.space import Params, Space

# (BBOB function, dimension): every second noisy one has the loud noise of LOUD
NOISE_FREE = ((1, 24), (3, 12), (8, 12), (10, 24), (14, 12), (17, 24), (21, 12))
NOISY = ((1, 12), (3, 24), (8, 24), (10, 12), (13, 12), (17, 12), (21, 24))
LOUD = (1, 8, 13, 21)
NAMES: tuple[str, ...] = (
    *(f"bbob-f{function:02}-d{dimension}" for function, dimension in NOISE_FREE),
    *(f"noisy-f{function:02}-d{dimension}" for function, dimension in NOISY),
    *(f"real-{name}" for name in TRAININGS),
)
GROUPS = ("noise-free", "noisy", "real")
EXAM = 2**40  # first seed of the trainings behind a true value; a trial's seed is below 2**32
EXAMS = 32

Point = NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """A function to maximise with known-good start values.

    `measure(params, seed)` returns the value after each epoch (one where there are no epochs);
    `noise_sd` is the standard deviation of one measurement; `best` is the true optimum, None
    where it is not known.
    """

    name: str
    group: str
    space: dict[str, dict[str, Any]]
    start: Params
    noise_sd: float
    best: float | None
    epochs: int  # 1: nothing to report before the end
    measure: Callable[[Params, int], list[float]]
    true: Callable[[Params], float]

    def evaluate(self, params: Params, seed: int) -> float:
        """Return one noisy value; the noise comes from the seed alone."""
        return self.measure(params, seed)[-1]

    def curve(self, params: Params, seed: int) -> list[float] | None:
        """Return the value after each epoch, the last as `evaluate`; None without epochs."""
        return self.measure(params, seed) if self.epochs > 1 else None


def make(name: str, seed: int) -> Problem:
    """Return a problem; the seed selects instance and start values, or the subset of the data.

    Raises: ValueError.
    """
    if name not in NAMES:
        raise ValueError(f"problem {name} is not known; allowed: {', '.join(NAMES)}")
    kind, _, rest = name.partition("-")
    if kind == "real":
        return _real(name, rest, seed)
    function, dimension = (int(part[1:]) for part in rest.split("-"))
    return _bbob(name, function, dimension, seed)


def group_of(name: str) -> str:
    """Return the group of a problem."""
    return {"bbob": "noise-free", "noisy": "noisy", "real": "real"}[name.partition("-")[0]]


def chosen(words: str) -> list[str]:
    """Return the problems of a comma-separated list of groups, names and beginnings of names.

    Raises: ValueError.
    """
    if words == "all":
        return list(NAMES)
    names = []
    for word in words.split(","):
        found = [name for name in NAMES if group_of(name) == word or name.startswith(word)]
        if not found:
            raise ValueError(f"no problem or group is called {word}; allowed: {', '.join(NAMES)}")
        names += [name for name in found if name not in names]
    return names


def bbob_space(dimension: int) -> dict[str, dict[str, Any]]:
    """Return ranges of three kinds in turn: 0 to 1, logarithmic, and with negative values."""
    kinds: tuple[dict[str, Any], ...] = (
        {"low": 0.0, "high": 1.0},
        {"low": 1e-5, "high": 1e-1, "log": True},
        {"low": -20.0, "high": 60.0},
    )
    return {f"x{index:02}": dict(kinds[index % 3]) for index in range(dimension)}


def _bbob(name: str, function: int, dimension: int, seed: int) -> Problem:
    import ioh

    problem = ioh.get_problem(function, seed + 1, dimension, ioh.ProblemClass.BBOB)
    keys = bbob_space(dimension)
    space = Space.from_dict(keys)
    best = -float(problem.optimum.y)

    def on_cube(place: Point) -> float:
        return -float(problem((10.0 * place - 5.0).tolist()))

    def true(params: Params) -> float:
        return on_cube(space.to_unit(params))

    optimum = (np.array(problem.optimum.x) + 5.0) / 10.0
    start = space.from_unit(known_good(on_cube, optimum, np.random.default_rng([seed, function])))
    loud = 0.3 if function in LOUD else 0.1
    noise = loud * (best - true(start)) if group_of(name) == "noisy" else 0.0

    def measure(params: Params, trial_seed: int) -> list[float]:
        value = true(params)
        if noise:
            value += noise * float(np.random.default_rng(trial_seed).standard_normal())
        return [value]

    return Problem(name, group_of(name), keys, start, noise, best, 1, measure, true)


def known_good(value: Callable[[Point], float], optimum: Point, rng: np.random.Generator) -> Point:
    """Return a point in some distance of the optimum that few uniform points are better than.

    It is better than the best 2 % of uniform points, and leaves a gap to the optimum of at least
    5 % of theirs. Where the usual distance does not do, it is made smaller.
    """
    dimension = len(optimum)
    uniform = np.sort([value(point) for point in rng.random((1000, dimension))])
    best, good = value(optimum), float(uniform[-20])
    for attempt in range(2000):
        deviation = 0.2 * 0.9 ** (attempt // 20)
        place = np.clip(optimum + deviation * rng.standard_normal(dimension), 0.0, 1.0)
        reached = value(place)
        if reached > good and best - reached > 0.05 * (best - good):
            return place
    raise RuntimeError(f"no start values near an optimum in {dimension} dimensions")


def _real(name: str, training: str, seed: int) -> Problem:
    kind = TRAININGS[training]
    measure = kind.prepare(seed)
    known: dict[str, float] = {}

    def values(params: Params) -> list[float]:
        return [measure(params, EXAM + index)[-1] for index in range(EXAMS)]

    def true(params: Params) -> float:
        key = repr(sorted(params.items()))
        if key not in known:
            known[key] = float(np.mean(values(params)))
        return known[key]

    measured = values(kind.start)
    noise = float(np.std(measured, ddof=1))
    return Problem(
        name, "real", kind.space, dict(kind.start), noise, None, kind.epochs, measure, true
    )
