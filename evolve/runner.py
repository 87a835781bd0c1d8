"""Driving trials through workers: ask, run, report, tell; deaths, failures, reopening."""

import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from optuna import Study, Trial
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from evolve.config import StudyConfig
from evolve.description import keep_description
from evolve.display import Display
from evolve.errors import ConfigError, RunFailed
from evolve.failures import Failures, out_of_memory
from evolve.front import objective_values
from evolve.held_out import HELD_OUT
from evolve.jobs import Death, Job, Outcome, Pool, Report
from evolve.keep import Weights
from evolve.limits import constraints
from evolve.live import Every, Limits, Live, as_kept, complete_trial
from evolve.objective import Metrics, fitness_of
from evolve.patience import Away
from evolve.peers import Alone, Company
from evolve.problem import Problem
from evolve.record import (
    CONFIRM,
    CONSTRAINTS,
    DIVERGED,
    kind_of,
    ranking,
    reason_of,
)
from evolve.tracking import Tracker
from evolve.trial_batch import together
from evolve.trial_log import note

POLL = 0.5  # seconds between looks at the display when nothing happens
DEATHS = 2  # a trial goes on after so many deaths of its worker
SAVE = 30.0  # seconds between two notes of the time that running trials took
LIMITS = 1.0  # ... between two looks at their time limits


class Runner:
    """Runs trials of one study; the only one of its process who writes to it.

    `company` are the other processes that run trials of it. `look` is called now and then between
    events; it returns in words why no new trial may begin now, else nothing.
    """

    def __init__(
        self,
        config: StudyConfig,
        study: Study,
        problem: Problem,
        pool: Pool,
        tracker: Tracker,
        display: Display,
        company: Company | None = None,
    ) -> None:
        self.config = config
        self.study = study
        self.problem = problem
        self.company = company or Alone(study)
        self.failures = Failures()
        self.gpus = 0.0  # that a trial has
        self.look: Callable[[], str] = lambda: ""
        self.weights = Weights(config)
        self.told: set[int] = set()  # numbers of the trials that this process ended
        self._pool = pool
        self._tracker = tracker
        self._display = display
        self._live: dict[int, Live] = {}
        self._waiting: deque[Live] = deque()  # reopened, or their worker died
        self._limits = Limits(config.workers)
        self._saving, self._limiting = Every(SAVE), Every(LIMITS)
        self._beating = Every(config.workers.lease / 4)
        self._adopting = Every(config.workers.lease / 8)
        self._paused = ""  # why no new trial begins

    def ask(self, *, repeat: bool = False) -> Trial | None:
        """Return the next trial of the search, or a queued repeat; `_complete` gives it its values.

        None if there is no queued repeat. Call it in a turn.
        """
        storage, study_id = self.study._storage, self.study._study_id
        self.study._thread_local.cached_all_trials = None  # as Study.ask: samplers look anew
        for queued in self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            if (kind_of(queued) == CONFIRM) != repeat:
                continue
            if storage.set_trial_state_values(queued._trial_id, state=TrialState.RUNNING):
                return self._ours(queued._trial_id)
        return None if repeat else self._ours(storage.create_new_trial(study_id))

    def _ours(self, trial_id: int) -> Trial:
        trial = Trial(self.study, trial_id)
        self.company.take(trial)
        return trial

    def reopen(self) -> None:
        """Take up the trials that an earlier run of the study, or another process, left running."""
        for frozen in self.company.orphans(max(0, self._pool.free - len(self._waiting))):
            if frozen.number not in self._live:
                self._waiting.append(self._complete(Trial(self.study, frozen._trial_id)))
                self._display.notice(f"trial {frozen.number} goes on")

    def drive(
        self, next_trial: Callable[[], Trial | None], save: Callable[[], None] = lambda: None
    ) -> None:
        """Run trials until `next_trial` has none left and all have ended, those of others too.

        `save` is called now and then, and at the end.

        Raises: RunFailed when failures repeat, ConfigError when fitness cannot be computed.
        """
        try:
            while True:
                self._paused = self.look()
                more = self._fill(next_trial)
                if not (more or self._live or self._waiting or self.company.busy()):
                    break
                for event in self._pool.events(POLL):
                    self._handle(event)
                self._look_after(save)
                self._display.refresh()
        except BaseException:
            with suppress(Exception):  # Ctrl-C in the midst of a commit leaves no way to write
                self._note_times()
                save()
            raise
        save()

    @property
    def running(self) -> int:
        """Number of trials that this process has, with a worker or waiting for one."""
        return len(self._live) + len(self._waiting)

    @property
    def shared(self) -> bool:
        """Whether other processes may run trials of the study too."""
        return not isinstance(self.company, Alone)

    def heard(self, trial: FrozenTrial) -> None:
        """Count a trial that another process ended. Raises: RunFailed when failures repeat."""
        if trial.state == TrialState.FAIL:
            self.failures.add(reason_of(trial), any_good=bool(ranking(self._all_trials())))
        else:
            self.failures.clear()

    def give_back(self) -> None:
        """Let others go on with the trials that this process leaves unfinished, at once."""
        self.company.release([live.trial for live in (*self._live.values(), *self._waiting)])

    def _fill(self, next_trial: Callable[[], Trial | None]) -> bool:
        """Give every free worker a trial; return whether one may come although none did."""
        while self._pool.free:
            if self._waiting:
                if self._waiting[0].alone and not self._pool.can_be_alone():
                    return True  # until the others have ended
                self._begin(self._waiting.popleft())
                continue
            if self._paused:
                return True
            if self.company.orphaned:  # what was begun goes before what is new
                self.reopen()
                if self._waiting:
                    continue
            began = time.monotonic()
            try:
                with self.company.turn() as turn:
                    turn.check()
                    trial = next_trial()
            except Away:  # the storage, in the middle of it: the turn has to begin anew
                continue
            if trial is None:
                return False
            self._begin(self._complete(trial), asked=began)
        return True

    def _begin(self, live: Live, asked: float | None = None) -> None:
        try:
            self._submit(live, asked)
        except UpdateFinishedTrialError:  # another process took it over, and was first
            self._drop(live.number)

    def _look_after(self, save: Callable[[], None]) -> None:
        """Do what has to be done now and then: time limits, leases, notes."""
        if self._limiting.due():
            for live in self._live.values():
                live.over_time = live.over_time or self._limits.over(live)
                reason = live.over_time or self._limits.silent(live)
                if reason:
                    self._pool.cancel(live.number, reason)
            self._display.memory(self._pool.memory())
        if self._beating.due():
            held = [*self._live.values(), *self._waiting]
            for number in self.company.renew([live.trial for live in held]):
                self._drop(number)
        if self._adopting.due():
            self.reopen()  # at least looks for leases that stand still
        if self._saving.due():
            self._note_times()
            save()

    def _note_times(self) -> None:
        """Keep the seconds of running trials in the study, where a kill cannot take them."""
        for live in self._live.values():
            with suppress(UpdateFinishedTrialError):
                live.trial.set_user_attr("spent", round(live.seconds, 1))

    def _drop(self, number: int) -> None:
        """Give up a trial that another process has by now, or that has ended there."""
        if number in self._live:
            self._pool.cancel(number, "")
            del self._live[number]
        self._waiting = deque(live for live in self._waiting if live.number != number)
        self._display.trial_died(number)
        self._display.notice(f"trial {number} went to another process")

    # ---- one trial

    def _complete(self, trial: Trial) -> Live:
        return complete_trial(trial, self.problem.space, self.config)

    def _submit(self, live: Live, asked: float | None = None) -> None:
        trial = live.trial
        attempt = trial.user_attrs.get("attempts", 0) + 1
        trial.set_user_attr("attempts", attempt)
        directory = self.weights.directory(trial.number)
        directory.mkdir(parents=True, exist_ok=True)
        self._live[trial.number] = live
        live.began = live.sign = time.monotonic()
        params = self.problem.params(trial.params)
        seed = trial.user_attrs["seed"]
        repeats = trial.user_attrs.get("kind") == CONFIRM
        wanted = (*self.config.wanted, *((HELD_OUT,) if repeats else ()))
        job = Job(trial.number, params, seed, str(directory), attempt, wanted)
        worker = self._pool.submit(job, live.alone)
        trial.set_user_attr("worker", worker)
        if self.gpus:
            trial.set_user_attr("gpus", self.gpus)
        facts = {"attempt": attempt, "worker": worker, "params": params, "seed": seed}
        if asked is not None:
            facts["asked"] = round(live.began - asked, 4)
        note(directory, trial.number, "begun", **facts)
        frozen = as_kept(trial)
        self._tracker.trial_started(frozen, worker)
        self._display.trial_started(frozen)

    def _handle(self, event: Report | Outcome | Death) -> None:
        live = self._live.get(event.number)
        if live is None:  # another process has the trial
            return
        try:
            if isinstance(event, Report):
                self._limits.sign(live)
                self._pool.answer(event.number, self._reported(live, event))
            elif isinstance(event, Death):
                self._died(live, event.reason)
            else:
                self._limits.sign(live)
                self._ended(live, event)
        except UpdateFinishedTrialError:  # another process took it over, and was first
            self._drop(event.number)

    def _reported(self, live: Live, report: Report) -> bool:
        """Record an intermediate result and return whether the trial shall stop."""
        note(
            self.weights.directory(live.number),
            live.number,
            "report",
            step=report.step,
            metrics=report.metrics,
        )
        self._tracker.trial_epoch(report.number, report.step, report.metrics)
        known = all(name in report.metrics for name in self.config.fitness)
        value = fitness_of(report.metrics, self.config.fitness) if known else math.nan
        self._display.trial_epoch(report.number, report.step, value if known else None)
        if self.config.objectives or not known:  # Optuna takes no curves of several objectives
            return live.stopped
        if math.isfinite(value) and report.step not in live.steps:
            live.trial.report(value, report.step)
            live.steps.add(report.step)
            live.stopped = live.stopped or (live.may_stop and live.trial.should_prune())
        return live.stopped

    def _died(self, live: Live, reason: str) -> None:
        if live.over_time:
            self._failed(live, live.over_time, Outcome(live.number, None))
            return
        live.deaths += 1
        self._pause(live)
        del self._live[live.number]
        if live.deaths > DEATHS:
            self._failed(live, f"{reason} {live.deaths} times", Outcome(live.number, None))
        else:
            self._again(live, f"trial {live.number}: {reason}; the trial goes on", reason)

    def _again(self, live: Live, line: str, reason: str) -> None:
        """Put a trial back to those that wait for a worker."""
        note(self.weights.directory(live.number), live.number, "repeated", reason=reason)
        self._display.trial_died(live.number)
        self._display.notice(line)
        self._waiting.append(live)

    def _ended(self, live: Live, outcome: Outcome) -> None:
        if outcome.fatal:
            raise ConfigError(outcome.reason)
        if outcome.disk_full:  # no fault of the trial: it goes on when there is space again
            raise RunFailed(
                f"trial {outcome.number}: the disk is full: free some space, and the same command"
                f" goes on ({outcome.reason})"
            )
        if outcome.metrics is None:
            return self._refused(live, outcome)
        if live.stopped and live.steps:
            if all(name in outcome.metrics for name in self.config.limits):
                self._constrain(live, outcome.metrics)
            self._told(live, outcome, TrialState.PRUNED, None)
            return
        # a ConfigError for a missing metric ends the run
        value = fitness_of(outcome.metrics, self.config.fitness)
        values = objective_values(outcome.metrics, value, self.config.objectives)
        for name, number in values.items():
            if not math.isfinite(number):
                return self._failed(live, f"{DIVERGED}: {name} is {number}", outcome)
        self._constrain(live, {**outcome.metrics, **values})
        self._told(live, outcome, TrialState.COMPLETE, list(values.values()))

    def _constrain(self, live: Live, metrics: Metrics) -> None:
        """Store how far a trial is beyond the limits, where all samplers look for it."""
        if self.config.limits:
            beyond = constraints(metrics, self.config.limits)
            storage = self.study._storage
            storage.set_trial_system_attr(live.trial._trial_id, CONSTRAINTS, beyond)

    def _pause(self, live: Live) -> None:
        """Count an attempt that came to nothing among the seconds of its trial."""
        live.spent = live.seconds
        live.trial.set_user_attr("spent", round(live.spent, 3))

    def _refused(self, live: Live, outcome: Outcome) -> None:
        """Fail a trial that raised; one that ran out of memory is tried once more, alone."""
        if out_of_memory(outcome.reason) and not live.out_of_memory:
            live.out_of_memory = live.alone = True
            self._pause(live)
            del self._live[outcome.number]
            line = f"trial {outcome.number}: {outcome.reason}; it is tried once more, alone"
            self._again(live, line, outcome.reason)
        else:
            self._failed(live, outcome.reason, outcome)

    def _failed(self, live: Live, reason: str, outcome: Outcome) -> None:
        live.trial.set_user_attr("reason", reason)
        if self._told(live, outcome, TrialState.FAIL, None):
            self.failures.add(reason, any_good=bool(ranking(self._all_trials())))

    def _told(
        self, live: Live, outcome: Outcome, state: TrialState, values: list[float] | None
    ) -> bool:
        """End a trial in the study; return whether it was still ours."""
        trial, began = live.trial, time.monotonic()
        if not self.company.holds(trial):
            self._drop(trial.number)
            return False
        self._live.pop(trial.number, None)
        self.told.add(trial.number)
        seconds = round(live.spent + outcome.seconds, 3)
        with together(trial):
            trial.set_user_attr("seconds", seconds)
            if outcome.metrics is not None:
                trial.set_user_attr("metrics", outcome.metrics)
        frozen = self.study.tell(trial, values, state=state, skip_if_finished=True)
        if state != TrialState.FAIL:
            self.failures.clear()
        directory = self.weights.directory(trial.number)
        facts = {"state": state.name, "values": frozen.values, "seconds": seconds}
        facts |= {"reason": trial.user_attrs.get("reason"), "metrics": outcome.metrics}
        facts["told"] = round(time.monotonic() - began, 4)
        note(directory, trial.number, "ended", **facts)
        self._keep_description(frozen, outcome.description)
        self._tracker.trial_finished(frozen, directory, outcome.description)
        self.weights.drop(self._all_trials())
        self._display.trial_finished(frozen)
        return True

    def _keep_description(self, trial: FrozenTrial, description: dict[str, Any]) -> None:
        facts = {"strategy": self.config.strategy.name, "workers": self._pool.size}
        warning = keep_description(self.study, trial, description, **facts)
        if warning:
            self._display.notice(f"the data changed under the study: {warning}")

    def _all_trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)
