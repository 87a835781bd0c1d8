"""Tests of the tables and pictures of a study."""

import csv
import struct
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna import Study
from optuna.trial import TrialState

from evolve import report
from evolve.config import StudyConfig, parse_config

SPACE = {
    "lr0": {"low": 1e-5, "high": 0.1, "log": True},
    "box": {"low": 0.0, "high": 10.0},
    "optimizer": {"choices": ["SGD", "AdamW"]},
}


@pytest.fixture
def config() -> StudyConfig:
    fitness = {"mAP50-95": 0.5, "F1": 0.5}
    tree = {"objective": "x", "space": SPACE, "study": {"name": "toy"}, "fitness": fitness}
    return parse_config(tree)


def add(study: Study, config: StudyConfig, value: float | None, **attributes: Any) -> None:
    number = len(study.trials)
    state = TrialState.FAIL if value is None else attributes.pop("state", TrialState.COMPLETE)
    params = {"lr0": 0.01 / (number + 1), "box": 0.1 + 0.2 + number, "optimizer": "SGD"}
    distributions = config.space.distributions()
    study.add_trial(
        optuna.trial.create_trial(
            state=state,
            value=value,
            params=params,
            distributions=distributions,
            user_attrs={"kind": "search", **attributes},
        )
    )


@pytest.fixture
def study(config: StudyConfig) -> Study:
    study = optuna.create_study(direction="maximize")
    metrics = {"mAP50-95": 0.25, "box": 0.1}
    add(study, config, 0.5, kind="start", seed=3, seconds=1.5, attempts=1, metrics=metrics)
    add(study, config, 0.75)
    add(study, config, 0.25, state=TrialState.PRUNED)
    add(study, config, None, reason="diverged: box=nan, obj=1", attempts=2)
    for of, value in ((0, 0.4), (0, 0.6), (1, 0.7), (1, 0.8)):
        add(study, config, value, kind="confirm", of=of, repeat=0)
    return study


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def size_of(path: Path) -> tuple[int, int]:
    """Return width and height of a PNG file, pixels. Source: PNG specification, 11.2.1 IHDR."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:24])
    return width, height


# ---- the table -------------------------------------------------------------------------------


def test_the_table_has_a_row_for_every_trial(
    study: Study, config: StudyConfig, tmp_path: Path
) -> None:
    report.write_trials_csv(study.trials, config, tmp_path / "trials.csv")
    rows = read(tmp_path / "trials.csv")
    assert [row["number"] for row in rows] == [str(number) for number in range(8)]
    assert [row["kind"] for row in rows[:5]] == ["start", "search", "search", "search", "confirm"]
    assert [row["state"] for row in rows[:4]] == ["complete", "complete", "pruned", "fail"]
    assert rows[3]["fitness"] == ""
    assert rows[3]["reason"] == "diverged: box=nan, obj=1"
    assert (rows[0]["seed"], rows[0]["seconds"], rows[0]["attempts"]) == ("3", "1.5", "1")
    assert (rows[7]["of"], rows[7]["repeat"]) == ("1", "0")


def test_the_table_keeps_full_precision(study: Study, config: StudyConfig, tmp_path: Path) -> None:
    report.write_trials_csv(study.trials, config, tmp_path / "trials.csv")
    for row, trial in zip(read(tmp_path / "trials.csv"), study.trials, strict=True):
        assert float(row["box"]) == trial.params["box"]
        assert float(row["lr0"]) == trial.params["lr0"]


def test_a_metric_named_like_a_parameter_has_its_own_column(
    study: Study, config: StudyConfig, tmp_path: Path
) -> None:
    report.write_trials_csv(study.trials, config, tmp_path / "trials.csv")
    row = read(tmp_path / "trials.csv")[0]
    assert (row["box"], row["metric.box"], row["mAP50-95"]) == (str(0.1 + 0.2), "0.1", "0.25")


def test_the_old_table_stays_when_writing_fails(
    study: Study, config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trials.csv"
    path.write_text("old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "value_of", full)  # the header is written by then
    with pytest.raises(OSError, match="No space"):
        report.write_trials_csv(study.trials, config, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_study_without_trials_gives_a_header(config: StudyConfig, tmp_path: Path) -> None:
    report.write_trials_csv([], config, tmp_path / "new" / "trials.csv")
    assert (tmp_path / "new" / "trials.csv").read_text().startswith("number,kind,state,fitness,box")


# ---- the pictures ----------------------------------------------------------------------------


def test_the_scene_separates_search_and_repeats(study: Study) -> None:
    scene = report._scene(study.trials)
    assert [trial.number for trial in scene.search] == [0, 1, 2, 3]
    assert [trial.number for trial in scene.measured] == [0, 1, 2]
    assert scene.start is not None and scene.start.number == 0
    assert scene.winner is not None and scene.winner.number == 1


def test_repeats_have_mean_and_spread(study: Study) -> None:
    start, other = report._repeats(report._scene(study.trials))
    assert (start.label, other.label) == ("start", "trial 1")
    # (0.4 + 0.6) / 2 = 0.5; sqrt(2 * 0.1^2 / (2 - 1)) = 0.1414
    assert start.mean == pytest.approx(0.5)
    assert start.sd == pytest.approx(0.14142, abs=1e-5)
    assert report._Repeat("one", [0.5]).sd == 0.0


def test_values_far_below_the_rest_do_not_flatten_the_picture() -> None:
    low, high = report.fitness_range([0.001, 0.50, 0.52, 0.54, 0.56, 0.58, 0.60])
    # first quartile 0.50, top 0.60: from 0.50 - 1.5 * 0.10 = 0.35, with 6 % of 0.25 around
    assert low == pytest.approx(0.335)
    assert high == pytest.approx(0.615)
    assert report.fitness_range([]) == (0.0, 1.0)
    assert report.fitness_range([0.5]) == (0.475, 0.525)


def test_the_best_so_far_never_falls(study: Study, config: StudyConfig) -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    report._draw_progress(axes, report._scene(study.trials), 0.0)
    (line,) = (line for line in axes.get_lines() if line.get_label() == "best so far")
    assert line.get_ydata().tolist() == [0.5, 0.75, 0.75]
    labels = axes.get_legend_handles_labels()[1]
    expected = {
        "complete",
        "stopped early",
        "failed",
        "best so far",
        "start values",
        "best: trial 1",
    }
    assert set(labels) == expected


def test_a_log_scaled_parameter_has_a_log_axis(study: Study, config: StudyConfig) -> None:
    from matplotlib.figure import Figure

    scales = {}
    for name in SPACE:
        axes = Figure().subplots()
        report._draw_parameter(axes, name, report._scene(study.trials))
        scales[name] = axes.get_xscale()
        if name == "optimizer":
            assert [tick.get_text() for tick in axes.get_xticklabels()] == ["SGD", "AdamW"]
        if name == "box":
            assert axes.get_title() == "box = 1.3"  # 0.1 + 0.2 + 1 of the winner, trial 1
    assert scales == {"lr0": "log", "box": "linear", "optimizer": "linear"}


def test_many_trials_are_thinned_out_in_the_panels(
    config: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    monkeypatch.setattr("evolve.thinning.DRAWN", 6)
    monkeypatch.setattr("evolve.thinning.BEST_DRAWN", 2)
    study = optuna.create_study(direction="maximize")
    for value in (0.1, 0.2, 0.3, 0.2, 0.2, 0.2, 0.2, 0.9, 0.8):
        add(study, config, value)
    scene = report._scene(study.trials)
    drawn = [trial.number for trial in scene.drawn]
    assert {0, 7, 8} <= set(drawn)  # start values and the best
    assert len(drawn) == 6
    dots = report._draw_parameter(Figure().subplots(), "box", scene)
    assert len(dots.get_offsets()) == 6


def test_the_star_is_what_is_recommended(study: Study) -> None:
    best = report._scene(study.trials)
    assert best.winner is not None and best.word == "best"
    other = next(trial.number for trial in best.measured if trial.number != best.winner.number)
    found = report._scene(study.trials, other)
    assert found.winner is not None and (found.winner.number, found.word) == (other, "recommended")
    assert report._scene(study.trials, 10_000).winner == best.winner  # no such trial


def test_pictures_are_written(study: Study, config: StudyConfig, tmp_path: Path) -> None:
    report.write_convergence_plot(study.trials, config, tmp_path / "convergence.png")
    report.write_parameter_plot(study.trials, config, tmp_path / "parameters.png")
    assert size_of(tmp_path / "convergence.png") == (1200, 600)
    width, height = size_of(tmp_path / "parameters.png")
    assert width > 600 and height > 600
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("values", [[], [None], [None, None, 0.5], [0.5], [-3.0, -2.0]])
def test_young_studies_have_pictures(
    config: StudyConfig, tmp_path: Path, values: list[float | None]
) -> None:
    study = optuna.create_study(direction="maximize")
    for value in values:
        add(study, config, value)
    report.write_convergence_plot(study.trials, config, tmp_path / "convergence.png")
    report.write_parameter_plot(study.trials, config, tmp_path / "parameters.png")
    assert size_of(tmp_path / "convergence.png") == (1200, 600)


def test_only_stopped_trials_have_pictures(config: StudyConfig, tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    for value in (0.1, 0.2):
        add(study, config, value, state=TrialState.PRUNED)
    report.write_convergence_plot(study.trials, config, tmp_path / "convergence.png")
    report.write_parameter_plot(study.trials, config, tmp_path / "parameters.png")
    assert size_of(tmp_path / "parameters.png")[0] > 600
