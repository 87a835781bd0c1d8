"""Plots for papers beside those of `report`: importance, and parallel coordinates, as PNG."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from evolve.insight import MATTERS
from evolve.page.axes import of_gene
from evolve.page.scene import Scene, place_of
from evolve.page.traces import AXES, GOOD, shown_lines
from evolve.record import fitness
from evolve.report import BLUE, GREEN, GREY, VERMILION, add_lines, new_figure, save

LINE_STYLES: dict[str, dict[str, Any]] = {
    "a trial": {"color": GREY, "alpha": 0.3, "linewidths": 0.7},
    "the best tenth": {"color": BLUE, "alpha": 0.9, "linewidths": 1.2},
    "start values": {"color": VERMILION, "linestyles": "--", "linewidths": 2.0},
    "recommended": {"color": GREEN, "linewidths": 2.6},
}


def write_importance_plot(scene: Scene, path: Path) -> bool:
    """Draw a bar for each hyperparameter; returns whether there was anything to draw."""
    found = [one for one in scene.importances if one.share > 0.0][::-1]
    if not found:
        return False
    figure = new_figure(7, 0.28 * len(found) + 1.3)
    axes = figure.subplots()
    colours = [BLUE if one.word == MATTERS else "#AAAAAA" for one in found]
    bars = axes.barh([one.name for one in found], [100 * one.share for one in found], color=colours)
    axes.bar_label(bars, [f"{one.share:.0%} {one.word}" for one in found], padding=4, fontsize=8)
    axes.set_xlabel("share of all effects beyond chance, %")
    axes.set_xlim(0, 125 * max(one.share for one in found))
    axes.set_title(f"{scene.config.study.name}: importance of hyperparameters", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)
    return True


def write_parallel_plot(scene: Scene, path: Path) -> bool:
    """Draw a line for each trial through its values; returns whether there were two trials."""
    genes, ranked = scene.genes[:AXES], shown_lines(scene)
    if len(ranked) < 2 or not genes:
        return False
    low, high = scene.range
    figure = new_figure(max(7.0, 1.15 * (len(genes) + 1)), 4.6)
    axes = figure.subplots()

    def corners(trial: FrozenTrial) -> list[tuple[float, float]]:
        places = [place_of(gene, trial.params) for gene in genes]
        heights = [math.nan if place is None else place for place in places]
        heights.append(min(max((fitness(trial) - low) / (high - low), 0.0), 1.0))
        return list(enumerate(heights))

    def draw(trials: Sequence[FrozenTrial], label: str) -> None:
        if trials:  # all in one artist: a hundred times as quick as one for each
            add_lines(axes, [corners(trial) for trial in trials], label, LINE_STYLES[label])

    good = math.ceil(GOOD * len(ranked))
    draw(ranked[good:], "a trial")
    draw(ranked[:good], "the best tenth")
    draw([scene.start] if scene.start else [], "start values")
    draw([scene.winner] if scene.winner else [], "recommended")
    for column, gene in enumerate(genes):
        axes.axvline(column, color="black", lw=1)
        for place, text in of_gene(gene).ticks:
            _halo(axes, column, place, text)
    axes.axvline(len(genes), color="black", lw=1)
    for place in (0.0, 0.5, 1.0):
        _halo(axes, len(genes), place, f"{low + place * (high - low):.3g}")
    axes.set_xticks(range(len(genes) + 1), [*(g.name for g in genes), "fitness"], rotation=20)
    axes.set_yticks([])
    axes.autoscale()
    axes.spines[:].set_visible(False)
    axes.set_title(f"{scene.config.study.name}: {len(ranked)} trials as lines", loc="left")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    save(figure, path)
    return True


def _halo(axes: Any, column: int, place: float, text: str) -> None:
    box = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.5}
    axes.text(column + 0.04, place, text, fontsize=7, va="center", bbox=box)
