"""What a study searches: genes, their start values, and the constants beside them."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from evolve.config import DEFAULT_METRIC, StudyConfig
from evolve.errors import ConfigError
from evolve.objective import Metrics, Objective
from evolve.preflight import probe
from evolve.space import Params, Space


@dataclass(frozen=True)
class Problem:
    """The searched space, its start values, and every other value that evaluate gets.

    `dead` maps names of the space that have no effect here to the reason.
    """

    space: Space
    start: Params
    constants: Params
    dead: dict[str, str]

    def params(self, trial_params: Mapping[str, Any]) -> Params:
        """Return all values that evaluate gets for a trial; inactive genes at their start value."""
        return {**self.constants, **self.space.settled(trial_params, self.start)}


def build_problem(
    config: StudyConfig,
    objective: Objective,
    notice: Callable[[str], None],
    evaluate: Callable[[Params], Metrics] | None = None,
) -> Problem:
    """Find the start values, ask the objective for dead genes, and lock those.

    `evaluate` (all values to metrics, with one seed) is asked where the objective has no preflight
    of its own. `notice` gets a line for whatever is not as the files say. Raises: ConfigError.
    """
    start = start_values(config, notice)
    space, dead = config.space, {}
    for name, finding in _preflight(config, objective, start, evaluate).items():
        if isinstance(finding, Mapping):
            space = space.conditional(name, finding["when"], config.source)
            notice(f"searched only while {_while(space, name)}: {name} ({finding['reason']})")
        else:
            dead[name] = str(finding)
    constants = _constants(config, start)
    space = space.lock(dead)
    searched = space.decided(constants).searched()
    for name in space.searched().names:
        if name not in searched.names:
            dead[name] = f"it acts only while {_while(space, name)}"
    for name, reason in dead.items():
        notice(f"not searched: {name} has no effect here ({reason}); it stays at {start[name]}")
    if not searched.genes:
        raise ConfigError(f"{config.source}: space: nothing is left to search")
    return Problem(
        space=searched,
        start={name: start[name] for name in searched.names},
        constants={name: value for name, value in constants.items() if name not in searched.names},
        dead=dead,
    )


def _while(space: Space, name: str) -> str:
    """Return the conditions of a gene as words."""
    when = next(gene.when for gene in space.genes if gene.name == name)
    parts = (f"{other} is {' or '.join(map(str, values))}" for other, values in when)
    return " and ".join(parts)


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


def train_fields_of(objective: Objective) -> list[str]:
    """Return the names that an objective calls settings of a training; none if it does not say."""
    train_fields = objective.optional("train_fields")
    return [] if train_fields is None else sorted(train_fields())


def best_values(
    config: StudyConfig, train_fields: Iterable[str], params: Mapping[str, Any]
) -> dict[str, Any]:
    """Return every value of a configuration as best.yaml holds it: hyperparameters, and `train:`.

    Without `train_fields`, the names that belong to `train`, those of the settings and of the start
    file's `train` do.
    """
    train_names = set(train_fields)
    if not train_names:
        train_names = {*config.start.train, *config.settings} - {*config.start.values}
    values = all_values(config, params)
    top = [name for name in values if name not in train_names]
    ordered = [*(name for name in config.start.values if name in top), *top]
    best = {name: values[name] for name in ordered}
    train = {name: value for name, value in values.items() if name not in best}
    return {**best, "train": train} if train else best


def all_values(config: StudyConfig, params: Mapping[str, Any]) -> Params:
    """Return what evaluate gets for a trial's own values, by the configuration alone.

    A gene that the preflight locked stands at its start value.
    """
    return {**_constants(config, start_values(config, lambda _: None)), **params}


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


def _preflight(
    config: StudyConfig,
    objective: Objective,
    start: Params,
    evaluate: Callable[[Params], Metrics] | None,
) -> dict[str, str | Mapping[str, Any]]:
    """Return the searched genes that are dead (a reason), or dead for some values of others.

    The latter are `{"when": {other: values}, "reason": ...}`.
    """
    searched = config.space.searched()
    preflight = objective.optional("preflight")
    if preflight is not None:
        found = dict(preflight(_constants(config, start), searched.to_dict()))
        return {name: found[name] for name in found if name in searched.names}
    if evaluate is None:
        return {}
    constants = _constants(config, start)
    own = {name: start[name] for name in searched.names}
    return dict(probe(searched, own, lambda params: evaluate({**constants, **params})))
