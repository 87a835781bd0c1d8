"""HTML and SVG as text: everything is escaped but what was made here."""

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

VOID = {"img", "input", "meta", "circle", "path", "line", "rect", "polyline", "polygon"}


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def escaped(value: Any) -> Markup:
    """Return a value as text of HTML; markup stays as it is."""
    if isinstance(value, Markup):
        return value
    text = "".join(sign for sign in str(value) if sign >= " " or sign in "\n\t")
    return Markup(html.escape(text, quote=True))


def joined(parts: Iterable[Any], between: str = "") -> Markup:
    """Return parts as one piece of markup."""
    return Markup(between.join(map(escaped, parts)))


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """Return an element. `class_` is class, `data_n` data-n; an attribute of None is left out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Markup(
            f"<{name}{given}>" if name in ("img", "input", "meta") else f"<{name}{given}/>"
        )
    return Markup(f"<{name}{given}>{joined(children)}</{name}>")


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]], class_: str = "") -> Markup:
    """Return a table; cells that are numbers stand right."""
    heads = joined(tag("th", cell, scope="col") for cell in head)
    body = joined(tag("tr", *(tag("td", cell) for cell in row)) for row in rows)
    return tag(
        "div",
        tag("table", tag("thead", tag("tr", heads)), tag("tbody", body), class_=class_ or None),
        class_="scroll",
    )


def number(value: Any, digits: int = 4) -> str:
    """Return a value as a person reads it: numbers with few digits, anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        return "–" if math.isnan(value) else str(value)
    if 10.0 ** max(digits, 4) <= abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def fixed(value: float | None) -> str:
    """Return a fitness or metric with four decimals, `–` for none; large ones with four digits."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.4f}" if abs(value) < 1000 else number(value)


def signed(value: float) -> str:
    """Return a difference with its sign."""
    return f"{value:+.4f}" if abs(value) < 1000 else f"{value:+,.0f}"
