"""Ctrl-C and SIGTERM as a request: the training ends at the next step, with its state saved."""

import logging
import signal
import threading
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any

log = logging.getLogger("detector")

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal:
    """A context in which the first of the `signals` sets `asked`; the second interrupts at once.

    With `once` a second one changes nothing: a host that ends may send it twice. In another
    thread than the main one signals cannot be caught, and nothing changes.
    """

    def __init__(self, signals: Sequence[signal.Signals] = SIGNALS, *, once: bool = False) -> None:
        self.asked = False
        self._once = once
        self._signals = signals
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopOnSignal":
        if threading.current_thread() is threading.main_thread():
            for number in self._signals:
                self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.asked and self._once:
            return
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        log.info("%s: saving after this step; once more ends at once", signal.Signals(number).name)
