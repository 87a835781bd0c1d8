"""Metrics that are written as rows are those that MLflow would have written."""

import math
import sqlite3
import warnings
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from sqlalchemy import create_engine, text

from evolve.mlflow_rows import quickened
from evolve.mlflow_store import limits

BATCHES = (
    [Metric("fitness", 0.25, 100, 0), Metric("loss", 3.0, 100, 0), Metric("loss", 2.0, 110, 1)],
    [Metric("loss", math.nan, 120, 2), Metric("mAP50", math.inf, 120, 2)],
    [
        Metric("loss", 2.0, 110, 1),
        Metric("loss", 2.5, 105, 1),
        Metric("loss", 2.5, 105, 1),
    ],  # again
    [Metric("fitness", 0.5, 90, 0), Metric("mAP50", -math.inf, 120, 2)],  # no later than before
    [Metric("fitness", 0.75, 100, 0), Metric("new", 1.0, 1, 7)],
)


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> tuple[MlflowClient, MlflowClient]:
    """Return a client of ours and one of MLflow's own, each with a store of its own."""
    folder = tmp_path_factory.mktemp("stores")
    with warnings.catch_warnings(), limits():
        warnings.simplefilter("ignore", DeprecationWarning)  # of SQLAlchemy, about MLflow's tables
        ours, theirs = (MlflowClient(f"sqlite:///{folder / name}.db") for name in ("ours", "own"))
        assert ours.search_experiments() and theirs.search_experiments()  # this makes the tables
        return quickened(ours), theirs


def written(client: MlflowClient) -> dict[str, Any]:
    """Log the batches into a run, and return all that the client reads of it."""
    run = client.create_run("0").info.run_id
    for batch in BATCHES:
        client.log_batch(run, batch)
    metrics = client.get_run(run).data.metrics
    points = {
        name: sorted((m.step, m.timestamp, repr(m.value)) for m in history)
        for name in metrics
        for history in [client.get_metric_history(run, name)]
    }
    return {"latest": [(name, repr(value)) for name, value in metrics.items()], "points": points}


def test_the_metrics_are_those_that_mlflow_writes(
    clients: tuple[MlflowClient, MlflowClient],
) -> None:
    ours, theirs = map(written, clients)
    assert ours["points"] == theirs["points"]
    assert sorted(ours["latest"]) == sorted(theirs["latest"])
    assert dict(ours["latest"])["loss"] == "nan" and dict(ours["latest"])["fitness"] == "0.75"


def test_the_one_client_writes_rows_and_the_other_is_left_alone(
    clients: tuple[MlflowClient, MlflowClient],
) -> None:
    names = [
        getattr(client._tracking_client.store._log_metrics, "func", None) for client in clients
    ]
    assert getattr(names[0], "__name__", None) == "log_metrics" and names[1] is None
    before = clients[0]._tracking_client.store._log_metrics
    quickened(clients[0])
    assert clients[0]._tracking_client.store._log_metrics is before  # once is enough


def test_what_mlflow_refuses_is_refused(clients: tuple[MlflowClient, MlflowClient]) -> None:
    client = clients[0]
    run = client.create_run("0").info.run_id
    with pytest.raises(MlflowException, match="Invalid value"):
        client.log_batch(run, [Metric("bad\nname", 0.5, 0, 0), Metric("loss", 1.0, 0, 0)])
    client.set_terminated(run)
    client.delete_run(run)
    with pytest.raises(MlflowException, match="deleted"):
        client.log_batch(run, [Metric("loss", 1.0, 0, 0)])


def test_a_write_ahead_log_does_not_wait_for_the_disk(tmp_path: Path) -> None:
    engines = {}
    for name in ("plain", "wal"):
        with closing(sqlite3.connect(path := tmp_path / f"{name}.db")) as database:
            database.execute(f"PRAGMA journal_mode={'wal' if name == 'wal' else 'delete'}")
        engines[name] = create_engine(f"sqlite:///{path}")
        kind = type("SqlAlchemyStore", (), {"_log_metrics": print, "sanitize_metric_value": print})
        store = kind()
        store.engine = engines[name]
        quickened(SimpleNamespace(_tracking_client=SimpleNamespace(store=store)))
    for name, level in (("plain", 2), ("wal", 1)):  # FULL, NORMAL
        with engines[name].connect() as connection:
            assert connection.execute(text("PRAGMA synchronous")).scalar() == level


def test_another_kind_of_store_stays_as_it_is() -> None:
    strange = SimpleNamespace(_tracking_client=SimpleNamespace(store=object()))
    assert quickened(strange) is strange
    assert not hasattr(strange._tracking_client.store, "_log_metrics")
    assert quickened(nothing := object()) is nothing
