"""One conformance suite over every strategy, ours and borrowed: what any of them must hold to."""

import importlib
import importlib.util
import json
import math
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from evolve.config import Plugin
from evolve.samplers import NEEDS, STRATEGIES, build_sampler
from evolve.space import Params, Space

HOMES = {  # our samplers by their class: each must be usable on its own
    "genetic": ("evolve.samplers.genetic", "GeneticSampler"),
    "classic": ("evolve.samplers.classic", "ClassicSampler"),
    "guided": ("evolve.samplers.guided", "GuidedSampler"),
}
OURS = [name for name, (home, _) in HOMES.items() if importlib.util.find_spec(home)]
BORROWED = [
    name
    for name in STRATEGIES
    if name not in HOMES and (name not in NEEDS or importlib.util.find_spec(NEEDS[name]))
]
QUICK = [*OURS, "tpe", "random"]  # gp thinks for a second a trial
ALL = [*OURS, *BORROWED]
CAN_RECOMMEND = importlib.util.find_spec("evolve.recommend") is not None

MIXED = Space.from_dict(
    {
        "log": {"low": 1e-5, "high": 0.1, "log": True},
        "shifted": {"low": 0, "high": 0.01, "log": True, "shift": 1e-5},
        "negative": {"low": -4.0, "high": -1.0},
        "from_zero": {"low": 0.0, "high": 1.0},
        "astride": {"low": -1.0, "high": 1.0},
        "stepped": {"low": 0.0, "high": 0.9, "step": 0.3},
        "whole": {"low": 2, "high": 64, "log": True, "int": True},
        "grid": {"low": 64, "high": 160, "step": 32},
        "choice": {"choices": ["SGD", "AdamW", "Adam"]},
        "switch": {"choices": [True, False]},
        "beta": {"low": 0.5, "high": 0.99, "when": {"choice": ["AdamW", "Adam"]}},
        "gamma": {"low": 0.0, "high": 1.0, "when": {"switch": True, "grid": [64, 96, 128]}},
    }
)
MIXED_START: Params = {
    "log": 1e-3, "shifted": 0.0, "negative": -4.0, "from_zero": 0.0, "astride": 0.0,
    "stepped": 0.3, "whole": 16, "grid": 96, "choice": "AdamW", "switch": False, "beta": 0.9,
    "gamma": 0.0,
}  # fmt: skip
BOWL = Space.from_dict({f"x{i}": {"low": -1.0, "high": 3.0} for i in range(6)})
BOWL_START: Params = {f"x{i}": 1.9 if i % 2 else -0.3 for i in range(6)}


class Hasty(sqlite3.Connection):
    """A connection that does not wait for the disk."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.execute("PRAGMA synchronous=OFF").close()


@pytest.fixture(autouse=True, scope="module")
def quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def sampler_of(name: str, space: Space, start: Params, seed: int = 0) -> BaseSampler:
    if name not in HOMES:
        return build_sampler(Plugin(name), space=space, start=start, seed=seed)
    home, kind = HOMES[name]
    sampler = getattr(importlib.import_module(home), kind)(space=space, start=start, seed=seed)
    assert isinstance(sampler, BaseSampler)
    return sampler


def study_of(
    name: str, space: Space = MIXED, start: Params = MIXED_START, seed: int = 0, **more: Any
) -> optuna.Study:
    options = {"direction": "maximize", **more}
    return optuna.create_study(sampler=sampler_of(name, space, start, seed), **options)


def height(params: Params) -> float:
    """A hill on the mixed space: best at 0.6 of each range."""
    return 1.0 - float(((MIXED.to_unit(params) - 0.6) ** 2).sum())


def bowl(params: Params) -> float:
    return sum((value - 0.7) ** 2 for value in params.values())


def advance(study: optuna.Study, count: int, first: int = 0) -> list[Params]:
    """Run trials of the mixed space; some fail, some are pruned, trial 2 is never told."""
    proposals = []
    for number in range(first, first + count):
        trial = study.ask(MIXED.distributions())
        assert trial.number == number
        proposals.append(dict(trial.params))
        if number % 7 == 3:
            study.tell(trial, state=TrialState.FAIL)
        elif number % 8 == 4:
            trial.report(0.1, 0)
            study.tell(trial, state=TrialState.PRUNED)
        elif number != 2:
            study.tell(trial, height(trial.params))
    return proposals


def climb(study: optuna.Study, count: int, value: Callable[[Params], float]) -> None:
    for _ in range(count):
        trial = study.ask(BOWL.distributions())
        study.tell(trial, value(trial.params))


@pytest.fixture(scope="module")
def proposals() -> Iterator[Callable[[str], list[Params]]]:
    """Return the proposals of a strategy in the mixed space, made once."""
    made: dict[str, list[Params]] = {}

    def of(name: str) -> list[Params]:
        if name not in made:
            made[name] = advance(study_of(name), 13 if name == "gp" else 24)
        return made[name]

    yield of


Proposals = Callable[[str], list[Params]]


@pytest.mark.parametrize("name", ALL)
def test_trial_0_is_the_start_values(name: str, proposals: Proposals) -> None:
    assert proposals(name)[0] == MIXED_START
    again = proposals(name)[1:].count(MIXED_START)
    assert again == (1 if name == "guided" else 0)  # measured once more, for the noise


@pytest.mark.parametrize("name", ALL)
def test_values_are_in_bounds_of_their_type_and_on_their_grid(
    name: str, proposals: Proposals
) -> None:
    kinds: dict[str, BaseDistribution] = MIXED.distributions()
    for params in proposals(name):
        assert params.keys() == kinds.keys()
        for key, kind in kinds.items():
            assert kind._contains(kind.to_internal_repr(params[key])), (key, params[key])
        assert all(isinstance(params[key], int) for key in ("whole", "grid"))
        assert all(
            isinstance(params[key], float) and math.isfinite(params[key])
            for key in ("log", "shifted", "negative", "from_zero", "astride", "stepped", "beta")
        )
        assert params["stepped"] in (0.0, 0.3, 0.6, 0.9) or name in BORROWED
        assert isinstance(params["switch"], bool)
        json.dumps(params)


@pytest.mark.parametrize("name", ALL)
def test_zero_leaves_zero_a_sign_is_kept_and_choices_change(
    name: str, proposals: Proposals
) -> None:
    tried = proposals(name)
    assert any(params["from_zero"] > 0 for params in tried)
    assert any(params["shifted"] > 0 for params in tried)
    assert any(params["astride"] > 0 for params in tried)
    assert any(params["astride"] < 0 for params in tried)
    assert all(params["negative"] < 0 for params in tried)
    for key in ("choice", "switch", "whole", "grid", "stepped", "negative", "log"):
        assert len({params[key] for params in tried}) > 1, key


@pytest.mark.parametrize("name", ALL)
def test_inactive_genes_stand_at_their_start_values(name: str, proposals: Proposals) -> None:
    for params in proposals(name):
        assert MIXED.settled(params, MIXED_START) == params
    if name != "gp":
        acting = [params for params in proposals(name) if MIXED.active(params)[0]]
        assert len({params["beta"] for params in acting}) > 1  # active ones move


@pytest.mark.parametrize("name", QUICK)
def test_nothing_but_the_start_values_is_tried_twice(name: str, proposals: Proposals) -> None:
    searched = [params for params in proposals(name) if params != MIXED_START]
    tried = [json.dumps(params, sort_keys=True) for params in searched]
    assert len(set(tried)) == len(tried)


@pytest.mark.parametrize("name", ALL)
def test_a_study_reopened_from_its_file_goes_on_as_if_never_closed(
    name: str, proposals: Proposals
) -> None:
    whole = proposals(name)

    def opened() -> RDBStorage:
        options = {"connect_args": {"factory": Hasty}}
        return RDBStorage(f"sqlite:///{Path('study.db').resolve()}", engine_kwargs=options)

    study = study_of(name, storage=opened(), study_name="s")
    parts = advance(study, 5)
    for first, count in ((5, len(whole) - 7), (len(whole) - 2, 2)):
        sampler = sampler_of(name, MIXED, MIXED_START)
        study = optuna.load_study(study_name="s", storage=opened(), sampler=sampler)
        parts += advance(study, count, first)
    assert parts == whole


@pytest.mark.parametrize("name", QUICK)
def test_another_seed_proposes_other_values(name: str, proposals: Proposals) -> None:
    other = advance(study_of(name, seed=1), 6)
    assert other[0] == proposals(name)[0]
    assert all(params not in proposals(name) for params in other[1:])


@pytest.mark.parametrize("name", QUICK)
def test_it_minimises_as_it_maximises(name: str) -> None:
    low = study_of(name, BOWL, BOWL_START, direction="minimize")
    high = study_of(name, BOWL, BOWL_START)
    climb(low, 15, bowl)
    climb(high, 15, lambda params: -bowl(params))
    assert [trial.params for trial in low.trials] == [trial.params for trial in high.trials]


@pytest.mark.parametrize("name", [*OURS, "tpe"])
def test_it_beats_random_in_forty_trials(name: str) -> None:
    def regret(strategy: str, seed: int) -> float:
        study = study_of(strategy, BOWL, BOWL_START, seed, direction="minimize")
        climb(study, 40, bowl)
        return study.best_value

    ours, uniform = ([regret(kind, seed) for seed in range(3)] for kind in (name, "random"))
    assert np.median(ours) < np.median(uniform)


@pytest.mark.parametrize("name", ALL)
def test_it_goes_on_where_every_trial_failed_or_is_running(name: str) -> None:
    study = study_of(name)
    for number in range(12):
        trial = study.ask(MIXED.distributions())
        if number % 3:
            study.tell(trial, state=TrialState.FAIL)
    assert len({json.dumps(trial.params, sort_keys=True) for trial in study.trials}) == 12


@pytest.mark.parametrize("name", QUICK)
def test_a_space_that_is_used_up_goes_on(name: str) -> None:
    tiny = Space.from_dict({"a": {"low": 0, "high": 1, "int": True}, "b": {"choices": ["x", "y"]}})
    study = study_of(name, tiny, {"a": 0, "b": "x"})
    for _ in range(7):
        trial = study.ask(tiny.distributions())
        study.tell(trial, float(trial.params["a"]))
    assert study.best_value == 1.0


@pytest.mark.parametrize("name", OURS)
def test_a_locked_gene_stays_at_its_start_value(name: str) -> None:
    space = MIXED.lock(["choice", "log"])
    study = study_of(name, space)
    for _ in range(6):
        trial = study.ask(MIXED.distributions())
        assert (trial.params["choice"], trial.params["log"]) == ("AdamW", 1e-3)
        study.tell(trial, height(trial.params))
    assert len({trial.params["beta"] for trial in study.trials}) > 1  # AdamW has one, for good


@pytest.mark.parametrize("name", OURS)
def test_beyond_a_limit_nothing_becomes_a_parent(name: str) -> None:
    study = study_of(name, BOWL, BOWL_START, direction="minimize")
    climb(study, 1, bowl)
    bad = {key: 0.7 for key in BOWL.names}  # the best of all, but beyond its limit
    for _ in range(3):
        study.add_trial(
            optuna.trial.create_trial(
                params=bad,
                distributions=BOWL.distributions(),
                value=0.0,
                system_attrs={"constraints": [0.5]},
            )
        )
    children = np.array([BOWL.to_unit(study.ask(BOWL.distributions()).params) for _ in range(9)])
    to_start, to_bad = (
        np.median(np.abs(children - BOWL.to_unit(place)).mean(axis=1))
        for place in (BOWL_START, bad)
    )
    assert to_start < to_bad


@pytest.mark.skipif(not CAN_RECOMMEND, reason="there is no recommendation yet")
@pytest.mark.parametrize("name", [*OURS, "tpe"])
def test_the_start_values_are_recommended_only_if_nothing_else_was_measured(name: str) -> None:
    study = study_of(name, BOWL, BOWL_START)
    sampler: Any = study.sampler
    with pytest.raises(ValueError, match="no complete trial"):
        sampler.recommend(study)
    climb(study, 1, lambda params: 1.0)
    assert sampler.recommend(study).params == BOWL_START
    climb(study, 4, lambda params: 0.0)  # all worse than the start values
    found = sampler.recommend(study)
    assert found.params != BOWL_START
    assert found.params in [trial.params for trial in study.trials]
    assert found.n == 1
