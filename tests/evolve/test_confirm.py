"""The verdict does not claim more than the repeats show. Arithmetic is worked by hand."""

import math
from typing import Any

import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from evolve.config import ConfirmOptions
from evolve.confirm import configurations, judge, missing_repeat, paired_gain, student_t
from evolve.record import repeat_seed, trial_seed

ONE_FINALIST = ConfirmOptions(finalists=1, seeds=2)


class Trials(list[FrozenTrial]):
    """A study's trials, one added after the other."""

    def put(
        self, x: float, value: float | None, kind: str = "search", state: str = "", **attrs: Any
    ) -> None:
        failed = TrialState.FAIL if value is None else TrialState.COMPLETE
        trial = create_trial(
            value=value,
            state=TrialState[state] if state else failed,
            params={"x": x},
            distributions={"x": FloatDistribution(0.0, 1.0)},
            user_attrs={"kind": kind, **attrs},
        )
        trial.number = len(self)
        self.append(trial)

    def repeat(self, of: int, values: list[float]) -> None:
        for index, value in enumerate(values):
            self.put(self[of].params["x"], value, "confirm", of=of, repeat=index)


def search() -> Trials:
    """Start values 0.40, then 0.50, 0.45, a failure and a pruned trial."""
    trials = Trials()
    trials.put(0.1, 0.40, "start")
    trials.put(0.2, 0.50)
    trials.put(0.3, 0.45)
    trials.put(0.4, None, reason="diverged")
    trials.put(0.5, 0.9, state="PRUNED")
    return trials


def test_quantiles_are_those_of_the_printed_tables() -> None:
    # two-sided 90 % by degrees of freedom; and 95 %, 99 %
    table = {1: 6.314, 2: 2.920, 3: 2.353, 4: 2.132, 5: 2.015, 9: 1.833, 30: 1.697}
    for freedom, t in table.items():
        assert student_t(0.90, freedom) == pytest.approx(t, abs=6e-4)
    assert student_t(0.95, 4) == pytest.approx(2.776, abs=6e-4)
    assert student_t(0.99, 2) == pytest.approx(9.925, abs=6e-4)


def test_gain_is_the_mean_over_pairs_with_its_t_interval() -> None:
    gain = paired_gain({0: 0.40, 1: 0.44}, {0: 0.46, 1: 0.52})
    # differences 0.06 and 0.08: mean 0.07, sd = sqrt(2 * 0.01^2 / 1) = 0.014142
    assert gain.mean == pytest.approx(0.07)
    assert gain.sd == pytest.approx(0.0141421, abs=1e-7)
    # half width = 6.3138 * 0.0141421 / sqrt(2) = 6.3138 * 0.01 = 0.063138
    assert (gain.low, gain.high) == (
        pytest.approx(0.006862, abs=1e-5),
        pytest.approx(0.133138, abs=1e-5),
    )
    assert gain.n == 2


def test_more_finalists_widen_the_interval() -> None:
    one = paired_gain({0: 0.0, 1: 0.0}, {0: 0.06, 1: 0.08}, compared=1)
    three = paired_gain({0: 0.0, 1: 0.0}, {0: 0.06, 1: 0.08}, compared=3)
    # Bonferroni: 1 - 0.1 / 3 inside; t with one degree of freedom is tan(pi / 2 * 0.96667) = 19.08
    assert three.mean == one.mean
    assert three.high - three.mean == pytest.approx(19.081 * 0.01, abs=1e-5)


def test_only_pairs_count() -> None:
    gain = paired_gain({0: 0.4, 2: 0.5}, {0: 0.5, 1: 0.9})
    assert (gain.n, gain.mean) == (1, pytest.approx(0.1))
    assert math.isnan(gain.low)
    assert math.isnan(gain.sd)


def test_finalists_are_the_best_complete_ones_beside_the_start_values() -> None:
    found = configurations(search(), ConfirmOptions(finalists=5, seeds=1))
    assert [(c.of, c.is_start) for c in found] == [(0, True), (1, False), (2, False)]
    assert [c.of for c in configurations(search(), ONE_FINALIST)] == [0, 1]


def test_equal_values_are_one_finalist() -> None:
    trials = search()
    trials.put(0.2, 0.49)  # as trial 1
    trials.put(0.1, 0.99)  # as the start values
    assert [c.of for c in configurations(trials, ConfirmOptions(3, 1))] == [0, 1, 2]


def test_every_configuration_gets_the_same_seeds_one_after_the_other() -> None:
    trials = search()
    asked = []
    while found := missing_repeat(trials, ONE_FINALIST):
        configuration, repeat = found
        asked.append((configuration.of, repeat))
        trials.put(configuration.params["x"], 0.5, "confirm", of=configuration.of, repeat=repeat)
    assert asked == [(0, 0), (1, 0), (0, 1), (1, 1)]


def test_a_failed_repeat_is_tried_twice_and_a_diverged_one_once() -> None:
    trials = search()
    trials.put(0.1, None, "confirm", of=0, repeat=0, reason="RuntimeError: x")
    again = missing_repeat(trials, ONE_FINALIST)
    assert again is not None
    assert (again[0].of, again[1]) == (0, 0)
    trials.put(0.1, None, "confirm", of=0, repeat=0, reason="RuntimeError: x")
    given_up = missing_repeat(trials, ONE_FINALIST)
    assert given_up is not None
    assert (given_up[0].of, given_up[1]) == (1, 0)
    trials = search()
    trials.put(0.1, None, "confirm", of=0, repeat=0, reason="diverged: NaN")
    given_up = missing_repeat(trials, ONE_FINALIST)
    assert given_up is not None
    assert (given_up[0].of, given_up[1]) == (1, 0)


def test_a_running_repeat_is_not_asked_twice() -> None:
    trials = search()
    trials.put(0.1, None, "confirm", state="RUNNING", of=0, repeat=0)
    found = missing_repeat(trials, ONE_FINALIST)
    assert found is not None
    assert (found[0].of, found[1]) == (1, 0)


def test_a_clear_gain_is_better() -> None:
    trials = search()
    trials.repeat(0, [0.40, 0.41])
    trials.repeat(1, [0.50, 0.515])
    verdict = judge(trials, ONE_FINALIST)
    # differences 0.100 and 0.105: mean 0.1025, sd 0.0035355, half width 6.3138 * 0.0025 = 0.0158
    assert verdict.word == "better"
    assert "gain over the start values +0.1025" in verdict.text
    assert "90 % interval +0.0867 to +0.1183" in verdict.text
    assert verdict.start is not None and verdict.recommended is not None
    assert verdict.start.mean == pytest.approx(0.405)
    assert verdict.recommended.mean == pytest.approx(0.5075)
    assert verdict.recommended.sd == pytest.approx(0.0106066, abs=1e-7)


def test_a_gain_within_the_noise_shows_no_difference() -> None:
    trials = search()
    trials.repeat(0, [0.40, 0.46])
    trials.repeat(1, [0.49, 0.47])
    # differences 0.09 and 0.01: mean 0.05, half width 6.3138 * 0.04 = 0.2526
    verdict = judge(trials, ONE_FINALIST)
    assert verdict.word == "no difference shown"
    assert verdict.recommended is not None
    assert verdict.recommended.configuration.of == 1


def test_a_clear_loss_is_worse_and_says_that_nothing_beat_the_start_values() -> None:
    trials = search()
    trials.repeat(0, [0.60, 0.61])
    trials.repeat(1, [0.50, 0.515])
    verdict = judge(trials, ONE_FINALIST)
    assert verdict.word == "worse"
    assert "no finalist beat the start values on average" in verdict.text


def test_the_recommended_finalist_has_the_best_mean_of_its_repeats() -> None:
    trials = search()
    trials.repeat(0, [0.40, 0.41])
    trials.repeat(1, [0.42, 0.43])  # best in the search, by luck
    trials.repeat(2, [0.50, 0.51])
    verdict = judge(trials, ConfirmOptions(finalists=2, seeds=2))
    assert verdict.recommended is not None
    assert verdict.recommended.configuration.of == 2
    assert "widened for choosing among 2 finalists" in verdict.text


def test_the_finalists_are_those_that_are_named() -> None:
    trials = search()
    trials.put(0.6, 0.3)
    found = configurations(trials, ConfirmOptions(2, 1), order=[5, 2, 1])
    assert [c.of for c in found] == [0, 5, 2]
    asked = missing_repeat(trials, ConfirmOptions(1, 1), order=[2])
    assert asked is not None and asked[0].of == 0


def test_a_better_estimate_outweighs_a_better_mean() -> None:
    trials = search()
    trials.repeat(0, [0.40, 0.41])
    trials.repeat(1, [0.52, 0.51])
    trials.repeat(2, [0.50, 0.51])
    verdict = judge(trials, ConfirmOptions(2, 2), estimates={1: 0.47, 2: 0.48})
    assert verdict.recommended is not None
    assert verdict.recommended.configuration.of == 2
    # the repeats alone: 0.515 against 0.505
    assert judge(trials, ConfirmOptions(2, 2)).recommended.configuration.of == 1  # type: ignore[union-attr]


def test_the_start_values_are_recommended_only_if_all_else_is_shown_to_be_worse() -> None:
    trials = search()
    trials.repeat(0, [0.60, 0.61])
    trials.repeat(1, [0.50, 0.51])
    verdict = judge(trials, ONE_FINALIST)
    assert verdict.recommended is verdict.start
    assert "nothing better than them was found" in verdict.text
    trials.repeat(2, [0.10, 0.80])  # so noisy that nothing is shown
    verdict = judge(trials, ConfirmOptions(2, 2), estimates={1: 0.55, 2: 0.45})
    assert verdict.word == "no difference shown"
    assert verdict.recommended is not None
    assert verdict.recommended.configuration.of == 2


def test_a_finalist_whose_repeats_are_beyond_a_limit_stands_behind() -> None:
    trials = search()
    trials.repeat(0, [0.40, 0.41])
    for index, value in enumerate([0.60, 0.61]):
        trials.put(0.2, value, "confirm", of=1, repeat=index)
        trials[-1]._system_attrs["constraints"] = [0.3]
    trials.repeat(2, [0.50, 0.51])
    verdict = judge(trials, ConfirmOptions(finalists=2, seeds=2))
    assert verdict.recommended is not None
    assert verdict.recommended.configuration.of == 2


def test_a_finalist_that_failed_a_repeat_stands_behind() -> None:
    trials = search()
    trials.repeat(0, [0.40, 0.41])
    trials.repeat(1, [0.90])
    trials.put(0.2, None, "confirm", of=1, repeat=1, reason="diverged: NaN")
    trials.repeat(2, [0.50, 0.51])
    verdict = judge(trials, ConfirmOptions(finalists=2, seeds=2))
    assert verdict.recommended is not None
    assert verdict.recommended.configuration.of == 2
    assert [measured.failed for measured in verdict.finalists] == [1, 0]


def test_one_repeat_cannot_show_a_difference() -> None:
    trials = search()
    trials.repeat(0, [0.40])
    trials.repeat(1, [0.80])
    verdict = judge(trials, ConfirmOptions(finalists=1, seeds=1))
    assert verdict.word == "no difference shown"
    assert "too few" in verdict.text


def test_what_is_not_confirmed_says_why() -> None:
    assert "confirm is off" in judge(search(), ConfirmOptions(0, 0)).text
    assert "are not done yet" in judge(search(), ONE_FINALIST).text
    only_start = Trials()
    only_start.put(0.1, 0.4, "start")
    assert "nothing but the start values" in judge(only_start, ONE_FINALIST).text
    failed = search()
    for of, x in ((0, 0.1), (1, 0.2)):
        for repeat in (0, 1):
            failed.put(x, None, "confirm", of=of, repeat=repeat, reason="diverged")
    assert "failed" in judge(failed, ONE_FINALIST).text
    assert {judge(t, ONE_FINALIST).word for t in (search(), only_start, failed)} == {
        "not confirmed"
    }


def test_repeats_have_seeds_of_their_own() -> None:
    repeats = {repeat_seed(0, index) for index in range(20)}
    searched = {trial_seed(0, number) for number in range(500)}
    assert len(repeats) == 20
    assert not repeats & searched
    assert len(searched) == 500
