"""What a study keeps on the disk: weights of the trials that somebody may ask for, within a budget.

The weights of the best trials stay, of the best trade-offs, of repeats, and of what is recommended.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from optuna.trial import FrozenTrial

from evolve.choice import recommended
from evolve.config import StudyConfig
from evolve.front import pareto_front
from evolve.record import CONFIRM, kind_of, ranking

KEPT_WEIGHTS = 3  # trials whose weight files stay
LEAST_FREE = 10**9  # bytes that stay free on a study's disk
LEAVE_FREE = 0.02  # ... and of small disks this share


class Weights:
    """The weight files below a study's folder."""

    def __init__(self, config: StudyConfig) -> None:
        self._config = config
        self._gone: set[int] = set()  # numbers of trials whose weight files are gone

    def directory(self, number: int) -> Path:
        """Folder of a trial's files."""
        return self._config.directory / "trials" / str(number)

    def drop(self, trials: Sequence[FrozenTrial], best: int = KEPT_WEIGHTS) -> list[int]:
        """Remove the weights of ended trials that nobody will ask for; return their numbers."""
        dropped = self.superfluous(trials, best)
        for number in dropped:
            drop_weights(self.directory(number))
            self._gone.add(number)
        return dropped

    def superfluous(self, trials: Sequence[FrozenTrial], best: int = KEPT_WEIGHTS) -> list[int]:
        """Return the numbers of ended trials with weights that nobody will ask for."""
        ended = [t for t in trials if t.state.is_finished() and t.number not in self._gone]
        held = {trial.number for trial in ended if self._any(trial.number)}
        self._gone |= {trial.number for trial in ended} - held
        kept = {trial.number for trial in ranking(trials)[:best]}
        if self._config.objectives:
            kept |= {trial.number for trial in pareto_front(trials, self._config.objectives)}
        kept |= {trial.number for trial in trials if kind_of(trial) == CONFIRM}
        if held - kept:
            kept |= {item.trial for item in recommended(self._config, trials)[:1]}
        return sorted(held - kept)

    def _any(self, number: int) -> bool:
        return any((self.directory(number) / "weights").glob("*.pt*"))


def drop_weights(directory: Path) -> None:
    """Remove the weight files of a trial's folder."""
    for path in (directory / "weights").glob("*.pt*"):  # a killed save leaves a .partial
        path.unlink(missing_ok=True)


def folder_size(folder: Path) -> int:
    """Return the bytes of all files below a folder; what vanishes meanwhile counts nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += 0 if path.is_symlink() or path.is_dir() else path.stat().st_size
        except OSError:
            continue
    return total


def disk_shortage(folder: Path, most: int | None) -> str:
    """Return in words why no trial should begin: a budget, or the disk, is used up; else nothing.

    `most` bytes may be below the folder.
    """
    usage = shutil.disk_usage(folder)
    least = min(LEAST_FREE, int(LEAVE_FREE * usage.total))
    if usage.free < least:
        return (
            f"{size_text(usage.free)} are free on the disk of {folder}, {size_text(least)} needed"
        )
    held = folder_size(folder) if most is not None else 0
    if most is not None and held > most:
        return f"{folder} holds {size_text(held)} of max_disk {size_text(most)}"
    return ""


def size_text(count: float) -> str:
    """Return bytes in the units of a disk's label."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
