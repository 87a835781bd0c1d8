"""Time budgets: `--time 2h` plans the number of epochs, so that the schedule ends with the time."""

import re
import statistics
from collections.abc import Sequence

from detector.errors import ConfigError

UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0}
RESERVE = 0.97  # of the time left that is planned: epochs differ in length


def seconds_of(text: str) -> float:
    """Return the seconds of a duration such as `2h`, `90m`, `1h30m`, `45s`; 0 for "".

    Raises: `ConfigError`.
    """
    if not text:
        return 0.0
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms])", text.strip().lower())
    if "".join(number + unit for number, unit in parts) != text.strip().lower() or not parts:
        raise ConfigError(f"time={text!r} must be a duration such as 2h, 90m, 1h30m or 45s")
    seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
    if seconds <= 0:
        raise ConfigError(f"time={text!r} must be longer than nothing")
    return seconds


def planned_epochs(done: Sequence[float], budget: float) -> int:
    """Return the number of epochs, at least those done, that fit into `budget` seconds.

    `done` are the seconds of the epochs so far; the next ones are expected to take their median.
    """
    left = budget - sum(done)
    return len(done) + max(0, int(RESERVE * left / max(statistics.median(done), 1e-9)))
