"""Warm start: what an earlier study or a best.yaml brings to a new one."""

import io
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial
from rich.console import Console

from evolve import report
from evolve.__main__ import main
from evolve.config import load_config
from evolve.display import Display
from evolve.storage import load_study
from evolve.study import run_study
from evolve.transfer import PRIOR, WARM

WriteStudy = Callable[..., Path]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for name in ("write_convergence_plot", "write_parameter_plot"):
        monkeypatch.setattr(report, name, lambda *arguments: None)


def run(*overrides: str) -> str:
    shown = io.StringIO()
    with Display(Console(file=shown, width=200)) as display:
        run_study(load_config("evolve.yaml", overrides), display)
    return shown.getvalue()


def study(name: str = "toy") -> optuna.Study:
    return load_study(load_config("evolve.yaml", [f"study.name={name}"]))


def trials(name: str = "toy") -> list[FrozenTrial]:
    return study(name).get_trials()


def test_a_best_yaml_is_tried_after_the_start_values(write_study: WriteStudy) -> None:
    Path("earlier.yaml").write_text("x: 0.5\nlr0: 3\ntrain: {y: 1.7}\n")
    write_study(generations=3)
    shown = run("warm_start=earlier.yaml")
    assert [trial.params for trial in trials()[:2]] == [{"x": 0.1, "y": 0.9}, {"x": 0.5, "y": 1.0}]
    assert trials()[1].user_attrs["kind"] == "search"
    assert "earlier.yaml: y=1.7 is now 1.0" in shown
    assert PRIOR in study().user_attrs and study().user_attrs[PRIOR] == []
    run("warm_start=earlier.yaml", "study.generations=5")  # nothing is tried twice
    assert sum(trial.params == {"x": 0.5, "y": 1.0} for trial in trials()) == 1


def test_an_earlier_study_brings_winners_and_evidence(write_study: WriteStudy) -> None:
    write_study(generations=9)
    run()
    earlier = sorted(trials(), key=lambda trial: -(trial.value or 0.0))
    write_study(
        generations=5,
        space={"x": {"low": 0.0, "high": 1.0}, "z": {"low": 0.0, "high": 2.0}},
        start={"x": 0.1, "z": 0.3},
        study={"name": "next", "generations": 5, "seed": 1},
        warm_start="toy",
    )
    shown = run()
    assert "warm start from toy: 3 to try first, 9 as prior evidence" in shown
    found = trials("next")
    distinct = dict.fromkeys(trial.params["x"] for trial in earlier if trial.params["x"] != 0.1)
    winners = list(distinct)[:3]
    assert [trial.params["x"] for trial in found[1:4]] == winners
    assert {trial.params["z"] for trial in found[:4]} == {0.3}
    assert [trial.user_attrs.get("warm") for trial in found] == [None, 0, 1, 2, None]
    prior = study("next").user_attrs[PRIOR]
    assert prior[0] == {
        "params": {"x": earlier[0].params["x"], "z": 0.3},
        "value": earlier[0].value,
    }
    assert [entry["value"] for entry in prior] == [trial.value for trial in earlier]
    assert run("study.generations=6").count("warm start") == 0


def test_evidence_of_elsewhere_is_left_out(write_study: WriteStudy) -> None:
    write_study(generations=8, strategy="random")
    run()
    narrow = {"x": {"low": 0.0, "high": 0.5}, "y": {"low": 0.0, "high": 1.0}}
    write_study(space=narrow, generations=1)
    run("study.name=narrow", "warm_start=runs/evolve.db#toy")
    inside = [trial for trial in trials() if trial.params["x"] <= 0.5]
    assert 0 < len(inside) < 8
    assert len(study("narrow").user_attrs[PRIOR]) == len(inside)
    assert all(0 <= p["x"] <= 0.5 for p in study("narrow").user_attrs[WARM]["params"])


def test_a_study_that_changed_its_fitness_is_said_so(write_study: WriteStudy) -> None:
    write_study("noisy", generations=2, fitness={"score": 1.0})
    run()
    write_study("noisy", generations=1, fitness={"luck": 1.0})
    shown = run("study.name=other", "warm_start=toy")
    assert "toy had another fitness" in shown


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none.yaml", "warm_start: there is no file none.yaml"),
        ("ty", "warm_start: there is no study ty in sqlite:///runs/evolve.db; did you mean toy?"),
        ("none.db#toy", "warm_start: there is no study yet: none.db does not exist"),
        ("toy", "has 0 of our 2 genes, at least half are needed"),
        ("new", "warm_start: new is this study itself"),
    ],
)
def test_what_cannot_help_is_one_line(
    write_study: WriteStudy, capsys: pytest.CaptureFixture[str], source: str, message: str
) -> None:
    write_study(generations=2)
    run()
    genes = {"a": {"low": 0.0, "high": 1.0}, "b": {"low": 0.0, "high": 1.0}}
    write_study(space=genes, start={"a": 0.1, "b": 0.2})
    capsys.readouterr()
    assert main(["run", "--study", "new", "--warm-start", source]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: warm_start: ") and err.count("\n") == 1
    assert message in err
