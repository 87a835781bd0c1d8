"""Stopping early saves epochs and keeps the winner, and only where early epochs say something."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from evolve.config import Plugin
from evolve.curves import CheckOptions
from evolve.errors import ConfigError
from evolve.fidelity import (
    PRUNERS,
    CheckedPruner,
    ForecastPruner,
    build_pruner,
    final_values,
    forecast_final,
    may_be_pruned,
    rank_check,
    rank_text,
    saved_share,
)

EPOCHS = 9
RULES = ["successive-halving", "hyperband", "median", "forecast"]
Curve = Callable[[float, int], float]


def rising(height: float, epoch: int) -> float:
    """Curves that never cross: `height` is reached in 9 epochs."""
    return height * (1.0 - 0.5 ** (epoch + 1))


def crossing(height: float, epoch: int) -> float:
    """The worst at the end is the best in all epochs but the last."""
    return height if epoch == EPOCHS - 1 else -height


def late(height: float, epoch: int) -> float:
    """Nothing in the first four epochs, as mAP of a training from scratch."""
    return 0.0 if epoch < 4 else rising(height, epoch)


def run_curves(
    pruning: Plugin,
    count: int = 40,
    curve: Curve = rising,
    sign: float = 1.0,
    renewed: bool = False,
) -> optuna.Study:
    """Run random trials of value x; `sign` -1 minimises -x; `renewed` builds a pruner per call."""
    study = optuna.create_study(
        study_name="curves",
        direction="maximize" if sign > 0 else "minimize",
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=build_pruner(pruning),
    )
    for _ in range(count):
        trial = study.ask()
        height = trial.suggest_float("x", 0.0, 1.0)
        for epoch in range(EPOCHS):
            trial.report(sign * curve(height, epoch), epoch)
            if renewed:
                study.pruner = build_pruner(pruning)
            if trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            study.tell(trial, sign * curve(height, EPOCHS - 1))
    return study


def finished(
    values: Sequence[float], state: TrialState = TrialState.COMPLETE, kind: str = "search"
) -> FrozenTrial:
    """Return a trial with these reports; the last one is its value."""
    return create_trial(
        value=values[-1] if state == TrialState.COMPLETE else None,
        state=state,
        intermediate_values=dict(enumerate(values)),
        user_attrs={"kind": kind},
    )


def numbered(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    for number, trial in enumerate(trials):
        trial.number = number
    return list(trials)


def lengths(study: optuna.Study) -> list[int]:
    return [len(trial.intermediate_values) for trial in study.trials]


# ---- the rules


@pytest.mark.parametrize("name", RULES)
def test_forty_trials_cost_far_less_and_the_best_one_survives(name: str) -> None:
    study = run_curves(Plugin(name))
    best = max(study.trials, key=lambda trial: trial.params["x"])
    assert best.state == TrialState.COMPLETE
    assert saved_share(study.trials) > 0.25


@pytest.mark.parametrize("name", RULES)
def test_minimising_stops_the_same_trials(name: str) -> None:
    assert lengths(run_curves(Plugin(name), sign=-1.0)) == lengths(run_curves(Plugin(name)))


@pytest.mark.parametrize("name", RULES)
def test_nothing_is_remembered_outside_the_study(name: str) -> None:
    assert lengths(run_curves(Plugin(name), renewed=True)) == lengths(run_curves(Plugin(name)))


@pytest.mark.parametrize("name", RULES)
def test_nothing_is_stopped_before_enough_trials_are_whole(name: str) -> None:
    study = run_curves(Plugin(name, {"check_after": 12}))
    assert lengths(study)[:12] == [EPOCHS] * 12
    assert min(lengths(study)) < EPOCHS


@pytest.mark.parametrize("name", RULES)
def test_curves_that_cross_stop_nothing(name: str) -> None:
    assert saved_share(run_curves(Plugin(name), curve=crossing).trials) == 0.0


@pytest.mark.parametrize("name", RULES)
def test_a_step_where_all_values_are_equal_stops_nothing(name: str) -> None:
    study = run_curves(Plugin(name, {"min_rank": -1}), curve=late)
    assert min(lengths(study)) >= 5


def test_no_rule_stops_nothing() -> None:
    study = run_curves(Plugin("none"))
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
    assert saved_share(study.trials) == 0.0


def test_a_forecast_stops_what_cannot_end_among_the_best() -> None:
    study = run_curves(Plugin("forecast", {"best": 3}))
    whole = [trial.params["x"] for trial in study.trials if trial.state == TrialState.COMPLETE]
    pruned = [trial.params["x"] for trial in study.trials if trial.state == TrialState.PRUNED]
    assert max(pruned) < sorted(whole)[-3]


def test_the_few_luckiest_of_many_trials_are_not_what_a_trial_must_beat() -> None:
    equals = finished_noisily(200)
    newcomer = create_trial(
        state=TrialState.RUNNING,
        intermediate_values={0: 0.5, 1: 0.5},
        user_attrs={"kind": "search"},
    )
    study = optuna.create_study(direction="maximize")
    study.add_trials(equals)
    study.add_trial(newcomer)
    trial = study.trials[-1]
    assert ForecastPruner(share=0.0, chance=0.1).prune(study, trial)
    assert not ForecastPruner(chance=0.1).prune(study, trial)


def finished_noisily(count: int) -> list[FrozenTrial]:
    """Return trials that are all equally good: what differs is luck, early and late."""
    rng = np.random.default_rng(0)
    early, late_luck = rng.normal(0.5, 0.01, (2, count))
    values = zip(early.tolist(), (0.5 * (early + late_luck)).tolist(), strict=True)
    return [finished([0.5, first, last]) for first, last in values]


def test_start_values_and_repeats_are_measured_whole() -> None:
    kinds = {
        kind: may_be_pruned(create_trial(value=0.0, user_attrs={"kind": kind}))
        for kind in ("start", "search", "confirm")
    }
    assert kinds == {"start": False, "search": True, "confirm": False}


@pytest.mark.parametrize("name", PRUNERS)
def test_every_rule_is_built_by_its_name(name: str) -> None:
    pruner = build_pruner(Plugin(name))
    assert isinstance(pruner.rule if isinstance(pruner, CheckedPruner) else pruner, PRUNERS[name])


@pytest.mark.parametrize(
    ("pruning", "message"),
    [
        (Plugin("halving"), "pruning halving is not known; did you mean successive-halving"),
        (Plugin("median", {"n_startup": 3}), "no option n_startup; did you mean n_startup_trials"),
        (Plugin("none", {"rungs": 3}), "no option rungs"),
        (Plugin("none", {"min_rank": 0.2}), "no option min_rank"),
        (Plugin("successive-halving", {"reduction_factor": 1}), "reduction_factor"),
        (Plugin("median", {"check_after": 2}), "check_after=2 must be a whole number, at least 5"),
        (Plugin("median", {"min_rank": 1}), "min_rank=1 must be -1 to 1"),
        (Plugin("forecast", {"chance": 0.7}), "chance=0.7 must be 0 or more and below 0.5"),
        (Plugin("forecast", {"share": 1.0}), "share=1.0 must be 0 or more and below 1"),
        (Plugin("forecast", {"best": 0}), "best=0 must be a whole number, at least 1"),
    ],
)
def test_bad_rules_are_named(pruning: Plugin, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_pruner(pruning)


# ---- the rank check


def test_rank_check_by_hand() -> None:
    early = [2.0, 1.0, 3.0, 4.0, 5.0, 6.0]
    checks = rank_check([finished([value, end]) for end, value in enumerate(early)])
    # squared rank differences 1 + 1 = 2: 1 - 6 x 2 / (6 x 35) = 0.942857
    assert checks[0].spearman == pytest.approx(0.942857, abs=1e-6)
    # standard error sqrt((1 + 0.942857^2 / 2) / 3) = 0.693900; atanh = ln(34) / 2 = 1.763180
    low, high = (math.tanh(1.763180 + sign * 1.645 * 0.693900) for sign in (-1, 1))
    assert checks[0].interval == pytest.approx((low, high), abs=1e-5)
    assert (checks[0].step, checks[0].trials, checks[0].usable) == (0, 6, True)
    assert not checks[1].usable  # the last step saves nothing


def test_six_trials_in_no_order_are_not_usable() -> None:
    checks = rank_check([finished([value, end]) for end, value in enumerate([2, 5, 0, 3, 1, 4])])
    assert abs(checks[0].spearman) < 0.3
    assert not checks[0].usable


def test_the_check_is_undefined_where_nothing_differs() -> None:
    checks = rank_check([finished([0.0, 0.1 * end]) for end in range(20)])
    assert math.isnan(checks[0].spearman)
    assert not checks[0].usable


@pytest.mark.parametrize("maximize", [True, False])
def test_trials_that_were_stopped_do_not_hide_the_correlation(maximize: bool) -> None:
    rng = np.random.default_rng(0)
    early = rng.standard_normal(3000)
    final = 0.7 * early + math.sqrt(1 - 0.7**2) * rng.standard_normal(3000)
    whole = [finished([x, y]) for x, y in zip(early, final, strict=True)]
    stopped = [
        trial
        if (x > 0.5) == maximize
        else finished([x], TrialState.PRUNED)  # 69 % at one end of the range, or 31 % at the other
        for x, trial in zip(early, whole, strict=True)
    ]
    truth = rank_check(whole, maximize)[0].spearman
    survivors = [trial for trial in stopped if trial.state == TrialState.COMPLETE]
    assert rank_check(survivors, maximize)[0].spearman < truth - 0.1
    assert rank_check(stopped, maximize)[0].spearman == pytest.approx(truth, abs=0.08)


def test_chance_rarely_passes_the_check() -> None:
    rng = np.random.default_rng(1)
    passed = [
        rank_check([finished(list(rng.random(2))) for _ in range(count)])[0].usable
        for count in (6, 10, 20)
        for _ in range(200)
    ]
    assert np.mean(passed) < 0.05


def test_repeats_and_failures_are_no_evidence() -> None:
    good = [finished([0.1 * end, 0.1 * end]) for end in range(6)]
    odd = [
        finished([0.9, 0.0], kind="confirm"),
        finished([0.9], TrialState.FAIL),
        finished([0.9], TrialState.RUNNING),
    ]
    assert rank_check([*good, *odd])[0] == rank_check(good)[0]


def test_rank_text_names_the_first_usable_epoch() -> None:
    trials = [finished([0.0, 0.1 * end, 0.2 * end]) for end in range(8)]
    text = rank_text(rank_check(trials))
    assert text.startswith("epoch 2 of 3 ranks trials like the last one: rank correlation 0.98 (")
    assert text.endswith("over 8 whole trials. Earlier epochs say too little.")


def test_rank_text_says_why_nothing_is_stopped() -> None:
    values = [2, 5, 0, 3, 1, 4]
    text = rank_text(rank_check([finished([v, end]) for end, v in enumerate(values)]))
    assert "comes nearest" in text and "not enough to stop" in text
    assert "1 whole trials: too few" in rank_text(rank_check([finished([0.1, 0.2])]))
    assert rank_text([]) == rank_text(rank_check([create_trial(value=1.0)])) == ""


# ---- forecasts


def line(count: int, spread: float, seed: int = 0) -> list[FrozenTrial]:
    """Whole trials of final value 2 x + 1 with noise; x is the value at the first step."""
    rng = np.random.default_rng(seed)
    early = rng.random(count)
    noise = spread * rng.standard_normal(count)
    return [finished([x, 2 * x + 1 + e]) for x, e in zip(early, noise, strict=True)]


def test_a_stopped_trial_is_forecast_on_the_line_of_the_whole_ones() -> None:
    trials = numbered([*line(60, 0.01), finished([0.25], TrialState.PRUNED), finished([0.5, 2.0])])
    found = final_values(trials)
    assert list(found) == [60]
    mean, sd = found[60]
    assert mean == pytest.approx(1.5, abs=0.05)
    assert 0.005 < sd < 0.03
    assert forecast_final(trials[60], trials) == pytest.approx(found[60])


def test_a_collapsed_training_bends_no_line() -> None:
    trials = [*line(30, 0.01), *[finished([0.9, 0.0]) for _ in range(3)]]
    trials = numbered([*trials, finished([0.5], TrialState.PRUNED)])
    found = forecast_final(trials[-1], trials)
    assert found is not None
    assert found[0] == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("count", [6, 12, 40])
def test_nine_of_ten_final_values_are_in_the_90_percent_interval(count: int) -> None:
    rng = np.random.default_rng(2)
    inside = []
    for seed in range(300):
        x, noise = rng.random(), 0.3 * rng.standard_normal()
        trial = finished([x], TrialState.PRUNED)
        found = forecast_final(trial, numbered([*line(count, 0.3, seed), trial]))
        assert found is not None
        inside.append(abs(2 * x + 1 + noise - found[0]) < 1.645 * found[1])
    assert 0.85 < np.mean(inside) < 0.97


def test_forecasts_are_mirrored_when_minimising() -> None:
    trials = numbered([*line(20, 0.1), finished([0.2], TrialState.PRUNED)])
    mirrored = numbered(
        [finished([-v for v in t.intermediate_values.values()], t.state) for t in trials]
    )
    (mean, sd), (other, other_sd) = final_values(trials)[20], final_values(mirrored, False)[20]
    assert (other, other_sd) == pytest.approx((-mean, sd))


def test_running_trials_are_forecast_where_asked_for() -> None:
    trials = numbered([*line(20, 0.1), finished([0.2], TrialState.RUNNING)])
    assert final_values(trials) == {}
    assert list(final_values(trials, running=True)) == [20]


def test_there_is_no_forecast_from_nothing() -> None:
    few = numbered([*line(4, 0.1), finished([0.2], TrialState.PRUNED)])
    assert forecast_final(few[-1], few) is None
    assert final_values(few) == {}
    silent = numbered([*line(9, 0.1), create_trial(state=TrialState.PRUNED)])
    assert forecast_final(silent[-1], silent) is None
    assert final_values(silent) == {}
    assert final_values([]) == {}


def test_equal_early_values_forecast_the_average() -> None:
    whole = [finished([0.0, 0.1 * end]) for end in range(9)]
    trials = numbered([*whole, finished([0.01], TrialState.PRUNED)])
    found = forecast_final(trials[-1], trials)
    assert found is not None
    assert found[0] == pytest.approx(0.4)
    assert found[1] < 0.6


@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_curves_without_any_noise_are_forecast(slope: float) -> None:
    whole = [finished([end, slope * end]) for end in range(9)]
    trials = numbered([*whole, finished([4.0], TrialState.PRUNED)])
    assert final_values(trials)[9][0] == pytest.approx(4.0 * slope)


def test_three_hundred_trials_are_forecast_together() -> None:
    # each curve is a straight line: the third epoch of nine says that it ends at three times that
    # (a forecast leans a little towards the mean of all)
    whole = [finished([epoch * (1 + end / 300) for epoch in range(1, 10)]) for end in range(100)]
    stopped = [
        finished([epoch * (1 + end / 300) for epoch in range(1, 4)], TrialState.PRUNED)
        for end in range(200)
    ]
    found = final_values(numbered([*whole, *stopped]))
    for number in (100, 199, 299):
        assert found[number][0] == pytest.approx(9 * (1 + (number - 100) / 300), rel=0.01)


# ---- what was saved


def test_saved_share_is_what_was_not_run() -> None:
    def trial(epochs: int, state: TrialState, kind: str = "search") -> FrozenTrial:
        return create_trial(
            value=None if state == TrialState.FAIL else 0.5,
            state=state,
            intermediate_values={epoch: 0.1 for epoch in range(epochs)},
            user_attrs={"kind": kind},
        )

    trials = [
        trial(10, TrialState.COMPLETE, "start"),
        trial(4, TrialState.PRUNED),
        trial(1, TrialState.PRUNED),
        trial(3, TrialState.FAIL),  # was not stopped to save anything
        trial(10, TrialState.COMPLETE, "confirm"),  # nor can it be
    ]
    # 15 epochs of 3 x 10 were run
    assert saved_share(trials) == pytest.approx(0.5)
    assert saved_share([]) == 0.0


def test_a_trial_that_still_runs_has_saved_nothing_yet() -> None:
    trials = [
        finished([0.1] * 10),
        finished([0.1] * 2, TrialState.PRUNED),
        create_trial(state=TrialState.RUNNING, intermediate_values={0: 0.1}),
    ]
    assert saved_share(trials) == pytest.approx(0.4)


def test_a_check_is_done_with_the_options_of_the_study() -> None:
    trials = [finished([0.1 * end, 0.1 * end]) for end in range(6)]
    assert rank_check(trials)[0].usable
    assert not rank_check(trials, options=CheckOptions(check_after=7))[0].usable
    assert not rank_check(trials, options=CheckOptions(min_rank=0.95))[0].usable
