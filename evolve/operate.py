"""Operating a study from outside: ask it to stop, try failed trials again, free its disk."""

import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from evolve.config import StudyConfig
from evolve.errors import UserError
from evolve.keep import Weights, drop_weights, folder_size
from evolve.peers import led
from evolve.record import CONFIRM, kind_of, reason_of
from evolve.share import NOW, STOP, TRIALS
from evolve.storage import is_running

POLL = 0.5  # seconds between two looks whether a study has stopped
FAILED = "FAILED"  # the word that names all failed trials
STATES = ("last.pt", "previous.pt")  # what an interrupted trial goes on from (DESIGN section 4)
RETRY_OF = "retry_of"  # user attribute of a trial: the number of the failed one


def stop_study(
    config: StudyConfig, study: Study, after_trials: bool, seconds: float, now: Callable[[], float]
) -> str:
    """Ask all processes of a study to end, wait so long for its leader, and say what became of it.

    Running trials save their state and go on with the next run; `after_trials` lets them end first.
    """
    if not (is_running(config) or led(study)):
        return f"nobody runs study {config.study.name}"
    study.set_user_attr(STOP, {"id": uuid.uuid4().hex, "how": TRIALS if after_trials else NOW})
    end = now() + seconds
    while now() < end:
        if not (is_running(config) or led(study)):
            return f"study {config.study.name} has stopped; the same command goes on with it"
        time.sleep(POLL)
    return f"study {config.study.name} was asked to stop, and is still ending"


def retry_trials(study: Study, which: Sequence[str]) -> list[int]:
    """Queue failed trials again with their values; return their numbers. `FAILED` means all.

    One that has been queued before is left out. Raises: UserError for anything but failed trials.
    """
    trials = study.get_trials(deepcopy=False)
    by_number = {trial.number: trial for trial in trials}
    queued = {trial.user_attrs.get(RETRY_OF) for trial in trials}
    chosen: list[FrozenTrial] = []
    for word in which:
        if word.upper() == FAILED:
            failed = [trial for trial in trials if trial.state == TrialState.FAIL]
            chosen += [trial for trial in failed if kind_of(trial) != CONFIRM]
            continue
        trial = by_number.get(int(word)) if word.isdigit() else None
        if trial is None or trial.state != TrialState.FAIL:
            state = "is no trial of the study" if trial is None else trial.state.name.lower()
            raise UserError(
                f"retry {word}: {state}; allowed: {FAILED}, or numbers of failed trials"
            )
        chosen.append(trial)
    numbers = sorted({trial.number for trial in chosen if trial.params} - queued)
    for number in numbers:
        trial = by_number[number]
        attributes = {"kind": kind_of(trial), RETRY_OF: number, "was": reason_of(trial)}
        study.enqueue_trial(dict(trial.params), user_attrs=attributes)
    return numbers


@dataclass(frozen=True)
class Freed:
    """What `collect` removed: weights of so many trials, files and bytes."""

    trials: list[int]
    folders: list[Path]
    bytes: int


def collect(config: StudyConfig, study: Study, keep: int, dry: bool) -> Freed:
    """Remove weights that nobody will ask for but those of the best `keep`, and disowned folders.

    Of ended trials the state to go on from (`last.pt`) goes too. `dry` only tells.
    """
    trials = study.get_trials(deepcopy=False)
    before = folder_size(config.directory)
    weights = Weights(config)
    doomed = weights.superfluous(trials, keep)
    folders = sorted(config.directory.glob("trials-*"))  # of studies that are gone
    spare = [
        path
        for trial in trials
        if trial.state.is_finished() and trial.number not in doomed
        for name in STATES
        if (path := weights.directory(trial.number) / "weights" / name).is_file()
        and (path.parent / "best.pt").is_file()
    ]
    if dry:
        paths = [*folders, *spare, *(weights.directory(n) / "weights" for n in doomed)]
        size = sum(folder_size(path) if path.is_dir() else path.stat().st_size for path in paths)
        return Freed(doomed, folders, size)
    for number in doomed:
        drop_weights(weights.directory(number))
    for path in spare:
        path.unlink(missing_ok=True)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return Freed(doomed, folders, before - folder_size(config.directory))
