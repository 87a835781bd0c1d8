"""What a study tells its record, and which record that is: MLflow or none."""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

from optuna import Study
from optuna.trial import FrozenTrial

from evolve import tracked
from evolve.config import StudyConfig
from evolve.mlflow_store import Links, store_uri
from evolve.mlflow_tracker import MlflowTracker, Record

log = logging.getLogger(__name__)

START_SECONDS = 30.0  # that a study waits at most until its record is open

T = TypeVar("T")


class Tracker(Protocol):
    """What the study calls, from its own process only. No method raises because of the tracker."""

    def start(self, study: Study) -> None:
        """Open the record and make it agree with the study; call before workers start."""

    def sync(self, study: Study) -> int:
        """Write what the record lacks; return the number of runs written."""

    def trial_started(self, trial: FrozenTrial, worker: str) -> None:
        """Show a trial as running; a trial that is taken up again goes on in its own run."""

    def trial_epoch(self, number: int, step: int, metrics: dict[str, float]) -> None:
        """Keep one epoch's metrics; they are written in batches."""

    def trial_finished(
        self, trial: FrozenTrial, directory: Path, description: dict[str, Any]
    ) -> None:
        """Write a finished trial: fitness, metrics, curves, files of its folder, state."""

    def finish(self, study: Study, summary: dict[str, Any] | None) -> bool:
        """Write what is missing, the winner and the summary; close the parent run.

        Without a summary the study was interrupted. Returns whether the record has all of it.
        """

    def links(self) -> Links:
        """Return labels and addresses of the pages worth opening."""


class NullTracker:
    """Tracking is off: every method does nothing."""

    def start(self, study: Study) -> None: ...

    def sync(self, study: Study) -> int:
        return 0

    def trial_started(self, trial: FrozenTrial, worker: str) -> None: ...

    def trial_epoch(self, number: int, step: int, metrics: dict[str, float]) -> None: ...

    def trial_finished(
        self, trial: FrozenTrial, directory: Path, description: dict[str, Any]
    ) -> None: ...

    def finish(self, study: Study, summary: dict[str, Any] | None) -> bool:
        return True

    def links(self) -> Links:
        return []


class BackgroundTracker:
    """Another tracker in a thread of its own: a server that is slow or away holds up no trial.

    Calls are carried out in their order; `sync`, `finish` and `links` wait for their turn.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._thread = ThreadPoolExecutor(1, "tracker")

    def start(self, study: Study) -> None:
        with suppress(TimeoutError):
            self._call(self._tracker.start, study).result(START_SECONDS)

    def sync(self, study: Study) -> int:
        return self._call(self._tracker.sync, study).result()

    def trial_started(self, trial: FrozenTrial, worker: str) -> None:
        self._call(self._tracker.trial_started, trial, worker)

    def trial_epoch(self, number: int, step: int, metrics: dict[str, float]) -> None:
        self._call(self._tracker.trial_epoch, number, step, metrics)

    def trial_finished(
        self, trial: FrozenTrial, directory: Path, description: dict[str, Any]
    ) -> None:
        self._call(self._tracker.trial_finished, trial, directory, description)

    def finish(self, study: Study, summary: dict[str, Any] | None) -> bool:
        return self._call(self._tracker.finish, study, summary).result()

    def links(self) -> Links:
        return self._call(self._tracker.links).result()

    def _call(self, method: Callable[..., T], *arguments: Any) -> "Future[T]":
        future = self._thread.submit(method, *arguments)
        future.add_done_callback(_tell_fault)
        return future


def _tell_fault(future: "Future[Any]") -> None:
    error = future.exception()
    if error is not None:  # such as the study's own storage, read from the thread
        log.warning("tracking: %s: %s", type(error).__name__, error)


def open_tracker(config: StudyConfig, directory: Path) -> Tracker:
    """Return the tracker that a configuration asks for; nothing is opened before `start`.

    `directory` is the study's folder.
    """
    uri = store_uri(config.tracking.uri)
    if uri is None:
        return NullTracker()
    columns = [f"metrics.`{tracked.metric_name(name)}`" for name in ("fitness", *config.fitness)]
    columns += [f"params.`{tracked.metric_name(name)}`" for name in config.space.names]
    record = Record(config.tracking.experiment, config.study.name, _note(config), columns)
    return MlflowTracker(uri, record, directory)


def _note(config: StudyConfig) -> str:
    """Return the parent run's description, Markdown; formulas in backticks keep their stars."""
    formula = " + ".join(f"{weight:g}*{name}" for name, weight in config.fitness.items())
    lines = [
        f"fitness = `{formula}`, maximised",
        f"objective `{config.objective}`, strategy `{config.strategy.name}`",
        *(f"{name} `{value}`" for name, value in config.settings.items()),
    ]
    return "\n".join(f"- {line}" for line in lines)
