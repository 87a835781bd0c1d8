"""One experiment of an MLflow store; the only file of evolve that imports mlflow.

A store is a database (`sqlite:///runs/mlflow.db`), a server or what else MLflow takes.
"""

import json
import logging
import os
import re
import socket
import sqlite3
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from evolve.config import TrackingOptions
from evolve.mlflow_rows import quickened
from evolve.tracked import FITNESS_CURVE, Points

log = logging.getLogger(__name__)

SQLITE = "sqlite:///"
PAGE = 1000  # runs in one answer
BATCH_METRICS, BATCH_PARAMS, BATCH_TAGS = 800, 100, 100  # MLflow: 1000 in all, 100 params, 100 tags
LEADING = ("fitness", FITNESS_CURVE)
DIGEST_LENGTH = 36  # characters of a data set's digest that MLflow takes
VIEW_COLUMNS = 40  # an experiment's tag has 5000 characters
TRAINING_PAGES = "workflowType=machine_learning"  # else menus are about language models
CHART_GROUP = {"display": True, "isReordered": True, "deleted": False, "isGenerated": True}
NOTE = "Choose a study under *Views*, or open a link that `python -m evolve ui` prints."
Links = list[tuple[str, str]]  # (label, address)

PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
# MLflow reads these from the environment and has no argument for them. Without the first two, one
# call to a server that is down takes minutes; the third keeps its links off standard output.
LIMITS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
LOUD = ("mlflow.store.db.utils", "alembic", "urllib3.connectionpool")


@contextmanager
def limits() -> Iterator[None]:
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


class Store:
    """An experiment of the store at `uri`; both are created if they do not exist.

    Raises, like all its methods, whatever MLflow, the database or the network raises.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri = uri
        self._client = _open_client(uri)
        self.experiment = self._open_experiment(experiment)

    # ---- runs

    def create(self, name: str, tags: Mapping[str, str], begin: int | None = None) -> Any:
        """Create a run, `begin` in milliseconds, and return MLflow's description of it."""
        return self._client.create_run(self.experiment, begin, dict(tags), name).info

    def get(self, run_id: str) -> Any:
        """Return MLflow's run: `info`, `data.metrics`, `data.params`, `data.tags`."""
        return self._client.get_run(run_id)

    def find(self, tags: Mapping[str, str], best: int = 0) -> list[Any]:
        """Return the runs with these tags, newest first; with `best`, that many by fitness."""
        order = ["metrics.fitness DESC"] if best else ["attributes.start_time DESC"]
        runs: list[Any] = []
        token = None
        while True:
            page = self._client.search_runs(
                [self.experiment],
                where(tags),
                max_results=best or PAGE,
                order_by=order,
                page_token=token,
            )
            runs += page
            token = page.token
            if best or not token:
                return runs

    def reopen(self, run_id: str) -> None:
        """Show a closed run as running."""
        self._client.update_run(run_id, status="RUNNING")

    def close(self, run_id: str, status: str, end: int | None = None) -> None:
        """End a run as FINISHED, FAILED or KILLED, `end` in ms."""
        self._client.set_terminated(run_id, status, end)

    def delete(self, run_id: str) -> None:
        """Move a run to MLflow's bin."""
        self._client.delete_run(run_id)

    def log(
        self, run_id: str, points: Points, params: Mapping[str, str], tags: Mapping[str, str]
    ) -> None:
        """Write metrics, parameters and tags, fitness first: the compare page preselects it.

        A parameter that has another value already is an error of MLflow.
        """
        from mlflow.entities import Metric, Param, RunTag

        ordered = sorted(points.items(), key=lambda item: _place(item[0][0]))
        metrics = [Metric(name, value, at, step) for (name, step), (value, at) in ordered]
        values = [Param(name, value) for name, value in params.items()]
        labels = [RunTag(name, value) for name, value in tags.items()]
        while metrics or values or labels:
            batch = metrics[:BATCH_METRICS], values[:BATCH_PARAMS], labels[:BATCH_TAGS]
            self._client.log_batch(run_id, *batch)
            metrics, values = metrics[BATCH_METRICS:], values[BATCH_PARAMS:]
            labels = labels[BATCH_TAGS:]

    def log_data(self, run_id: str, splits: Mapping[str, tuple[str, str]]) -> None:
        """Name a run's data sets: (name, digest) of each split, MLflow's context."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Dataset(name, digest[:DIGEST_LENGTH], "local", json.dumps({"uri": name})),
                [InputTag("mlflow.data.context", split)],
            )
            for split, (name, digest) in splits.items()
        ]
        if inputs:
            self._client.log_inputs(run_id, inputs)

    def written(self, run_id: str) -> set[tuple[str, int]]:
        """Return (metric, step) of all points of a run."""
        return {
            (name, metric.step)
            for name in self.get(run_id).data.metrics
            for metric in self._client.get_metric_history(run_id, name)
        }

    # ---- files

    def upload(self, artifacts: str, path: Path, place: str | None = None) -> None:
        """Copy a file into the folder `place` of a run's artifacts (`info.artifact_uri`)."""
        self._artifacts(artifacts).log_artifact(str(path), place)

    def download(self, artifacts: str, place: str, folder: Path) -> list[Path]:
        """Copy the files in the folder `place` of a run's artifacts; returns the copies."""
        source = self._artifacts(artifacts)
        names = [one.path for one in source.list_artifacts(place) if not one.is_dir]
        folder.mkdir(parents=True, exist_ok=True)
        return [Path(source.download_artifacts(name, str(folder))) for name in names]

    def _artifacts(self, artifacts: str) -> Any:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        return get_artifact_repository(artifacts, self.uri)

    # ---- registered models

    def versions(self, model: str) -> list[Any]:
        """Return the versions of a registered model, newest first; none if there is none."""
        found = self._client.search_model_versions(f"name = '{model}'")
        return sorted(found, key=lambda one: -int(one.version))

    def aliases(self, model: str) -> dict[str, str]:
        """Return the aliases of a registered model with the version that each names."""
        found = self._client.search_registered_models(f"name = '{model}'")
        return {name: str(version) for one in found for name, version in one.aliases.items()}

    def add_version(
        self, model: str, run_id: str, place: str, tags: Mapping[str, str], text: str
    ) -> Any:
        """Make the folder `place` of a run's artifacts a version of `model`, a new one if need be.

        No flavour and nothing pickled: a version is the files as they are.
        """
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        return self._client.create_model_version(
            model, f"runs:/{run_id}/{place}", run_id, tags=dict(tags), description=text
        )

    def describe_version(self, version: Any, tags: Mapping[str, str], text: str) -> None:
        """Set a version's tags and description."""
        name, number = version.name, str(version.version)
        for key, value in tags.items():
            if version.tags.get(key) != value:
                self._client.set_model_version_tag(name, number, key, value)
        if version.description != text:
            self._client.update_model_version(name, number, text)

    def set_alias(self, model: str, alias: str, version: Any) -> None:
        """Let an alias name this version of a registered model, and no other."""
        self._client.set_registered_model_alias(model, alias, str(version))

    # ---- pages

    def save_view(self, parent: str, title: str, columns: list[str]) -> None:
        """Save a table of a study's trials, best first, under "Views" of the experiment's page.

        `columns` are like ``metrics.`fitness` ``. Source: what MLflow 3.17 writes for "Save as new
        view" (`state`) and older versions for "Share" (the same keys, not nested).
        """
        state = {
            "searchFilter": where(_trials_of(parent)),
            "orderByKey": "metrics.`fitness`",
            "orderByAsc": False,
            "selectedColumns": columns[:VIEW_COLUMNS],
            "columnOrder": columns[:1],
            "runsHiddenMode": "FIRST_20_RUNS",
            # this group of charts before those of the losses, charts in the order of logging
            "compareRunSections": [{"uuid": "evolve", "name": "Model metrics"} | CHART_GROUP],
            "compareRunCharts": [],
            "isAccordionReordered": True,
        }
        now = int(time.time() * 1000)
        view = {"name": title, "createdAt": now, "updatedAt": now, "state": json.dumps(state)}
        tag = f"mlflow.sharedViewState.{_view_key(parent)}"
        self._client.set_experiment_tag(self.experiment, tag, json.dumps({**view, **state}))

    def links(self, base: str, parent: str) -> Links:
        """Return labels and addresses of a study's pages; `base` is the address of the UI.

        The plain experiment page folds the trials away and opens on a page for language models.
        """
        page = f"{base}/#/experiments/{self.experiment}"
        table = f"{page}/runs?{TRAINING_PAGES}&viewStateShareKey={_view_key(parent)}"
        found = [
            ("trials, best first", table),
            ("curves of all trials", f"{table}&compareRunsMode=CHART"),
        ]
        tags = self.get(parent).data.tags
        best = self.find(_trials_of(parent), best=10)
        top = [run.info.run_id for run in best if "fitness" in run.data.metrics]
        if winner := tags.get("evolve.best_run"):  # which is seldom the one that measured best
            top = [winner, *(run for run in top if run != winner)][:10]
        if len(top) > 1:
            runs = _quoted_list(top)
            pages = f"runs={runs}&experiments={_quoted_list([self.experiment])}&{TRAINING_PAGES}"
            found.append((f"the best {len(top)} compared", f"{base}/#/compare-runs?{pages}"))
        found.append(("the study", f"{page}/runs/{parent}?{TRAINING_PAGES}"))
        if model := tags.get("evolve.model"):
            address = f"{base}/#/models/{quote(model, safe='')}?{TRAINING_PAGES}"
            found.append(("the champion", address))
        return found

    def _open_experiment(self, name: str) -> str:
        """Return the id of the experiment, which is created, or taken out of MLflow's bin."""
        found = self._client.get_experiment_by_name(name)
        if found is None:
            place = artifact_folder(self.uri)
            inside = re.sub(r"[^\w.-]", "_", name)
            # Given and absolute: MLflow's default is ./mlruns of wherever a command is run.
            location = (place / inside).as_uri() if place else None
            made: str = self._client.create_experiment(
                name, artifact_location=location, tags={"mlflow.note.content": NOTE}
            )
            return made
        if found.lifecycle_stage != "active":
            self._client.restore_experiment(found.experiment_id)
        experiment_id: str = found.experiment_id
        return experiment_id


def where(tags: Mapping[str, str]) -> str:
    """Return the filter of MLflow's search for runs with these tags."""
    return " and ".join(f'tags.`{name}` = "{value}"' for name, value in tags.items())


def store_uri(uri: str | None) -> str | None:
    """Return the address of the store that a configuration means, None for no tracking.

    MLFLOW_TRACKING_URI stands in for the default store, not for one that was chosen.
    """
    if uri == TrackingOptions().uri:
        uri = os.environ.get("MLFLOW_TRACKING_URI") or uri
    return absolute_uri(uri) if uri else None


def _place(metric: str) -> int:
    """Return where a metric stands in the order of logging, which MLflow's pages follow."""
    return LEADING.index(metric) if metric in LEADING else len(LEADING)


def _trials_of(parent: str) -> dict[str, str]:
    return {"mlflow.parentRunId": parent, "evolve.kind": "trial"}


def _view_key(parent: str) -> str:
    return f"evolve-{parent}"


def absolute_uri(uri: str) -> str:
    """Return the address with the path of a SQLite file made absolute."""
    path = sqlite_path(uri)
    return f"{SQLITE}{path}" if path else uri


def sqlite_path(uri: str) -> Path | None:
    """Return the absolute path of a SQLite store, or None for another kind of store."""
    return Path(uri.removeprefix(SQLITE)).resolve() if uri.startswith(SQLITE) else None


def is_server(uri: str) -> bool:
    """True for the address of an MLflow server."""
    return uri.startswith(("http://", "https://"))


def artifact_folder(uri: str) -> Path | None:
    """Return where a store's files go: beside its SQLite file; None if a server decides."""
    if is_server(uri):
        return None
    path = sqlite_path(uri)
    return (path.parent if path else Path("runs").resolve()) / "mlartifacts"


def fault_line(uri: str, error: Exception) -> str:
    """Return one line on what is wrong with the store at `uri`, without passwords."""
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    line = f"MLflow at {uri}: {reason[:300]}"
    return re.sub(r"(://[^/:@\s]+):[^@\s]*@", r"\1:***@", line)


def _quoted_list(ids: list[str]) -> str:
    return quote("[" + ",".join(f'"{name}"' for name in ids) + "]", safe="")


def _open_client(uri: str) -> Any:
    path = sqlite_path(uri)
    if path and not path.is_file():
        _create_sqlite(path)
    _check_reachable(uri, path)
    return _client(uri)


def _client(uri: str) -> Any:
    with warnings.catch_warnings(), limits():
        # SQLAlchemy 2.1 deprecates what MLflow's own tables are declared with.
        warnings.simplefilter("ignore", DeprecationWarning)
        from mlflow import MlflowClient

        return quickened(MlflowClient(uri, registry_uri=uri))


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
            with suppress(sqlite3.Error), closing(sqlite3.connect(path)) as database:
                database.execute("PRAGMA journal_mode=WAL")  # stays so; halves a commit's cost
    except FileExistsError:
        pass  # another process was faster, and its file is as good
    finally:
        own.unlink(missing_ok=True)


def _check_reachable(uri: str, path: Path | None) -> None:
    """Raise at once what MLflow would raise after 100 seconds of trying again."""
    if path:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True)) as database:
            database.execute("PRAGMA schema_version")
        return
    address = urlsplit(uri)
    port = address.port or PORTS.get(address.scheme.split("+")[0])
    if address.hostname and port and not is_server(uri):
        socket.create_connection((address.hostname, port), timeout=5).close()
