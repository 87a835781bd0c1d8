"""Whole studies with toy objectives: counting, failures, deaths, resuming, confirming."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from evolve import report
from evolve.config import load_config
from evolve.display import Display
from evolve.errors import ConfigError, RunFailed, StudyError
from evolve.objective import load_objective
from evolve.printout import result_text
from evolve.problem import with_fitness
from evolve.storage import as_run, load_study, open_study, owned
from evolve.study import run_study
from evolve.summary import Summary, summarise

WriteStudy = Callable[..., Path]
TRAINER = """
def evaluate(params, context):
    return {"F1": 0.5}

def train_fields():
    return {"fitness", "epochs"}
"""
TIRED = """
from optuna.samplers import RandomSampler

class Tired(RandomSampler):
    def stop_reason(self, study):
        return "enough is enough"
"""


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare a second a study; test_main draws them, test_report looks at them."""
    for name in ("write_convergence_plot", "write_parameter_plot"):
        monkeypatch.setattr(report, name, lambda *arguments: None)


def run(*overrides: str) -> tuple[Summary, str]:
    """Run evolve.yaml here and return the summary and what was shown."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    shown = io.StringIO()
    display = Display(Console(file=shown, width=200))
    return run_study(load_config("evolve.yaml", overrides), display), shown.getvalue()


def trials() -> list[FrozenTrial]:
    return load_study(load_config("evolve.yaml")).get_trials()


def calls(number: int) -> list[str]:
    """Return the attempts that ran to their end in a trial's folder."""
    path = Path(f"runs/evolve/toy/trials/{number}/calls.txt")
    return path.read_text().splitlines() if path.is_file() else []


def test_a_study_reaches_its_generations_from_the_start_values(write_study: WriteStudy) -> None:
    write_study()
    summary, shown = run()
    found = trials()
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 6
    assert found[0].params == {"x": 0.1, "y": 0.9}
    assert found[0].user_attrs["kind"] == "start"
    assert len({trial.user_attrs["seed"] for trial in found}) == 6
    assert [trial.user_attrs["attempts"] for trial in found] == [1] * 6
    assert summary.generations == 6
    assert summary.best is not None and summary.best.value == max(t.value for t in found if t.value)
    assert "trial 5: fitness" in shown
    with_weights = [
        n for n in range(6) if Path(f"runs/evolve/toy/trials/{n}/weights/best.pt").is_file()
    ]
    best_three = sorted(range(6), key=lambda n: -(found[n].value or 0))[:3]
    assert with_weights == sorted(best_three)  # losers' weights do not fill the disk
    # the same command again has nothing to do; more generations go on
    assert run()[0].generations == 6
    assert run("study.generations=8")[0].generations == 8
    assert [len(calls(number)) for number in range(8)] == [1] * 8


def test_a_full_disk_stops_the_study_and_costs_no_trial(write_study: WriteStudy) -> None:
    write_study("disk_full")
    with pytest.raises(RunFailed, match="trial 2: the disk is full: free some space"):
        run()
    assert [trial.state for trial in trials()][:2] == [TrialState.COMPLETE] * 2
    assert len(trials()) == 3  # nothing new was begun
    assert run()[0].generations == 6
    assert [trial.state for trial in trials()] == [TrialState.COMPLETE] * 6
    assert trials()[2].user_attrs["attempts"] == 2


def test_two_workers_share_a_study(write_study: WriteStudy) -> None:
    write_study("slow", workers={"count": 2})
    run()
    found = trials()
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 6
    assert {trial.user_attrs["worker"] for trial in found} == {"worker-0", "worker-1"}
    assert len({tuple(trial.params.items()) for trial in found}) == 6


def test_evaluate_gets_start_file_settings_and_params_in_that_order(
    write_study: WriteStudy, toys: Path
) -> None:
    Path("start.yaml").write_text("x: 0.25\nbox: 5\nlr0: 0.1\ntrain: {model: nano, epochs: 9}\n")
    Path("seen").mkdir()
    Path("seen/objective.py").write_text(
        "def evaluate(params, context):\n"
        "    (context.directory / 'seen.txt').write_text(repr(sorted(params.items())))\n"
        "    return {'fitness': 1}\n"
        "def preflight(params, space):\n"
        "    return {'y': 'it does nothing'}\n"
        "def train_fields():\n"
        "    return {'y', 'model', 'epochs'}\n"
    )
    sys.path.insert(0, os.getcwd())
    try:
        write_study(
            objective="seen.objective",
            generations=1,
            start="start.yaml",
            settings={"epochs": 4, "lr0": 0.2},
        )
        _, shown = run()
    finally:
        sys.path.pop(0)
    seen = Path("runs/evolve/toy/trials/0/seen.txt").read_text()
    expected = {"x": 0.25, "box": 5, "lr0": 0.2, "model": "nano", "epochs": 4, "y": 0.5}
    assert seen == repr(sorted(expected.items()))
    assert "start.yaml has no y: it starts at 0.5" in shown
    assert "not searched: y has no effect here (it does nothing); it stays at 0.5" in shown
    assert trials()[0].params == {"x": 0.25}
    best = yaml.safe_load(Path("hyp/best.yaml").read_text())
    assert best == {
        "x": 0.25,
        "box": 5,
        "lr0": 0.2,
        "train": {"model": "nano", "epochs": 4, "y": 0.5},
    }
    assert Path("runs/evolve/toy/best.yaml").read_text() == Path("hyp/best.yaml").read_text()


# ---- failures


def test_failures_do_not_count_and_keep_their_reason(write_study: WriteStudy) -> None:
    write_study("diverging", generations=4)
    summary, shown = run()
    found = trials()
    assert [trial.state.name for trial in found] == ["COMPLETE", "FAIL", *["COMPLETE"] * 3]
    assert found[1].user_attrs["reason"] == "diverged: the loss is not finite at step 3"
    assert found[1].value is None
    assert (summary.generations, summary.states["failed"]) == (4, 1)
    assert "failed: diverged" in shown
    assert not Path("runs/evolve/toy/trials/1/weights/best.pt").exists()


def test_a_fitness_that_is_no_number_is_a_failure(write_study: WriteStudy) -> None:
    write_study(
        "not_a_number", generations=4, space={"x": {"low": 0.0, "high": 1.0}}, start={"x": 0.5}
    )
    run()
    states = {trial.state.name: trial for trial in trials()}
    assert states["FAIL"].user_attrs["reason"] == "diverged: fitness is nan"
    assert sum(trial.state == TrialState.COMPLETE for trial in trials()) == 4


def test_failed_start_values_are_tried_once_more(write_study: WriteStudy) -> None:
    write_study("first_fails_once", generations=3)
    run()
    found = trials()
    assert [trial.state.name for trial in found] == ["FAIL", *["COMPLETE"] * 3]
    assert found[1].params == found[0].params == {"x": 0.1, "y": 0.9}
    assert found[2].params != found[0].params


def test_five_equal_failures_stop_the_study(write_study: WriteStudy) -> None:
    write_study("broken", generations=30)
    with pytest.raises(RunFailed, match="5 trials in a row failed alike: FileNotFoundError"):
        run()
    assert len(trials()) == 5
    assert all(trial.state == TrialState.FAIL for trial in trials())
    assert "Traceback" in Path("runs/evolve/toy/trials/4/trial.log").read_text()


def test_an_unknown_metric_stops_before_anything_is_lost(write_study: WriteStudy) -> None:
    write_study("noisy", fitness={"scor": 1.0})
    with pytest.raises(ConfigError, match=r"metric scor, .*did you mean score"):
        run()
    assert [trial.state for trial in trials()] == [TrialState.RUNNING]
    write_study("noisy", fitness={"score": 0.9, "luck": 0.1}, generations=2)
    run()  # nothing was measured yet, so the fitness may still be mended
    states = [trial.state.name for trial in trials()]
    assert states == ["COMPLETE", "COMPLETE"]
    score = trials()[0].user_attrs["metrics"]
    assert trials()[0].value == pytest.approx(0.9 * score["score"] + 0.1 * score["luck"])


def test_a_worker_that_dies_is_replaced_and_its_trial_goes_on(write_study: WriteStudy) -> None:
    write_study("suicidal", generations=4)
    _, shown = run()
    found = trials()
    assert [t.state.name for t in found] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert found[1].user_attrs["attempts"] == 2
    assert calls(1) == [f"2 {found[1].user_attrs['seed']}"]  # the seed stays
    assert found[2].user_attrs["attempts"] == 3
    assert found[2].user_attrs["reason"].startswith("worker died (SIGKILL")
    assert "trial 1: worker died" in shown


# ---- resuming


def test_a_killed_study_goes_on_with_exactly_the_missing_trials(
    write_study: WriteStudy, toys: Path
) -> None:
    write_study("stuck")
    command = [sys.executable, "-m", "evolve", "run"]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(Path("runs/evolve/toy/trials/2/waiting").exists)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = trials()
    assert [trial.state.name for trial in before] == ["COMPLETE", "COMPLETE", "RUNNING"]
    run()
    found = trials()
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 6
    assert [trial.number for trial in found] == list(range(6))
    assert found[2].params == before[2].params
    assert found[2].user_attrs["seed"] == before[2].user_attrs["seed"]
    assert [trial.user_attrs["attempts"] for trial in found] == [1, 1, 2, 1, 1, 1]
    assert [len(calls(number)) for number in range(6)] == [1] * 6  # none lost, none doubled
    uninterrupted = Path("uninterrupted")
    uninterrupted.mkdir()
    os.chdir(uninterrupted)
    write_study("quadratic")
    run()
    assert [trial.params for trial in trials()] == [trial.params for trial in found]


def test_trials_that_were_killed_while_they_were_made_are_completed(
    write_study: WriteStudy,
) -> None:
    write_study(generations=3)
    config = load_config("evolve.yaml")
    study = open_study(config)
    study.ask()  # running, but without any values
    study.enqueue_trial({"x": 0.1, "y": 0.9}, user_attrs={"kind": "start"})  # and not yet begun
    run()
    found = trials()
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 3
    assert found[1].params == {"x": 0.1, "y": 0.9}
    assert [len(calls(number)) for number in range(3)] == [1] * 3


def test_a_second_owner_is_refused(write_study: WriteStudy) -> None:
    write_study()
    with (
        owned(load_config("evolve.yaml")),
        pytest.raises(StudyError, match=f"process {os.getpid()} on"),
    ):
        run()


def test_an_owner_in_another_folder_is_seen_too(write_study: WriteStudy, tmp_path: Path) -> None:
    storage = f"study.storage=sqlite:///{tmp_path}/shared.db"
    write_study()
    with owned(load_config("evolve.yaml", [storage])):
        Path("elsewhere").mkdir()
        os.chdir("elsewhere")
        write_study()
        with pytest.raises(StudyError, match="is being run by process"):
            run(storage)


def test_settings_changed_before_anything_counts_begin_anew(write_study: WriteStudy) -> None:
    write_study("broken", start={"x": 0.2, "y": 0.2})
    with pytest.raises(RunFailed):
        run()
    write_study(
        generations=2,
        space={"x": {"low": 0.0, "high": 1.0}, "y": {"choices": [1, 2]}},
        start={"x": 0.3, "y": 2},
    )
    run()
    assert [trial.state for trial in trials()] == [TrialState.COMPLETE] * 2
    assert trials()[0].params == {"x": 0.3, "y": 2}


def test_a_finalist_keeps_a_value_that_was_locked_after_the_search(
    write_study: WriteStudy,
) -> None:
    write_study(generations=5)
    run()
    best = max(trials(), key=lambda trial: trial.value or 0.0)
    run("space.x.locked=true", "confirm.finalists=1", "confirm.seeds=2")
    repeats = [t for t in trials() if t.user_attrs.get("of") == best.number]
    assert [trial.params for trial in repeats] == [best.params] * 2
    assert [trial.value for trial in repeats] == [best.value] * 2


def test_a_study_is_judged_by_what_it_was_run_with(write_study: WriteStudy) -> None:
    write_study(generations=4)
    run("confirm.finalists=1", "confirm.seeds=2", "settings.epochs=9")
    plain = load_config("evolve.yaml")
    study = load_study(plain)
    used = as_run(plain, study)
    assert used.settings == {"epochs": 9}
    assert summarise(used, study).verdict.word == "better"
    assert used.start.values == plain.start.values


def test_a_study_cannot_start_from_the_file_that_it_overwrites(write_study: WriteStudy) -> None:
    Path("hyp").mkdir()
    Path("hyp/best.yaml").write_text("x: 0.5\ny: 0.5\n")
    write_study(start="hyp/best.yaml")
    with pytest.raises(ConfigError, match="is overwritten by every study"):
        run()


def test_a_trainer_that_takes_fitness_weights_gets_those_of_the_study(
    write_study: WriteStudy,
) -> None:
    Path("trainer.py").write_text(TRAINER)
    sys.path.insert(0, str(Path.cwd()))
    try:
        write_study()
        config = load_config("evolve.yaml", ["objective=trainer", "fitness={F1: 1.0}"])
        used = with_fitness(config, load_objective("trainer"))
        assert used.settings["fitness"] == {"F1": 1.0}
        alone = load_config("evolve.yaml", ["objective=trainer"])
        assert "fitness" not in with_fitness(alone, load_objective("trainer")).settings
    finally:
        sys.path.pop(0)


def test_other_settings_are_another_study(write_study: WriteStudy) -> None:
    write_study(generations=1, settings={"epochs": 4})
    run()
    with pytest.raises(StudyError, match=r"started with settings.epochs: 4, now 5;.*--study"):
        run("settings.epochs=5")
    with pytest.raises(StudyError, match=r"started with space.x.high: 1.0, now 2.0"):
        run("space.x.high=2.0")
    assert run("settings.epochs=5", "study.name=other")[0].generations == 1


def test_files_of_a_study_that_is_gone_are_moved_aside(write_study: WriteStudy) -> None:
    write_study(generations=1)
    run()
    Path("runs/evolve.db").unlink()
    _, shown = run()
    assert "held another study's files" in shown
    assert len(calls(0)) == 1
    assert Path("runs/evolve/toy/trials-1/0/calls.txt").is_file()


# ---- what ends a search


def test_hours_end_a_search_and_confirming_comes_on_top(write_study: WriteStudy) -> None:
    write_study("slow", confirm={"finalists": 1, "seeds": 1}, generations=100)
    summary, shown = run("study.hours=0.0005")  # 1.8 s for trials of 0.2 s
    assert 1 < summary.generations < 12
    assert summary.ended in (
        "0.0005 hours are over",
        "the next trial would end after the 0.0005 hours",
    )
    assert f"the search ended: {summary.ended}" in shown
    assert "on top of what the search may take" in shown
    assert summary.states["confirm"] == 2
    spent = summary.seconds
    assert 1.0 < spent < 10.0
    # going on has no time left; more hours, and the generations end it
    again, _ = run("study.hours=0.0005")
    assert again.generations == summary.generations
    assert "0.0005 hours" in again.ended
    more = summary.generations + 1
    last, _ = run("study.hours=1", f"study.generations={more}")
    assert (last.generations, last.ended) == (more, f"{more} of {more} generations")
    assert last.seconds > spent
    text = result_text(load_config("evolve.yaml"), last, {"x": 0.1, "y": 0.9})
    assert f"the search ended: {more} of {more} generations" in text


def test_repeats_alone_are_measured_on_the_test_split(write_study: WriteStudy) -> None:
    write_study("held_out", confirm={"finalists": 1, "seeds": 2}, generations=4)
    summary, _ = run()
    trials = load_study(load_config("evolve.yaml")).get_trials()
    tested = [t.user_attrs["kind"] for t in trials if "test/fitness" in t.user_attrs["metrics"]]
    assert tested == ["confirm"] * 4
    assert summary.held_out is not None
    assert summary.held_out.gain.mean == pytest.approx(summary.verdict.gain.mean)  # equal seeds
    for value in summary.held_out.recommended.values():
        assert value == pytest.approx(summary.verdict.recommended.mean - 0.1, abs=0.0061)
    text = result_text(load_config("evolve.yaml"), summary, {"x": 0.1, "y": 0.9})
    assert "on the test split: fitness" in text
    assert "# on the test split: fitness" in Path("hyp/best.yaml").read_text()


def test_a_sampler_may_end_the_search(write_study: WriteStudy) -> None:
    Path("tired.py").write_text(TIRED)
    sys.path.insert(0, str(Path.cwd()))
    try:
        write_study(generations=40, strategy="tired:Tired")
        summary, _ = run()
        assert (summary.generations, summary.ended) == (30, "enough is enough")
        assert run()[0].generations == 30
        assert run("study.early_stop=false", "study.generations=32")[0].generations == 32
    finally:
        sys.path.pop(0)


def test_seconds_of_a_trial_are_those_of_all_its_attempts(write_study: WriteStudy) -> None:
    write_study("dies_late", generations=2)
    run()
    assert trials()[1].user_attrs["attempts"] == 2
    assert trials()[1].user_attrs["seconds"] > 0.5  # in the attempt that died
    assert trials()[0].user_attrs["seconds"] < 0.5


# ---- the end of a study


def test_stopping_early_saves_epochs_and_says_so(write_study: WriteStudy) -> None:
    write_study("curve", generations=20, pruning={"name": "successive-halving"}, strategy="random")
    summary, shown = run()
    assert summary.generations == 20
    assert summary.states["pruned"] >= 8
    assert summary.saved_epochs > 0.25
    assert trials()[0].state == TrialState.COMPLETE  # the start values are measured whole
    assert "stopped early at" in shown
    text = result_text(load_config("evolve.yaml"), summary, {"x": 0.1, "y": 0.9})
    assert f"early saved {100 * summary.saved_epochs:.0f} % of the epochs" in text


def test_finalists_and_start_values_are_trained_again_with_equal_new_seeds(
    write_study: WriteStudy,
) -> None:
    write_study(
        "noisy",
        generations=8,
        fitness={"score": 1.0, "luck": 0.001},
        confirm={"finalists": 1, "seeds": 2},
    )
    summary, shown = run()
    repeats = [trial for trial in trials() if trial.user_attrs["kind"] == "confirm"]
    assert summary.best is not None
    assert [trial.user_attrs["of"] for trial in repeats] == [0, summary.best.number] * 2
    seeds = [trial.user_attrs["seed"] for trial in repeats]
    assert seeds[0] == seeds[1] != seeds[2] == seeds[3]
    assert not set(seeds) & {trial.user_attrs["seed"] for trial in trials()[:8]}
    assert repeats[0].params == trials()[0].params
    assert repeats[1].params == summary.best.params
    assert (summary.generations, summary.states["confirm"]) == (8, 4)
    # luck depends on the seed alone, so pairs of equal seeds show the bare gain
    assert summary.verdict.word == "better"
    gain = summary.verdict.gain
    assert gain is not None and gain.mean == pytest.approx(
        trials()[summary.best.number].user_attrs["metrics"]["score"]
        - trials()[0].user_attrs["metrics"]["score"]
    )
    text = result_text(load_config("evolve.yaml"), summary, {"x": 0.1, "y": 0.9})
    assert "start values:      fitness" in text
    assert "<- recommended" in text
    header = Path("hyp/best.yaml").read_text().splitlines()[1]
    assert header == f"# {summary.verdict.text}"
    # the winner's weights are a repeat's, and the other repeats leave none
    assert summary.checkpoint is not None
    kept = {path.parts[4] for path in Path("runs/evolve/toy/trials").glob("*/weights/*.pt")}
    assert summary.checkpoint.parts[4] in kept
    assert int(summary.checkpoint.parts[4]) in {repeats[1].number, repeats[3].number}
    assert len([name for name in kept if int(name) >= 8]) == 1
    # more generations: repeats are no generations, and those that stand are not done again
    again, _ = run("study.generations=9")
    assert again.generations == 9
    assert "again, seed" in shown


def wait_until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
