"""Many processes at one study: PostgreSQL, gRPC and Ray, each from its package; a smaller chaos."""

import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.trial import FrozenTrial, TrialState

from benchmarks import fleet
from benchmarks.postgres import Postgres, programs
from evolve.config import load_config
from evolve.storage import load_study

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(programs() is None, reason="needs PostgreSQL: apt-get install postgresql"),
    pytest.mark.skipif(find_spec("psycopg") is None, reason="needs the extra postgresql"),
]
WriteStudy = Callable[..., Path]


@pytest.fixture
def server() -> Iterator[Postgres]:
    with Postgres() as running:
        yield running


def start(*arguments: str, folder: Path = Path()) -> "subprocess.Popen[str]":
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "evolve", *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, text=True)


def trials() -> list[FrozenTrial]:
    study = load_study(load_config("evolve.yaml"))
    found = study.get_trials()
    study._storage._backend.engine.dispose()  # type: ignore[attr-defined]
    return found


def wait_until(condition: Callable[[], Any], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def in_postgres(write_study: WriteStudy, server: Postgres, name: str, **sections: Any) -> None:
    write_study(name, **sections)
    tree = yaml.safe_load(Path("evolve.yaml").read_text())
    tree["study"]["storage"] = server.url
    Path("evolve.yaml").write_text(yaml.safe_dump(tree))


def test_workers_share_a_study_and_go_on_with_what_the_dead_leave(
    write_study: WriteStudy, server: Postgres
) -> None:
    confirm = {"finalists": 1, "seeds": 2}
    workers = {"count": 1, "lease": 5}
    in_postgres(write_study, server, "slow", generations=25, confirm=confirm, workers=workers)
    leader = start("run")
    wait_until(lambda: server.complete())
    joining = ["worker", "--study", "toy", "--storage", server.url, "--workers", "1"]
    first, second = (start(*joining, folder=Path(name)) for name in ("a", "b"))
    wait_until(lambda: (server.complete() or 0) > 9)
    first.kill()
    leader.send_signal(signal.SIGKILL)  # the others go on without it
    first.wait()
    leader.wait()
    before = server.complete() or 0
    wait_until(lambda: (server.complete() or 0) > before + 2)
    refused = start("run", folder=Path("a"))
    assert refused.wait() == 2  # there is no evolve.yaml in that folder
    leader = start("run")
    assert (leader.wait(), second.wait()) == (0, 0)
    found = trials()
    assert [t.state for t in found] == [TrialState.COMPLETE] * 29
    kinds = [trial.user_attrs["kind"] for trial in found]
    assert (kinds.count("start"), kinds.count("confirm")) == (1, 4)
    repeats = {(t.user_attrs["of"], t.user_attrs["repeat"]) for t in found if "of" in t.user_attrs}
    assert len(repeats) == 4


def test_a_second_leader_is_refused(write_study: WriteStudy, server: Postgres) -> None:
    in_postgres(write_study, server, "slow", generations=60, workers={"count": 1, "lease": 4})
    leader = start("run")
    wait_until(lambda: server.complete())
    Path("other").mkdir()
    (Path("other") / "evolve.yaml").write_text(Path("evolve.yaml").read_text())
    command = [sys.executable, "-m", "evolve", "run"]
    second = subprocess.run(command, cwd="other", capture_output=True, text=True, check=False)
    assert second.returncode == 2
    assert "is being run by process" in second.stderr
    assert "`python -m evolve worker` joins it" in second.stderr
    leader.terminate()
    assert leader.wait() == 130
    running = [trial for trial in trials() if trial.state == TrialState.RUNNING]
    assert all(trial.user_attrs["lease"][0] == "" for trial in running)  # given back


@pytest.mark.skipif(find_spec("grpc") is None, reason="needs the extra grpc")
def test_workers_reach_the_database_through_a_proxy(
    write_study: WriteStudy, server: Postgres
) -> None:
    port = server.port + 1
    in_postgres(write_study, server, "slow", generations=20, workers={"count": 1, "lease": 5})
    proxy = start("proxy", "--storage", server.url, "--port", str(port), "--host", "127.0.0.1")
    leader = start("run")
    try:
        wait_until(lambda: server.complete())
        joining = ["worker", "--study", "toy", "--storage", f"grpc://127.0.0.1:{port}"]
        joined = [start(*joining, "--workers", "1", folder=Path(name)) for name in ("a", "b")]
        assert (leader.wait(), [one.wait() for one in joined]) == (0, [0, 0])
    finally:
        proxy.terminate()
    assert proxy.wait() == 130
    assert [trial.state for trial in trials()] == [TrialState.COMPLETE] * 20
    by_joined = list(Path().glob("[ab]/runs/evolve/toy/trials/*/calls.txt"))
    assert len(by_joined) >= 4


def test_chaos_loses_no_trial_and_doubles_none(tmp_path: Path) -> None:
    options = Namespace(trials=60, kills=12, restarts=2, seed=1)
    found = fleet.chaos(tmp_path, options)
    assert found["passed"], found


@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")
def test_a_ray_node_that_is_removed_costs_no_trial(tmp_path: Path) -> None:
    found = fleet.on_ray(tmp_path, Namespace())
    assert found["passed"], found
