"""Tests of MLflow for a training on its own. One store for all: creating one takes seconds."""

import logging
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest

from detector import tracking
from detector.tracking import MlflowTracker, NullTracker, Tracker, open_tracker

CONFIG = {"model": "yolox-pico", "epochs": 3, "weights": "", "fitness": {"F1": 0.5, "mAP50": 0.5}}
HYP = {"lr0": 0.01, "momentum": 0.9}


@pytest.fixture(scope="module")
def store_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tracking")
    tracking._create_sqlite(folder / "mlflow.db")
    return folder


@pytest.fixture
def uri(store_folder: Path) -> str:
    return f"sqlite:///{store_folder}/mlflow.db"


@pytest.fixture
def experiment(tmp_path: Path) -> str:
    return tmp_path.name


def row(epoch: int) -> dict[str, float]:
    worst = math.nan if epoch == 2 else 1.0
    return {"step": 10 * epoch, "train/box": 1 / epoch, "mAP@0.5": 0.5, "fitness": 0.1, "w": worst}


def begin(uri: str, experiment: str, directory: Path, name: str | None = "bccd") -> Tracker:
    tracker = open_tracker(uri, experiment, name)
    tracker.start(CONFIG, HYP, directory)
    return tracker


def runs_of(uri: str, experiment: str) -> list[Any]:
    client = tracking._open_client(uri)
    found = client.get_experiment_by_name(experiment)
    runs: list[Any] = client.search_runs([found.experiment_id])
    return runs


def curve(uri: str, run: Any, name: str) -> list[tuple[int, float]]:
    history = tracking._open_client(uri).get_metric_history(run.info.run_id, name)
    return sorted((point.step, point.value) for point in history)


def test_a_run_holds_settings_curves_and_files(uri: str, experiment: str, tmp_path: Path) -> None:
    tracker = begin(uri, experiment, tmp_path)
    for epoch in (1, 2, 3):
        tracker.log(epoch, row(epoch))
    (tmp_path / "results.png").touch()
    tracker.finish("FINISHED", [tmp_path / "results.png", tmp_path / "missing.png"])
    (run,) = runs_of(uri, experiment)
    assert (run.info.run_name, run.info.status) == ("bccd", "FINISHED")
    assert run.data.params == {
        "model": "yolox-pico",
        "epochs": "3",
        "fitness.F1": "0.5",
        "fitness.mAP50": "0.5",
        "lr0": "0.01",
        "momentum": "0.9",
    }
    assert curve(uri, run, "train/box") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert curve(uri, run, "w") == [(1, 1.0), (3, 1.0)]
    assert set(run.data.metrics) == {"train/box", "mAP_0.5", "fitness", "w"}
    files = tracking._open_client(uri).list_artifacts(run.info.run_id)
    assert [item.path for item in files] == ["results.png"]


def test_files_lie_beside_the_store(
    uri: str, experiment: str, store_folder: Path, tmp_path: Path
) -> None:
    begin(uri, experiment, tmp_path).finish("finished", [])
    (run,) = runs_of(uri, experiment)
    folder = store_folder / "mlartifacts" / experiment
    assert run.info.artifact_uri.startswith(folder.as_uri())


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        ("FAILED", "FAILED"),
        ("KILLED", "KILLED"),
        ("interrupted", "KILLED"),
        ("finished", "FINISHED"),
        ("anything else", "FAILED"),
    ],
)
def test_a_run_ends_as_its_training_did(
    uri: str, experiment: str, tmp_path: Path, status: str, shown: str
) -> None:
    begin(uri, experiment, tmp_path).finish(status, [])
    assert [run.info.status for run in runs_of(uri, experiment)] == [shown]


@pytest.mark.parametrize("name", [None, "", "  "])
def test_a_run_without_a_name_has_its_folders(
    uri: str, experiment: str, tmp_path: Path, name: str | None
) -> None:
    begin(uri, experiment, tmp_path / "bccd-2", name).finish("finished", [])
    assert [run.info.run_name for run in runs_of(uri, experiment)] == ["bccd-2"]


def test_a_resumed_training_goes_on_in_its_run(uri: str, experiment: str, tmp_path: Path) -> None:
    first = begin(uri, experiment, tmp_path)
    first.log(1, row(1))
    first.finish("KILLED", [])
    # epoch 2 was finished, but the process was killed before it was written
    (tmp_path / "results.csv").write_text("epoch,step,train/box,F1\n1,10,1.0,\n2,20,0.5,0.25\n")
    second = begin(uri, experiment, tmp_path)
    second.log(3, row(3))
    second.finish("FINISHED", [])
    (run,) = runs_of(uri, experiment)
    assert run.info.status == "FINISHED"
    assert curve(uri, run, "train/box") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert curve(uri, run, "F1") == [(2, 0.25)]


def test_epochs_are_written_in_batches(
    uri: str, experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushes: list[float] = []
    flush = MlflowTracker._flush

    def counted(tracker: MlflowTracker) -> None:
        flushes.append(time.monotonic())
        flush(tracker)

    monkeypatch.setattr(MlflowTracker, "_flush", counted)
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 1000.0)
    tracker = begin(uri, experiment, tmp_path)
    for epoch in range(100):
        tracker.log(epoch, {f"part{part}": float(epoch) for part in range(20)})
    tracker.finish("FINISHED", [])
    assert len(flushes) == 2  # at the first epoch and at the end
    (run,) = runs_of(uri, experiment)
    assert curve(uri, run, "part19") == [(epoch, float(epoch)) for epoch in range(100)]


@pytest.mark.parametrize("place", ["server", "file"])
def test_a_store_that_is_away_costs_a_warning_and_little_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    junk = tmp_path / "mlflow.db"
    junk.write_bytes(b"this is not a database " * 100)
    uri = "http://me:secret@127.0.0.1:9" if place == "server" else f"sqlite:///{junk}"
    began = time.monotonic()
    tracker = begin(uri, "away", tmp_path)
    for epoch in (1, 2, 3):
        tracker.log(epoch, row(epoch))
    tracker.finish("FINISHED", [])
    assert time.monotonic() - began < 15.0
    lines = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(lines) == 1
    assert "the training goes on" in lines[0]
    assert "secret" not in lines[0]


def test_what_a_store_missed_is_written_at_the_end(
    uri: str, experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise ConnectionError("connection refused")

    with monkeypatch.context() as down:
        down.setattr(tracking, "_open_client", away)
        tracker = begin(uri, experiment, tmp_path)
        tracker.log(1, row(1))
        tracker.log(2, row(2))
    tracker.finish("FINISHED", [])
    (run,) = runs_of(uri, experiment)
    assert curve(uri, run, "train/box") == [(1, 1.0), (2, 0.5)]


def test_the_environment_stays_as_it_was(uri: str, experiment: str, tmp_path: Path) -> None:
    before = dict(os.environ)
    begin(uri, experiment, tmp_path).finish("FINISHED", [])
    assert dict(os.environ) == before


def test_without_a_store_nothing_is_tracked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert isinstance(open_tracker(None, "detector", None), NullTracker)


def test_the_environment_names_store_and_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "cells")
    tracker = open_tracker(None, None, None)
    assert isinstance(tracker, MlflowTracker)
    assert (tracker._uri, tracker._experiment) == ("http://tracking:5000", "cells")
    chosen = open_tracker("http://other", "mine", None)
    assert isinstance(chosen, MlflowTracker)
    assert (chosen._uri, chosen._experiment) == ("http://other", "mine")
