"""The page of two compared studies: verdict, best so far of both, table, differences."""

from datetime import datetime
from pathlib import Path

from optuna.study import StudyDirection
from optuna.trial import TrialState

from evolve.compare import Comparison, Side
from evolve.page.axes import Plot, line, linear
from evolve.page.charts import both_sizes
from evolve.page.markup import Markup, joined, table, tag
from evolve.page.sections import html_page
from evolve.page.verdict import gain_bar
from evolve.record import CONFIRM, feasible, fitness, kind_of
from evolve.report import fitness_range, replacing
from evolve.thinning import is_measured


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write the comparison of two studies as one HTML file."""
    with replacing(path) as partial:
        partial.write_text(comparison_page(comparison), encoding="utf-8", errors="replace")


def comparison_page(comparison: Comparison) -> str:
    """Return the comparison as one HTML page; it asks nothing of any server."""
    a, b = comparison.a.name, comparison.b.name
    body = [
        tag("header", tag("h1", f"{a} and {b}"), _date()),
        tag("section", _verdict(comparison), id="verdict"),
        tag("section", tag("h2", "Best so far"), _chart(comparison), id="search"),
        tag("section", tag("h2", "Side by side"), table(["", a, b], _rows(comparison)), id="table"),
        tag("section", tag("h2", "What was different"), _differences(comparison), id="different"),
    ]
    return html_page(f"{a} and {b}: {comparison.word}", comparison.text, body)


def _date() -> Markup:
    return tag("p", f"{datetime.now():%Y-%m-%d %H:%M}", class_="dim")


def _verdict(comparison: Comparison) -> Markup:
    css = "better" if comparison.word.endswith("is better") else "undecided"
    badge = tag("div", comparison.word, class_=f"badge {css}")
    text = f"{comparison.text}.".replace(" %", "\N{NO-BREAK SPACE}%")
    bar = "" if comparison.why_not else gain_bar(comparison.gain, comparison.a.name)
    return joined([badge, tag("p", text, class_="sentence"), bar])


def _rows(comparison: Comparison) -> list[list[str | Markup]]:
    return [[tag("b", name), left, right] for name, left, right in comparison.rows]


def _differences(comparison: Comparison) -> Markup:
    if not comparison.differences:
        return tag("p", "Settings, start values and spaces are equal.", class_="dim")
    rows = [
        [tag("b", name), *("absent" if value is None else str(value) for value in pair)]
        for name, pair in comparison.differences.items()
    ]
    return table(["name", comparison.a.name, comparison.b.name], rows)


def best_line(side: Side) -> list[tuple[int, float]]:
    """Return (number of trials, best fitness of them) wherever it changes, and at the end."""
    sign = -1.0 if side.study.directions[0] == StudyDirection.MINIMIZE else 1.0
    search = [t for t in side.trials if kind_of(t) != CONFIRM and t.state.is_finished()]
    steps: list[tuple[int, float]] = []
    for count, trial in enumerate(search, start=1):
        good = trial.state == TrialState.COMPLETE and is_measured(trial) and feasible(trial)
        if good and (not steps or sign * (fitness(trial) - steps[-1][1]) > 0):
            steps.append((count, fitness(trial)))
    return [*steps, (len(search), steps[-1][1])] if steps else []


def _chart(comparison: Comparison) -> Markup:
    sides = (comparison.a, comparison.b)
    lines = [best_line(side) for side in sides]
    if not any(lines):
        return tag("p", "No trial is complete yet.", class_="dim")
    signs = zip(("line-a", "line-b"), (side.name for side in sides), strict=True)
    entries = (
        tag(
            "span",
            Markup(f'<svg class="sign" viewBox="0 0 16 16">{_sign(css)}</svg>'),
            name,
            class_="entry",
        )
        for css, name in signs
    )
    chart = both_sizes(lambda *size: _lines(lines, *size))
    return joined([chart, tag("div", *entries, class_="legend")])


def _sign(css: str) -> Markup:
    return line([(0, 8), (16, 8)], css)


def _lines(lines: list[list[tuple[int, float]]], width: float, height: float, css: str) -> Markup:
    last = max(number for steps in lines for number, _ in steps)
    limits = fitness_range([value for steps in lines for _, value in steps])
    x = linear(1, max(last, 2), "trials", 8, whole=True)
    plot = Plot(x, linear(*limits, "best fitness so far", 6), width, height, 66)
    parts = []
    for steps, own in zip(lines, ("line-a", "line-b"), strict=True):
        corners: list[tuple[float, float]] = []
        for count, value in steps:
            if corners:
                corners.append((plot.px(count), corners[-1][1]))
            corners.append((plot.px(count), plot.py(value)))
        parts.append(line(corners, own))
    return plot.drawing("Best fitness so far of both studies", *parts, css=css)
