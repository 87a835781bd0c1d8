"""What the MLflow record of a study costs, and what it survives.

    python -m benchmarks.tracking                      # all parts, some five minutes
    python -m benchmarks.tracking --parts speed,kill --trials 300

speed   seconds to write trials of 30 epochs with 20 metrics
kill    a study killed (kill -9) at ten random points, then run to its end
server  a study whose MLflow server is stopped half-way, `evolve sync` after it is back, beside an
        undisturbed one: trials a minute, and whether both records hold the same
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import yaml

from benchmarks.tracking_objective import row_of
from evolve.config import parse_config
from evolve.mlflow_store import Store, limits
from evolve.mlflow_tracker import STATUS
from evolve.tracking import open_tracker
from evolve.ui import HOST, free_port

RESULTS = Path("benchmarks/results/tracking.json")
NAME = "tracking"
TREE: dict[str, Any] = {
    "objective": "benchmarks.tracking_objective",
    "study": {"name": NAME},
    "space": {f"x{i}": {"low": 0.0, "high": 1.0} for i in range(24)},
    "start": {f"x{i}": 0.2 for i in range(24)},
    "strategy": "random",
    "pruning": "none",
    "confirm": None,
}


def main() -> int:
    """Run the parts that were asked for and write what they gave."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tracking", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--parts", default="speed,kill,server")
    parser.add_argument("--trials", type=int, default=300, help="of the part speed")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = json.loads(arguments.results.read_text()) if arguments.results.is_file() else {}
    for part in arguments.parts.split(","):
        with tempfile.TemporaryDirectory() as folder:
            given = (Path(folder), arguments.trials) if part == "speed" else (Path(folder),)
            found[part] = PARTS[part](*given)
        print(part, json.dumps(found[part]), flush=True)
        arguments.results.parent.mkdir(parents=True, exist_ok=True)
        arguments.results.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def measure_speed(folder: Path, trials: int, epochs: int = 30) -> dict[str, Any]:
    """Write `trials` trials as a study would, without the time of the trials themselves."""
    uri = f"sqlite:///{folder}/mlflow.db"
    config = parse_config({**TREE, "tracking": {"uri": uri, "experiment": NAME}})
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler())
    tracker = open_tracker(config, folder)
    with limits():
        Store(uri, NAME)  # making the tables takes seconds, once in the life of a store
    spent, description = 0.0, {"data": "sleep", "digests": {"train": "0" * 32}}
    began = time.perf_counter()
    tracker.start(study)
    spent += time.perf_counter() - began
    for number in range(trials):
        trial = study.ask(config.space.distributions())
        directory = folder / "trials" / str(number)
        directory.mkdir(parents=True)
        (directory / "hyp.yaml").write_text("box: 5.0\n")
        (directory / "results.csv").write_text("epoch\n")
        rows = [row_of(epoch, random.random()) for epoch in range(1, epochs + 1)]
        begun = study.trials[-1]
        began = time.perf_counter()
        tracker.trial_started(begun, "cpu0")
        for epoch, row in enumerate(rows, start=1):
            tracker.trial_epoch(number, epoch, row)
        spent += time.perf_counter() - began
        trial.set_user_attr("metrics", rows[-1])
        told = study.tell(trial, rows[-1]["fitness"])
        began = time.perf_counter()
        tracker.trial_finished(told, directory, description)
        spent += time.perf_counter() - began
    began = time.perf_counter()
    whole = tracker.finish(study, {"study": NAME})
    spent += time.perf_counter() - began
    return {"trials": trials, "epochs": epochs, "metrics": 20, "seconds": spent, "whole": whole}


def measure_kill(folder: Path, kills: int = 10, trials: int = 60) -> dict[str, Any]:
    """Kill a study again and again, let it end, and compare Optuna with MLflow."""
    uri = f"sqlite:///{folder}/mlflow.db"
    write_config(folder, uri, trials)
    for _ in range(kills):
        goal = done_trials(folder) + random.randint(1, 5)
        study = start_study(folder, TRACKING_SLEEP="0.05")
        while done_trials(folder) < goal and study.poll() is None:
            time.sleep(0.05)
        time.sleep(random.uniform(0.0, 0.5))
        os.kill(study.pid, signal.SIGKILL)
        study.wait()
        print(f"killed with {done_trials(folder)} trials done", file=sys.stderr, flush=True)
    finished = start_study(folder).wait()
    faults = differences(folder, uri)
    return {"kills": kills, "trials": trials, "exit": finished, "differences": faults}


def measure_server(folder: Path, trials: int = 60) -> dict[str, Any]:
    """Stop the server in mid-study; compare with a study whose server stays."""
    found: dict[str, Any] = {}
    contents = []
    for name, disturbed in (("undisturbed", False), ("server stopped", True)):
        place = folder / name.replace(" ", "-")
        place.mkdir()
        port = free_port(5600)
        uri = f"http://{HOST}:{port}"
        write_config(place, uri, trials)
        with served(place, port) as server:
            study = start_study(place, TRACKING_SLEEP="0.1")
            if disturbed:
                while done_trials(place) < trials // 3:
                    time.sleep(0.2)
                os.kill(server.pid, signal.SIGTERM)
                server.wait()
            code = study.wait()
        with served(place, port):
            synced = subprocess.run(
                [sys.executable, "-m", "evolve", "sync"], cwd=place, env=environment()
            )
            contents.append(content_of(Store(uri, NAME)))
            faults = differences(place, uri)
        found[name] = {
            "trials_per_minute": 60 * trials / study_seconds(place),
            "exit": [code, synced.returncode],
            "differences": faults,
        }
    first, second = (row["trials_per_minute"] for row in found.values())
    return {**found, "speed_ratio": second / first, "same_content": alike(*contents)}


PARTS = {"speed": measure_speed, "kill": measure_kill, "server": measure_server}


# ---- studies -----------------------------------------------------------------------------------


def write_config(folder: Path, uri: str, trials: int) -> None:
    """Write the evolve.yaml of a toy study."""
    tree = {**TREE, "tracking": {"uri": uri, "experiment": NAME}, "workers": {"count": 2}}
    tree["study"] = {"name": NAME, "generations": trials, "storage": "sqlite:///runs/evolve.db"}
    (folder / "evolve.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a command that runs in another folder."""
    return {**os.environ, "PYTHONPATH": str(Path.cwd()), **more}


def start_study(folder: Path, **more: str) -> "subprocess.Popen[bytes]":
    """Start or resume the study of a folder."""
    command = [sys.executable, "-m", "evolve", "run"]
    with (folder / "run.log").open("ab") as log:
        return subprocess.Popen(
            command, cwd=folder, env=environment(**more), stdout=log, stderr=log
        )


def trials_of(folder: Path) -> Sequence[optuna.trial.FrozenTrial]:
    """Return the trials of the study in Optuna's storage."""
    storage = f"sqlite:///{folder}/runs/evolve.db"
    return optuna.load_study(storage=storage, study_name=NAME).get_trials(deepcopy=False)


def done_trials(folder: Path) -> int:
    """Return how many trials have ended; 0 while there is no study."""
    try:
        return sum(trial.state.is_finished() for trial in trials_of(folder))
    except Exception:  # the storage is being made
        return 0


def study_seconds(folder: Path) -> float:
    """Return the seconds from the first trial's start to the last one's end."""
    trials = [trial for trial in trials_of(folder) if trial.datetime_complete]
    begun = min(t.datetime_start for t in trials if t.datetime_start)
    return (max(t.datetime_complete for t in trials if t.datetime_complete) - begun).total_seconds()


@contextmanager
def served(folder: Path, port: int) -> "Iterator[subprocess.Popen[bytes]]":
    """Run an MLflow server on the folder's store."""
    place = folder.resolve()
    Store(f"sqlite:///{place}/mlflow.db", "made")  # its tables
    code = (
        f"import sys; from pathlib import Path; from evolve.ui import run_server;"
        f"sys.exit(run_server('sqlite:///{place}/mlflow.db', Path({str(place / 'files')!r}),"
        f" {port}, lambda: print('up', flush=True)))"
    )
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None and server.stdout.readline() == b"up\n"
        yield server
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGTERM)
            server.wait()


# ---- what MLflow holds ---------------------------------------------------------------------------


def content_of(store: Store) -> dict[int, dict[str, Any]]:
    """Return by trial what MLflow holds of it: status, values, metrics, curves, files."""
    found = {}
    for run in store.find({"evolve.study": NAME}):
        if "evolve.generation" not in run.data.tags:
            continue
        number, client = int(run.data.tags["evolve.generation"]), store._client
        assert number not in found, f"trial {number} has two runs"
        found[number] = {
            "status": run.info.status,
            "state": run.data.tags["evolve.state"],
            "params": run.data.params,
            "fitness": run.data.metrics.get("fitness"),
            "points": sorted(store.written(run.info.run_id)),
            "files": sorted(item.path for item in client.list_artifacts(run.info.run_id)),
        }
    return found


def differences(folder: Path, uri: str) -> list[str]:
    """Return in words where MLflow and Optuna do not agree; runs left RUNNING among them."""
    with limits():
        store = Store(uri, NAME)
        found = content_of(store)
        running = store.find({"evolve.study": NAME, "evolve.kind": "study"})
    faults = [f"study is {run.info.status}" for run in running if run.info.status != "FINISHED"]
    trials = {trial.number: trial for trial in trials_of(folder)}
    faults += [f"trial {number} is in one of the two only" for number in found.keys() ^ trials]
    for number in found.keys() & trials.keys():
        run, trial = found[number], trials[number]
        told = {name: run["params"].get(name) for name in trial.params}
        if run["status"] != STATUS.get(trial.state):
            faults.append(f"trial {number}: {trial.state.name} is {run['status']} in MLflow")
        if run["fitness"] != trial.value:
            faults.append(f"trial {number}: fitness {trial.value} is {run['fitness']} in MLflow")
        if told != {name: str(value) for name, value in trial.params.items()}:
            faults.append(f"trial {number}: other values in MLflow")
    return faults


def alike(first: dict[int, Any], second: dict[int, Any]) -> bool:
    """Return whether two records hold the same of each trial, but for the values drawn."""
    keys = ("status", "state", "points", "files")
    return first.keys() == second.keys() and all(
        first[number][key] == second[number][key] for number in first for key in keys
    )


if __name__ == "__main__":
    raise SystemExit(main())
