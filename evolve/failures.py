"""When failures end a study: alike again and again, or too many in a row."""

import re

from evolve.errors import RunFailed
from evolve.record import DIVERGED

SAME_FAILURES = 5  # in a row, before a study stops
FAILURES = 20  # in a row, of any kind


class Failures:
    """The reasons of the last failures in a row."""

    def __init__(self) -> None:
        self._reasons: list[str] = []

    def clear(self) -> None:
        """A trial went well."""
        self._reasons.clear()

    def add(self, reason: str, any_good: bool) -> None:
        """Count a failure; `any_good`: some trial of the study is complete.

        Raises: RunFailed if going on would only repeat the same failure.
        """
        self._reasons.append(reason)
        last = self._reasons[-SAME_FAILURES:]
        alike = {one if one.startswith(DIVERGED) else _digitless(one) for one in last}
        # to diverge says something of a place, once others have gone well
        known_good = reason.startswith(DIVERGED) and any_good
        if len(last) == SAME_FAILURES and len(alike) == 1 and not known_good:
            raise RunFailed(f"{SAME_FAILURES} trials in a row failed alike: {reason}")
        if len(self._reasons) >= FAILURES:
            raise RunFailed(f"{FAILURES} trials in a row failed, the last one: {reason}")


def out_of_memory(reason: str) -> bool:
    """Return whether a trial failed because a device or the machine had no memory left."""
    text = reason.lower()
    return "out of memory" in text or "memoryerror" in text or "outofmemory" in text


def _digitless(reason: str) -> str:
    return re.sub(r"\d+", "#", reason)
