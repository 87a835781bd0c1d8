"""A trial that a worker has, and how long it may take or be silent."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from optuna import Trial
from optuna.trial import FrozenTrial

from evolve.config import StudyConfig
from evolve.fidelity import may_be_pruned
from evolve.record import SEARCH, trial_seed
from evolve.space import Space
from evolve.trial_batch import together
from evolve.worker_options import WorkerOptions

UNKNOWN_SILENCE = 6 * 3600.0  # seconds that the first trials may be silent
LEAST_SILENCE = 15 * 60.0  # ... that every trial may
TIMES_SILENCE = 20.0  # as long as the longest silence after which a sign of life came


@dataclass
class Live:
    """A trial that a worker has; `spent` seconds in earlier attempts, `began` this one."""

    trial: Trial
    may_stop: bool
    deaths: int = 0
    out_of_memory: bool = False
    alone: bool = False  # it ran out of memory: no other trial shall be on its device
    steps: set[int] = field(default_factory=set)
    stopped: bool = False
    spent: float = 0.0
    began: float = 0.0
    sign: float = 0.0  # when it last showed that it is alive
    over_time: str = ""  # why it was killed, if its time is over

    @property
    def number(self) -> int:
        """Number of the trial."""
        return self.trial.number

    @property
    def seconds(self) -> float:
        """How long the trial took so far, its earlier attempts included."""
        return self.spent + time.monotonic() - self.began


def as_kept(trial: Trial) -> FrozenTrial:
    """Return a trial of ours as the storage has it, without asking: nobody else writes to it.

    It is a copy that stays as it is: a tracker's thread may read it later.
    """
    return copy.deepcopy(trial._cached_frozen_trial)


def complete_trial(trial: Trial, space: Space, config: StudyConfig) -> Live:
    """Give a new or reopened trial what it lacks of values and seed."""
    kinds = dict(space.distributions())
    # A repeat of a finalist keeps all its values, also of a gene that was locked since then.
    fixed = trial._fixed_params
    kinds |= {gene.name: gene.distribution() for gene in config.space.genes if gene.name in fixed}
    own = {"kind": SEARCH, "seed": trial_seed(config.study.seed, trial.number)}
    with together(trial):
        for name, distribution in kinds.items():
            trial._suggest(name, distribution)  # what `ask` does; values already there stay
        for name, value in own.items():
            if name not in trial.user_attrs:
                trial.set_user_attr(name, value)
    frozen = as_kept(trial)
    live = Live(trial, may_be_pruned(frozen), steps=set(frozen.intermediate_values))
    live.spent = float(trial.user_attrs.get("spent", 0.0))
    return live


class Limits:
    """The time that trials may take, by the options or by what trials took so far."""

    def __init__(self, options: WorkerOptions, now: Callable[[], float] = time.monotonic) -> None:
        self._hours, self._minutes = options.trial_hours, options.silent_minutes
        self._longest: float | None = None  # silence of a trial that lived, in seconds
        self._now = now

    def sign(self, live: Live) -> None:
        """Note a sign of life."""
        now = self._now()
        self._longest = max(self._longest or 0.0, now - live.sign)
        live.sign = now

    def over(self, live: Live) -> str:
        """Return in words that a trial has used up its time; else nothing."""
        if self._hours is not None and live.seconds > self._hours * 3600:
            return f"time limit: it ran for trial_hours={self._hours:g}"
        return ""

    def silent(self, live: Live) -> str:
        """Return in words that a trial must hang; else nothing."""
        silence = self._now() - live.sign
        return f"no sign of life for {silence:.0f} s" if silence > self._longest_allowed() else ""

    def _longest_allowed(self) -> float:
        if self._minutes is not None:
            return 60.0 * self._minutes
        if self._longest is None:
            return UNKNOWN_SILENCE
        return max(LEAST_SILENCE, TIMES_SILENCE * self._longest)


class Every:
    """True once in so many seconds; not at the very first."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._now = seconds, now
        self._last = now()

    def due(self) -> bool:
        """Return whether the time has come, and begin to wait anew if so."""
        if self._now() - self._last < self._seconds:
            return False
        self._last = self._now()
        return True
