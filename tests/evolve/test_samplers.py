"""One conformance suite over every strategy, and what is special to ours."""

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.trial import TrialState, create_trial

from evolve import GeneticSampler
from evolve.config import Plugin
from evolve.errors import ConfigError
from evolve.samplers import NEEDS, STRATEGIES, build_sampler
from evolve.samplers.genetic import GeneticOptions, mutated, reflected
from evolve.space import Params, Space

AVAILABLE = [
    name
    for name in STRATEGIES
    if name not in NEEDS or importlib.util.find_spec(NEEDS[name]) is not None
]
MIXED = Space.from_dict(
    {
        "log": {"low": 1e-5, "high": 0.1, "log": True},
        "negative": {"low": -4.0, "high": -1.0},
        "from_zero": {"low": 0.0, "high": 1.0},
        "stepped": {"low": 0.0, "high": 0.9, "step": 0.3},
        "whole": {"low": 2, "high": 64, "log": True, "int": True},
        "choice": {"choices": ["SGD", "AdamW", "Adam"]},
    }
)
MIXED_START: Params = {
    "log": 1e-3,
    "negative": -4.0,
    "from_zero": 0.0,
    "stepped": 0.3,
    "whole": 16,
    "choice": "AdamW",
}
HILL = Space.from_dict({f"x{i}": {"low": 0.0, "high": 1.0} for i in range(10)})
HILL_START: Params = {f"x{i}": 0.15 if i % 2 else 0.85 for i in range(10)}


def sampler_of(
    name: str, space: Space = MIXED, start: Params = MIXED_START, seed: int = 0
) -> BaseSampler:
    return build_sampler(Plugin(name), space=space, start=start, seed=seed)


def mixed_fitness(params: Params) -> float:
    cube = MIXED.to_unit(params)
    return 1.0 - float(((cube - 0.6) ** 2).sum())


def new_study(name: str, start: Params = MIXED_START, **more: Any) -> optuna.Study:
    study = optuna.create_study(direction="maximize", sampler=sampler_of(name, start=start, **more))
    study.enqueue_trial(start)
    return study


def advance(
    study: optuna.Study,
    count: int,
    space: Space = MIXED,
    fitness: Callable[[Params], float] = mixed_fitness,
) -> list[Params]:
    """Run `count` trials; some of the mixed ones fail and one in ten is pruned."""
    proposals = []
    for _ in range(count):
        trial = study.ask(space.distributions())
        proposals.append(dict(trial.params))
        if space is MIXED and trial.number % 7 == 3:
            study.tell(trial, state=TrialState.FAIL)
        elif space is MIXED and trial.number % 10 == 4:
            trial.report(0.1, 0)
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, fitness(trial.params))
    return proposals


@pytest.fixture(autouse=True, scope="module")
def quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.mark.parametrize("name", AVAILABLE)
def test_proposals_keep_bounds_types_and_grids(name: str) -> None:
    study = new_study(name)
    running = study.ask(MIXED.distributions())  # the start values, still running
    proposals = advance(study, 14)
    assert dict(running.params) == MIXED_START
    distributions = MIXED.distributions()
    for params in proposals:
        assert params.keys() == set(MIXED.names)
        assert all(
            distributions[key]._contains(distributions[key].to_internal_repr(value))
            for key, value in params.items()
        )
        assert isinstance(params["whole"], int)
        assert params["stepped"] == pytest.approx(0.3 * round(params["stepped"] / 0.3))
    assert any(params["from_zero"] > 0 for params in proposals)  # a zero can leave zero
    assert all(params["negative"] < 0 for params in proposals)  # a sign is kept
    assert len({params["choice"] for params in proposals}) > 1


@pytest.mark.parametrize("name", AVAILABLE)
def test_a_reopened_study_goes_on_as_if_never_closed(name: str) -> None:
    whole = advance(new_study(name, seed=5), 14)  # the model of a borrowed sampler has two of them
    study = new_study(name, seed=5)
    parts = advance(study, 4)
    for count in (9, 1):  # a new sampler object knows nothing but the storage
        study = optuna.load_study(
            study_name=study.study_name, storage=study._storage, sampler=sampler_of(name, seed=5)
        )
        parts += advance(study, count)
    assert parts == whole


@pytest.mark.parametrize("name", [name for name in AVAILABLE if name != "gp"])
def test_another_seed_gives_other_proposals(name: str) -> None:
    first, second = (advance(new_study(name, seed=seed), 6) for seed in (0, 1))
    assert first[0] == second[0] == MIXED_START
    assert first[1:] != second[1:]


@pytest.mark.parametrize("name", ["genetic", "tpe"])
def test_it_beats_random_on_a_hill_started_off_centre(name: str) -> None:
    def climb(strategy: str, seed: int) -> float:
        sampler = sampler_of(strategy, HILL, HILL_START, seed)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.enqueue_trial(HILL_START)
        advance(study, 50, HILL, lambda params: -sum((x - 0.4) ** 2 for x in params.values()))
        return study.best_value

    ours = [climb(name, seed) for seed in range(3)]
    uniform = [climb("random", seed) for seed in range(3)]
    assert np.median(ours) > max(uniform)


@pytest.mark.parametrize("name", [name for name in AVAILABLE if name != "random"])
def test_the_first_proposals_stay_near_the_start_values(name: str) -> None:
    study = optuna.create_study(
        direction="maximize", sampler=sampler_of(name, HILL, HILL_START, seed=3)
    )
    study.enqueue_trial(HILL_START)
    proposals = advance(study, 8, HILL, lambda params: 0.0)  # flat: nothing pulls it away
    start = HILL.to_unit(HILL_START)
    distances = [np.abs(HILL.to_unit(params) - start).mean() for params in proposals[1:]]
    assert np.median(distances) < 0.15  # uniform proposals are 0.38 away on average


def test_an_unknown_strategy_lists_what_exists() -> None:
    with pytest.raises(ConfigError, match=r"guided is not known.*genetic, tpe, gp, cmaes, random"):
        sampler_of("guided")
    with pytest.raises(ConfigError, match="did you mean genetic"):
        sampler_of("genetics")


@pytest.mark.skipif("cmaes" in AVAILABLE, reason="the package cmaes is installed")
def test_a_missing_package_is_named() -> None:
    with pytest.raises(ConfigError, match="needs the package cmaes: pip install cmaes"):
        sampler_of("cmaes")


def test_options_are_checked() -> None:
    wrong = Plugin("genetic", {"elite": 3})
    with pytest.raises(ConfigError, match="no option elite; did you mean elites"):
        build_sampler(wrong, space=MIXED, start=MIXED_START, seed=0)
    for options, message in (
        ({"elites": 0}, r"elites=0 must be a whole number, at least 1"),
        ({"crossover": "often"}, r"crossover='often' must be 0 to 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_sampler(Plugin("genetic", options), space=MIXED, start=MIXED_START, seed=0)
    wrong = Plugin("tpe", {"seed": 3})
    with pytest.raises(ConfigError, match="tpe has no option seed"):
        build_sampler(wrong, space=MIXED, start=MIXED_START, seed=0)


def test_anybodys_sampler_is_found_by_name() -> None:
    named = Plugin("optuna.samplers:TPESampler", {"n_startup_trials": 3})
    assert isinstance(
        build_sampler(named, space=MIXED, start=MIXED_START, seed=0), optuna.samplers.TPESampler
    )
    for name, message in (
        ("optuna.samplers:Nothing", "Nothing"),
        ("no_such_module:Sampler", "No module named 'no_such_module'"),
        ("json:JSONDecoder", "not a subclass"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_sampler(Plugin(name), space=MIXED, start=MIXED_START, seed=0)


# ---- the genetic sampler


def genetic_study(**options: Any) -> optuna.Study:
    return optuna.create_study(direction="maximize", sampler=GeneticSampler(**options))


def test_start_values_come_first_without_being_queued() -> None:
    study = genetic_study(space=MIXED, start=MIXED_START)
    assert study.ask(MIXED.distributions()).params == MIXED_START


def test_failed_trials_are_never_parents() -> None:
    far = {f"x{i}": 1.0 for i in range(10)}
    study = genetic_study(space=HILL, start=HILL_START, options=GeneticOptions(global_share=0.0))
    study.add_trial(create_trial(params=HILL_START, distributions=HILL.distributions(), value=0.0))
    for _ in range(5):
        study.add_trial(
            create_trial(params=far, distributions=HILL.distributions(), state=TrialState.FAIL)
        )
    child = study.ask(HILL.distributions()).params
    unmoved = [name for name in HILL.names if child[name] == HILL_START[name]]
    assert unmoved  # mutation leaves some genes as the parent had them
    assert not any(child[name] == 1.0 for name in HILL.names)


def test_repeats_with_other_seeds_are_never_parents() -> None:
    high = {f"x{i}": 1.0 for i in range(10)}
    study = genetic_study(space=HILL, start=HILL_START, options=GeneticOptions(global_share=0.0))
    study.add_trial(create_trial(params=HILL_START, distributions=HILL.distributions(), value=0.0))
    study.add_trial(
        create_trial(
            params=high,
            distributions=HILL.distributions(),
            value=9.0,
            user_attrs={"kind": "confirm"},
        )
    )
    assert not any(value == 1.0 for value in study.ask(HILL.distributions()).params.values())


def test_running_trials_are_not_proposed_again() -> None:
    tiny = Space.from_dict({"a": {"low": 0, "high": 2, "int": True}, "b": {"choices": [1, 2]}})
    study = genetic_study(space=tiny, start={"a": 1, "b": 1})
    running = [study.ask(tiny.distributions()).params for _ in range(6)]
    assert len({tuple(sorted(params.items())) for params in running}) == 6  # all there are
    assert study.ask(tiny.distributions()).params.keys() == {"a", "b"}  # and it does not hang


def test_it_minimises_too() -> None:
    study = optuna.create_study(
        direction="minimize", sampler=GeneticSampler(space=HILL, start=HILL_START, seed=1)
    )
    advance(study, 40, HILL, lambda params: sum((x - 0.4) ** 2 for x in params.values()))
    assert study.best_value < 0.7 * study.trials[0].value


def test_it_needs_no_space_in_a_define_by_run_study() -> None:
    def objective(trial: optuna.Trial) -> float:
        kind = trial.suggest_categorical("kind", ["a", "b"])
        x = trial.suggest_float("x", -1.0, 1.0)
        n = trial.suggest_int("n", 1, 8)
        return -(x**2) - n + (kind == "a")

    first = optuna.create_study(
        direction="maximize", sampler=GeneticSampler(start={"x": 0.9, "n": 3, "kind": "b"}, seed=2)
    )
    first.optimize(objective, n_trials=40)
    assert first.trials[0].params == {"kind": "b", "x": 0.9, "n": 3}
    assert first.best_value > -1.2  # from -3.81; the best there is: 0
    second = optuna.create_study(direction="maximize", sampler=GeneticSampler(seed=2))
    second.optimize(objective, n_trials=12)  # without start values: uniform at first
    assert len({trial.params["n"] for trial in second.trials[:10]}) > 3


def test_a_gene_with_sigma_0_is_not_mutated() -> None:
    space = Space.from_dict(
        {"held": {"low": 0.0, "high": 1.0, "sigma": 0}, "free": {"low": 0.0, "high": 1.0}}
    )
    rng = np.random.default_rng(0)
    cube = space.to_unit({"held": 0.3, "free": 0.3})
    children = np.array([mutated(space, cube, rng) for _ in range(50)])
    held = space.names.index("held")
    assert (children[:, held] == cube[held]).all()
    assert (children[:, 1 - held] != cube[1 - held]).all()


def test_mutation_at_a_bound_turns_back_inside() -> None:
    # 1.25 is a quarter beyond 1, so a quarter below it; -0.5 mirrors at 0; 2.25 turns twice
    assert reflected(np.array([1.25, -0.5, 2.25, 0.5])).tolist() == [0.75, 0.5, 0.25, 0.5]


def test_a_short_step_moves_a_whole_gene_by_a_cell() -> None:
    space = Space.from_dict({"n": {"low": 1, "high": 4, "int": True, "sigma": 0.001}})
    rng = np.random.default_rng(0)
    children = [
        space.from_unit(mutated(space, space.to_unit({"n": 2}), rng))["n"] for _ in range(60)
    ]
    assert {1, 2, 3} <= set(children)
