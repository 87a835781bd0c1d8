"""A study as a table (CSV) and as pictures (PNG), read from its trials alone."""

import csv
import math
import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from evolve.config import StudyConfig
from evolve.record import CONFIRM, START, fitness, kind_of, ranking, value_of
from evolve.thinning import thinned_out

LEADING = ("number", "kind", "state", "fitness")
TRAILING = ("seed", "seconds", "attempts", "reason", "of", "repeat")
# Source of the colours: Okabe and Ito 2008, told apart by colour-blind people
BLUE, ORANGE, VERMILION, GREEN, GREY = "#0072B2", "#E69F00", "#D55E00", "#009E73", "#666666"
GRID: dict[str, Any] = {"color": "#B0B0B0", "lw": 0.8, "alpha": 0.25, "zorder": 0}
DPI = 120


def write_trials_csv(trials: Sequence[FrozenTrial], config: StudyConfig, path: Path) -> None:
    """Write one row a trial: state, fitness, values in full precision, metrics, seed, reason."""
    params = list(dict.fromkeys([*config.space.names, *_names(trial.params for trial in trials)]))
    taken = {*LEADING, *TRAILING, *params}
    metrics = [name for name in _names(map(_metrics, trials)) if name != "fitness"]
    columns = {name: f"metric.{name}" if name in taken else name for name in metrics}
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*LEADING, *params, *columns.values(), *TRAILING])
        for trial in trials:  # lists: dictionaries take twice as long
            row = [trial.number, kind_of(trial), trial.state.name.lower(), value_of(trial)]
            for names, values in (
                (params, trial.params),
                (columns, _metrics(trial)),
                (TRAILING, trial.user_attrs),
            ):
                row += [values.get(name, "") for name in names]
            writer.writerow(row)


def write_convergence_plot(
    trials: Sequence[FrozenTrial],
    config: StudyConfig,
    path: Path,
    recommended: int | None = None,
) -> None:
    """Draw fitness by trial, the best so far, the start value, and the repeats with other seeds.

    The star is the `recommended` trial; None: the one that measured best.
    """
    scene = _scene(trials, recommended)
    repeats = _repeats(scene)
    figure = new_figure(10, 5)
    if repeats:
        widths = [max(3.0, 8.0 - 0.6 * len(repeats)), 0.6 * len(repeats) + 0.8]
        main, side = figure.subplots(1, 2, sharey=True, width_ratios=widths)
        _draw_repeats(side, repeats)
        if scene.start is not None:
            side.axhline(fitness(scene.start), color=GREY, ls="--", lw=1.2)
    else:
        main = figure.subplots()
    values = [value for repeat in repeats for value in repeat.values]
    limits = fitness_range([*map(fitness, scene.measured), *values])
    _draw_progress(main, scene, limits[0])
    main.set_ylim(*limits)
    main.set_title(_title(config, scene), loc="left")
    main.set_xlabel("trial")
    main.set_ylabel(formula(config))
    handles, labels = main.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    save(figure, path)


def write_parameter_plot(
    trials: Sequence[FrozenTrial],
    config: StudyConfig,
    path: Path,
    recommended: int | None = None,
) -> None:
    """Draw fitness against each hyperparameter: later trials brighter, winner and start marked."""
    scene = _scene(trials, recommended)
    names = _names(trial.params for trial in scene.drawn)
    columns = min(5, max(1, math.ceil(math.sqrt(len(names)))))
    rows = max(1, math.ceil(len(names) / columns))
    figure, grid = _panels(rows, columns)
    dots = None
    for index, (axes, name) in enumerate(zip(grid, names, strict=False)):
        axes.set_ylim(*scene.range)  # first: what is drawn then need not be measured
        dots = _draw_parameter(axes, name, scene)
        if index % columns:  # marks that nobody reads take a second; their lines are as good
            levels = [level for level in grid[0].get_yticks() if axes.get_ylim()[0] < level]
            axes.hlines(levels, 0, 1, transform=axes.get_yaxis_transform(), **GRID)
            axes.yaxis.set_visible(False)
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    for axes in grid[: len(names) : columns]:
        axes.set_ylabel("fitness")
    few = len(scene.drawn) < len(scene.measured)
    title = _title(config, scene) + f" ({len(scene.drawn)} of the trials drawn)" * few
    figure.suptitle(title, x=0.01, y=1 - 0.12 / figure.get_figheight(), ha="left")
    if dots is not None:
        place = figure.add_axes((1 - 1.0 / figure.get_figwidth(), 0.15, 0.012, 0.7))
        figure.colorbar(dots, cax=place, label="trial")
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False)
    save(figure, path)


def _panels(rows: int, columns: int) -> tuple[Any, Any]:
    """Return a figure and its panels; places by hand, as 24 panels take seconds to lay out."""
    width, height = max(7.0, 2.6 * columns + 1.5), 2.5 * rows + 1.1  # inches
    figure = new_figure(width, height, layout=None)
    margins = {"left": 0.75 / width, "right": 1 - 1.2 / width}
    margins |= {"bottom": 0.85 / height, "top": 1 - 0.75 / height, "wspace": 0.1, "hspace": 0.36}
    return figure, figure.subplots(rows, columns, squeeze=False, gridspec_kw=margins).flatten()


def new_figure(
    width: float, height: float, layout: Literal["constrained"] | None = "constrained"
) -> Any:
    """Return an empty figure of Matplotlib, inches; only this file imports it."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout=layout)


def add_lines(
    axes: Any, lines: Sequence[Sequence[tuple[float, float]]], label: str, style: dict[str, Any]
) -> None:
    """Draw lines through corners as one artist; nan breaks a line."""
    from matplotlib.collections import LineCollection

    axes.add_collection(LineCollection(lines, label=label, **style))


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with replacing(path) as partial:
        figure.savefig(partial, format="png")


# ---- what is drawn ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scene:
    """The trials of a study; those of the `search`, and of these the `measured` with a fitness.

    `winner` is what is recommended, `word` calls it so; or what measured best.

    Of the measured ones the `drawn` stand in pictures with a panel for each hyperparameter.
    """

    trials: Sequence[FrozenTrial]
    search: list[FrozenTrial]
    measured: list[FrozenTrial]
    drawn: list[FrozenTrial]
    start: FrozenTrial | None
    winner: FrozenTrial | None
    word: str = "best"

    @cached_property
    def range(self) -> tuple[float, float]:
        """Range of fitness to draw, repeats left out."""
        return fitness_range([fitness(trial) for trial in self.measured])


@dataclass(frozen=True)
class _Repeat:
    """One configuration measured again with other seeds."""

    label: str
    values: list[float]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def sd(self) -> float:
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


def _scene(trials: Sequence[FrozenTrial], recommended: int | None = None) -> _Scene:
    search = [t for t in trials if kind_of(t) != CONFIRM and t.state.is_finished()]
    measured = [t for t in search if t.state != TrialState.FAIL and t.values]
    starts = [t for t in measured if kind_of(t) == START and t.state == TrialState.COMPLETE]
    first = [t for t in measured if t.number == 0]
    start, winner = next(iter(starts or first), None), next(iter(ranking(trials)), None)
    named = [trial for trial in measured if trial.number == recommended]
    winner = named[0] if named else winner
    drawn = thinned_out(measured, {trial.number for trial in (start, winner) if trial}, 1.0)
    word = "recommended" if named else "best"
    return _Scene(trials, search, measured, drawn, start, winner, word)


def _repeats(scene: _Scene) -> list[_Repeat]:
    values: dict[int, list[float]] = {}
    for trial in scene.trials:
        if kind_of(trial) == CONFIRM and trial.state == TrialState.COMPLETE:
            values.setdefault(int(trial.user_attrs.get("of", -1)), []).append(fitness(trial))
    start = scene.start.number if scene.start else 0
    order = sorted(values, key=lambda of: (of != start, of))
    return [_Repeat("start" if of == start else f"trial {of}", values[of]) for of in order]


def _draw_progress(axes: Any, scene: _Scene, low: float) -> None:
    complete = [trial for trial in scene.measured if trial.state == TrialState.COMPLETE]
    pruned = [trial for trial in scene.measured if trial.state == TrialState.PRUNED]
    _dots(axes, complete, low, color=BLUE, marker="o", label="complete", zorder=3)
    _dots(axes, pruned, low, color=ORANGE, marker="^", label="stopped early", zorder=3)
    failed = [trial.number for trial in scene.search if trial.state == TrialState.FAIL]
    if failed:
        edge = axes.get_xaxis_transform()  # y in shares of the axes' height
        heights = [0.02] * len(failed)
        axes.scatter(failed, heights, c=VERMILION, marker="x", transform=edge, label="failed")
    if complete:
        best = list(accumulate(map(fitness, complete), max))
        numbers = [trial.number for trial in complete] + [scene.search[-1].number]
        axes.step(
            numbers, [*best, best[-1]], where="post", color="black", lw=1.5, label="best so far"
        )
    if scene.start is not None:
        axes.axhline(fitness(scene.start), color=GREY, ls="--", lw=1.2, label="start values")
    if scene.winner is not None:
        text = f"{scene.word}: trial {scene.winner.number}"
        _star(axes, scene.winner.number, fitness(scene.winner), text)
    if not scene.measured:
        axes.text(
            0.5, 0.5, "no trial has ended with a fitness yet", transform=axes.transAxes, ha="center"
        )
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)


def _draw_repeats(axes: Any, repeats: Sequence[_Repeat]) -> None:
    for place, repeat in enumerate(repeats):
        colour = GREY if repeat.label == "start" else GREEN
        axes.scatter([place] * len(repeat.values), repeat.values, c=colour, s=18, alpha=0.6)
        axes.errorbar(
            place + 0.2, repeat.mean, yerr=repeat.sd, fmt="D", color=colour, capsize=4, ms=6
        )
    labels = [f"{repeat.label}\n{repeat.mean:.3f}" for repeat in repeats]
    axes.set_xticks(range(len(repeats)), labels, fontsize="small")
    axes.set_xlim(-0.5, len(repeats) - 0.3)
    axes.set_title("other seeds: mean ± sd", loc="left", fontsize="medium")
    axes.grid(alpha=0.25, axis="y")


def _draw_parameter(axes: Any, name: str, scene: _Scene) -> Any:
    """Draw one hyperparameter and return the dots, for a colour scale."""
    trials, low = [trial for trial in scene.drawn if name in trial.params], scene.range[0]
    place = _placing(name, trials)

    def heights(chosen: Sequence[FrozenTrial]) -> list[float]:
        return [max(fitness(trial), low) for trial in chosen]

    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    if pruned:
        style = {"marker": "^", "ms": 3.5, "color": "#BBBBBB", "ls": "", "label": "stopped early"}
        axes.plot([place(t) for t in pruned], heights(pruned), **style)
    # arrays: of a list Matplotlib looks at each number for a mask
    numbers, places = np.array([t.number for t in complete]), [place(t) for t in complete]
    colours: dict[str, Any] = {"c": numbers, "cmap": "viridis", "s": 16, "alpha": 0.85}
    dots = axes.scatter(np.array(places), np.array(heights(complete)), **colours)
    dots.set_clim(0, max(1, scene.search[-1].number))
    title = name
    if scene.start is not None and name in scene.start.params:
        style = {"marker": "D", "ms": 6.7, "mfc": "none", "mec": VERMILION, "mew": 1.8, "ls": ""}
        axes.plot(place(scene.start), *heights([scene.start]), label="start", **style)
    if scene.winner is not None and name in scene.winner.params:
        _star(axes, place(scene.winner), fitness(scene.winner), scene.word)
        value = scene.winner.params[name]
        title += f" = {value:.3g}" if isinstance(value, float) else f" = {value}"
    axes.set_title(title, fontsize="medium", y=1.0)  # a place of its own need not be looked for
    axes.tick_params(labelsize="small")
    axes.grid(alpha=0.25)
    _set_scale(axes, name, trials)
    return dots


def _set_scale(axes: Any, name: str, trials: Sequence[FrozenTrial]) -> None:
    """Give an axis names of choices, or few and plain numbers on a log scale."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    distribution = trials[0].distributions[name]
    choices = getattr(distribution, "choices", None)
    if choices is not None:
        axes.set_xticks(range(len(choices)), [str(choice) for choice in choices])
        axes.set_xlim(-0.5, len(choices) - 0.5)
    elif getattr(distribution, "log", False):
        values = [float(trial.params[name]) for trial in trials]
        decades = math.log10(max(values) / min(values))
        steps = (1.0,) if decades > 2 else (1.0, 3.0) if decades > 1 else (1.0, 2.0, 5.0)
        axes.set_xscale("log")
        narrow = decades < 0.7  # LogLocator would then crowd the axis with linear ticks
        marks = MaxNLocator(nbins=3) if narrow else LogLocator(subs=steps, numticks=6)
        axes.xaxis.set_major_locator(marks)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())  # each of its marks takes a millisecond
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4))


def _placing(name: str, trials: Sequence[FrozenTrial]) -> Callable[[FrozenTrial], float]:
    """Return where a trial stands on the axis of a hyperparameter; choices are spread a little."""
    choices = getattr(trials[0].distributions[name], "choices", None)

    def place(trial: FrozenTrial) -> float:
        if choices is None:
            return float(trial.params[name])
        spread = (trial.number * 0.618) % 1.0 - 0.5
        return float(choices.index(trial.params[name])) + 0.5 * spread

    return place


def _dots(axes: Any, trials: Sequence[FrozenTrial], low: float, **style: Any) -> None:
    """Draw trials by number; those below the picture stand at its lower edge as open marks."""
    style |= {"ls": "", "ms": 4.9}
    inside = [trial for trial in trials if fitness(trial) >= low]
    below = [trial for trial in trials if fitness(trial) < low]
    if inside:
        axes.plot([t.number for t in inside], [fitness(t) for t in inside], **style)
    if below:
        style |= {"marker": "v", "mfc": "none", "label": None}
        axes.plot([t.number for t in below], [low] * len(below), clip_on=False, **style)


def _star(axes: Any, x: float, y: float, label: str) -> None:
    style = {"marker": "*", "ms": 13.8, "color": GREEN, "mec": "black", "mew": 0.8, "ls": ""}
    axes.plot(x, y, zorder=5, label=label, **style)


def fitness_range(values: Sequence[float]) -> tuple[float, float]:
    """Return the range of fitness to draw: all of it, but for values far below the rest."""
    if not values:
        return 0.0, 1.0
    ordered = sorted(values)
    top, quarter = ordered[-1], ordered[len(ordered) // 4]
    low = max(ordered[0], quarter - 1.5 * (top - quarter))
    margin = 0.06 * (top - low) or 0.05 * abs(top) or 0.05
    return low - margin, top + margin


# ---- words and files -------------------------------------------------------------------------


def _title(config: StudyConfig, scene: _Scene) -> str:
    title = f"{config.study.name}: {len(scene.search)} trials"
    if scene.start is None or scene.winner is None:
        return title
    start, winner = (fitness(trial) for trial in (scene.start, scene.winner))
    return f"{title}, start {start:.4f}, {scene.word} {winner:.4f}"


def formula(config: StudyConfig) -> str:
    terms = [
        name if weight == 1 else f"{weight:g} {name}" for name, weight in config.fitness.items()
    ]
    formula = " + ".join(terms)
    return f"fitness = {formula}" if formula != "fitness" and len(formula) < 50 else "fitness"


def _metrics(trial: FrozenTrial) -> dict[str, Any]:
    return trial.user_attrs.get("metrics") or {}


def _names(mappings: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to; what stands there takes the place of `path` at once and whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
