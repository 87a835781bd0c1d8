"""Tests of the MLflow record of a study. One store for all of them: creating one takes seconds."""

import logging
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from evolve.champion import keep_files
from evolve.config import StudyConfig, parse_config
from evolve.mlflow_store import Store
from evolve.mlflow_tracker import MlflowTracker
from evolve.tracking import BackgroundTracker, NullTracker, Tracker, open_tracker

SPACE = {"lr0": {"low": 1e-5, "high": 0.1, "log": True}, "momentum": {"low": 0.6, "high": 0.98}}
EPOCHS = 3
SUMMARY: dict[str, Any] = {"study": "toy", "verdict": "better", "verdict_text": "better: +0.1"}


@pytest.fixture(scope="module")
def store_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tracking")
    Store(f"sqlite:///{folder}/mlflow.db", "first")
    return folder


@dataclass
class Bench:
    """A study, its configuration and tracker, and what the store says about it."""

    config: StudyConfig
    folder: Path
    study: Study
    tracker: Tracker = field(init=False)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin again as a new process would: another tracker, the same study."""
        self.tracker = open_tracker(self.config, self.folder)
        self.tracker.start(self.study)

    def directory(self, number: int) -> Path:
        return self.folder / "trials" / str(number)

    def begin(self, kind: str = "search", **attributes: Any) -> optuna.Trial:
        trial = self.study.ask(self.config.space.distributions())
        for name, value in {"kind": kind, "seed": 7, "attempts": 1, **attributes}.items():
            trial.set_user_attr(name, value)
        self.tracker.trial_started(self.study.trials[trial.number], "cpu0")
        return trial

    def epochs(self, trial: optuna.Trial, first: int = 1, last: int = EPOCHS) -> None:
        for epoch in range(first, last + 1):
            self.tracker.trial_epoch(trial.number, epoch, epoch_row(epoch))
            if epoch not in self.study.trials[trial.number].intermediate_values:
                trial.report(epoch / 10, epoch)

    def end(self, trial: optuna.Trial, value: float | None, state: TrialState) -> FrozenTrial:
        trial.set_user_attr("seconds", 12.5)
        if value is not None:
            trial.set_user_attr("metrics", {"mAP50-95": 0.25, "F1": 0.75})
        told = self.study.tell(trial, value if state == TrialState.COMPLETE else None, state)
        self.tracker.trial_finished(told, self.directory(trial.number), {"parameters": 900})
        return told

    def run(self, value: float = 0.5, **attributes: Any) -> int:
        trial = self.begin(**attributes)
        self.epochs(trial)
        self.end(trial, value, TrialState.COMPLETE)
        return trial.number

    def write_results(self, number: int) -> None:
        directory = self.directory(number)
        (directory / "weights").mkdir(parents=True, exist_ok=True)
        (directory / "weights" / "best.pt").write_bytes(b"weights of %d" % number)
        (directory / "hyp.yaml").write_text("box: 5.0\nlr0: 0.5\ntrain: {model: pico, seed: 3}\n")
        names = list(epoch_row(1))
        rows = [",".join(map(str, epoch_row(epoch).values())) for epoch in range(1, EPOCHS + 1)]
        (directory / "results.csv").write_text("\n".join([",".join(names), *rows]) + "\n")

    # ---- what the store says

    @property
    def store(self) -> Store:
        return Store(str(self.config.tracking.uri), self.config.tracking.experiment)

    def parents(self) -> list[Any]:
        return self.store.find({"evolve.kind": "study"})

    def runs(self) -> dict[int, Any]:
        """Return the trials' runs by number; two of one number are a failure."""
        (parent,) = self.parents()
        found = self.store.find({"evolve.id": parent.data.tags["evolve.id"]})
        found = [run for run in found if run.data.tags["evolve.kind"] != "study"]
        runs = {int(run.data.tags["evolve.generation"]): run for run in found}
        assert len(runs) == len(found)
        return runs

    def curve(self, number: int, metric: str) -> list[tuple[int, float]]:
        return self.curve_of(self.runs()[number].info.run_id, metric)

    def curve_of(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        history = self.store._client.get_metric_history(run_id, metric)
        return sorted((point.step, point.value) for point in history)

    @property
    def model(self) -> str:
        return f"{self.config.tracking.experiment}-toy"

    def versions(self) -> list[Any]:
        return self.store.versions(self.model)

    def champion(self) -> Any:
        return self.store._client.get_model_version_by_alias(self.model, "champion")

    def files_of(self, version: Any) -> list[str]:
        """Return the names of a version's files."""
        place = version.source.removeprefix(f"runs:/{version.run_id}/")
        found = self.store._client.list_artifacts(version.run_id, place)
        return sorted(Path(item.path).name for item in found)

    def files(self, number: int, place: str | None = None) -> list[str]:
        run_id = self.runs()[number].info.run_id
        return sorted(item.path for item in self.store._client.list_artifacts(run_id, place))


def epoch_row(epoch: int) -> dict[str, float]:
    return {
        "epoch": epoch,
        "step": epoch * 10,
        "train/box": 1 / epoch,
        "mAP@0.5": 0.1 * epoch,
        "fitness": epoch / 10,
        "worst": math.inf if epoch == 2 else 1.0,
    }


@pytest.fixture
def make_bench(store_folder: Path, tmp_path: Path) -> Callable[..., Bench]:
    def make(uri: str = f"sqlite:///{store_folder}/mlflow.db") -> Bench:
        tree = {
            "objective": "detector.objective",
            "space": SPACE,
            "study": {"name": "toy"},
            "fitness": {"mAP50-95": 0.5, "F1": 0.5},
            "tracking": {"uri": uri, "experiment": tmp_path.name},
        }
        sampler = optuna.samplers.RandomSampler(seed=0)
        study = optuna.create_study(direction="maximize", study_name="toy", sampler=sampler)
        return Bench(parse_config(tree), tmp_path / "study", study)

    return make


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()


# ---- what a run holds ------------------------------------------------------------------------


def test_a_finished_trial_has_one_run_with_its_values(bench: Bench) -> None:
    bench.study.enqueue_trial({"lr0": 0.01, "momentum": 0.9})
    number = bench.run(0.5, kind="start")
    run = bench.runs()[number]
    assert run.info.run_name == "trial 0 (start)"
    assert run.info.status == "FINISHED"
    # log10(0.01) = -2; `parameters` is what the objective described
    expected = {
        "lr0": "0.01",
        "log10_lr0": "-2.0000",
        "momentum": "0.9",
        "settings.parameters": "900",
    }
    assert run.data.params == expected
    tags = {"evolve.kind": "trial", "evolve.state": "complete", "evolve.generation": "0"}
    tags |= {"evolve.seed": "7", "evolve.worker": "cpu0", "evolve.study": "toy"}
    assert tags.items() <= run.data.tags.items()
    assert run.data.metrics["fitness"] == 0.5
    assert run.data.metrics["mAP50-95"] == 0.25
    assert run.data.metrics["trial_seconds"] == 12.5


def test_every_metric_has_a_curve_of_finite_values(bench: Bench) -> None:
    number = bench.run()
    assert bench.curve(number, "train/box") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert bench.curve(number, "mAP_0.5") == [(1, 0.1), (2, 0.2), (3, 0.1 * 3)]
    assert bench.curve(number, "worst") == [(1, 1.0), (3, 1.0)]
    assert bench.curve(number, "fitness_by_epoch") == [(1, 0.1), (2, 0.2), (3, 0.3)]


def test_fitness_is_the_first_metric_and_has_one_value(bench: Bench) -> None:
    number = bench.run(0.5)
    assert next(iter(bench.runs()[number].data.metrics)) == "fitness"
    assert bench.curve(number, "fitness") == [(0, 0.5)]


def test_a_failed_trial_says_why_and_has_no_fitness(bench: Bench) -> None:
    trial = bench.begin()
    bench.epochs(trial, last=2)
    trial.set_user_attr("reason", "diverged: box=nan")
    bench.end(trial, None, TrialState.FAIL)
    run = bench.runs()[trial.number]
    assert run.info.status == "FAILED"
    assert run.data.tags["evolve.reason"] == "diverged: box=nan"
    assert "fitness" not in run.data.metrics
    assert run.data.metrics["fitness_by_epoch"] == 0.2


def test_a_pruned_trial_is_killed_with_its_state(bench: Bench) -> None:
    trial = bench.begin()
    bench.epochs(trial, last=2)
    bench.end(trial, 0.2, TrialState.PRUNED)
    run = bench.runs()[trial.number]
    assert (run.info.status, run.data.tags["evolve.state"]) == ("KILLED", "pruned")


def test_a_running_trial_shows_its_curve_and_values(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evolve.mlflow_tracker.FLUSH_SECONDS", 0.0)
    trial = bench.begin()
    bench.epochs(trial, last=2)
    run = bench.runs()[trial.number]
    assert run.info.status == "RUNNING"
    assert run.data.params["momentum"] == str(trial.params["momentum"])
    assert bench.curve(trial.number, "train/box") == [(1, 1.0), (2, 0.5)]
    bench.epochs(trial, first=3)
    bench.end(trial, 0.5, TrialState.COMPLETE)
    assert bench.curve(trial.number, "train/box") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]


def test_confirmation_runs_are_named_after_their_trial(bench: Bench) -> None:
    bench.run(kind="start")
    number = bench.run(kind="confirm", of=0, repeat=1)
    run, repeated = bench.runs()[number], bench.runs()[0]
    assert (run.info.run_name, run.data.tags["evolve.kind"]) == ("confirm 0/2", "confirm")
    assert run.data.tags["mlflow.parentRunId"] == repeated.info.run_id


def test_the_parent_run_follows_the_best_fitness_of_the_search(bench: Bench) -> None:
    for value, kind in ((0.3, "start"), (0.2, "search"), (0.6, "search"), (0.9, "confirm")):
        bench.run(value, kind=kind)
    bench.tracker.finish(bench.study, None)
    (parent,) = bench.parents()
    best = bench.curve_of(parent.info.run_id, "best_fitness")
    assert best == [(0, 0.3), (1, 0.3), (2, 0.6)]


def test_a_parent_run_that_was_cut_off_gets_what_it_lacks(bench: Bench) -> None:
    bench.run(0.3, kind="start")
    bench.run(0.2)
    bench.restart()
    (parent,) = bench.parents()
    assert bench.curve_of(parent.info.run_id, "trial_fitness") == [(0, 0.3), (1, 0.2)]


def test_a_trial_costs_two_calls_to_log_batch(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    log_points = Store.log

    def counted(store: Store, run_id: str, *values: Any) -> None:
        calls.append(run_id)
        log_points(store, run_id, *values)

    monkeypatch.setattr(Store, "log", counted)
    bench.run()
    assert len(calls) == 2  # its parameters, its results


def test_more_than_a_thousand_points_are_written(bench: Bench) -> None:
    trial = bench.begin()
    for epoch in range(60):
        row = {f"train/part{part}": epoch + part / 100 for part in range(30)}
        bench.tracker.trial_epoch(trial.number, epoch, row)
    bench.end(trial, 0.5, TrialState.COMPLETE)
    for part in (0, 29):
        points = [(epoch, epoch + part / 100) for epoch in range(60)]
        assert bench.curve(trial.number, f"train/part{part}") == points


# ---- files -----------------------------------------------------------------------------------


def test_a_trial_keeps_its_small_files_and_other_hyperparameters(bench: Bench) -> None:
    trial = bench.begin()
    bench.write_results(trial.number)
    bench.end(trial, 0.5, TrialState.COMPLETE)
    assert bench.files(trial.number) == ["hyp.yaml", "results.csv"]
    params = bench.runs()[trial.number].data.params
    assert (params["settings.box"], params["settings.model"]) == ("5.0", "pico")
    assert params["lr0"] == str(trial.params["lr0"])  # not the file's
    assert "settings.lr0" not in params
    assert "seed" not in params


def test_only_the_winner_has_weights(bench: Bench) -> None:
    for value in (0.4, 0.6, 0.5):
        bench.write_results(bench.run(value))
    bench.tracker.finish(bench.study, SUMMARY)
    has_weights = ["weights" in bench.files(number) for number in range(3)]
    assert has_weights == [False, True, False]
    (parent,) = bench.parents()
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["evolve.best_trial"] == "1"


def test_an_interrupted_study_has_no_champion(bench: Bench) -> None:
    bench.write_results(bench.run(0.4))
    bench.tracker.finish(bench.study, None)
    assert bench.versions() == []
    assert "weights" not in bench.files(0)


def test_the_recommended_trial_and_the_verdict_come_from_the_summary(bench: Bench) -> None:
    for value in (0.4, 0.6):
        bench.write_results(bench.run(value))
    repeat = bench.run(0.5, kind="confirm", of=0, repeat=0)
    bench.write_results(repeat)
    summary = {
        "verdict": "better",
        "verdict_text": "better: +0.1",
        "recommended": {"trial": 0},
        "checkpoint": str(bench.directory(repeat) / "weights" / "best.pt"),
        "gain": {"mean": 0.1, "sd": None, "n": 1, "interval": [None, None]},
    }
    bench.tracker.finish(bench.study, summary)
    assert "weights" in bench.files(0)
    assert bench.runs()[0].data.tags["evolve.weights_from"] == "trials/2/weights/best.pt"
    (parent,) = bench.parents()
    assert parent.data.tags["mlflow.note.content"].startswith("**better: +0.1**")
    assert parent.data.metrics["gain/mean"] == 0.1


def test_files_lie_beside_the_store_from_wherever_a_study_is_started(
    store_folder: Path, bench: Bench
) -> None:
    experiment = bench.store._client.get_experiment(bench.store.experiment)
    place = store_folder / "mlartifacts" / bench.config.tracking.experiment
    assert experiment.artifact_location == place.as_uri()


# ---- the champion ------------------------------------------------------------------------------


def test_the_winner_becomes_the_champion_with_its_metrics_and_data(bench: Bench) -> None:
    bench.study.set_user_attr("description", {"data": "cells.yaml", "digests": {"val": "abc"}})
    bench.write_results(bench.run(0.4))
    bench.tracker.finish(bench.study, SUMMARY)
    version = bench.champion()
    expected = {"fitness": "0.4", "mAP50-95": "0.25", "verdict": "better", "data": "cells.yaml"}
    assert (expected | {"digests.val": "abc", "trial": "0"}).items() <= version.tags.items()
    assert version.description == "better: +0.1"
    assert (version.run_id, bench.files_of(version)) == (bench.runs()[0].info.run_id, ["best.pt"])
    assert f"/#/models/{bench.model}?" in dict(bench.tracker.links())["the champion"]


def test_the_same_weights_stay_one_version(bench: Bench) -> None:
    bench.write_results(bench.run(0.4))
    for text in ("no difference shown", "better"):
        bench.restart()
        bench.tracker.finish(bench.study, {**SUMMARY, "verdict_text": text})
    assert [version.description for version in bench.versions()] == ["better"]


def test_a_new_winner_is_a_new_version_and_the_old_one_keeps_its_weights(bench: Bench) -> None:
    for value in (0.4, 0.7):
        bench.write_results(bench.run(value))
        bench.tracker.finish(bench.study, SUMMARY)
        bench.restart()
    newest, oldest = bench.versions()
    assert bench.champion().version == newest.version
    assert (newest.tags["trial"], oldest.tags["trial"]) == ("1", "0")
    assert [bench.files_of(version) for version in (newest, oldest)] == [["best.pt"]] * 2


def test_a_repeat_that_left_the_weights_gives_the_metrics(bench: Bench) -> None:
    bench.write_results(bench.run(0.6))
    repeat = bench.run(0.5, kind="confirm", of=0, repeat=0)
    bench.write_results(repeat)
    weights = bench.directory(repeat) / "weights" / "best.pt"
    bench.tracker.finish(bench.study, {**SUMMARY, "checkpoint": str(weights)})
    tags = bench.champion().tags
    assert (tags["fitness"], tags["trial"], tags["trained_by"]) == ("0.5", "0", "1")


def test_engines_lie_beside_the_weights_they_were_made_of(bench: Bench, tmp_path: Path) -> None:
    bench.write_results(bench.run(0.4))
    weights = bench.directory(0) / "weights" / "best.pt"
    engine, sidecar = tmp_path / "best.onnx", tmp_path / "best.onnx.json"
    for path in (engine, sidecar):
        path.write_text("x")
    assert keep_files(bench.config, weights, [engine]) == ""  # nobody registered them
    bench.tracker.finish(bench.study, SUMMARY)
    line = keep_files(bench.config, weights, [engine, sidecar])
    assert line == f"in MLflow: {bench.model} version 1"
    assert bench.files_of(bench.champion()) == ["best.onnx", "best.onnx.json", "best.pt"]
    assert bench.champion().tags["formats"] == "onnx"


def test_each_run_names_its_data(bench: Bench) -> None:
    trial = bench.begin()
    told = bench.study.tell(trial, 0.5)
    description = {"data": "cells.yaml", "digests": {"train": "aa", "val": "b" * 64}}
    bench.tracker.trial_finished(told, bench.directory(0), description)
    inputs = bench.runs()[0].inputs.dataset_inputs
    found = {one.tags[0].value: (one.dataset.name, one.dataset.digest) for one in inputs}
    # MLflow takes 36 characters of a digest
    assert found == {"train": ("cells.yaml train", "aa"), "val": ("cells.yaml val", "b" * 36)}


# ---- resuming --------------------------------------------------------------------------------


def test_resuming_doubles_nothing(bench: Bench) -> None:
    bench.run()
    before = bench.curve(0, "train/box")
    bench.tracker.finish(bench.study, None)
    bench.restart()
    assert bench.tracker.sync(bench.study) == 0
    bench.run()
    assert len(bench.parents()) == 1
    assert sorted(bench.runs()) == [0, 1]
    assert bench.curve(0, "train/box") == before


def test_a_trial_that_the_record_lacks_is_written_from_its_folder(bench: Bench) -> None:
    number = bench.run()
    bench.store.delete(bench.runs()[number].info.run_id)
    bench.write_results(number)
    bench.restart()
    run = bench.runs()[number]
    assert (run.info.status, run.data.metrics["fitness"]) == ("FINISHED", 0.5)
    assert bench.curve(number, "train/box") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert bench.curve(number, "fitness_by_epoch") == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert bench.files(number) == ["hyp.yaml", "results.csv"]


def test_a_trial_without_a_folder_is_written_from_the_study(bench: Bench) -> None:
    number = bench.run()
    bench.store.delete(bench.runs()[number].info.run_id)
    bench.restart()
    assert bench.curve(number, "fitness_by_epoch") == [(1, 0.1), (2, 0.2), (3, 0.3)]


def test_a_run_that_a_dead_process_left_half_written_is_completed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evolve.mlflow_tracker.FLUSH_SECONDS", 0.0)
    trial = bench.begin()
    bench.epochs(trial, last=2)
    bench.study.tell(trial, 0.5)  # the process dies before it tells the tracker
    bench.write_results(trial.number)
    bench.restart()
    assert bench.runs()[trial.number].info.status == "FINISHED"
    assert bench.curve(trial.number, "train/box") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]


def test_a_trial_taken_up_again_goes_on_in_its_run(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evolve.mlflow_tracker.FLUSH_SECONDS", 0.0)
    trial = bench.begin()
    bench.epochs(trial, last=2)
    run_id = bench.runs()[trial.number].info.run_id
    bench.restart()
    bench.tracker.trial_started(bench.study.trials[trial.number], "cpu1")
    bench.epochs(trial, first=2)  # epoch 2 again, from the last checkpoint
    bench.end(trial, 0.5, TrialState.COMPLETE)
    run = bench.runs()[trial.number]
    assert (run.info.run_id, run.info.status) == (run_id, "FINISHED")
    assert bench.curve(trial.number, "train/box") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]


def test_a_run_without_its_trial_is_closed(bench: Bench) -> None:
    (parent,) = bench.parents()
    tags = {"evolve.id": parent.data.tags["evolve.id"], "evolve.generation": "0"}
    run_id = bench.store.create("trial 0", tags).run_id
    bench.restart()
    run = bench.store.get(run_id)
    assert (run.info.status, run.data.tags["evolve.state"]) == ("KILLED", "abandoned")


def test_of_two_runs_of_one_trial_one_stays(bench: Bench) -> None:
    number = bench.run()
    (parent,) = bench.parents()
    tags = {"evolve.id": parent.data.tags["evolve.id"], "evolve.generation": str(number)}
    bench.store.create("trial 0", tags)
    bench.restart()
    assert bench.runs()[number].data.metrics["fitness"] == 0.5


def test_an_interrupted_study_leaves_nothing_running(bench: Bench) -> None:
    trial = bench.begin()
    bench.tracker.finish(bench.study, None)
    run = bench.runs()[trial.number]
    assert (run.info.status, run.data.tags["evolve.state"]) == ("KILLED", "interrupted")
    assert bench.parents()[0].info.status == "KILLED"
    bench.restart()
    bench.tracker.trial_started(bench.study.trials[trial.number], "cpu0")
    assert bench.runs()[trial.number].info.status == "RUNNING"


def test_another_study_of_the_same_name_gets_its_own_parent(
    bench: Bench, make_bench: Callable[..., Bench]
) -> None:
    bench.run()
    other = make_bench()
    other.run()
    parents = {run.info.run_id for run in other.parents()}
    children = other.store.find({"evolve.kind": "trial"})
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == parents
    assert len(children) == len(parents) == 2


# ---- faults ----------------------------------------------------------------------------------


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize("place", ["server", "file", "database"])
def test_a_store_that_is_away_costs_a_warning_and_little_time(
    make_bench: Callable[..., Bench],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    junk = tmp_path / "mlflow.db"
    junk.write_bytes(b"this is not a database " * 100)
    uris = {"server": "http://me:secret@127.0.0.1:9", "file": f"sqlite:///{junk}"}
    began = time.monotonic()
    bench = make_bench(uris.get(place, "postgresql://user:secret@127.0.0.1:9/mlflow"))
    for _ in range(5):
        bench.run()
    assert len(warnings_of(caplog)) == 1
    bench.tracker.finish(bench.study, None)
    assert time.monotonic() - began < 20.0
    assert "secret" not in caplog.text
    assert [trial.state for trial in bench.study.trials] == [TrialState.COMPLETE] * 5
    assert bench.tracker.links() == []


def test_what_a_full_disk_lost_is_written_when_the_study_ends(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    bench.run()
    with monkeypatch.context() as disk:
        disk.setattr(Store, "log", full)
        numbers = [bench.run() for _ in range(4)]
    assert bench.runs()[0].info.status == "FINISHED"
    assert len(warnings_of(caplog)) == 1
    bench.tracker.finish(bench.study, None)
    for number in numbers:
        run = bench.runs()[number]
        assert (run.info.status, run.data.metrics["fitness"]) == ("FINISHED", 0.5)
        assert bench.curve(number, "fitness_by_epoch") == [(1, 0.1), (2, 0.2), (3, 0.3)]


def test_a_store_that_is_back_gets_what_it_missed_while_the_study_runs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise ConnectionError("refused")

    with monkeypatch.context() as server:
        server.setattr(Store, "log", away)
        numbers = [bench.run() for _ in range(4)]
    monkeypatch.setattr("evolve.mlflow_tracker.REST_SECONDS", 0.0)
    assert isinstance(bench.tracker, MlflowTracker)
    bench.tracker._rest_until = 0.0  # a minute has passed
    bench.run()
    assert all(bench.runs()[number].info.status == "FINISHED" for number in numbers)


class SlowTracker(NullTracker):
    """A tracker that waits, for a test of who waits for it."""

    def __init__(self) -> None:
        self.gate, self.calls = threading.Event(), list[str]()

    def trial_epoch(self, number: int, step: int, metrics: dict[str, float]) -> None:
        assert self.gate.wait(20)
        self.calls.append(f"epoch {step}")

    def finish(self, study: Study, summary: dict[str, Any] | None) -> bool:
        self.calls.append("finish")
        return True


def test_a_slow_store_holds_up_no_trial_and_loses_nothing(bench: Bench) -> None:
    slow = SlowTracker()
    tracker = BackgroundTracker(slow)
    for step in range(3):
        tracker.trial_epoch(0, step, {})
    assert slow.calls == []  # all three calls came back while the store was waiting
    slow.gate.set()
    assert tracker.finish(bench.study, None)
    assert slow.calls == ["epoch 0", "epoch 1", "epoch 2", "finish"]


def test_the_environment_stays_as_it_was(bench: Bench) -> None:
    before = dict(os.environ)
    bench.run()
    bench.tracker.finish(bench.study, None)
    assert dict(os.environ) == before


# ---- which store, which pages ----------------------------------------------------------------


def config_with(uri: str | None) -> StudyConfig:
    tree = {"objective": "x", "space": SPACE, "tracking": {"uri": uri} if uri else None}
    return parse_config(tree)


def test_tracking_can_be_off() -> None:
    tracker = open_tracker(config_with(None), Path("runs"))
    assert isinstance(tracker, NullTracker)
    assert tracker.links() == []


def test_the_environment_names_the_store_unless_the_configuration_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def uri_of(tracker: Tracker) -> str:
        assert isinstance(tracker, MlflowTracker)
        return tracker._uri

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    default = open_tracker(parse_config({"objective": "x", "space": SPACE}), Path("runs"))
    chosen = open_tracker(config_with("sqlite:///own.db"), Path("runs"))
    assert uri_of(default) == "http://tracking:5000"
    assert uri_of(chosen) == f"sqlite:///{Path('own.db').resolve()}"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    default = open_tracker(parse_config({"objective": "x", "space": SPACE}), Path("runs"))
    assert uri_of(default) == f"sqlite:///{Path('runs/mlflow.db').resolve()}"


def test_links_lead_to_the_best_trials_of_this_study(bench: Bench) -> None:
    for number in range(12):
        bench.run(value=number / 100)
    links = dict(bench.tracker.links())
    runs = bench.runs()
    compared = links["the best 10 compared"]
    assert all(runs[number].info.run_id in compared for number in range(2, 12))
    assert runs[0].info.run_id not in compared
    (parent,) = bench.parents()
    assert parent.info.run_id in links["the study"]
    assert links["curves of all trials"].endswith("compareRunsMode=CHART")
    experiment = bench.store._client.get_experiment(bench.store.experiment)
    view = experiment.tags[f"mlflow.sharedViewState.evolve-{parent.info.run_id}"]
    assert "params.`lr0`" in view and "toy: best first" in view
    winner = runs[0].info.run_id  # it measured worst: one that measured better was lucky
    bench.store._client.set_tag(parent.info.run_id, "evolve.best_run", winner)
    compared = dict(bench.tracker.links())["the best 10 compared"]
    assert compared.index(winner) < compared.index(runs[11].info.run_id)
    assert runs[2].info.run_id not in compared


def test_links_are_found_without_starting(bench: Bench) -> None:
    bench.run()
    fresh = open_tracker(bench.config, bench.folder)
    assert fresh.links() == bench.tracker.links()
