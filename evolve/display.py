"""A study's progress on standard error: a live table in a terminal, one line a trial elsewhere."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from evolve.record import CONFIRM, feasible, fitness, generations, kind_of, ranking, reason_of

LAST_TRIALS = 8


@dataclass
class Progress:
    """The counts that both displays show."""

    total: int = 0
    workers: int = 1
    counted: int = 0
    failed: int = 0
    best: FrozenTrial | None = None
    running: dict[int, str] = field(default_factory=dict)  # number: how far it is
    last: deque[FrozenTrial] = field(default_factory=lambda: deque(maxlen=LAST_TRIALS))
    seconds: list[float] = field(default_factory=list)  # of the trials that this run finished
    seconds_left: Callable[[], float | None] = lambda: None  # until a limit of time ends it all
    searching: bool = True  # repeats with other seeds bring no generation nearer

    def load(self, trials: Sequence[FrozenTrial]) -> None:
        """Count the trials that are there already."""
        self.counted = generations(trials)
        self.failed = sum(trial.state == TrialState.FAIL for trial in trials)
        self.best = next(iter(ranking(trials)), None)

    def finish(self, trial: FrozenTrial) -> None:
        """Count a finished trial."""
        self.running.pop(trial.number, None)
        self.last.append(trial)
        self.failed += trial.state == TrialState.FAIL
        self.counted += generations([trial])
        self.best = next(iter(ranking([*([self.best] if self.best else []), trial])), None)
        if trial.state != TrialState.FAIL:
            self.seconds.append(float(trial.user_attrs.get("seconds", 0.0)))

    def line(self) -> str:
        """Return the counts in one line."""
        best = (
            f"best {fitness(self.best):.4f} (trial {self.best.number})"
            if self.best
            else "no best yet"
        )
        parts = [f"{self.counted}/{self.total}", best, f"running {len(self.running)}"]
        parts += [f"failed {self.failed}", *([self._eta()] if self._eta() else [])]
        return ", ".join(parts)

    def _eta(self) -> str:
        left = max(0, self.total - self.counted)
        if not (self.seconds and left and self.searching):
            return ""
        recent = self.seconds[-20:]
        expected = left * sum(recent) / len(recent) / self.workers
        limit = self.seconds_left()
        return f"ETA {duration(expected if limit is None else min(expected, limit))}"


class Display:
    """Shows progress; use it as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self.progress = Progress()
        self._live: Live | None = None
        self._drawn = 0.0

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def begin(self, trials: Sequence[FrozenTrial], total: int, workers: int) -> None:
        """Start with the trials of a study that is being opened."""
        self.progress.total, self.progress.workers = total, workers
        self.progress.load(trials)
        if self._console.is_terminal:
            self._live = Live(self._table(), console=self._console, auto_refresh=False)
            self._live.start()

    def close(self) -> None:
        """Leave the last picture standing."""
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            self._live.stop()
            self._live = None

    def notice(self, text: str) -> None:
        """Print a line for the person who watches."""
        self._console.print(escape(text), soft_wrap=True)

    def trial_started(self, trial: FrozenTrial) -> None:
        """Show a trial as running."""
        self.progress.running[trial.number] = "started"
        self.refresh()

    def trial_epoch(self, number: int, step: int) -> None:
        """Show how far a trial is."""
        self.progress.running[number] = f"step {step}"

    def trial_died(self, number: int) -> None:
        """Show a trial as waiting for a new worker."""
        self.progress.running.pop(number, None)

    def trial_finished(self, trial: FrozenTrial) -> None:
        """Show how a trial ended."""
        self.progress.finish(trial)
        if self._live is None:
            self.notice(f"{label(trial)}: {ending(trial)}; {self.progress.line()}")
        self.refresh()

    def refresh(self) -> None:
        """Draw the table again, at most a few times a second."""
        if self._live is not None and time.monotonic() - self._drawn > 0.2:
            self._drawn = time.monotonic()
            self._live.update(self._table(), refresh=True)

    def _table(self) -> Group:
        table = Table(box=None, pad_edge=False)
        for column in ("trial", "result"):
            table.add_column(column)
        for trial in self.progress.last:
            table.add_row(label(trial), escape(ending(trial)))
        for number, state in sorted(self.progress.running.items()):
            table.add_row(f"trial {number}", f"running, {state}", style="cyan")
        return Group(table, escape(self.progress.line()))


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
