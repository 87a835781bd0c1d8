"""Parts of the fleet benchmark that need more than processes: a cluster, a network, bad input."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import fleet_tools as tools
from benchmarks.postgres import Postgres

SERVER, CLIENT = "10.77.7.1", "10.77.7.2"  # addresses within the two namespaces
SPACES = ("evolve-a", "evolve-b")
CUT_SECONDS = 60.0
CUT_TRIALS, RAY_TRIALS = 150, 60


def cut(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run a study on two machines, and cut the link between them for a minute."""
    first, second = (["ip", "netns", "exec", space] for space in SPACES)
    with two_machines(), Postgres(SERVER, 5432, first) as server:
        tree = tools.write_study(
            folder,
            server.url,
            CUT_TRIALS,
            settings={"sleep": 1.5},
            workers={"count": 1, "lease": 15},
        )
        leader = tools.start(folder, "run", prefix=first)
        place = folder / "second"
        joining = ["worker", "--study", tools.NAME, "--storage", server.url, "--workers", "1"]
        while not server.complete():
            time.sleep(0.5)
        joined = tools.start(place, *joining, prefix=second)
        try:
            while _noted_by(place, "ended") < 5:
                time.sleep(0.5)
            before = server.complete() or 0
            while _noted_by(place, "begun") == _noted_by(place, "ended"):
                time.sleep(0.02)  # it shall be at a trial when the link goes
            elsewhere = _noted_by(place, "ended")
            _ip("-n", SPACES[0], "link", "set", "veth-a", "down")
            time.sleep(CUT_SECONDS)
            during = (server.complete() or 0) - before
            silent = _noted_by(place, "ended") - elsewhere
            _ip("-n", SPACES[0], "link", "set", "veth-a", "up")
            codes = tools.wait_all([leader, joined], 600.0)
        finally:
            tools.end_all([leader, joined])
        found = _audit_in(first, tree, folder)
        after = _noted_by(place, "ended") - elsewhere - silent
    whole = found["complete"] == CUT_TRIALS and not (
        found["unfinished"] or found["failed"] or found["record"]
    )
    taken = found["attempts"] - found["trials"]  # what the second machine was at
    passed = whole and codes == [0, 0] and during > 10 and silent <= 1 and after > 5 and taken > 0
    said = {} if passed else {"log": tools.log_of(folder), "second": tools.log_of(place)}
    counts = {"during_the_cut": during, "of_the_second_meanwhile": silent, "after": after}
    counts["taken_over"] = taken
    return {"passed": passed, "asked": CUT_TRIALS, "codes": codes, **counts, **found, **said}


@contextmanager
def two_machines() -> Iterator[None]:
    """Make two network namespaces with a cable between them; both are gone afterwards."""
    _ip("netns", "del", SPACES[0], check=False)
    _ip("netns", "del", SPACES[1], check=False)
    try:
        for space in SPACES:
            _ip("netns", "add", space)
            _ip("-n", space, "link", "set", "lo", "up")
        _ip("-n", SPACES[0], "link", "add", "veth-a", "type", "veth", "peer", "name", "veth-b")
        _ip("-n", SPACES[0], "link", "set", "veth-b", "netns", SPACES[1])
        for space, name, address in zip(
            SPACES, ("veth-a", "veth-b"), (SERVER, CLIENT), strict=True
        ):
            _ip("-n", space, "addr", "add", f"{address}/24", "dev", name)
            _ip("-n", space, "link", "set", name, "up")
        yield
    finally:
        for space in SPACES:
            _ip("netns", "del", space, check=False)


def _ip(*arguments: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _noted_by(place: Path, event: str) -> int:
    """Return how many trials a machine has begun, or told the end of; its folder shows it."""
    paths = place.glob("runs/evolve/*/trials/*/events.jsonl")
    return sum(f'"event": "{event}"' in path.read_text(encoding="utf-8") for path in paths)


def _audit_in(prefix: list[str], tree: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Audit a study from within the namespace of its server."""
    script = (
        "import json, sys; from pathlib import Path; from benchmarks.fleet_tools import *; quiet();"
        "print(json.dumps(audit(json.loads(sys.argv[1]), Path(sys.argv[2]))))"
    )
    command = [*prefix, sys.executable, "-c", script, json.dumps(tree), str(folder)]
    done = subprocess.run(
        command, cwd=tools.ROOT, env=tools.environment(), capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def on_ray(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run a study on a Ray cluster of three nodes, and remove one in the middle."""
    from ray.cluster_utils import Cluster

    os.environ.update(tools.environment())
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        cluster.add_node(num_cpus=2)
        doomed = cluster.add_node(num_cpus=2)
        cluster.wait_for_nodes()
        tree = tools.write_study(
            folder, "sqlite:///runs/evolve.db", RAY_TRIALS, settings={"sleep": 3.0}
        )
        study = tools.start(folder, "run", "--engine", "ray", "--address", cluster.address)
        while tools.count_complete(tree, folder) < RAY_TRIALS // 4 and study.poll() is None:
            time.sleep(0.5)
        cluster.remove_node(doomed, allow_graceful=False)
        code = tools.wait_all([study], 600.0)[0]
        found = tools.audit(tree, folder)
        clean = _interrupted_cleanly(folder / "again", cluster.address)
    finally:
        cluster.shutdown()
    whole = found["complete"] == RAY_TRIALS and not (
        found["unfinished"] or found["failed"] or found["record"]
    )
    passed = whole and code == 0 and clean["interrupt_code"] == 130
    passed &= clean["running_tasks_after"] == 0
    said = {} if passed else {"log": tools.log_of(folder)}
    return {"passed": passed, "asked": RAY_TRIALS, "code": code, **found, **clean, **said}


def _interrupted_cleanly(folder: Path, address: str) -> dict[str, Any]:
    """Interrupt a study of long trials, and count what it leaves in the cluster."""
    import ray

    tree = tools.write_study(folder, "sqlite:///runs/evolve.db", 50, settings={"sleep": 60.0})
    study = tools.start(folder, "run", "--engine", "ray", "--address", address)
    while len(tools.trials_of(tree, folder)) < 4 and study.poll() is None:
        time.sleep(0.5)
    time.sleep(3.0)
    study.send_signal(signal.SIGINT)
    began = time.monotonic()
    code = tools.wait_all([study], 120.0)[0]
    took = time.monotonic() - began
    ray.init(address=address, logging_level="ERROR")
    whole = ray.cluster_resources().get("CPU", 0.0)
    end = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0.0) < whole and time.monotonic() < end:
        time.sleep(0.5)
    busy = whole - ray.available_resources().get("CPU", 0.0)
    ray.shutdown()
    said = {} if code == 130 else {"interrupt_log": tools.log_of(folder)}
    return said | {
        "interrupt_code": code,
        "interrupt_seconds": round(took, 1),
        "running_tasks_after": int(busy),
    }


def wrong_data(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run a study of the detector on data that is not there."""
    tools.write_study(
        folder,
        "sqlite:///runs/evolve.db",
        300,
        objective="detector.objective",
        settings={"data": "data/nowhere.yaml", "model": "yolox-nano", "epochs": 1},
        space={"lr0": {"low": 1e-3, "high": 0.02, "log": True}},
        start={"lr0": 0.01},
        fitness={"mAP50": 1.0},
    )
    began = time.monotonic()
    code = tools.start(folder, "run").wait()
    seconds = time.monotonic() - began
    lines = (folder / "log.txt").read_text(encoding="utf-8").splitlines()
    return {
        "passed": code == 2 and len(lines) == 1 and seconds < 30,
        "code": code,
        "seconds": round(seconds, 1),
        "lines": [line.replace(str(folder), ".") for line in lines],
    }
