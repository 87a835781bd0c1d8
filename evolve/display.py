"""A study's progress on standard error: a live screen in a terminal, one line a trial elsewhere."""

import time
from collections.abc import Mapping, Sequence

from optuna.trial import FrozenTrial
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape

from evolve.machine import Load
from evolve.progress import Progress, Running, ending, label
from evolve.screen import screen

PAUSE = 1.0  # seconds between two pictures, at least
LOAD_PAUSE = 2.0  # ... between two looks at what the machine does


class Display:
    """Shows progress; use it as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self.progress = Progress()
        self._live: Live | None = None
        self._drawn = 0.0
        self._load, self._load_text, self._load_read = Load(), "", 0.0

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def begin(
        self,
        trials: Sequence[FrozenTrial],
        total: int,
        workers: int,
        study: str = "",
        epochs: object = None,
    ) -> None:
        """Start with the trials of a study that is being opened; `epochs` as its settings say."""
        progress = self.progress
        progress.study, progress.total, progress.workers = study, total, workers
        progress.epochs = epochs if isinstance(epochs, int) else None
        progress.load(trials)
        if self._console.is_terminal:
            self._live = Live(self._picture(), console=self._console, auto_refresh=False)
            self._live.start()

    def close(self) -> None:
        """Leave the last picture standing."""
        if self._live is not None:
            self._live.update(self._picture(), refresh=True)
            self._live.stop()
            self._live = None

    def notice(self, text: str) -> None:
        """Print a line for the person who watches."""
        self._console.print(escape(text), soft_wrap=True)

    def trial_started(self, trial: FrozenTrial) -> None:
        """Show a trial as running."""
        epochs = trial.params.get("epochs", self.progress.epochs)
        self.progress.running[trial.number] = Running(
            time.monotonic(), epochs=epochs, worker=str(trial.user_attrs.get("worker", ""))
        )
        self.refresh()

    def trial_epoch(self, number: int, step: int, fitness: float | None = None) -> None:
        """Show how far a trial is, and its fitness so far."""
        self.progress.reported(number, step, fitness)

    def memory(self, held: Mapping[int, int]) -> None:
        """Show how many bytes the workers of the running trials hold."""
        for number, count in held.items():
            if number in self.progress.running:
                self.progress.running[number].memory = count

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
        """Draw the screen again, at most once a second; nothing is read from the study."""
        if self._live is not None and time.monotonic() - self._drawn > PAUSE:
            self._drawn = time.monotonic()
            self._live.update(self._picture(), refresh=True)

    def _picture(self) -> Group:
        now = time.monotonic()
        if not self._load_text or now - self._load_read > LOAD_PAUSE:
            self._load_text, self._load_read = self._load.text(), now
        size = self._console.size
        return screen(self.progress, self._load_text, size.width, size.height, now)
