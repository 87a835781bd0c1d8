"""`status` and `best` on one screen."""

import fcntl
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from benchmarks.big_study import write
from evolve.__main__ import main
from evolve.config import StudyConfig, load_config
from evolve.findings import findings
from evolve.glance import moves, moves_text, sparkline
from evolve.overview import best_text, overview, status_text
from evolve.storage import is_running, open_study
from evolve.summary import summarise

WriteStudy = Callable[..., Path]
NAMES = [f"gene{index:02}" for index in range(24)]
KINDS = {name: FloatDistribution(0.0, 1.0) for name in NAMES}


def trial(number: int, value: float | None, kind: str = "search", **more: Any) -> FrozenTrial:
    """Return a trial whose first gene grows with its number, and all others a little."""
    params = {name: 0.5 + 0.001 * number for name in NAMES} | {NAMES[0]: 0.01 * number}
    if "of" in more:
        params = {name: 0.5 + 0.001 * more["of"] for name in NAMES} | {NAMES[0]: 0.01 * more["of"]}
    made = create_trial(
        value=value,
        state=TrialState.FAIL if value is None else TrialState.COMPLETE,
        params=params,
        distributions=KINDS,
        user_attrs={"kind": kind, "seconds": 30.0, "seed": number, **more},
    )
    made.number = number
    return made


@pytest.fixture
def big(write_study: WriteStudy) -> StudyConfig:
    """A study with everything that a screen may show: 24 genes, repeats, failures."""
    space = {name: {"low": 0.0, "high": 1.0} for name in NAMES}
    start = dict.fromkeys(NAMES, 0.5) | {NAMES[0]: 0.0}
    confirm = {"finalists": 3, "seeds": 2}
    write_study(generations=90, space=space, start=start, confirm=confirm)
    config = load_config("evolve.yaml")
    reason = "diverged: " + "the loss is not finite " * 20
    values = {number: None if number == 50 else 0.4 + 0.005 * number for number in range(60)}
    found = [trial(0, 0.4, "start")]
    found += [trial(number, values[number], reason=reason) for number in range(1, 60)]
    for of in (0, 59, 58, 57):
        for repeat in range(2):
            value = 0.4 + 0.005 * of + 0.01 * repeat
            found.append(trial(len(found), value, "confirm", of=of, repeat=repeat))
    write(open_study(config), found)
    return config


def test_status_is_one_screen(big: StudyConfig) -> None:
    study = open_study(big)
    summary = summarise(big, study)
    text = status_text(big, study, summary, findings(big, study))
    lines = text.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith("study toy: 59 of 90 generations (1 failed)")
    assert "not running" in text
    assert "best so far: 0.4000 ▁" in text and "█ 0.6950; sd of a single training 0.0071" in text
    assert "trial 59:          fitness 0.7000" in text
    assert "better: gain over the start values +0.2950" in text
    rows = [line for line in lines if line.startswith("     5") and "30 s" in line]
    assert [line.split()[0] for line in rows] == ["59", "58", "57", "56", "55"]
    assert "gene00 0 → 0.59" in rows[0]
    assert "last failure: trial 50: diverged: the loss" in text
    assert "python -m evolve run " in text


def test_best_is_one_screen_with_every_value(big: StudyConfig) -> None:
    study = open_study(big)
    lines = best_text(big, study, summarise(big, study)).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    assert all(name in text for name in NAMES)
    first = lines.index("recommended: trial 59; what changed most comes first") + 1
    assert lines[first].split()[:4] == ["gene00", "0", "→", "0.59"]


def test_scripts_get_what_the_screen_says(
    big: StudyConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["noise_sd"] == pytest.approx(0.00707, abs=1e-5)
    assert found["top"][0] == {"trial": 59, "fitness": pytest.approx(0.695)}
    assert len(found["best_so_far"]) == 59
    assert found["last_failure"]["trial"] == 50
    assert (found["running_now"], found["eta_seconds"]) == (False, None)
    assert {one["name"] for one in found["importance"]} == set(NAMES)
    assert found["generations"] == 59  # beside the summary's


def test_a_study_that_runs_has_an_eta(big: StudyConfig) -> None:
    study = open_study(big)
    study.ask(KINDS)
    study.ask(KINDS)
    big.directory.mkdir(parents=True, exist_ok=True)
    with (big.directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert is_running(big)
        summary = summarise(big, study)
        # 31 generations of 30 s are left, two at once
        assert overview(big, study, summary, None)["eta_seconds"] == pytest.approx(465.0)
        text = status_text(big, study, summary, None)
    assert "running now, ETA 8 min" in text
    assert "running: 68, 69" in text
    assert not is_running(big)


def test_best_is_yaml_but_in_a_terminal(
    big: StudyConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["best"]) == 0
    values = yaml.safe_load(capsys.readouterr().out)
    assert values[NAMES[0]] == pytest.approx(0.59)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(["best"]) == 0
    assert "gene00                    0 → 0.59" in capsys.readouterr().out
    assert main(["best", "--yaml"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == values


def test_a_sparkline_shows_the_curve() -> None:
    assert sparkline([0.0, 0.5, 1.0], 10) == "▁▅█"  # 0.5 * 7 = 3.5, to the even 4
    assert sparkline([0.0, 1.0, 2.0, 7.0], 2) == "▁█"  # the last of each half: 1 and 7
    assert sparkline([2.0, 2.0], 5) == "▁▁"
    assert sparkline([], 5) == sparkline([float("nan")], 5) == sparkline([1.0], 0) == ""


def test_moves_are_ordered_by_their_way_in_the_range() -> None:
    kinds = {"lr0": FloatDistribution(1e-4, 1.0, log=True), "x": FloatDistribution(0.0, 100.0)}
    best = create_trial(value=1.0, params={"lr0": 0.1, "x": 60.0}, distributions=kinds)
    found = moves(best, best.params, {"lr0": 0.01, "x": 50.0})
    # lr0: one of four decades, 0.25; x: a tenth
    assert [name for name, *_ in found] == ["lr0", "x"]
    assert moves_text(found, 80) == "lr0 0.01 → 0.1, x 50 → 60"
    assert moves_text(found, 24) == "lr0 0.01 → 0.1, 1 more"
    assert moves_text(found, 16) == "lr0 0.01 → 0.1"
    assert moves_text(found, 5) == ""
    assert moves(best, best.params, best.params) == []
