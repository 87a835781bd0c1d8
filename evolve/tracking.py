"""The MLflow record of a study: one parent run, one nested run per trial, written by one process.

Optuna's storage is the truth and MLflow a copy of it: `sync` makes the copy agree, and resuming is
nothing but that. A fault of the tracker is logged once and never stops or long delays a study.
"""

import logging
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import optuna
from optuna.trial import FrozenTrial, TrialState

from evolve import record
from evolve.config import StudyConfig, TrackingOptions
from evolve.errors import RunFailed, UserError
from evolve.record import Points

log = logging.getLogger(__name__)

UI_PORT = 5000
MAX_FAULTS = 3  # one after another, or
MAX_LOST_SECONDS = 60.0  # spent on faults in all: then tracking is off until the study ends
FLUSH_SECONDS = 15.0  # the curve of a running trial in the browser is at most this old
STATUS = {
    TrialState.COMPLETE: "FINISHED",
    TrialState.PRUNED: "KILLED",
    TrialState.FAIL: "FAILED",
    TrialState.RUNNING: "RUNNING",
    TrialState.WAITING: "KILLED",
}
STUDY_FILES = ("trials.csv", "best.yaml", "report.html", "*.png")
NOTE = (
    "Studies of `python -m evolve`: one run per study, its trials nested under it with the tag "
    '`evolve.kind = "trial"`. `python -m evolve ui` prints links to the pages worth opening.'
)
# Only our own calls see these. MLflow reads them from the environment and has no argument for the
# retries; without them one call to a server that is down takes about four minutes.
LIMITS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

Links = list[tuple[str, str]]  # (label, url)


class Tracker(Protocol):
    """What the study calls, from its own process only. No method raises because of the tracker."""

    def start(self, study: optuna.Study) -> None:
        """Open the record and make it agree with the study; call before workers start."""

    def sync(self, study: optuna.Study) -> int:
        """Write what the record lacks; return the number of runs written."""

    def trial_started(self, trial: FrozenTrial, worker: str) -> None:
        """Show a trial as running; a trial that is taken up again goes on in its own run."""

    def trial_epoch(self, number: int, step: int, metrics: dict[str, float]) -> None:
        """Keep one epoch's metrics; they are written in batches."""

    def trial_finished(
        self, trial: FrozenTrial, directory: Path, description: dict[str, Any]
    ) -> None:
        """Write a finished trial: fitness first, metrics, curves, files, state."""

    def finish(self, study: optuna.Study, summary: dict[str, Any] | None) -> None:
        """Write what is missing, the winner's weights and the summary; close the parent run."""

    def links(self) -> Links:
        """Return labels and addresses of the pages worth opening."""


class NullTracker:
    """Tracking is off: every method does nothing."""

    def start(self, study: optuna.Study) -> None: ...

    def sync(self, study: optuna.Study) -> int:
        return 0

    def trial_started(self, trial: FrozenTrial, worker: str) -> None: ...

    def trial_epoch(self, number: int, step: int, metrics: dict[str, float]) -> None: ...

    def trial_finished(
        self, trial: FrozenTrial, directory: Path, description: dict[str, Any]
    ) -> None: ...

    def finish(self, study: optuna.Study, summary: dict[str, Any] | None) -> None: ...

    def links(self) -> Links:
        return []


def open_tracker(config: StudyConfig, directory: Path) -> Tracker:
    """Return the tracker that a configuration asks for; nothing is opened before `start`.

    `directory` is the study's folder. MLFLOW_TRACKING_URI stands in for the default store, not for
    one that the configuration chose.
    """
    uri = config.tracking.uri
    if uri is None:
        return NullTracker()
    if uri == TrackingOptions().uri:
        uri = os.environ.get("MLFLOW_TRACKING_URI") or uri
    return MlflowTracker(uri, config.tracking.experiment, directory, _note(config))


@dataclass
class _Run:
    """One trial's run, `written` its points in the store.

    `whole`: every epoch of the trial went through this process.
    """

    id: str
    artifacts: str
    status: str
    state: str = ""
    params: set[str] = field(default_factory=set)
    written: set[tuple[str, int]] = field(default_factory=set)
    whole: bool = False


class MlflowTracker:
    """Writes to an MLflow store or server through `MlflowClient.log_batch`."""

    def __init__(self, uri: str, experiment: str, directory: Path, note: str = "") -> None:
        self._uri, self._name, self._directory = absolute_uri(uri), experiment, directory
        self._note = note
        self._client: Any = None
        self._experiment = self._parent = ""
        self._study: optuna.Study | None = None
        self._runs: dict[int, _Run] = {}
        self._points: dict[int, Points] = {}  # not yet written
        self._flushed: dict[int, float] = {}
        self._values: dict[int, float] = {}  # fitness of the generations
        self._behind = True  # the record may lack something
        self._faults, self._lost_seconds = 0, 0.0

    # ---- what the study calls

    def start(self, study: optuna.Study) -> None:
        self.sync(study)

    def sync(self, study: optuna.Study) -> int:
        self._study, self._parent = study, ""
        if not self._attempt(lambda: None):
            return 0
        trials = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
        written = [
            self._attempt(self._write, trial, self._folder(trial), {})
            for trial in trials.values()
            if self._lacks(trial)
        ]
        for number, run in self._runs.items():
            left = number not in trials or trials[number].state == TrialState.WAITING
            if run.status == "RUNNING" and left:  # by a process that died
                self._attempt(self._close, run, "abandoned")
        self._behind = not all(written)
        return sum(written)

    def trial_started(self, trial: FrozenTrial, worker: str) -> None:
        self._attempt(self._open_run, trial, {"evolve.worker": worker})

    def trial_epoch(self, number: int, step: int, metrics: dict[str, float]) -> None:
        now = time.time()
        points = self._points.setdefault(number, {})
        for name, value in record.epoch_metrics(metrics).items():
            points[name, step] = (value, int(now * 1000))
        if now - self._flushed.setdefault(number, now) >= FLUSH_SECONDS and number in self._runs:
            self._flushed[number] = now
            self._attempt(self._flush, number)

    def trial_finished(
        self, trial: FrozenTrial, directory: Path, description: dict[str, Any]
    ) -> None:
        self._behind |= not self._attempt(self._write, trial, directory, description)
        self._points.pop(trial.number, None)
        self._flushed.pop(trial.number, None)

    def finish(self, study: optuna.Study, summary: dict[str, Any] | None) -> None:
        if self._behind or self._faults:
            self._faults, self._lost_seconds = 0, 0.0  # one more chance: the server may be back
            self.sync(study)
        if not self._attempt(self._finish, study, summary or {}) or self._behind:
            log.warning("MLflow lacks a part of this study; running the study again writes it")

    def links(self) -> Links:
        found: Links = []
        self._attempt(self._add_links, found)
        return found

    # ---- faults

    def _attempt(self, call: Callable[..., None], *arguments: Any) -> bool:
        """Call with the parent run open; False if that failed or tracking has given up."""
        if self._faults >= MAX_FAULTS or self._lost_seconds > MAX_LOST_SECONDS:
            return False
        started = time.monotonic()
        try:
            with _limits():
                if not self._parent:
                    self._connect()
                call(*arguments)
        except Exception as error:  # MLflow, SQLAlchemy, requests, a full disk: the study goes on
            self._lost_seconds += time.monotonic() - started
            self._faults, self._behind = self._faults + 1, True
            level = logging.WARNING if self._faults == 1 else logging.DEBUG
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            log.log(level, "MLflow at %s: %s; the study goes on", shown_uri(self._uri), reason)
            return False
        self._faults = 0
        return True

    def _connect(self) -> None:
        """Open store, experiment and parent run, and read which trials have runs already."""
        study = self._study
        assert study is not None, "start() comes first"
        self._client = open_client(self._uri)
        self._experiment = open_experiment(self._client, self._uri, self._name)
        if "tracking_id" not in study.user_attrs:  # a study's name may be used again, this not
            study.set_user_attr("tracking_id", uuid.uuid4().hex)
        identity = {"evolve.id": study.user_attrs["tracking_id"], "evolve.kind": "study"}
        parents = list(_search(self._client, self._experiment, identity))
        if parents:
            parent = parents[-1].info.run_id
            self._client.update_run(parent, status="RUNNING")
        else:
            name = study.study_name
            tags = {**identity, "evolve.study": name, "mlflow.note.content": self._note}
            made = self._client.create_run(self._experiment, tags=tags, run_name=f"study {name}")
            parent = made.info.run_id
        self._read_runs(parent)
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        self._values = {t.number: record.fitness_of(t) for t in done if record.is_generation(t)}
        self._parent = parent

    def _read_runs(self, parent: str) -> None:
        self._runs = {}
        for found in _search(self._client, self._experiment, {"mlflow.parentRunId": parent}):
            tags, info = found.data.tags, found.info
            if not tags.get("evolve.generation", "").isdigit():
                continue
            number = int(tags["evolve.generation"])
            if number in self._runs:  # found from new to old: the oldest stays
                self._client.delete_run(self._runs[number].id)
            state, params = tags.get("evolve.state", ""), set(found.data.params)
            self._runs[number] = _Run(info.run_id, info.artifact_uri, info.status, state, params)

    # ---- one trial

    def _lacks(self, trial: FrozenTrial) -> bool:
        run, state = self._runs.get(trial.number), trial.state
        if not state.is_finished():
            return False
        return run is None or (run.status, run.state) != (STATUS[state], state.name.lower())

    def _folder(self, trial: FrozenTrial) -> Path:
        named = Path(str(trial.user_attrs.get("directory", os.devnull)))
        return named if named.is_dir() else self._directory / named

    def _open_run(self, trial: FrozenTrial, more_tags: Mapping[str, str]) -> None:
        """Create the trial's run or open it again."""
        tags = {**record.tags_of(trial), **more_tags, "evolve.state": "running"}
        run = self._runs.get(trial.number)
        if run is None:
            tags |= {"mlflow.parentRunId": self._parent, "mlflow.source.name": "python -m evolve"}
            tags |= {"evolve.study": self._study.study_name if self._study else ""}
            begin = record.milliseconds(trial.datetime_start)
            made = self._client.create_run(self._experiment, begin, tags, record.run_name(trial))
            run = _Run(made.info.run_id, made.info.artifact_uri, "RUNNING")
            run.whole = trial.state == TrialState.RUNNING
            self._runs[trial.number], tags = run, {}
        elif run.status != "RUNNING":
            self._client.update_run(run.id, status="RUNNING")
        run.status, run.state = "RUNNING", "running"
        self._log(run, {}, record.params_of(trial), tags)

    def _flush(self, number: int) -> None:
        run = self._runs[number]
        self._read_written(run)
        points = self._points[number]
        self._log(run, {key: p for key, p in points.items() if key not in run.written}, {}, {})
        points.clear()

    def _write(self, trial: FrozenTrial, folder: Path, description: dict[str, Any]) -> None:
        """Write a finished trial's run; what it holds already stays as it is."""
        if trial.number not in self._runs:
            self._open_run(trial, {})
        run = self._runs[trial.number]
        self._read_written(run)
        points = {} if run.whole else record.recorded_curve(trial, folder)
        points |= self._points.get(trial.number, {})
        points = {key: point for key, point in points.items() if key not in run.written}
        numbers, params, tags = record.described(description, folder)
        end = record.milliseconds(trial.datetime_complete)
        last = max((step for _, step in [*points, *run.written]), default=0)
        for name, value in {**record.final_metrics(trial), **numbers}.items():
            points[name, last] = (value, end)
        self._log(run, points, params | record.params_of(trial), tags | record.tags_of(trial))
        artifacts = _artifacts(run.artifacts, self._uri)
        for path, place in record.files_of(folder):
            artifacts.log_artifact(str(path), place or None)
        self._client.set_terminated(run.id, STATUS[trial.state], end)
        run.status, run.state, run.whole = STATUS[trial.state], trial.state.name.lower(), True
        self._log_progress(trial, end)

    def _read_written(self, run: _Run) -> None:
        """Learn which points an earlier process wrote."""
        if run.whole or run.written:
            return
        for name in self._client.get_run(run.id).data.metrics:
            history = self._client.get_metric_history(run.id, name)
            run.written |= {(name, metric.step) for metric in history}

    def _log_progress(self, trial: FrozenTrial, moment: int) -> None:
        """Extend the two curves of the parent run: fitness and best fitness by trial number."""
        if trial.state != TrialState.COMPLETE or not record.is_generation(trial):
            return
        self._values[trial.number] = record.fitness_of(trial)
        best = max(value for number, value in self._values.items() if number <= trial.number)
        points = {"best_fitness": best, "trial_fitness": self._values[trial.number]}
        progress = {(name, trial.number): (v, moment) for name, v in record.clean(points).items()}
        self._log(_Run(self._parent, "", "RUNNING"), progress, {}, {})

    def _log(
        self, run: _Run, points: Points, params: Mapping[str, str], tags: Mapping[str, str]
    ) -> None:
        """Write with as few calls as MLflow's limits allow; parameters are never changed."""
        from mlflow.entities import Metric, Param, RunTag

        # `fitness` leads, because the compare page preselects the metric that was logged first.
        ordered = sorted(points.items(), key=lambda item: item[0][0] != "fitness")
        metrics = [Metric(name, v, moment, step) for (name, step), (v, moment) in ordered]
        news = [Param(name, value) for name, value in params.items() if name not in run.params]
        labels = [RunTag(name, value) for name, value in tags.items()]
        while metrics or news or labels:
            self._client.log_batch(run.id, metrics[:800], news[:100], labels[:100])
            metrics, news, labels = metrics[800:], news[100:], labels[100:]
        run.params |= set(params)
        run.written |= set(points)

    # ---- the end

    def _close(self, run: _Run, state: str) -> None:
        self._client.set_tag(run.id, "evolve.state", state)
        self._client.set_terminated(run.id, "KILLED")
        run.status, run.state = "KILLED", state

    def _finish(self, study: optuna.Study, summary: dict[str, Any]) -> None:
        interrupted = [run for run in self._runs.values() if run.status == "RUNNING"]
        for run in interrupted:
            self._close(run, "interrupted")
        winner = record.best_trial(study.get_trials(deepcopy=False))
        tags: dict[str, str] = {}
        if winner is not None and winner.number in self._runs:
            tags = self._crown(winner)
        numbers, _, words = record.described({"summary": summary}, Path(os.devnull))
        end = record.milliseconds(None)
        points = {(name.removeprefix("info/"), 0): (v, end) for name, v in numbers.items()}
        self._log(_Run(self._parent, "", "RUNNING"), points, {}, words | tags)
        info = self._client.get_run(self._parent).info
        artifacts = _artifacts(info.artifact_uri, self._uri)
        for path in (path for pattern in STUDY_FILES for path in self._directory.glob(pattern)):
            artifacts.log_artifact(str(path))
        self._client.set_terminated(self._parent, "KILLED" if interrupted else "FINISHED")

    def _crown(self, winner: FrozenTrial) -> dict[str, str]:
        """Give the winner's run its weights, and take those of an earlier winner away."""
        run, weights = self._runs[winner.number], self._folder(winner) / "weights" / "best.pt"
        before = self._client.get_run(self._parent).data.tags.get("evolve.best_run", run.id)
        if before != run.id:
            old = next(known for known in self._runs.values() if known.id == before)
            _artifacts(old.artifacts, self._uri).delete_artifacts("weights")
        if weights.is_file():
            _artifacts(run.artifacts, self._uri).log_artifact(str(weights), "weights")
        return {"evolve.best_run": run.id, "evolve.best_trial": str(winner.number)}
