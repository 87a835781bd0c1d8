"""Training as the guest of a search: on one device in its process, on several in processes of ours.

SIGTERM saves the state at the next step and is then passed on to the host, which had it caught:
whoever takes the training up again goes on from there.
"""

import ctypes
import dataclasses
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import cv2
import torch

from detector.callbacks import Callbacks
from detector.config import Hyp, TrainConfig
from detector.errors import TrainingDiverged, UserError
from detector.interrupt import StopOnSignal
from detector.result import Result
from detector.train import train

Report = Callable[[int, dict[str, float]], bool]

RESTARTS = 2  # of all processes after one was killed, from the last checkpoint
GRACE = 18.0  # seconds that they have to save their state; a host may kill us after 20
POLL = 0.2  # seconds between two looks for a signal
PR_SET_PDEATHSIG = 1  # Source: Linux <sys/prctl.h>


def train_guest(
    config: TrainConfig,
    hyp: Hyp,
    directory: Path,
    devices: Sequence[str],
    threads: int,
    report: Report,
) -> Result:
    """Train on the given devices, going on from the newest state in `directory`.

    Raises: what `train` does; RuntimeError when processes of ours are killed again and again.
    """
    with StopOnSignal((signal.SIGTERM,), once=True) as stop:
        if len(devices) > 1:
            result = _on_several(config, hyp, directory, devices, threads, report, stop)
        else:
            callbacks = Callbacks(on_step=lambda step, parts: stop.asked)
            own = dataclasses.replace(config, device=devices[0])
            result = train(own, hyp, directory, report=report, callbacks=callbacks, resume=True)
    if stop.asked and (result is None or result.ended == "interrupted"):
        signal.raise_signal(signal.SIGTERM)  # the host's own handler ends this trial
        raise KeyboardInterrupt
    assert result is not None
    return result


# ---- several devices: the parent's side


@dataclasses.dataclass(frozen=True)
class _Seat:
    """What one of the processes needs to know."""

    rank: int
    devices: tuple[str, ...]
    port: int
    threads: int
    config: TrainConfig
    hyp: Hyp
    directory: Path


def _on_several(
    config: TrainConfig,
    hyp: Hyp,
    directory: Path,
    devices: Sequence[str],
    threads: int,
    report: Report,
    stop: StopOnSignal,
) -> Result | None:
    """Train in one process a device, again from the last checkpoint if one was killed."""
    kind = devices[0].split(":")[0]
    own = dataclasses.replace(config, device=kind)
    each = max(1, threads // len(devices))
    killed = ""
    for _ in range(RESTARTS + 1):
        port = _free_port()
        seats = [
            _Seat(rank, tuple(devices), port, each, own, hyp, directory)
            for rank in range(len(devices))
        ]
        with _Ranks(seats) as ranks:
            killed, result = ranks.run(report, stop)
        if not killed:
            return result
    raise RuntimeError(f"{killed} {RESTARTS + 1} times")


class _Ranks:
    """The processes of one attempt; leaving the context ends them all."""

    def __init__(self, seats: Sequence[_Seat]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes: list[SpawnProcess] = []
        for seat in seats:
            ours, theirs = context.Pipe()
            name = f"rank-{seat.rank}"
            process = context.Process(target=_serve, args=(theirs, seat), name=name)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> "_Ranks":
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self._processes:
            if process.is_alive():
                process.kill()
            process.join()
            process.close()
        for pipe in self._pipes:
            pipe.close()

    def run(self, report: Report, stop: StopOnSignal) -> tuple[str, Result | None]:
        """Pass reports on until all have ended; return who was killed, and the result.

        Raises: what a process raised.
        """
        result: Result | None = None
        running = True
        while running:
            running = any(process.is_alive() for process in self._processes)
            if stop.asked:
                self._end()
                return "", None
            for pipe in wait([one for one in self._pipes if not one.closed], POLL * running):
                assert isinstance(pipe, Connection)
                result = self._hear(pipe, report) or result
            for process in self._processes:
                if process.exitcode not in (None, 0):
                    return f"{process.name} died ({_name(process.exitcode)})", None
        return "", result

    def _hear(self, pipe: Connection, report: Report) -> Result | None:
        """Answer a report, or return the result. Raises: what the process raised."""
        try:
            what, content = pipe.recv()
        except (EOFError, OSError):
            pipe.close()
            return None
        if what == "error":
            raise _error(*content)
        if what == "report":
            pipe.send(report(*content))
            return None
        found: Result | None = content
        return found

    def _end(self) -> None:
        """Let all processes save their state."""
        for process in self._processes:
            with suppress(OSError):
                os.kill(process.pid or 0, signal.SIGTERM)
        for process in self._processes:
            process.join(GRACE)


def _error(kind: str, text: str, facts: Mapping[str, Any]) -> Exception:
    """Return the exception of a process, of the types that a search tells apart."""
    if kind == TrainingDiverged.__name__:
        return TrainingDiverged(facts["step"], facts["parts"])
    return UserError(text) if facts.get("user") else RuntimeError(f"{kind}: {text}")


def _name(code: int | None) -> str:
    known = {number.value: number.name for number in signal.Signals}
    return known.get(-(code or 0), f"exit code {code}")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


# ---- several devices: a process's side


def _serve(pipe: Connection, seat: _Seat) -> None:
    """Train as one of several; the first one reports."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the study's business
    os.environ |= _places(seat)
    torch.set_num_threads(seat.threads)
    cv2.setNumThreads(seat.threads)

    def report(epoch: int, row: dict[str, float]) -> bool:
        pipe.send(("report", (epoch, row)))
        return bool(pipe.recv())

    try:
        with StopOnSignal((signal.SIGTERM,), once=True) as stop:
            callbacks = Callbacks(on_step=lambda step, parts: stop.asked)
            result = train(
                seat.config,
                seat.hyp,
                seat.directory,
                report=report,
                callbacks=callbacks,
                resume=True,
            )
    except Exception as error:
        facts = {"user": isinstance(error, UserError)}
        if isinstance(error, TrainingDiverged):
            facts |= {"step": error.step, "parts": error.parts}  # type: ignore[dict-item]
        pipe.send(("error", (type(error).__name__, str(error), facts)))
    else:
        pipe.send(("result", result if seat.rank == 0 else None))


def _places(seat: _Seat) -> dict[str, str]:
    """Return the environment of a process: its place among the others, and the devices of all."""
    count = str(len(seat.devices))
    found = {
        "RANK": str(seat.rank),
        "LOCAL_RANK": str(seat.rank),
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(seat.port),
        "OMP_NUM_THREADS": str(seat.threads),
    }
    indices = [int(name.split(":")[1]) for name in seat.devices if ":" in name]
    if indices:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        chosen = [visible[i] if i < len(visible) and visible[i] else str(i) for i in indices]
        found["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)
    return found
