"""A study's files for people: report.html, the plots for papers, the table of trials."""

import multiprocessing
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
    new_figure,
    replacing,
    write_convergence_plot,
    write_parameter_plot,
    write_trials_csv,
)
from evolve.summary import Summary

PAGE, TABLE, PANELS = "report.html", "trials.csv", "parameters.png"
PROGRESS = "convergence.png"


def page_text(config: StudyConfig, study: Study, summary: Summary) -> str:
    """Return the report of a study as one HTML page."""
    return page_of(scene_of(config, study, summary), datetime.now())


class Begun:
    """Files that need the trials alone, or no more than who won: begun before that is known.

    Of many trials they are made in a copy of this process, else by `finish`.
    """

    def __init__(self, config: StudyConfig, study: Study) -> None:
        self._trials, self._config = study.get_trials(deepcopy=False), config
        self._asking, self._telling = multiprocessing.Pipe(duplex=False)
        self._winner: list[int | None] = []  # its number, once it is told
        many = len(self._trials) > MANY
        if many:
            new_figure(1.0, 1.0)  # loads Matplotlib, once for both
        self._finish = beside(self._work) if many else self._work

    def tell(self, winner: int | None) -> None:
        """Say which trial is recommended."""
        self._winner.append(winner)
        self._telling.send(winner)

    def finish(self) -> None:
        """Wait until the files are there; `tell` comes first."""
        self._finish()
        self._asking.close()
        self._telling.close()

    def _work(self) -> None:
        folder = self._config.directory
        write_trials_csv(self._trials, self._config, folder / TABLE)
        winner = self._winner[0] if self._winner else self._asking.recv()
        write_parameter_plot(self._trials, self._config, folder / PANELS, winner)
        write_convergence_plot(self._trials, self._config, folder / PROGRESS, winner)


def write_report(
    config: StudyConfig, study: Study, summary: Summary, begun: Begun | None = None
) -> list[Path]:
    """Write all that the report command gives into the study's folder; returns the files."""
    folder = config.directory
    winner = winner_of(study, summary)
    begun = begun or Begun(config, study)
    begun.tell(winner.number if winner else None)
    scene = scene_of(config, study, summary)
    with replacing(folder / PAGE) as partial:
        text = page_of(scene, datetime.now())
        partial.write_text(text, encoding="utf-8", errors="replace")
    files = [folder / name for name in (PAGE, TABLE, PROGRESS, PANELS)]
    for name, write in (("importance", write_importance_plot), ("parallel", write_parallel_plot)):
        path = folder / f"{name}.png"
        if write(scene, path):
            files.append(path)
    begun.finish()
    return files
