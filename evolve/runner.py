"""Driving trials through workers: ask, run, report, tell; deaths, failures, reopening."""

import math
import re
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna import Study, Trial
from optuna.trial import FrozenTrial, TrialState

from evolve.choice import recommended
from evolve.config import StudyConfig
from evolve.description import keep_description
from evolve.display import Display
from evolve.errors import ConfigError, RunFailed
from evolve.fidelity import may_be_pruned
from evolve.front import objective_values, pareto_front
from evolve.limits import constraints
from evolve.objective import Metrics, fitness_of
from evolve.problem import Problem
from evolve.record import (
    CONFIRM,
    CONSTRAINTS,
    DIVERGED,
    SEARCH,
    kind_of,
    ranking,
    trial_seed,
)
from evolve.tracking import Tracker
from evolve.workers import Death, Job, Outcome, Report, WorkerPool

POLL = 0.5  # seconds between looks at the display when nothing happens
DEATHS = 2  # a trial goes on after so many deaths of its worker
SAME_FAILURES = 5  # in a row, before a study stops
FAILURES = 20  # in a row, of any kind
KEPT_WEIGHTS = 3  # trials whose weight files stay
SAVE = 30.0  # seconds between two notes of the time that running trials took


@dataclass
class _Live:
    """A trial that a worker has; `spent` seconds in earlier attempts, `began` this one."""

    trial: Trial
    may_stop: bool
    deaths: int = 0
    out_of_memory: bool = False
    steps: set[int] = field(default_factory=set)
    stopped: bool = False
    spent: float = 0.0
    began: float = 0.0

    @property
    def seconds(self) -> float:
        """How long the trial took so far, its earlier attempts included."""
        return self.spent + time.monotonic() - self.began


class Runner:
    """Runs trials of one study; the only one who writes to it."""

    def __init__(
        self,
        config: StudyConfig,
        study: Study,
        problem: Problem,
        pool: WorkerPool,
        tracker: Tracker,
        display: Display,
    ) -> None:
        self.config = config
        self.study = study
        self.problem = problem
        self._pool = pool
        self._tracker = tracker
        self._display = display
        self.gpus = 0.0  # that a trial has
        self._live: dict[int, _Live] = {}
        self._waiting: deque[_Live] = deque()  # reopened, or their worker died
        self._failures: list[str] = []  # reasons of the last failures in a row
        self._weightless: set[int] = set()  # trials whose weight files are gone

    def directory(self, number: int) -> Path:
        """Folder of a trial's files."""
        return self.config.directory / "trials" / str(number)

    def reopen(self) -> None:
        """Take up the trials that an earlier run of the study left running."""
        for frozen in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._waiting.append(self._opened(Trial(self.study, frozen._trial_id)))
            self._display.notice(f"trial {frozen.number} goes on")

    def ask(self) -> Trial:
        """Return the next trial of the study with values for all genes."""
        return self.study.ask(self.problem.space.distributions())

    def drive(
        self, next_trial: Callable[[], Trial | None], save: Callable[[], None] = lambda: None
    ) -> None:
        """Run trials until `next_trial` has none left and all have ended.

        `save` is called now and then, and at the end.

        Raises: RunFailed when failures repeat, ConfigError when fitness cannot be computed.
        """
        saved = time.monotonic()
        try:
            while True:
                self._fill(next_trial)
                if not self._live:
                    break
                for event in self._pool.events(POLL):
                    self._handle(event)
                self._display.refresh()
                if time.monotonic() - saved > SAVE:
                    saved = time.monotonic()
                    self._note_times()
                    save()
        except BaseException:
            with suppress(Exception):  # Ctrl-C in the midst of a commit leaves no way to write
                self._note_times()
                save()
            raise
        save()

    def _fill(self, next_trial: Callable[[], Trial | None]) -> None:
        """Give every free worker a trial, as long as there is one."""
        while self._pool.free:
            if self._waiting:
                self._submit(self._waiting.popleft())
                continue
            trial = next_trial()
            if trial is None:
                return
            self._submit(self._opened(trial))

    def _note_times(self) -> None:
        """Keep the seconds of running trials in the study, where a kill cannot take them."""
        for live in self._live.values():
            live.trial.set_user_attr("spent", round(live.seconds, 1))

    # ---- one trial

    def _opened(self, trial: Trial) -> _Live:
        """Complete a new or reopened trial: values, seed."""
        kinds = dict(self.problem.space.distributions())
        # A repeat of a finalist keeps all its values, also of a gene that was locked since then.
        fixed = self._frozen(trial).system_attrs.get("fixed_params", {})
        kinds |= {g.name: g.distribution() for g in self.config.space.genes if g.name in fixed}
        for name, distribution in kinds.items():
            trial._suggest(name, distribution)  # what `ask` does; values already there stay
        own = {"kind": SEARCH, "seed": trial_seed(self.config.study.seed, trial.number)}
        for name, value in own.items():
            if name not in trial.user_attrs:
                trial.set_user_attr(name, value)
        frozen = self._frozen(trial)
        live = _Live(trial, may_be_pruned(frozen), steps=set(frozen.intermediate_values))
        live.spent = float(trial.user_attrs.get("spent", 0.0))
        return live

    def _submit(self, live: _Live) -> None:
        trial = live.trial
        attempt = trial.user_attrs.get("attempts", 0) + 1
        trial.set_user_attr("attempts", attempt)
        directory = self.directory(trial.number)
        directory.mkdir(parents=True, exist_ok=True)
        self._live[trial.number] = live
        live.began = time.monotonic()
        params = self.problem.params(trial.params)
        seed = trial.user_attrs["seed"]
        job = Job(trial.number, params, seed, str(directory), attempt, self.config.wanted)
        worker = self._pool.submit(job)
        trial.set_user_attr("worker", worker)
        if self.gpus:
            trial.set_user_attr("gpus", self.gpus)
        frozen = self._frozen(trial)
        self._tracker.trial_started(frozen, worker)
        self._display.trial_started(frozen)

    def _handle(self, event: Report | Outcome | Death) -> None:
        live = self._live[event.number]
        if isinstance(event, Report):
            self._pool.answer(event.number, self._reported(live, event))
        elif isinstance(event, Death):
            self._died(live, event.reason)
        else:
            self._ended(live, event)

    def _reported(self, live: _Live, report: Report) -> bool:
        """Record an intermediate result and return whether the trial shall stop."""
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

    def _died(self, live: _Live, reason: str) -> None:
        live.deaths += 1
        self._pause(live)
        del self._live[live.trial.number]
        if live.deaths > DEATHS:
            self._failed(live, f"{reason} {live.deaths} times", Outcome(live.trial.number, None))
        else:
            self._display.trial_died(live.trial.number)
            self._display.notice(f"trial {live.trial.number}: {reason}; the trial goes on")
            self._waiting.append(live)

    def _ended(self, live: _Live, outcome: Outcome) -> None:
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
            return self._told(live, outcome, TrialState.PRUNED, None)
        # a ConfigError for a missing metric ends the run
        value = fitness_of(outcome.metrics, self.config.fitness)
        values = objective_values(outcome.metrics, value, self.config.objectives)
        for name, number in values.items():
            if not math.isfinite(number):
                return self._failed(live, f"{DIVERGED}: {name} is {number}", outcome)
        self._constrain(live, {**outcome.metrics, **values})
        self._told(live, outcome, TrialState.COMPLETE, list(values.values()))

    def _constrain(self, live: _Live, metrics: Metrics) -> None:
        """Store how far a trial is beyond the limits, where all samplers look for it."""
        if self.config.limits:
            beyond = constraints(metrics, self.config.limits)
            storage = self.study._storage
            storage.set_trial_system_attr(live.trial._trial_id, CONSTRAINTS, beyond)

    def _pause(self, live: _Live) -> None:
        """Count an attempt that came to nothing among the seconds of its trial."""
        live.spent = live.seconds
        live.trial.set_user_attr("spent", round(live.spent, 3))

    def _refused(self, live: _Live, outcome: Outcome) -> None:
        """Fail a trial that raised; one that ran out of memory is tried once more as it was."""
        text = outcome.reason.lower()
        no_memory = "out of memory" in text or "memoryerror" in text
        if no_memory and not live.out_of_memory:
            live.out_of_memory = True
            self._pause(live)
            del self._live[outcome.number]
            self._display.trial_died(outcome.number)
            self._display.notice(f"trial {outcome.number}: {outcome.reason}; it is tried once more")
            self._waiting.append(live)
        else:
            self._failed(live, outcome.reason, outcome)

    def _failed(self, live: _Live, reason: str, outcome: Outcome) -> None:
        live.trial.set_user_attr("reason", reason)
        self._told(live, outcome, TrialState.FAIL, None)
        self._failures.append(reason)
        self._check_failures()

    def _told(
        self, live: _Live, outcome: Outcome, state: TrialState, values: list[float] | None
    ) -> None:
        trial = live.trial
        self._live.pop(trial.number, None)
        trial.set_user_attr("seconds", round(live.spent + outcome.seconds, 3))
        if outcome.metrics is not None:
            trial.set_user_attr("metrics", outcome.metrics)
        frozen = self.study.tell(trial, values, state=state)
        if state != TrialState.FAIL:
            self._failures.clear()
        directory = self.directory(trial.number)
        self._keep_description(frozen, outcome.description)
        self._tracker.trial_finished(frozen, directory, outcome.description)
        self._drop_weights()
        self._display.trial_finished(frozen)

    def _keep_description(self, trial: FrozenTrial, description: dict[str, Any]) -> None:
        facts = {"strategy": self.config.strategy.name, "workers": self._pool.size}
        warning = keep_description(self.study, trial, description, **facts)
        if warning:
            self._display.notice(f"the data changed under the study: {warning}")

    def _frozen(self, trial: Trial) -> FrozenTrial:
        return self.study._storage.get_trial(trial._trial_id)

    # ---- the study as a whole

    def _check_failures(self) -> None:
        """Raise RunFailed if going on would only repeat the same failure."""
        last = self._failures[-SAME_FAILURES:]
        alike = {reason if reason.startswith(DIVERGED) else _digitless(reason) for reason in last}
        # to diverge says something of a place, once others have gone well
        known_good = last[-1].startswith(DIVERGED) and bool(ranking(self._all_trials()))
        if len(last) == SAME_FAILURES and len(alike) == 1 and not known_good:
            raise RunFailed(f"{SAME_FAILURES} trials in a row failed alike: {last[-1]}")
        if len(self._failures) >= FAILURES:
            raise RunFailed(f"{FAILURES} trials in a row failed, the last one: {last[-1]}")

    def _all_trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _drop_weights(self) -> None:
        """Remove the weight files of trials that nobody will ask for.

        Those of the best values stay, of the front, of repeats, and of what is recommended now.
        """
        trials = self._all_trials()
        ended = [t for t in trials if t.state.is_finished() and t.number not in self._weightless]
        held = {trial.number for trial in ended if self._has_weights(trial.number)}
        self._weightless |= {trial.number for trial in ended} - held
        kept = {trial.number for trial in ranking(trials)[:KEPT_WEIGHTS]}
        if self.config.objectives:
            kept |= {trial.number for trial in pareto_front(trials, self.config.objectives)}
        kept |= {trial.number for trial in trials if kind_of(trial) == CONFIRM}
        if held - kept:
            kept |= {item.trial for item in recommended(self.config, trials)[:1]}
        for number in held - kept:
            drop_weights(self.directory(number))
            self._weightless.add(number)

    def _has_weights(self, number: int) -> bool:
        return any((self.directory(number) / "weights").glob("*.pt*"))


def drop_weights(directory: Path) -> None:
    """Remove the weight files of a trial's folder."""
    for path in (directory / "weights").glob("*.pt*"):  # a killed save leaves a .partial
        path.unlink(missing_ok=True)


def _digitless(reason: str) -> str:
    return re.sub(r"\d+", "#", reason)
