"""A process that joins a study led elsewhere: `python -m evolve worker`.

It needs the storage and the study's name; all else the study tells. It begins and ends trials as
the leader does, one turn at a time, and goes on with what a process that died has left. Recording,
confirming and the files of the study stay with the leader.
"""

import time
from contextlib import ExitStack
from dataclasses import replace

from optuna import Study, Trial

from evolve.budget import ENDED, Budget
from evolve.config import StudyConfig
from evolve.display import Display
from evolve.engine import open_pool
from evolve.errors import StudyError
from evolve.fidelity import build_pruner
from evolve.objective import load_objective
from evolve.peers import company_of
from evolve.problem import Problem
from evolve.runner import Runner
from evolve.samplers import build_sampler
from evolve.share import CONFIRMING, DONE, PHASE, SEARCHING, published
from evolve.source import generation_source, next_repeat
from evolve.storage import SQLITE, claim_folder, load_study
from evolve.tracking import NullTracker
from evolve.upkeep import Upkeep
from evolve.worker_options import WorkerOptions

PAUSE = 2.0  # seconds between two looks for what the leader wants next


def join_study(here: StudyConfig, options: WorkerOptions, display: Display) -> int:
    """Run trials of the study that `here` names until its leader has done; return how many.

    `options` say how many workers this machine gives. Raises: UserError before any trial for a
    study in SQLite, wrong data or settings on this machine; RunFailed when failures repeat.
    """
    refuse_sqlite(here.study.storage)
    study = load_study(here)
    told, problem = published(study)
    # how the trials are trained is the study's to say, where is this machine's
    each = options.devices_per_trial if options.devices_per_trial > 1 else None
    workers = replace(
        options,
        devices_per_trial=each or told.workers.devices_per_trial,
        trial_hours=told.workers.trial_hours,
        silent_minutes=told.workers.silent_minutes,
        lease=told.workers.lease,
    )
    study_options = replace(told.study, storage=here.study.storage)
    config = replace(told, workers=workers, study=study_options, source=here.source)
    check_here(config, problem)
    study.sampler = build_sampler(
        config.strategy,
        space=problem.space,
        start=problem.start,
        seed=config.study.seed,
        budget=config.study.generations,
    )
    study.pruner = build_pruner(config.pruning)
    config.directory.mkdir(parents=True, exist_ok=True)
    claim_folder(study, config.directory, display.notice)
    return _work(config, study, problem, display)


def _work(config: StudyConfig, study: Study, problem: Problem, display: Display) -> int:
    company = company_of(study, config.workers.lease)
    trials, epochs = study.get_trials(deepcopy=False), config.settings.get("epochs")
    with ExitStack() as stack:
        pool, gpus = stack.enter_context(open_pool(config))
        display.begin(trials, config.study.generations, pool.size, config.study.name, epochs)
        runner = Runner(config, study, problem, pool, NullTracker(), display, company)
        runner.gpus, runner.look = gpus, Upkeep(runner, display.notice).look
        budget = Budget(config.study, study, gpus=gpus)
        generation = generation_source(runner, budget)

        def next_trial() -> Trial | None:
            phase = study.user_attrs.get(PHASE)
            if phase == SEARCHING and not study.user_attrs.get(ENDED):
                return generation()
            return next_repeat(runner) if phase == CONFIRMING else None

        try:
            waiting = False
            while study.user_attrs.get(PHASE) != DONE:
                runner.drive(next_trial)
                if not waiting:
                    display.notice("no trial is left for now: waiting for the study's leader")
                waiting = True
                runner.look()
                time.sleep(PAUSE)
        finally:
            stack.close()  # the workers save their trials
            runner.give_back()
    return len(runner.told)


def refuse_sqlite(url: str) -> None:
    """Raises: StudyError if a storage cannot be shared by several processes."""
    if url.startswith(SQLITE):
        raise StudyError(
            f"storage {url} is SQLite, which serves one process of one machine (its locks fail on"
            " shared folders): keep the study in a server, --storage postgresql://USER@HOST/NAME"
        )


def check_here(config: StudyConfig, problem: Problem) -> None:
    """Let the objective check its settings and data on this machine. Raises: UserError."""
    preflight = load_objective(config.objective).optional("preflight")
    if preflight is not None:
        preflight({**problem.constants, **problem.start}, problem.space.to_dict())
