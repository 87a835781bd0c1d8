"""What the process that runs trials looks after between them: stops, disk, news of the others."""

from collections.abc import Callable

from optuna import Study

from evolve.display import Display
from evolve.keep import disk_shortage
from evolve.live import Every
from evolve.peers import Leadership
from evolve.runner import Runner
from evolve.share import STOP, TRIALS, StopAsked
from evolve.tracking import Tracker

STOP_SECONDS, NEWS_SECONDS, DISK_SECONDS = 2.0, 2.0, 10.0  # between two looks


class Upkeep:
    """`look` does what is due, and says why no new trial may begin now."""

    def __init__(self, runner: Runner, notice: Callable[[str], None]) -> None:
        self._runner, self._study, self._notice = runner, runner.study, notice
        self._stopping, self._disk = Every(STOP_SECONDS), Every(DISK_SECONDS)
        self._answered = _stop_of(self._study).get("id")  # what was asked of earlier runs
        self._ending = ""  # in words, once the running trials are the last ones
        self._short = self._shortage()

    def look(self) -> str:
        """Return in words why no trial may begin; else nothing. Raises: StopAsked, RunFailed."""
        if self._stopping.due():
            self._read_stop()
        if self._ending and not self._runner.running:
            raise StopAsked(self._ending)
        if self._disk.due():
            self._short = self._shortage()
        return self._ending or self._short

    def _read_stop(self) -> None:
        asked = _stop_of(self._study)
        if not asked or asked["id"] == self._answered:
            return
        self._answered = asked["id"]
        if asked["how"] != TRIALS:
            raise StopAsked("stopped by `evolve stop`: the same command goes on")
        self._ending = "stopped by `evolve stop --after-trials`: the same command goes on"
        self._notice("no new trials: `evolve stop --after-trials` was asked for")

    def _shortage(self) -> str:
        """Return in words that the disk is short, after what can be removed has been removed."""
        folder, most = self._runner.config.directory, self._runner.config.study.max_disk
        found = disk_shortage(folder, most)
        if found:
            self._runner.weights.drop(self._study.get_trials(deepcopy=False), best=1)
            found = disk_shortage(folder, most)
        before = getattr(self, "_short", "")
        if found and not before:
            self._notice(f"no new trials until there is space: {found}; `evolve gc` removes more")
        elif before and not found:
            self._notice("there is space again: the study goes on")
        return found


class LeaderUpkeep(Upkeep):
    """The leader shows that it leads, and records what other processes finished."""

    def __init__(
        self,
        runner: Runner,
        leadership: Leadership,
        tracker: Tracker,
        display: Display,
    ) -> None:
        super().__init__(runner, display.notice)
        self._leadership, self._tracker, self._display = leadership, tracker, display
        self._beating = Every(runner.config.workers.lease / 4)
        self._listening = Every(NEWS_SECONDS)
        trials = self._study.get_trials(deepcopy=False)
        self._known = {trial.number for trial in trials if trial.state.is_finished()}

    def look(self) -> str:
        if self._beating.due():
            self._leadership.renew()
        if self._listening.due():
            self.hear()
        return super().look()

    def hear(self) -> None:
        """Record the trials that other processes have ended since the last look."""
        if not self._runner.shared:
            return
        for trial in self._study.get_trials(deepcopy=False):
            if not trial.state.is_finished() or trial.number in self._known:
                continue
            self._known.add(trial.number)
            if trial.number in self._runner.told:
                continue
            self._tracker.trial_finished(trial, self._runner.weights.directory(trial.number), {})
            self._display.trial_finished(trial)
            self._runner.heard(trial)


def _stop_of(study: Study) -> dict[str, str]:
    found: dict[str, str] = study.user_attrs.get(STOP, {})
    return found
