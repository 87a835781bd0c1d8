"""What ends a search: generations, hours, GPU-hours, or that going on does not pay.

Hours are those in which the search ran, over all runs of the study; repeats with other seeds come
on top. The clock is kept in the study; a kill costs it at most the seconds since its last save.
"""

import statistics
import time
from collections.abc import Callable, Sequence

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from evolve.config import StudyOptions
from evolve.record import COUNTED, generations, search_trials, seconds_of

LEAST = 30  # generations before a search may end by itself, and between two such questions
CLOCK, STOPPED, ENDED = "search_seconds", "stopped", "ended"  # user attributes of the study
HOUR = 3600.0


class Budget:
    """What is left of a search; the only judge of whether another trial may begin.

    `gpus` is how many GPUs a trial has, `now` a clock in seconds.
    """

    def __init__(
        self,
        options: StudyOptions,
        study: Study,
        *,
        gpus: float = 0.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options, self._study, self._gpus, self._now = options, study, gpus, now
        self._before = float(study.user_attrs.get(CLOCK, 0.0))
        self._began = now()
        self.why = ""  # the last answer of `reached`

    @property
    def total(self) -> int:
        """Number of generations to reach."""
        return max(1, self._options.generations)

    @property
    def seconds(self) -> float:
        """How long the search ran, earlier runs included."""
        return self._before + self._now() - self._began

    def save(self) -> None:
        """Keep the clock in the study."""
        self._study.set_user_attr(CLOCK, round(self.seconds, 1))

    def reached(self) -> str:
        """Return in words why no further trial may begin now; empty if one may."""
        trials = search_trials(self._study)
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        count = generations(trials)
        if count + len(running) >= self.total:
            self.why = f"{count} of {self.total} generations"
        else:
            duration = _typical_seconds(trials)
            self.why = (
                self._hours_reached(duration)
                or self._gpu_hours_reached(trials, duration)
                or self._pays_no_more(count)
            )
        return self.why

    def seconds_left(self) -> float | None:
        """Return the hours that are left as seconds of wall-clock; None without such a limit."""
        left = []
        if self._options.hours is not None:
            left.append(self._options.hours * HOUR - self.seconds)
        if self._options.gpu_hours is not None and self._gpus:
            trials = search_trials(self._study)
            rate = self._gpus * max(1, sum(t.state == TrialState.RUNNING for t in trials))
            left.append((self._options.gpu_hours * HOUR - gpu_seconds(trials)) / rate)
        return max(0.0, min(left)) if left else None

    def _hours_reached(self, duration: float) -> str:
        hours = self._options.hours
        return "" if hours is None else _over(hours, self.seconds, duration, "hours")

    def _gpu_hours_reached(self, trials: Sequence[FrozenTrial], duration: float) -> str:
        hours = self._options.gpu_hours
        if hours is None:
            return ""
        return _over(hours, gpu_seconds(trials, duration), duration * self._gpus, "GPU-hours")

    def _pays_no_more(self, count: int) -> str:
        """Ask the sampler whether going on pays; its no holds until more generations are asked."""
        options, attributes = self._options, self._study.user_attrs
        question = getattr(self._study.sampler, "stop_reason", None)
        if not (options.early_stop and callable(question)) or len(self._study.directions) > 1:
            return ""
        said = attributes.get(STOPPED)
        if said is not None and self.total <= said["total"]:
            return str(said["reason"])
        if count < LEAST + (0 if said is None else said["generations"]):
            return ""
        reason = str(question(self._study))
        if reason:
            said = {"reason": reason, "generations": count, "total": self.total}
            self._study.set_user_attr(STOPPED, said)
        return reason


def gpu_seconds(trials: Sequence[FrozenTrial], duration: float = 0.0) -> float:
    """Return the GPU-seconds of trials; a running one is expected to take `duration` at least."""
    return sum(
        float(trial.user_attrs.get("gpus", 0.0))
        * max(seconds_of(trial), duration if trial.state == TrialState.RUNNING else 0.0)
        for trial in trials
    )


def _typical_seconds(trials: Sequence[FrozenTrial]) -> float:
    """Return the median duration of the trials that count, 0 before the first one.

    Those of another system, which were imported, have none.
    """
    counted = (seconds_of(trial) for trial in trials if trial.state in COUNTED)
    return statistics.median([seconds for seconds in counted if seconds > 0] or [0.0])


def _over(hours: float, spent: float, next_one: float, unit: str) -> str:
    """Return in words that a limit is reached, or would be by the next trial; else nothing."""
    if spent >= hours * HOUR:
        return f"{hours:g} {unit} are over"
    if spent + next_one > hours * HOUR:
        return f"the next trial would end after the {hours:g} {unit}"
    return ""
