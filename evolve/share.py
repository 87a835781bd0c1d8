"""What a study tells the processes that join it, and what it asks of them.

User attributes of the study:
    config    evolve.yaml with all overrides, the start values within: a worker needs no file
    problem   what is searched after the preflight: space, start values, constants, dead genes
    phase     search, confirm or done: what its leader is at
    stop      {id, how}: somebody asked all processes to end, `now` or after their running `trials`
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from optuna import Study

from evolve.config import StudyConfig, parse_config
from evolve.errors import StudyError
from evolve.problem import Problem
from evolve.space import Space

CONFIG, PROBLEM, PHASE, STOP = "config", "problem", "phase", "stop"
SEARCHING, CONFIRMING, DONE = "search", "confirm", "done"  # phases
NOW, TRIALS = "now", "trials"  # how to stop


class StopAsked(KeyboardInterrupt):
    """Somebody asked for the end of this run with `evolve stop`."""


def publish(config: StudyConfig, study: Study, problem: Problem) -> None:
    """Tell those who join the study what to run."""
    found = asdict(problem) | {"space": problem.space.to_dict()}
    study.set_user_attr(CONFIG, _json(config_tree(config)))
    study.set_user_attr(PROBLEM, _json(found))


def published(study: Study) -> tuple[StudyConfig, Problem]:
    """Return what the leader of a study told. Raises: StudyError if it told nothing yet."""
    attributes = study.user_attrs
    if CONFIG not in attributes or PROBLEM not in attributes:
        raise StudyError(
            f"study {study.study_name} was never begun: start it with `python -m evolve run`"
        )
    problem: Mapping[str, Any] = attributes[PROBLEM]
    config = parse_config(attributes[CONFIG])
    space = Space.from_dict(problem["space"], study.study_name, problem["constants"])
    rest = {key: problem[key] for key in ("start", "constants", "dead")}
    return config, Problem(space=space, **rest)


def config_tree(config: StudyConfig) -> dict[str, Any]:
    """Return the tree that `parse_config` reads as this config; a file of start values within."""
    plugins = {"strategy": config.strategy, "pruning": config.pruning}
    tree: dict[str, Any] = {
        "study": asdict(config.study),
        "objective": config.objective,
        "settings": config.settings,
        "fitness": config.fitness,
        "start": {**config.start.values, "train": config.start.train},
        "space": config.space.to_dict(),
        "confirm": asdict(config.confirm),
        "workers": asdict(config.workers),
        "limits": {
            name: {key: bound for key, bound in asdict(limit).items() if bound is not None}
            for name, limit in config.limits.items()
        },
        "objectives": config.objectives,
        "tracking": asdict(config.tracking),
    }
    return tree | {key: {"name": one.name, **one.options} for key, one in plugins.items()}


def _json(tree: Any) -> Any:
    return json.loads(json.dumps(tree, default=str))
