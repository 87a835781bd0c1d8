"""What a study on many workers costs, and what it survives; nothing but this machine is needed.

    python -m benchmarks.fleet                          # all parts, some 40 minutes
    python -m benchmarks.fleet --parts chaos --trials 1000 --kills 200
    python -m benchmarks.fleet --parts eight,many,cores # timings: on a quiet machine

chaos    random kill -9 of workers, and of processes that joined, while PostgreSQL is started anew
parent   the leading process killed ten times at random points: on PostgreSQL, and on SQLite
eight    genetic on trials that sleep 2 s: trials a second of 8 workers and of one
many     32 processes on one PostgreSQL: seconds to ask and tell, equal proposals
cores    BCCD trainings: two workers of one thread, one of one thread, one of two threads
ray      a Ray cluster of three nodes, one of them removed in mid-study
cut      two machines (network namespaces), the link between them cut for a minute
data     `evolve run` on a wrong data path

PostgreSQL is Debian's (`apt-get install postgresql`), Ray the package `ray`. Results are kept by
part in benchmarks/results/fleet.json.
"""

import argparse
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import fleet_tools as tools
from benchmarks.fleet_faults import cut, on_ray, wrong_data
from benchmarks.fleet_speed import cores, eight, many
from benchmarks.postgres import Postgres

RESULTS = Path("benchmarks/results/fleet.json")
JOINED = 2  # processes beside the leader in the chaos
PATIENCE = 3600.0  # seconds that a study may take


def main() -> int:
    """Run the parts that were asked for and write what they gave."""
    parts: dict[str, Callable[[Path, argparse.Namespace], dict[str, Any]]] = {
        "chaos": chaos,
        "parent": parent,
        "eight": eight,
        "many": many,
        "cores": cores,
        "ray": on_ray,
        "cut": cut,
        "data": wrong_data,
    }
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--parts", default=",".join(parts), help="some of them, in commas")
    parser.add_argument("--trials", type=int, default=1000, help="of the chaos")
    parser.add_argument("--kills", type=int, default=200, help="of the chaos")
    parser.add_argument("--restarts", type=int, default=5, help="of PostgreSQL in the chaos")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    tools.quiet()
    unknown = [part for part in arguments.parts.split(",") if part not in parts]
    if unknown:
        parser.error(f"--parts {', '.join(unknown)}: allowed: {', '.join(parts)}")
    failed = False
    for part in arguments.parts.split(","):
        found = json.loads(arguments.results.read_text()) if arguments.results.is_file() else {}
        with tempfile.TemporaryDirectory(prefix=f"fleet-{part}-") as folder:
            began, load = time.monotonic(), os.getloadavg()[0]
            found[part] = parts[part](Path(folder).resolve(), arguments)
        found[part] |= {
            "took_seconds": round(time.monotonic() - began, 1),
            "cores": os.cpu_count(),
            "load_before": round(load, 2),
        }
        print(json.dumps({part: found[part]}, indent=1))
        arguments.results.parent.mkdir(parents=True, exist_ok=True)
        arguments.results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        failed |= not found[part]["passed"]
    return int(failed)


def chaos(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Kill workers and joined processes at random, and restart the database, in one study."""
    with Postgres() as server:
        tree = tools.write_study(folder, server.url, arguments.trials)
        leader = tools.start(folder, "run")
        joining = ["worker", "--study", tools.NAME, "--storage", server.url, "--workers", "2"]
        places = [folder / f"joined-{index}" for index in range(JOINED)]
        joined = [tools.start(place, *joining) for place in places]
        kills = {"workers": 0, "joined": 0, "restarts": 0}
        dice, began = random.Random(arguments.seed), time.monotonic()
        try:
            while leader.poll() is None and time.monotonic() - began < PATIENCE:
                time.sleep(dice.uniform(0.0, 0.6))
                for index, process in enumerate(joined):  # what a supervisor would do
                    if process.poll() not in (None, 0):
                        joined[index] = tools.start(places[index], *joining)
                _one_fault(server, [leader, *joined], kills, dice, arguments)
            codes = tools.wait_all([leader, *joined], 120.0)
        finally:
            tools.end_all([leader, *joined])
        found = tools.audit(tree, folder)
    passed = _whole(found, arguments.trials) and codes[0] == 0
    passed &= kills["restarts"] >= arguments.restarts
    passed &= kills["workers"] + kills["joined"] >= arguments.kills
    said = {} if passed else {"log": tools.log_of(folder)}
    return {"passed": passed, "asked": arguments.trials, **kills, "codes": codes, **found, **said}


def _one_fault(
    server: Postgres,
    processes: Sequence[Any],
    kills: dict[str, int],
    dice: random.Random,
    arguments: argparse.Namespace,
) -> None:
    """Do the next kill or restart if it is due: they are spread over nine tenths of the study."""
    done = kills["workers"] + kills["joined"]
    share = (server.complete() or 0) / (0.9 * arguments.trials)
    if kills["restarts"] < arguments.restarts * min(1.0, share):
        server.restart(dice.choice(["fast", "immediate"]), dice.uniform(0.0, 4.0))
        kills["restarts"] += 1
    elif done < arguments.kills * min(1.0, share):
        if dice.random() < 0.05:
            kills["joined"] += tools.kill_one([one.pid for one in processes[1:]], dice)
        else:
            pids = [pid for one in processes for pid in tools.workers_of(one.pid)]
            kills["workers"] += tools.kill_one(pids, dice)


def parent(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Kill the leader ten times at random points, and start it again each time."""
    found: dict[str, Any] = {"passed": True}
    with Postgres() as server:
        for name, url in (("postgresql", server.url), ("sqlite", "sqlite:///runs/evolve.db")):
            place, dice = folder / name, random.Random(arguments.seed)
            place.mkdir()
            tree = tools.write_study(place, url, 120)
            killed, code = 0, None
            while code is None or code < 0:
                leader = tools.start(place, "run")
                if killed < 10:
                    _wait_for_progress(tree, place, leader, dice)
                    killed += leader.poll() is None
                    leader.kill()
                code = leader.wait()
            audit = tools.audit(tree, place)
            passed = _whole(audit, 120) and killed == 10 and code == 0
            said = {} if passed else {"log": tools.log_of(place)}
            found[name] = {"killed": killed, "code": code, "asked": 120, **audit, **said}
            found["passed"] &= passed
            shutil.rmtree(place)
    return found


def _wait_for_progress(tree: dict[str, Any], place: Path, leader: Any, dice: random.Random) -> None:
    """Wait until the study has a few more trials than before, then a random moment more."""
    before = len(tools.trials_of(tree, place))
    wanted, end = before + dice.randint(1, 6), time.monotonic() + 120
    while leader.poll() is None and time.monotonic() < end:
        if len(tools.trials_of(tree, place)) >= wanted:
            break
        time.sleep(0.1)
    time.sleep(dice.uniform(0.0, 0.8))


def _whole(found: dict[str, Any], trials: int) -> bool:
    """Return whether exactly so many trials are complete, none is lost and none is doubled."""
    return bool(
        found["complete"] == trials
        and found["unfinished"] == 0
        and found["numbers_missing"] == 0
        and not found["record"]
    )


if __name__ == "__main__":
    raise SystemExit(main())
