"""Limits, several objectives, and whole studies with them."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from rich.console import Console

from evolve.__main__ import main
from evolve.config import load_config
from evolve.display import Display
from evolve.errors import ConfigError, StudyError
from evolve.front import front_table, objective_values, pareto_front
from evolve.limits import WORST, Limit, constraints, limits_text
from evolve.overview import status_text
from evolve.printout import front_text, result_text
from evolve.progress import ending
from evolve.record import excess, feasible, ranking
from evolve.storage import as_run, load_study
from evolve.study import run_study
from evolve.summary import Summary, summarise

WriteStudy = Callable[..., Path]
BOTH = {"fitness": "maximize", "latency_ms": "minimize"}


def made(number: int, values: list[float], beyond: list[float] | None = None) -> FrozenTrial:
    trial = create_trial(
        values=values,
        params={"x": number / 10},
        distributions={"x": FloatDistribution(0.0, 1.0)},
        system_attrs={} if beyond is None else {"constraints": beyond},
    )
    trial.number = number
    return trial


def test_constraints_are_shares_beyond_the_limits() -> None:
    limits = {"latency_ms": Limit(max=5.0), "F1": Limit(min=0.5, max=0.9), "zero": Limit(max=0.0)}
    metrics = {"latency_ms": 6.0, "F1": 0.4, "zero": 0.3}
    # (6 - 5) / 5; (0.5 - 0.4) / 0.5; (0.4 - 0.9) / 0.9; 0.3 of nothing
    assert constraints(metrics, limits) == pytest.approx([0.2, 0.2, -5 / 9, 0.3])
    metrics["latency_ms"] = float("nan")
    assert constraints(metrics, limits)[0] == WORST
    assert limits_text(limits) == (
        "latency_ms at most 5, F1 at least 0.5, F1 at most 0.9, zero at most 0"
    )


def test_a_missing_metric_is_named_with_what_is_there() -> None:
    with pytest.raises(ConfigError, match=r"latency_m, .*mean latency_ms\?.*F1, latency_ms\)"):
        constraints({"latency_ms": 1.0, "F1": 0.2}, {"latency_m": Limit(max=1)})
    with pytest.raises(ConfigError, match=r"objectives: .* metric size"):
        objective_values({"F1": 0.2}, 0.3, {"fitness": "maximize", "size": "minimize"})


def test_trials_beyond_a_limit_rank_behind_those_that_keep_it() -> None:
    trials = [
        made(0, [0.3], [-0.1]),
        made(1, [0.9], [0.4, -1.0]),
        made(2, [0.8], [0.1, 0.1]),
        made(3, [0.5], [0.0]),
        made(4, [0.2]),
    ]
    assert [trial.number for trial in ranking(trials)] == [3, 0, 4, 2, 1]
    assert [feasible(trial) for trial in trials] == [True, False, False, True, True]
    assert excess(trials[2]) == pytest.approx(0.2)
    assert ending(trials[1]) == "fitness 0.9000, beyond a limit"


def test_the_front_holds_what_nothing_beats_in_all() -> None:
    trials = [
        made(0, [0.5, 5.0]),
        made(1, [0.6, 4.0]),  # beats trial 0
        made(2, [0.9, 9.0]),
        made(3, [0.6, 4.0]),  # the same again
        made(4, [0.2, 1.0]),
        made(5, [0.1, 1.5]),
        made(6, [0.95, 0.5], [0.2]),  # best in all, but beyond a limit
    ]
    front = pareto_front(trials, BOTH)
    assert [trial.number for trial in front] == [2, 1, 4]
    assert pareto_front(trials[6:], BOTH) == trials[6:]
    assert front_table(front, BOTH)[:2] == [
        "  trial  fitness (max)  latency_ms (min)".replace("fitness (max)", "   fitness (max)"),
        "      2               0.9                 9",
    ]


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def run(*overrides: str) -> tuple[Summary, str]:
    shown = io.StringIO()
    with Display(Console(file=shown, width=200)) as display:
        summary = run_study(load_config("evolve.yaml", overrides), display)
    return summary, shown.getvalue()


def trials() -> list[FrozenTrial]:
    return load_study(load_config("evolve.yaml")).get_trials()


@pytest.mark.parametrize("strategy", ["genetic", "tpe"])
def test_what_is_recommended_keeps_the_limits(write_study: WriteStudy, strategy: str) -> None:
    write_study(
        "sized",
        generations=16,
        strategy=strategy,
        limits={"latency_ms": 3, "parameters": 1e6},
        start={"x": 0.2, "y": 0.9},
        confirm={"finalists": 1, "seeds": 2},
    )
    summary, shown = run()
    found = trials()
    assert "limits: latency_ms at most 3, parameters at most 1e+06" in shown
    for trial in found:
        latency = trial.user_attrs["metrics"]["latency_ms"]
        assert trial.system_attrs["constraints"][0] == pytest.approx((latency - 3) / 3)
    assert summary.infeasible == sum(not feasible(t) for t in found if t.number < 16) > 0
    assert summary.recommended is not None and summary.recommended["x"] <= 0.3
    text = result_text(load_config("evolve.yaml"), summary, {"x": 0.2, "y": 0.9})
    assert f"{summary.infeasible} of 16 trials are beyond them" in text
    assert "# limits: latency_ms at most 3" in Path("hyp/best.yaml").read_text()
    plain = load_config("evolve.yaml", ["limits=null"])
    assert as_run(plain, load_study(plain)).limits["latency_ms"] == Limit(max=3.0)
    with pytest.raises(StudyError, match=r"limits: \{.*\}, now absent"):
        run("limits=null")


def test_limits_that_nothing_keeps_are_said_so(write_study: WriteStudy) -> None:
    write_study("sized", generations=3, limits={"fitness": {"min": 2}})
    summary, _ = run()
    assert summary.infeasible == 3
    assert summary.recommended is not None
    config = load_config("evolve.yaml")
    text = status_text(config, load_study(config), summary, None)
    assert "no trial keeps the limits" in text


def test_only_the_start_values_keep_the_limits(write_study: WriteStudy) -> None:
    write_study("sized", generations=4, limits={"latency_ms": 1}, start={"x": 0.0, "y": 0.5})
    summary, _ = run("space.x.low=0", "strategy=random")
    assert summary.recommended == trials()[0].params
    assert summary.recommended_trial == 0


def test_a_limited_metric_that_is_missing_ends_the_run(write_study: WriteStudy) -> None:
    write_study("quadratic", limits={"latency_ms": 3})
    with pytest.raises(ConfigError, match=r"limits: .* latency_ms, .*\(it returned fitness\)"):
        run()


def test_several_objectives_give_a_front(
    write_study: WriteStudy,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_study(
        "sized",
        generations=24,
        objectives=["fitness", "latency_ms"],
        confirm={"finalists": 1, "seeds": 1},
        tracking={"uri": "sqlite:///runs/mlflow.db"},
    )
    summary, _ = run()
    found = [trial for trial in trials() if trial.user_attrs["kind"] != "confirm"]
    assert len(found) == 24
    assert all(len(trial.values) == 2 for trial in found)
    numbers = [trial.number for trial in summary.front]
    assert len(numbers) > 1
    fitnesses = [trial.values[0] for trial in summary.front]
    assert fitnesses == sorted(fitnesses, reverse=True)
    assert fitnesses[0] == max(trial.values[0] for trial in found)
    assert summary.recommended_trial == numbers[0]
    assert "best trade-offs" in result_text(load_config("evolve.yaml"), summary, {})
    best = yaml.safe_load(Path("hyp/best.yaml").read_text())
    assert best == summary.front[0].params
    assert "latency_ms" in Path("hyp/best.yaml").read_text()
    assert "could not be written" not in caplog.text
    for name in ("trials.csv", "convergence.png", "parameters.png"):
        assert (Path("runs/evolve/toy") / name).is_file()

    last = numbers[-1]
    assert main(["best", "--front"]) == 0
    assert capsys.readouterr().out == front_text(summary) + "\n"
    assert main(["best", "--params", "--pick", str(last)]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == summary.front[-1].params
    assert main(["best", "--pick", "99"]) == 2
    assert "no complete trial 99" in capsys.readouterr().err
    kept = {int(p.parts[4]) for p in Path("runs/evolve/toy/trials").glob("*/weights/*.pt")}
    assert set(numbers) <= kept  # every trade-off may be wanted
    picked, _ = run(f"study.pick={last}")
    assert picked.recommended_trial == last
    assert yaml.safe_load(Path("hyp/best.yaml").read_text()) == summary.front[-1].params


def test_a_study_of_one_objective_has_no_front(write_study: WriteStudy) -> None:
    write_study(generations=2)
    summary, _ = run()
    with pytest.raises(StudyError, match="has one objective"):
        front_text(summary)
    config: Any = load_config("evolve.yaml", ["study.pick=1"])
    assert summarise(config, load_study(config)).recommended_trial == 1


def test_an_objective_that_is_no_number_fails_its_trial(write_study: WriteStudy) -> None:
    write_study("not_a_number", generations=2, objectives=["fitness", "size"])
    with pytest.raises(ConfigError, match=r"objectives: evolve\.yaml names the metric size"):
        run()
    assert [trial.state for trial in trials()] == [TrialState.RUNNING]
