"""`evolve status` and `evolve best` on one screen, and their numbers for scripts."""

import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from evolve.config import StudyConfig
from evolve.fidelity import rank_text
from evolve.findings import Findings
from evolve.front import front_table
from evolve.glance import best_so_far, moves, moves_text, short, sparkline
from evolve.insight import LITTLE, MATTERS, NOTHING, UNSURE
from evolve.printout import end_lines, measurements, status_line, which_study
from evolve.progress import duration, ending
from evolve.record import COUNTED, fitness, ranking, reason_of, seconds_of
from evolve.storage import is_running
from evolve.summary import Summary, recommended_params, verdict_lines

TOP = 5  # trials of the table
SHOWN_RUNNING = 4
RECENT = 20  # trials whose time says how long the next ones take
CELL = 46  # characters of a value in `best`


def status_text(
    config: StudyConfig, study: Study, summary: Summary, found: Findings | None, width: int = 100
) -> str:
    """Return where a study stands, in 24 lines of 100 characters where that is possible."""
    trials = study.get_trials(deepcopy=False)
    lines = [status_line(summary), *_time_lines(config, summary, trials), *end_lines(summary)]
    lines += _curve_lines(summary, trials, width)
    if summary.recommended is not None:
        lines += [*measurements(summary, all_finalists=False), *verdict_lines(summary)]
    lines += ["", *_top_lines(summary, trials, width)]
    lines += _running_lines(trials, width) + _failure_lines(trials, width)
    lines += _found_lines(found)
    wrapped = [part for line in lines for part in _wrapped(line, width)]
    return "\n".join([*wrapped, "", *_next_lines(config, summary)])


def best_text(config: StudyConfig, study: Study, summary: Summary, width: int = 100) -> str:
    """Return the winner beside the start values on one screen; the yaml is longer."""
    params, trials = recommended_params(summary), study.get_trials(deepcopy=False)
    start = summary.start.params if summary.start is not None else {}
    trial = next(t for t in trials if t.number == summary.recommended_trial)
    lines = [status_line(summary), *_curve_lines(summary, trials, width), ""]
    lines += [*measurements(summary, all_finalists=False), *verdict_lines(summary), ""]
    changed = moves(trial, params, start)
    names = {name for name, _, _ in changed}
    lines = [part for line in lines for part in _wrapped(line, width)]
    lines.append(f"recommended: trial {trial.number}; what changed most comes first")
    cells = [f"{name:<16} {short(old):>10} → {short(new)}" for name, old, new in changed]
    lines += _in_columns(cells, width)
    same = [f"{name} {short(value)}" for name, value in sorted(params.items()) if name not in names]
    lines += _wrapped(f"as they were: {', '.join(same)}", width) if same and start else []
    lines += _in_columns([f"{n:<16} {short(v):>10}" for n, v in params.items()], width) * (
        not start
    )
    which = which_study(config)
    return "\n".join(
        [
            *lines,
            "",
            f"python -m evolve best{which} --yaml    # every value, as in best.yaml",
            f"python -m evolve best{which} --params  # these values as yaml",
        ]
    )


def overview(
    config: StudyConfig, study: Study, summary: Summary, found: Findings | None
) -> dict[str, Any]:
    """Return what the screen says beside the summary, in JSON types."""
    trials = study.get_trials(deepcopy=False)
    last = _last_failure(trials)
    return {
        "running_now": is_running(config),
        "eta_seconds": eta_seconds(config, summary, trials),
        "noise_sd": noise_sd(summary),
        "top": [{"trial": t.number, "fitness": fitness(t)} for t in ranking(trials)[:TOP]],
        "best_so_far": best_so_far(trials),
        "last_failure": None if last is None else {"trial": last.number, "reason": reason_of(last)},
        "importance": [
            {"name": one.name, "share": round(one.share, 4), "word": one.word}
            for one in (found.importances if found else [])
        ],
    }


def noise_sd(summary: Summary) -> float | None:
    """Return the standard deviation of a single training: of the repeats, or as a model has it."""
    measured = [summary.verdict.start, *summary.verdict.finalists]
    groups = [list(m.values.values()) for m in measured if m is not None and len(m.values) > 1]
    if groups:
        freedom = sum(len(values) - 1 for values in groups)
        total = sum((len(values) - 1) * statistics.variance(values) for values in groups)
        return math.sqrt(total / freedom)
    sd = math.nan if summary.estimate is None else summary.estimate.sd
    return sd if math.isfinite(sd) else None


def eta_seconds(
    config: StudyConfig, summary: Summary, trials: Sequence[FrozenTrial]
) -> float | None:
    """Return how long the search will take, while it runs and trials have told how long."""
    running = sum(trial.state == TrialState.RUNNING for trial in trials)
    recent = [seconds_of(trial) for trial in trials if trial.state in COUNTED][-RECENT:]
    known = [seconds for seconds in recent if seconds > 0]
    left = summary.total - summary.generations
    if summary.ended or left <= 0 or not running or not known or not is_running(config):
        return None
    return left * statistics.median(known) / running


def _time_lines(config: StudyConfig, summary: Summary, trials: Sequence[FrozenTrial]) -> list[str]:
    """Return whether the study is running, for how long it has, and until when."""
    spent = f"{duration(summary.seconds)} of search so far" if summary.seconds else ""
    eta = eta_seconds(config, summary, trials)
    if is_running(config):
        parts = ["running now", *([f"ETA {duration(eta)}"] if eta is not None else []), spent]
    else:
        stopped = "" if summary.ended else "not running"
        parts = [stopped, spent]
    text = ", ".join(part for part in parts if part)
    return [text] if text else []


def _curve_lines(summary: Summary, trials: Sequence[FrozenTrial], width: int) -> list[str]:
    curve = best_so_far(trials)
    if not curve or (summary.objectives and len(summary.objectives) > 1):
        return []
    head, tail, noise = f"best so far: {curve[0]:.4f} ", f" {curve[-1]:.4f}", noise_sd(summary)
    tail += "" if noise is None else f"; sd of a single training {noise:.4f}"
    return [head + sparkline(curve, min(40, width - len(head) - len(tail))) + tail]


def _top_lines(summary: Summary, trials: Sequence[FrozenTrial], width: int) -> list[str]:
    """Return the best trials as a table, or of several objectives the best trade-offs."""
    if summary.front:
        rows = front_table(summary.front, summary.objectives)
        more = [f"and {len(rows) - TOP - 1} more: --front of best"] * (len(rows) > TOP + 1)
        return ["best trade-offs, best fitness first:", *rows[: TOP + 1], *more]
    ranked = ranking(trials)[:TOP]
    if not ranked:
        return ["no trial is complete yet"]
    start = summary.start.params if summary.start is not None else {}
    lines = [f"{'trial':>7}  {'fitness':<22} {'time':>7}  changed from the start values"]
    for trial in ranked:
        changes = moves_text(moves(trial, trial.params, start), width - 42)
        value = ending(trial).removeprefix("fitness ")
        lines.append(
            f"{trial.number:>7}  {value:<22} {duration(seconds_of(trial)):>7}  {changes}".rstrip()
        )
    return lines


def _running_lines(trials: Sequence[FrozenTrial], width: int) -> list[str]:
    running = [trial for trial in trials if trial.state == TrialState.RUNNING]
    words = []
    for trial in running[:SHOWN_RUNNING]:
        reports = sorted(trial.intermediate_values.items())
        words.append(f"{trial.number}" + (f" ({reports[-1][1]:.4f} so far)" if reports else ""))
    words += [f"{len(running) - SHOWN_RUNNING} more"] * (len(running) > SHOWN_RUNNING)
    return [_cut(f"running: {', '.join(words)}", width)] if words else []


def _failure_lines(trials: Sequence[FrozenTrial], width: int) -> list[str]:
    last = _last_failure(trials)
    return (
        []
        if last is None
        else [_cut(f"last failure: trial {last.number}: {reason_of(last)}", width)]
    )


def _last_failure(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    return next((trial for trial in reversed(trials) if trial.state == TrialState.FAIL), None)


def _found_lines(found: Findings | None) -> list[str]:
    """Return which hyperparameters matter and which epochs rank, each in a line or two."""
    if found is None:
        return []
    words: dict[str, list[str]] = {}
    for one in found.importances:
        words.setdefault(one.word, []).append(f"{one.name} {one.share:.0%}")
    parts = [f"{word}: {', '.join(words[word])}" for word in (MATTERS, UNSURE) if word in words]
    parts += [f"{word}: {len(words[word])} more" for word in (LITTLE, NOTHING) if word in words]
    ranks = rank_text(found.checks)
    return ["; ".join(parts)] * bool(parts) + [ranks] * bool(ranks)


def _next_lines(config: StudyConfig, summary: Summary) -> list[str]:
    which = which_study(config)
    commands: Mapping[str, str] = {
        f"run{which}": "" if summary.ended or is_running(config) else "go on with the search",
        f"best{which}": "the winner's values" if summary.recommended is not None else "",
        f"status{which} --all": "importance as a table, what could be locked",
    }
    shown = {f"python -m evolve {name}": text for name, text in commands.items() if text}
    longest = max(map(len, shown))
    return [f"{command:<{longest}}  # {text}" for command, text in shown.items()]


def _in_columns(cells: Sequence[str], width: int) -> list[str]:
    """Return cells in as many columns as fit, read downwards."""
    columns = max(1, min(len(cells), width // CELL))
    rows = math.ceil(len(cells) / columns)
    return [
        "".join(f"  {cell:<{CELL - 2}}" for cell in cells[row::rows]).rstrip()
        for row in range(rows)
    ]


def _wrapped(line: str, width: int) -> list[str]:
    return textwrap.wrap(line, width, subsequent_indent="  ") if len(line) > width else [line]


def _cut(line: str, width: int) -> str:
    line = " ".join(line.split())
    return line if len(line) <= width else f"{line[: width - 1]}…"
