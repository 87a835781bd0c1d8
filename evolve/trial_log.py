"""What happened to a trial, one JSON object a line in `events.jsonl` in its folder.

Keys of every line: `time` (ISO 8601, UTC), `event`, `trial`. Events: `begun` (attempt, worker,
params, seed), `report` (step, metrics), `died`, `repeated` (both reason, seconds), `ended` (state,
value, reason, seconds), `asked` and `told` (seconds that the study's storage and sampler took).
"""

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FILE = "events.jsonl"


def note(directory: Path, number: int, event: str, **facts: Any) -> None:
    """Add a line; a full disk or a folder that is gone costs no trial."""
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event}
    line |= {"trial": number, **facts}  # type: ignore[dict-item]
    try:
        with (directory / FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(line), default=str) + "\n")
    except OSError:
        return


def read_events(directory: Path) -> list[dict[str, Any]]:
    """Return what happened to a trial, in order; a line cut short by a kill is left out."""
    try:
        lines = (directory / FILE).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def _finite(value: Any) -> Any:
    """Return the value as JSON allows it: no NaN and no infinity."""
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
