"""Long-lived local processes that run trials; the parent alone knows of the study.

A worker gets jobs through a pipe and answers with reports and one outcome a job. It dies with its
parent, and a dead worker is replaced. What a trial prints goes to `trial.log` in its folder.
"""

import ctypes
import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Any

from evolve.errors import ConfigError, RunFailed, disk_is_full
from evolve.machine import THREAD_VARIABLES, Placement
from evolve.objective import Context, Metrics, Objective, as_metrics, load_objective

PR_SET_PDEATHSIG = 1  # Source: Linux <sys/prctl.h>
STARTS = 3  # tries to start one worker before the study gives up
GOODBYE = 5.0  # seconds a worker has to clean up after SIGTERM


@dataclass(frozen=True)
class Job:
    """One attempt at a trial."""

    number: int
    params: dict[str, Any]
    seed: int
    directory: str
    attempt: int
    wanted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """A trial is at `step`; it waits for `WorkerPool.answer`."""

    number: int
    step: int
    metrics: Metrics


@dataclass(frozen=True)
class Outcome:
    """A trial ended: with metrics, or with the reason why there are none."""

    number: int
    metrics: Metrics | None
    reason: str = ""
    fatal: bool = False  # the objective cannot even be loaded
    seconds: float = 0.0
    description: dict[str, Any] = field(default_factory=dict)
    disk_full: bool = False


@dataclass(frozen=True)
class Death:
    """A worker died in the middle of a trial."""

    number: int
    reason: str


Event = Report | Outcome | Death


# ---- the parent's side


class _Worker:
    """One process, its pipe, and the job it is at."""

    def __init__(self, objective: str, placement: Placement) -> None:
        self.placement = placement
        self.job: Job | None = None
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(
            target=_serve, args=(theirs, objective, placement), name=placement.name, daemon=False
        )
        with _born_with({name: str(placement.threads) for name in THREAD_VARIABLES}):
            self.process.start()
        theirs.close()

    def end(self) -> None:
        """Wait for the process, which was told to end, and kill it if it does not."""
        self.connection.close()
        self.process.join(GOODBYE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()


class WorkerPool:
    """The workers of a study. Use it as a context manager: leaving it ends them all."""

    def __init__(self, objective: str, placements: list[Placement]) -> None:
        self._objective = objective
        self._workers: list[_Worker] = []
        self._idle_deaths = 0
        self._placements = placements

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in self._workers:  # all at once; end() below waits for each
            if worker.job is None:
                worker.connection.close()  # it returns by itself
            else:
                worker.process.terminate()
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    @property
    def size(self) -> int:
        """Number of trials that can run at once."""
        return len(self._placements)

    @property
    def free(self) -> int:
        """Number of trials that can be submitted now."""
        return self.size - sum(worker.job is not None for worker in self._workers)

    def submit(self, job: Job) -> str:
        """Give a job to a free worker, starting one if need be, and return the worker's name."""
        worker = next((worker for worker in self._workers if worker.job is None), None)
        if worker is None:
            worker = _Worker(self._objective, self._placements[len(self._workers)])
            self._workers.append(worker)
        worker.job = job
        with suppress(OSError):  # if it is dead, events() will say so
            worker.connection.send(job)
        return worker.placement.name

    def answer(self, number: int, stop: bool) -> None:
        """Let the trial that reported go on, or make it stop."""
        for worker in self._workers:
            if worker.job is not None and worker.job.number == number:
                with suppress(OSError):  # if it is dead, events() will say so
                    worker.connection.send(stop)

    def events(self, timeout: float) -> list[Event]:
        """Wait up to `timeout` seconds and return what happened.

        Raises: RunFailed when a worker dies again and again before it has taken a job.
        """
        by_handle: dict[Any, _Worker] = {}
        for worker in self._workers:
            by_handle[worker.connection] = worker
            by_handle[worker.process.sentinel] = worker
        ready = {id(by_handle[handle]): by_handle[handle] for handle in wait(by_handle, timeout)}
        events = (self._event(worker) for worker in ready.values())
        return [event for event in events if event is not None]

    def _event(self, worker: _Worker) -> Event | None:
        try:
            if worker.connection.poll():
                event: Event = worker.connection.recv()
                if isinstance(event, Outcome):
                    worker.job = None
                    self._idle_deaths = 0
                return event
        except (EOFError, OSError):
            worker.process.join(GOODBYE)
        if worker.process.is_alive():
            return None
        return self._bury(worker)

    def _bury(self, worker: _Worker) -> Death | None:
        reason = f"worker died ({_end_of(worker.process.exitcode)})"
        job = worker.job
        worker.end()
        self._idle_deaths += job is None
        if self._idle_deaths >= STARTS:
            raise RunFailed(f"{reason} {STARTS} times without a trial")
        index = self._workers.index(worker)
        self._workers[index] = _Worker(self._objective, worker.placement)
        return None if job is None else Death(job.number, reason)


def _end_of(exitcode: int | None) -> str:
    if exitcode is None or exitcode >= 0:
        return f"exit code {exitcode}"
    known = {number.value for number in signal.Signals}
    name = signal.Signals(-exitcode).name if -exitcode in known else f"signal {-exitcode}"
    return f"{name}, perhaps out of memory" if name == "SIGKILL" else name


@contextmanager
def _born_with(variables: Mapping[str, str]) -> Iterator[None]:
    """Start children with these environment variables and deaf to Ctrl-C; then put all back."""
    before = {name: os.environ.get(name) for name in variables}
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main else None
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        if in_main:
            signal.signal(signal.SIGINT, signal.SIG_DFL if handler is None else handler)


# ---- the worker's side


class _Stopped(BaseException):
    """The pipe broke, or SIGTERM came; no Exception, so that no objective takes it for a fault."""


def _serve(connection: Connection, objective_name: str, placement: Placement) -> None:
    """Run jobs until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    signal.signal(signal.SIGTERM, _stop)
    _die_with_parent()
    if placement.core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {placement.core})
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        while True:
            job = _receive(connection)
            with _printing_to(Path(job.directory) / "trial.log"):
                outcome = _attempt(connection, objective_name, placement, job)
            _send(connection, outcome)
    except _Stopped:
        return


def _attempt(
    connection: Connection, objective_name: str, placement: Placement, job: Job
) -> Outcome:
    try:
        objective = load_objective(objective_name)  # imported once a process
    except ConfigError as error:
        traceback.print_exc()
        return Outcome(job.number, None, str(error), fatal=True)

    def report(step: int, metrics: Mapping[str, float]) -> bool:
        _send(connection, Report(job.number, int(step), as_metrics(metrics)))
        return bool(_receive(connection))

    context = Context(
        seed=job.seed,
        directory=Path(job.directory),
        devices=list(placement.devices),
        threads=placement.threads,
        attempt=job.attempt,
        report=report,
        wanted=job.wanted,
    )
    begin = time.monotonic()
    try:
        metrics = as_metrics(objective.evaluate(dict(job.params), context))
    except (Exception, SystemExit) as error:  # whatever a trial does, the study goes on
        traceback.print_exc()
        reason = _reason(error)
        seconds, full = time.monotonic() - begin, disk_is_full(error)
        return Outcome(job.number, None, reason, seconds=seconds, disk_full=full)
    seconds = time.monotonic() - begin
    return Outcome(job.number, metrics, "", False, seconds, _describe(objective, job.params))


def _stop(number: int, frame: FrameType | None) -> None:
    """Leave a training through its own clean-up: loaders and locks are released."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Stopped


def _send(connection: Connection, message: Event) -> None:
    try:
        connection.send(message)
    except OSError as error:
        raise _Stopped from error


def _receive(connection: Connection) -> Any:
    try:
        return connection.recv()
    except (EOFError, OSError) as error:
        raise _Stopped from error


def _reason(error: BaseException) -> str:
    """Return `Type: first line`; divergence is found by the name of its class."""
    text = (str(error).strip().splitlines() or [""])[0]
    if any(kind.__name__ == "TrainingDiverged" for kind in type(error).__mro__):
        return f"diverged: {text}"
    return f"{type(error).__name__}: {text}"


def _describe(objective: Objective, params: dict[str, Any]) -> dict[str, Any]:
    describe = objective.optional("describe")
    if describe is None:
        return {}
    try:
        described: dict[str, Any] = json.loads(json.dumps(describe(dict(params)), default=str))
        return described
    except Exception:  # a description is an extra: its fault is logged and costs no trial
        traceback.print_exc()
        return {}


@contextmanager
def _printing_to(path: Path) -> Iterator[None]:
    """Send this process's output, that of C libraries too, to the end of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [(descriptor, os.dup(descriptor)) for descriptor in (1, 2)]
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for descriptor, _ in saved:
            os.dup2(target, descriptor)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, copy in saved:
            os.dup2(copy, descriptor)
            os.close(copy)
        os.close(target)


def _die_with_parent() -> None:
    """End this process when its parent ends, however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()
