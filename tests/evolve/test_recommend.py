"""Recommendations and the guided search: luck, start values, earlier studies, limits, durations."""

import math
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from evolve import GuidedSampler, Space
from evolve.recommend import UNMEASURED, recommendations, surest_blend
from evolve.samplers import merit
from evolve.samplers.guided import GuidedOptions

LINE = Space.from_dict({"x": {"low": 0.0, "high": 1.0}})
BOWL = Space.from_dict({f"x{i}": {"low": 0.0, "high": 1.0} for i in range(4)})
BOWL_START = dict.fromkeys(BOWL.names, 0.2)


def trial(number: int, x: float, value: float | None, **attributes: Any) -> FrozenTrial:
    state = TrialState.FAIL if value is None else TrialState.COMPLETE
    kinds = LINE.distributions()
    made = create_trial(
        params={"x": x}, distributions=kinds, value=value, state=state, user_attrs=attributes
    )
    made.number = number
    return made


def bowl(params: dict[str, float]) -> float:
    return -sum((value - 0.6) ** 2 for value in params.values())


def run(sampler: GuidedSampler, count: int, noise: float = 0.0, **attributes: Any) -> optuna.Study:
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for name, value in attributes.items():
        study.set_user_attr(name, value)
    for number in range(count):
        asked = study.ask(BOWL.distributions())
        luck = np.random.default_rng(number).standard_normal()
        study.tell(asked, bowl(asked.params) + noise * luck)
    return study


def test_a_lucky_value_among_bad_neighbours_is_not_recommended() -> None:
    # around 0.2 everything is near 0 but one value of 1.0; around 0.8 everything is near 0.8
    noise = [0.02, -0.03, 0.01, 0.0, -0.01, 0.03]
    bad = [trial(i, 0.2 + 0.01 * i, noise[i]) for i in range(6)]
    good = [trial(10 + i, 0.8 + 0.01 * i, 0.8 + noise[i]) for i in range(6)]
    lucky = trial(20, 0.225, 1.0)
    best = recommendations([trial(30, 0.5, 0.3), *bad, *good, lucky], LINE, {"x": 0.5})[0]
    assert best.params["x"] >= 0.8
    assert best.mean < 1.0
    assert best.interval[0] < best.mean < best.interval[1]


def test_repeats_are_one_configuration_and_make_it_surer() -> None:
    luck = 0.05 * np.random.default_rng(0).standard_normal(16)
    spread = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.9, 1.0)
    others = [trial(i, x, 0.1 * x + luck[i]) for i, x in enumerate(spread)]
    once = recommendations([*others, trial(15, 0.7, 0.1)], LINE, {"x": 0.0})
    again = [trial(16 + i, 0.7, 0.1 + luck[8 + i], kind="confirm") for i in range(8)]
    often = recommendations([*others, trial(15, 0.7, 0.1), *again], LINE, {"x": 0.0})
    (first,) = (item for item in once if item.trial == 15)
    (later,) = (item for item in often if item.trial == 15)
    assert (first.n, later.n) == (1, 9)
    assert np.ptp(later.interval) < np.ptp(first.interval)


def test_neighbours_make_a_place_as_sure_as_four_measurements_at_most() -> None:
    luck = 0.1 * np.random.default_rng(0).standard_normal(60)
    crowd = [trial(i, 0.5 + 0.001 * i, luck[i]) for i in range(60)]
    best = recommendations(crowd, LINE, {"x": 0.0})[0]
    assert best.n == 1
    # half a 90 % interval is 1.645 standard errors, and an error is sd / sqrt(4)
    assert np.ptp(best.interval) / 2 == pytest.approx(1.645 * best.sd / 2, rel=1e-3)


def test_the_start_values_are_recommended_only_if_nothing_else_was_measured() -> None:
    alone = [trial(0, 0.5, 1.0)]
    assert recommendations(alone, LINE, {"x": 0.5})[0].trial == 0
    beside = [*alone, trial(1, 0.6, 0.9)]
    assert [item.trial for item in recommendations(beside, LINE, {"x": 0.5})] == [1]


WIDE = Space.from_dict({f"x{i}": {"low": 0.0, "high": 1.0} for i in range(12)})
WIDE_START = dict.fromkeys(WIDE.names, 0.4)


def scattered(seed: int, space: Space, **attributes: Any) -> list[FrozenTrial]:
    """Return 24 noisy trials around the start values of a wide bowl; a choice does not matter."""
    rng, made = np.random.default_rng(seed), []
    for number in range(24):
        cube = np.clip(0.4 + 0.2 * rng.standard_normal(len(space.genes)), 0.0, 1.0)
        params = space.from_unit(cube)
        height = bowl({name: params[name] for name in WIDE.names})
        value = height + 0.2 * rng.standard_normal()
        kinds = space.distributions()
        made.append(create_trial(params=params, distributions=kinds, value=value, **attributes))
        made[-1].number = number
    return made


def test_under_noise_a_blend_of_the_best_is_better_than_each() -> None:
    gains, inside = [], []
    for seed in range(10):
        trials = scattered(seed, WIDE)
        best = recommendations(trials, WIDE, WIDE_START)[0]
        blend = surest_blend(trials, WIDE, WIDE_START)
        if blend is None:
            continue
        gains.append(bowl(blend.params) - bowl(best.params))
        inside.append(blend.interval[0] < bowl(blend.params) < blend.interval[1])
        assert (blend.trial, blend.n) == (UNMEASURED, 0) and blend.sd == best.sd
    assert len(gains) >= 7
    assert np.mean(gains) > 0.1 and np.mean(np.greater(gains, 0.0)) >= 0.75
    assert np.mean(inside) >= 0.8


def test_a_blend_stands_on_the_grid_and_takes_the_choices_of_the_best() -> None:
    genes = {name: {"low": 0.0, "high": 1.0, "step": 0.125} for name in WIDE.names}
    space = Space.from_dict({**genes, "kind": {"choices": ["a", "b", "c"]}})
    start, trials = {**space.middle(), **WIDE_START}, scattered(0, space)
    blend = surest_blend(trials, space, start)
    assert blend is not None
    assert all(blend.params[name] % 0.125 == 0.0 for name in WIDE.names)
    assert blend.params["kind"] == recommendations(trials, space, start)[0].params["kind"]
    assert all(blend.params != trial.params for trial in trials)


def test_nothing_is_blended_under_limits_nor_of_few_trials() -> None:
    limited = scattered(0, WIDE, system_attrs={"constraints": [-1.0]})
    assert surest_blend(limited, WIDE, WIDE_START) is None
    assert surest_blend(scattered(0, WIDE)[:5], WIDE, WIDE_START) is None


def test_the_last_trial_of_a_known_number_measures_the_blend() -> None:
    known = GuidedSampler(space=BOWL, start=BOWL_START, budget=20)
    study = run(known, 19, noise=0.15)
    named = known.recommend(study)
    assert named.trial == UNMEASURED
    last = study.ask(BOWL.distributions())
    assert last.params == named.params
    unknown = GuidedSampler(space=BOWL, start=BOWL_START)
    assert unknown.recommend(study).params == named.params
    assert run(unknown, 20, noise=0.15).trials[-1].params != named.params


def test_fewer_is_better_where_a_study_minimises() -> None:
    trials = [trial(i, 0.1 * i, abs(0.1 * i - 0.7)) for i in range(10)]
    best = recommendations(trials, LINE, {"x": 0.0}, maximize=False)[0]
    assert best.params["x"] == pytest.approx(0.7)
    assert best.mean == pytest.approx(0.0, abs=0.1)


def test_nothing_is_recommended_where_nothing_is_complete() -> None:
    assert recommendations([trial(0, 0.5, None)], LINE, {"x": 0.5}) == []


def test_guided_search_reaches_the_bottom_of_a_noise_free_bowl() -> None:
    sampler = GuidedSampler(space=BOWL, start=BOWL_START)
    study = run(sampler, 40)
    start = bowl(BOWL_START)  # 4 * 0.16 = 0.64 below the optimum
    assert bowl(sampler.recommend(study).params) > 0.005 * start


def test_an_estimate_knows_its_noise() -> None:
    sampler = GuidedSampler(space=BOWL, start=BOWL_START, seed=1)
    found = sampler.recommend(run(sampler, 60, noise=0.1))
    assert found.sd == pytest.approx(0.1, rel=0.5)
    assert found.interval[0] < bowl(found.params) < found.interval[1]


def test_an_earlier_study_of_the_same_problem_helps_and_a_reversed_one_is_dropped() -> None:
    rng = np.random.default_rng(0)
    tried = [dict(zip(BOWL.names, rng.random(4).tolist(), strict=True)) for _ in range(60)]

    def after(count: int, sign: float) -> float:
        prior = [{"params": params, "value": 7.0 + sign * bowl(params)} for params in tried]
        sampler = GuidedSampler(space=BOWL, start=BOWL_START)
        study = run(sampler, count, prior=prior if sign else [])
        return bowl(sampler.recommend(study).params)

    assert after(8, 1.0) > 0.25 * after(8, 0.0)  # both are negative: a quarter of the regret
    assert after(40, -1.0) > 0.02 * bowl(BOWL_START)


def test_where_trials_fail_the_search_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    failures, best = _at_a_cliff()
    assert best > -0.03  # at the cliff it is -0.01
    monkeypatch.setattr(merit, "_failures", lambda *_: None)
    unwarned, _ = _at_a_cliff()
    assert failures < 0.6 * unwarned


def _at_a_cliff() -> tuple[int, float]:
    """Return failures of 40 trials and the best value: x0 above 0.5 fails, the bottom is at 0.6."""
    sampler = GuidedSampler(space=BOWL, start=BOWL_START)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for _ in range(40):
        asked = study.ask(BOWL.distributions())
        if asked.params["x0"] > 0.5:
            study.tell(asked, state=TrialState.FAIL)
        else:
            study.tell(asked, bowl(asked.params))
    return len(study.get_trials(states=(TrialState.FAIL,))), bowl(study.best_params)


def test_a_limit_is_kept() -> None:
    sampler = GuidedSampler(space=BOWL, start=BOWL_START)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for _ in range(40):
        asked = study.ask(BOWL.distributions())
        beyond = sum(asked.params.values()) - 1.6
        study._storage.set_trial_system_attr(asked._trial_id, "constraints", [beyond])
        study.tell(asked, bowl(asked.params))
    best = sampler.recommend(study).params
    assert sum(best.values()) <= 1.6
    assert bowl(best) > -0.18  # the best within is -4 * 0.2^2 = -0.16


def test_cheap_trials_are_preferred_where_durations_count() -> None:
    def mean_cost(power: float) -> float:
        options = GuidedOptions(cost=power)
        sampler = GuidedSampler(space=BOWL, start=BOWL_START, options=options)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        costs = []
        for _ in range(30):
            asked = study.ask(BOWL.distributions())
            costs.append(math.exp(4.0 * asked.params["x3"]))
            asked.set_user_attr("seconds", costs[-1])
            study.tell(asked, bowl({**asked.params, "x3": 0.6}))  # x3 costs, and gains nothing
        return sum(costs[15:]) / 15

    assert mean_cost(1.0) < 0.8 * mean_cost(0.0)


def test_a_search_ends_by_itself_where_nothing_can_be_gained() -> None:
    sampler = GuidedSampler(space=LINE, start={"x": 0.5})
    study = optuna.create_study(direction="maximize", sampler=sampler)
    reasons = []
    for number in range(60):
        asked = study.ask(LINE.distributions())
        luck = 0.1 * np.random.default_rng(number).standard_normal()
        study.tell(asked, -0.01 * asked.params["x"] + luck)
        reasons.append(sampler.stop_reason(study))
    assert not any(reasons[:29])
    assert reasons[-1].startswith("another trial can hardly gain more than")


def test_a_search_goes_on_while_it_climbs() -> None:
    hills = Space.from_dict({f"x{i}": {"low": 0.0, "high": 1.0} for i in range(12)})
    start = dict.fromkeys(hills.names, 0.2)
    sampler = GuidedSampler(space=hills, start=start)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for _ in range(32):
        asked = study.ask(hills.distributions())
        study.tell(asked, bowl(asked.params))
    assert sampler.stop_reason(study) == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [({"startup": 0}, "startup=0"), ({"reach": 2.0}, "reach=2.0"), ({"cost": "x"}, "cost='x'")],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GuidedOptions(**options)


def test_length_scales_tell_which_gene_matters() -> None:
    def one_matters(params: dict[str, float]) -> float:
        return -4.0 * (params["x0"] - 0.6) ** 2

    sampler = GuidedSampler(space=BOWL, start=BOWL_START)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for _ in range(30):
        asked = study.ask(BOWL.distributions())
        study.tell(asked, one_matters(asked.params))
    lengths = sampler.length_scales(study)
    assert lengths["x0"] == min(lengths.values())


def test_it_works_behind_hyperband() -> None:
    pruner = optuna.pruners.HyperbandPruner(1, 9, 3)
    sampler = GuidedSampler(space=BOWL, start=BOWL_START)
    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
    for _ in range(14):
        asked = study.ask(BOWL.distributions())
        study.tell(asked, bowl(asked.params))
    assert bowl(study.best_params) > bowl(BOWL_START)


def test_start_values_outside_the_space_begin_at_its_edge() -> None:
    study = optuna.create_study(
        direction="maximize", sampler=GuidedSampler(space=BOWL, start={**BOWL_START, "x0": 1.2})
    )
    tried = []
    for _ in range(12):
        asked = study.ask(BOWL.distributions())
        tried.append(asked.params)
        study.tell(asked, bowl(asked.params))
    assert tried[0] == {**BOWL_START, "x0": 1.0}
    assert len({params["x1"] for params in tried}) > 5


def test_a_gene_without_sigma_never_moves() -> None:
    space = Space.from_dict({**BOWL.to_dict(), "x0": {"low": 0.0, "high": 1.0, "sigma": 0.0}})
    study = optuna.create_study(
        direction="maximize", sampler=GuidedSampler(space=space, start=BOWL_START)
    )
    for _ in range(25):
        asked = study.ask(space.distributions())
        study.tell(asked, bowl(asked.params))
    assert {trial.params["x0"] for trial in study.trials} == {0.2}


def test_a_start_beyond_a_limit_is_left() -> None:
    # everything within the limit is worse than the start values: all parents would be beyond
    sampler = GuidedSampler(space=BOWL, start=dict.fromkeys(BOWL.names, 0.6))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for _ in range(40):
        asked = study.ask(BOWL.distributions())
        beyond = sum(asked.params.values()) - 1.2
        study._storage.set_trial_system_attr(asked._trial_id, "constraints", [beyond])
        study.tell(asked, bowl(asked.params))
    best = sampler.recommend(study).params
    assert sum(best.values()) <= 1.2
    assert bowl(best) > -0.45  # the best within is -4 * 0.3^2 = -0.36


def test_a_noise_free_search_is_not_ended_by_what_the_model_cannot_follow() -> None:
    space = Space.from_dict({f"x{i}": {"low": 0.0, "high": 1.0} for i in range(12)})

    def wavy(params: dict[str, float]) -> float:
        return bowl(params) + 0.3 * sum(math.cos(40.0 * value) for value in params.values())

    sampler = GuidedSampler(space=space, start=dict.fromkeys(space.names, 0.3))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for _ in range(45):
        asked = study.ask(space.distributions())
        study.tell(asked, wavy(asked.params))
        assert sampler.stop_reason(study) == ""


def test_infinite_and_huge_values_are_left_out() -> None:
    trials = [trial(i, 0.1 * i, 0.1 * i) for i in range(8)]
    wild = [trial(20, 0.95, 1e300), trial(21, 0.97, -math.inf)]
    best = recommendations([*trials, *wild], LINE, {"x": 0.0})[0]
    assert best.trial == 7
    assert math.isfinite(best.mean)
