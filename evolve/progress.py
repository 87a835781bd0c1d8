"""What a running study has come to: counts, best trials, running trials; and their words."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from evolve.glance import best_so_far, moves
from evolve.record import (
    CONFIRM,
    START,
    feasible,
    fitness,
    generations,
    kind_of,
    ranking,
    reason_of,
)

LAST_TRIALS = 60  # that a tall terminal can show
TOP_TRIALS = 10


@dataclass
class Running:
    """A trial on its way: `epoch`, counted from 1 (0: none has ended), and its fitness so far."""

    began: float  # time.monotonic()
    epoch: int = 0
    epochs: int | None = None  # of the whole trial
    fitness: float | None = None
    worker: str = ""
    memory: int = 0  # bytes that its worker holds; 0: not known


@dataclass
class Progress:
    """The counts that both displays show."""

    study: str = ""
    total: int = 0
    workers: int = 1
    epochs: int | None = None  # of a whole trial, if the settings say
    first_step: int = 1  # that trials report; an epoch counts from 1
    began: float = field(default_factory=time.monotonic)
    counted: int = 0
    failed: int = 0
    best: FrozenTrial | None = None
    top: list[FrozenTrial] = field(default_factory=list)  # the best few, best first
    start: FrozenTrial | None = None  # the start values' own trial
    curve: list[float] = field(default_factory=list)  # best so far after each complete trial
    pruned: int = 0
    running: dict[int, Running] = field(default_factory=dict)  # by number
    last: deque[FrozenTrial] = field(default_factory=lambda: deque(maxlen=LAST_TRIALS))
    seconds: list[float] = field(default_factory=list)  # of the trials that this run finished
    seconds_left: Callable[[], float | None] = lambda: None  # until a limit of time ends it all
    searching: bool = True  # repeats with other seeds bring no generation nearer
    _moves: dict[int, list[tuple[str, Any, Any]]] = field(default_factory=dict)

    def load(self, trials: Sequence[FrozenTrial]) -> None:
        """Count the trials that are there already."""
        self.counted = generations(trials)
        self.failed = sum(trial.state == TrialState.FAIL for trial in trials)
        self.pruned = sum(trial.state == TrialState.PRUNED for trial in trials)
        self.top = ranking(trials)[:TOP_TRIALS]
        self.best = next(iter(self.top), None)
        self.start = next((trial for trial in trials if _is_start(trial)), None)
        self.curve = best_so_far(trials)

    def reported(self, number: int, step: int, fitness: float | None) -> None:
        """Note how far a running trial is."""
        self.first_step = min(self.first_step, step)
        running = self.running.get(number)
        if running is not None:
            running.epoch, running.fitness = step + 1 - self.first_step, fitness

    def finish(self, trial: FrozenTrial) -> None:
        """Count a finished trial."""
        self.running.pop(trial.number, None)
        self.last.append(trial)
        self.failed += trial.state == TrialState.FAIL
        self.pruned += trial.state == TrialState.PRUNED
        self.counted += generations([trial])
        self.top = ranking([*self.top, trial])[:TOP_TRIALS]
        self.best = next(iter(self.top), None)
        self.start = self.start or (trial if _is_start(trial) else None)
        self.curve += [max([value, *self.curve[-1:]]) for value in best_so_far([trial])]
        if trial.state != TrialState.FAIL:
            self.seconds.append(float(trial.user_attrs.get("seconds", 0.0)))

    def moves_of(self, trial: FrozenTrial) -> list[tuple[str, Any, Any]]:
        """Return what a trial changed of the start values; remembered, as a screen asks often."""
        if self.start is None:
            return []
        if trial.number not in self._moves:
            self._moves[trial.number] = moves(trial, trial.params, self.start.params)
        return self._moves[trial.number]

    def line(self) -> str:
        """Return the counts in one line."""
        best = (
            f"best {fitness(self.best):.4f} (trial {self.best.number})"
            if self.best
            else "no best yet"
        )
        parts = [f"{self.counted}/{self.total}", best, f"running {len(self.running)}"]
        parts += [f"failed {self.failed}", *([self.eta()] if self.eta() else [])]
        return ", ".join(parts)

    def eta(self) -> str:
        """Return when the search will end, as far as it is known."""
        left = max(0, self.total - self.counted)
        if not (self.seconds and left and self.searching):
            return ""
        recent = self.seconds[-20:]
        expected = left * sum(recent) / len(recent) / self.workers
        limit = self.seconds_left()
        return f"ETA {duration(expected if limit is None else min(expected, limit))}"


def label(trial: FrozenTrial) -> str:
    """Return `trial 7`, or for a repeat what it repeats."""
    if kind_of(trial) != CONFIRM:
        return f"trial {trial.number}"
    attributes = trial.user_attrs
    return f"trial {trial.number} (trial {attributes['of']} again, seed {attributes['repeat'] + 1})"


def ending(trial: FrozenTrial) -> str:
    """Return in words how a trial ended."""
    if trial.state == TrialState.FAIL:
        return f"failed: {reason_of(trial)}"
    if trial.state == TrialState.PRUNED:
        return f"stopped early at {fitness(trial):.4f}"
    over = "" if feasible(trial) else ", beyond a limit"
    return f"fitness {fitness(trial):.4f}{over}"


def duration(seconds: float) -> str:
    """Return seconds in the units a person would say."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _is_start(trial: FrozenTrial) -> bool:
    return kind_of(trial) == START and trial.state == TrialState.COMPLETE
