"""Files of earlier searches in and out; the numbers are worked by hand."""

import json
import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from evolve.errors import ConfigError
from evolve.interchange import (
    CLASSIC_HYPS,
    Imported,
    add_trials,
    classic_line,
    read_evolve_csv,
    read_evolve_txt,
    read_trials,
    write_evolve_txt,
)
from evolve.problem import Problem
from evolve.space import Space

HYPS = (0.8541, 4.062, 0.1845, 21.61, 1.957, 22.9, 2.894, 0.3689, 0.001844, -4.0, 0.913, 0.000467)


def old_row(results: tuple[float, ...] = (0.3, 0.4, 0.35, 0.34, 5.1), **changes: float) -> str:
    """A row as the trainer of 2019 printed it."""
    values = {**dict(zip(CLASSIC_HYPS, HYPS, strict=True)), **changes}
    return "%11.3g" * 5 % results + "%11.4g" * 12 % tuple(values.values())


def problem_of(**space: Any) -> Problem:
    genes = Space.from_dict(space)
    return Problem(space=genes, start=genes.middle(), constants={}, dead={})


def test_a_row_of_2019_is_read_by_name() -> None:
    Path("evolve.txt").write_text(old_row() + "\n")
    (trial,), skipped = read_evolve_txt("evolve.txt")
    assert skipped == []
    assert trial.line == 1
    assert trial.metrics == {
        "precision": 0.3, "recall": 0.4, "mAP50": 0.35, "F1": 0.34, "test_loss": 5.1
    }  # fmt: skip
    assert trial.fitness == pytest.approx(0.345)  # 0.5 * 0.35 + 0.5 * 0.34
    assert trial.params["giou"] == 0.8541
    assert trial.params["weight_decay"] == 0.000467
    assert trial.params["lrf"] == pytest.approx(1e-4)  # the exponent -4


def test_bad_rows_are_skipped_and_named() -> None:
    rows = [
        old_row(),
        "",
        "# " + old_row() + " giou + best_anchor False",
        "P R mAP F1 test_loss",
        old_row() + "  0.5",
        old_row((math.nan, 0.4, 0.35, 0.34, 5.1)),
        old_row(momentum=math.inf),
        old_row((0.1, 0.1, 0.1, 0.1, math.nan)),
        old_row(lrf=999),
        old_row()[:-3],
    ]
    Path("evolve.txt").write_text("\n".join(rows))
    good, skipped = read_evolve_txt("evolve.txt")
    assert [trial.line for trial in good] == [1, 8]
    assert "test_loss" not in good[1].metrics
    assert skipped == [
        "evolve.txt: line 2 is skipped: blank",
        "evolve.txt: line 3 is skipped: a comment",
        "evolve.txt: line 4 is skipped: 5 columns, not 17",
        "evolve.txt: line 5 is skipped: 18 columns, not 17",
        "evolve.txt: line 6 is skipped: precision is nan",
        "evolve.txt: line 7 is skipped: momentum is inf",
        "evolve.txt: line 9 is skipped: lrf is 999, too large for an exponent",
        "evolve.txt: line 10 is skipped: half-written, without an end of line",
    ]


@pytest.mark.parametrize("text", ["", "\n\n", "# " + "1 " * 17 + "\n", "1 2 3", "x " * 17])
def test_a_file_without_a_good_row_is_an_error_of_one_line(text: str) -> None:
    Path("evolve.txt").write_text(text)
    with pytest.raises(ConfigError, match=r"evolve\.txt: no trial can be read") as caught:
        read_evolve_txt("evolve.txt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["absent.txt", "binary.txt", "table.xlsx", "folder.txt"])
def test_a_file_that_cannot_be_read_is_named(name: str) -> None:
    Path("binary.txt").write_bytes(b"\xff\xfe\x00")
    Path("folder.txt").mkdir()
    with pytest.raises(ConfigError, match=name) as caught:
        read_trials(name)
    assert "\n" not in str(caught.value)


def test_what_is_written_is_read_back_to_four_digits() -> None:
    space = Space.from_dict(
        {name: {"low": 0.0, "high": 50.0} for name in CLASSIC_HYPS if name != "weight_decay"}
    )
    study = optuna.create_study(direction="maximize")
    metrics = {"precision": 0.3214, "recall": 0.4123, "mAP50": 0.3519, "F1": 0.3466}
    values = {"lrf": 0.01, "lr0": 0.00184412, "cls": 21.6149, "xy": 0.0}
    params = {**dict.fromkeys(space.names, 0.123456), **values}
    for state, attrs in (
        (TrialState.COMPLETE, {"metrics": metrics}),
        (TrialState.COMPLETE, {"metrics": metrics, "kind": "confirm"}),
        (TrialState.COMPLETE, {"metrics": {"score": 1.0}}),
        (TrialState.FAIL, {}),
    ):
        study.add_trial(
            create_trial(
                params=params,
                distributions=space.distributions(),
                state=state,
                value=0.3 if state == TrialState.COMPLETE else None,
                user_attrs=attrs,
            )
        )
    left_out = write_evolve_txt("evolve.txt", study.trials, {"weight_decay": 0.000467, "box": 5.0})
    assert left_out == ["trial 2: it has no precision, recall, mAP50, F1"]
    assert len(Path("evolve.txt").read_text()) == 17 * 11 + 1
    (trial,), skipped = read_evolve_txt("evolve.txt")
    assert skipped == []
    assert trial.params == pytest.approx({**params, "weight_decay": 0.000467}, rel=1e-3)
    assert trial.params["lr0"] == 0.001844
    assert trial.metrics == pytest.approx(metrics, rel=2e-3)


def test_a_study_without_the_old_hyperparameters_still_makes_a_round_trip() -> None:
    line = classic_line({"precision": 0.1, "recall": 0.2, "mAP50": 0.3, "F1": 0.4}, {"lr0": 0.01})
    Path("evolve.txt").write_text(line + "\n")
    (trial,), _ = read_evolve_txt("evolve.txt")
    assert trial.params == {"lr0": 0.01}
    assert line.split()[9] == "nan"
    with pytest.raises(ConfigError, match="no complete trial to write"):
        write_evolve_txt("evolve.txt", [], {})


def test_tuning_results_are_read_one_object_a_line() -> None:
    def record(**keys: Any) -> str:
        return json.dumps(keys)

    metrics = {"metrics/mAP50(B)": 0.5, "metrics/mAP50-95(B)": 0.3, "metrics/precision(B)": 0.6,
               "metrics/recall(B)": 0.4}  # fmt: skip
    other = {name: value + 0.2 for name, value in metrics.items()}
    rows = [
        record(iteration=1, fitness=0.33, hyperparameters={"lr0": 0.01}, datasets={"a": metrics}),
        record(score=0.4, hyp={"lr0": 0.02}, metrics={"a": metrics, "b": {"metrics": other}}),
        record(fitness=0.2, params={"lr0": 0.03}),
        record(fitness=0.2),
        "[1, 2]",
        record(params={"lr0": 1}),
        '{"fitness": 0.5, "hyperparame',
    ]
    Path("tune_results.ndjson").write_text("\n".join(rows))
    good, skipped = read_trials("tune_results.ndjson")
    assert [trial.fitness for trial in good] == [0.33, 0.4, 0.2]
    assert [trial.params for trial in good] == [{"lr0": 0.01}, {"lr0": 0.02}, {"lr0": 0.03}]
    # F1 of precision 0.6 and recall 0.4: 2 * 0.24 / 1 = 0.48
    assert good[0].metrics == pytest.approx(
        {"mAP50": 0.5, "mAP50-95": 0.3, "precision": 0.6, "recall": 0.4, "F1": 0.48}
    )
    assert good[1].metrics["mAP50"] == pytest.approx(0.6)  # the mean of two data sets
    assert [line.split("line ")[1][0] for line in skipped] == list("4567")
    assert "none of hyperparameters" in skipped[0]
    assert "not a JSON object" in skipped[1]
    assert "neither fitness nor metrics" in skipped[2]
    assert "not JSON" in skipped[3]


def test_a_table_of_yolov5_is_read_by_its_header() -> None:
    header = ["metrics/precision", "metrics/recall", "metrics/mAP_0.5", "metrics/mAP_0.5:0.95",
              "val/box_loss", "lr0", "lrf", "momentum"]  # fmt: skip
    rows: list[list[Any]] = [
        header,
        [0.6, 0.4, 0.5, 0.3, 0.05, 0.01, 0.2, 0.937],
        [0.6, 0.4, 0.5],
        [0.6, 0.4, 0.5, "nan", 0.05, 0.01, 0.2, 0.937],
        [],
    ]
    text = "\n".join(",".join(f"{cell!s:>20}" for cell in row) for row in rows)
    Path("evolve.csv").write_text(text + "\n")
    (trial,), skipped = read_evolve_csv("evolve.csv")
    assert trial.line == 2
    assert trial.params == {"lr0": 0.01, "lrf": 0.2, "momentum": 0.937}
    assert trial.metrics["val/box_loss"] == 0.05
    assert trial.fitness == pytest.approx(0.32)  # 0.1 * 0.5 + 0.9 * 0.3
    assert [line.split("line ")[1][0] for line in skipped] == list("345")
    assert "line 3 is skipped: 3 columns, not 8" in skipped[0]
    assert "mAP_0.5:0.95 is nan" in skipped[1]
    Path("other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="line 1 names no column metrics"):
        read_evolve_csv("other.csv")


def test_imported_trials_fit_the_study() -> None:
    problem = problem_of(
        lr0={"low": 1e-4, "high": 1e-2, "log": True},
        momentum={"low": 0.6, "high": 0.95},
        mosaic={"low": 0.0, "high": 1.0},
        topk={"low": 5, "high": 15, "int": True},
        optimizer={"choices": ["SGD", "AdamW"]},
    )
    rows = [
        Imported({"lr0": 0.1, "momentum": 0.9, "giou": 1.0, "topk": 7.4, "optimizer": "SGD"},
                 {"mAP50": 0.5, "F1": 0.3}, 0.9, 1),
        Imported({"lr0": 0.001, "momentum": "?", "giou": 1.0, "optimizer": "Adam"},
                 {"mAP50": 0.5, "F1": 0.1}, 0.9, 4),
        Imported({"lr0": 0.001}, {"mAP50": 0.5}, 0.9, 5),
    ]  # fmt: skip
    study = optuna.create_study(direction="maximize")
    notices = add_trials(study, rows, problem, {"mAP50": 0.5, "F1": 0.5}, "evolve.txt")
    first, second = study.trials
    assert first.value == pytest.approx(0.4)  # 0.5 * 0.5 + 0.5 * 0.3
    assert first.params == {
        "lr0": 0.01, "momentum": 0.9, "mosaic": 0.5, "topk": 7, "optimizer": "SGD"
    }  # fmt: skip
    assert second.value == pytest.approx(0.3)  # and not the file's own
    assert second.params["momentum"] == problem.start["momentum"]
    assert second.params["optimizer"] == "SGD"
    assert first.state == TrialState.COMPLETE
    assert first.user_attrs["imported"] == "evolve.txt"
    assert first.user_attrs["kind"] == "search"
    for text in (
        "evolve.txt: lr0 is out of its space: it is moved to 0.01 (line 1)",
        "evolve.txt: giou is not searched here (2 lines: 1, 4)",
        "evolve.txt: no mosaic: it stands at its start 0.5 (2 lines: 1, 4)",
        "evolve.txt: not added: the study's fitness needs F1 (line 5)",
    ):
        assert text in notices
    assert any("optimizer=Adam is not a choice" in text for text in notices)
    assert any("momentum must be a number, got '?'" in text for text in notices)
    again = add_trials(study, rows, problem, {"mAP50": 0.5, "F1": 0.5}, "evolve.txt")
    assert len(study.trials) == 2
    assert "evolve.txt: already in the study, and not added again (2 lines: 1, 4)" in again


def test_inactive_genes_of_imported_trials_stand_at_their_start() -> None:
    problem = problem_of(
        momentum={"low": 0.6, "high": 1.0, "when": {"optimizer": "SGD"}},
        optimizer={"choices": ["SGD", "AdamW"]},
    )
    study = optuna.create_study(direction="maximize")
    row = Imported({"momentum": 0.7, "optimizer": "AdamW"}, {}, 0.5, 1)
    add_trials(study, [row], problem, {"fitness": 1.0}, "a.csv")
    assert study.trials[0].params == {"momentum": 0.8, "optimizer": "AdamW"}
