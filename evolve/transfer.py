"""Warm start: what an earlier study or a best.yaml tells a new study.

The configurations to try first are kept in the study, and so is the prior evidence: going on with
the study needs no other file. Only genes that both have are carried over.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial

from evolve.choice import common_space
from evolve.config import StudyConfig
from evolve.errors import ConfigError, StudyError
from evolve.gene import Gene
from evolve.problem import Problem
from evolve.recommend import recommendations
from evolve.record import START, fitness, kind_of, ranking
from evolve.space import Params, Space
from evolve.storage import IDENTITY, SQLITE, load_study
from evolve.yamlfile import read_yaml

WARM, PRIOR = "warm", "prior"  # user attributes of the study
WINNERS = 3  # configurations of an earlier study that are tried first
EVIDENCE = 200  # of its trials, at most: the better half of them its best
SHARED = 0.5  # of the genes, at least

Notice = Callable[[str], None]


def warm_start(config: StudyConfig, study: Study, problem: Problem, notice: Notice) -> None:
    """Keep in the study what `config.warm_start` brings, unless it has that already.

    Raises: StudyError or ConfigError if there is nothing of use.
    """
    source = config.warm_start
    if source is None or source in study.user_attrs.get(WARM, {}).get("sources", ()):
        return
    prior: list[dict[str, Any]] = []
    if Path(source).suffix in (".yaml", ".yml"):
        found = [_of_file(Path(source))]
    else:
        found, prior = _of_study(config, source, problem, notice)
    _check_genes(source, found[0], problem)
    told = study.user_attrs.get(WARM, {"sources": [], "params": []})
    fresh: list[Params] = []
    for values in found:
        params = _completed(_clipped(values, problem), problem)
        if len(fresh) < WINNERS and params not in (problem.start, *told["params"], *fresh):
            _tell_changes(values, params, source, notice)
            fresh.append(params)
    notice(f"warm start from {source}: {len(fresh)} to try first, {len(prior)} as prior evidence")
    both = [*study.user_attrs.get(PRIOR, []), *prior]
    study.set_user_attr(PRIOR, both[-EVIDENCE:])
    sources, first = [*told["sources"], source], [*told["params"], *fresh]
    study.set_user_attr(WARM, {"sources": sources, "params": first})


def next_warm(
    study: Study, trials: Sequence[FrozenTrial], problem: Problem
) -> tuple[int, Params] | None:
    """Return index and values of the next configuration of a warm start that nobody has tried."""
    begun = {trial.user_attrs.get("warm") for trial in trials}
    for index, params in enumerate(study.user_attrs.get(WARM, {}).get("params", [])):
        if index not in begun:
            values = {**problem.start, **params}  # a gene may have been locked or freed since
            return index, {name: values[name] for name in problem.space.names}
    return None


def _of_file(path: Path) -> Params:
    """Return the values that a best.yaml holds."""
    if not path.is_file():
        raise ConfigError(f"warm_start: there is no file {path}")
    tree = read_yaml(path)
    train = tree.pop("train", None)
    return {**(train if isinstance(train, Mapping) else {}), **tree}


def _of_study(
    config: StudyConfig, source: str, problem: Problem, notice: Notice
) -> tuple[list[Params], list[dict[str, Any]]]:
    """Return the values of an earlier study, best first, and its trials as prior evidence."""
    other = _opened(config, source)
    identity = other.user_attrs.get(IDENTITY, {})
    trials = other.get_trials(deepcopy=False)
    ranked = ranking(trials)
    if not ranked:
        raise StudyError(f"warm_start: study {other.study_name} has no complete trial yet")
    for key, ours in (("objective", config.objective), ("fitness", config.fitness)):
        if key in identity and identity[key] != ours:
            notice(f"{source} had another {key}: its values are only compared with one another")
    if len(other.directions) > 1:
        found = [trial.params for trial in ranked]
    else:
        space, start = _space_of(other, ranked, identity), _start_of(trials, ranked)
        found = [item.params for item in recommendations(trials, space, start)]
    evidence = [
        {"params": _completed(inside, problem), "value": fitness(trial)}
        for trial in _spread(ranked)
        if (inside := _inside(trial.params, problem)) is not None
    ]
    return found, evidence


def _opened(config: StudyConfig, source: str) -> Study:
    """Open `name`, `storage#name`, or `path#name`. Raises: StudyError."""
    storage, _, name = source.rpartition("#")
    if storage and "://" not in storage:
        storage = SQLITE + storage
    options = dataclasses.replace(config.study, name=name, storage=storage or config.study.storage)
    if (options.name, options.storage) == (config.study.name, config.study.storage):
        raise StudyError(f"warm_start: {source} is this study itself")
    try:
        return load_study(dataclasses.replace(config, study=options))
    except StudyError as error:
        raise StudyError(f"warm_start: {error}") from error


def _space_of(other: Study, ranked: Sequence[FrozenTrial], identity: Mapping[str, Any]) -> Space:
    """Return the genes that all trials of a study have."""
    if "space" in identity:
        constants = {**identity["settings"], **identity["start"]["values"]}
        constants |= identity["start"]["train"]
        space = Space.from_dict(identity["space"], other.study_name, constants)
    else:
        space = Space.from_distributions(ranked[0].distributions)
    return common_space(space, ranked)


def _start_of(trials: Sequence[FrozenTrial], ranked: Sequence[FrozenTrial]) -> Params:
    starts = [trial for trial in trials if kind_of(trial) == START and trial.params]
    first = starts[0] if starts else min(ranked, key=lambda trial: trial.number)
    return dict(first.params)


def _spread(ranked: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return at most EVIDENCE trials: the best ones, and the rest evenly over all ranks."""
    best, rest = ranked[: EVIDENCE // 2], ranked[EVIDENCE // 2 :]
    count = min(len(rest), EVIDENCE - len(best))
    return [*best, *(rest[i * len(rest) // count] for i in range(count))]


def _clipped(values: Mapping[str, Any], problem: Problem) -> Params:
    """Return the allowed values nearest to those of our genes; an unknown choice is left out."""
    found: Params = {}
    for gene in problem.space.genes:
        with suppress(ConfigError):
            if gene.name in values:
                found[gene.name] = gene.nearest(values[gene.name], "warm_start")
    return found


def _tell_changes(values: Params, params: Params, source: str, notice: Notice) -> None:
    """Give `notice` a line for each value that is not as it was."""
    for name in params:
        if name in values and not _equal(params[name], values[name]):
            notice(f"{source}: {name}={values[name]} is now {params[name]}")


def _inside(values: Mapping[str, Any], problem: Problem) -> Params | None:
    """Return the values of our genes; None if one is out of its range: that was elsewhere."""
    found = _clipped(values, problem)
    near = (_near(g, found[g.name], values[g.name]) for g in problem.space.genes if g.name in found)
    return found if all(near) else None


def _near(gene: Gene, value: Any, original: Any) -> bool:
    """Return whether a value was moved by the rounding of a grid at most."""
    if gene.choices or isinstance(original, bool | str) or original is None:
        return True
    slack = 0.5 * (gene.step or 0.0) + 1e-6 * (gene.high - gene.low)
    return abs(float(original) - float(value)) <= slack


def _equal(value: Any, original: Any) -> bool:
    if isinstance(value, float) and isinstance(original, int | float):
        return abs(value - original) <= 1e-8 * abs(original)
    return bool(value == original)


def _completed(params: Params, problem: Problem) -> Params:
    """Return values for all genes: missing and inactive ones stand at their start values."""
    return problem.space.settled({**problem.start, **params}, problem.start)


def _check_genes(source: str, values: Params, problem: Problem) -> None:
    ours = problem.space.names
    shared = [name for name in ours if name in values]
    if len(shared) < SHARED * len(ours):
        raise StudyError(
            f"warm_start: {source} has {len(shared)} of our {len(ours)} genes,"
            " at least half are needed"
        )
