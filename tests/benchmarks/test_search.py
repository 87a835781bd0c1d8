import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ioh")
pytest.importorskip("sklearn")

from benchmarks import search, search_peers, search_problems, search_report
from evolve.space import Space

QUICK_REAL = ("real-mlp-cancer", "real-knn-wine", "real-boost-diabetes")


@pytest.fixture(autouse=True)
def loud_again() -> Any:
    import optuna

    level = optuna.logging.get_verbosity()
    yield
    optuna.logging.set_verbosity(level)


def record(strategy: str, true: float, **keys: Any) -> dict[str, Any]:
    point = {
        "trials": 25,
        "epochs": 25,
        "true": true,
        "observed": true,
        "observed_true": true,
        "reported": true + 0.5,
        "interval": [true - 1.0, true + 1.0],
    }
    whole = {
        "strategy": strategy,
        "problem": "noisy-f01-d12",
        "seed": 10,
        "trials": 25,
        "workers": 1,
        "pruning": "none",
        "hint": False,
        "group": "noisy",
        "noise_sd": 2.0,
        "start": -10.0,
        "best": 0.0,
        "repeats": 0,
        "think_mean": 0.1,
        "think_end": 0.2,
        "seconds": 1.0,
        "checkpoints": [point],
    }
    return whole | keys


@pytest.mark.parametrize("name", [name for name in search_problems.NAMES if "real" not in name])
def test_start_values_of_test_functions_are_good_but_not_the_optimum(name: str) -> None:
    problem = search_problems.make(name, 3)
    assert problem.best is not None
    space = Space.from_dict(problem.space)
    rng = np.random.default_rng(0)
    uniform = [problem.true(space.from_unit(rng.random(len(space.genes)))) for _ in range(200)]
    start = problem.true(problem.start)
    assert start < problem.best
    assert sum(value > start for value in uniform) <= 12  # about 2 % of 200, with room for chance
    assert all(value < problem.best for value in uniform)


def test_the_true_optimum_is_the_value_at_the_optimum() -> None:
    import ioh

    problem = search_problems.make("bbob-f08-d12", 4)
    known = ioh.get_problem(8, 5, 12, ioh.ProblemClass.BBOB)
    place = (np.array(known.optimum.x) + 5.0) / 10.0
    params = Space.from_dict(problem.space).from_unit(place)
    assert problem.true(params) == pytest.approx(problem.best, abs=1e-4)


def test_noise_comes_from_the_trial_seed_alone() -> None:
    problem = search_problems.make("noisy-f01-d12", 0)
    values = np.array([problem.evaluate(problem.start, seed) for seed in range(400)])
    assert problem.evaluate(problem.start, 7) == values[7]
    assert values.std() == pytest.approx(problem.noise_sd, rel=0.15)
    assert values.mean() == pytest.approx(problem.true(problem.start), abs=problem.noise_sd / 5)


@pytest.mark.parametrize("name", QUICK_REAL)
def test_a_training_is_a_function_of_its_seed_and_ends_its_curve_with_its_value(name: str) -> None:
    first, second = (search_problems.make(name, 1) for _ in range(2))
    assert first.start == second.start
    assert first.noise_sd > 0
    assert first.evaluate(first.start, 5) == second.evaluate(second.start, 5)
    assert first.evaluate(first.start, 5) != first.evaluate(first.start, 6)
    curve = first.curve(first.start, 5)
    assert curve is None if first.epochs == 1 else len(curve) == first.epochs
    assert curve is None or curve[-1] == first.evaluate(first.start, 5)


def test_a_training_that_blows_up_has_the_least_value() -> None:
    problem = search_problems.make("real-mlp-cancer", 1)
    wild = {**problem.start, "lr0": 1.0, "momentum": 0.98, "init_scale": 4.0, "weight_decay": 0.1}
    assert np.isfinite(problem.evaluate(wild, 1))


def test_at_least_four_trainings_have_epochs() -> None:
    from benchmarks.search_trainings import TRAININGS

    assert sum(training.epochs > 1 for training in TRAININGS.values()) >= 4


@pytest.mark.parametrize("strategy", [*search_peers.PEERS, "genetic"])
def test_every_strategy_tries_the_start_values_first(strategy: str) -> None:
    if strategy.startswith("gp"):
        pytest.importorskip("torch")
    cell = search.Cell(strategy, "noisy-f01-d12", 0, 12)
    search.quiet()
    problem = search_problems.make(cell.problem, cell.seed)
    space = Space.from_dict(problem.space)
    sampler = search_peers.sampler_of(
        strategy, search_peers.Setting(space, problem.start, cell.seed, cell.trials)
    )
    told = problem if strategy in search_peers.ENQUEUED else None
    study = search.new_study(sampler, search.build_pruner(search.Plugin("none")), told)
    progress = search.Progress()
    for _ in search.steps(study, problem, cell, progress):
        pass
    assert study.trials[0].params == pytest.approx(problem.start)
    assert len(study.trials) == progress.told == 12
    assert study.trials[3].value == problem.evaluate(
        study.trials[3].params, search.trial_seed(0, 3)
    )


def test_cells_are_kept_and_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "search --strategies genetic --problems bbob-f01,noisy-f01 --seeds 0-1 --trials 25"
    monkeypatch.setattr("sys.argv", [*words.split(), "--results", str(tmp_path)])
    search.main()
    first = (tmp_path / "genetic.jsonl").read_text()
    assert len(first.splitlines()) == len(search.read(tmp_path)) == 4
    assert capsys.readouterr().err.startswith("1/4 genetic bbob-f01-d24 seed 0: ")
    search.main()
    assert (tmp_path / "genetic.jsonl").read_text() == first
    assert os.fspath(tmp_path) not in first


def test_eight_workers_end_all_trials_and_pruning_saves_epochs() -> None:
    crowd = search.run_cell(search.Cell("genetic", "bbob-f01-d24", 0, 25, workers=8))
    assert crowd["checkpoints"][-1]["trials"] == 25
    whole = search.run_cell(search.Cell("random", "real-mlp-cancer", 0, 25))
    pruned = search.run_cell(
        search.Cell("random", "real-mlp-cancer", 0, 25, pruning="successive-halving")
    )
    assert whole["checkpoints"][-1]["epochs"] == 25 * 12
    points = {(point["trials"], point.get("thrifty")): point for point in pruned["checkpoints"]}
    assert points[25, None]["epochs"] < 25 * 12
    (thrifty,) = (point for (_, goal), point in points.items() if goal == 25)
    assert 0.6 * 25 * 12 <= thrifty["epochs"] < 0.6 * 25 * 12 + 12
    report = search_report.report_of(
        [one | {"seed": 10, "strategy": "guided"} for one in (whole, pruned)], [10]
    )
    (row,) = report["thrifty"]["successive-halving"]
    assert row["trials"] == 25
    assert row["epochs"] == pytest.approx(thrifty["epochs"] / 300)
    assert "## successive-halving with 0.6 x the epochs" in search_report.markdown(report)


def test_multiplying_rules_leave_zero_and_choices_and_keep_the_sign() -> None:
    space = Space.from_dict(
        {
            "choice": {"choices": ["a", "b"]},
            "negative": {"low": -8.0, "high": -1.0},
            "zero": {"low": 0.0, "high": 1.0},
        }
    )
    start = {"choice": "b", "negative": -4.0, "zero": 0.0}
    setting = search_peers.Setting(space, start, 0, 10)
    for name in search_peers.YOLO:
        study = search.new_study(
            search_peers.sampler_of(name, setting), search.build_pruner(search.Plugin("none")), None
        )
        for _ in range(6):
            trial = study.ask(space.distributions())
            study.tell(trial, 0.0)
        children = [trial.params for trial in study.trials]
        assert {child["zero"] for child in children[1:]} == {0.0}
        assert {child["choice"] for child in children[1:]} == {"b"}
        assert len({child["negative"] for child in children}) > 3


def test_regret_ranks_and_honesty_by_hand() -> None:
    records = [
        record("guided", -1.0),  # regret 1/10
        record("gp", -4.0),  # 4/10
        record("tpe", -4.0),
        record("random", -12.0),  # worse than the start values
    ]
    found = search_report.scores(records, 25, search_report.best_known(records))
    rows = {row["strategy"]: row for row in search_report.standing(found)}
    assert rows["guided"]["rank"] == 1.0
    assert rows["gp"]["rank"] == rows["tpe"]["rank"] == 2.5
    assert rows["random"]["harm"] == 1.0 and rows["gp"]["harm"] == 0.0
    assert rows["guided"]["regret"] == pytest.approx(0.1)
    assert rows["guided"]["error"] == pytest.approx(0.25)  # 0.5 too much, noise 2
    assert rows["guided"]["coverage"] == 1.0
    duel = search_report.duel(found, "guided", "gp")
    assert duel is not None
    assert duel["ratio"] == pytest.approx(0.25) and duel["wins"] == 1.0


def test_a_rival_of_few_runs_is_not_called_the_strongest() -> None:
    rows = [{"rival": "gp", "ratio": 2.5, "runs": 2}, {"rival": "tpe", "ratio": 0.5, "runs": 45}]
    strongest = search_report.hardest(rows, ["gp", "tpe"])
    assert strongest is not None and strongest["rival"] == "tpe"
    assert search_report.hardest(rows[:1], ["gp", "tpe"]) is None


def test_the_best_of_a_training_is_the_best_that_any_strategy_saw() -> None:
    records = [record("guided", -3.0, best=None), record("gp", -1.0, best=None)]
    best = search_report.best_known(records)
    assert best == {("noisy-f01-d12", 10): -1.0}
    found = search_report.scores(records, 25, best)
    assert [one.regret for one in found] == [0.0, pytest.approx(2 / 9)]


def test_ranks_compare_only_what_all_were_run_on() -> None:
    # seed 10 has all three, seed 11 only two: there a rank of 1 would be cheap
    records = [record(name, value) for name, value in (("guided", 3.0), ("gp", 2.0), ("tpe", 1.0))]
    records += [record("guided", 2.0, seed=11), record("tpe", 3.0, seed=11)]
    records += [record("guided", 2.0, seed=12)]  # nobody else: it has no rank at all
    records += [record("rare", 9.0, seed=99)]  # shares nothing: no part of the field
    found = search_report.scores(records, 25, search_report.best_known(records))
    shared = search_report.common(found)
    assert {one.seed for one in shared} == {10, 11}
    rows = {row["strategy"]: row for row in search_report.standing(shared)}
    assert {name: row["rank"] for name, row in rows.items()} == {"guided": 1.5, "tpe": 1.5}


def test_development_seeds_never_stand_in_a_final_report(tmp_path: Path) -> None:
    records = [record("guided", -1.0, seed=seed) for seed in (3, 10)]
    final = search_report.write_report(records, range(10, 30), tmp_path)
    assert final.name == "report.md"
    assert "Seeds: 10." in final.read_text()
    early = search_report.write_report(records, range(10), tmp_path)
    assert early.name == "report-development.md"
    assert "Seeds: 3." in early.read_text()
