"""Trials as lines: parallel coordinates, learning curves; and how well epochs rank trials."""

import math
from collections.abc import Callable, Sequence

from optuna.trial import FrozenTrial, TrialState

from evolve.page.axes import Plot, Ticks, area, drawing, label, line, linear, of_gene
from evolve.page.charts import both_sizes, key
from evolve.page.markup import Markup, escaped, joined
from evolve.page.scene import Scene, place_of
from evolve.record import fitness
from evolve.space import Gene

AXES = 12  # hyperparameters in parallel coordinates, at most
LINES = 300  # trials in parallel coordinates, at most; the best ones
CURVES = 150  # learning curves behind those of the finalists, at most
GOOD = 0.1  # share of the trials that stand out


# ---- parallel coordinates


def parallel(scene: Scene) -> Markup:
    """Return a line for each trial through its values, the best tenth in front."""
    genes, ranked = scene.genes[:AXES], shown_lines(scene)
    wide = _parallel(scene, genes, ranked, upright=True)
    narrow = _parallel(scene, genes, ranked, upright=False)
    entries = [("other", "a trial"), ("final-line", "the best tenth")]
    entries += [("start-line", "start values"), ("winner-line", "recommended")]
    return joined([wide, narrow, key(*entries)])


def shown_lines(scene: Scene) -> list[FrozenTrial]:
    """Return the complete trials that parallel coordinates show, the best first."""
    complete = [t for t in scene.drawn_measured if t.state == TrialState.COMPLETE]
    return sorted(complete, key=lambda trial: -scene.sign * fitness(trial))[:LINES]


def _parallel(
    scene: Scene, genes: Sequence[Gene], ranked: Sequence[FrozenTrial], *, upright: bool
) -> Markup:
    """Draw upright axes side by side, or lying ones below each other, which suit a phone."""
    across = 960.0 if upright else 360.0
    down = 340.0 if upright else 48.0 * (len(genes) + 1) + 10
    ends = (24.0, down - 44) if upright else (106.0, across - 24)
    first, last = (50.0, across - 50) if upright else (22.0, down - 30)
    step = (last - first) / max(1, len(genes))

    def pixel(index: int, place: float) -> tuple[float, float]:
        along = (1 - place if upright else place) * (ends[1] - ends[0]) + ends[0]
        return (first + index * step, along) if upright else (along, first + index * step)

    value_axis = linear(*scene.range, "fitness", 5 if upright else 4)
    parts: list[str] = []
    for index, gene in enumerate(genes):
        parts += _spine(pixel, index, gene.name, of_gene(gene).ticks, upright)
    parts += _spine(pixel, len(genes), "fitness", value_axis.ticks, upright)

    def trace(trial: FrozenTrial, css: str) -> str:
        points, row = [], [place_of(gene, trial.params) for gene in genes]
        for index, place in enumerate([*row, value_axis.place(fitness(trial))]):
            if place is not None:
                points.append(pixel(index, place))
        coordinates = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        return f'<polyline class="m {css}" data-n="{trial.number}" points="{coordinates}"/>'

    good = math.ceil(GOOD * len(ranked))
    traces = [trace(trial, "curve") for trial in reversed(ranked[good:])]
    traces += [trace(trial, "curve final-line") for trial in reversed(ranked[:good])]
    for trial, css in ((scene.start, "start-line"), (scene.winner, "win-line")):
        traces += [trace(trial, f"curve {css}")] if trial is not None else []
    alt = f"Parallel coordinates of {len(ranked)} trials over {len(genes)} hyperparameters"
    css = f"parallel {'wide' if upright else 'narrow'}"
    return drawing(across, down, alt, *traces, *parts, css=css)


def _spine(
    pixel: Callable[[int, float], tuple[float, float]],
    index: int,
    name: str,
    ticks: Ticks,
    upright: bool,
) -> list[str]:
    (left, low), (right, high) = pixel(index, 0.0), pixel(index, 1.0)
    parts = [f'<path class="spine" d="M{left:.1f} {low:.1f}L{right:.1f} {high:.1f}"/>']
    for place, text in ticks:
        x, y = pixel(index, place)
        if upright:
            parts.append(label(x + 4, y + 4, text, "start", "halo"))
        else:
            parts.append(label(x, y + 14, text, "end" if place > 0.97 else "middle", "halo"))
    if upright:
        shift = 16 if index % 2 == 0 else 32  # names on two lines, so that they do not overlap
        parts.append(label(left, low + shift, name, css="title"))
    else:
        short = name if len(name) <= 13 else f"{name[:12]}…"
        parts.append(label(99, low + 4, short, "end", "title"))
    return parts


# ---- learning curves


def learning_curves(scene: Scene) -> Markup:
    """Return the reported values by epoch: the winner's, the finalists', the start values', all."""
    front = _front_curves(scene)
    entries = [("other", "a trial"), ("start-line", "start values")]
    others = any(css == "final-line" for _, css in front)
    entries += [("final-line", "other finalists")] * others
    entries += [("winner-line", "recommended (thin: repeats)")]
    return joined([both_sizes(lambda *size: _curves(scene, front, *size)), key(*entries)])


def has_curves(scene: Scene) -> bool:
    """Return whether any trial reported two epochs."""
    return any(len(trial.intermediate_values) > 1 for trial in scene.drawn)


def _front_curves(scene: Scene) -> list[tuple[FrozenTrial, str]]:
    """Return the trials to stand out, and repeats of their values, with their CSS classes."""
    verdict = scene.summary.verdict
    numbers = {m.configuration.of: "final-line" for m in verdict.finalists}
    if scene.start is not None:
        numbers[scene.start.number] = "start-line"
    if scene.winner is not None:
        numbers[scene.winner.number] = "win-line"
    found = []
    for number, css in numbers.items():
        found += [(trial, f"{css} faint") for trial in scene.runs_of(number)]
        found += [(trial, css) for trial in scene.search if trial.number == number]
    return found


def _curves(
    scene: Scene,
    front: Sequence[tuple[FrozenTrial, str]],
    width: float,
    height: float,
    css: str,
) -> Markup:
    numbers = {trial.number for trial, _ in front}
    others = [t for t in scene.drawn if t.intermediate_values and t.number not in numbers]
    others = others[:: max(1, math.ceil(len(others) / CURVES))]
    chosen = [*((trial, "") for trial in others), *front]
    steps = [step for trial, _ in chosen for step in trial.intermediate_values]
    values = [v for t, _ in chosen for v in t.intermediate_values.values() if math.isfinite(v)]
    shift = 1 if min(steps) == 0 else 0
    x = linear(min(steps) + shift, max(steps) + shift, "epoch", 8, whole=True)
    plot = Plot(x, linear(min(values), max(values), "fitness"), width, height)
    parts = []
    for trial, own in chosen:
        points = " ".join(
            f"{plot.px(step + shift):.1f},{plot.py(value):.1f}"
            for step, value in sorted(trial.intermediate_values.items())
            if math.isfinite(value)
        )
        parts.append(
            f'<polyline class="m curve {escaped(own)}" data-n="{trial.number}" points="{points}"/>'
        )
    alt = f"Fitness by epoch of {len(chosen)} trials"
    return plot.drawing(alt, *parts, css=f"{css} learning")


# ---- which epoch ranks like the last


def rank_chart(scene: Scene) -> Markup:
    """Return the rank correlation of each epoch with the last one, with its 90 % interval."""
    entries = [("trend", "rank correlation with the last epoch, 90 % interval")]
    least = float(scene.config.pruning.options.get("min_rank", 0.3))
    entries += [("level", f"{least:g}: the least lower end at which a trial may be stopped")]
    return joined([both_sizes(lambda *size: _ranks(scene, least, *size)), key(*entries)])


def has_ranks(scene: Scene) -> bool:
    """Return whether any epoch but the last has a known rank correlation."""
    return any(math.isfinite(check.spearman) for check in scene.checks[:-1])


def _ranks(scene: Scene, least: float, width: float, height: float, css: str) -> Markup:
    checks = [check for check in scene.checks if math.isfinite(check.spearman)]
    shift = 1 if scene.checks[0].step == 0 else 0
    last = scene.checks[-1].step + shift
    x = linear(scene.checks[0].step + shift, last, "epoch", 8, whole=True)
    low = min(0.0, *(check.interval[0] for check in checks), least)
    plot = Plot(x, linear(low, 1.0, "rank correlation"), width, 0.75 * height)
    upper = [(plot.px(c.step + shift), plot.py(c.interval[1])) for c in checks]
    lower = [(plot.px(c.step + shift), plot.py(c.interval[0])) for c in checks]
    middle = [(plot.px(c.step + shift), plot.py(c.spearman)) for c in checks]
    row = plot.py(least)
    level = line([(plot.column(0), row), (plot.column(1), row)], "level")
    usable = [
        f'<circle class="usable" cx="{x_:.1f}" cy="{y_:.1f}" r="4"/>'
        for check, (x_, y_) in zip(checks, middle, strict=True)
        if check.usable
    ]
    parts = [area([*upper, *reversed(lower)], "band"), line(middle, "trend"), level, *usable]
    alt = "Rank correlation by epoch: " + ", ".join(f"{c.spearman:.2f}" for c in checks)
    return plot.drawing(alt, *parts, css=f"{css} ranks")
