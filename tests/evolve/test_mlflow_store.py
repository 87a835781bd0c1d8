"""Tests of the MLflow store that need no store; those that do are in test_tracking.py."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from evolve import mlflow_store


def test_relative_paths_of_a_store_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert mlflow_store.absolute_uri("sqlite:///runs/a.db") == f"sqlite:///{tmp_path}/runs/a.db"
    assert mlflow_store.absolute_uri("sqlite:////data/a.db") == "sqlite:////data/a.db"
    assert mlflow_store.absolute_uri("http://host:5000") == "http://host:5000"


def test_files_go_beside_the_database_and_a_server_keeps_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert mlflow_store.artifact_folder("sqlite:////data/a.db") == Path("/data/mlartifacts")
    assert mlflow_store.artifact_folder("postgresql://host/db") == tmp_path / "runs" / "mlartifacts"
    assert mlflow_store.artifact_folder("https://host") is None


def test_a_fault_is_one_line_without_passwords() -> None:
    uri = "postgresql://me:secret@host:5432/db"
    line = mlflow_store.fault_line(uri, OSError(f"connection to {uri} refused\nand more"))
    masked = "postgresql://me:***@host:5432/db"
    assert line == f"MLflow at {masked}: connection to {masked} refused"
    assert (
        mlflow_store.fault_line("sqlite:////a.db", KeyError())
        == "MLflow at sqlite:////a.db: KeyError"
    )


def test_limits_leave_what_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "99")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    with pytest.raises(KeyError), mlflow_store.limits():
        inside = dict(os.environ)
        raise KeyError
    assert inside["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "99"
    assert inside["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "2"
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_a_store_made_meanwhile_by_another_process_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mlflow.db"

    class Client:
        def __init__(self, uri: str) -> None:
            self.own = Path(uri.removeprefix("sqlite:///"))

        def search_experiments(self, **_: Any) -> None:
            self.own.write_text("ours")
            path.write_text("theirs")

    monkeypatch.setattr(mlflow_store, "_client", Client)
    mlflow_store._create_sqlite(path)
    assert path.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [path]


def test_a_store_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "runs" / "mlflow.db"

    class Client:
        def __init__(self, uri: str) -> None:
            self.own = Path(uri.removeprefix("sqlite:///"))

        def search_experiments(self, **_: Any) -> None:
            assert not path.exists()
            self.own.write_text("ours")

    monkeypatch.setattr(mlflow_store, "_client", Client)
    mlflow_store._create_sqlite(path)
    assert path.read_text() == "ours"
    assert list(path.parent.iterdir()) == [path]


def test_a_database_server_that_is_away_is_noticed_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(OSError):
        mlflow_store._check_reachable("postgresql+psycopg2://me:secret@127.0.0.1:9/db", None)
    assert time.monotonic() - began < 6
