"""Was it luck? The finalists and the start values are trained again, with the same new seeds.

The search saw every configuration once and chose the best of many noisy values, so the winner's own
score is too good on average. Only the repeats are compared here, in pairs of equal seeds.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from evolve.config import ConfirmOptions
from evolve.record import (
    CONFIRM,
    DIVERGED,
    START,
    feasible,
    fitness,
    kind_of,
    ranking,
    reason_of,
)
from evolve.space import Params

CONFIDENCE = 0.90
TRIES = 2  # of one repeat, if it fails for another reason than divergence

BETTER, WORSE = "better", "worse"
UNDECIDED, UNCONFIRMED = "no difference shown", "not confirmed"


@dataclass(frozen=True)
class Configuration:
    """Values to measure: `of` is the number of the search's trial that had them first."""

    of: int
    params: Params
    is_start: bool = False


@dataclass(frozen=True)
class Measured:
    """The fitness of one configuration by repeat; `failed` repeats have none.

    `over`: most of the repeats are beyond a limit.
    """

    configuration: Configuration
    values: dict[int, float] = field(default_factory=dict)
    failed: int = 0
    over: bool = False

    @property
    def mean(self) -> float:
        """Mean fitness, NaN without repeats."""
        return statistics.fmean(self.values.values()) if self.values else math.nan

    @property
    def sd(self) -> float:
        """Sample standard deviation, NaN below two repeats."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else math.nan


@dataclass(frozen=True)
class Gain:
    """The mean difference over pairs of equal seeds; `low` to `high` is its interval.

    NaN stands where there are too few pairs. The interval holds for all `compared` finalists
    at once.
    """

    mean: float
    sd: float
    n: int
    low: float
    high: float
    compared: int


@dataclass(frozen=True)
class Verdict:
    """What the repeats say of the recommended configuration against the start values."""

    word: str
    text: str
    gain: Gain | None = None
    start: Measured | None = None
    recommended: Measured | None = None
    finalists: tuple[Measured, ...] = ()


def configurations(
    trials: Sequence[FrozenTrial], options: ConfirmOptions, order: Sequence[int] | None = None
) -> list[Configuration]:
    """Return what to measure, the start values first; empty if there is nothing to compare.

    `order` are the numbers of the trials that deserve it, best first; None: as they rank.
    """
    starts = [trial for trial in trials if kind_of(trial) == START and trial.params]
    if not (starts and options.finalists and options.seeds):
        return []
    start = starts[0]
    chosen = [Configuration(start.number, start.params, is_start=True)]
    ranked = ranking(trials)
    if order is not None:
        by_number = {trial.number: trial for trial in ranked}
        ranked = [by_number[number] for number in order if number in by_number]
    for trial in ranked:
        if len(chosen) > options.finalists:
            break
        if all(trial.params != other.params for other in chosen):
            chosen.append(Configuration(trial.number, trial.params))
    return chosen if len(chosen) > 1 else []


def missing_repeat(
    trials: Sequence[FrozenTrial], options: ConfirmOptions, order: Sequence[int] | None = None
) -> tuple[Configuration, int] | None:
    """Return the next configuration and repeat that nobody has measured or is measuring."""
    chosen = configurations(trials, options, order)
    repeats = [trial for trial in trials if kind_of(trial) == CONFIRM]
    for repeat in range(options.seeds):
        for configuration in chosen:
            runs = _runs(repeats, configuration, repeat)
            failed = [trial for trial in runs if trial.state == TrialState.FAIL]
            if len(runs) == len(failed) and not _given_up(failed):
                return configuration, repeat
    return None


def judge(
    trials: Sequence[FrozenTrial],
    options: ConfirmOptions,
    order: Sequence[int] | None = None,
    estimates: Mapping[int, float] | None = None,
) -> Verdict:
    """Compare the repeats of the finalists with those of the start values.

    The finalist with the best of `estimates` (fitness by number of its trial; the mean of its
    repeats where there is none) is recommended, the start values only if all are shown to be worse.
    """
    chosen = configurations(trials, options, order)
    complete = missing_repeat(trials, options, order) is None and not _running(trials)
    if not (chosen and complete):
        return Verdict(UNCONFIRMED, _why_unconfirmed(chosen, options))
    repeats = [trial for trial in trials if kind_of(trial) == CONFIRM]
    start, *finalists = (_measured(repeats, configuration, options) for configuration in chosen)
    usable = [measured for measured in finalists if measured.values]
    if not (usable and start.values):
        return Verdict(UNCONFIRMED, f"{UNCONFIRMED}: the repeats with other seeds failed")

    def merit(measured: Measured) -> tuple[bool, int, float]:
        estimate = (estimates or {}).get(measured.configuration.of, measured.mean)
        return measured.over, measured.failed, -estimate

    def gain_of(measured: Measured) -> Gain:
        return paired_gain(start.values, measured.values, compared=len(finalists))

    usable.sort(key=merit)
    best = next((one for one in usable if _word(gain_of(one)) != WORSE), usable[0])
    gain = gain_of(best)
    word = _word(gain)
    recommended = start if word == WORSE and not start.over else best
    return Verdict(word, _text(word, gain), gain, start, recommended, tuple(finalists))


def paired_gain(
    start: Mapping[int, float], other: Mapping[int, float], *, compared: int = 1
) -> Gain:
    """Return the mean of other - start over the repeats that both have, with its t interval.

    The best of several finalists looks better than it is: the interval is widened so that it holds
    for all of them at once. Source: Bonferroni; Student 1908.
    """
    differences = [other[repeat] - start[repeat] for repeat in sorted(start.keys() & other.keys())]
    n = len(differences)
    mean = statistics.fmean(differences) if n else math.nan
    if n < 2:
        return Gain(mean, math.nan, n, math.nan, math.nan, compared)
    sd = statistics.stdev(differences)
    half = student_t(1.0 - (1.0 - CONFIDENCE) / compared, n - 1) * sd / math.sqrt(n)
    return Gain(mean, sd, n, mean - half, mean + half, compared)


def student_t(inside: float, freedom: int) -> float:
    """Return t such that a Student variable is within ±t with probability `inside`."""
    low, high = 0.0, 1.0
    while _within(high, freedom) < inside:
        high *= 2.0
    for _ in range(100):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _within(middle, freedom) < inside else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """Return P(|T| <= t). Source: Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2 == 1
    term = total = 0.0 if freedom == 1 else (cosine if odd else 1.0)
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    return 2.0 / math.pi * (angle + sine * total) if odd else sine * total


def _word(gain: Gain) -> str:
    if gain.low > 0:
        return BETTER
    return WORSE if gain.high < 0 else UNDECIDED


def _text(word: str, gain: Gain) -> str:
    head = f"{word}: gain over the start values {gain.mean:+.4f}"
    if gain.n < 2:
        return f"{head} in {gain.n} pair of repeats, which is too few to show a difference"
    among = f", widened for choosing among {gain.compared} finalists" if gain.compared > 1 else ""
    text = (
        f"{head} (mean of {gain.n} pairs of repeats, sd {gain.sd:.4f};"
        f" {100 * CONFIDENCE:.0f} % interval {gain.low:+.4f} to {gain.high:+.4f}{among})"
    )
    if gain.mean > 0:
        return text
    text += "; no finalist beat the start values on average"
    return f"{text}: nothing better than them was found" if word == WORSE else text


def _why_unconfirmed(chosen: Sequence[Configuration], options: ConfirmOptions) -> str:
    if not (options.finalists and options.seeds):
        return f"{UNCONFIRMED}: every value was measured once (confirm is off)"
    if not chosen:
        return f"{UNCONFIRMED}: nothing but the start values has been measured"
    return f"{UNCONFIRMED}: the repeats with other seeds are not done yet"


def _measured(
    repeats: Sequence[FrozenTrial], configuration: Configuration, options: ConfirmOptions
) -> Measured:
    values: dict[int, float] = {}
    failed = over = 0
    for repeat in range(options.seeds):
        runs = _runs(repeats, configuration, repeat)
        done = [trial for trial in runs if trial.state == TrialState.COMPLETE]
        if done:
            values[repeat] = fitness(done[0])
            over += not feasible(done[0])
        else:
            failed += bool(runs)
    return Measured(configuration, values, failed, over=2 * over > len(values))


def _runs(
    repeats: Sequence[FrozenTrial], configuration: Configuration, repeat: int
) -> list[FrozenTrial]:
    def matches(attributes: Mapping[str, Any]) -> bool:
        return bool(attributes.get("of") == configuration.of and attributes.get("repeat") == repeat)

    return [trial for trial in repeats if matches(trial.user_attrs)]


def _given_up(failed: Sequence[FrozenTrial]) -> bool:
    diverged = any(reason_of(trial).startswith(DIVERGED) for trial in failed)
    return diverged or len(failed) >= TRIES


def _running(trials: Sequence[FrozenTrial]) -> bool:
    return any(kind_of(trial) == CONFIRM and not trial.state.is_finished() for trial in trials)
