"""Tests of what the tracker is told about a trial."""

import math
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from evolve import tracked

BEGIN = datetime(2026, 1, 2, 3, 4, 5)


def trial_with(state: TrialState = TrialState.COMPLETE, **attributes: object) -> FrozenTrial:
    return optuna.trial.create_trial(
        state=state,
        value=0.5 if state == TrialState.COMPLETE else None,
        params={"lr0": 0.001, "nbs": 64, "optimizer": "SGD"},
        distributions={
            "lr0": FloatDistribution(1e-5, 0.1, log=True),
            "nbs": IntDistribution(1, 256, log=True),
            "optimizer": CategoricalDistribution(("SGD", "AdamW")),
        },
        user_attrs=attributes,
    )


@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        ("mAP50-95", "mAP50-95"),
        ("mAP@0.5", "mAP_0.5"),
        ("train/box", "train/box"),
        ("val: loss", "val_ loss"),
        ("/a//b/../c", "a/b/c"),
        ("größe", "größe"),
        ("..", "_"),
    ],
)
def test_names_become_names_that_mlflow_takes(given: str, allowed: str) -> None:
    assert tracked.metric_name(given) == allowed


def test_mlflow_takes_the_names() -> None:
    validation = pytest.importorskip("mlflow.utils.validation")
    for name in ("mAP@0.5", "val: loss", "/a//b/../c", "..", "größe", "a" * 400):
        validation._validate_metric_name(tracked.metric_name(name))


def test_only_finite_numbers_stay() -> None:
    metrics = {"a": math.nan, "b": -math.inf, "c": np.float32(0.5), "d": "x", "e": True, "f": None}
    assert tracked.clean({**metrics, "g": 3}) == {"c": 0.5, "g": 3.0}


def test_log_scales_have_a_twin() -> None:
    # log10(0.001) = -3, log10(64) = 1.80618
    assert tracked.params_of(trial_with()) == {
        "lr0": "0.001",
        "log10_lr0": "-3.0000",
        "nbs": "64",
        "log10_nbs": "1.8062",
        "optimizer": "SGD",
    }


def test_parameters_keep_full_precision() -> None:
    trial = trial_with()
    trial.params["lr0"] = 0.1 + 0.2
    assert float(tracked.params_of(trial)["lr0"]) == 0.1 + 0.2


@pytest.mark.parametrize(
    ("attributes", "name"),
    [
        ({}, "trial 0"),
        ({"kind": "start"}, "trial 0 (start)"),
        ({"kind": "confirm", "of": 12, "repeat": 0}, "confirm 12/1"),
    ],
)
def test_names_of_runs_are_short(attributes: dict[str, object], name: str) -> None:
    trial = trial_with(**attributes)
    trial.number = 0
    assert tracked.run_name(trial) == name


def test_a_reason_is_shown_as_code_so_that_markdown_leaves_it_alone() -> None:
    tags = tracked.tags_of(trial_with(TrialState.FAIL, reason="ValueError: 2*x*y"))
    assert tags["mlflow.note.content"] == "`ValueError: 2*x*y`"
    assert tags["evolve.state"] == "fail"


def test_times_of_a_recorded_curve_are_spread_over_the_trial(tmp_path: Path) -> None:
    trial = trial_with()
    trial.datetime_start, trial.datetime_complete = BEGIN, BEGIN + timedelta(seconds=10)
    (tmp_path / "results.csv").write_text(" epoch, F1,note\n1,0.2,x\n2,,x\n4,0.4,x\n")
    begin = tracked.milliseconds(BEGIN)
    # epochs 1 and 4 of 4: after 2.5 and 10 of the 10 seconds
    expected = {("F1", 1): (0.2, begin + 2500), ("F1", 4): (0.4, begin + 10000)}
    assert tracked.recorded_curves(trial, tmp_path) == expected


def test_a_table_without_epochs_counts_its_rows(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("F1\n0.2\n0.4\n")
    curves = tracked.recorded_curves(trial_with(), tmp_path)
    assert {key: value for key, (value, _) in curves.items()} == {("F1", 0): 0.2, ("F1", 1): 0.4}


def test_a_description_becomes_parameters(tmp_path: Path) -> None:
    text = "box: 5.0\nlr0: 0.01\ntrain:\n  model: pico\n  seed: 3\n  fitness: {F1: 1.0}\n"
    (tmp_path / "hyp.yaml").write_text(text)
    description = {"data": {"digest": "ab12", "images": 96}, "latency_ms": 8.5, "list": [1]}
    # lr0 is searched and stands under its own name; the seed is a tag
    assert tracked.described(description, tmp_path, {"lr0"}) == {
        "settings.data.digest": "ab12",
        "settings.data.images": "96",
        "settings.latency_ms": "8.5",
        "settings.model": "pico",
        "settings.fitness.F1": "1.0",
        "settings.box": "5.0",
    }


def test_a_described_trial_is_recorded_alike_with_and_without_its_file(tmp_path: Path) -> None:
    description = {"hyp": {"box": 5.0}, "config": {"model": "pico", "seed": 3}, "torch": "2"}
    named = tracked.described(description, tmp_path)
    (tmp_path / "hyp.yaml").write_text("box: 5.0\ntrain: {model: pico, seed: 7}\n")
    assert tracked.described(description, tmp_path) == named
    assert tracked.described({"torch": "2"}, tmp_path) == named  # as the study keeps it
    assert named == {"settings.torch": "2", "settings.model": "pico", "settings.box": "5.0"}


def test_a_broken_file_is_no_description(tmp_path: Path) -> None:
    (tmp_path / "hyp.yaml").write_text("{")
    assert tracked.described({}, tmp_path) == {}


def test_the_first_picture_is_kept_and_weights_are_not(tmp_path: Path) -> None:
    pictures = ("train_batch0.jpg", "plots/a.png", "pictures/c.png", "pictures/b.jpg")
    for name in ("hyp.yaml", "weights/best.pt", *pictures):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    files = [(path.name, place) for path, place in tracked.files_of(tmp_path)]
    assert files == [("hyp.yaml", None), ("b.jpg", "pictures")]
