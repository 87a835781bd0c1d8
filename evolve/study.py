"""A study from start to end: open or resume, search, confirm, write the result."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from optuna import Study, Trial
from optuna.trial import TrialState

from evolve import report
from evolve.budget import ENDED, Budget
from evolve.choice import finalists, settle_finalists
from evolve.config import StudyConfig
from evolve.confirm import missing_repeat
from evolve.display import Display
from evolve.errors import ConfigError
from evolve.fidelity import build_pruner
from evolve.findings import Findings, findings
from evolve.limits import limits_text
from evolve.machine import Placement, place_workers
from evolve.objective import load_objective
from evolve.problem import Problem, build_problem, train_fields_of, with_fitness
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
from evolve.rehearsal import rehearsal
from evolve.runner import Runner
from evolve.samplers import build_sampler
from evolve.storage import claim_folder, open_study, owned
from evolve.summary import HYP_BEST, TOTAL, TRAIN_FIELDS, Summary, summarise, write_best
from evolve.tracking import BackgroundTracker, Tracker, open_tracker
from evolve.transfer import next_warm, warm_start
from evolve.workers import WorkerPool

log = logging.getLogger(__name__)

START_TRIES = 2  # of the start values in one run, if they fail for another reason than divergence


def run_study(config: StudyConfig, display: Display) -> Summary:
    """Start a study or go on with it until its generations are reached and its winner is confirmed.

    Raises: UserError before any trial for wrong input; RunFailed when failures repeat.
    """
    if Path(config.start.source).resolve() == HYP_BEST.resolve():
        raise ConfigError(
            f"start: {HYP_BEST} is overwritten by every study: copy it, and name the copy"
        )
    objective = load_objective(config.objective)
    config = with_fitness(config, objective)
    with rehearsal(config) as evaluate:
        problem = build_problem(config, objective, display.notice, evaluate)
    pruner = build_pruner(config.pruning)
    sampler = build_sampler(
        config.strategy,
        space=problem.space,
        start=problem.start,
        seed=config.study.seed,
        budget=config.study.generations,
    )
    with owned(config):
        study = _opened(config, problem, display)
        study.set_user_attr(TRAIN_FIELDS, train_fields_of(objective))
        study.sampler, study.pruner = sampler, pruner
        tracker = BackgroundTracker(open_tracker(config, config.directory))
        tracker.start(study)
        summary: Summary | None = None
        try:
            placements = place_workers(config.workers)
            trials, name = study.get_trials(deepcopy=False), config.study.name
            epochs = config.settings.get("epochs")
            display.begin(trials, config.study.generations, len(placements), name, epochs)
            with WorkerPool(config.objective, placements) as pool:
                runner = Runner(config, study, problem, pool, tracker, display)
                runner.gpus = gpus_of_a_trial(placements)
                runner.reopen()
                search(runner, display)
                confirm(runner, display)
            summary = replace(summarise(config, study), files=[])  # what this run writes
            summary = replace(summary, found=_found(config, study))
            write_best(config, study, summary)
        finally:
            _record(config, study, tracker, summary)
    return replace(summary, links=tracker.links())


def _opened(config: StudyConfig, problem: Problem, display: Display) -> Study:
    """Open the study, and write down what this run is to do with it."""
    study = open_study(config)
    claim_folder(study, config.directory, display.notice)
    study.set_user_attr(TOTAL, config.study.generations)
    study.set_user_attr(ENDED, "")
    warm_start(config, study, problem, display.notice)
    if config.limits:
        display.notice(f"limits: {limits_text(config.limits)}")
    return study


def sync_record(config: StudyConfig, study: Study) -> tuple[int, bool]:
    """Write what the tracker lacks of a study that nobody runs at the moment.

    Returns the number of trials written, and whether the record has all of it now. Raises:
    StudyError while another process runs the study.
    """
    with owned(config):
        tracker = open_tracker(config, config.directory)
        written = tracker.sync(study)
        summary = summarise(config, study)
        done = summary.ended and not any(t.state == TrialState.RUNNING for t in study.trials)
        return written, tracker.finish(study, summary.to_dict() if done else None)


def search(runner: Runner, display: Display) -> None:
    """Run generations until something ends the search; what it was is kept in the study."""
    options = runner.config.study
    budget = Budget(options, runner.study, gpus=runner.gpus)
    display.progress.seconds_left = budget.seconds_left
    if options.gpu_hours is not None and not runner.gpus:
        display.notice("gpu_hours: no GPU is used here, so that none of them pass")
    runner.drive(generation_source(runner, budget), budget.save)
    runner.study.set_user_attr(ENDED, budget.why)
    display.progress.searching = False
    display.notice(f"the search ended: {budget.why}")


def confirm(runner: Runner, display: Display) -> None:
    """Measure the finalists and the start values again with other seeds."""
    study, options = runner.study, runner.config.confirm
    settle_finalists(runner.config, study)
    if missing_repeat(study.get_trials(deepcopy=False), options, finalists(study)):
        display.notice(
            "the finalists and the start values again, with other seeds,"
            " on top of what the search may take:"
        )
    runner.drive(lambda: next_repeat(runner))


def gpus_of_a_trial(placements: list[Placement]) -> float:
    """Return how many GPUs a trial has: a share of one where workers share it, 0 on a CPU."""
    devices = {device for placement in placements for device in placement.devices}
    return sum(device != "cpu" for device in devices) / len(placements)


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
    if study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        return runner.ask()  # queued by a run that was killed just then
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
    return runner.ask()


def _failed_starts(study: Study) -> list[str]:
    """Return the reasons why trials of the start values failed."""
    return [
        reason_of(trial)
        for trial in study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        if kind_of(trial) == START
    ]


def _found(config: StudyConfig, study: Study) -> Findings | None:
    """Return what the trials say, once for terminal and page; no fault costs a study."""
    try:
        return findings(config, study)
    except Exception as error:  # of an estimate that nothing depends on
        log.warning("what the trials say together could not be computed: %s", error)
        return None


def _record(config: StudyConfig, study: Study, tracker: Tracker, summary: Summary | None) -> None:
    """Write the table, at the end the report too, and close the tracker; no fault costs a study."""
    folder = config.directory
    try:
        trials = study.get_trials(deepcopy=False)
        report.write_trials_csv(trials, config, folder / "trials.csv")
        if summary is not None:
            from evolve.page.write import write_report  # heavy, and of use at the end only

            files = write_report(config, study, summary)
            summary.files.extend(path for path in files[:1])
    except Exception as error:  # a table or a picture costs no study
        log.warning("the study's table or report could not be written: %s", error)
    tracker.finish(study, summary.to_dict() if summary else None)
