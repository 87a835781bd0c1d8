"""Seconds that each command takes on a study of many trials, which is written straight to SQLite.

The trials are made up: 24 hyperparameters, fitness by epoch, failures, stopped trials, repeats.
`python -m benchmarks.big_study --trials 10000 --out FOLDER` prints one line a command.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState

from evolve.choice import FINALISTS
from evolve.config import StudyConfig, load_config
from evolve.objective import load_objective
from evolve.problem import start_values, train_fields_of
from evolve.record import CONFIRM, SEARCH, START, fitness, generations, ranking
from evolve.storage import open_study
from evolve.summary import TOTAL, TRAIN_FIELDS
from evolve.yamlfile import read_yaml, write_yaml

ROOT = Path(__file__).resolve().parent.parent
MORE_GENES = {  # beside those of evolve.yaml: 24 in all
    "warmup_epochs": {"low": 0.0, "high": 3.0},
    "shear": {"low": 0.0, "high": 10.0},
    "perspective": {"low": 0.0, "high": 0.001},
    "copy_paste": {"low": 0.0, "high": 1.0},
}
EPOCHS, WORKERS, REPEATS = 5, 4, 3
FAILED, PRUNED = 0.02, 0.1  # shares of the trials
COMMANDS = ("status", "best", "report")
ROWS = 20_000  # of one insertion
BEGIN = datetime(2026, 1, 1)
METRICS = ("mAP50-95", "mAP50", "precision", "recall", "F1")


def main() -> None:
    """Make the study, unless it is there, and time the commands on it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--out", type=Path, help="folder of the study; a temporary one by default")
    parser.add_argument("--commands", default=",".join(COMMANDS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (arguments.out or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
        config = write_config()
        if not Path("runs/evolve.db").is_file():
            began = time.monotonic()
            fill(config, arguments.trials)
            print(f"written: {arguments.trials} trials in {time.monotonic() - began:.1f} s")
        for name in arguments.commands.split(","):
            print(json.dumps(timed(name)), flush=True)


def write_config() -> StudyConfig:
    """Write the evolve.yaml of the study into the working folder."""
    tree = read_yaml(ROOT / "evolve.yaml")
    tree["study"]["name"] = "big"
    tree["start"] = str(ROOT / "hyp/yolox.yaml")
    tree["space"] |= MORE_GENES
    tree["tracking"] = "none"
    Path("evolve.yaml").write_text(write_yaml(tree), encoding="utf-8")
    return load_config("evolve.yaml")


def timed(command: str) -> dict[str, Any]:
    """Run a command as a user does; returns its seconds, CPU-seconds and lines."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "evolve", command]
    done = subprocess.run(line, capture_output=True, text=True, check=True, env=environment)
    seconds = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "command": command,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "lines": len(done.stdout.splitlines()),
    }


def fill(config: StudyConfig, count: int) -> None:
    """Write `count` trials of a search and the repeats of its finalists and start values."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = open_study(config)
    study.set_user_attr(TOTAL, count)
    study.set_user_attr(TRAIN_FIELDS, train_fields_of(load_objective(config.objective)))
    trials = search_of(config, count)
    chosen = [trial.number for trial in ranking(trials) if trial.number][:REPEATS]
    study.set_user_attr(FINALISTS, {"generations": generations(trials), "trials": chosen})
    for of in (0, *chosen):
        for repeat in range(REPEATS):
            trials.append(repeat_of(trials[of], len(trials), repeat))
    write(study, trials)


def search_of(config: StudyConfig, count: int) -> list[FrozenTrial]:
    """Return trials that come nearer to an optimum in the first third of the genes."""
    rng = np.random.default_rng(0)
    space, kinds = config.space, config.space.distributions()
    start = space.to_unit(start_values(config, lambda _: None))
    optimum = rng.uniform(0.2, 0.8, len(start))
    weights = np.where(np.arange(len(start)) < len(start) // 3, 1.0, 0.02)
    trials = []
    for number in range(count):
        way = 1.0 - np.exp(-3.0 * number / count)
        cube = start + way * (optimum - start) + rng.normal(0.0, 0.12, len(start)) * bool(number)
        cube = np.clip(cube, 0.0, 1.0)
        level = 0.6 - float(weights @ (cube - optimum) ** 2) / 3 + rng.normal(0.0, 0.01)
        state = TrialState.COMPLETE
        if number:
            draw = rng.random()
            state = TrialState.FAIL if draw < FAILED else state
            state = TrialState.PRUNED if draw > 1 - PRUNED else state
        kind = SEARCH if number else START
        trials.append(trial_of(number, space.from_unit(cube), kinds, level, state, {"kind": kind}))
    return trials


def trial_of(
    number: int,
    params: dict[str, Any],
    kinds: dict[str, Any],
    level: float,
    state: TrialState,
    attributes: dict[str, Any],
) -> FrozenTrial:
    """Return a trial that ended with `level` as its fitness after EPOCHS reports."""
    began = BEGIN + timedelta(seconds=60 * (number // WORKERS))
    curve = {step: level * (1 - 0.5 ** (step + 1)) for step in range(EPOCHS)}
    if state == TrialState.PRUNED:
        curve = {step: curve[step] for step in range(2)}
    ends = {TrialState.COMPLETE: level, TrialState.PRUNED: curve[min(1, max(curve))]}
    if state == TrialState.FAIL:
        attributes |= {"reason": f"diverged: the loss is not finite at step {number}"}
    else:
        attributes |= {"metrics": {name: level - 0.01 * i for i, name in enumerate(METRICS)}}
    more = {"seed": number, "attempts": 1, "seconds": 55.0, "worker": f"worker-{number % WORKERS}"}
    return FrozenTrial(
        number=number,
        state=state,
        value=ends.get(state),
        datetime_start=began,
        datetime_complete=began + timedelta(seconds=55),
        params=params,
        distributions={name: kinds[name] for name in params},
        user_attrs={**attributes, **more},
        system_attrs={},
        intermediate_values=curve,
        trial_id=number,
    )


def repeat_of(trial: FrozenTrial, number: int, repeat: int) -> FrozenTrial:
    """Return a trial measured again with another seed."""
    level = fitness(trial) - 0.01 + 0.005 * repeat
    attributes = {"kind": CONFIRM, "of": trial.number, "repeat": repeat}
    return trial_of(
        number, trial.params, trial.distributions, level, TrialState.COMPLETE, attributes
    )


def write(study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
    """Write trials into the empty tables of Optuna, whose own way takes minutes."""
    backend: RDBStorage = study._storage._backend  # type: ignore[attr-defined]
    tables: dict[Any, list[dict[str, Any]]] = {}
    for trial in trials:
        for table, row in rows_of(trial):
            tables.setdefault(table, []).append({"trial_id": trial.number + 1, **row})
    for row in tables[models.TrialModel]:
        row["study_id"] = study._study_id
    with backend.engine.begin() as connection:
        for table, rows in tables.items():
            for first in range(0, len(rows), ROWS):
                connection.execute(table.__table__.insert(), rows[first : first + ROWS])


def rows_of(trial: FrozenTrial) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Give the rows of a trial, each with its table; `trial_id` is left out."""
    yield (
        models.TrialModel,
        {
            "number": trial.number,
            "state": trial.state,
            "datetime_start": trial.datetime_start,
            "datetime_complete": trial.datetime_complete,
        },
    )
    for name, value in trial.params.items():
        kind = trial.distributions[name]
        text, number = distribution_to_json(kind), kind.to_internal_repr(value)
        row = {"param_name": name, "distribution_json": text, "param_value": number}
        yield models.TrialParamModel, row
    for key, attribute in trial.user_attrs.items():
        yield models.TrialUserAttributeModel, {"key": key, "value_json": json.dumps(attribute)}
    finite = models.TrialValueModel.TrialValueType.FINITE
    for value in trial.values or []:
        yield models.TrialValueModel, {"objective": 0, "value": value, "value_type": finite}
    kind_of_value = models.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE
    for step, value in trial.intermediate_values.items():
        report = {"step": step, "intermediate_value": value}
        yield (
            models.TrialIntermediateValueModel,
            {**report, "intermediate_value_type": kind_of_value},
        )


if __name__ == "__main__":
    main()
