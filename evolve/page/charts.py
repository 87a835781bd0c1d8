"""The search at a glance: best so far, trade-offs, every hyperparameter against fitness."""

import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from evolve.insight import MATTERS, NOTHING
from evolve.page.axes import (
    Axis,
    Plot,
    area,
    beyond,
    cross,
    diamond,
    dot,
    drawing,
    label,
    line,
    linear,
    of_gene,
    star,
    triangle,
)
from evolve.page.markup import Markup, fixed, joined, number, tag
from evolve.page.scene import Scene, place_of
from evolve.record import feasible, fitness
from evolve.space import Gene

Z90 = 1.645  # standard deviations on each side that hold 90 %
TREND_LEAST = 10  # trials from which a trend is drawn
BANDWIDTH = 0.1  # of the trend, as a share of the range
PLACES = 25  # of the trend
WIDE, NARROW = (960.0, 320.0), (360.0, 260.0)  # pixels; page.css shows one of the two

Floats = NDArray[np.float64]
SIGNS = {
    "complete": dot(8, 8, -1),
    "over": dot(8, 8, -1, "ok over"),
    "beyond": beyond(8, 12, -1),
    "early": triangle(8, 8, -1),
    "failed": cross(8, 8, -1),
    "start": diamond(8, 8, size=5),
    "winner": star(8, 8, size=7),
    "best": line([(0, 8), (16, 8)], "best"),
    "level": line([(0, 8), (16, 8)], "level"),
    "repeat": dot(8, 8, -1),
    "noise": area([(0, 3), (16, 3), (16, 13), (0, 13)], "noise"),
    "trend": line([(0, 8), (16, 8)], "trend"),
    "other": line([(0, 8), (16, 8)], "curve shown"),
    "winner-line": line([(0, 8), (16, 8)], "curve win-line"),
    "start-line": line([(0, 8), (16, 8)], "curve start-line"),
    "final-line": line([(0, 8), (16, 8)], "curve final-line"),
}


def key(*entries: tuple[str, str]) -> Markup:
    """Return a legend: (name of a mark, words)."""
    items = []
    for name, text in entries:
        mark = SIGNS[name].replace(' data-n="-1"', "").replace('class="m ', 'class="')
        sign = f'<svg class="sign" viewBox="0 0 16 16" aria-hidden="true">{mark}</svg>'
        items.append(tag("span", Markup(sign), text, class_="entry"))
    return tag("div", *items, class_="legend")


def both_sizes(draw: Callable[[float, float, str], Markup]) -> Markup:
    """Return a chart for a wide page and one for a phone."""
    return joined([draw(*WIDE, "wide"), draw(*NARROW, "narrow")])


# ---- best so far


def progress(scene: Scene) -> Markup:
    """Return fitness by trial with the best so far, the start value and its noise."""
    entries = [("complete", "a trial"), ("best", "best so far")]
    states = {trial.state for trial in scene.search}
    entries += [("early", "stopped early")] * (TrialState.PRUNED in states)
    entries += [("failed", "failed (at the lower edge)")] * (TrialState.FAIL in states)
    entries += [("over", "beyond a limit")] * any(not feasible(t) for t in scene.complete)
    low, high = scene.range
    far = any(not low < fitness(trial) < high for trial in scene.complete)
    entries += [("beyond", "worse than this axis shows")] * far
    if scene.start is not None:
        entries.append(("level", "start values"))
    if noise_of(scene) is not None:
        entries.append(("noise", "where 90 % of single runs of the start values fall"))
    if scene.winner is not None:
        entries.append(("winner", f"recommended: trial {scene.winner.number}"))
    return joined([both_sizes(lambda *size: _progress(scene, *size)), key(*entries)])


def noise_of(scene: Scene) -> tuple[float, float] | None:
    """Return mean and standard deviation of single runs of the start values, if it is known."""
    start = scene.summary.verdict.start
    if start is not None and len(start.values) > 1:
        groups = [m.values for m in (start, *scene.summary.verdict.finalists) if len(m.values) > 1]
        freedom = sum(len(values) - 1 for values in groups)
        total = sum((len(v) - 1) * statistics.variance(v.values()) for v in groups)
        return start.mean, math.sqrt(total / freedom)
    estimate = scene.summary.estimate
    if scene.start is None or estimate is None or not math.isfinite(estimate.sd):
        return None
    return fitness(scene.start), estimate.sd


def best_so_far(scene: Scene) -> list[tuple[int, float]]:
    """Return (trial, best fitness up to it) wherever it changes, and at the last trial."""
    steps: list[tuple[int, float]] = []
    for trial in sorted(scene.complete, key=lambda trial: trial.number):
        value = fitness(trial)
        if feasible(trial) and (not steps or scene.sign * (value - steps[-1][1]) > 0):
            steps.append((trial.number, value))
    if steps:
        steps.append((max(trial.number for trial in scene.search), steps[-1][1]))
    return steps


def _progress(scene: Scene, width: float, height: float, css: str) -> Markup:
    last = max((trial.number for trial in scene.search), default=1)
    x = linear(0, max(last, 1), "trial", 10 if css == "wide" else 5, whole=True)
    plot = Plot(x, linear(*scene.range, "fitness", 6), width, height, 60)
    parts: list[str] = []
    noise = noise_of(scene)
    left, right = plot.column(0), plot.column(1)
    if noise is not None:
        low, high = (plot.py(noise[0] + side * Z90 * noise[1]) for side in (-1, 1))
        parts.append(area([(left, low), (right, low), (right, high), (left, high)], "noise"))
    if scene.start is not None:
        row = plot.py(noise[0] if noise else fitness(scene.start))
        parts.append(line([(left, row), (right, row)], "level"))
    parts += [_mark(plot, trial, trial.number) for trial in scene.drawn]
    corners: list[tuple[float, float]] = []
    for number_, value in best_so_far(scene):
        if corners:
            corners.append((plot.px(number_), corners[-1][1]))
        corners.append((plot.px(number_), plot.py(value)))
    parts.append(line(corners, "best"))
    if scene.start is not None:
        parts.append(diamond(plot.px(scene.start.number), plot.py(fitness(scene.start))))
    if scene.winner is not None:
        parts.append(star(plot.px(scene.winner.number), plot.py(fitness(scene.winner))))
    alt = f"Fitness of {len(scene.search)} trials in their order; {_alt_numbers(scene)}"
    return plot.drawing(alt, *parts, css=f"{css} progress")


def _alt_numbers(scene: Scene) -> str:
    start = "no start value" if scene.start is None else f"start {fixed(fitness(scene.start))}"
    if scene.winner is None:
        return f"{start}, no winner yet"
    return f"{start}, recommended trial {scene.winner.number} at {fixed(fitness(scene.winner))}"


def _mark(plot: Plot, trial: FrozenTrial, x: float) -> str:
    """Return the mark of a trial in a plot of fitness."""
    column = plot.px(x)
    if trial.state == TrialState.FAIL or not trial.values or not math.isfinite(trial.values[0]):
        return cross(column, plot.row(0) - 5, trial.number)
    place = plot.y.place(fitness(trial))
    row, css = plot.row(place), "ok" if feasible(trial) else "ok over"
    if trial.state == TrialState.PRUNED:
        return triangle(column, row, trial.number)
    if place in (0.0, 1.0):
        return beyond(column, row, trial.number, css, up=place == 1.0)
    return dot(column, row, trial.number, css)


# ---- trade-offs


def front_chart(scene: Scene) -> Markup:
    """Return the trade-offs of a study of several objectives: fitness against each other one."""
    others = list(scene.summary.objectives)[1:]
    charts = [both_sizes(lambda *size, i=i: _front(scene, i, *size)) for i in range(len(others))]
    entries = [("complete", "a trial"), ("best", "best trade-offs"), ("start", "start values")]
    entries += [("over", "beyond a limit")] * any(not feasible(t) for t in scene.complete)
    return joined([*charts, key(*entries, ("winner", "recommended: best fitness of them"))])


def _front(scene: Scene, other: int, width: float, height: float, css: str) -> Markup:
    name, direction = list(scene.summary.objectives.items())[other + 1]
    points = [t for t in scene.drawn if t in scene.complete and math.isfinite(t.values[other + 1])]
    values = [t.values[other + 1] for t in points] or [0.0, 1.0]
    better = "smaller" if direction == "minimize" else "larger"
    x = linear(min(values), max(values), f"{name} ({better} is better)", 5)
    plot = Plot(x, linear(*scene.range, "fitness", 6), width, height, 60)

    def at(trial: FrozenTrial) -> tuple[float, float]:
        return plot.px(trial.values[other + 1]), plot.py(fitness(trial))

    front = sorted(scene.summary.front, key=lambda trial: float(trial.values[other + 1]))
    parts = [dot(*at(t), t.number, "ok" if feasible(t) else "ok over") for t in points]
    parts.append(line([at(trial) for trial in front], "best"))
    if scene.start is not None:
        parts.append(diamond(*at(scene.start)))
    if scene.winner is not None:
        parts.append(star(*at(scene.winner)))
    alt = f"Fitness against {name}; {len(front)} best trade-offs"
    return plot.drawing(alt, *parts, css=f"{css} front")


# ---- every hyperparameter


def gene_charts(scene: Scene) -> Markup:
    """Return one small plot for each hyperparameter: its values against fitness."""
    words = {found.name: f"{found.share:.0%}" for found in scene.importances}
    panels = [_panel(scene, gene, words.get(gene.name)) for gene in scene.genes]
    entries = [("complete", "a trial")]
    trend = len(scene.complete) >= TREND_LEAST
    entries += [("trend", "local mean and its 90 % band; of a choice, its mean")] * trend
    entries += [("early", "stopped early")] * any(
        t.state == TrialState.PRUNED for t in scene.drawn_measured
    )
    entries += [("start", "start values"), ("winner", "recommended")]
    return joined([tag("div", *panels, class_="panels"), key(*entries)])


def _panel(scene: Scene, gene: Gene, share: str | None) -> Markup:
    """Return the plot of one hyperparameter with its name and the winner's value."""
    axis = of_gene(gene)
    y = linear(*scene.range, count=3)
    plot = Plot(Axis(axis.place, axis.ticks), y, 220, 150, 44, 8, 6, 24)
    parts, known = [], []
    for trial in scene.drawn_measured:
        place = place_of(gene, trial.params)
        if place is None or not scene.active(trial, gene):
            continue
        if gene.choices:  # a little apart, so that equal ones can be told
            place += ((trial.number * 0.618) % 1.0 - 0.5) * 0.5 / len(gene.choices)
        if trial.state == TrialState.COMPLETE:
            known.append((place, fitness(trial)))
        parts.append(_small_mark(plot, trial, place))
    parts += _trend(plot, gene, known)
    value = "–"
    for special, draw in ((scene.start, diamond), (scene.winner, star)):
        place = None if special is None else place_of(gene, special.params)
        if special is not None and place is not None:
            parts.append(draw(plot.column(place), plot.py(fitness(special)), size=6))
            value = number(special.params[gene.name], 3)
    name = tag("span", tag("b", gene.name), f" = {value}")
    title = tag("figcaption", name, _share(share))
    alt = f"{gene.name} against fitness, {len(parts)} marks; recommended {value}"
    return tag("figure", title, plot.drawing(alt, *parts, css="panel", key=gene.name), _when(gene))


def _small_mark(plot: Plot, trial: FrozenTrial, place: float) -> str:
    column, row = plot.column(place), plot.py(fitness(trial))
    if trial.state == TrialState.PRUNED:
        return triangle(column, row, trial.number)
    return dot(column, row, trial.number, "ok" if feasible(trial) else "ok over", 2.4)


def _share(share: str | None) -> Markup:
    return Markup("") if share is None else tag("span", share, class_="share", title="importance")


def _when(gene: Gene) -> Markup:
    if not gene.when:
        return Markup("")
    parts = (f"{other} is {' or '.join(map(str, values))}" for other, values in gene.when)
    return tag("small", f"only while {' and '.join(parts)}")


def _trend(plot: Plot, gene: Gene, known: Sequence[tuple[float, float]]) -> list[str]:
    """Return the local mean of fitness along a gene and its 90 % band; of a choice, its mean."""
    if len(known) < TREND_LEAST:
        return []
    places, values = (np.array(column) for column in zip(*known, strict=True))
    if gene.choices:
        return _choice_means(plot, len(gene.choices), places, values)
    at, mean, error = local_mean(places, values)
    columns = [plot.column(float(place)) for place in at]
    lower, middle, upper = (
        list(zip(columns, map(plot.py, mean + side * Z90 * error), strict=True))
        for side in (-1, 0, 1)
    )
    return [area([*upper, *reversed(lower)], "band"), line(middle, "trend")]


def _choice_means(plot: Plot, count: int, places: Floats, values: Floats) -> list[str]:
    parts: list[str] = []
    for index in range(count):
        inside = values[(places * count).astype(int) == index]
        if len(inside):
            row, centre, half = plot.py(float(inside.mean())), (index + 0.5) / count, 0.35 / count
            ends = [(plot.column(centre - half), row), (plot.column(centre + half), row)]
            parts.append(line(ends, "trend"))
    return parts


def local_mean(places: Floats, values: Floats) -> tuple[Floats, Floats, Floats]:
    """Return places, the mean of the values around each (Gaussian weights), its standard error.

    Only between the 5 % and 95 % quantiles of the places, beyond which little was tried.
    """
    low, high = np.quantile(places, (0.05, 0.95))
    at = np.linspace(low, high, PLACES)
    weights = np.exp(-0.5 * ((at[:, None] - places) / BANDWIDTH) ** 2)  # places x trials
    total = weights.sum(axis=1)
    mean = weights @ values / total
    variance = (weights * (values - mean[:, None]) ** 2).sum(axis=1) / total
    count = total**2 / (weights**2).sum(axis=1)  # trials that a place really rests on
    return at, mean, np.sqrt(variance / np.maximum(count - 1.0, 1.0))


# ---- importance


def importance_chart(scene: Scene) -> Markup:
    """Return a bar for each hyperparameter that has an effect, the largest first."""
    shown = [found for found in scene.importances if found.word != NOTHING][:15]
    largest = max((found.share for found in shown), default=1.0)
    rows: list[str] = []
    for place, found in enumerate(shown):
        top = 22.0 * place
        length = 150.0 * found.share / largest
        css = "matters" if found.word == MATTERS else "little"
        rows.append(label(112, top + 15, found.name, "end"))
        bar = (
            f'<rect class="bar {css}" x="120" y="{top + 4:.0f}" width="{length:.1f}" height="14"/>'
        )
        rows.append(bar)
        rows.append(label(126 + length, top + 15, f"{found.share:.0%} {found.word}", "start"))
    if not shown:
        return Markup("")
    alt = ", ".join(f"{found.name} {found.share:.0%}" for found in shown)
    return drawing(360, 22.0 * len(shown) + 4, f"Importance: {alt}", *rows, css="bars")
