"""Several processes at one study: leases, turns, what the dead leave; without a server."""

import threading
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna import Study, Trial
from optuna.trial import TrialState

from evolve.errors import StudyError
from evolve.machine import is_gone, process_name
from evolve.patience import Away, PatientStorage
from evolve.peers import LEADER, Leadership, Peers, Watch


class Clock:
    """A monotonic clock that stands still until it is told not to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def study() -> Study:
    return optuna.create_study(storage=PatientStorage("sqlite:///peers.db"))


@pytest.fixture
def join(study: Study) -> Callable[[str, Clock], Peers]:
    """Return a function that makes a process of this name, on a host of its own."""

    def make(name: str, clock: Clock) -> Peers:
        storage = study._storage._backend  # type: ignore[attr-defined]
        peers = Peers(study, storage, 60.0, clock)
        peers.name = name
        return peers

    return make


def look(peers: Peers, clock: Clock, seconds: float) -> list[int]:
    """Look for orphans every 5 s for so long; return the numbers of those that were taken over."""
    found: list[int] = []
    for _ in range(round(seconds / 5)):
        clock.seconds += 5
        found += [trial.number for trial in peers.orphans(9)]
    return found


def test_a_trial_is_taken_over_after_a_lease_without_a_beat_and_not_before(
    study: Study, join: Callable[[str, Clock], Peers]
) -> None:
    clock = Clock()
    owner, other = join("host-a/1", clock), join("host-b/2", clock)
    trial = study.ask()
    owner.take(trial)
    assert other.orphans(9) == []
    assert look(other, clock, 55) == []
    owner.renew([trial])
    assert look(other, clock, 55) == []
    assert owner.holds(trial) and other.busy()
    assert look(other, clock, 15) == [0]
    assert other.holds(trial) and not owner.holds(trial)
    assert owner.renew([trial]) == [0]  # its owner finds out, and gives it up
    assert look(owner, clock, 55) == []  # the new owner is alive as far as it can tell


def test_silence_while_the_storage_was_away_is_nobodys_death(
    study: Study, join: Callable[[str, Clock], Peers]
) -> None:
    clock = Clock()
    owner, other = join("host-a/1", clock), join("host-b/2", clock)
    owner.take(study.ask())
    assert look(other, clock, 20) == []
    clock.seconds += 300  # neither of them reached the storage
    assert look(other, clock, 55) == []
    assert look(other, clock, 15) == [0]


def test_what_is_given_back_or_left_by_a_dead_process_of_this_host_goes_on_at_once(
    study: Study, join: Callable[[str, Clock], Peers]
) -> None:
    clock = Clock()
    parts = process_name().split("/")
    dead = "/".join([*parts[:3], "999999", "1"])  # no process has this number
    assert is_gone(dead) and not is_gone(process_name()) and not is_gone("elsewhere/x/y/1/2")
    owner, late, other = join("a/1", clock), join(dead, clock), join("b/2", clock)
    given, left = study.ask(), study.ask()
    owner.take(given)
    late.take(left)
    owner.release([given])
    assert other.orphans(0) == [] and other.orphaned  # seen, and taken once there is room
    assert [trial.number for trial in other.orphans(1)] == [0]  # no more than asked for
    assert other.orphaned
    assert [trial.number for trial in other.orphans(9)] == [1]
    assert not other.orphaned


def test_a_trial_without_any_owner_is_found_too(
    study: Study, join: Callable[[str, Clock], Peers]
) -> None:
    clock = Clock()
    other = join("b/2", clock)
    study.ask()  # by a process that died before it could say whose it is
    assert look(other, clock, 55) == []
    assert look(other, clock, 15) == [0]


def test_a_trial_that_another_process_has_ended_is_not_ours(
    study: Study, join: Callable[[str, Clock], Peers]
) -> None:
    peers = join("a/1", Clock())
    trial = study.ask()
    peers.take(trial)
    study.tell(trial.number, 1.0)
    assert peers.renew([Trial(study, trial._trial_id)]) == [0]


def test_a_study_has_one_leader(study: Study) -> None:
    lines: list[str] = []
    with Leadership(study, 0.4, lines.append) as first:
        study.set_user_attr(LEADER, ["other-host/1", 7])
        with pytest.raises(StudyError, match="is led by other-host/1 by now"):
            first.renew()
    with Leadership(study, 0.4, lines.append) as second:  # which waited for a sign of life
        second.renew()
    assert lines == ["waiting 0 s for a sign of life of other-host/1"]
    assert study.user_attrs[LEADER][0] == ""


def test_leases_that_nobody_looks_at_are_forgotten() -> None:
    clock = Clock()
    watch = Watch(10.0, clock)
    assert watch.stale({1: ["a/1", 1]}) == []
    clock.seconds = 4
    assert watch.stale({}) == []
    clock.seconds = 8
    assert watch.stale({1: ["a/1", 1]}) == []
    clock.seconds = 12
    assert watch.stale({1: ["a/1", 1]}) == []


# ---- a storage that is away


class Flaky(PatientStorage):
    """A server's storage whose next calls fail as those of a server that is started anew."""

    faults = 0

    def _waits_for(self, error: Exception) -> bool:
        return isinstance(error, ConnectionError)

    def fail(self) -> None:
        if self.faults:
            self.faults -= 1
            raise ConnectionError("the server is starting up")


def test_a_call_waits_until_the_storage_is_back(caplog: pytest.LogCaptureFixture) -> None:
    storage = Flaky("sqlite:///flaky.db")
    storage.faults = 2
    assert storage.waited(lambda: storage.fail() or 5) == 5
    assert [r.getMessage() for r in caplog.records] == [
        "the study's storage is away: the server is starting up",
        "the study's storage is back",
    ]


def test_within_a_turn_nothing_is_tried_again() -> None:
    storage = Flaky("sqlite:///flaky.db")
    study = optuna.create_study(storage=storage)
    storage.faults = 1
    storage._turn = threading.get_ident()
    with pytest.raises(Away, match="starting up"):
        storage.waited(storage.fail)
    assert study.trials == []


def test_a_result_whose_answer_got_lost_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Flaky("sqlite:///flaky.db")
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    inner = optuna.storages.RDBStorage.set_trial_state_values

    def told_then_lost(self: Flaky, *arguments: object) -> bool:
        done = inner(self, *arguments)  # type: ignore[arg-type]
        self.fail()
        return done

    monkeypatch.setattr(optuna.storages.RDBStorage, "set_trial_state_values", told_then_lost)
    storage.faults = 1
    study.tell(trial, 0.5)
    assert [(t.state, t.value) for t in study.trials] == [(TrialState.COMPLETE, 0.5)]
    assert Path("flaky.db").is_file()
