"""A study from start to end: open or resume, search, confirm, write the result."""

import logging
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from optuna import Study
from optuna.trial import TrialState

from evolve import report
from evolve.budget import ENDED, Budget
from evolve.choice import finalists, settle_finalists
from evolve.config import StudyConfig
from evolve.confirm import missing_repeat
from evolve.display import Display
from evolve.engine import open_pool
from evolve.errors import ConfigError
from evolve.fidelity import build_pruner
from evolve.findings import Findings, findings
from evolve.limits import limits_text
from evolve.objective import Objective, load_objective
from evolve.peers import Leadership, company_of
from evolve.problem import Problem, build_problem, train_fields_of, with_fitness
from evolve.rehearsal import rehearsal
from evolve.runner import Runner
from evolve.samplers import build_sampler
from evolve.share import CONFIRMING, DONE, PHASE, SEARCHING, publish
from evolve.source import generation_source, next_repeat
from evolve.storage import claim_folder, open_study, owned
from evolve.summary import HYP_BEST, TOTAL, TRAIN_FIELDS, Summary, summarise, write_best
from evolve.tracking import BackgroundTracker, Tracker, open_tracker
from evolve.transfer import warm_start
from evolve.upkeep import LeaderUpkeep

log = logging.getLogger(__name__)


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
        study = open_study(config)
        with Leadership(study, config.workers.lease, display.notice) as leadership:
            _prepare(config, study, problem, objective, display)
            study.sampler, study.pruner = sampler, pruner
            return _led(config, study, problem, leadership, display)


def _led(
    config: StudyConfig,
    study: Study,
    problem: Problem,
    leadership: Leadership,
    display: Display,
) -> Summary:
    """Search, confirm and write the result, as the process that leads the study."""
    tracker = BackgroundTracker(open_tracker(config, config.directory))
    tracker.start(study)
    summary: Summary | None = None
    try:
        _run_trials(config, study, problem, leadership, tracker, display)
        summary = replace(summarise(config, study), files=[])  # what this run writes
        summary = replace(summary, found=_found(config, study))
        write_best(config, study, summary)
        study.set_user_attr(PHASE, DONE)
    finally:
        _record(config, study, tracker, summary)
    return replace(summary, links=tracker.links())


def _run_trials(
    config: StudyConfig,
    study: Study,
    problem: Problem,
    leadership: Leadership,
    tracker: Tracker,
    display: Display,
) -> None:
    company = company_of(study, config.workers.lease)
    trials, name = study.get_trials(deepcopy=False), config.study.name
    epochs = config.settings.get("epochs")
    with ExitStack() as stack:
        pool, gpus = stack.enter_context(open_pool(config))
        display.begin(trials, config.study.generations, pool.size, name, epochs)
        runner = Runner(config, study, problem, pool, tracker, display, company)
        runner.gpus = gpus
        upkeep = LeaderUpkeep(runner, leadership, tracker, display)
        runner.look = upkeep.look
        try:
            runner.reopen()
            search(runner, display)
            confirm(runner, display)
            upkeep.hear()
        finally:
            stack.close()  # the workers save their trials
            runner.give_back()


def _prepare(
    config: StudyConfig, study: Study, problem: Problem, objective: Objective, display: Display
) -> None:
    """Write down what this run is to do with the study."""
    claim_folder(study, config.directory, display.notice)
    study.set_user_attr(TOTAL, config.study.generations)
    study.set_user_attr(ENDED, "")
    warm_start(config, study, problem, display.notice)
    study.set_user_attr(TRAIN_FIELDS, train_fields_of(objective))
    publish(config, study, problem)
    if config.limits:
        display.notice(f"limits: {limits_text(config.limits)}")


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
    runner.study.set_user_attr(PHASE, SEARCHING)
    runner.drive(generation_source(runner, budget), budget.save)
    runner.study.set_user_attr(ENDED, budget.why)
    display.progress.searching = False
    display.notice(f"the search ended: {budget.why}")


def confirm(runner: Runner, display: Display) -> None:
    """Measure the finalists and the start values again with other seeds."""
    study, options = runner.study, runner.config.confirm
    settle_finalists(runner.config, study)
    study.set_user_attr(PHASE, CONFIRMING)
    if missing_repeat(study.get_trials(deepcopy=False), options, finalists(study)):
        display.notice(
            "the finalists and the start values again, with other seeds,"
            " on top of what the search may take:"
        )
    runner.drive(lambda: next_repeat(runner))


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
