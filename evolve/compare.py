"""Two studies side by side: which result is better, and what was different between them.

Repeats are compared in pairs where both studies trained with the same seeds, otherwise as two
groups; a study without repeats brings the estimate of its recommended values.
"""

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from evolve.config import StudyConfig
from evolve.confirm import CONFIDENCE, Gain, paired_gain, student_t
from evolve.description import description_of
from evolve.errors import StudyError
from evolve.record import CONFIRM, fitness, kind_of, seconds_of
from evolve.space import Space
from evolve.storage import IDENTITY, SQLITE, as_run, load_study
from evolve.summary import Summary, summarise

SAME_SEEDS, TWO_GROUPS, ESTIMATES, ONCE = "same seeds", "two groups", "estimates", "measured once"


@dataclass(frozen=True)
class Side:
    """One of the two studies; `values`: fitness of the recommended values' repeats by seed."""

    config: StudyConfig
    study: Study
    summary: Summary
    trials: list[FrozenTrial]
    values: dict[int, float]
    name: str

    @property
    def level(self) -> float:
        """Fitness of the recommended values: mean of repeats, else the estimate, else NaN."""
        if self.values:
            return statistics.fmean(self.values.values())
        return math.nan if self.summary.estimate is None else self.summary.estimate.mean


@dataclass(frozen=True)
class Comparison:
    """B against A: `gain` of B over A, how it was found, `why_not` if they cannot be compared.

    `differences` maps dotted names to the values of A and B; `rows` are the table.
    """

    a: Side
    b: Side
    gain: Gain
    method: str
    why_not: str
    differences: dict[str, tuple[Any, Any]]
    rows: list[tuple[str, str, str]]

    @property
    def word(self) -> str:
        """A or B where the interval leaves 0 out, else no difference shown; or not comparable."""
        if self.why_not:
            return "not comparable"
        if not math.isfinite(self.gain.low):
            return "not shown"
        if self.gain.low > 0:
            return f"{self.b.name} is better"
        return f"{self.a.name} is better" if self.gain.high < 0 else "no difference shown"

    @property
    def text(self) -> str:
        """The verdict in one sentence."""
        if self.why_not:
            return f"{self.word}: {self.why_not}"
        if not math.isfinite(self.gain.mean):
            return f"{self.word}: a study has no complete trial yet"
        text = f"{self.word}: {self.b.name} against {self.a.name} {self.gain.mean:+.4f} fitness"
        how = {
            SAME_SEEDS: f"{self.gain.n} pairs of repeats with the same seeds",
            TWO_GROUPS: f"{len(self.a.values)} and {len(self.b.values)} repeats",
            ESTIMATES: "estimates: not both have repeats with other seeds",
            ONCE: "measured once: luck cannot be told from gain",
        }[self.method]
        if not math.isfinite(self.gain.low):
            return f"{text} ({how})"
        low, high = self.gain.low, self.gain.high
        return f"{text} ({100 * CONFIDENCE:.0f} % interval {low:+.4f} to {high:+.4f}; {how})"

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison in JSON types."""
        numbers = {key: _finite(getattr(self.gain, key)) for key in ("mean", "sd", "low", "high")}
        return {
            "a": self.a.summary.to_dict(),
            "b": self.b.summary.to_dict(),
            "verdict": self.word,
            "verdict_text": self.text,
            "method": self.method,
            "gain": {**numbers, "n": self.gain.n},
            "differences": {name: list(pair) for name, pair in self.differences.items()},
            "table": [list(row) for row in self.rows],
        }


def compare_studies(config: StudyConfig, first: str, second: str) -> Comparison:
    """Compare two studies: `name`, or `storage#name`. Raises: StudyError if one is missing."""
    names = [source.rpartition("#")[2] for source in (first, second)]
    labels = names if names[0] != names[1] else [first, second]
    if first == second:
        raise StudyError(f"compare: {first} is named twice; name two studies")
    sides = [
        _opened(config, source, name) for source, name in zip((first, second), labels, strict=True)
    ]
    return compared(*sides)


def compared(a: Side, b: Side) -> Comparison:
    """Compare two opened studies."""
    ours, theirs = _settings(a, b)
    differences = differing(ours, theirs)
    gain, method = gain_of(a, b)
    incomparable = [name for name in differences if name.split(".")[0] in ("fitness", "objective")]
    why = ""
    if incomparable:
        name = incomparable[0]
        old, new = differences[name]
        why = f"{name} is {_shown(old)} in {a.name} and {_shown(new)} in {b.name}"
    return Comparison(a, b, gain, method, why, differences, _rows(a, b))


def side_of(config: StudyConfig, study: Study, name: str) -> Side:
    """Return a study as it was run, with the repeats of what it recommends."""
    config = with_own_space(as_run(config, study), study)
    summary = summarise(config, study)
    trials = study.get_trials(deepcopy=False)
    values = {
        int(trial.user_attrs["seed"]): fitness(trial)
        for trial in trials
        if kind_of(trial) == CONFIRM
        and trial.state == TrialState.COMPLETE
        and trial.user_attrs.get("of") == summary.recommended_trial
        and "seed" in trial.user_attrs
    }
    return Side(config, study, summary, trials, values, name)


def with_own_space(config: StudyConfig, study: Study) -> StudyConfig:
    """Return the config with the space that a study was run with, whatever the file says by now."""
    identity = study.user_attrs.get(IDENTITY)
    if identity is None:
        return config
    constants = {
        **identity["settings"],
        **identity["start"]["values"],
        **identity["start"]["train"],
    }
    space = Space.from_dict(identity["space"], study.study_name, constants)
    return dataclasses.replace(config, space=space)


def gain_of(a: Side, b: Side) -> tuple[Gain, str]:
    """Return the gain of B over A with its 90 % interval, and how it was found."""
    shared = a.values.keys() & b.values.keys()
    if len(shared) >= 2:
        return paired_gain(a.values, b.values), SAME_SEEDS
    if len(a.values) >= 2 and len(b.values) >= 2:
        return welch_gain([*a.values.values()], [*b.values.values()]), TWO_GROUPS
    estimates = (a.summary.estimate, b.summary.estimate)
    if any(estimate is None for estimate in estimates):
        return Gain(math.nan, math.nan, 0, math.nan, math.nan, 1), ONCE
    mean = b.level - a.level
    halves = [(e.interval[1] - e.interval[0]) / 2 for e in estimates if e is not None]
    half = math.hypot(*halves)  # of a difference of two independent values
    method = ESTIMATES if math.isfinite(half) else ONCE
    return Gain(mean, math.nan, 1, mean - half, mean + half, 1), method


def welch_gain(a: list[float], b: list[float]) -> Gain:
    """Return the difference of two means with its 90 % interval. Source: Welch 1947."""
    parts = [statistics.variance(values) / len(values) for values in (a, b)]
    mean, total = statistics.fmean(b) - statistics.fmean(a), sum(parts)
    if total == 0.0:
        return Gain(mean, 0.0, min(len(a), len(b)), mean, mean, 1)
    shares = [part**2 / (len(values) - 1) for part, values in zip(parts, (a, b), strict=True)]
    freedom = max(1, math.floor(total**2 / sum(shares)))  # rounded down: the wider interval
    half = student_t(CONFIDENCE, freedom) * math.sqrt(total)
    return Gain(mean, math.sqrt(total), min(len(a), len(b)), mean - half, mean + half, 1)


def differing(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> dict[str, tuple[Any, Any]]:
    """Return every value that differs by its dotted name; None stands where there is none."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in dict.fromkeys([*old, *new]):
        left, right = old.get(key), new.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping) and left and right:
            found |= differing(left, right, f"{prefix}{key}.")
        elif left != right:
            found[f"{prefix}{key}"] = (left, right)
    return found


def comparison_text(comparison: Comparison) -> str:
    """Return the comparison as text for a terminal: verdict, table, differences."""
    a, b = comparison.a.name, comparison.b.name
    rows = [("", a, b), *comparison.rows]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [comparison.text, ""]
    lines += [f"  {r[0]:<{widths[0]}}  {r[1]:<{widths[1]}}  {r[2]}".rstrip() for r in rows]
    lines += (
        ["", "settings, start values and spaces are equal"] if not comparison.differences else []
    )
    if comparison.differences:
        lines += ["", f"different ({a} | {b}):"]
        pairs = comparison.differences.items()
        lines += [f"  {name}: {_shown(old)} | {_shown(new)}" for name, (old, new) in pairs]
    return "\n".join(lines)


def _opened(config: StudyConfig, source: str, name: str) -> Side:
    storage, _, study_name = source.rpartition("#")
    if storage and "://" not in storage:
        storage = SQLITE + storage
    options = dataclasses.replace(
        config.study, name=study_name, storage=storage or config.study.storage, pick=None
    )
    own = dataclasses.replace(config, study=options)
    return side_of(own, load_study(own), name)


def _settings(*sides: Side) -> list[dict[str, Any]]:
    """Return what studies were run with, in JSON types, and what all of them describe (data)."""
    told = [description_of(side.study) for side in sides]
    known = set.intersection(*(set(facts) for facts in told))
    found = []
    for side, facts in zip(sides, told, strict=True):
        identity: dict[str, Any] = json.loads(json.dumps(side.config.identity(), default=str))
        own = {name: facts[name] for name in facts if name in known - identity["settings"].keys()}
        found.append({**own, **identity, "confirm": dataclasses.asdict(side.config.confirm)})
    return found


def _rows(a: Side, b: Side) -> list[tuple[str, str, str]]:
    """Return the table: a name, and what A and B have there."""
    columns = [_column(side) for side in (a, b)]
    return [(name, columns[0][name], columns[1][name]) for name in columns[0]]


def _column(side: Side) -> dict[str, str]:
    summary, verdict = side.summary, side.summary.verdict
    states = summary.states
    spread = statistics.stdev(side.values.values()) if len(side.values) > 1 else math.nan
    gain = verdict.gain
    interval = "–" if gain is None or not math.isfinite(gain.low) else _interval(gain)
    seconds = sum(map(seconds_of, side.trials))
    return {
        "fitness of the recommended values": _number(side.level),
        "sd of its repeats": _number(spread),
        "repeats": str(len(side.values)),
        "recommended trial": "–"
        if summary.recommended_trial is None
        else str(summary.recommended_trial),
        "fitness of the start values": _number(_start_level(side)),
        "gain over its own start values": interval,
        "verdict": verdict.word,
        "generations": f"{summary.generations} of {summary.total}",
        "stopped early, failed": f"{states['pruned']}, {states['failed']}",
        "hours of search": f"{summary.seconds / 3600:.2f}",
        "hours of all trials": f"{seconds / 3600:.2f}",
        "hyperparameters searched": str(len(side.config.space.searched().names)),
        "why it ended": summary.ended or "–",
    }


def _start_level(side: Side) -> float:
    start = side.summary.verdict.start
    if start is not None and start.values:
        return start.mean
    return math.nan if side.summary.start is None else fitness(side.summary.start)


def _interval(gain: Gain) -> str:
    return f"{gain.mean:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})"


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "–"


def _shown(value: Any) -> str:
    if value is None:
        return "absent"
    return (
        ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
