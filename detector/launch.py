"""`--processes N` and `--max-restarts N`: a training in child processes, again after a crash.

The parent runs the command it was given in children: one, or N that train together on a free port.
A new attempt goes on from the newest training state in the run's folder. A crash is taken for
deterministic when two attempts in a row end with the same error at the same step: the third would
do so too. Wrong input (exit code 2) and an interruption (130) are never repeated.
"""

import json
import logging
import mmap
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from types import FrameType

from detector.cli import exit_code, new_directory
from detector.distributed import is_first, rank

log = logging.getLogger("detector")

LAUNCH, NOTES = "DETECTOR_LAUNCH", "DETECTOR_NOTES"  # environment of the children
MARKER = ".launch"  # in a run's folder: the launch that made it
FINAL = (0, 2, 130)  # exit codes that are never followed by another attempt
PAUSE = 2.0  # seconds before another attempt: a device frees the memory of the dead
GRACE = 15.0  # seconds that the other processes have to end when one has failed
STEP = struct.Struct("q")


# ---- parent --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ending:
    """How an attempt ended: exit code, error and last finished step (-1: none)."""

    exit_code: int
    error: str
    step: int

    def repeats(self, earlier: "Ending | None") -> bool:
        """Tell whether both ended with the same error, whatever its numbers, at the same step."""
        return (
            earlier is not None
            and (self.exit_code, self.step) == (earlier.exit_code, earlier.step)
            and _without_numbers(self.error) == _without_numbers(earlier.error)
        )


def supervise(
    command: Sequence[str], processes: int, max_restarts: int, pause: float = PAUSE
) -> int:
    """Run `command`, and up to `max_restarts` times again after a crash; return its exit code."""
    launch, earlier = uuid.uuid4().hex, None
    with _Children() as children:
        for attempt in range(max_restarts + 1):
            ending = _attempt(children, command, processes, launch)
            if ending.exit_code in FINAL or children.asked or not max_restarts:
                return 130 if children.asked and ending.exit_code else ending.exit_code
            where = f"after step {ending.step}" if ending.step >= 0 else "before its first step"
            log.error("attempt %d failed %s: %s", attempt + 1, where, ending.error)
            if ending.repeats(earlier):
                log.error("the same error at the same step as before: not started again")
                return ending.exit_code
            if attempt < max_restarts:
                log.error("starting again, restart %d of %d", attempt + 1, max_restarts)
                children.wait(pause)
            earlier = ending
    log.error("all %d restarts are used up", max_restarts)
    return ending.exit_code


def _attempt(children: "_Children", command: Sequence[str], processes: int, launch: str) -> Ending:
    """Run all processes of an attempt to their end."""
    with tempfile.TemporaryDirectory(prefix="detector-") as folder:
        notes = Path(folder)
        (notes / "step").write_bytes(STEP.pack(-1))
        codes = children.run(command, _environments(processes, launch, notes))
        (step,) = STEP.unpack((notes / "step").read_bytes())
        failed = next((code for code in codes if code), 0)
        # A process that was killed left no note: one that is there is of somebody who missed it.
        killed = failed < 0 and failed != -signal.SIGABRT
        if failed and not killed and (notes / "error").is_file():
            note = json.loads((notes / "error").read_text(encoding="utf-8"))
            return Ending(note["exit_code"], note["error"], step)
    return Ending(*_meaning(failed), step)


def _meaning(code: int) -> tuple[int, str]:
    """Return a shell's exit code and words for the return code of a child."""
    if code >= 0:
        return code, f"exit code {code}"
    return 128 - code, f"killed by {signal.Signals(-code).name}"


def _environments(processes: int, launch: str, notes: Path) -> list[dict[str, str]]:
    """Return what each process of an attempt finds in its environment."""
    shared = os.environ | {LAUNCH: launch, NOTES: str(notes)}
    if processes == 1:
        return [shared]
    threads = max(1, (os.cpu_count() or 1) // processes)
    shared = {"OMP_NUM_THREADS": str(threads)} | shared
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    return [shared | {"RANK": str(n), "LOCAL_RANK": str(n)} for n in range(processes)]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _without_numbers(text: str) -> str:
    return re.sub(r"0x[0-9a-f]+|\d+(\.\d+)?(e[+-]?\d+)?", "#", text)


class _Children:
    """The processes of an attempt, in groups of their own: what asks the parent to end is passed on
    to them exactly once, whether it was meant for one process or for all of a terminal or job.
    """

    def __init__(self) -> None:
        self.asked = False  # to end
        self._running: list[subprocess.Popen] = []
        self._before: dict[int, signal.Handlers | Callable | int | None] = {}

    def __enter__(self) -> "_Children":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *error: object) -> None:
        self._stop(signal.SIGKILL)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, command: Sequence[str], environments: Sequence[dict[str, str]]) -> list[int]:
        """Run one process for each environment; return their codes, the first to fail first.

        When one fails the others are asked to end, and after `GRACE` seconds killed.
        """
        self._running = [
            subprocess.Popen(command, env=one, process_group=0) for one in environments
        ]
        codes: list[int] = []
        deadline = float("inf")
        while self._running:
            ended = [child for child in self._running if child.poll() is not None]
            self._running = [child for child in self._running if child not in ended]
            codes += [int(child.returncode) for child in ended]
            if any(codes) and deadline == float("inf"):
                deadline = time.monotonic() + GRACE
                self._stop(signal.SIGTERM)
            if time.monotonic() > deadline:
                self._stop(signal.SIGKILL)
            if not ended:
                time.sleep(0.05)
        return sorted(codes, key=lambda code: code == 0)

    def wait(self, seconds: float) -> None:
        """Sleep, but not on when the parent is asked to end."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.asked:
            time.sleep(0.05)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._stop(signal.SIGTERM if number == signal.SIGHUP else signal.Signals(number))

    def _stop(self, number: signal.Signals) -> None:
        for child in self._running:
            if child.poll() is None:
                child.send_signal(number)


# ---- child ---------------------------------------------------------------------------------


@contextmanager
def noted() -> Iterator[Callable[[int], bool]]:
    """Leave notes for the parent: give it each finished step, and the error that ends the block.

    The answer to a step is True when the parent has died: nobody would end this process then.
    Does nothing where no parent waits for notes.
    """
    if NOTES not in os.environ:
        yield lambda step: False
        return
    parent = os.getppid()
    folder = Path(os.environ[NOTES])
    with (folder / "step").open("r+b") as file, mmap.mmap(file.fileno(), STEP.size) as memory:

        def note_step(step: int) -> bool:
            if is_first():
                STEP.pack_into(memory, 0, step)
            return os.getppid() != parent

        try:
            yield note_step
        except BaseException as error:
            _note_error(folder / "error", error)
            raise


def _note_error(path: Path, error: BaseException) -> None:
    """Write the error unless another process had one before: theirs is the cause."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    text = text if is_first() else f"rank {rank()}: {text}"
    note = json.dumps({"exit_code": exit_code(error), "error": text})
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(note)
    except FileExistsError:
        pass


def run_directory(wanted: Path) -> tuple[Path, bool]:
    """Return the folder of this run, and whether an earlier attempt of the same launch made it.

    Without such an attempt it is new: `wanted`, or `wanted-2`, ... An attempt is one of
    `supervise`, or of `torchrun --max-restarts`.
    """
    launch = _launch()
    if launch is None:
        return new_directory(wanted), False
    for marker in wanted.parent.glob(f"{escape(wanted.name)}*/{MARKER}"):
        if marker.read_text(encoding="utf-8") == launch:
            return marker.parent, True
    directory = new_directory(wanted)
    (directory / MARKER).write_text(launch, encoding="utf-8")
    return directory, False


def forget(directory: Path) -> None:
    """Remove the folder of a run that left nothing there: its name stays free."""
    if all(path.name == MARKER for path in directory.iterdir()):
        (directory / MARKER).unlink(missing_ok=True)
        directory.rmdir()


def _launch() -> str | None:
    """Return what all attempts of a launch have in common, and no other launch has."""
    if LAUNCH in os.environ:
        return os.environ[LAUNCH]
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    # Without a rendezvous every torchrun calls itself "none": its process tells it apart.
    return f"{socket.gethostname()} {os.getppid()}" if run == "none" else run


def python_command(module: str, arguments: Sequence[str]) -> list[str]:
    """Return the command line that runs `python -m module` with this interpreter."""
    return [sys.executable, "-m", module, *arguments]
