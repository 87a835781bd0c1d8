"""What a study searches: genes, their start values, and the constants beside them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from evolve.config import DEFAULT_METRIC, StudyConfig
from evolve.errors import ConfigError
from evolve.objective import Objective
from evolve.space import Params, Space


@dataclass(frozen=True)
class Problem:
    """The searched space, its start values, and every other value that evaluate gets.

    `dead` maps names that the preflight found without effect to the reason.
    """

    space: Space
    start: Params
    constants: Params
    dead: dict[str, str]

    def params(self, trial_params: Mapping[str, Any]) -> Params:
        """Return all values that evaluate gets for a trial."""
        return {**self.constants, **trial_params}


def build_problem(
    config: StudyConfig, objective: Objective, notice: Callable[[str], None]
) -> Problem:
    """Find the start values, ask the objective for dead genes, and lock those.

    `notice` gets a line for whatever is not as the files say. Raises: ConfigError.
    """
    start = start_values(config, notice)
    dead = _preflight(config, objective, start)
    for name, reason in dead.items():
        notice(f"not searched: {name} has no effect here ({reason}); it stays at {start[name]}")
    space = config.space.lock(dead)
    constants = _constants(config, start)
    searched = space.searched()
    if not searched.genes:
        raise ConfigError(f"{config.source}: space: nothing is left to search")
    return Problem(
        space=searched,
        start={name: start[name] for name in searched.names},
        constants={name: value for name, value in constants.items() if name not in searched.names},
        dead=dead,
    )


def start_values(config: StudyConfig, notice: Callable[[str], None]) -> Params:
    """Return an allowed start value for every gene, the nearest one to what the files say."""
    given = _constants(config, {})
    start: Params = {}
    for gene in config.space.genes:
        if gene.name not in given:
            start[gene.name] = gene.middle()
            if config.start.values:
                notice(f"{config.start.source} has no {gene.name}: it starts at {gene.middle()}")
            continue
        value = given[gene.name]
        start[gene.name] = gene.nearest(value, config.start.source)
        if not _same(start[gene.name], value):
            where = "settings" if gene.name in config.settings else config.start.source
            notice(
                f"{where}: {gene.name}={value} is outside its space:"
                f" it starts at {start[gene.name]}"
            )
    return start


def _same(value: Any, other: Any) -> bool:
    """Return whether two values are equal but for the rounding of a gene's grid."""
    if isinstance(value, float) and isinstance(other, int | float):
        return math.isclose(value, other, rel_tol=1e-8)
    return bool(value == other)


def best_values(
    config: StudyConfig, objective: Objective, params: Mapping[str, Any]
) -> dict[str, Any]:
    """Return every value of a configuration as best.yaml holds it: hyperparameters, and `train:`.

    The objective knows which names belong to `train`; if it does not say, those of the settings and
    of the start file's `train` do.
    """
    train_fields = objective.optional("train_fields")
    if train_fields is not None:
        train_names = set(train_fields())
    else:
        train_names = {*config.start.train, *config.settings} - {*config.start.values}
    # a gene that the preflight locked stands at its start value
    values = {**_constants(config, start_values(config, lambda _: None)), **params}
    top = [name for name in values if name not in train_names]
    ordered = [*(name for name in config.start.values if name in top), *top]
    best = {name: values[name] for name in ordered}
    train = {name: value for name, value in values.items() if name not in best}
    return {**best, "train": train} if train else best


def _constants(config: StudyConfig, start: Params) -> Params:
    """Return all values beside a trial's own: settings win over the start file."""
    return {**config.start.train, **config.start.values, **config.settings, **start}


def with_fitness(config: StudyConfig, objective: Objective) -> StudyConfig:
    """Return the config with the fitness weights among the settings of a trainer that takes them.

    Its best checkpoint is then the best by the study's own measure.
    """
    fields = objective.optional("train_fields")
    given = config.fitness == {DEFAULT_METRIC: 1.0} or "fitness" in config.settings
    if fields is None or "fitness" not in fields() or given:
        return config
    return replace(config, settings={**config.settings, "fitness": dict(config.fitness)})


def _preflight(config: StudyConfig, objective: Objective, start: Params) -> dict[str, str]:
    """Return the dead genes that are searched, with reasons."""
    preflight = objective.optional("preflight")
    if preflight is None:
        return {}
    found = preflight(_constants(config, start), config.space.searched().to_dict())
    names = config.space.searched().names
    return {name: str(reason) for name, reason in dict(found).items() if name in names}
