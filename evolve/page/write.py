"""A study's files for people: report.html, the plots for papers, the table of trials."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from optuna import Study

from evolve.beside import beside
from evolve.config import StudyConfig
from evolve.figures import write_importance_plot, write_parallel_plot
from evolve.findings import MANY
from evolve.page.scene import scene_of, winner_of
from evolve.page.sections import page_of
from evolve.report import (
    replacing,
    write_convergence_plot,
    write_parameter_plot,
    write_trials_csv,
)
from evolve.summary import Summary

PAGE, TABLE = "report.html", "trials.csv"


def page_text(config: StudyConfig, study: Study, summary: Summary) -> str:
    """Return the report of a study as one HTML page."""
    return page_of(scene_of(config, study, summary), datetime.now())


def begin_table(config: StudyConfig, study: Study) -> Callable[[], None]:
    """Begin to write trials.csv; returns what waits for it. Of few trials it is written then."""
    trials = study.get_trials(deepcopy=False)

    def write() -> None:
        write_trials_csv(trials, config, config.directory / TABLE)

    return beside(write) if len(trials) > MANY else write


def write_report(
    config: StudyConfig,
    study: Study,
    summary: Summary,
    table: Callable[[], None] | None = None,
) -> list[Path]:
    """Write all that the report command gives into the study's folder; returns the files.

    `table` is what waits for trials.csv, if it was begun.
    """
    folder = config.directory
    trials, winner = study.get_trials(deepcopy=False), winner_of(study, summary)
    number = winner.number if winner else None

    def panels() -> None:
        write_parameter_plot(trials, config, folder / "parameters.png", number)

    finish = beside(panels) if len(trials) > MANY else panels
    scene = scene_of(config, study, summary)
    with replacing(folder / PAGE) as partial:
        text = page_of(scene, datetime.now())
        partial.write_text(text, encoding="utf-8", errors="replace")
    write_convergence_plot(trials, config, folder / "convergence.png", number)
    files = [folder / name for name in (PAGE, TABLE, "convergence.png", "parameters.png")]
    for name, write in (("importance", write_importance_plot), ("parallel", write_parallel_plot)):
        path = folder / f"{name}.png"
        if write(scene, path):
            files.append(path)
    finish()
    (table or begin_table(config, study))()
    return files
