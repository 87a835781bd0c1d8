"""Opening a study: its storage, its one owner, and what must not change between two runs of it."""

import dataclasses
import fcntl
import functools
import itertools
import json
import os
import random
import socket
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
from optuna import Study
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError

from evolve.config import ConfirmOptions, Start, StudyConfig
from evolve.errors import StudyError, did_you_mean
from evolve.front import directions
from evolve.limits import Limit
from evolve.patience import PatientStorage, TurnCache
from evolve.proxy import GRPC, open_proxy
from evolve.record import generations
from evolve.server import hidden, server_url

IDENTITY, CONFIRMATION, FOLDER = "identity", "confirm", "folder"  # user attributes of the study
SQLITE = "sqlite:///"
CREATIONS = 5  # tries to make the tables of a database
BUSY_TIMEOUT = 60  # seconds that SQLite waits for another process's write


def open_study(config: StudyConfig) -> Study:
    """Open the study, or create it. Raises: StudyError if it was started with other settings."""
    storage = _storage(config.study.storage, create=True)
    create = functools.partial(
        optuna.create_study,
        storage=storage,
        study_name=config.study.name,
        directions=[StudyDirection[name.upper()] for name in directions(config.objectives)],
    )
    study = create(load_if_exists=True)
    ours = json.loads(json.dumps(config.identity(), default=str))
    theirs = study.user_attrs.get(IDENTITY)
    if theirs is not None and theirs != ours:
        if generations(study.get_trials(deepcopy=False)):
            raise StudyError(
                f"study {config.study.name} was started with {_difference(theirs, ours)};"
                " its trials would not be comparable: take another name with --study"
            )
        # Nothing counts yet: begin anew, so that no failure of the old settings stays behind.
        optuna.delete_study(study_name=config.study.name, storage=storage)
        study = create()
    study.set_user_attr(IDENTITY, ours)
    study.set_user_attr(CONFIRMATION, dataclasses.asdict(config.confirm))
    return study


def as_run(config: StudyConfig, study: Study) -> StudyConfig:
    """Return the config with what the study was run with, whatever the file says by now."""
    identity = study.user_attrs.get(IDENTITY)
    if identity is None:
        return config
    start = Start(**identity["start"], source=config.start.source)
    return dataclasses.replace(
        config,
        objective=identity["objective"],
        settings=identity["settings"],
        fitness=identity["fitness"],
        start=start,
        limits={n: Limit(**bounds) for n, bounds in identity.get("limits", {}).items()},
        objectives=identity.get("objectives", {}),
        confirm=ConfirmOptions(**study.user_attrs[CONFIRMATION]),
    )


def claim_folder(study: Study, directory: Path, notice: Callable[[str], None]) -> None:
    """Make sure that the folder holds trials of this study only: those of another move aside.

    A trial goes on from the files in its folder, and must not find those of a study that is gone.
    """
    name = study.user_attrs.get(FOLDER)
    if name is None:
        name = uuid.uuid4().hex
        study.set_user_attr(FOLDER, name)
    mark, trials = directory / "study-id", directory / "trials"
    if trials.is_dir() and not (mark.is_file() and mark.read_text(encoding="utf-8") == name):
        numbers = itertools.count(1)
        free = next(p for p in (directory / f"trials-{n}" for n in numbers) if not p.exists())
        trials.rename(free)
        notice(f"{trials} held another study's files: they are in {free} now")
    if not (mark.is_file() and mark.read_text(encoding="utf-8") == name):
        partial = mark.with_name(".study-id.partial")  # a mark cut short would disown the trials
        partial.write_text(name, encoding="utf-8")
        partial.replace(mark)


def load_study(config: StudyConfig) -> Study:
    """Open a study that exists, for reading. Raises: StudyError."""
    storage = _storage(config.study.storage, create=False)
    names = optuna.get_all_study_names(storage)
    if config.study.name not in names:
        raise StudyError(
            f"there is no study {config.study.name} in {hidden(config.study.storage)}"
            f"{did_you_mean(config.study.name, names)}"
        )
    return optuna.load_study(storage=storage, study_name=config.study.name)


def storage_of(url: str) -> BaseStorage:
    """Open a storage with Optuna's cache. Raises: StudyError."""
    return optuna.storages.get_storage(_storage(url, create=False))


def ping(url: str) -> float:
    """Open a storage, creating nothing but its tables, and return the milliseconds of a look.

    Raises: StudyError if it cannot be opened.
    """
    if url.startswith(SQLITE) and not Path(url.removeprefix(SQLITE)).exists():
        url = "sqlite:///:memory:"  # the file is made by the first run
    storage = _storage(url, create=False) if url != "sqlite:///:memory:" else PatientStorage(url)
    began = time.monotonic()
    storage.get_all_studies()
    return 1000 * (time.monotonic() - began)


@contextmanager
def owned(config: StudyConfig) -> Iterator[None]:
    """Hold the locks of a study's folder and, for SQLite, of the study in its file.

    Raises: StudyError if another process holds one, be it from another working folder.
    """
    config.directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as locks:
        locks.enter_context(_locked(config.directory / "lock", config.study.name))
        url = config.study.storage
        if url.startswith(SQLITE):
            path = Path(url.removeprefix(SQLITE)).resolve()
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.with_name(f".{path.name}.{config.study.name}.lock")
            locks.enter_context(_locked(lock, config.study.name))
        yield


def is_running(config: StudyConfig) -> bool:
    """Return whether a process of this machine holds the study's folder."""
    try:
        with (config.directory / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:  # somebody has it
        return True
    return False


@contextmanager
def _locked(path: Path, study_name: str) -> Iterator[None]:
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            owner = lock.read().strip() or "another process"
            raise StudyError(f"study {study_name} is being run by {owner}") from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        yield


class _Connection(sqlite3.Connection):
    """A connection with a write-ahead log, which does not wait for the disk at every commit.

    A study commits some thirty times a trial. A killed process loses nothing by it, and readers do
    not block the writer; a power cut may cost the last commits, so that their trial is run again.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        with suppress(sqlite3.OperationalError):  # such as a read-only file: it stays as it is
            self.execute("PRAGMA journal_mode=WAL").close()
            self.execute("PRAGMA synchronous=NORMAL").close()


def _storage(url: str, *, create: bool) -> BaseStorage:
    options: dict[str, Any] = {}
    if url.startswith(GRPC):
        return open_proxy(url)
    if url.startswith(SQLITE):
        path = Path(url.removeprefix(SQLITE))
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
        elif not path.is_file():
            raise StudyError(f"there is no study yet: {path} does not exist")
        options = {"connect_args": {"timeout": BUSY_TIMEOUT, "factory": _Connection}}
    else:
        url, options = server_url(url)
    try:
        return _created(url, options)
    except Exception as error:  # drivers raise what they like
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StudyError(f"storage {hidden(url)} cannot be opened: {text}") from error


def _created(url: str, options: dict[str, Any]) -> BaseStorage:
    """Open a database and make its tables, which several processes may do at the same time."""
    for left in range(CREATIONS - 1, -1, -1):
        try:
            return TurnCache(PatientStorage(url, engine_kwargs=options))
        except (DBAPIError, StorageInternalError) as error:
            if not (left and _somebody_was_quicker(error)):
                raise
            time.sleep(random.uniform(0.1, 1.0))
    raise AssertionError("unreachable")


def _somebody_was_quicker(error: Exception) -> bool:
    """Return whether another process made the same table or row just now; each has its words."""
    ours = (IntegrityError, ProgrammingError, StorageInternalError)
    return isinstance(error, ours) or "already exists" in str(error)  # the last: SQLite


def _difference(theirs: dict[str, Any], ours: dict[str, Any], prefix: str = "") -> str:
    """Return the first value that differs, by its dotted name."""
    for key in sorted({*theirs, *ours}):
        old, new = theirs.get(key), ours.get(key)
        if old != new and isinstance(old, dict) and isinstance(new, dict):
            return _difference(old, new, f"{prefix}{key}.")
        if old != new:
            was, now = ("absent" if value is None else value for value in (old, new))
            return f"{prefix}{key}: {was}, now {now}"
    return "other settings"
