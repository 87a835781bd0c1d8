"""The search benchmark: every strategy on every problem, kept in files, continued where it stopped.

python -m benchmarks.search --strategies guided,gp --problems noisy --seeds 0-4 --trials 100
"""

import argparse
import heapq
import json
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna import Study
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import Trial, TrialState

from benchmarks.search_peers import ENQUEUED, Setting, finished, sampler_of, value_of
from benchmarks.search_problems import Problem, chosen, make
from evolve.config import Plugin
from evolve.fidelity import build_pruner
from evolve.space import Params, Space

RESULTS = Path(__file__).parent / "results" / "search"
CHECKPOINTS = (25, 50, 100, 200, 300)
THRIFT = 0.6  # of the epochs of whole trials: where a study that stops some is judged as well


@dataclass(frozen=True)
class Cell:
    """One run of the benchmark."""

    strategy: str
    problem: str
    seed: int
    trials: int
    workers: int = 1
    pruning: str = "none"
    hint: bool = False


@dataclass
class Progress:
    """What is counted while a study runs."""

    think: list[float] = field(default_factory=list)  # seconds of ask and tell, per trial
    epochs: int = 0
    told: int = 0


def trial_seed(seed: int, number: int) -> int:
    """Return the seed of a trial's noise, below 2**32."""
    return int(np.random.SeedSequence([seed, number, 77]).generate_state(1)[0])


def run_cell(cell: Cell) -> dict[str, Any]:
    """Run a cell and return what is written about it."""
    quiet()
    problem = make(cell.problem, cell.seed)
    space = Space.from_dict(problem.space)
    setting = Setting(space, problem.start, cell.seed, cell.trials, cell.hint)
    sampler = sampler_of(cell.strategy, setting)
    enqueue = cell.strategy in ENQUEUED
    study = new_study(sampler, build_pruner(Plugin(cell.pruning)), problem if enqueue else None)
    began, progress, checkpoints = time.perf_counter(), Progress(), []
    goals = [] if cell.pruning == "none" else [n for n in CHECKPOINTS if n <= cell.trials]
    for _ in steps(study, problem, cell, progress):
        if progress.told in CHECKPOINTS or progress.told == cell.trials:
            checkpoints.append(judged(study, sampler, problem, progress))
        while goals and progress.epochs >= THRIFT * goals[0] * problem.epochs:
            point = judged(study, sampler, problem, progress)
            checkpoints.append(point | {"thrifty": goals.pop(0)})
    return asdict(cell) | {
        "group": problem.group,
        "noise_sd": problem.noise_sd,
        "start": problem.true(problem.start),
        "best": problem.best,
        "checkpoints": checkpoints,
        "repeats": repeats(study),
        "think_mean": float(np.mean(progress.think)),
        "think_end": float(np.mean(progress.think[-5:])),
        "seconds": time.perf_counter() - began,
    }


def new_study(sampler: BaseSampler, pruner: BasePruner, told: Problem | None) -> Study:
    """Return a study in memory; a problem given here has its start values enqueued."""
    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
    if told is not None:
        study.enqueue_trial(told.start)
    return study


def steps(study: Study, problem: Problem, cell: Cell, progress: Progress) -> Iterator[None]:
    """Run the trials of a cell with its workers; yields whenever one has ended."""
    distributions = Space.from_dict(problem.space).distributions()
    running: list[tuple[float, int, Trial]] = []  # heap of (time of the end, number, trial)
    now, asked = 0.0, 0
    thrift = 0.0 if cell.pruning == "none" else THRIFT
    while progress.told < cell.trials or progress.epochs < thrift * cell.trials * problem.epochs:
        while len(running) < cell.workers and (asked < cell.trials or not running):
            began = time.perf_counter()
            trial = study.ask(distributions)
            progress.think.append(time.perf_counter() - began)
            rng = np.random.default_rng([cell.seed, asked, 88])
            heapq.heappush(running, (now + float(rng.lognormal(0.0, 0.3)), asked, trial))
            asked += 1
        now, number, trial = heapq.heappop(running)
        finish(study, trial, problem, trial_seed(cell.seed, number), progress)
        yield


def finish(study: Study, trial: Trial, problem: Problem, seed: int, progress: Progress) -> None:
    """Train and tell one trial; its seconds of telling count as thinking."""
    curve = problem.measure(trial.params, seed)
    state, value = TrialState.COMPLETE, curve[-1]
    began = time.perf_counter()
    for epoch, reached in enumerate(curve):
        progress.epochs += 1
        if problem.epochs == 1:
            continue
        trial.report(reached, epoch + 1)
        if epoch + 1 < len(curve) and trial.number and trial.should_prune():
            state, value = TrialState.PRUNED, reached
            break
    study.tell(trial, value if state == TrialState.COMPLETE else None, state=state)
    progress.told += 1
    progress.think[-1] += time.perf_counter() - began


def judged(
    study: Study, sampler: BaseSampler, problem: Problem, progress: Progress
) -> dict[str, Any]:
    """Return what is recommended now, and how good it truly is."""
    best = study.best_trial
    params, mean, interval = recommended(study, sampler)
    true = problem.true({**problem.start, **params})
    found = {
        "trials": progress.told,
        "epochs": progress.epochs,
        "true": true,
        "observed": value_of(best),
        "observed_true": problem.true(best.params),
        "reported": mean,
        "interval": interval,
    }
    if problem.best is not None:
        gap = problem.best - problem.true(problem.start)
        found["regret"] = (problem.best - true) / gap
    return found


def recommended(
    study: Study, sampler: BaseSampler
) -> tuple[Params, float, tuple[float, float] | None]:
    """Return values, estimated fitness and 90 % interval: the sampler's, else the luckiest."""
    if not hasattr(sampler, "recommend"):
        return study.best_params, study.best_value, None
    found = sampler.recommend(study)
    return found.params, float(found.mean), getattr(found, "interval", None)


def repeats(study: Study) -> int:
    """Return how many trials measured values that an earlier one had measured."""
    keys = [repr(sorted(trial.params.items())) for trial in finished(study)]
    return len(keys) - len(set(keys))


def quiet() -> None:
    """Silence Optuna in this process."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", module="optuna")
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def key_of(record: dict[str, Any]) -> Cell:
    """Return the cell that a record is about."""
    return Cell(**{name: record[name] for name in Cell.__dataclass_fields__})


def read(folder: Path = RESULTS) -> dict[Cell, dict[str, Any]]:
    """Return the records of all cells; of equal cells the last written."""
    records = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            records[key_of(record)] = record
    return records


def append(record: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write one cell as one line, in a single write, so that two processes do not mix."""
    folder.mkdir(parents=True, exist_ok=True)
    line = json.dumps(_short(record), separators=(",", ":")) + "\n"
    path = folder / f"{record['strategy'].replace(':', '.')}.jsonl"
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)


def _short(value: Any) -> Any:
    """Return a record with nine digits, which is what its numbers are worth."""
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, dict):
        return {key: _short(one) for key, one in value.items()}
    return [_short(one) for one in value] if isinstance(value, list | tuple) else value


def run_all(cells: Sequence[Cell], jobs: int, folder: Path = RESULTS) -> None:
    """Run the cells and write each when it is done, with a line of progress."""
    began = time.perf_counter()
    for done, record in enumerate(_results(cells, jobs), 1):
        append(record, folder)
        spent = time.perf_counter() - began
        left = spent / done * (len(cells) - done)
        last = record["checkpoints"][-1]
        shown = f"{record['strategy']} {record['problem']} seed {record['seed']}"
        print(
            f"{done}/{len(cells)} {shown}: {last['true']:.5g} (start {record['start']:.5g}),"
            f" {record['seconds']:.0f} s, {left / 60:.0f} min left",
            file=sys.stderr,
            flush=True,
        )


def _results(cells: Sequence[Cell], jobs: int) -> Iterator[dict[str, Any]]:
    if jobs == 1:
        yield from map(run_cell, cells)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
        for future in as_completed([pool.submit(run_cell, cell) for cell in cells]):
            yield future.result()


def seeds_of(text: str) -> list[int]:
    """Return the seeds of `0-4`, `3` or `0-4,7`."""
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    return seeds


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    known = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    known.add_argument("--strategies", default="", help="guided,gp,guided+key=value")
    known.add_argument("--problems", default="all", help="groups, names, beginnings of names")
    known.add_argument("--seeds", default="0-4", type=seeds_of)
    known.add_argument("--trials", default=100, type=int)
    known.add_argument("--workers", default=1, type=int, help="trials that run at a time")
    known.add_argument("--pruning", default="none")
    known.add_argument("--jobs", default=1, type=int, help="processes")
    known.add_argument("--budget-hint", action="store_true", help="tell ours the trial count")
    known.add_argument("--redo", action="store_true", help="run cells that have a result again")
    known.add_argument("--report", action="store_true")
    known.add_argument("--report-seeds", default="10-29", type=seeds_of)
    known.add_argument("--results", default=RESULTS, type=Path)
    return known


def main() -> None:
    """Run what is missing, then report."""
    given = parser().parse_args()
    known = {} if given.redo else read(given.results)
    names = [name for name in given.strategies.split(",") if name]
    cells = [
        Cell(name, problem, seed, given.trials, given.workers, given.pruning, given.budget_hint)
        for name in names
        for seed in given.seeds
        for problem in chosen(given.problems)
    ]
    if given.pruning != "none":
        cells = [cell for cell in cells if make(cell.problem, 0).epochs > 1]
    run_all([cell for cell in cells if cell not in known], given.jobs, given.results)
    if given.report:
        from benchmarks.search_report import write_report

        records = list(read(given.results).values())
        print(write_report(records, given.report_seeds, given.results, names))


if __name__ == "__main__":
    main()
