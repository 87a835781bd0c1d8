"""The MLflow record of a study: one parent run, one nested run per trial, written by one process.

Optuna's storage is the truth and MLflow a copy of it: `sync` makes the copy agree, and resuming is
nothing but that. A fault of the tracker is logged once and never stops or long delays a study.
"""

import logging
import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from evolve import champion, tracked
from evolve.description import description_of
from evolve.mlflow_store import Links, Store, fault_line, is_server, limits
from evolve.record import CONFIRM, fitness, kind_of, ranking
from evolve.tracked import Points
from evolve.ui import HOST, UI_PORT

log = logging.getLogger(__name__)

MAX_FAULTS = 3  # one after another: then nothing is written for
REST_SECONDS = 60.0  # and after it what was missed
FLUSH_SECONDS = 15.0  # the curve of a running trial in the browser is at most this old
STATUS = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED", TrialState.FAIL: "FAILED"}
STUDY_FILES = ("trials.csv", "best.yaml", "report.html", "*.png")


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
        self._identity = self._parent = ""
        self._runs: dict[int, _Run] = {}
        self._points: dict[int, Points] = {}  # not yet written
        self._flushed: dict[int, float] = {}
        self._progress: dict[int, tuple[float, int]] = {}  # fitness and end of the generations
        self._shown: set[tuple[str, int]] = set()  # points of the parent's curves in the store
        self._behind = True  # the record may lack something
        self._faults, self._warned = 0, False
        # on the monotonic clock
        self._rest_until = self._caught_up = self._progress_written = -math.inf

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
        self._attempt(self._write_progress)
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
        written = self._attempt(self._write, trial, directory, description)
        self._points.pop(trial.number, None)
        self._flushed.pop(trial.number, None)
        now = time.monotonic()
        if written and self._behind and self._study and now - self._caught_up > REST_SECONDS:
            self._caught_up = now
            self.sync(self._study)

    def finish(self, study: Study, summary: dict[str, Any] | None) -> bool:
        if self._behind:
            self._faults, self._rest_until = 0, -math.inf  # one more chance: a server may be back
            self.sync(study)
        reached = self._store is not None and self._attempt(self._finish, study, summary)
        whole = reached and not self._behind
        if not whole:
            log.warning("MLflow lacks a part of this study: `python -m evolve sync` writes it")
        return whole

    def links(self) -> Links:
        found: Links = []
        base = self._uri if is_server(self._uri) else f"http://{HOST}:{UI_PORT}"

        def add(store: Store) -> None:
            found.extend(store.links(base.rstrip("/"), self._parent) if self._parent else ())

        self._attempt(add)
        return found

    # ---- faults

    def _attempt(self, call: Callable[..., None], *arguments: Any) -> bool:
        """Call with the open store; False if that failed or tracking rests after faults."""
        if time.monotonic() < self._rest_until:
            self._behind = True
            return False
        try:
            with limits():
                call(self._store or self._open(), *arguments)
        except Exception as error:  # MLflow, SQLAlchemy, requests, a full disk: the study goes on
            self._faults, self._behind = self._faults + 1, True
            if self._faults >= MAX_FAULTS:
                self._rest_until = time.monotonic() + REST_SECONDS
            level = logging.DEBUG if self._warned else logging.WARNING
            self._warned = True
            log.log(level, "%s; the study goes on", fault_line(self._uri, error))
            return False
        self._faults = 0
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
        self._identity = study.user_attrs["tracking_id"]
        identity = {"evolve.id": self._identity, "evolve.kind": "study"}
        parents = store.find(identity)
        self._shown = set()
        if parents:
            self._parent = parents[-1].info.run_id
            store.reopen(self._parent)
            self._shown = store.written(self._parent)
        else:
            tags = {**identity, "evolve.study": name, "mlflow.note.content": self._record.note}
            self._parent = store.create(f"study {name}", tags).run_id
        store.save_view(self._parent, f"{name}: best first", self._record.columns)
        self._read_runs(store)
        generations = ranking(study.get_trials(deepcopy=False))
        self._progress = {trial.number: _end_of(trial) for trial in generations}
        self._store = store
        return store

    def _read_runs(self, store: Store) -> None:
        self._runs = {}
        for found in store.find({"evolve.id": self._identity}):
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
            tags |= self._place_of(trial)
            begin = tracked.milliseconds(trial.datetime_start)
            made = store.create(tracked.run_name(trial), tags, begin)
            run = _Run(made.run_id, made.artifact_uri, "RUNNING", written=set())
            run.whole = trial.state == TrialState.RUNNING
            self._runs[trial.number], tags = run, {}
        elif run.status != "RUNNING":
            store.reopen(run.id)
        run.status, run.state = "RUNNING", "running"
        self._log(store, run, {}, tracked.params_of(trial), tags)

    def _place_of(self, trial: FrozenTrial) -> dict[str, str]:
        """Return the tags that put a run under its study, a repeat under the trial it repeats."""
        repeated = self._runs.get(trial.user_attrs.get("of", -1))
        inside = kind_of(trial) == CONFIRM and repeated is not None
        return {
            "mlflow.parentRunId": repeated.id if inside and repeated else self._parent,
            "evolve.id": self._identity,
            "evolve.study": self._record.name,
        }

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
        told = {**(description_of(self._study) if self._study else {}), **description}
        params = {**tracked.params_of(trial), **tracked.described(told, folder, trial.params)}
        self._log(store, run, points, params, tracked.tags_of(trial))
        store.log_data(run.id, tracked.data_of(told))
        for path, place in tracked.files_of(folder):
            store.upload(run.artifacts, path, place)
        store.close(run.id, STATUS[trial.state], end)
        run.status, run.state = STATUS[trial.state], trial.state.name.lower()
        if trial.state == TrialState.COMPLETE and kind_of(trial) != CONFIRM:
            self._progress[trial.number] = _end_of(trial)
        if time.monotonic() - self._progress_written > FLUSH_SECONDS:
            self._write_progress(store)

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

    def _write_progress(self, store: Store) -> None:
        """Extend the parent's two curves by trial number: fitness and best fitness."""
        self._progress_written, best, points = time.monotonic(), -math.inf, Points()
        for number, (value, moment) in sorted(self._progress.items()):
            best = max(best, value)
            values = tracked.clean({"best_fitness": best, "trial_fitness": value})
            points |= {(name, number): (value, moment) for name, value in values.items()}
        news = {key: point for key, point in points.items() if key not in self._shown}
        store.log(self._parent, news, {}, {})
        self._shown |= set(news)

    # ---- the end

    def _close(self, store: Store, run: _Run, state: str) -> None:
        store.log(run.id, {}, {}, {"evolve.state": state})
        store.close(run.id, "KILLED")
        run.status, run.state = "KILLED", state

    def _finish(self, store: Store, study: Study, summary: dict[str, Any] | None) -> None:
        interrupted = [run for run in self._runs.values() if run.status == "RUNNING"]
        for run in interrupted:
            self._close(store, run, "interrupted")
        self._write_progress(store)
        trials = study.get_trials(deepcopy=False)
        winner = _winner(trials, summary or {})
        tags = self._outcome_tags(winner, summary or {})
        description = description_of(study)
        if winner is not None and summary and winner.number in self._runs:
            tags |= self._crown(store, winner, trials, summary, description)
        gain = (summary or {}).get("gain") or {}
        gains = tracked.clean({f"gain/{name}": value for name, value in gain.items()})
        points = {(name, 0): (value, tracked.milliseconds(None)) for name, value in gains.items()}
        store.log(self._parent, points, {}, tags)
        store.log_data(self._parent, tracked.data_of(description))
        artifacts = store.get(self._parent).info.artifact_uri
        for pattern in STUDY_FILES:
            for path in self._directory.glob(pattern):
                store.upload(artifacts, path)
        store.close(self._parent, "KILLED" if interrupted else "FINISHED")

    def _outcome_tags(
        self, winner: FrozenTrial | None, summary: Mapping[str, Any]
    ) -> dict[str, str]:
        """Return the parent's tags of how the study ended, its description among them."""
        verdict = str(summary.get("verdict_text") or summary.get("verdict") or "")
        tags = {"evolve.verdict": str(summary.get("verdict", ""))} if verdict else {}
        if winner is not None:
            best = f"- best: trial {winner.number}, fitness {fitness(winner):.4f}"
            lines = [f"**{verdict}**\n"] * bool(verdict) + [best, self._record.note]
            tags |= {"mlflow.note.content": "\n".join(lines)}
            tags |= {"evolve.best_trial": str(winner.number)}
        if winner is not None and winner.number in self._runs:
            tags |= {"evolve.best_run": self._runs[winner.number].id}
        return tags

    def _crown(
        self,
        store: Store,
        winner: FrozenTrial,
        trials: Sequence[FrozenTrial],
        summary: Mapping[str, Any],
        description: Mapping[str, Any],
    ) -> dict[str, str]:
        """Register the winner's weights, the checkpoint of the summary or the trial's own.

        Returns what the parent run says of it.
        """
        run = self._runs[winner.number]
        weights = Path(summary.get("checkpoint") or self._folder(winner) / "weights" / "best.pt")
        if not weights.is_file():
            return {}
        store.log(run.id, {}, {}, {"evolve.weights_from": "/".join(weights.parts[-4:])})
        model = champion.model_name(self._record.experiment, self._record.name)
        told = champion.Candidate(
            run_id=run.id,
            artifacts=run.artifacts,
            weights=weights,
            tags=champion.tags_of(winner, trials, weights, summary, description),
            text=str(summary.get("verdict_text") or ""),
        )
        champion.register(store, model, told)
        return {"evolve.model": model}


def _end_of(trial: FrozenTrial) -> tuple[float, int]:
    return fitness(trial), tracked.milliseconds(trial.datetime_complete)


def _winner(trials: Sequence[FrozenTrial], summary: Mapping[str, Any]) -> FrozenTrial | None:
    """Return the recommended trial, or while nothing is recommended the best one."""
    ranked = ranking(trials)
    recommended = (summary.get("recommended") or {}).get("trial")
    return next((t for t in ranked if t.number == recommended), next(iter(ranked), None))
