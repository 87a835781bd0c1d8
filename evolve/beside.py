"""Work in a copy of this process, beside what it does itself."""

import multiprocessing
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TypeVar

T = TypeVar("T")


def beside(work: Callable[[], T]) -> Callable[[], T]:
    """Start work in a copy of this process; returns what waits for its result.

    Where processes cannot be copied, or other threads would be cut off in the copy, or where the
    copy fails, the work is done here by then.
    """
    alone = threading.active_count() == 1
    if not alone or "fork" not in multiprocessing.get_all_start_methods():
        return work
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def send(end: Connection) -> None:
        with suppress(Exception):  # it is met again where somebody can say so
            end.send(work())

    copy = context.Process(target=send, args=(theirs,), daemon=True)
    copy.start()
    theirs.close()

    def finish() -> T:
        try:
            found: T = ours.recv()
        except EOFError:  # the copy failed, or was killed
            return work()
        finally:
            ours.close()
            copy.join()
        return found

    return finish
