"""The MLflow record of a study: one parent run, one nested run per trial, written by one process.

Optuna's storage is the truth and MLflow a copy of it: `sync` makes the copy agree, and resuming is
nothing but that. A fault of the tracker is logged once and never stops or long delays a study.
"""

import logging
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from evolve import tracked
from evolve.config import StudyConfig
from evolve.mlflow_store import Store, fault_line, is_server, limits, store_uri
from evolve.record import CONFIRM, fitness, kind_of, ranking
from evolve.tracked import Points
from evolve.ui import HOST, UI_PORT
from evolve.ui import serve as serve

log = logging.getLogger(__name__)

MAX_FAULTS = 3  # one after another, or
PATIENCE = 5.0  # seconds that a call may take before the rest counts as lost
MAX_LOST_SECONDS = 60.0  # spent on faults in all: then tracking is off until the study ends
FLUSH_SECONDS = 15.0  # the curve of a running trial in the browser is at most this old
STATUS = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED", TrialState.FAIL: "FAILED"}
STUDY_FILES = ("trials.csv", "best.yaml", "report.html", "*.png")

Links = list[tuple[str, str]]  # (label, address)


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

    def finish(self, study: Study, summary: dict[str, Any] | None) -> None:
        """Write what is missing, the winner's weights and the summary; close the parent run."""

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

    def finish(self, study: Study, summary: dict[str, Any] | None) -> None: ...

    def links(self) -> Links:
        return []


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


@dataclass(frozen=True)
class Record:
    """How a study is recorded: experiment, name, description (Markdown), columns of its table."""

    experiment: str
    name: str
    note: str = ""
    columns: list[str] = field(default_factory=list)


@dataclass
class _Run:
    """One trial's run.

    `written` are the points in the store, None: not read yet. `whole`: all its epochs went through
    this process.
    """

    id: str
    artifacts: str
    status: str
    state: str = ""
    params: set[str] = field(default_factory=set)
    written: set[tuple[str, int]] | None = None
    whole: bool = False


class MlflowTracker:
    """Writes to an MLflow store or server."""

    def __init__(self, uri: str, record: Record, directory: Path) -> None:
        self._uri, self._record, self._directory = uri, record, directory
        self._store: Store | None = None
        self._study: Study | None = None
        self._parent = ""
        self._runs: dict[int, _Run] = {}
        self._points: dict[int, Points] = {}  # not yet written
        self._flushed: dict[int, float] = {}
        self._values: dict[int, float] = {}  # fitness of the generations
        self._behind = True  # the record may lack something
        self._faults, self._lost_seconds, self._warned = 0, 0.0, False

    # ---- what the study calls

    def start(self, study: Study) -> None:
        self.sync(study)

    def sync(self, study: Study) -> int:
        self._study, self._store = study, None
        if not self._attempt(lambda store: None):
            return 0
        trials = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
        late = [trial for trial in trials.values() if self._lacks(trial)]
        written = [self._attempt(self._write, trial, self._folder(trial), {}) for trial in late]
        for number, run in self._runs.items():
            gone = number not in trials or trials[number].state == TrialState.WAITING
            if run.status == "RUNNING" and gone:  # left by a process that died
                self._attempt(self._close, run, "abandoned")
        self._behind = not all(written)
        return sum(written)

    def trial_started(self, trial: FrozenTrial, worker: str) -> None:
        self._attempt(self._open_run, trial, {"evolve.worker": worker})

    def trial_epoch(self, number: int, step: int, metrics: dict[str, float]) -> None:
        now = time.time()
        points = self._points.setdefault(number, {})
        for name, value in tracked.epoch_metrics(metrics).items():
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

    def finish(self, study: Study, summary: dict[str, Any] | None) -> None:
        if self._behind:
            self._faults, self._lost_seconds = 0, 0.0  # one more chance: a server may be back
            self.sync(study)
        reached = self._store is not None and self._attempt(self._finish, study, summary or {})
        if not reached or self._behind:
            log.warning("MLflow lacks a part of this study; running the study again writes it")

    def links(self) -> Links:
        found: Links = []
        base = self._uri if is_server(self._uri) else f"http://{HOST}:{UI_PORT}"

        def add(store: Store) -> None:
            found.extend(store.links(base.rstrip("/"), self._parent) if self._parent else ())

        self._attempt(add)
        return found

    # ---- faults

    def _attempt(self, call: Callable[..., None], *arguments: Any) -> bool:
        """Call with the open store; False if that failed or tracking has given up."""
        if self._faults >= MAX_FAULTS or self._lost_seconds > MAX_LOST_SECONDS:
            self._behind = True
            return False
        started = time.monotonic()
        try:
            with limits():
                call(self._store or self._open(), *arguments)
        except Exception as error:  # MLflow, SQLAlchemy, requests, a full disk: the study goes on
            self._lost_seconds += time.monotonic() - started
            self._faults, self._behind = self._faults + 1, True
            level = logging.DEBUG if self._warned else logging.WARNING
            self._warned = True
            log.log(level, "%s; the study goes on", fault_line(self._uri, error))
            return False
        self._faults = 0
        self._lost_seconds += max(0.0, time.monotonic() - started - PATIENCE)
        return True

    def _open(self) -> Store:
        """Open store, experiment and parent run, and read which trials have runs already."""
        study, name = self._study, self._record.name
        store = Store(self._uri, self._record.experiment)
        if study is None:  # before start(), to look only
            known = store.find({"evolve.kind": "study", "evolve.study": name})
            self._parent = known[0].info.run_id if known else ""
            return store
        if "tracking_id" not in study.user_attrs:  # a study's name may be used again, this not
            study.set_user_attr("tracking_id", uuid.uuid4().hex)
        identity = {"evolve.id": study.user_attrs["tracking_id"], "evolve.kind": "study"}
        parents = store.find(identity)
        if parents:
            self._parent = parents[-1].info.run_id
            store.reopen(self._parent)
        else:
            tags = {**identity, "evolve.study": name, "mlflow.note.content": self._record.note}
            self._parent = store.create(f"study {name}", tags).run_id
        store.save_view(self._parent, f"{name}: best first", self._record.columns)
        self._read_runs(store)
        generations = ranking(study.get_trials(deepcopy=False))
        self._values = {trial.number: fitness(trial) for trial in generations}
        self._store = store
        return store

    def _read_runs(self, store: Store) -> None:
        self._runs = {}
        for found in store.find({"mlflow.parentRunId": self._parent}):
            tags, info = found.data.tags, found.info
            if not tags.get("evolve.generation", "").isdigit():
                continue
            number = int(tags["evolve.generation"])
            if number in self._runs:  # newest come first: the oldest stays
                store.delete(self._runs[number].id)
            state, params = tags.get("evolve.state", ""), set(found.data.params)
            self._runs[number] = _Run(info.run_id, info.artifact_uri, info.status, state, params)

    # ---- one trial

    def _lacks(self, trial: FrozenTrial) -> bool:
        run, state = self._runs.get(trial.number), trial.state
        if not state.is_finished():
            return False
        return run is None or (run.status, run.state) != (STATUS[state], state.name.lower())

    def _folder(self, trial: FrozenTrial) -> Path:
        named = trial.user_attrs.get("directory")
        return Path(named) if named else self._directory / "trials" / str(trial.number)

    def _open_run(self, store: Store, trial: FrozenTrial, more_tags: Mapping[str, str]) -> None:
        """Create the trial's run or open it again."""
        tags = {**tracked.tags_of(trial), **more_tags, "evolve.state": "running"}
        run = self._runs.get(trial.number)
        if run is None:
            tags |= {"mlflow.parentRunId": self._parent, "evolve.study": self._record.name}
            begin = tracked.milliseconds(trial.datetime_start)
            made = store.create(tracked.run_name(trial), tags, begin)
            run = _Run(made.run_id, made.artifact_uri, "RUNNING", written=set())
            run.whole = trial.state == TrialState.RUNNING
            self._runs[trial.number], tags = run, {}
        elif run.status != "RUNNING":
            store.reopen(run.id)
        run.status, run.state = "RUNNING", "running"
        self._log(store, run, {}, tracked.params_of(trial), tags)

    def _flush(self, store: Store, number: int) -> None:
        run, points = self._runs[number], self._points[number]
        self._log(store, run, self._unwritten(store, run, points), {}, {})
        points.clear()

    def _write(
        self, store: Store, trial: FrozenTrial, folder: Path, description: dict[str, Any]
    ) -> None:
        """Write a finished trial's run; points that it has already stay as they are."""
        if trial.number not in self._runs:
            self._open_run(store, trial, {})
        run = self._runs[trial.number]
        curves = tracked.recorded_curves(trial, None if run.whole else folder)
        curves |= self._points.get(trial.number, {})
        news = self._unwritten(store, run, curves)
        last = dict(sorted({*curves, *(run.written or ())}, key=lambda key: key[1]))
        end = tracked.milliseconds(trial.datetime_complete)
        final = tracked.final_metrics(trial)  # at step 0, if it has no curve: MLflow draws bars
        points = {(name, last.get(name, 0)): (value, end) for name, value in final.items()}
        points |= {key: point for key, point in news.items() if key not in points}
        params = {**tracked.described(description, folder), **tracked.params_of(trial)}
        self._log(store, run, points, params, tracked.tags_of(trial))
        for path, place in tracked.files_of(folder):
            store.upload(run.artifacts, path, place)
        store.close(run.id, STATUS[trial.state], end)
        run.status, run.state = STATUS[trial.state], trial.state.name.lower()
        self._log_progress(store, trial, end)

    def _unwritten(self, store: Store, run: _Run, points: Points) -> Points:
        if run.written is None:
            run.written = store.written(run.id)
        written = run.written
        return {key: point for key, point in points.items() if key not in written}

    def _log(
        self,
        store: Store,
        run: _Run,
        points: Points,
        params: Mapping[str, str],
        tags: Mapping[str, str],
    ) -> None:
        news = {name: value for name, value in params.items() if name not in run.params}
        store.log(run.id, points, news, tags)  # a parameter cannot be written twice
        run.params |= set(news)
        if run.written is not None:
            run.written |= set(points)

    def _log_progress(self, store: Store, trial: FrozenTrial, moment: int) -> None:
        """Extend the parent's two curves by trial number: fitness and best fitness."""
        if trial.state != TrialState.COMPLETE or kind_of(trial) == CONFIRM:
            return
        self._values[trial.number] = fitness(trial)
        best = max(value for other, value in self._values.items() if other <= trial.number)
        values = tracked.clean({"best_fitness": best, "trial_fitness": fitness(trial)})
        points = {(name, trial.number): (value, moment) for name, value in values.items()}
        store.log(self._parent, points, {}, {})

    # ---- the end

    def _close(self, store: Store, run: _Run, state: str) -> None:
        store.log(run.id, {}, {}, {"evolve.state": state})
        store.close(run.id, "KILLED")
        run.status, run.state = "KILLED", state

    def _finish(self, store: Store, study: Study, summary: dict[str, Any]) -> None:
        interrupted = [run for run in self._runs.values() if run.status == "RUNNING"]
        for run in interrupted:
            self._close(store, run, "interrupted")
        ranked = ranking(study.get_trials(deepcopy=False))
        recommended = (summary.get("recommended") or {}).get("trial")
        winner = next((t for t in ranked if t.number == recommended), next(iter(ranked), None))
        verdict = str(summary.get("verdict_text") or summary.get("verdict") or "")
        tags = {"evolve.verdict": str(summary.get("verdict", ""))} if verdict else {}
        if winner is not None:
            best = f"- best: trial {winner.number}, fitness {fitness(winner):.4f}"
            lines = [f"**{verdict}**\n"] * bool(verdict) + [best, self._record.note]
            tags |= {"mlflow.note.content": "\n".join(lines)}
            tags |= self._crown(store, winner, summary.get("checkpoint"))
        gain = tracked.clean({f"gain/{k}": v for k, v in (summary.get("gain") or {}).items()})
        points = {(name, 0): (value, tracked.milliseconds(None)) for name, value in gain.items()}
        store.log(self._parent, points, {}, tags)
        artifacts = store.get(self._parent).info.artifact_uri
        for pattern in STUDY_FILES:
            for path in self._directory.glob(pattern):
                store.upload(artifacts, path)
        store.close(self._parent, "KILLED" if interrupted else "FINISHED")

    def _crown(self, store: Store, winner: FrozenTrial, checkpoint: str | None) -> dict[str, str]:
        """Give the winner's run its weights, and take those of an earlier winner away.

        `checkpoint` may be that of a repeat with another seed; None: the trial's own.
        """
        run = self._runs[winner.number]
        weights = Path(checkpoint or self._folder(winner) / "weights" / "best.pt")
        before = store.get(self._parent).data.tags.get("evolve.best_run", run.id)
        for old in self._runs.values():
            if old.id == before != run.id:
                store.remove(old.artifacts, "weights")
        if weights.is_file():
            store.upload(run.artifacts, weights, "weights")
            store.log(run.id, {}, {}, {"evolve.weights_from": "/".join(weights.parts[-4:])})
        return {"evolve.best_run": run.id, "evolve.best_trial": str(winner.number)}


def _note(config: StudyConfig) -> str:
    """Return the parent run's description, Markdown; formulas in backticks keep their stars."""
    formula = " + ".join(f"{weight:g}*{name}" for name, weight in config.fitness.items())
    lines = [
        f"fitness = `{formula}`, maximised",
        f"objective `{config.objective}`, strategy `{config.strategy.name}`",
        *(f"{name} `{value}`" for name, value in config.settings.items()),
    ]
    return "\n".join(f"- {line}" for line in lines)
