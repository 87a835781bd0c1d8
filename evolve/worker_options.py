"""The section `workers` of evolve.yaml: how many trials run at once, where, and for how long."""

import re
from dataclasses import dataclass, fields
from typing import Literal

from evolve.errors import ConfigError, did_you_mean
from evolve.reader import Reader

ENGINES = ("local", "ray")
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@dataclass(frozen=True)
class WorkerOptions:
    """How many trials run at once; `per_device` counts trials sharing one GPU.

    `devices_per_trial` is how many devices one trial trains on. A trial that ran for `trial_hours`
    fails; one that gave no sign of life for `silent_minutes` loses its worker and goes on with
    another. `lease` is after how many seconds of silence another process takes a trial over.
    `engine` ray runs trials as tasks of the cluster at `address`, each with `cpus` and `gpus`.
    """

    count: int | Literal["auto"] = "auto"
    per_device: int = 1
    devices_per_trial: int = 1
    trial_hours: float | None = None
    silent_minutes: float | None = None
    lease: float = 60.0
    engine: str = "local"
    address: str | None = None
    cpus: float = 1.0
    gpus: float | None = None


def read_workers(section: Reader) -> WorkerOptions:
    """Read the section `workers`: a count, or a mapping. Raises: ConfigError."""
    if isinstance(section.tree.get("workers"), int):
        return WorkerOptions(count=section.integer("workers", 1, 1))
    workers = section.mapping("workers", (f.name for f in fields(WorkerOptions)))
    defaults = WorkerOptions()
    auto = workers.tree.get("count", "auto") == "auto"
    engine = workers.text("engine", defaults.engine)
    if engine not in ENGINES:
        raise ConfigError(
            f"{workers.where('engine')}: {engine} is not known{did_you_mean(engine, ENGINES)}"
        )
    return WorkerOptions(
        count="auto" if auto else workers.integer("count", 1, 1),
        per_device=workers.integer("per_device", 1, 1),
        devices_per_trial=workers.integer("devices_per_trial", 1, 1),
        trial_hours=workers.positive("trial_hours"),
        silent_minutes=workers.positive("silent_minutes"),
        lease=workers.positive("lease") or defaults.lease,
        engine=engine,
        address=workers.text("address") if workers.tree.get("address") else None,
        cpus=workers.positive("cpus") or defaults.cpus,
        gpus=workers.positive("gpus"),
    )


def read_size(section: Reader, key: str) -> int | None:
    """Read a number of bytes such as 20GB or 500M; None if there is none. Raises: ConfigError."""
    value = section.tree.get(key)
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", str(value).strip().lower())
    if not found or not float(found[1]):
        raise ConfigError(f"{section.where(key)}={value!r} must be a size such as 20GB or 500MB")
    return int(float(found[1]) * UNITS[found[2]])
