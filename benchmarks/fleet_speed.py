"""The timed parts of the fleet benchmark: workers that sleep, a crowd of processes, trainings."""

import argparse
import os
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from benchmarks import fleet_tools as tools
from benchmarks.postgres import Postgres

CROWD, CROWD_SLEEP = 32, 8.0
EIGHT_ROUNDS, EIGHT_SLEEP = 12, 2.0
CORE_TRIALS = 4  # of each worker; the first and the last are not timed
PLAUSIBLE = 1.1  # a larger share than this is a machine that changed its speed
CORE_ROUNDS = 5  # in which the set-ups take turns, so that a slow minute meets all of them


def eight(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare 8 workers with one on trials that sleep 2 s."""
    rates = {}
    for workers in (1, 8):
        place, trials = folder / str(workers), EIGHT_ROUNDS * workers
        tree = tools.write_study(
            place,
            "sqlite:///runs/evolve.db",
            trials,
            settings={"sleep": EIGHT_SLEEP},
            workers={"count": workers},
            tracking="none",
        )
        code = tools.start(place, "run").wait()
        found = tools.trials_of(tree, place)
        assert code == 0 and len(found) == trials, tools.log_of(place)
        rates[workers] = throughput(found, workers)
    ratio = rates[8] / rates[1]
    return {
        "passed": ratio >= 7.2,
        "trials_a_second": {str(n): round(rate, 4) for n, rate in rates.items()},
        "ratio": round(ratio, 3),
        "wanted": 7.2,
    }


def throughput(trials: list[FrozenTrial], workers: int) -> float:
    """Return trials a second, from when all workers had begun to when the first runs dry.

    What a worker takes to start is left out; it happens once in a study.
    """
    ends = sorted(t.datetime_complete.timestamp() for t in trials if t.datetime_complete)
    first, last = ends[workers - 1], ends[-workers]
    return (len(ends) - 2 * workers + 1) / (last - first)


def many(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time ask and tell of 32 processes on one PostgreSQL, from when all of them run."""
    trials = 16 * CROWD
    with Postgres() as server:
        tree = tools.write_study(
            folder,
            server.url,
            trials,
            settings={"sleep": CROWD_SLEEP},
            workers={"count": 1, "lease": 60},
            tracking="none",
        )
        leader = tools.start(folder, "run")
        joining = ["worker", "--study", tools.NAME, "--storage", server.url, "--workers", "1"]
        while not tools.trials_of(tree, folder) and leader.poll() is None:
            time.sleep(0.5)
        places = [folder / f"joined-{index}" for index in range(CROWD - 1)]
        joined = [tools.start(place, *joining) for place in places]
        try:
            codes = tools.wait_all([leader, *joined], 900.0)
        finally:
            tools.end_all([leader, *joined])
        found = tools.audit(tree, folder)
    seconds = tools.storage_seconds([folder, *places])
    p95 = tools.share_below(seconds, 0.95)
    whole = found["complete"] == trials and found["unfinished"] == 0 and codes == [0] * CROWD
    return {
        "passed": whole and p95 < 0.5 and found["equal_proposals"] == 0,
        "processes": CROWD,
        "asked": trials,
        "trial_seconds": CROWD_SLEEP,
        "ask_tell_seconds": {
            "median": round(tools.share_below(seconds, 0.5), 4),
            "p95": round(p95, 4),
            "largest": round(seconds[-1], 4),
            "trials": len(seconds),
        },
        **found,
    }


def cores(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train BCCD in three set-ups: workers x threads of 1 x 1, 2 x 1, 1 x 2."""
    data = tools.ROOT / "data" / "bccd.yaml"
    measured: dict[str, list[float]] = {}
    for workers, threads in CORE_ROUNDS * ((1, 1), (2, 1), (1, 2)):
        place = folder / f"{workers}x{threads}"
        shutil.rmtree(place, ignore_errors=True)
        tree = {
            "settings": {"model": "yolox-nano", "data": str(data), "imgsz": 128, "epochs": 1},
            "objective": "detector.objective",
            "fitness": {"mAP50": 1.0},
            "space": {"lr0": {"low": 1e-3, "high": 0.02, "log": True}},
            "start": {"lr0": 0.01, "mosaic": 0.0, "mixup": 0.0},
            "strategy": "random",
            "workers": {"count": workers},
            "tracking": "none",
        }
        trials = CORE_TRIALS * workers
        written = tools.write_study(place, "sqlite:///runs/evolve.db", trials, **tree)
        prefix = ["taskset", "-c", "0"] if workers * threads == 1 else []
        code = tools.start(place, "run", prefix=prefix).wait()
        found = tools.trials_of(written, place)
        assert code == 0 and len(found) == trials, tools.log_of(place)
        several = measured.setdefault(f"{workers}x{threads}", [])
        several.append(3600 * throughput(found, workers))
    rates = {name: statistics.mean(several) for name, several in measured.items()}
    # round by round: a machine that changes its speed between two set-ups shows in their spread
    shares = [two / (2 * one) for one, two in zip(measured["1x1"], measured["2x1"], strict=True)]
    share = statistics.median(shares)
    return {
        "passed": share >= 0.9 and max(shares) < PLAUSIBLE and rates["2x1"] > rates["1x2"],
        "trials_an_hour": {name: round(rate, 1) for name, rate in rates.items()},
        "by_round": {
            name: [round(rate, 1) for rate in several] for name, several in measured.items()
        },
        "share_of_twice_one": round(share, 3),
        "shares": [round(one, 3) for one in shares],
        "wanted": 0.9,
        "threads": os.cpu_count(),
    }
