"""Ctrl-C and SIGTERM: the end of a command, but not in the midst of a storage's work.

An interrupt within a query comes out of a database's driver as whatever the driver makes of it. So
one that falls there is kept until the query has returned; a second one is not.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Whether the main thread must not be interrupted, and whether somebody tried."""

    def __init__(self) -> None:
        self._depth = 0
        self._kept = False

    def catch(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: raise KeyboardInterrupt, or keep it for the end of the work."""
        if self._depth and not self._kept:
            self._kept = True
            return
        self._kept = False
        raise KeyboardInterrupt

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep an interrupt until the block has ended; in another thread than the main one none."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._kept and not self._depth:
                self._kept = False
                raise KeyboardInterrupt


INTERRUPTS = Interrupts()  # of this process: signals come to it, not to an object


@contextmanager
def interruptible() -> Iterator[None]:
    """Stop in the same clean way on Ctrl-C and SIGTERM, even if the shell ignores SIGINT for us."""
    before = [signal.signal(number, INTERRUPTS.catch) for number in SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)
