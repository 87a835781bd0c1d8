"""Trials as tasks of a Ray cluster; the study stays with Optuna and with the process that leads it.

The only file that imports ray. Each trial is one task with CPUs and GPUs (also a fraction of one).
When a node or a worker dies, Ray runs the task again elsewhere, where it goes on from its last
checkpoint if the folder is shared. A mailbox, an actor beside the study's process, carries reports
and answers.
"""

import asyncio
import logging
import os
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

from evolve.errors import ConfigError
from evolve.jobs import Death, Event, Job, Outcome, Report, run_logged
from evolve.machine import Placement
from evolve.worker_options import WorkerOptions

RETRIES = 2  # of a task whose node or worker died; after that the study tries as often again
GOODBYE = 20.0  # seconds that interrupted tasks have to end by themselves
RESOURCES_SECONDS = 5.0  # between two looks at what the cluster has


class RayPool:
    """Runs trials as tasks. Use it as a context manager: leaving it ends them all.

    `count` of the options is how many trials run at once at most; auto: as many as there is room.
    Raises: ConfigError if ray is not installed or the cluster cannot be reached.
    """

    def __init__(self, objective: str, options: WorkerOptions) -> None:
        self._ray = _ray()
        self._objective, self._options = objective, options
        self._started = connect(self._ray, options)
        self.gpus = gpus_of_a_task(self._ray, options)
        self._tasks: dict[int, Any] = {}  # number of a trial: its task
        self._cancelled: dict[int, str] = {}  # ... and why it was cancelled
        self._mailbox = _mailbox(self._ray)
        self._size, self._counted = self._count(), time.monotonic()
        task = self._ray.remote(_run)
        self._task = task.options(
            num_cpus=options.cpus,
            num_gpus=self.gpus,
            max_retries=RETRIES,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(self._threads)}},
        )

    def __enter__(self) -> "RayPool":
        return self

    def __exit__(self, *exc: object) -> None:
        for task in self._tasks.values():
            self._ray.cancel(task, force=False)
        if self._tasks:
            tasks = list(self._tasks.values())
            self._ray.wait(tasks, num_returns=len(tasks), timeout=GOODBYE)
            for task in tasks:
                with suppress(Exception):  # it has ended by now
                    self._ray.cancel(task, force=True)
        self._ray.kill(self._mailbox)
        if self._started:
            self._ray.shutdown()

    @property
    def size(self) -> int:
        """Number of trials that can run at once; it follows the nodes that come and go."""
        if time.monotonic() - self._counted > RESOURCES_SECONDS:
            self._size, self._counted = self._count(), time.monotonic()
        return self._size

    @property
    def free(self) -> int:
        """Number of trials that can be submitted now."""
        return max(0, self.size - len(self._tasks))

    def can_be_alone(self) -> bool:
        """Return whether a trial could be submitted; which device has room is Ray's business."""
        return self.free > 0

    def submit(self, job: Job, alone: bool = False) -> str:
        """Start a task and return the name of the engine; where it runs is in its trial.log."""
        devices = ("cuda:0",) * bool(self.gpus) or ("cpu",)
        if self.gpus > 1:
            devices = tuple(f"cuda:{index}" for index in range(int(self.gpus)))
        placement = Placement("ray", devices, self._threads)
        self._tasks[job.number] = self._task.remote(
            self._objective, placement, job, self._mailbox, os.getcwd(), list(sys.path)
        )
        return "ray"

    def answer(self, number: int, stop: bool) -> None:
        """Let the trial that reported go on, or make it stop."""
        self._mailbox.answer.remote(number, stop)

    def cancel(self, number: int, reason: str) -> None:
        """Kill the task of a trial; its `Death` with this reason follows, none if it is empty."""
        if number in self._tasks:
            self._cancelled[number] = reason
            self._ray.cancel(self._tasks[number], force=True)

    def memory(self) -> dict[int, int]:
        """Return nothing: Ray's own pages show the memory of its nodes."""
        return {}

    def events(self, timeout: float) -> list[Event]:
        """Wait up to `timeout` seconds and return what happened."""
        ended = self._ended(0.0)
        reports = self._ray.get(self._mailbox.take.remote(0.0 if ended else timeout))
        found: list[Event] = [report for report in reports if report.number in self._tasks]
        return found + [self._outcome(number) for number in ended if self._kept(number)]

    def _ended(self, timeout: float) -> list[int]:
        tasks = list(self._tasks.values())
        if not tasks:
            return []
        ready, _ = self._ray.wait(tasks, num_returns=len(tasks), timeout=timeout)
        return [number for number, task in self._tasks.items() if task in ready]

    def _kept(self, number: int) -> bool:
        """Return whether somebody wants to know how a trial ended; forget it else."""
        if self._cancelled.get(number) == "":
            del self._tasks[number], self._cancelled[number]
            return False
        return True

    def _outcome(self, number: int) -> Outcome | Death:
        task, reason = self._tasks.pop(number), self._cancelled.pop(number, "")
        try:
            outcome: Outcome = self._ray.get(task)
            return outcome
        except self._ray.exceptions.RayError as error:
            line = (str(error).strip().splitlines() or [""])[0]
            return Death(number, reason or f"task died ({type(error).__name__}: {line[:200]})")

    def _count(self) -> int:
        """Return how many trials fit the cluster as it is now."""
        whole = self._ray.cluster_resources()
        room = whole.get("CPU", 0.0) / self._options.cpus
        if self.gpus:
            room = min(room, whole.get("GPU", 0.0) / self.gpus)
        most = self._options.count
        return max(1, int(room) if most == "auto" else min(int(room), most))

    @property
    def _threads(self) -> int:
        return max(1, int(self._options.cpus))


def connect(ray: Any, options: WorkerOptions) -> bool:
    """Connect to the cluster; return whether the connection is ours to end. Raises: ConfigError."""
    if ray.is_initialized():
        return False
    try:
        ray.init(
            address=options.address,
            logging_level=logging.ERROR,
            log_to_driver=False,
            include_dashboard=False if options.address is None else None,
        )
    except Exception as error:  # a cluster that is not there has many ways to say so
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        where = options.address or "this machine"
        raise ConfigError(f"workers.address={where}: Ray cannot be reached: {text}") from error
    return True


def gpus_of_a_task(ray: Any, options: WorkerOptions) -> float:
    """Return the GPUs of one trial: as the options say, else a share of one where there are any."""
    if options.gpus is not None:
        return options.gpus
    if not ray.cluster_resources().get("GPU"):
        return 0.0
    return options.devices_per_trial / options.per_device


def cluster_text(options: WorkerOptions) -> str:
    """Return what a cluster has in words. Raises: ConfigError."""
    ray = _ray()
    started = connect(ray, options)
    try:
        whole, nodes = ray.cluster_resources(), sum(node["Alive"] for node in ray.nodes())
        counts = f"{whole.get('CPU', 0):g} CPUs, {whole.get('GPU', 0):g} GPUs"
        return f"Ray {ray.__version__}: {nodes} nodes, {counts}"
    finally:
        if started:
            ray.shutdown()


def _run(
    objective: str, placement: Placement, job: Job, mailbox: Any, folder: str, path: list[str]
) -> Outcome:
    """Run one attempt within the cluster, in the study's working folder."""
    import ray

    sys.path[:] = path
    Path(folder).mkdir(parents=True, exist_ok=True)
    os.chdir(folder)

    def tell(report: Report) -> bool:
        return bool(ray.get(mailbox.tell.remote(report)))

    node = f"{ray.get_runtime_context().get_node_id()} of {os.uname().nodename}"
    heading = f"trial {job.number}, attempt {job.attempt} on node {node}"
    return run_logged(objective, placement, job, tell, heading)


class _Mailbox:
    """Carries reports from tasks to the study, and answers back. An actor of Ray."""

    def __init__(self) -> None:
        self._reports: deque[Report] = deque()
        self._answers: dict[int, asyncio.Future[bool]] = {}
        self._news = asyncio.Event()

    async def tell(self, report: Report) -> bool:
        """Leave a report and wait for its answer; one of an attempt that died is answered too."""
        old = self._answers.pop(report.number, None)
        if old is not None and not old.done():
            old.set_result(True)
        answer = asyncio.get_running_loop().create_future()
        self._answers[report.number] = answer
        self._reports.append(report)
        self._news.set()
        return bool(await answer)

    async def take(self, timeout: float) -> list[Report]:
        """Return all reports, after `timeout` seconds at the latest."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), timeout)
        self._news.clear()
        found, self._reports = list(self._reports), deque()
        return found

    async def answer(self, number: int, stop: bool) -> None:
        """Answer the last report of a trial."""
        waiting = self._answers.pop(number, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(stop)


def _mailbox(ray: Any) -> Any:
    """Start the mailbox on the node of this process."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    actor = ray.remote(_Mailbox).options(
        num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False)
    )
    return actor.remote()


def _ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ConfigError(
            "workers.engine=ray needs Ray: pip install 'evolve-detector[ray]'"
        ) from error
    return ray
