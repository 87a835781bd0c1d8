"""`evolve import` and `evolve export-txt`: a study and the files of other systems."""

from collections.abc import Callable
from pathlib import Path

from optuna import Study

from evolve.config import StudyConfig
from evolve.errors import StudyError
from evolve.interchange import add_trials, read_trials, write_evolve_txt
from evolve.objective import load_objective
from evolve.problem import build_problem, start_values, with_fitness
from evolve.storage import open_study, owned

Notice = Callable[[str], None]


def import_file(config: StudyConfig, path: Path, notice: Notice) -> int:
    """Add the trials of an earlier search to the study, and return how many were added.

    `notice` gets a line for whatever is not as the file says. Raises: UserError.
    """
    if config.limits or config.objectives:
        raise StudyError(
            f"import: {path} cannot be held against limits or several objectives: import it into"
            " a study without them, and warm-start from that"
        )
    rows, skipped = read_trials(path)
    objective = load_objective(config.objective)
    config = with_fitness(config, objective)
    problem = build_problem(config, objective, notice)
    with owned(config):
        study = open_study(config)
        before = len(study.get_trials(deepcopy=False))
        notes = add_trials(study, rows, problem, config.fitness, str(path))
        after = len(study.get_trials(deepcopy=False))
    for line in (*skipped, *notes):
        notice(line)
    return after - before


def export_file(config: StudyConfig, study: Study, path: Path, notice: Notice) -> None:
    """Write the study's complete trials as evolve.txt. Raises: UserError."""
    constants = {**config.start.train, **config.start.values, **config.settings}
    constants |= start_values(config, lambda _: None)
    path.parent.mkdir(parents=True, exist_ok=True)
    for line in write_evolve_txt(path, study.get_trials(deepcopy=False), constants):
        notice(line)
