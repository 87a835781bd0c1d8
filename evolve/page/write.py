"""A study's files for people: report.html, the plots for papers, the table of trials."""

import multiprocessing
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from optuna import Study

from evolve.config import StudyConfig
from evolve.figures import write_importance_plot, write_parallel_plot
from evolve.page.scene import scene_of, winner_of
from evolve.page.sections import page_of
from evolve.report import (
    replacing,
    write_convergence_plot,
    write_parameter_plot,
    write_trials_csv,
)
from evolve.summary import Summary

PAGE = "report.html"
MANY = 1000  # trials from which on pictures are drawn while the page is made


def page_text(config: StudyConfig, study: Study, summary: Summary) -> str:
    """Return the report of a study as one HTML page."""
    return page_of(scene_of(config, study, summary), datetime.now())


def write_report(config: StudyConfig, study: Study, summary: Summary) -> list[Path]:
    """Write all that the report command gives into the study's folder; returns the files."""
    folder = config.directory
    trials, winner = study.get_trials(deepcopy=False), winner_of(study, summary)

    def from_trials() -> None:
        write_trials_csv(trials, config, folder / "trials.csv")
        number = winner.number if winner else None
        write_convergence_plot(trials, config, folder / "convergence.png", number)
        write_parameter_plot(trials, config, folder / "parameters.png", number)

    finish = _beside(from_trials) if len(trials) > MANY else from_trials
    scene = scene_of(config, study, summary)
    with replacing(folder / PAGE) as partial:
        text = page_of(scene, datetime.now())
        partial.write_text(text, encoding="utf-8", errors="replace")
    names = ("trials.csv", "convergence.png", "parameters.png")
    files = [folder / PAGE, *(folder / name for name in names)]
    for name, write in (("importance", write_importance_plot), ("parallel", write_parallel_plot)):
        path = folder / f"{name}.png"
        if write(scene, path):
            files.append(path)
    finish()
    return files


def _beside(work: Callable[[], None]) -> Callable[[], None]:
    """Start work in a copy of this process; returns what waits for it.

    Where processes cannot be copied, or other threads would be cut off in the copy, or where the
    copy fails, the work is done here by then.
    """
    alone = threading.active_count() == 1
    if not alone or "fork" not in multiprocessing.get_all_start_methods():
        return work
    copy = multiprocessing.get_context("fork").Process(target=work, daemon=True)
    copy.start()

    def finish() -> None:
        copy.join()
        if copy.exitcode:
            work()

    return finish
