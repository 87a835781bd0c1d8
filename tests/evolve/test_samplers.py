"""Strategies by name, and what is special to ours; test_conformance.py is the suite over all."""

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from evolve import GeneticSampler
from evolve.config import Plugin
from evolve.errors import ConfigError
from evolve.samplers import NEEDS, STRATEGIES, build_sampler
from evolve.samplers import seen as seen_module
from evolve.samplers.classic import ClassicSampler, child_value
from evolve.samplers.genetic import GeneticOptions, mutated, reflected
from evolve.samplers.seen import Seen
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


def advance(
    study: optuna.Study, count: int, space: Space, fitness: Callable[[Params], float]
) -> list[Params]:
    proposals = []
    for _ in range(count):
        trial = study.ask(space.distributions())
        proposals.append(dict(trial.params))
        study.tell(trial, fitness(trial.params))
    return proposals


@pytest.fixture(autouse=True, scope="module")
def quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


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
    with pytest.raises(ConfigError, match=r"annealing is not known.*genetic.*tpe, gp, cmaes"):
        sampler_of("annealing")
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


def test_failed_trials_are_fewer_where_they_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    # x0 above 0.3 fails, and up to there more is better: the search is drawn to the cliff
    space = Space.from_dict({f"x{i}": {"low": 0.0, "high": 1.0} for i in range(3)})

    def failures(seed: int) -> int:
        sampler = GeneticSampler(space=space, start={"x0": 0.2, "x1": 0.5, "x2": 0.5}, seed=seed)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for _ in range(40):
            trial = study.ask(space.distributions())
            fails = trial.params["x0"] > 0.3
            state = TrialState.FAIL if fails else TrialState.COMPLETE
            study.tell(trial, None if fails else trial.params["x0"], state=state)
        return len(study.get_trials(states=(TrialState.FAIL,)))

    warned = sum(failures(seed) for seed in range(6))
    monkeypatch.setattr(seen_module, "NEAR", 0.0)
    unwarned = sum(failures(seed) for seed in range(6))
    assert warned < 0.9 * unwarned


def test_failed_trials_warn_of_what_is_nearer_to_them_than_to_a_good_one() -> None:
    space = Space.from_dict({"x": {"low": 0.0, "high": 1.0, "sigma": 0.1}})

    def trial(x: float, state: TrialState) -> FrozenTrial:
        value = 0.0 if state == TrialState.COMPLETE else None
        kinds = space.distributions()
        return create_trial(params={"x": x}, distributions=kinds, state=state, value=value)

    fail, complete = TrialState.FAIL, TrialState.COMPLETE
    trials = [trial(0.5, fail), trial(0.52, fail), trial(0.45, complete)]
    seen = Seen(space, trials, {"x": 0.45})
    # 0.51 is 0.01 from both failures and 0.06 from the good one; 0.47 is 0.02, 0.03 and 0.05 away
    assert seen.warns_of({"x": 0.51})
    assert not seen.warns_of({"x": 0.47})
    assert not seen.warns_of({"x": 0.9})  # nobody has been near: 3.8 sigma
    assert not Seen(space, trials[1:], {"x": 0.45}).warns_of({"x": 0.51})  # a single failure


def test_every_finished_trial_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    absorb = Seen._absorb

    def counting(self: Seen, trial: FrozenTrial) -> None:
        looked.append(trial.number)
        absorb(self, trial)

    monkeypatch.setattr(Seen, "_absorb", counting)
    study = genetic_study()
    late = study.ask(HILL.distributions())  # the others end before it
    advance(study, 30, HILL, lambda params: sum(params.values()))
    assert sorted(looked) == list(range(1, 30))  # the last one has not been needed yet
    study.tell(late, 1.0)
    study.ask(HILL.distributions())
    assert sorted(looked) == list(range(31))


def test_it_minimises_too() -> None:
    study = optuna.create_study(
        direction="minimize", sampler=GeneticSampler(space=HILL, start=HILL_START, seed=1)
    )
    advance(study, 40, HILL, lambda params: sum((x - 0.4) ** 2 for x in params.values()))
    assert study.best_value < 0.7 * (study.trials[0].value or 0.0)


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


# ---- the classic rule


class Draws:
    """Stands for a generator: every uniform draw and every normal draw is the same."""

    def __init__(self, uniform: float, normal: float) -> None:
        self._uniform, self._normal = uniform, normal

    def random(self) -> float:
        return self._uniform

    def standard_normal(self) -> float:
        return self._normal


def classic(name: str, value: Any, normal: float = 1.0, uniform: float = 0.5, **keys: Any) -> Any:
    gene = Space.from_dict({name: keys}).genes[0]
    draws: Any = Draws(uniform, normal)
    return child_value(gene, value, draws)


def test_the_classic_rule_multiplies_by_its_sigmas_of_2019() -> None:
    assert classic("giou", 2.0, low=0, high=50) == pytest.approx(2.0 * 1.15**2)
    assert classic("momentum", 0.8, -2.0, low=0.6, high=0.95) == pytest.approx(0.8 * 0.9**2)
    assert classic("weight_decay", 0.005, low=0, high=0.01) == pytest.approx(0.005 * 1.1**2)
    assert classic("lr0", 0.009, low=1e-4, high=0.01) == 0.01  # clipped
    assert classic("lrf", 0.1, low=0, high=1) == 0.1  # sigma 0
    assert classic("lrf", 0.1, low=0, high=1, sigma=0.2) == pytest.approx(0.1 * 1.2**2)
    assert classic("box", 5.0, low=1, high=15) == pytest.approx(5.0 * 1.15**2)  # the gene's 0.15


def test_the_faults_of_the_classic_rule_are_mended() -> None:
    assert classic("giou", 0.0, low=0, high=10) == pytest.approx(1.5)  # 0.15 of the range
    assert classic("a", 0.0, low=0, high=1, log=True, shift=0.1) == pytest.approx(
        0.1 * 1.15**2 - 0.1
    )
    assert classic("a", -2.0, low=-4, high=-1) == pytest.approx(-2.0 * 1.15**2)
    assert classic("a", 0.1, -1.0, low=-1, high=1) == pytest.approx(0.1 - 0.3)  # passes 0
    assert classic("n", 3, 0.1, low=1, high=9, int=True) == 4  # 3.09 would be 3 for ever
    assert classic("n", 3, -0.1, low=1, high=9, int=True) == 2
    assert classic("k", "b", uniform=0.149, choices=["a", "b", "c"]) == "c"  # 0.149 / 0.15 of three
    assert classic("k", "b", uniform=0.151, choices=["a", "b", "c"]) == "b"


def test_the_classic_parent_is_the_first_of_the_best() -> None:
    space = Space.from_dict({f"x{i}": {"low": 0.0, "high": 1.0} for i in range(12)})
    study = optuna.create_study(direction="maximize")
    for place, value in ((0.3, 0.0), (0.5, 1.0), (0.8, 1.0), (0.1, math.nan)):
        study.add_trial(
            create_trial(
                params=dict.fromkeys(space.names, place),
                distributions=space.distributions(),
                value=None if math.isnan(value) else value,
                state=TrialState.FAIL if math.isnan(value) else TrialState.COMPLETE,
            )
        )
    study.sampler = ClassicSampler(space=space, start=dict.fromkeys(space.names, 0.3), seed=3)
    child = study.ask(space.distributions()).params
    factors = [math.sqrt(value / 0.5) - 1 for value in child.values()]  # sigma z
    assert 0 < np.median(np.abs(factors)) < 0.3
    assert len(set(factors)) == 12  # all genes move, each by a z of its own
