"""Where a study's next trial comes from: the search, or a repeat of what it found.

Both are asked for in a turn (see evolve.peers): several processes at one study neither begin a
trial too many nor repeat the same twice.
"""

from collections.abc import Callable

from optuna import Study, Trial
from optuna.trial import TrialState

from evolve.budget import Budget
from evolve.choice import finalists
from evolve.confirm import missing_repeat
from evolve.record import (
    CONFIRM,
    DIVERGED,
    SEARCH,
    START,
    kind_of,
    reason_of,
    repeat_seed,
    search_trials,
)
from evolve.runner import Runner
from evolve.transfer import next_warm

START_TRIES = 2  # of the start values in one run, if they fail for another reason than divergence


def generation_source(runner: Runner, budget: Budget) -> Callable[[], Trial | None]:
    """Return a function that gives the next trial of the search; None: all are on their way."""
    study, start = runner.study, runner.problem.start
    failed_before = len(_failed_starts(study))

    def next_generation() -> Trial | None:
        if budget.reached():
            return None
        trials = search_trials(study)
        failures = _failed_starts(study)
        if (
            len(failures) == sum(kind_of(trial) == START for trial in trials)
            and len(failures) - failed_before < START_TRIES
            and not any(reason.startswith(DIVERGED) for reason in failures)
        ):
            study.enqueue_trial(start, user_attrs={"kind": START})
        elif not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            warm = next_warm(study, trials, runner.problem)
            if warm is not None:
                study.enqueue_trial(warm[1], user_attrs={"kind": SEARCH, "warm": warm[0]})
        return runner.ask()

    return next_generation


def next_repeat(runner: Runner) -> Trial | None:
    """Return the next repeat of a finalist or the start values; None: all are on their way."""
    study, config = runner.study, runner.config
    queued = runner.ask(repeat=True)  # by a run that was killed just then
    if queued is not None:
        return queued
    found = missing_repeat(study.get_trials(deepcopy=False), config.confirm, finalists(study))
    if found is None:
        return None
    configuration, repeat = found
    attributes = {
        "kind": CONFIRM,
        "of": configuration.of,
        "repeat": repeat,
        "seed": repeat_seed(config.study.seed, repeat),
    }
    # a gene that was locked when those values were tried stood at its start value
    params = {**runner.problem.start, **configuration.params}
    study.enqueue_trial(params, user_attrs=attributes)
    return runner.ask(repeat=True)


def _failed_starts(study: Study) -> list[str]:
    """Return the reasons why trials of the start values failed."""
    return [
        reason_of(trial)
        for trial in study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        if kind_of(trial) == START
    ]
