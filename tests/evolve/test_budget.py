"""What ends a search, on a clock of the test's own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optuna
import pytest
from optuna import Study
from optuna.distributions import FloatDistribution
from optuna.samplers import RandomSampler
from optuna.trial import TrialState, create_trial

from evolve.budget import CLOCK, STOPPED, Budget, gpu_seconds
from evolve.config import StudyOptions


@dataclass
class Clock:
    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds


class Decided(RandomSampler):
    """A sampler that wants to stop from `since` trials on."""

    def __init__(self, since: int) -> None:
        super().__init__(seed=0)
        self.since, self.asked = since, 0

    def stop_reason(self, study: Study) -> str:
        self.asked += 1
        return "going on does not pay" if len(study.trials) >= self.since else ""


def new_study(since: int = 10**6) -> Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(direction="maximize", sampler=Decided(since))


def add(study: Study, count: int = 1, state: str = "COMPLETE", **attributes: Any) -> None:
    for _ in range(count):
        study.add_trial(
            create_trial(
                state=TrialState[state],
                value=0.5 if state == "COMPLETE" else None,
                params={"x": 0.5},
                distributions={"x": FloatDistribution(0.0, 1.0)},
                user_attrs={"kind": "search", **attributes},
            )
        )


def budget_of(study: Study, clock: Callable[[], float] = float, **options: Any) -> Budget:
    """Return a budget on a clock; the usual one stands at 0."""
    gpus = options.pop("gpus", 0.0)
    return Budget(StudyOptions(**options), study, gpus=gpus, now=clock)


def test_generations_end_a_search_and_running_ones_count() -> None:
    study = new_study()
    add(study, 3)
    assert budget_of(study, generations=5).reached() == ""
    add(study, 1, "FAIL")
    add(study, 2, "RUNNING")
    assert budget_of(study, generations=5).reached() == "3 of 5 generations"
    add(study, 2)
    assert budget_of(study, generations=5).reached() == "5 of 5 generations"
    assert budget_of(new_study(), generations=0).reached() == ""  # the start values are measured


def test_no_trial_begins_that_would_end_after_the_hours() -> None:
    study, clock = new_study(), Clock()
    budget = budget_of(study, clock, hours=1)
    assert budget.reached() == ""
    add(study, 1, seconds=600.0)
    add(study, 2, seconds=1200.0)  # the median
    clock.seconds = 3600.0 - 1200.0
    assert budget.reached() == ""
    clock.seconds += 1.0
    assert budget.reached() == "the next trial would end after the 1 hours"
    assert budget.seconds_left() == 1199.0
    clock.seconds = 3600.0
    assert budget.reached() == "1 hours are over"
    assert budget.seconds_left() == 0.0


def test_hours_are_those_of_all_runs_of_a_study() -> None:
    study, clock = new_study(), Clock(500.0)
    first = budget_of(study, clock, hours=0.5)
    clock.seconds += 1000.0
    first.save()
    assert study.user_attrs[CLOCK] == 1000.0
    later = Clock(9e9)
    second = budget_of(study, later, hours=0.5)
    assert second.reached() == ""
    later.seconds += 800.0
    assert second.seconds == 1800.0
    assert second.reached() == "0.5 hours are over"


def test_gpu_hours_are_seconds_times_gpus_also_of_failed_and_running_trials() -> None:
    study = new_study()
    add(study, 2, seconds=1000.0, gpus=1.0)
    add(study, 1, "FAIL", seconds=500.0, gpus=1.0)
    add(study, 1, "RUNNING", spent=200.0, gpus=0.5)
    add(study, 1, seconds=7777.0)  # on a CPU
    assert gpu_seconds(study.trials) == 2000.0 + 500.0 + 0.5 * 200.0
    # the running one is expected to take the median, 1000 s
    assert gpu_seconds(study.trials, 1000.0) == 2000.0 + 500.0 + 0.5 * 1000.0
    hour = budget_of(study, gpu_hours=1.0, gpus=1.0)
    assert hour.reached() == "the next trial would end after the 1 GPU-hours"
    assert budget_of(study, gpu_hours=1.2, gpus=1.0).reached() == ""
    assert budget_of(study, gpu_hours=0.5, gpus=1.0).reached() == "0.5 GPU-hours are over"
    assert hour.seconds_left() == pytest.approx((3600.0 - 2600.0) / 1.0)
    assert budget_of(study).seconds_left() is None


def test_a_search_ends_by_itself_after_thirty_generations_at_the_earliest() -> None:
    study = new_study(since=10)
    add(study, 29)
    assert budget_of(study).reached() == ""
    assert study.sampler.asked == 0  # type: ignore[attr-defined]
    add(study)
    assert budget_of(study, early_stop=False).reached() == ""
    assert budget_of(study).reached() == "going on does not pay"
    assert study.user_attrs[STOPPED]["generations"] == 30


def test_a_stop_holds_until_more_generations_are_asked_for() -> None:
    study = new_study(since=10)
    add(study, 30)
    assert budget_of(study, generations=100).reached() == "going on does not pay"
    assert budget_of(study, generations=100).reached() == "going on does not pay"
    assert study.sampler.asked == 1  # type: ignore[attr-defined]
    assert budget_of(study, generations=200).reached() == ""  # for thirty more, unasked
    assert study.sampler.asked == 1  # type: ignore[attr-defined]
    add(study, 30)
    assert budget_of(study, generations=200).reached() == "going on does not pay"


def test_a_sampler_without_an_opinion_never_stops() -> None:
    study = optuna.create_study(direction="maximize", sampler=RandomSampler(seed=0))
    add(study, 50)
    assert budget_of(study).reached() == ""
