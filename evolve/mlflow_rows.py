"""Metrics as rows into the database behind an MLflow client.

MLflow makes an object of each point, which is most of what logging a trial of 30 epochs costs. The
client is MLflow's, and so is all but the last step of its `log_batch`.
"""

import functools
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy import column, event, select, table
from sqlalchemy.dialects import postgresql, sqlite

Row = dict[str, Any]
INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
COLUMNS = ("run_uuid", "key", "value", "timestamp", "step", "is_nan")
KEYS = ("run_uuid", "key")  # of a metric's latest point
# Source: MLflow's tables since 1.4, by name; of a column that comes new the default is taken
METRICS, LATEST = (table(name, *map(column, COLUMNS)) for name in ("metrics", "latest_metrics"))
LATEST_KEYS = 500  # that one query names


def quickened(client: Any) -> Any:
    """Return the client, which writes its metrics as rows if its store is SQLite or PostgreSQL.

    With a version of MLflow that is built otherwise it goes on as it is.
    """
    with suppress(AttributeError):
        store = client._tracking_client.store
        known = type(store).__name__ == "SqlAlchemyStore" and store.engine.dialect.name in INSERTS
        ready = isinstance(store._log_metrics, functools.partial)  # MLflow keeps its stores
        if known and not ready and callable(store.sanitize_metric_value):
            store._log_metrics = functools.partial(log_metrics, store)
            if store.engine.dialect.name == "sqlite":
                event.listen(store.engine, "connect", _unhurried)
                store.engine.dispose()  # the connections from before
    return client


def _unhurried(connection: Any, record: object) -> None:
    """Let commits of a write-ahead log not wait for the disk: a dozen of them make a trial.

    A killed process loses nothing by it; a power cut costs the last commits, and `evolve sync`
    writes them again.
    """
    if connection.execute("PRAGMA journal_mode").fetchone() == ("wal",):
        connection.execute("PRAGMA synchronous=NORMAL").close()


def log_metrics(store: Any, run_id: str, metrics: Sequence[Any]) -> None:
    """Write metrics of a run that `log_batch` has checked; those that are there already stay."""
    if not metrics:
        return
    rows = [_row(store, run_id, metric) for metric in metrics]
    insert = INSERTS[store.engine.dialect.name]
    with store.ManagedSessionMaker(read_only=False) as session:
        connection = session.connection()
        connection.execute(insert(METRICS).on_conflict_do_nothing(), rows)
        latest = _latest(connection, run_id, rows)
        if not latest:
            return
        query = insert(LATEST)
        changes = {name: query.excluded[name] for name in COLUMNS if name not in KEYS}
        connection.execute(query.on_conflict_do_update(index_elements=KEYS, set_=changes), latest)


def _row(store: Any, run_id: str, metric: Any) -> Row:
    is_nan, value = store.sanitize_metric_value(metric.value)
    return {
        "run_uuid": run_id,
        "key": metric.key,
        "value": value,
        "timestamp": metric.timestamp,
        "step": metric.step,
        "is_nan": is_nan,
    }


def _latest(connection: Any, run_id: str, rows: Sequence[Row]) -> list[Row]:
    """Return the rows that are the latest of their keys by now, in the order of the keys."""
    found: dict[str, Row] = {}
    for row in rows:
        if row["key"] not in found or _moment(row) > _moment(found[row["key"]]):
            found[row["key"]] = row
    names = list(found)
    for begin in range(0, len(names), LATEST_KEYS):
        some = names[begin : begin + LATEST_KEYS]
        query = select(LATEST).where(LATEST.c.run_uuid == run_id, LATEST.c.key.in_(some))
        for old in connection.execute(query.with_for_update()).mappings():
            if _moment(found[old["key"]]) <= _moment(old):
                del found[old["key"]]
    return list(found.values())


def _moment(row: Any) -> tuple[int, int, float]:
    """Return what MLflow orders the points of a metric by."""
    return row["step"], row["timestamp"], row["value"]
