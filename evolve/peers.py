"""Several processes at one study: whose a trial is, who has died, and who leads.

A trial that runs carries a lease, the user attribute `lease`: [owner, beat]. Its owner raises the
beat now and then. Whoever sees a beat stand still for the length of a lease, while the storage
answered all the time, takes the trial over; nobody compares clocks. A lease that was lost is found
at the next beat, and the result of the trial is not told.
"""

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Protocol

from optuna import Study, Trial
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from evolve.errors import StudyError
from evolve.machine import is_gone, process_name, short_name
from evolve.patience import Away, Patience, shared_storage, turn_of
from evolve.record import LEASE

log = logging.getLogger(__name__)

LEADER = "leader"  # user attribute of a study: [owner, beat] of the process that leads it
BEATS = 4  # in the time of a lease

Lease = list[Any]  # [owner, beat]; the owner is "" where nobody has it
Clock = Callable[[], float]


class Company(Protocol):
    """Those who run trials of a study beside us.

    `orphaned`: the last look saw trials without a living owner that were not taken over.
    """

    orphaned: bool

    def turn(self) -> Any:
        """Return a context in which nobody else begins trials; it gives a Turn."""

    def take(self, trial: Trial) -> None:
        """Make a trial ours."""

    def renew(self, trials: Iterable[Trial]) -> list[int]:
        """Show that our trials are alive; return the numbers of those that are not ours now."""

    def holds(self, trial: Trial) -> bool:
        """Return whether a trial is still ours."""

    def release(self, trials: Iterable[Trial]) -> None:
        """Give trials back: anybody may take them over at once."""

    def orphans(self, most: int) -> list[FrozenTrial]:
        """Return trials that run without a living owner, at most so many; they are ours now."""

    def busy(self) -> bool:
        """Return whether others have trials that may still come to an end, or come to us."""


class Alone:
    """One process owns the study: whatever runs when it begins was left by a dead one."""

    orphaned = False

    def __init__(self, study: Study) -> None:
        self._study = study
        self._looked = False

    def turn(self) -> Any:
        return turn_of(self._study._storage, self._study._study_id)

    def take(self, trial: Trial) -> None: ...

    def renew(self, trials: Iterable[Trial]) -> list[int]:
        return []

    def holds(self, trial: Trial) -> bool:
        return True

    def release(self, trials: Iterable[Trial]) -> None: ...

    def orphans(self, most: int) -> list[FrozenTrial]:
        if self._looked:
            return []
        self._looked = True
        return self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def busy(self) -> bool:
        return False


class Watch:
    """Which leases stand still: seen unchanged for `length` seconds of uninterrupted looking."""

    def __init__(self, length: float, now: Clock = time.monotonic) -> None:
        self._length, self._now = length, now
        self._seen: dict[Any, tuple[Lease, float]] = {}
        self._looked = now()

    def stale(self, leases: dict[Any, Lease]) -> list[Any]:
        """Return the keys of the leases whose owner is dead; look at least BEATS times a lease."""
        now = self._now()
        if now - self._looked > self._length / 2:  # we were away ourselves: begin to look anew
            self._seen.clear()
        self._looked = now
        self._seen = {key: seen for key, seen in self._seen.items() if key in leases}
        for key, lease in leases.items():
            if key not in self._seen or self._seen[key][0] != lease:
                self._seen[key] = (lease, now)
        return [key for key, lease in leases.items() if self._dead(key, lease, now)]

    def _dead(self, key: Any, lease: Lease, now: float) -> bool:
        released = bool(lease) and lease[0] == ""
        return (
            released
            or (bool(lease) and is_gone(lease[0]))
            or (now - self._seen[key][1] >= self._length)
        )


class Peers:
    """Several processes share the study through a server."""

    def __init__(
        self, study: Study, storage: Patience, length: float, now: Clock = time.monotonic
    ) -> None:
        self._study, self._patient = study, storage
        self.name = process_name()
        self._beat = 0
        self._watch = Watch(length, now)
        self._ours: set[int] = set()
        self.orphaned = False

    def turn(self) -> Any:
        return self._patient.turn(self._study._study_id)

    def take(self, trial: Trial) -> None:
        self._claim(trial.number, trial._trial_id)

    def renew(self, trials: Iterable[Trial]) -> list[int]:
        self._beat += 1
        lost = []
        for trial in trials:
            try:
                if self.holds(trial):
                    self._write(trial._trial_id)
                    continue
            except UpdateFinishedTrialError:
                log.info("trial %d was ended by another process", trial.number)
            lost.append(trial.number)
        self._ours -= set(lost)
        return lost

    def holds(self, trial: Trial) -> bool:
        frozen = self._study._storage.get_trial(trial._trial_id)
        return frozen.state == TrialState.RUNNING and lease_of(frozen)[:1] == [self.name]

    def release(self, trials: Iterable[Trial]) -> None:
        for trial in trials:
            if self.holds(trial):
                self._set(trial._trial_id, ["", self._beat])

    def orphans(self, most: int) -> list[FrozenTrial]:
        running = {trial.number: trial for trial in self._others()}
        every = self._watch.stale({number: lease_of(t) for number, t in running.items()})
        stale = every[:most]
        self.orphaned = len(every) > len(stale)
        found: list[FrozenTrial] = []
        if not stale:
            return found
        try:
            with self.turn() as turn:
                for seen in (running[number] for number in stale):
                    now = self._study._storage.get_trial(seen._trial_id)
                    if now.state == TrialState.RUNNING and lease_of(now) == lease_of(seen):
                        turn.check()
                        self._claim(now.number, now._trial_id)
                        found.append(now)
        except Away as error:  # what is ours by now goes on, the rest is looked at again
            log.debug("no turn: %s", error)
        return found

    def busy(self) -> bool:
        return bool(self._others())

    def _others(self) -> list[FrozenTrial]:
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [trial for trial in running if trial.number not in self._ours]

    def _claim(self, number: int, trial_id: int) -> None:
        """Make a trial ours; one whose claim got lost is found by its lease that stands still."""
        self._write(trial_id)
        self._ours.add(number)

    def _write(self, trial_id: int) -> None:
        """Show that a trial of ours is alive, in Optuna's own table of heartbeats too."""
        self._set(trial_id, [self.name, self._beat])
        heartbeat = getattr(self._patient, "record_heartbeat", None)
        if heartbeat is not None:
            heartbeat(trial_id)

    def _set(self, trial_id: int, lease: Lease) -> None:
        self._study._storage.set_trial_user_attr(trial_id, LEASE, lease)


def lease_of(trial: FrozenTrial) -> Lease:
    """Return [owner, beat] of a trial; empty if it never had one."""
    return list(trial.user_attrs.get(LEASE, []))


def company_of(study: Study, length: float) -> Company:
    """Return those who may run trials of a study beside us, as its storage allows."""
    storage = shared_storage(study._storage)
    return Alone(study) if storage is None else Peers(study, storage, length)


class Leadership:
    """The right to lead a study: to record it, to confirm it, to write its files."""

    def __init__(self, study: Study, length: float, notice: Callable[[str], None]) -> None:
        self._study, self._length, self._notice = study, length, notice
        self.name, self._beat = process_name(), 0
        self._shared = shared_storage(study._storage)

    def __enter__(self) -> "Leadership":
        self._wait()
        self._take()
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        if self._lease()[:1] == [self.name]:
            self._study.set_user_attr(LEADER, ["", self._beat])

    def renew(self) -> None:
        """Show that we lead. Raises: StudyError if another process does by now."""
        lease = self._lease()
        if lease[:1] != [self.name]:
            raise StudyError(
                f"study {self._study.study_name} is led by {short_name(str(lease[0]))} by now"
            )
        self._beat += 1
        self._study.set_user_attr(LEADER, [self.name, self._beat])

    def _wait(self) -> None:
        """Wait until the last leader is known to be dead. Raises: StudyError if it is alive."""
        watch, first, told = Watch(self._length), self._lease(), False
        while (lease := self._lease()) and not watch.stale({LEADER: lease}):
            who = short_name(str(lease[0]))
            if lease != first:
                raise StudyError(
                    f"study {self._study.study_name} is being run by {who}; `python -m evolve"
                    " worker` joins it if its storage is a database server"
                )
            if not told:
                self._notice(f"waiting {self._length:.0f} s for a sign of life of {who}")
                told = True
            time.sleep(min(1.0, self._length / BEATS))

    def _take(self) -> None:
        if self._shared is None:
            self._study.set_user_attr(LEADER, [self.name, self._beat])
            return
        seen = self._lease()
        while self._lease()[:1] != [self.name]:
            with suppress(Away), self._shared.turn(self._study._study_id):
                if self._lease() != seen:
                    raise StudyError(
                        f"study {self._study.study_name} was taken up by another process"
                    )
                self._study.set_user_attr(LEADER, [self.name, self._beat])

    def _lease(self) -> Lease:
        return list(self._study.user_attrs.get(LEADER, []))


def led(study: Study) -> bool:
    """Return whether a process leads the study, as far as its last word tells."""
    lease = study.user_attrs.get(LEADER, [])
    return bool(lease) and lease[0] != "" and not is_gone(str(lease[0]))
