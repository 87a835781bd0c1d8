import dataclasses
import itertools

import pytest

from detector import config
from detector.config import Hyp, TrainConfig, resolve
from detector.errors import ConfigError
from detector.schedule import FACTORS, WARMUPS, Schedule


def schedule(
    name: str, epochs: int, steps: int, kind: str = "quadratic", **values: float
) -> Schedule:
    hyp = Hyp(**{"warmup_epochs": 0, "no_aug_epochs": 0, **values})
    return Schedule(name, hyp, epochs, steps, kind)


def rates(plan: Schedule) -> list[float]:
    return [plan.learning_rate(step) for step in range(plan.steps)]


def test_every_name_that_can_be_chosen_has_a_function_and_nothing_else() -> None:
    assert set(FACTORS) == set(config.SCHEDULES)
    assert set(WARMUPS) == set(config.WARMUPS)


# ---- warm-up


@pytest.mark.parametrize(
    ("kind", "expected"),
    [  # lr0 * (i / 4) ** power for i = 1 .. 4, then the schedule
        ("linear", [0.25, 0.5, 0.75, 1.0, 1.0]),
        ("quadratic", [0.0625, 0.25, 0.5625, 1.0, 1.0]),
        ("burn-in", [1 / 256, 1 / 16, 81 / 256, 1.0, 1.0]),
    ],
)
def test_the_last_step_of_a_warmup_reaches_the_full_rate(kind: str, expected: list[float]) -> None:
    plan = schedule("constant", 10, 4, kind, lr0=0.16, warmup_epochs=1)
    assert rates(plan)[:5] == pytest.approx([0.16 * part for part in expected])


@pytest.mark.parametrize("kind", WARMUPS)
def test_one_batch_per_epoch_still_reaches_the_full_rate(kind: str) -> None:  # B-02
    plan = schedule("constant", 5, 1, kind, lr0=0.1, warmup_epochs=1)
    assert rates(plan) == pytest.approx([0.1] * 5)


@pytest.mark.parametrize("name", ["cosine", "linear", "exponential", "inverse", "multistep"])
def test_no_rate_is_zero_where_one_step_is_the_whole_run(name: str) -> None:  # B-03
    assert rates(schedule(name, 1, 1, lr0=0.1, lrf=0.01)) == pytest.approx([0.1])


def test_burn_in_leaves_the_schedule_after_it_alone() -> None:  # B-02
    burned = schedule("multistep", 10, 3, "burn-in", lr0=1.0, warmup_epochs=2)
    plain = schedule("multistep", 10, 3, lr0=1.0)
    assert rates(burned)[6:] == rates(plain)[6:]


def test_warmup_never_takes_more_than_half_of_the_run() -> None:  # B-40
    plan = schedule("cosine", 4, 5, lr0=0.1, warmup_epochs=100)
    assert plan.warmup == 10
    assert plan.learning_rate(9) == pytest.approx(0.1)
    assert plan.learning_rate(10) < 0.1


def test_warmup_starts_from_its_own_rate_and_momentum() -> None:
    plan = schedule("constant", 4, 2, lr0=0.1, warmup_epochs=1, warmup_lr=0.02, warmup_momentum=0.5)
    # a quarter of the way: 0.02 + 0.08 / 4, 0.5 + 0.4 / 4
    assert plan.learning_rate(0) == pytest.approx(0.04)
    assert plan.momentum(0) == pytest.approx(0.6)
    assert plan.momentum(1) == pytest.approx(0.9)


# ---- schedules


def test_cosine_is_halfway_at_half_time_and_ends_at_the_final_fraction() -> None:
    plan = rates(schedule("cosine", 1, 101, lr0=1.0, lrf=0.2))
    assert plan[0] == 1.0
    assert plan[50] == pytest.approx(0.6)  # 0.2 + 0.5 * 0.8 * (1 + cos(pi / 2))
    assert plan[100] == pytest.approx(0.2)


def test_yolox_has_its_cosine_between_warmup_and_tail() -> None:
    plan = rates(schedule("yolox", 10, 4, lr0=1.0, lrf=0.1, warmup_epochs=1, no_aug_epochs=2))
    assert plan[3] == 1.0  # the last step of the warm-up
    # steps 3 to 31 are x = 0 to 1; step 17 is in the middle: 0.1 + 0.45 * (1 + cos(pi / 2))
    assert plan[17] == pytest.approx(0.55)
    assert plan[30] > plan[31]
    assert plan[31:] == pytest.approx([0.1] * 9)  # the last step before the tail, and the tail


@pytest.mark.parametrize(("warmup", "tail"), [(5, 15), (12, 10)])
def test_yolox_without_room_for_its_cosine_is_refused(warmup: int, tail: int) -> None:  # B-40
    values = {"schedule": "yolox", "epochs": 20, "warmup_epochs": warmup, "no_aug_epochs": tail}
    with pytest.raises(ConfigError, match="leave nothing of epochs=20 for the cosine"):
        resolve(values)


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [(1, [1]), (2, [1, 1]), (5, [1, 1, 1, 1, 0.01]), (10, [1] * 8 + [0.1, 0.01])],
)
def test_multistep_falls_at_80_and_90_percent(epochs: int, expected: list[float]) -> None:  # B-01
    plan = schedule("multistep", epochs, 3, lr0=1.0)
    assert rates(plan)[::3] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [  # steps 0 to 4 are x = 0, 1/4, 1/2, 3/4, 1; lrf is 0.0001
        ("linear", [1.0, 0.750025, 0.50005, 0.250075, 0.0001]),  # 1 - 0.9999 x
        ("exponential", [1.0, 0.1, 0.01, 0.001, 0.0001]),  # 10 ** (-4 x)
        ("inverse", [1.0, 0.9991, 0.9901, 0.9001, 0.0001]),  # 1.0001 - 10 ** (-4 (1 - x))
    ],
)
def test_ramps_end_at_the_final_fraction(name: str, expected: list[float]) -> None:
    assert rates(schedule(name, 5, 1, lr0=1.0, lrf=1e-4)) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["exponential", "inverse"])
def test_a_power_of_zero_is_no_schedule(name: str) -> None:
    with pytest.raises(ConfigError, match=f"lrf=0.0 must be above 0 for schedule={name}"):
        resolve({"schedule": name, "lrf": 0})


@pytest.mark.parametrize("name", FACTORS)
def test_the_final_fraction_acts_exactly_where_its_rule_says(name: str) -> None:  # B-15
    fast, slow = (rates(schedule(name, 20, 2, warmup_epochs=1, lrf=lrf)) for lrf in (0.2, 0.1))
    dead = Hyp().dead(TrainConfig(schedule=name))
    assert (fast == slow) == ("lrf" in dead)


@pytest.mark.parametrize("name", FACTORS)
def test_no_schedule_rises_after_the_warmup(name: str) -> None:
    plan = rates(schedule(name, 20, 3, warmup_epochs=2, no_aug_epochs=4))
    assert all(earlier >= later for earlier, later in itertools.pairwise(plan[5:]))


@pytest.mark.parametrize("name", FACTORS)
def test_a_scale_multiplies_every_rate_and_no_momentum(name: str) -> None:
    plan = schedule(name, 12, 3, warmup_epochs=2, warmup_lr=0.001, warmup_momentum=0.5)
    twice = dataclasses.replace(plan, scale=2.0)
    assert rates(twice) == pytest.approx([2 * rate for rate in rates(plan)])
    assert [twice.momentum(s) for s in range(36)] == [plan.momentum(s) for s in range(36)]


def test_a_tail_that_fills_the_run_leaves_the_cosine_alone() -> None:
    short = schedule("cosine", 4, 10, lr0=1.0, lrf=0.1, no_aug_epochs=4)
    assert rates(short) == rates(schedule("cosine", 4, 10, lr0=1.0, lrf=0.1))
