"""Operating a study: hangs, limits of time and disk, stop, retry, gc, doctor, and joining it."""

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from rich.console import Console

from evolve import keep
from evolve.__main__ import main
from evolve.config import load_config, parse_config
from evolve.display import Display
from evolve.errors import ConfigError
from evolve.machine import place_workers
from evolve.objective import load_objective
from evolve.problem import build_problem
from evolve.share import config_tree, publish, published
from evolve.storage import load_study, open_study
from evolve.study import run_study
from evolve.trial_log import read_events
from evolve.worker_options import WorkerOptions

WriteStudy = Callable[..., Path]


def run(*overrides: str) -> str:
    """Run evolve.yaml here and return what was shown."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    shown = io.StringIO()
    run_study(load_config("evolve.yaml", overrides), Display(Console(file=shown, width=200)))
    return shown.getvalue()


def trials() -> list[optuna.trial.FrozenTrial]:
    return load_study(load_config("evolve.yaml")).get_trials()


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Return exit code, standard output and standard error of a command."""
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# ---- trials that take too long or too much


def test_a_trial_that_hangs_goes_on_and_one_over_its_time_fails(write_study: WriteStudy) -> None:
    limits = {"count": 1, "silent_minutes": 0.02, "trial_hours": 0.0008}  # 1.2 s, 2.9 s
    write_study("hanging", generations=3, workers=limits)
    shown = run()
    found = trials()
    assert [trial.state.name for trial in found] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]
    assert found[1].user_attrs["attempts"] == 2
    assert "trial 1: no sign of life for" in shown
    assert found[2].user_attrs["reason"] == "time limit: it ran for trial_hours=0.0008"
    events = [event["event"] for event in read_events(Path("runs/evolve/toy/trials/1"))]
    assert events == ["begun", "repeated", "begun", "ended"]


def test_a_trial_without_memory_is_tried_again_alone(write_study: WriteStudy) -> None:
    write_study("greedy", generations=6, workers={"count": 3})
    shown = run()
    assert [trial.state for trial in trials()] == [TrialState.COMPLETE] * 6
    assert trials()[2].user_attrs["attempts"] == 2
    assert "trial 2: RuntimeError: CUDA out of memory. Tried to allocate 2 GiB;" in shown
    lines = [line.split() for line in Path("times.txt").read_text().splitlines()]
    begin = [float(at) for number, at, what in lines if (number, what) == ("2", "begin")][1]
    end = next(float(at) for number, at, what in lines if (number, what) == ("2", "end"))
    beside = [number for number, at, _ in lines if begin < float(at) < end]
    assert beside == []  # nobody else began or ended while it ran


def test_a_trial_may_have_several_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evolve.machine.usable_cores", lambda: list(range(8)))
    monkeypatch.setattr("evolve.machine.visible_gpus", lambda: 4)
    monkeypatch.setattr("evolve.machine.free_memory", lambda: None)
    placements = place_workers(WorkerOptions(devices_per_trial=2))
    assert [p.devices for p in placements] == [("cuda:0", "cuda:1"), ("cuda:2", "cuda:3")]
    with pytest.raises(ConfigError, match="devices_per_trial=5: this machine has 4 GPUs"):
        place_workers(WorkerOptions(devices_per_trial=5))


# ---- disk


def test_new_trials_wait_while_the_folder_is_over_its_budget(write_study: WriteStudy) -> None:
    write_study(generations=2)
    run()
    ballast = Path("runs/evolve/toy/ballast")
    ballast.write_bytes(b"0" * 200_000)
    arguments = ["run", "--generations", "3", "--max-disk", "150kB"]
    process = subprocess.Popen(
        [sys.executable, "-m", "evolve", *arguments], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    with process.stderr as said:
        line = next(line for line in said if "no new trials" in line)
        assert "toy holds" in line and "of max_disk 150 kB" in line
        assert len(trials()) == 2
        ballast.unlink()
        rest = said.read()
    assert process.wait() == 0
    assert "there is space again" in rest
    assert len(trials()) == 3


def test_a_disk_that_is_nearly_full_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 5 * 10**8, "total": 10**12})
    monkeypatch.setattr(keep.shutil, "disk_usage", lambda folder: usage)
    text = keep.disk_shortage(Path("."), None)
    assert text == "500 MB are free on the disk of ., 1 GB needed"


@pytest.mark.parametrize("size", ["a lot", "0GB", "-3GB"])
def test_a_size_is_a_number_with_a_unit(write_study: WriteStudy, size: str) -> None:
    write_study(study={"max_disk": size})
    with pytest.raises(ConfigError, match=r"study.max_disk='?.* must be a size such as 20GB"):
        load_config("evolve.yaml")


def test_gc_keeps_the_best_checkpoints(
    write_study: WriteStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(generations=5)
    run()
    for number in range(5):
        weights = Path(f"runs/evolve/toy/trials/{number}/weights")
        (weights / "best.pt").write_bytes(b"0" * 1000)
        (weights / "last.pt").write_bytes(b"0" * 1000)
    Path("runs/evolve/toy/trials-1/0").mkdir(parents=True)
    best = sorted(range(5), key=lambda n: -(trials()[n].value or 0))
    code, out, _ = command(capsys, "gc", "--keep", "1", "--dry-run", "--json")
    assert code == 0 and len(list(Path("runs").rglob("last.pt"))) == 5
    code, out, _ = command(capsys, "gc", "--keep", "1", "--json")
    freed = json.loads(out)
    held = {path.parent.parent.name for path in Path("runs").rglob("best.pt")}
    assert str(best[0]) in held and len(held) <= 2  # and what is recommended, if that is another
    assert freed["bytes"] == 1000 * (10 - len(held))
    assert not list(Path("runs").rglob("last.pt"))
    assert not Path("runs/evolve/toy/trials-1").exists()


# ---- stop and retry


def test_stop_saves_or_waits_for_the_running_trials(
    write_study: WriteStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study("slow", generations=200)
    assert command(capsys, "status")[0] == 2
    for flags, running in ((["--after-trials"], 0), ([], 1)):
        before = begun()
        process = subprocess.Popen(
            [sys.executable, "-m", "evolve", "run"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda before=before: begun() > before + 2)  # type: ignore[misc]
        code, out, _ = command(capsys, "stop", *flags)
        assert (code, "has stopped" in out) == (0, True)
        assert process.stderr is not None
        with process.stderr as said:
            assert "stopped by `evolve stop" in said.read().splitlines()[-1]
        assert process.wait() == 130
        left = sum(trial.state == TrialState.RUNNING for trial in trials())
        assert left <= running
    assert "nobody runs study toy" in command(capsys, "stop")[1]


def begun() -> int:
    """Return how many trials have a folder."""
    return len(list(Path("runs/evolve/toy/trials").glob("*")))


def test_failed_trials_are_queued_again_once(
    write_study: WriteStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study("diverging", generations=3)
    run()
    code, out, _ = command(capsys, "retry", "FAILED", "--json")
    assert (code, json.loads(out)["trials"]) == (0, [1])
    assert json.loads(command(capsys, "retry", "1", "--json")[1])["trials"] == []
    run("study.generations=4")
    again = next(trial for trial in trials() if trial.user_attrs.get("retry_of") == 1)
    assert again.state == TrialState.COMPLETE
    assert again.params == trials()[1].params
    code, _, err = command(capsys, "retry", "2")
    assert (code, err) == (
        2,
        "error: retry 2: complete; allowed: FAILED, or numbers of failed trials\n",
    )


# ---- doctor, watch, joining


def test_the_doctor_says_what_is_wrong(
    write_study: WriteStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study()
    code, out, _ = command(capsys, "doctor", "--json")
    checks = json.loads(out)
    assert code == 0
    assert set(checks) == {
        "storage",
        "record",
        "devices",
        "objective and data",
        "disk",
        "versions",
    }
    assert not Path("runs/evolve.db").exists()  # looking makes nothing
    code, out, _ = command(capsys, "doctor", "--set", "objective=nowhere.at_all", "--storage=x")
    assert code == 1
    bad = [line.split()[1] for line in out.splitlines() if line.startswith("error")]
    assert bad == ["storage", "objective"]


def test_status_is_watched_until_it_is_interrupted(write_study: WriteStudy) -> None:
    write_study(generations=2)
    run()
    process = subprocess.Popen(
        [sys.executable, "-m", "evolve", "status", "--watch", "0.1", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout as out:
        seen = [json.loads(out.readline())["generations"] for _ in range(2)]
        process.terminate()
    assert seen == [2, 2]
    assert process.wait() == 130


def test_a_study_in_sqlite_cannot_be_joined(
    write_study: WriteStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study()
    code, _, err = command(capsys, "worker")
    assert code == 2
    assert "SQLite, which serves one process of one machine" in err
    assert "--storage postgresql://" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("storage", "words"),
    [
        ("oracle://h/x", "oracle is not known"),
        ("no address", "is no address"),
        ("grpc://", "must be grpc://HOST:PORT"),
    ],
)
def test_a_storage_that_cannot_be_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], storage: str, words: str
) -> None:
    code, _, err = command(capsys, "worker", "--study", "toy", "--storage", storage)
    assert code == 2
    assert words in err and len(err.splitlines()) == 1


def test_who_joins_a_study_gets_its_whole_config(write_study: WriteStudy) -> None:
    Path("start.yaml").write_text("x: 0.25\nbox: 5\ntrain: {epochs: 9}\n")
    write_study(
        start="start.yaml",
        settings={"epochs": 4},
        limits={"params": 3.0},
        strategy={"name": "genetic", "elites": 4},
        pruning={"name": "median", "n_startup_trials": 2},
        workers={"count": 3, "lease": 7, "devices_per_trial": 2},
        space={"x": {"low": 0.01, "high": 1.0, "log": True}, "y": {"choices": [1, 2]}},
    )
    config = load_config("evolve.yaml")
    study = open_study(config)
    problem = build_problem(config, load_objective(config.objective), lambda line: None)
    publish(config, study, problem)
    told, known = published(study)
    assert config_tree(told) == config_tree(config) == config_tree(parse_config(config_tree(told)))
    assert told.identity() == json.loads(json.dumps(config.identity()))
    assert known == problem


def wait_until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
