"""A study's storage that waits while its database is away, and the turns of those who share it.

A database that is started anew, or a network that is cut for a minute, costs a study that minute.
Within a turn nothing is tried again: the lock that made it a turn went with the connection.
"""

import functools
import logging
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, text
from sqlalchemy.exc import (
    DBAPIError,
    InterfaceError,
    OperationalError,
    PendingRollbackError,
    SQLAlchemyError,
)

from evolve.interrupt import INTERRUPTS
from evolve.trial_batch import BatchStorage

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0  # seconds between two tries
PATIENCE = 24 * 3600.0  # seconds that a storage may be away
LOCK_SPACE = zlib.crc32(b"evolve.turn") & 0x7FFFFFFF  # apart from other users' advisory locks
TURN_SECONDS = 120  # that MySQL waits for a turn

F = TypeVar("F", bound=Callable[..., Any])
State = tuple[int, int, int]  # thread, number of its turn, number of the last write


class Away(RuntimeError):
    """The storage went away in the middle of a turn, which has to begin anew."""


def is_away(error: BaseException | None) -> bool:
    """Return whether an error, or what caused it, is a database that cannot be reached."""
    while error is not None:
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            return True
        if isinstance(error, OperationalError | InterfaceError | PendingRollbackError):
            return True  # the last: a second query on a connection that was just lost
        if type(error).__name__ in ("_InactiveRpcError", "_MultiThreadedRendezvous"):
            return str(getattr(error, "code", str)()).endswith(("UNAVAILABLE", "CANCELLED"))
        error = error.__cause__
    return False


def patient(method: F) -> F:
    """Make a method of a storage wait while the storage is away."""

    @functools.wraps(method)
    def call(self: "Patience", *arguments: Any, **named: Any) -> Any:
        return self.waited(lambda: method(self, *arguments, **named))

    return call  # type: ignore[return-value]


def writing(method: F) -> F:
    """Make a method of a storage that writes wait, too, and count it."""

    @functools.wraps(method)
    def call(self: "Patience", *arguments: Any, **named: Any) -> Any:
        self._writes += 1
        return self.waited(lambda: method(self, *arguments, **named))

    return call  # type: ignore[return-value]


class Patience:
    """What every patient storage has: the waiting, and whose turn it is."""

    _turn: int | None = None  # the thread that has it
    _turns = _writes = 0  # how many there were

    def waited(self, call: Callable[[], Any]) -> Any:
        """Call until the storage answers. Raises: Away within a turn."""
        began, pause = time.monotonic(), FIRST_PAUSE
        while True:
            try:
                with INTERRUPTS.kept():
                    found = call()
            except Exception as error:
                if not self._waits_for(error):
                    raise
                if self._turn == threading.get_ident():
                    raise Away(str(error)) from error
                if time.monotonic() - began > PATIENCE:
                    raise
                if pause == FIRST_PAUSE:
                    cause = error.__cause__ or error
                    log.warning("the study's storage is away: %s", str(cause).splitlines()[0])
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            if pause > FIRST_PAUSE:
                log.warning("the study's storage is back")
            return found

    def _waits_for(self, error: Exception) -> bool:
        return is_away(error)

    def turn(self, study_id: int) -> Any:
        """Return a context in which nobody else has a turn at this study; check() tells of loss."""
        raise NotImplementedError

    def state(self) -> State | None:
        """Return what stays the same within a turn until we write; None without a turn."""
        thread = threading.get_ident()
        return (thread, self._turns, self._writes) if self._turn == thread else None

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        self._turn = threading.get_ident()
        self._turns += 1
        try:
            yield
        finally:
            self._turn = None


class Turn:
    """The right to begin trials; it is lost with the connection that holds it."""

    def __init__(self, check: Callable[[], None]) -> None:
        self.check = check


NO_TURN = Turn(lambda: None)  # of a storage that knows of none


class PatientStorage(Patience, BatchStorage):
    """Optuna's storage in a server's database, for several processes at once."""

    create_new_study = writing(BatchStorage.create_new_study)
    delete_study = writing(BatchStorage.delete_study)
    set_study_user_attr = writing(BatchStorage.set_study_user_attr)
    set_study_system_attr = writing(BatchStorage.set_study_system_attr)
    get_study_id_from_name = patient(BatchStorage.get_study_id_from_name)
    get_study_name_from_id = patient(BatchStorage.get_study_name_from_id)
    get_study_directions = patient(BatchStorage.get_study_directions)
    get_study_user_attrs = patient(BatchStorage.get_study_user_attrs)
    get_study_system_attrs = patient(BatchStorage.get_study_system_attrs)
    get_all_studies = patient(BatchStorage.get_all_studies)
    set_trial_param = writing(BatchStorage.set_trial_param)
    _set_trial_param = writing(BatchStorage._set_trial_param)
    set_trial_intermediate_value = writing(BatchStorage.set_trial_intermediate_value)
    set_trial_user_attr = writing(BatchStorage.set_trial_user_attr)
    set_trial_system_attr = writing(BatchStorage.set_trial_system_attr)
    get_trial = patient(BatchStorage.get_trial)
    _get_trials = patient(BatchStorage._get_trials)
    record_heartbeat = patient(BatchStorage.record_heartbeat)
    _write = writing(BatchStorage._write)

    def _waits_for(self, error: Exception) -> bool:
        return self.engine.dialect.name != "sqlite" and is_away(error)

    @writing
    def _create_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None = None
    ) -> FrozenTrial:
        """Create a trial at once: Optuna tries again after a fault, when the turn may be lost."""
        with _create_scoped_session(self.scoped_session) as session:
            models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
            made = self._get_prepared_new_trial(study_id, template_trial, session)
            trial_id = int(made.trial_id)
        return self.get_trial(trial_id)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """End a trial exactly once, also if the answer of the database got lost."""
        told = False
        self._writes += 1

        def tell() -> bool:
            nonlocal told
            again, told = told, True
            try:
                return super(PatientStorage, self).set_trial_state_values(trial_id, state, values)
            except UpdateFinishedTrialError:
                kept = self.get_trial(trial_id)
                if again and kept.state == state and kept.values == (values and list(values)):
                    return True
                raise

        return bool(self.waited(tell))

    @contextmanager
    def turn(self, study_id: int) -> Iterator[Turn]:
        """Wait until nobody else has a turn at this study; `check` raises Away if it is lost."""
        if self.engine.dialect.name == "sqlite":  # which has one owner
            with self._in_turn():
                yield Turn(lambda: None)
            return
        with self.waited(self.engine.connect) as connection:
            with INTERRUPTS.kept():
                unlock = _lock(connection, study_id)
            try:
                with self._in_turn():
                    yield Turn(lambda: self.waited(lambda: connection.execute(text("SELECT 1"))))
            finally:
                unlock()


def _lock(connection: Connection, study_id: int) -> Callable[[], None]:
    """Take the lock of a study's turns, and return what gives it back. Raises: Away."""
    mysql = connection.dialect.name in ("mysql", "mariadb")
    name = f"evolve.turn.{study_id}"
    try:
        if mysql:
            query = text("SELECT GET_LOCK(:name, :seconds)")
            got = connection.execute(query, {"name": name, "seconds": TURN_SECONDS}).scalar()
            if got != 1:
                raise Away(f"no turn at the study within {TURN_SECONDS} s")
        else:
            query = text("SELECT pg_advisory_xact_lock(:space, :study)")
            connection.execute(query, {"space": LOCK_SPACE, "study": study_id})
    except SQLAlchemyError as error:
        raise Away(str(error)) from error

    def unlock() -> None:
        try:
            if mysql:
                connection.execute(text("SELECT RELEASE_LOCK(:name)"), {"name": name})
            connection.commit()
        except SQLAlchemyError:  # the lock went with the connection
            connection.invalidate()

    return unlock


class TurnCache(_CachedStorage):
    """Optuna's cache, which reads the trials once within a turn, and again after a write of ours.

    Nobody else begins a trial meanwhile; one that ends is news for the next turn.
    """

    _backend: PatientStorage
    _known: tuple[int, State] | None = None

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        state = self._backend.state()
        current = state is not None and self._known == (study_id, state)
        trial_id = super().create_new_trial(study_id, template_trial)
        state = self._backend.state()
        if current and state is not None:  # the new one is in the cache: nothing else has changed
            self._known = (study_id, state)
        return trial_id

    def _read_trials_from_remote_storage(self, study_id: int) -> None:
        state = self._backend.state()
        known = None if state is None else (study_id, state)
        if known is None or known != self._known:
            super()._read_trials_from_remote_storage(study_id)
            self._known = known


def turn_of(storage: BaseStorage, study_id: int) -> Any:
    """Return a context that is a turn at the study, also where it has one owner."""
    found = getattr(storage, "_backend", storage)
    return found.turn(study_id) if isinstance(found, Patience) else nullcontext(NO_TURN)


def shared_storage(storage: BaseStorage) -> Patience | None:
    """Return the patient storage below Optuna's cache; None where a study has one owner."""
    found = getattr(storage, "_backend", storage)
    if isinstance(found, PatientStorage) and found.engine.dialect.name == "sqlite":
        return None
    return found if isinstance(found, Patience) else None
