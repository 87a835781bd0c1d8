"""Tables of the page: winner beside start values, failures, trials, commands."""

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from evolve.insight import MATTERS, NOTHING
from evolve.page.markup import Markup, fixed, joined, number, signed, table, tag
from evolve.page.pictures import class_metrics
from evolve.page.scene import Scene, place_of
from evolve.record import CONFIRM, kind_of, reason_of, seconds_of, value_of
from evolve.space import Gene
from evolve.summary import HYP_BEST

METRICS = 8  # columns of metrics in the table of trials, at most
CLASSES, CLASS_METRICS = 20, 3  # rows and metrics of the table of classes, at most
OBJECTS = "objects"  # key of a class's metrics that only counts
REASONS = 12  # rows of failures
SHOWN_NUMBERS = 12  # of the trials that failed alike
LONG = 160  # characters of a reason in the table of trials


def values_table(scene: Scene) -> Markup:
    """Return the recommended values beside the start values, with their places in the range."""
    assert scene.winner is not None
    shares = {found.name: found for found in scene.importances}
    rows = []
    for gene in scene.genes:
        won, began = scene.winner.params.get(gene.name), scene.start_values.get(gene.name)
        found = shares.get(gene.name)
        cells = [tag("b", gene.name), number(began), _new_value(scene, gene, won)]
        cells += [_move(gene, began, won), _range_text(gene)]
        share = "–" if found is None or found.word == NOTHING else f"{found.share:.0%}"
        matters = found is not None and found.word == MATTERS
        cells += [tag("b", share) if matters else share] if shares else []
        rows.append(cells)
    head = ["hyperparameter", "start", "recommended", "place in range", "range"]
    return table(head + ["importance"] * bool(shares), rows, "values")


def _new_value(scene: Scene, gene: Gene, won: Any) -> Markup:
    assert scene.winner is not None
    if not scene.active(scene.winner, gene):
        return tag("span", "no effect here", class_="dim")
    same = not scene.changed(gene)
    return tag("span" if same else "b", number(won), class_="dim" if same else None)


def _range_text(gene: Gene) -> str:
    if gene.choices:
        return ", ".join(map(str, gene.choices))
    return f"{number(gene.low)} to {number(gene.high)}{' (log)' if gene.log else ''}"


def _move(gene: Gene, began: Any, won: Any) -> Markup:
    """Return a small picture: from the start value (diamond) to the recommended one (dot)."""
    places = [place_of(gene, {gene.name: value}) for value in (began, won)]
    parts = ['<path class="axis" d="M4 8H116"/>']
    x = [None if place is None else 4 + 112 * place for place in places]
    if x[0] is not None and x[1] is not None:
        parts.append(f'<path class="move" d="M{x[0]:.1f} 8H{x[1]:.1f}"/>')
    if x[0] is not None:
        parts.append(f'<path class="start" d="M{x[0]:.1f} 4l4 4l-4 4l-4 -4z"/>')
    if x[1] is not None:
        parts.append(f'<circle class="win" cx="{x[1]:.1f}" cy="8" r="4"/>')
    return Markup(
        f'<svg class="move" viewBox="0 0 120 16" aria-hidden="true">{"".join(parts)}</svg>'
    )


# ---- metrics


def metrics_table(scene: Scene) -> Markup:
    """Return the metrics of start values and winner: means over the repeats, if there are some."""
    assert scene.winner is not None
    sides = [_runs(scene, trial) for trial in (scene.start, scene.winner)]
    means = [_means(runs) for runs in sides]
    rows = []
    for name in means[1]:
        before, after = (side.get(name) for side in means)
        rows.append([tag("b", name), fixed(before), fixed(after), _difference(before, after)])
    head = ["metric", "start", "recommended", "difference"]
    note = _runs_text(*map(len, sides))
    found = table(head, rows, "metrics") if rows else ""
    return joined([found, tag("p", note, class_="note")])


def _runs_text(old: int, new: int) -> str:
    if max(old, new) < 2:
        return "Measured once."
    each = f"{new} repeats each" if old == new else f"{old} and {new} repeats"
    return f"Means over {each}."


def _difference(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return "–"
    return "same" if before == after else signed(after - before)


def class_table(scene: Scene) -> Markup:
    """Return the metrics by class of start values and winner, if both left some.

    Of many classes those that changed most are shown.
    """
    if scene.winner is None or scene.start is None:
        return Markup("")
    sides = [class_metrics(scene, trial.number) for trial in (scene.start, scene.winner)]
    old, new = (classes for classes, _ in sides)
    shared = [name for name in new if name in old]
    found = dict.fromkeys(metric for name in shared for metric in new[name] if metric in old[name])
    metrics = [metric for metric in found if metric != OBJECTS][:CLASS_METRICS]
    if not metrics:
        return Markup("")

    def change(name: str) -> float:
        before, after = (side[name].get(metrics[0], math.nan) for side in (old, new))
        return 0.0 if math.isnan(after - before) else abs(after - before)

    shown = shared
    if len(shared) > CLASSES:
        shown = sorted(shared, key=change, reverse=True)[:CLASSES]
    counted = any(OBJECTS in new[name] for name in shown)
    rows = []
    for name in shown:
        cells = [tag("b", name), *([number(new[name].get(OBJECTS, "–"))] if counted else [])]
        for metric in metrics:
            before, after = old[name].get(metric), new[name].get(metric)
            cells += [fixed(before), fixed(after), _difference(before, after)]
        rows.append(cells)
    head = ["class", *(["objects"] if counted else [])]
    head += [text for name in metrics for text in (f"{name}: start", "recommended", "difference")]
    text = _runs_text(*(runs for _, runs in sides))
    if len(shown) < len(shared):
        text += f" {len(shown)} of {len(shared)} classes, those that changed most."
    return joined([table(head, rows, "classes"), tag("p", text, class_="note")])


def _runs(scene: Scene, trial: FrozenTrial | None) -> list[FrozenTrial]:
    """Return the repeats of a trial's values; without any of the winner, the trial itself."""
    if trial is None:
        return []
    assert scene.winner is not None
    both = scene.start is not None and scene.runs_of(scene.start.number)
    repeats = scene.runs_of(trial.number) if both and scene.runs_of(scene.winner.number) else []
    return repeats or [trial]


def _means(runs: Sequence[FrozenTrial]) -> dict[str, float]:
    """Return the mean of each metric that all runs have as a finite number."""
    if not runs:
        return {}
    all_metrics = [_metrics(run) for run in runs]
    shared = [name for name in all_metrics[0] if all(name in one for one in all_metrics)]
    return {name: statistics.fmean(one[name] for one in all_metrics) for name in shared}


def _metrics(trial: FrozenTrial) -> dict[str, float]:
    """Return the finite metrics of a trial, fitness first."""
    given: Mapping[str, Any] = trial.user_attrs.get("metrics") or {}
    both = {"fitness": value_of(trial), **{k: v for k, v in given.items() if k != "fitness"}}
    return {
        name: float(value)
        for name, value in both.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


# ---- failures


def failures_table(scene: Scene) -> Markup:
    """Return the failed trials by reason; reasons that differ in numbers only are one."""
    groups: dict[str, list[FrozenTrial]] = {}
    for trial in scene.trials:
        if trial.state == TrialState.FAIL:
            groups.setdefault(re.sub(r"[\d.]+", "#", reason_of(trial)), []).append(trial)
    rows = []
    for _, trials in sorted(groups.items(), key=lambda item: -len(item[1]))[:REASONS]:
        numbers = ", ".join(str(trial.number) for trial in trials[:SHOWN_NUMBERS])
        more = f" and {len(trials) - SHOWN_NUMBERS} more" if len(trials) > SHOWN_NUMBERS else ""
        seconds = sum(map(seconds_of, trials))
        rows.append([len(trials), reason_of(trials[0]), f"{numbers}{more}", f"{seconds:.3g} s"])
    return table(["trials", "reason (the first one's)", "numbers", "time lost"], rows, "reasons")


# ---- all trials


def trials_table(scene: Scene) -> Markup:
    """Return a row for each trial that is drawn, and each repeat; the best first."""
    repeats = [t for t in scene.trials if kind_of(t) == CONFIRM and t.state.is_finished()]
    shown = sorted([*scene.drawn, *repeats], key=lambda trial: (_rank(scene, trial), trial.number))
    metrics = list(dict.fromkeys(name for trial in shown for name in _metrics(trial)))
    metrics = [name for name in metrics if name != "fitness"][:METRICS]
    genes = [gene.name for gene in scene.genes]
    head = ["trial", "state", "fitness", *genes, *metrics, "seconds", "seed", "reason"]
    body = joined(_row(scene, trial, genes, metrics) for trial in shown)
    heads = joined(tag("th", name, scope="col") for name in head)
    whole = tag("table", tag("thead", tag("tr", heads)), tag("tbody", body), class_="trials")
    return tag("div", whole, class_="scroll tall", tabindex="0")


def _rank(scene: Scene, trial: FrozenTrial) -> float:
    value = value_of(trial)
    known = value is not None and math.isfinite(value)
    return -scene.sign * value if known and value is not None else math.inf


def _row(scene: Scene, trial: FrozenTrial, genes: Sequence[str], metrics: Sequence[str]) -> Markup:
    own, attributes = _metrics(trial), trial.user_attrs
    state = trial.state.name.lower()
    if kind_of(trial) == CONFIRM:
        state += f", repeat of {attributes.get('of', '–')}"
    value = value_of(trial)
    cells = [trial.number, state, fixed(value)]
    cells += [number(trial.params[name]) if name in trial.params else "–" for name in genes]
    cells += [number(own[name]) if name in own else "–" for name in metrics]
    seconds = seconds_of(trial)
    reason = reason_of(trial)[:LONG] if trial.state == TrialState.FAIL else ""
    cells += [f"{seconds:.1f}" if seconds else "–", attributes.get("seed", "–"), reason]
    winner = scene.winner is not None and trial.number == scene.winner.number
    start = scene.start is not None and trial.number == scene.start.number
    css = "winner" if winner else "started" if start else None
    return tag("tr", *(tag("td", cell) for cell in cells), data_n=trial.number, class_=css)


# ---- commands


def commands_table(scene: Scene) -> Markup:
    """Return the commands that give each number of the page again."""
    options = scene.options
    folder = scene.config.directory.as_posix()
    lines = [
        (f"python -m evolve report{options}", "this page, and its plots as PNG"),
        (f"python -m evolve status{options}", "counts, verdict, importance, rank check"),
        (f"python -m evolve status{options} --json", "all numbers of the verdict"),
        (f"python -m evolve best{options}", f"the recommended values; also in {HYP_BEST}"),
        (f"python -m evolve run{options}", "goes on with the study, or finds that it is done"),
    ]
    lines += [(f"{folder}/trials.csv", "every trial in full precision, with its seed")]
    if scene.winner is not None:
        where = f"{folder}/trials/{scene.winner.number}/"
        lines.append((where, "files of the recommended trial: config, hyperparameters, curves"))
    return table(["command or file", "gives"], [(tag("code", c), text) for c, text in lines])
