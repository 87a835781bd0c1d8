"""What has been tried: whether values are new, which trials were best, where trials failed.

A finished trial never changes, so each is looked at once, however long the study is; what is said
of a study is a function of its trials alone.
"""

import bisect
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from evolve.gene import DEFAULT_SIGMA
from evolve.record import CONFIRM, COUNTED, excess, kind_of
from evolve.space import Params, Space

NEAR = 1.0  # a failed trial warns up to this distance: sigmas a gene, root mean square
WARNINGS = 2  # failed trials that must be nearer than any trial that went well
REMEMBERED = 50  # last failed, and last good trials that are compared with

Rank = tuple[float, float, int, FrozenTrial]


class Seen:
    """The trials of a search, in the order of their numbers; repeats of known values are left out.

    Args:
        start: values that stand in for those that a trial does not have.
    """

    def __init__(
        self,
        space: Space,
        trials: Sequence[FrozenTrial],
        start: Mapping[str, Any],
        *,
        maximize: bool = True,
    ) -> None:
        self.space = space
        self.start = dict(start)
        self.running: list[FrozenTrial] = []  # with values
        self.finished: list[FrozenTrial] = []
        self._sign = -1.0 if maximize else 1.0
        self._counts: Counter[Hashable] = Counter()
        self._ranks: list[Rank] = []  # of complete trials: excess, signed value, number
        self._failed: list[FrozenTrial] = []
        self._good: list[FrozenTrial] = []
        self._done = 0
        self._open: list[int] = []  # places in the list of trials that had not ended
        self.update(trials)

    def update(self, trials: Sequence[FrozenTrial], current: int = -1) -> None:
        """Look at what is new in the whole list of trials; number `current` is being asked for."""
        if len(trials) < self._done:
            return  # an older list: another thread was faster
        places = [*self._open, *range(self._done, len(trials))]
        self._done = len(trials)
        self._open, self.running = [], []
        for place in places:
            trial = trials[place]
            if kind_of(trial) == CONFIRM:
                continue
            if trial.state.is_finished():
                self._absorb(trial)
            else:
                self._open.append(place)
                if trial.params and trial.number != current:
                    self.running.append(trial)

    def __len__(self) -> int:
        return len(self.finished) + len(self.running)

    def has(self, params: Params) -> bool:
        """Return whether a trial has these values; running, failed and pruned ones count."""
        return self.count(params) > 0

    def count(self, params: Params) -> int:
        """Return how many trials have these values."""
        key = self._key(params)
        return self._counts[key] + sum(self._key(trial.params) == key for trial in self.running)

    def best(self, count: int) -> list[FrozenTrial]:
        """Return complete trials, best first; those that keep all limits go before the others."""
        return [trial for *_, trial in self._ranks[:count]]

    def sample(self, count: int) -> list[FrozenTrial]:
        """Return all trials, or of more than `count` finished ones the best and the latest."""
        if len(self.finished) <= count:
            return [*self.finished, *self.running]
        half = count // 2
        kept = {trial.number: trial for trial in [*self.best(half), *self.finished[-half:]]}
        kept |= {trial.number: trial for trial in self._failed[-REMEMBERED:]}
        return [*(kept[number] for number in sorted(kept)), *self.running]

    def cube(self, trials: Sequence[FrozenTrial]) -> NDArray[Any]:
        """Return the places of trials on the cube, (trials, genes); missing genes at the start."""
        places = [self.space.to_unit({**self.start, **trial.params}) for trial in trials]
        return np.array(places).reshape(len(places), len(self.space.genes))

    def warns_of(self, params: Params) -> bool:
        """Return whether failed trials are near, and nearer than any trial that went well."""
        if len(self._failed) < WARNINGS:
            return False
        sigma = np.array([gene.sigma or DEFAULT_SIGMA for gene in self.space.genes])
        place = self.space.to_unit(params)

        def distances(trials: Sequence[FrozenTrial]) -> NDArray[Any]:
            return np.asarray(np.sqrt((((self.cube(trials) - place) / sigma) ** 2).mean(axis=1)))

        warning = np.sort(distances(self._failed[-REMEMBERED:]))[WARNINGS - 1]
        nearest = distances(self._good[-REMEMBERED:]).min() if self._good else np.inf
        return bool(warning < min(NEAR, nearest))

    def _absorb(self, trial: FrozenTrial) -> None:
        bisect.insort(self.finished, trial, key=_number)
        self._counts[self._key(trial.params)] += 1
        if trial.state == TrialState.FAIL:
            bisect.insort(self._failed, trial, key=_number)
        elif trial.state in COUNTED:
            bisect.insort(self._good, trial, key=_number)
        if trial.state == TrialState.COMPLETE and (values := trial.values):
            rank = (excess(trial), self._sign * values[0], trial.number, trial)
            bisect.insort(self._ranks, rank, key=lambda rank: rank[:3])

    def _key(self, params: Mapping[str, Any]) -> Hashable:
        values = (params.get(name, self.start[name]) for name in self.space.names)
        return tuple((isinstance(value, bool), _hashable(value)) for value in values)


def _number(trial: FrozenTrial) -> int:
    return trial.number


def _hashable(value: Any) -> Hashable:
    plain = value is None or isinstance(value, bool | int | float | str)
    return value if plain else repr(value)
