"""Axes and the frame of a plot, as SVG. A place is a share of the axis, 0 to 1."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from evolve.gene import Gene
from evolve.page.markup import Markup, escaped, number

APART = 0.13  # share of an axis between two of its marks, at least

Ticks = tuple[tuple[float, str], ...]  # place on the axis, label


@dataclass(frozen=True)
class Axis:
    """Where values stand on an axis, its marks, and its title with the unit."""

    place: Callable[[Any], float]
    ticks: Ticks
    title: str = ""


def linear(low: float, high: float, title: str = "", count: int = 5, whole: bool = False) -> Axis:
    """Return an axis with about `count` round numbers on it; values outside stand at its ends."""
    if not high > low:
        low, high = low - 0.5, high + 0.5
    span = high - low

    def place(value: float) -> float:
        return min(max((value - low) / span, 0.0), 1.0)

    marks = round_numbers(low, high, count, whole)
    if len(marks) < min(4, count) and not whole:
        marks = round_numbers(low, high, 2 * count)
    digits = max(0, -math.floor(math.log10(marks[1] - marks[0]) + 1e-9)) if len(marks) > 1 else 3
    plain = digits <= 5 and max(map(abs, marks), default=0.0) < 1e5
    texts = [f"{mark:.{digits}f}" if plain else f"{mark:.3g}" for mark in marks]
    return Axis(place, tuple(zip(map(place, marks), texts, strict=True)), title)


def round_numbers(low: float, high: float, count: int, whole: bool = False) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten from `low` to `high`."""
    step = _round_step((high - low) / max(count, 1))
    if whole:
        step = max(1.0, float(round(step)))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step + 0.0 for index in range(first, last + 1)]


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(
        (factor * power for factor in (1.0, 2.0, 5.0) if factor * power >= least), 10 * power
    )


def of_gene(gene: Gene, count: int = 3) -> Axis:
    """Return the axis of a hyperparameter over its whole range, on the scale that is searched."""
    if gene.choices:
        values: Sequence[Any] = gene.choices
    elif gene.log:
        values = _powers(gene, count)
    else:
        values = round_numbers(gene.low, gene.high, count, gene.integer)
    ticks = [(gene.to_unit(value), _label(value)) for value in values]
    apart = [ticks[i] for i in range(len(ticks)) if i == 0 or ticks[i][0] - ticks[i - 1][0] > APART]
    return Axis(gene.to_unit, tuple(ticks if gene.choices else apart), gene.name)


def _powers(gene: Gene, count: int) -> list[float]:
    """Return round numbers of a logarithmic range: powers of ten, more where it is short."""
    least = max(gene.low, gene.shift, 1e-300) if gene.low <= 0 else gene.low
    decades = math.log10(gene.high / least)
    factors = (1.0,) if decades >= 2 else (1.0, 3.0) if decades > 1 else (1.0, 2.0, 5.0)
    every = max(1, math.ceil(decades / (count + 0.5))) if decades >= 2 else 1
    powers = range(math.floor(math.log10(least)), math.floor(math.log10(gene.high)) + 1)
    found = [
        factor * 10.0**power
        for power in powers
        if (powers[-1] - power) % every == 0
        for factor in factors
    ]
    found = [value for value in found if gene.low <= value * (1 + 1e-9) <= gene.high * (1 + 2e-9)]
    zero = [0.0] if gene.low <= 0.0 <= gene.high else []
    return zero + (found if found or zero else [gene.low, gene.high])


def _label(value: Any) -> str:
    text = number(value, 3)
    if "e" in text and isinstance(value, float):
        mantissa, _, power = text.partition("e")
        text = f"{mantissa}e{int(power)}"
    return text if len(text) <= 12 else f"{text[:11]}…"


@dataclass(frozen=True)
class Plot:
    """A drawing area of `width` x `height` pixels with margins for labels around it."""

    x: Axis
    y: Axis
    width: float
    height: float
    left: float = 56.0
    right: float = 14.0
    top: float = 10.0
    bottom: float = 40.0

    def px(self, value: Any) -> float:
        """Return the pixel column of a value."""
        return self.column(self.x.place(value))

    def py(self, value: Any) -> float:
        """Return the pixel row of a value."""
        return self.row(self.y.place(value))

    def column(self, place: float) -> float:
        """Return the pixel column of a place on the axis."""
        return self.left + place * (self.width - self.left - self.right)

    def row(self, place: float) -> float:
        """Return the pixel row of a place on the axis."""
        return self.height - self.bottom - place * (self.height - self.top - self.bottom)

    def frame(self) -> Markup:
        """Return the grid, the labels and the titles of both axes."""
        left, right = self.left, self.width - self.right
        floor = self.height - self.bottom
        parts = []
        for place, text in self.y.ticks:
            row = self.row(place)
            parts.append(f'<path class="grid" d="M{left:.1f} {row:.1f}H{right:.1f}"/>')
            parts.append(label(left - 6, row + 4, text, "end"))
        parts.append(f'<path class="axis" d="M{left:.1f} {floor:.1f}H{right:.1f}"/>')
        for place, text in self.x.ticks:
            column = self.column(place)
            parts.append(f'<path class="axis" d="M{column:.1f} {floor:.1f}v4"/>')
            anchor = "end" if place > 0.97 and len(text) > 2 else "middle"
            parts.append(label(column + (6 if anchor == "end" else 0), floor + 17, text, anchor))
        if self.x.title:
            parts.append(label((left + right) / 2, self.height - 5, self.x.title, css="title"))
        if self.y.title:
            middle = (self.top + floor) / 2
            turned = f"rotate(-90 13 {middle:.1f})"
            parts.append(label(13, middle, self.y.title, css="title", transform=turned))
        return Markup("".join(parts))

    def drawing(self, alt: str, *parts: str, css: str = "", key: str | None = None) -> Markup:
        """Return the SVG element with its frame and these parts."""
        return drawing(self.width, self.height, alt, self.frame(), *parts, css=css, key=key)


def drawing(
    width: float, height: float, alt: str, *parts: str, css: str = "", key: str | None = None
) -> Markup:
    """Return an SVG element that takes the width of its place; `alt` says what it shows."""
    data = f' data-k="{escaped(key)}"' if key is not None else ""
    return Markup(
        f'<svg class="chart {css}" viewBox="0 0 {width:g} {height:g}" role="img"'
        f' aria-label="{escaped(alt)}"{data}>{"".join(parts)}</svg>'
    )


def label(
    x: float, y: float, text: Any, anchor: str = "middle", css: str = "", transform: str = ""
) -> Markup:
    """Return text in a drawing."""
    extra = f' class="{css}"' if css else ""
    extra += f' transform="{transform}"' if transform else ""
    return Markup(
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>{escaped(text)}</text>'
    )


def line(points: Sequence[tuple[float, float]], css: str) -> Markup:
    """Return a line through pixels."""
    return Markup(f'<polyline class="{css}" points="{_points(points)}"/>')


def area(points: Sequence[tuple[float, float]], css: str) -> Markup:
    """Return a filled shape with these corners."""
    return Markup(f'<polygon class="{css}" points="{_points(points)}"/>')


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


# ---- marks of trials: `trial` is its number, which ties all its marks and its row together


def dot(x: float, y: float, trial: int, css: str = "ok", radius: float = 3.2) -> str:
    """Return a circle for a trial."""
    return f'<circle class="m {css}" data-n="{trial}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>'


def beyond(x: float, y: float, trial: int, css: str = "ok", up: bool = False) -> str:
    """Return an open arrow head: a trial whose value lies beyond that end of the axis."""
    side = -1 if up else 1
    shape = f"M{x - 4:.1f} {y - 7 * side:.1f}h8l-4 {6 * side}z"
    return f'<path class="m {css} beyond" data-n="{trial}" d="{shape}"/>'


def triangle(x: float, y: float, trial: int, css: str = "early") -> str:
    """Return a triangle: a trial that was stopped early."""
    return f'<path class="m {css}" data-n="{trial}" d="M{x:.1f} {y - 3.6:.1f}l3.6 6.4h-7.2z"/>'


def cross(x: float, y: float, trial: int) -> str:
    """Return a cross: a trial that failed."""
    return f'<path class="m bad" data-n="{trial}" d="M{x - 3:.1f} {y - 3:.1f}l6 6m0 -6l-6 6"/>'


def diamond(x: float, y: float, trial: int | None = None, size: float = 6.0) -> str:
    """Return a diamond: the start values."""
    data = "" if trial is None else f' data-n="{trial}"'
    shape = f"M{x:.1f} {y - size:.1f}l{size:g} {size:g}l-{size:g} {size:g}l-{size:g} -{size:g}z"
    return f'<path class="start"{data} d="{shape}"/>'


def star(x: float, y: float, trial: int | None = None, size: float = 9.0) -> str:
    """Return a star: the recommended values."""
    corners = []
    for index in range(10):
        radius = size if index % 2 == 0 else 0.42 * size
        angle = math.pi * (index / 5 - 0.5)
        corners.append((x + radius * math.cos(angle), y + radius * math.sin(angle)))
    data = "" if trial is None else f' data-n="{trial}"'
    return f'<polygon class="win"{data} points="{_points(corners)}"/>'
