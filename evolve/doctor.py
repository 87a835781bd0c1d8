"""Is everything there that a study needs? Storage, record, devices, data, disk, versions."""

import importlib.metadata
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evolve.config import StudyConfig
from evolve.engine import gpus_of_a_trial
from evolve.errors import StudyError
from evolve.keep import disk_shortage, size_text
from evolve.machine import free_memory, place_workers, total_memory, usable_cores, visible_gpus
from evolve.mlflow_store import Store, fault_line, limits, store_uri
from evolve.objective import load_objective
from evolve.problem import build_problem, with_fitness
from evolve.server import hidden
from evolve.storage import SQLITE, ping

PACKAGES = ("evolve-detector", "optuna", "mlflow", "torch", "sqlalchemy", "psycopg", "ray")
GOOD, WARNING, BAD = "ok", "warning", "error"


@dataclass(frozen=True)
class Check:
    """What was looked at, how it is (ok, warning, error), and that in words."""

    name: str
    state: str
    text: str


def examine(config: StudyConfig) -> list[Check]:
    """Look at all that a study of this config needs on this machine."""
    looks: list[tuple[str, Callable[[StudyConfig], tuple[str, str]]]] = [
        ("storage", _storage),
        ("record", _record),
        ("devices", _devices),
        ("objective and data", _objective),
        ("disk", _disk),
        ("versions", _versions),
    ]
    return [_checked(name, look, config) for name, look in looks]


def checks_text(checks: list[Check]) -> str:
    """Return the checks as a table."""
    width = max(len(check.name) for check in checks)
    return "\n".join(f"{check.state:<8} {check.name:<{width}}  {check.text}" for check in checks)


def _checked(
    name: str, look: Callable[[StudyConfig], tuple[str, str]], config: StudyConfig
) -> Check:
    try:
        return Check(name, *look(config))
    except Exception as error:  # whatever is wrong is what was asked for
        text = " ".join(str(error).split()) or type(error).__name__
        return Check(name, BAD, text)


def _storage(config: StudyConfig) -> tuple[str, str]:
    url = config.study.storage
    milliseconds = ping(url)
    text = f"{hidden(url)} answers in {milliseconds:.0f} ms"
    if url.startswith(SQLITE):
        return GOOD, f"{text}; SQLite serves one process of one machine"
    return GOOD, f"{text}; `python -m evolve worker` may join from other machines"


def _record(config: StudyConfig) -> tuple[str, str]:
    uri = store_uri(config.tracking.uri)
    if uri is None:
        return WARNING, "tracking is off: nothing goes to MLflow"
    try:
        with limits():
            Store(uri, config.tracking.experiment)
    except Exception as error:
        raise StudyError(fault_line(uri, error)) from error
    return GOOD, f"MLflow at {uri}, experiment {config.tracking.experiment}"


def _devices(config: StudyConfig) -> tuple[str, str]:
    if config.workers.engine == "ray":
        from evolve.cluster import cluster_text

        return GOOD, cluster_text(config.workers)
    placements, gpus = place_workers(config.workers), visible_gpus()
    memory, whole = free_memory(), total_memory()
    held = "" if memory is None or whole is None else f", {memory / 2**30:.1f} GiB of memory free"
    share = f", {gpus_of_a_trial(placements):.3g} of a GPU each" if gpus else ""
    text = f"{len(usable_cores())} cores, {gpus} GPUs{held}: {len(placements)} trials at once,"
    return GOOD, f"{text} {placements[0].threads} threads{share}"


def _objective(config: StudyConfig) -> tuple[str, str]:
    objective = load_objective(config.objective)
    notices: list[str] = []
    problem = build_problem(with_fitness(config, objective), objective, notices.append)
    data = config.settings.get("data")
    text = f"{config.objective}, {len(problem.space.names)} genes searched"
    text += f", data {data}" if data else ""
    return (WARNING, f"{text}; {'; '.join(notices)}") if notices else (GOOD, text)


def _disk(config: StudyConfig) -> tuple[str, str]:
    folder = next(path for path in (config.directory, *config.directory.parents) if path.exists())
    short = disk_shortage(folder, config.study.max_disk)
    usage = shutil.disk_usage(folder)
    text = f"{size_text(usage.free)} of {size_text(usage.total)} free under {folder or Path()}"
    return (BAD, short) if short else (GOOD, text)


def _versions(config: StudyConfig) -> tuple[str, str]:
    found: dict[str, Any] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return GOOD, ", ".join(f"{name} {version}" for name, version in found.items())
