"""Studies of the fleet benchmark: their processes, and what storage and record hold of them."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState

from evolve.config import parse_config
from evolve.mlflow_store import Store, limits
from evolve.mlflow_tracker import STATUS
from evolve.storage import load_study
from evolve.trial_log import read_events

ROOT = Path(__file__).resolve().parents[1]
NAME = "fleet"


def write_study(folder: Path, storage: str, trials: int, **sections: Any) -> dict[str, Any]:
    """Write an evolve.yaml with a sleeping objective into a folder, and return its tree."""
    tree: dict[str, Any] = {
        "study": {"name": NAME, "generations": trials, "seed": 1, "storage": storage},
        "objective": "benchmarks.fleet_objective",
        "settings": {"sleep": 0.3},
        "space": {f"x{i}": {"low": 0.0, "high": 1.0} for i in range(6)},
        "start": {f"x{i}": 0.2 for i in range(6)},
        "strategy": "genetic",
        "confirm": 0,
        "workers": {"count": 4, "lease": 5},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db", "experiment": NAME},
    } | sections
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evolve.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return tree


def environment() -> dict[str, str]:
    """Return the environment of a study's processes: this repository, one thread each."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(folder: Path, *arguments: str, prefix: Sequence[str] = ()) -> "subprocess.Popen[bytes]":
    """Start `python -m evolve ...` in a folder of its own; its output goes to log.txt there."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [*prefix, sys.executable, "-m", "evolve", *arguments]
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, env=environment(), stdout=log, stderr=log)


def log_of(folder: Path, lines: int = 15) -> str:
    """Return the last lines of what a process of a folder said."""
    text = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
    return "\n".join(text.splitlines()[-lines:])


def workers_of(pid: int) -> list[int]:
    """Return the processes that run trials for a study's process."""
    found = []
    with suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with suppress(OSError):
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(int(child))
    return found


def kill_one(pids: Sequence[int], dice: random.Random) -> bool:
    """Kill one of the processes at random with SIGKILL; False if there is none."""
    if not pids:
        return False
    with suppress(ProcessLookupError):
        os.kill(dice.choice(list(pids)), signal.SIGKILL)
        return True
    return False


def trials_of(tree: dict[str, Any], folder: Path) -> list[FrozenTrial]:
    """Return the trials of a study; none before it is there."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        study = load_study(parse_config(tree))
        try:
            return study.get_trials(deepcopy=False)
        finally:
            study._storage._backend.engine.dispose()  # type: ignore[attr-defined]
    except ValueError:
        return []
    finally:
        os.chdir(before)


def count_complete(tree: dict[str, Any], folder: Path) -> int:
    """Return how many trials are complete."""
    return sum(trial.state == TrialState.COMPLETE for trial in trials_of(tree, folder))


def audit(tree: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return what storage and MLflow hold: states, attempts, and every disagreement in words."""
    trials = trials_of(tree, folder)
    states = Counter(trial.state.name for trial in trials)
    proposals = Counter(tuple(sorted(trial.params.items())) for trial in trials)
    found: dict[str, Any] = {
        "trials": len(trials),
        "complete": states["COMPLETE"],
        "failed": states["FAIL"],
        "unfinished": states["RUNNING"] + states["WAITING"],
        "reasons": Counter(
            str(t.user_attrs.get("reason")) for t in trials if t.state == TrialState.FAIL
        ),
        "attempts": sum(int(trial.user_attrs.get("attempts", 0)) for trial in trials),
        "equal_proposals": sum(count - 1 for count in proposals.values()),
        "numbers_missing": len(trials) and max(t.number for t in trials) + 1 - len(trials),
    }
    return found | ({"record": record_faults(tree, trials)} if tree["tracking"] != "none" else {})


def record_faults(tree: dict[str, Any], trials: Sequence[FrozenTrial]) -> list[str]:
    """Return in words where MLflow does not hold what the study does, each trial exactly once."""
    with limits():
        runs = Store(tree["tracking"]["uri"], NAME).find({"evolve.study": NAME})
    by_number = Counter(int(r.data.tags.get("evolve.generation", -1)) for r in runs)
    faults = [f"trial {n} has {count} runs" for n, count in by_number.items() if count > 1]
    held = {int(run.data.tags.get("evolve.generation", -1)): run for run in runs}
    for trial in trials:
        run = held.get(trial.number)
        if run is None:
            faults.append(f"trial {trial.number} is missing")
        elif run.info.status != STATUS.get(trial.state):
            faults.append(f"trial {trial.number}: {trial.state.name} is {run.info.status}")
        elif run.data.metrics.get("fitness") != trial.value:
            faults.append(f"trial {trial.number}: another fitness")
    extra = held.keys() - {trial.number for trial in trials} - {-1}
    return faults + [f"run of trial {number}, which is not there" for number in sorted(extra)]


def storage_seconds(folders: Sequence[Path]) -> list[float]:
    """Return ask + tell in seconds of each trial that began when all processes had one already.

    Before, the processes start: so many imports at once are no matter of the storage.
    """
    began: dict[tuple[Path, int], str] = {}
    times: dict[tuple[Path, int], float] = {}
    for folder in folders:
        for path in sorted(folder.glob(f"runs/evolve/{NAME}/trials/*/events.jsonl")):
            for event in read_events(path.parent):
                key = (folder, int(event["trial"]))
                began.setdefault(key, event["time"])
                spent = float(event.get("asked", 0.0)) + float(event.get("told", 0.0))
                times[key] = times.get(key, 0.0) + spent
    first = {folder: "~" for folder in folders}  # "~" is behind all times
    for (folder, _), when in began.items():
        first[folder] = min(first[folder], when)
    whole = max(first.values())
    return sorted(seconds for key, seconds in times.items() if began[key] > whole)


def share_below(values: Sequence[float], share: float) -> float:
    """Return the value that this share of sorted values does not exceed."""
    return values[min(len(values) - 1, int(share * len(values)))]


def wait_all(processes: Sequence["subprocess.Popen[bytes]"], seconds: float) -> list[int | None]:
    """Wait for processes at most so long together; return their exit codes, None: still running."""
    end = time.monotonic() + seconds
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.1, end - time.monotonic()))
    return [process.poll() for process in processes]


def end_all(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Kill what is left of them."""
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


def quiet() -> None:
    """Keep Optuna's lines off the terminal."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
