"""A study's summary as text for a terminal."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from optuna import Study

from evolve.config import StudyConfig, load_config
from evolve.errors import StudyError
from evolve.fidelity import rank_text
from evolve.findings import Findings, findings, scope_text
from evolve.front import front_table
from evolve.insight import insight_text
from evolve.objective import load_objective
from evolve.record import fitness
from evolve.space import Params
from evolve.summary import HYP_BEST, Summary, estimate_text, measured_text, verdict_lines

SHOWN_FAILURES = 3


def result_text(
    config: StudyConfig, summary: Summary, start: Params, insight: Sequence[str] = ()
) -> str:
    """Return the end of `evolve run`: counts, values beside start values, verdict, what next."""
    lines = [status_line(summary), *end_lines(summary)]
    for reason, count in sorted(summary.failures.items(), key=lambda item: -item[1])[
        :SHOWN_FAILURES
    ]:
        lines.append(f"  failed {count} times: {reason}")
    if summary.states["pruned"]:
        share = f"{100 * summary.saved_epochs:.0f} %"
        lines.append(
            f"  stopping {summary.states['pruned']} trials early saved {share} of the epochs"
        )
    if summary.recommended is None:
        return "\n".join([*lines, "no trial is complete: there is nothing to recommend"])
    lines += _front_lines(summary)
    lines += ["", f"recommended values (trial {summary.recommended_trial}):"]
    lines += values_table(summary.recommended, start)
    lines += ["", *measurements(summary), *verdict_lines(summary), *insight, ""]
    lines += [f"written: {path}" for path in summary.files]
    if summary.checkpoint is not None:
        lines.append(f"weights: {summary.checkpoint}")
    lines += [f"{name}: {address}" for name, address in summary.links]
    return "\n".join([*lines, "", *_next_commands(config, summary)])


def insight_lines(config: StudyConfig, study: Study) -> list[str]:
    """Return what a study says beside its result: which genes matter, and which epochs rank."""
    return found_lines(config, findings(config, study))


def found_lines(config: StudyConfig, found: Findings | None) -> list[str]:
    """Return findings as lines."""
    if found is None:
        return []
    ranks = rank_text(found.checks)
    scope = scope_text(config.objectives) if found.importances else ""
    scopes = [f"importance is {scope}"] * bool(scope)
    return ["", *insight_text(found.importances, found.space), *scopes, *([ranks] if ranks else [])]


def status_line(summary: Summary) -> str:
    """Return the counts and the best fitness in one line."""
    states = summary.states
    counts = [f"{states[name]} {name}" for name in ("pruned", "failed", "running") if states[name]]
    line = f"study {summary.study}: {summary.generations} of {summary.total} generations"
    line += f" ({', '.join(counts)})" if counts else ""
    if summary.best is not None:
        line += f", best fitness {fitness(summary.best):.4f} in trial {summary.best.number}"
    return line


def front_text(summary: Summary) -> str:
    """Return the best trade-offs as a table. Raises: StudyError for a study of one objective."""
    if not summary.objectives:
        raise StudyError(f"study {summary.study} has one objective: it has no front")
    return "\n".join(front_table(summary.front, summary.objectives))


def end_lines(summary: Summary) -> list[str]:
    """Return why the search ended, and how many trials are beyond the limits."""
    lines = [f"the search ended: {summary.ended}"] if summary.ended else []
    if summary.limits:
        complete = summary.states["complete"]
        lines.append(
            f"limits: {summary.limits}; {summary.infeasible} of {complete} trials are beyond them"
        )
        if complete and summary.infeasible == complete:
            lines.append("no trial keeps the limits: what comes nearest to them is recommended")
    return lines


def _front_lines(summary: Summary) -> list[str]:
    if not summary.front:
        return []
    return [
        "",
        "best trade-offs, best fitness first (--pick N takes another):",
        front_text(summary),
    ]


def values_table(params: Mapping[str, Any], start: Mapping[str, Any]) -> list[str]:
    """Return one line per name: its value and its start value."""
    width = max(len(name) for name in params)
    return [
        f"  {name:<{width}}  {_short(value):>12}   start {_short(start.get(name))}"
        for name, value in sorted(params.items())
    ]


def measurements(summary: Summary, *, all_finalists: bool = True) -> list[str]:
    """Return what is known of the start values and the finalists, or the recommended one."""
    verdict = summary.verdict
    if verdict.start is None:
        start = summary.start
        lines = [f"start values, measured once: {fitness(start):.4f}"] if start else []
        return lines + ([estimate_text(summary.estimate)] if summary.estimate else [])
    lines = [f"start values:      {measured_text(verdict.start)}"]
    for measured in verdict.finalists:
        mark = "  <- recommended" if measured.configuration.of == summary.recommended_trial else ""
        if not (mark or all_finalists):
            continue
        name = f"trial {measured.configuration.of}:"
        lines.append(f"{name:<18} {measured_text(measured)}{mark}")
    return lines


def _next_commands(config: StudyConfig, summary: Summary) -> list[str]:
    """Return what can be done with the result; a trainer is found beside its objective."""
    objective = load_objective(config.objective)
    trainer = f"{objective.name.rpartition('.')[0]}.train"
    which = which_study(config)
    commands = {}
    if objective.module is not None and "." in objective.name and find_spec(trainer):
        commands[f"python -m {trainer} --hyp {HYP_BEST}"] = "train with these values"
    if summary.checkpoint is not None and objective.optional("export"):
        commands[f"python -m evolve export{which} --format onnx"] = "the winner as an engine"
    commands[f"python -m evolve best{which}"] = "the values as yaml"
    if config.tracking.uri is not None:
        commands[f"python -m evolve ui{which}"] = "all trials in the browser"
    width = max(len(command) for command in commands)
    return ["next:", *(f"  {command:<{width}}  # {text}" for command, text in commands.items())]


def which_study(config: StudyConfig) -> str:
    """Return the options that lead a command to this study; none for evolve.yaml as it stands."""
    file = load_config(config.source).study
    options = "" if Path(config.source) == Path("evolve.yaml") else f" --config {config.source}"
    options += "" if config.study.name == file.name else f" --study {config.study.name}"
    return options + (
        "" if config.study.storage == file.storage else f" --storage {config.study.storage}"
    )


def _short(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
