"""Writing much of one trial at once: one transaction for its values and attributes.

Optuna makes a transaction of each value; a trial of 24 hyperparameters begins with thirty of them.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from optuna import Trial
from optuna.distributions import (
    BaseDistribution,
    check_distribution_compatibility,
    distribution_to_json,
)
from optuna.storages._rdb import models
from sqlalchemy import Connection, select

from evolve.trial_rows import TRIALS, RowStorage

Row = dict[str, Any]
DIALECTS = {"mariadb": "mysql"}  # whose package has another name


@dataclass
class Batch:
    """What is to be written of a trial; rows of Optuna's tables."""

    trial_id: int
    params: dict[str, Row] = field(default_factory=dict)
    user_attrs: dict[str, Row] = field(default_factory=dict)


class BatchStorage(RowStorage):
    """Optuna's storage, which can write values and user attributes of a trial together."""

    _batch: Batch | None = None

    @contextmanager
    def together(self, trial_id: int) -> Iterator[None]:
        """Keep what is set of a trial within, and write it at the end; after an error nothing.

        Raises: UpdateFinishedTrialError at the end, if the trial has ended.
        """
        batch = self._batch = Batch(trial_id)
        try:
            yield
        finally:
            self._batch = None
        if batch.params or batch.user_attrs:
            self._write(batch)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        row = {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
        if self._batch is None or self._batch.trial_id != trial_id:
            self._write(Batch(trial_id, user_attrs={key: row}))
        else:
            self._batch.user_attrs[key] = row

    def _set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None,
    ) -> None:
        known = (param_name, param_value_internal, distribution, previous_distribution)
        if self._batch is None or self._batch.trial_id != trial_id or previous_distribution is None:
            return super()._set_trial_param(trial_id, *known)
        check_distribution_compatibility(previous_distribution, distribution)
        self._batch.params[param_name] = {
            "trial_id": trial_id,
            "param_name": param_name,
            "param_value": param_value_internal,
            "distribution_json": distribution_to_json(distribution),
        }

    def _write(self, batch: Batch) -> None:
        with self.engine.begin() as connection:
            query = select(TRIALS.state).where(TRIALS.trial_id == batch.trial_id)
            state = connection.execute(query).scalar_one_or_none()
            if state is None:
                raise KeyError(f"there is no trial with the id {batch.trial_id}")
            self.check_trial_is_updatable(batch.trial_id, state)
            _upsert(connection, models.TrialParamModel, "param_name", list(batch.params.values()))
            kind = models.TrialUserAttributeModel
            _upsert(connection, kind, "key", list(batch.user_attrs.values()))


def _upsert(
    connection: Connection, model: type[models.BaseModel], key: str, rows: list[Row]
) -> None:
    """Insert rows, or replace those with the same trial and key: a lost answer does no harm."""
    if not rows:
        return
    dialect = connection.dialect.name
    package = import_module(f"sqlalchemy.dialects.{DIALECTS.get(dialect, dialect)}")
    query = package.insert(model)
    names = [name for name in rows[0] if name not in ("trial_id", key)]
    if dialect in ("mysql", "mariadb"):
        query = query.on_duplicate_key_update({name: query.inserted[name] for name in names})
    else:
        changes = {name: query.excluded[name] for name in names}
        query = query.on_conflict_do_update(index_elements=["trial_id", key], set_=changes)
    connection.execute(query, rows)


def together(trial: Trial) -> Any:
    """Return a context in which what is set of a trial is kept, to be written at its end.

    Where the storage is not ours, each is written at once.
    """
    storage = getattr(trial.storage, "_backend", trial.storage)
    if isinstance(storage, BatchStorage):
        return storage.together(trial._trial_id)
    return nullcontext()
