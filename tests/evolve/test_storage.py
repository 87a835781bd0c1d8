"""Opening a storage while other processes open it too."""

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from evolve.errors import StudyError
from evolve.patience import PatientStorage
from evolve.storage import storage_of


def operational(text: str) -> OperationalError:
    """Return what SQLAlchemy raises for an error of SQLite."""
    return OperationalError("CREATE TABLE", {}, sqlite3.OperationalError(text))


def test_tables_that_another_process_makes_just_now_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    PatientStorage(url)
    faults = [operational("table trial_params already exists")] * 2
    opened: list[str] = []

    def open_it(url: str, **options: object) -> PatientStorage:
        opened.append(url)
        if faults:
            raise faults.pop()
        return PatientStorage(url, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("evolve.storage.PatientStorage", open_it)
    monkeypatch.setattr("evolve.storage.time.sleep", lambda seconds: None)
    assert storage_of(url).get_all_studies() == []
    assert len(opened) == 3
    faults.append(operational("disk I/O error"))
    with pytest.raises(StudyError, match=r"cannot be opened.*disk I/O error"):
        storage_of(url)
    assert len(opened) == 4  # that is nothing that a second try would mend
