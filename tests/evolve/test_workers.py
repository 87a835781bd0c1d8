"""Workers: placement on the machine, jobs, deaths, and an end with their parent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from evolve import machine
from evolve.config import WorkerOptions
from evolve.machine import Placement, place_workers, visible_gpus
from evolve.workers import Death, Event, Job, Outcome, Report, WorkerPool


def job(number: int, attempt: int = 1, **params: float) -> Job:
    return Job(number, {"x": 0.5, **params}, 7, f"trials/{number}", attempt)


def wait_for(pool: WorkerPool, kind: type[Event], seconds: float = 60.0) -> Event:
    """Answer reports with "go on" until an event of this kind comes."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for event in pool.events(0.2):
            if isinstance(event, kind):
                return event
            if isinstance(event, Report):
                pool.answer(event.number, stop=False)
    raise AssertionError(f"no {kind.__name__} in {seconds} s")


# ---- placement


@pytest.fixture
def a_machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def pretend(cores: int, gpus: int = 0, memory: int | None = None) -> None:
        monkeypatch.setattr(machine, "usable_cores", lambda: list(range(cores)))
        monkeypatch.setattr(machine, "visible_gpus", lambda: gpus)
        monkeypatch.setattr(machine, "free_memory", lambda: memory)

    return pretend


def test_one_pinned_worker_a_core_without_gpus(a_machine: Callable[..., None]) -> None:
    a_machine(cores=2)
    assert place_workers(WorkerOptions()) == [
        Placement("worker-0", ("cpu",), 1, core=0),
        Placement("worker-1", ("cpu",), 1, core=1),
    ]


def test_threads_of_all_workers_fit_the_cores(a_machine: Callable[..., None]) -> None:
    a_machine(cores=8)
    placements = place_workers(WorkerOptions(count=3))
    assert [(p.threads, p.core) for p in placements] == [(2, None)] * 3
    assert [p.threads for p in place_workers(WorkerOptions(count=20))] == [1] * 20


def test_memory_bounds_the_number_of_workers(a_machine: Callable[..., None]) -> None:
    a_machine(cores=16, memory=7 * 2**30)
    assert len(place_workers(WorkerOptions())) == 3  # 2 GiB each
    a_machine(cores=16, memory=2**30)
    assert len(place_workers(WorkerOptions())) == 1
    a_machine(cores=64, memory=2**40)
    assert len(place_workers(WorkerOptions())) == 8


def test_gpus_are_shared_out(a_machine: Callable[..., None]) -> None:
    a_machine(cores=16, gpus=2)
    placements = place_workers(WorkerOptions(per_device=2))
    assert [p.devices for p in placements] == [("cuda:0",), ("cuda:1",), ("cuda:0",), ("cuda:1",)]
    assert {p.threads for p in placements} == {4}


@pytest.mark.parametrize(
    ("chosen", "count"), [(None, 3), ("", 0), ("1", 1), ("0,2", 2), ("-1", 0), ("0,-1,1", 1)]
)
def test_gpus_are_counted_as_cuda_will_see_them(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None, count: int
) -> None:
    Path("bin").mkdir()
    tool = Path("bin/nvidia-smi")
    tool.write_text(
        '#!/bin/sh\nfor i in 0 1 2; do echo "GPU $i: NVIDIA H200 (UUID: GPU-$i)"; done\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{Path('bin').resolve()}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert visible_gpus() == count


def test_no_driver_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path.cwd()))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == 0


# ---- jobs


def test_a_trial_gets_threads_and_devices_and_its_output_is_kept(toys: Path) -> None:
    before = dict(os.environ)
    placement = Placement("w", ("cuda:3",), 5)
    with WorkerPool("toy_objectives:talkative", [placement]) as pool:
        assert pool.submit(job(4)) == "w"
        assert pool.free == 0
        outcome = wait_for(pool, Outcome)
    assert isinstance(outcome, Outcome)
    assert outcome.metrics == {"fitness": 5.0}
    log = Path("trials/4/trial.log").read_text()
    assert "devices=['cuda:3'] threads=5 omp=5" in log
    assert "from a child process" in log
    assert dict(os.environ) == before


def test_a_report_waits_for_its_answer(toys: Path) -> None:
    with WorkerPool("toy_objectives:curve", [Placement("w", ("cpu",), 1)]) as pool:
        pool.submit(job(0))
        first = wait_for(pool, Report)
        assert first == Report(0, 0, {"fitness": 0.5})  # 1 - 0.5
        assert pool.events(0.3) == []
        pool.answer(0, stop=True)
        outcome = wait_for(pool, Outcome)
    assert isinstance(outcome, Outcome)
    assert outcome.metrics == {"fitness": 0.5}


def test_errors_are_reasons_and_the_worker_lives_on(toys: Path) -> None:
    with WorkerPool("toy_objectives:first_fails_once", [Placement("w", ("cpu",), 1)]) as pool:
        pool.submit(job(0))
        failed = wait_for(pool, Outcome)
        pool.submit(job(1))
        fine = wait_for(pool, Outcome)
    assert isinstance(failed, Outcome) and isinstance(fine, Outcome)
    assert (failed.metrics, failed.reason) == (None, "RuntimeError: a crash in trial 0")
    assert "Traceback" in Path("trials/0/trial.log").read_text()
    assert fine.metrics == {"fitness": 1.0}


def test_a_log_that_a_full_disk_does_not_take_costs_no_worker(
    toys: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logs = [Path(f"trials/{number}/trial.log") for number in (0, 1)]
    for log in logs:
        log.parent.mkdir(parents=True)
    logs[0].symlink_to("/dev/full")  # it opens, and takes nothing
    with WorkerPool("toy_objectives:first_fails_once", [Placement("w", ("cpu",), 1)]) as pool:
        pool.submit(job(0))
        failed = wait_for(pool, Outcome)
        logs[0].unlink()
        pool.submit(job(1))
        fine = wait_for(pool, Outcome)
    assert isinstance(failed, Outcome) and isinstance(fine, Outcome)
    assert (failed.metrics, failed.reason) == (None, "RuntimeError: a crash in trial 0")
    assert fine.metrics == {"fitness": 1.0}
    assert "crash" not in logs[1].read_text() + "".join(capfd.readouterr())


def test_a_dead_worker_is_replaced(toys: Path) -> None:
    with WorkerPool("toy_objectives:suicidal", [Placement("w", ("cpu",), 1)]) as pool:
        pool.submit(job(1))
        death = wait_for(pool, Death)
        assert isinstance(death, Death)
        assert (death.number, death.reason) == (1, "worker died (SIGKILL, perhaps out of memory)")
        pool.submit(job(1, attempt=2))
        again = wait_for(pool, Outcome)
    assert isinstance(again, Outcome)
    assert again.metrics == {"fitness": 1.0}


def test_workers_die_with_their_parent(toys: Path) -> None:
    script = (
        "from evolve.machine import Placement\n"
        "from evolve.workers import Job, WorkerPool\n"
        "if __name__ == '__main__':\n"
        "    pool = WorkerPool('toy_objectives:stuck', [Placement('w', ('cpu',), 1)])\n"
        "    pool.submit(Job(2, {'x': 0.5}, 7, 'trials/2', 1))\n"
        "    print(pool._workers[0].process.pid, flush=True)\n"
        "    pool.events(60)\n"
    )
    Path("parent.py").write_text(script)
    Path("trials/2").mkdir(parents=True)
    parent = subprocess.Popen([sys.executable, "parent.py"], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout as stdout:
        worker = int(stdout.readline())
        wait_until(Path("trials/2/waiting").exists)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_until(lambda: not alive(worker))


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Return whether a process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"
