"""Trials read by columns are those that Optuna reads itself."""

import math
from pathlib import Path

import optuna
import pytest
from optuna import Study
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from evolve.trial_rows import RowStorage

KINDS: dict[str, BaseDistribution] = {
    "lr0": FloatDistribution(1e-5, 0.1, log=True),
    "nbs": IntDistribution(1, 64),
    "optimizer": CategoricalDistribution(["SGD", "AdamW", None]),
}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db"


def fill(study: Study) -> None:
    """Add trials of every kind, some of them finished by hand."""
    params = {"optimizer": None, "lr0": 0.01, "nbs": 8}
    for value in (0.5, math.inf, -math.inf):
        study.add_trial(
            create_trial(
                value=value,
                params=params,
                distributions=KINDS,
                user_attrs={"kind": "start", "metrics": {"F1": 0.3}},
                system_attrs={"constraints": [0.1, -1.0]},
                intermediate_values={0: 0.1, 3: math.nan, 2: math.inf},
            )
        )
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={"reason": "diverged"}))
    study.enqueue_trial({"lr0": 0.02})
    running = study.ask(KINDS)
    running.report(0.25, 1)
    study.enqueue_trial({"nbs": 3})


def as_text(trials: list[FrozenTrial]) -> list[str]:
    """Return all that trials hold; NaN is not equal to itself, but its name is."""
    return [repr(sorted(vars(trial).items())) for trial in trials]


def test_the_trials_are_those_that_optuna_reads(url: str) -> None:
    study = optuna.create_study(storage=RowStorage(url), study_name="one")
    fill(study)
    fill(optuna.create_study(storage=study._storage, study_name="another"))
    for name in ("one", "another"):
        ours = optuna.load_study(storage=RowStorage(url), study_name=name).get_trials()
        theirs = optuna.load_study(storage=RDBStorage(url), study_name=name).get_trials()
        assert [trial.state.name for trial in ours] == [
            "COMPLETE",
            "COMPLETE",
            "COMPLETE",
            "FAIL",
            "RUNNING",
            "WAITING",
        ]
        assert [list(trial.params) for trial in ours] == [list(trial.params) for trial in theirs]
        for trial in (*ours, *theirs):  # nobody promises the order of these
            trial.user_attrs = dict(sorted(trial.user_attrs.items()))
            trial.intermediate_values = dict(sorted(trial.intermediate_values.items()))
        assert as_text(ours) == as_text(theirs)


def test_several_objectives_keep_their_order(url: str) -> None:
    directions = ["maximize", "minimize"]
    study = optuna.create_study(storage=RowStorage(url), study_name="two", directions=directions)
    study.add_trial(create_trial(values=[0.5, 12.0]))
    again = optuna.load_study(storage=RowStorage(url), study_name="two")
    assert again.trials[0].values == [0.5, 12.0]


def test_what_another_process_finishes_later_is_seen(url: str) -> None:
    study = optuna.create_study(storage=RowStorage(url), study_name="one")
    trial = study.ask(KINDS)
    reader = optuna.load_study(storage=RowStorage(url), study_name="one")
    assert reader.trials[0].state == TrialState.RUNNING
    study.tell(trial, 0.75)
    study.add_trial(create_trial(value=0.5))
    assert [trial.value for trial in reader.trials] == [0.75, 0.5]


def test_one_trial_is_that_which_optuna_reads(url: str) -> None:
    study = optuna.create_study(storage=RowStorage(url), study_name="one")
    fill(study)
    ours, theirs = RowStorage(url), RDBStorage(url)
    for trial in study.get_trials():
        pair = [storage.get_trial(trial._trial_id) for storage in (ours, theirs)]
        assert list(pair[0].params) == list(pair[1].params)
        for one in pair:
            one.user_attrs = dict(sorted(one.user_attrs.items()))
            one.intermediate_values = dict(sorted(one.intermediate_values.items()))
        assert as_text(pair[:1]) == as_text(pair[1:])
    with pytest.raises(KeyError, match="99"):
        ours.get_trial(99)


@pytest.mark.parametrize("many", [1000, 0])  # with 0, Optuna does it
def test_news_are_those_that_optuna_reads(
    url: str, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evolve.trial_rows.MANY", many)
    study = optuna.create_study(storage=RowStorage(url), study_name="one")
    fill(study)
    fill(optuna.create_study(storage=study._storage, study_name="another"))
    asked = [(set(), 3), ({1, 5}, 4), ({5}, 6), (set(), 99), ({7, 8}, 0)]
    for included, after in asked:
        ours, theirs = (
            storage._get_trials(study._study_id, None, included, after)
            for storage in (RowStorage(url), RDBStorage(url))
        )
        assert [(t._trial_id, t.state, t.params) for t in ours] == [
            (t._trial_id, t.state, t.params) for t in theirs
        ]
