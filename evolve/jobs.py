"""What passes between a study and those who run its trials, and the running of one attempt.

This file is imported by every worker: it does without Optuna.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from evolve.errors import ConfigError, disk_is_full
from evolve.machine import Placement
from evolve.objective import Context, Metrics, Objective, as_metrics, load_objective


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
    """A trial is at `step`; it waits for `Pool.answer`."""

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
Tell = Callable[[Report], bool]  # send a report, and return whether the trial shall stop


class Pool(Protocol):
    """Those who run trials: processes of this machine, or a cluster."""

    @property
    def size(self) -> int:
        """Number of trials that can run at once."""

    @property
    def free(self) -> int:
        """Number of trials that can be submitted now."""

    def can_be_alone(self) -> bool:
        """Return whether a trial could be submitted to a device that no other trial uses."""

    def submit(self, job: Job, alone: bool = False) -> str:
        """Give a job to a free worker and return the worker's name; `alone` on its device."""

    def answer(self, number: int, stop: bool) -> None:
        """Let the trial that reported go on, or make it stop."""

    def events(self, timeout: float) -> list[Event]:
        """Wait up to `timeout` seconds and return what happened."""

    def cancel(self, number: int, reason: str) -> None:
        """Kill whoever runs a trial; its `Death` with this reason follows, none if it is empty."""

    def memory(self) -> dict[int, int]:
        """Return the bytes that each running trial holds, as far as that is known."""


def run_logged(
    objective_name: str, placement: Placement, job: Job, tell: Tell, heading: str = ""
) -> Outcome:
    """Run one attempt of a trial here with its output, after a heading, in the trial's log."""
    try:
        with printing_to(Path(job.directory) / "trial.log"):
            if heading:
                print(heading)
            return run_attempt(objective_name, placement, job, tell)
    except OSError as error:  # there is no log, as on a full disk
        return Outcome(job.number, None, _reason(error), disk_full=disk_is_full(error))


def run_attempt(objective_name: str, placement: Placement, job: Job, tell: Tell) -> Outcome:
    """Run one attempt of a trial here; whatever it raises is its outcome."""
    try:
        objective = load_objective(objective_name)  # imported once a process
    except ConfigError as error:
        _log_traceback()
        return Outcome(job.number, None, str(error), fatal=True)

    def report(step: int, metrics: Mapping[str, float]) -> bool:
        return tell(Report(job.number, int(step), as_metrics(metrics)))

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
        _log_traceback()
        seconds, full = time.monotonic() - begin, disk_is_full(error)
        return Outcome(job.number, None, _reason(error), seconds=seconds, disk_full=full)
    seconds = time.monotonic() - begin
    return Outcome(job.number, metrics, "", False, seconds, _describe(objective, job.params))


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
        _log_traceback()
        return {}


def _log_traceback() -> None:
    with suppress(OSError):  # the disk may be what is full
        traceback.print_exc()


@contextmanager
def printing_to(path: Path) -> Iterator[None]:
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
        _flush_or_drop()
        for descriptor, copy in saved:
            os.dup2(copy, descriptor)
            os.close(copy)
        os.close(target)


def _flush_or_drop() -> None:
    """Flush this process's output; what a full disk does not take must not appear elsewhere."""
    for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
            with suppress(OSError):
                stream.flush()
