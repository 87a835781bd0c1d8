"""Time several trainings side by side on one machine: one runs for a few seconds, then the next.

All but one of the process groups are stopped (SIGSTOP) at any time, and a clock of its own counts
what each one runs. So a noisy machine hits all of them alike, and none has a quieter hour.

On a machine that others use, sides of one thread each can run at once, by their processor time.
"""

import contextlib
import csv
import io
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

POLL = 0.05  # seconds between looks at a table of results


@dataclass
class Side:
    """One training: a command that writes one row an epoch into the csv file `table`.

    It ends early, killed, when the number in `column` reaches `target`.
    """

    name: str
    command: Sequence[str]
    folder: Path  # working directory; `log.txt` is written there
    table: Path
    column: str
    target: float
    environment: Mapping[str, str]
    seconds: float = 0.0  # that it ran
    rows: list[tuple[float, float]] = field(default_factory=list)  # (seconds, metric) an epoch
    ended: str = ""  # "reached", "finished", "failed", or "long enough": see `alternate`
    process: subprocess.Popen | None = None

    @property
    def reached(self) -> float | None:
        """Seconds at which the target was reached, or None."""
        return next((seconds for seconds, metric in self.rows if metric >= self.target), None)

    @property
    def epochs(self) -> int:
        """Epochs that were seen."""
        return len(self.rows)


def alternate(sides: Sequence[Side], stretch: float, enough: float = 0.0) -> None:
    """Run all sides to their end, each for `stretch` seconds in turn.

    With `enough`, a side is ended, "long enough", once the first side has reached its target in
    less than this share of the time that it has run.

    Raises: RuntimeError when one fails; none is left running on any path.
    """
    try:
        while running := [side for side in sides if not side.ended]:
            for side in running:
                run_for(side, stretch)
                check(side, sides[0].reached, enough)
    finally:
        for side in sides:
            end(side)


def run_for(side: Side, stretch: float) -> None:
    """Start or continue a side, watch its table for `stretch` seconds, and stop it."""
    began, before = time.monotonic(), side.seconds
    if side.process is None:
        side.process = start(side)
    else:
        os.killpg(side.process.pid, signal.SIGCONT)
    while not side.ended and time.monotonic() - began < stretch:
        time.sleep(POLL)
        code = side.process.poll()
        look(side, code, before + time.monotonic() - began)
    if side.ended:
        end(side)
    else:
        os.killpg(side.process.pid, signal.SIGSTOP)
        side.seconds = before + time.monotonic() - began


def together(sides: Sequence[Side], enough: float = 0.0) -> None:
    """Run all sides at once to their end; the clock of each is the processor time that it took.

    For sides of one process and one thread. `enough` and Raises: as `alternate`.
    """
    try:
        for side in sides:
            side.process = start(side)
        while running := [side for side in sides if not side.ended]:
            time.sleep(POLL)
            for side in running:
                assert side.process is not None
                code = side.process.poll()
                look(side, code, max(side.seconds, processor_seconds(side.process.pid)))
                check(side, sides[0].reached, enough)
    finally:
        for side in sides:
            end(side)


def look(side: Side, code: int | None, seconds: float) -> None:
    """Note the new rows of a side's table, and whether it has ended with an exit code."""
    side.seconds = seconds
    metrics = read_column(side.table, side.column)
    side.rows += [(seconds, value) for value in metrics[len(side.rows) :]]
    if side.reached is not None:
        side.ended = "reached"
    elif code is not None:
        side.ended = "failed" if code else "finished"


def check(side: Side, first: float | None, enough: float) -> None:
    """End a side that has run long enough. Raises: RuntimeError when it failed."""
    if side.ended == "failed":
        raise RuntimeError(f"{side.name} failed: see {side.folder / 'log.txt'}")
    if not side.ended and first is not None and first < enough * side.seconds:
        side.ended = "long enough"
    if side.ended:
        end(side)


def processor_seconds(pid: int) -> float:
    """Return the processor time of a process, its threads and its ended children; 0: it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def start(side: Side) -> subprocess.Popen:
    """Start the processes of a side as a group of their own."""
    side.folder.mkdir(parents=True, exist_ok=True)
    with (side.folder / "log.txt").open("wb") as log:
        return subprocess.Popen(
            side.command,
            cwd=side.folder,
            env=dict(side.environment),
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,  # of the same session: one share of the processor
        )


def end(side: Side) -> None:
    """Kill what is left of a side's processes, workers included."""
    if side.process is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(side.process.pid, signal.SIGKILL)
        side.process.wait()


def read_column(path: Path, column: str) -> list[float]:
    """Return the numbers of a column in the whole lines of a csv file that may be half written.

    A row that has no number there (an epoch without an evaluation) counts as 0.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    whole = text[: text.rfind("\n") + 1]
    rows = csv.DictReader(io.StringIO(whole), skipinitialspace=True)
    return [float(row[column] or 0) for row in rows]
