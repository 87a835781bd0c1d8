"""A study's files for people: report.html, the plots for papers, the table of trials."""

from datetime import datetime
from pathlib import Path

from optuna import Study

from evolve.config import StudyConfig
from evolve.figures import write_importance_plot, write_parallel_plot
from evolve.page.scene import scene_of
from evolve.page.sections import page_of
from evolve.report import (
    replacing,
    write_convergence_plot,
    write_parameter_plot,
    write_trials_csv,
)
from evolve.summary import Summary

PAGE = "report.html"


def page_text(config: StudyConfig, study: Study, summary: Summary) -> str:
    """Return the report of a study as one HTML page."""
    return page_of(scene_of(config, study, summary), datetime.now())


def write_report(config: StudyConfig, study: Study, summary: Summary) -> list[Path]:
    """Write all that the report command gives into the study's folder; returns the files."""
    folder = config.directory
    scene = scene_of(config, study, summary)
    with replacing(folder / PAGE) as partial:
        text = page_of(scene, datetime.now())
        partial.write_text(text, encoding="utf-8", errors="replace")
    files = [folder / PAGE, folder / "trials.csv"]
    write_trials_csv(study, config, folder / "trials.csv")
    for name, draw in (
        ("convergence", write_convergence_plot),
        ("parameters", write_parameter_plot),
    ):
        files.append(folder / f"{name}.png")
        draw(study, config, files[-1], scene.winner.number if scene.winner else None)
    for name, write in (("importance", write_importance_plot), ("parallel", write_parallel_plot)):
        path = folder / f"{name}.png"
        if write(scene, path):
            files.append(path)
    return files
