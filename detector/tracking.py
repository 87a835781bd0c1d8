"""MLflow for a training on its own: one run per folder. Inside a study, evolve does the tracking.

A fault of the tracker is logged once and never stops or long delays a training.
"""

import csv
import logging
import math
import os
import re
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from numbers import Real
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

log = logging.getLogger(__name__)

SQLITE = "sqlite:///"
MAX_FAULTS = 3  # one after another, or
MAX_LOST_SECONDS = 60.0  # spent on faults in all: then tracking is off for this training
FLUSH_SECONDS = 5.0
BATCH_METRICS, BATCH_PARAMS = 800, 100  # MLflow takes 1000 entries, 100 parameters
VALUE_LENGTH = 5000
COUNTERS = ("epoch", "step")
STATUS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED", "interrupted": "KILLED"}
# MLflow reads these from the environment and has no argument for them. Without the first two, one
# call to a server that is down takes minutes; the third keeps its links off standard output.
LIMITS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
LOUD = ("mlflow.store.db.utils", "alembic", "urllib3.connectionpool")

Points = dict[tuple[str, int], tuple[float, int]]  # (metric, step) -> (value, milliseconds)


class Tracker(Protocol):
    """What a training tells; no method raises because of the tracker."""

    def start(
        self, config: Mapping[str, Any], hyp: Mapping[str, Any], directory: str | Path
    ) -> None:
        """Open the run of a folder; a folder that has one goes on in it."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics at a step (the epoch, from 1)."""

    def finish(self, status: str, artifacts: Sequence[str | Path]) -> None:
        """End the run as finished, failed or killed (also interrupted) and keep the files."""


class NullTracker:
    """Tracking is off: every method does nothing."""

    def start(
        self, config: Mapping[str, Any], hyp: Mapping[str, Any], directory: str | Path
    ) -> None: ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def finish(self, status: str, artifacts: Sequence[str | Path]) -> None: ...


def open_tracker(uri: str | None, experiment: str | None, run_name: str | None) -> Tracker:
    """Return a tracker for the store at `uri`, or for MLFLOW_TRACKING_URI; neither is no tracking.

    Without an experiment, MLFLOW_EXPERIMENT_NAME or `detector` is taken; without a name, the
    folder's. Nothing is opened before `start`.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return NullTracker()
    experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "detector"
    return MlflowTracker(uri, experiment, run_name or "")


class MlflowTracker:
    """Writes one run to an MLflow store or server."""

    def __init__(self, uri: str, experiment: str, run_name: str) -> None:
        self._uri, self._experiment, self._name = _absolute(uri), experiment, run_name
        self._settings: dict[str, Any] = {}
        self._directory = Path()
        self._client: Any = None
        self._run_id = self._artifacts = ""
        self._points: Points = {}
        self._written: set[tuple[str, int]] = set()
        self._flushed = 0.0
        self._faults, self._lost_seconds, self._warned = 0, 0.0, False

    def start(
        self, config: Mapping[str, Any], hyp: Mapping[str, Any], directory: str | Path
    ) -> None:
        self._settings, self._directory = {**config, **hyp}, Path(directory).resolve()
        self._attempt(self._open)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        now = time.time()
        self._points |= _points_of(step, metrics, now)
        if now - self._flushed >= FLUSH_SECONDS:
            self._flushed = now
            self._attempt(self._flush)

    def finish(self, status: str, artifacts: Sequence[str | Path]) -> None:
        self._faults, self._lost_seconds = 0, 0.0  # one more chance: a server may be back
        if not self._run_id:
            self._attempt(self._open)
        self._attempt(self._flush)
        for path in map(Path, artifacts):
            if path.exists():
                self._attempt(self._upload, path)
        ended = STATUS.get(status.lower(), "FAILED")
        if not self._attempt(self._close, ended) and self._run_id:
            log.warning("MLflow still shows this training as running")

    # ---- faults

    def _attempt(self, call: Callable[..., None], *arguments: Any) -> bool:
        """Call; False if that failed, if there is no run, or if tracking has given up."""
        opening = call == self._open
        if self._faults >= MAX_FAULTS or self._lost_seconds > MAX_LOST_SECONDS:
            return False
        if not (opening or self._run_id):
            return False
        started = time.monotonic()
        try:
            with _limits():
                call(*arguments)
        except Exception as error:  # MLflow, SQLAlchemy, requests, a full disk: training goes on
            self._lost_seconds += time.monotonic() - started
            self._faults += 1
            level = logging.DEBUG if self._warned else logging.WARNING
            self._warned = True
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            line = f"MLflow at {self._uri}: {reason[:300]}; the training goes on"
            log.log(level, "%s", re.sub(r"(://[^/:@\s]+):[^@\s]*@", r"\1:***@", line))
            return False
        self._faults = 0
        return True

    # ---- calls to MLflow

    def _open(self) -> None:
        directory = self._directory
        self._client = _open_client(self._uri)
        experiment = _open_experiment(self._client, self._uri, self._experiment)
        tags = {"detector.directory": str(directory), "mlflow.source.name": "detector.train"}
        where = f'tags.`detector.directory` = "{directory}"'
        found = self._client.search_runs([experiment], where, max_results=1)
        if found:
            run = found[0]
            self._client.update_run(run.info.run_id, status="RUNNING")
        else:
            name = self._name.strip() or directory.name
            run = self._client.create_run(experiment, tags=tags, run_name=name)
        self._run_id, self._artifacts = run.info.run_id, run.info.artifact_uri
        self._log_params(set(run.data.params))
        for name in run.data.metrics:
            history = self._client.get_metric_history(self._run_id, name)
            self._written |= {(name, metric.step) for metric in history}
        if found:  # epochs that an interrupted training finished but did not get to write
            self._points |= _recorded(directory / "results.csv")

    def _log_params(self, known: set[str]) -> None:
        from mlflow.entities import Param

        values = {_metric_name(name): value for name, value in _flat(self._settings).items()}
        params = [
            Param(name, str(value)[:VALUE_LENGTH])
            for name, value in values.items()
            if name not in known and value not in (None, "")
        ]
        for first in range(0, len(params), BATCH_PARAMS):
            self._client.log_batch(self._run_id, params=params[first : first + BATCH_PARAMS])

    def _flush(self) -> None:
        from mlflow.entities import Metric

        news = {key: point for key, point in self._points.items() if key not in self._written}
        ordered = sorted(news.items(), key=lambda item: item[0][0] != "fitness")
        metrics = [Metric(name, value, at, step) for (name, step), (value, at) in ordered]
        for first in range(0, len(metrics), BATCH_METRICS):
            self._client.log_batch(self._run_id, metrics=metrics[first : first + BATCH_METRICS])
        self._written |= set(news)
        self._points.clear()

    def _upload(self, path: Path) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        artifacts = get_artifact_repository(self._artifacts, self._uri)
        if path.is_dir():
            artifacts.log_artifacts(str(path), path.name)
        else:
            artifacts.log_artifact(str(path))

    def _close(self, status: str) -> None:
        self._client.set_terminated(self._run_id, status)


# ---- values ----------------------------------------------------------------------------------


def _points_of(step: int, metrics: Mapping[str, Any], moment: float) -> Points:
    """Return the finite numbers under allowed names; one inf would destroy MLflow's charts."""
    return {
        (_metric_name(name), step): (float(value), int(moment * 1000))
        for name, value in metrics.items()
        if isinstance(value, Real) and name not in COUNTERS and math.isfinite(value)
    }


def _metric_name(name: str) -> str:
    """Return the nearest name that MLflow takes: letters, digits and `_-. `, parts split by `/`."""
    parts = [re.sub(r"[^\w\-. ]", "_", part) for part in str(name).split("/")]
    return "/".join(part for part in parts if part.strip(". "))[:250] or "_"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        deeper = isinstance(value, Mapping)
        leaves |= _flat(value, f"{prefix}{name}.") if deeper else {f"{prefix}{name}": value}
    return leaves


def _recorded(path: Path) -> Points:
    """Return the points of a results.csv: one row an epoch."""
    points: Points = {}
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                values = {name: float(text) for name, text in row.items() if text}
                points |= _points_of(int(values["epoch"]), values, path.stat().st_mtime)
    return points


# ---- store -----------------------------------------------------------------------------------


@contextmanager
def _limits() -> Iterator[None]:
    """Set `LIMITS` for our own calls where the user has not, and put the environment back.

    Lines about tables, retries and faults stay off the terminal: one warning of ours says it.
    """
    ours = {name: value for name, value in LIMITS.items() if name not in os.environ}
    levels = {name: logging.getLogger(name).level for name in LOUD}
    os.environ.update(ours)
    for name in LOUD:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix(SQLITE)).resolve() if uri.startswith(SQLITE) else None


def _absolute(uri: str) -> str:
    path = _sqlite_path(uri)
    return f"{SQLITE}{path}" if path else uri


def _open_client(uri: str) -> Any:
    path = _sqlite_path(uri)
    if path and not path.is_file():
        _create_sqlite(path)
    if path:  # raise at once what MLflow would raise after 100 seconds of trying again
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True)) as database:
            database.execute("PRAGMA schema_version")
    return _client(uri)


def _client(uri: str) -> Any:
    with warnings.catch_warnings(), _limits():
        # SQLAlchemy 2.1 deprecates what MLflow's own tables are declared with.
        warnings.simplefilter("ignore", DeprecationWarning)
        from mlflow import MlflowClient

        return MlflowClient(uri, registry_uri=uri)


def _create_sqlite(path: Path) -> None:
    """Create the tables in a file of our own, then give it its name if nobody was faster.

    Two processes that create them in one file at once leave a file that nothing can repair.
    """
    log.info("creating the MLflow store %s; this takes a few seconds once", path)
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _client(f"{SQLITE}{own}").search_experiments(max_results=1)
        if not path.exists():
            os.link(own, path)
    except FileExistsError:
        pass  # another process was faster, and its file is as good
    finally:
        own.unlink(missing_ok=True)


def _open_experiment(client: Any, uri: str, name: str) -> str:
    """Return the id of the experiment, which is created, or taken out of MLflow's bin."""
    found = client.get_experiment_by_name(name)
    if found is None:
        location = None
        if not uri.startswith(("http://", "https://")):
            path = _sqlite_path(uri)
            folder = path.parent if path else Path("runs").resolve()
            # Given and absolute: MLflow's default is ./mlruns of wherever a command is run.
            location = (folder / "mlartifacts" / re.sub(r"[^\w.-]", "_", name)).as_uri()
        return str(client.create_experiment(name, artifact_location=location))
    if found.lifecycle_stage != "active":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)
