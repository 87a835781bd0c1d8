"""Long-lived local processes that run trials; the parent alone knows of the study.

A worker gets jobs through a pipe and answers with reports and one outcome a job. It dies with its
parent, and a dead worker is replaced. What a trial prints goes to `trial.log` in its folder.
"""

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Any

from evolve.errors import RunFailed
from evolve.jobs import Death, Event, Job, Outcome, Report, run_logged
from evolve.machine import THREAD_VARIABLES, Placement, free_gpu_memory, memory_of

__all__ = ["Death", "Event", "Job", "Outcome", "Report", "WorkerPool"]

PR_SET_PDEATHSIG = 1  # Source: Linux <sys/prctl.h>
STARTS = 3  # tries to start one worker before the study gives up
GOODBYE = 20.0  # seconds that all workers together have to save their trials after SIGTERM


# ---- the parent's side


class _Worker:
    """One process, its pipe, and the job it is at."""

    def __init__(self, objective: str, placement: Placement) -> None:
        self.placement = placement
        self.job: Job | None = None
        self.alone = False  # on its devices, as long as it has this job
        self.killed: str | None = None  # why we did
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(
            target=_serve, args=(theirs, objective, placement), name=placement.name, daemon=False
        )
        with _born_with({name: str(placement.threads) for name in THREAD_VARIABLES}):
            self.process.start()
        theirs.close()

    def end(self, seconds: float) -> None:
        """Wait so long for the process, which was told to end, and kill it if it does not."""
        self.connection.close()
        self.process.join(max(0.0, seconds))
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()


class WorkerPool:
    """The workers of a study. Use it as a context manager: leaving it ends them all."""

    def __init__(self, objective: str, placements: list[Placement]) -> None:
        self._objective = objective
        self._workers: dict[int, _Worker] = {}  # by the index of their placement
        self._idle_deaths = 0
        self._placements = placements

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in self._workers.values():  # all at once; end() below waits for each
            if worker.job is None:
                worker.connection.close()  # it returns by itself
            else:
                worker.process.terminate()
        deadline = time.monotonic() + GOODBYE
        for worker in self._workers.values():
            worker.end(deadline - time.monotonic())
        self._workers.clear()

    @property
    def size(self) -> int:
        """Number of trials that can run at once."""
        return len(self._placements)

    @property
    def free(self) -> int:
        """Number of trials that can be submitted now; none beside one that is to be alone."""
        held = {d for w in self._workers.values() if w.alone for d in w.placement.devices}
        return sum(not held & set(self._placements[i].devices) for i in self._idle())

    def can_be_alone(self) -> bool:
        """Return whether a trial could be submitted to a device that no other trial uses."""
        return bool(self._unshared())

    def submit(self, job: Job, alone: bool = False) -> str:
        """Give a job to a free worker, starting one if need be, and return the worker's name.

        `alone`: to one whose devices no other trial uses, where most memory is free; no other
        trial comes to them before this one has ended.
        """
        index = self._freest(self._unshared()) if alone else self._next_idle()
        worker = self._workers.get(index)
        if worker is None:
            worker = self._workers[index] = _Worker(self._objective, self._placements[index])
        worker.job, worker.alone = job, alone
        with suppress(OSError):  # if it is dead, events() will say so
            worker.connection.send(job)
        return worker.placement.name

    def answer(self, number: int, stop: bool) -> None:
        """Let the trial that reported go on, or make it stop."""
        for worker in self._workers.values():
            if worker.job is not None and worker.job.number == number and not worker.killed:
                with suppress(OSError):  # if it is dead, events() will say so
                    worker.connection.send(stop)

    def cancel(self, number: int, reason: str) -> None:
        """Kill the worker of a trial; its `Death` with this reason follows, none if it is empty."""
        for worker in self._workers.values():
            if worker.job is not None and worker.job.number == number:
                worker.killed = reason
                worker.process.kill()

    def memory(self) -> dict[int, int]:
        """Return the bytes of the worker of each running trial, its children's included."""
        running = [w for w in self._workers.values() if w.job is not None]
        return {w.job.number: memory_of(w.process.pid) for w in running if w.job and w.process.pid}

    def events(self, timeout: float) -> list[Event]:
        """Wait up to `timeout` seconds and return what happened.

        Raises: RunFailed when a worker dies again and again before it has taken a job.
        """
        by_handle: dict[Any, _Worker] = {}
        for worker in self._workers.values():
            by_handle[worker.connection] = worker
            by_handle[worker.process.sentinel] = worker
        ready = {id(by_handle[handle]): by_handle[handle] for handle in wait(by_handle, timeout)}
        events = (self._event(worker) for worker in ready.values())
        return [event for event in events if event is not None]

    # ---- which worker

    def _idle(self) -> list[int]:
        """Return the placements without a job, those with a living worker first."""
        every = range(len(self._placements))
        free = [i for i in every if i not in self._workers or self._workers[i].job is None]
        return sorted(free, key=lambda i: i not in self._workers)

    def _next_idle(self) -> int:
        held = {d for w in self._workers.values() if w.alone for d in w.placement.devices}
        return next(i for i in self._idle() if not held & set(self._placements[i].devices))

    def _unshared(self) -> list[int]:
        """Return the placements whose devices no trial uses."""
        busy = {
            device
            for worker in self._workers.values()
            if worker.job is not None
            for device in worker.placement.devices
        }
        return [i for i in self._idle() if not busy & set(self._placements[i].devices)]

    def _freest(self, indices: list[int]) -> int:
        """Return the placement whose devices have the most free memory."""
        free = free_gpu_memory() if len(indices) > 1 else {}
        return max(indices, key=lambda i: min(free.get(d, 0) for d in self._placements[i].devices))

    # ---- what happened

    def _event(self, worker: _Worker) -> Event | None:
        try:
            if worker.killed is None and worker.connection.poll():
                event: Event = worker.connection.recv()
                if isinstance(event, Outcome):
                    worker.job, worker.alone = None, False
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
        worker.end(0.0)
        self._idle_deaths += job is None
        if self._idle_deaths >= STARTS:
            raise RunFailed(f"{reason} {STARTS} times without a trial")
        index = next(i for i, other in self._workers.items() if other is worker)
        self._workers[index] = _Worker(self._objective, worker.placement)
        reason = reason if worker.killed is None else worker.killed
        return Death(job.number, reason) if job is not None and reason else None


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
            outcome = run_logged(
                objective_name, placement, job, lambda report: _told(connection, report)
            )
            _send(connection, outcome)
    except _Stopped:
        return


def _told(connection: Connection, report: Report) -> bool:
    _send(connection, report)
    return bool(_receive(connection))


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
