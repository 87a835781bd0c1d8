"""What is written together is what Optuna would have written one by one, or nothing."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna import Study, Trial
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState

from evolve.patience import PatientStorage, TurnCache, turn_of
from evolve.trial_batch import Batch, together

KINDS: dict[str, BaseDistribution] = {
    "lr0": FloatDistribution(1e-5, 0.1, log=True),
    "optimizer": CategoricalDistribution(["SGD", "AdamW"]),
}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db"


@pytest.fixture
def study(url: str) -> Study:
    """Return a study with one trial, so that its storage knows the distributions."""
    made = optuna.create_study(storage=TurnCache(PatientStorage(url)), study_name="one")
    made.tell(made.ask(KINDS), 0.5)
    return made


def give(trial: Trial) -> None:
    """Give a trial its values and two attributes."""
    for name, kind in KINDS.items():
        trial._suggest(name, kind)
    trial.set_user_attr("kind", "search")
    trial.set_user_attr("seed", 7)


def as_optuna_reads(url: str, number: int) -> FrozenTrial:
    """Return a trial as Optuna's own storage reads it."""
    return optuna.load_study(storage=RDBStorage(url), study_name="one").get_trials()[number]


def test_all_is_written_at_the_end_and_nothing_before(study: Study, url: str) -> None:
    trial = study.ask()
    with together(trial):
        give(trial)
        assert as_optuna_reads(url, 1).params == {}
    kept = as_optuna_reads(url, 1)
    assert kept.params == trial.params and list(kept.params) == list(KINDS)
    assert kept.distributions == KINDS
    assert kept.user_attrs == {"kind": "search", "seed": 7}


def test_an_attribute_set_again_has_its_last_value(study: Study, url: str) -> None:
    trial = study.ask()
    trial.set_user_attr("spent", 1.5)
    with together(trial):
        trial.set_user_attr("spent", 2.5)
        trial.set_user_attr("spent", 3.5)
    assert as_optuna_reads(url, 1).user_attrs == {"spent": 3.5}


def test_of_another_trial_all_is_written_at_once(study: Study, url: str) -> None:
    first, second = study.ask(), study.ask()
    with together(first):
        second.set_user_attr("kind", "search")
        assert as_optuna_reads(url, 2).user_attrs == {"kind": "search"}


def test_after_an_error_nothing_is_written(study: Study, url: str) -> None:
    trial = study.ask()
    with pytest.raises(KeyboardInterrupt), together(trial):
        give(trial)
        raise KeyboardInterrupt
    assert as_optuna_reads(url, 1).params == {}
    trial.set_user_attr("kind", "start")  # at once again
    assert as_optuna_reads(url, 1).user_attrs == {"kind": "start"}


def test_a_trial_that_has_ended_takes_nothing(study: Study, url: str) -> None:
    trial = study.ask()
    with pytest.raises(UpdateFinishedTrialError), together(trial):
        give(trial)
        study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    kept = as_optuna_reads(url, 1)
    assert kept.params == {} and kept.user_attrs == {}


def test_a_lost_answer_does_no_harm(study: Study, url: str) -> None:
    trial = study.ask()
    storage = study._storage._backend  # type: ignore[attr-defined]
    row = {"param_name": "x", "param_value": 0.5, "distribution_json": "{}"}
    batch = Batch(trial._trial_id, {"x": {"trial_id": trial._trial_id, **row}})
    batch.user_attrs["k"] = {"trial_id": trial._trial_id, "key": "k", "value_json": "1"}
    storage._write(batch)
    storage._write(batch)
    assert storage.get_trial_param(trial._trial_id, "x") == 0.5


def test_another_kind_of_values_is_refused(study: Study) -> None:
    trial = study.ask()
    with pytest.raises(ValueError, match="Cannot set different distribution kind"), together(trial):
        trial._suggest("lr0", CategoricalDistribution([0.1, 0.2]))


def test_a_storage_that_cannot_do_it_writes_one_by_one() -> None:
    study = optuna.create_study(storage=InMemoryStorage())
    trial = study.ask()
    with together(trial):
        give(trial)
        assert study.get_trials()[0].user_attrs == {"kind": "search", "seed": 7}


def test_within_a_turn_the_trials_are_read_once(
    study: Study, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = optuna.load_study(storage=TurnCache(PatientStorage(url)), study_name="one")
    readings: list[int] = []
    read = PatientStorage._get_trials

    def counted(self: PatientStorage, study_id: int, **which: Any) -> list[FrozenTrial]:
        if self is study._storage._backend:  # type: ignore[attr-defined]
            readings.append(study_id)
        return read(self, study_id, **which)

    monkeypatch.setattr(PatientStorage, "_get_trials", counted)
    with turn_of(study._storage, study._study_id):
        assert len(study.get_trials()) == 1
        other.tell(other.ask(KINDS), 0.6)  # somebody who does not keep to the turns
        assert len(study.get_trials()) == 1 and len(readings) == 1
        study.enqueue_trial({"lr0": 0.02})  # what we begin is known without a look
        assert [trial.state.name for trial in study.get_trials()] == ["COMPLETE", "WAITING"]
        assert len(readings) == 1
        trial = study.get_trials(deepcopy=False)[-1]
        study._storage.set_trial_user_attr(trial._trial_id, "seed", 3)  # other writing is seen
        found = study.get_trials()
        assert found[-1].user_attrs == {"seed": 3} and len(readings) == 2
        assert [trial.state.name for trial in found] == ["COMPLETE", "COMPLETE", "WAITING"]
    other.tell(other.ask(KINDS), 0.7)  # it takes the one that was enqueued
    assert [trial.value for trial in study.get_trials()] == [0.5, 0.6, 0.7]
    other.tell(other.ask(KINDS), 0.8)
    assert len(study.get_trials()) == 4  # without a turn each reading is a new one
    other.tell(other.ask(KINDS), 0.9)
    with turn_of(study._storage, study._study_id):
        assert len(study.get_trials()) == 5  # and so is the first one of the next turn
