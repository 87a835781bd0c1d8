"""Who worked when: trials by worker over the time in which any trial ran."""

import statistics
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from optuna.trial import FrozenTrial, TrialState

from evolve.page.axes import Axis, drawing, label, linear
from evolve.page.markup import Markup, joined
from evolve.record import CONFIRM, kind_of

ROW = 26.0  # pixels of a worker
WORKERS = 32  # rows, at most
BLOCKS = 1500  # trials that are drawn, at most


@dataclass(frozen=True)
class Block:
    """A trial's time at its worker, in seconds since the first trial began."""

    trial: FrozenTrial
    worker: str
    begin: float
    end: float


def blocks_of(trials: Sequence[FrozenTrial]) -> list[Block]:
    """Return the times of all ended trials; of one that was taken up again its last attempt."""
    known = [t for t in trials if t.datetime_start and t.datetime_complete]
    zero = min((t.datetime_start.timestamp() for t in known if t.datetime_start), default=0.0)
    blocks = []
    for trial in known:
        assert trial.datetime_start and trial.datetime_complete
        begin = trial.datetime_start.timestamp() - zero
        end = trial.datetime_complete.timestamp() - zero
        seconds = float(trial.user_attrs.get("seconds", 0.0))
        if trial.user_attrs.get("attempts", 1) > 1 and 0 < seconds < end - begin:
            begin = end - seconds
        blocks.append(
            Block(trial, str(trial.user_attrs.get("worker", "–")), begin, max(begin, end))
        )
    return sorted((b for b in blocks if b.end > b.begin), key=lambda block: block.begin)


def spans_of(blocks: Sequence[Block]) -> list[tuple[float, float]]:
    """Return the times in which at least one trial ran, in order."""
    spans: list[tuple[float, float]] = []
    for block in blocks:
        if spans and block.begin <= spans[-1][1] + 1.0:  # a second between two trials is no pause
            spans[-1] = (spans[-1][0], max(spans[-1][1], block.end))
        else:
            spans.append((block.begin, block.end))
    return spans


def utilisation(blocks: Sequence[Block]) -> float:
    """Return the share of the workers' time in which they had a trial, while any trial ran."""
    total = sum(end - begin for begin, end in spans_of(blocks))
    workers = len({block.worker for block in blocks})
    return sum(b.end - b.begin for b in blocks) / (total * workers) if total else 0.0


def timeline(blocks: Sequence[Block]) -> Markup:
    """Return a bar for each trial in the row of its worker; pauses of the study are cut out."""
    spans = spans_of(blocks)
    return joined(
        [_timeline(blocks, spans, 960.0, "wide"), _timeline(blocks, spans, 360.0, "narrow")]
    )


def timeline_text(blocks: Sequence[Block]) -> str:
    """Return in words how long trials took and how busy the workers were."""
    spans, workers = spans_of(blocks), len({block.worker for block in blocks})
    whole = [b.end - b.begin for b in blocks if b.trial.state == TrialState.COMPLETE]
    share = f"{100 * utilisation(blocks):.0f} % of the time"
    text = f"{workers} worker{'s' * (workers != 1)} had a trial {share}"
    pauses = len(spans) - 1
    text += f"; {pauses} pause{'s' * (pauses != 1)} cut out" if pauses else ""
    if whole:
        text += f". A whole trial took {_time(statistics.median(whole))} (median)"
        text += f", {_time(min(whole))} to {_time(max(whole))}"
    return f"{text}."


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _timeline(
    blocks: Sequence[Block], spans: Sequence[tuple[float, float]], width: float, css: str
) -> Markup:
    workers = sorted({block.worker for block in blocks}, key=_natural)[:WORKERS]
    axis, unit = _time_axis(spans, 8 if css == "wide" else 4)
    left, right = (90.0 if css == "wide" else 62.0), width - 12
    height = ROW * len(workers) + 40

    def column(second: float) -> float:
        return left + axis.place(second) * (right - left)

    parts: list[str] = []
    for row, worker in enumerate(workers):
        short = worker if len(worker) <= 12 else f"…{worker[-11:]}"
        parts.append(label(left - 6, ROW * row + 18, short, "end"))
    for block in blocks[:: max(1, -(-len(blocks) // BLOCKS))]:
        if block.worker in workers:
            begin, top = column(block.begin), ROW * workers.index(block.worker) + 4
            length = max(0.8, column(block.end) - begin - 0.6)
            parts.append(
                f'<rect class="m block {_kind(block.trial)}" data-n="{block.trial.number}"'
                f' x="{begin:.1f}" y="{top:.0f}" width="{length:.1f}" height="{ROW - 6:.0f}"/>'
            )
    floor = ROW * len(workers) + 4
    parts.append(f'<path class="axis" d="M{left:.1f} {floor:.0f}H{right:.1f}"/>')
    for place, text in axis.ticks:
        parts.append(label(left + place * (right - left), floor + 16, text))
    parts.append(label((left + right) / 2, floor + 32, f"{unit} in which trials ran", css="title"))
    alt = f"Timeline of {len(blocks)} trials on {len(workers)} workers"
    return drawing(width, height, alt, *parts, css=f"{css} time")


def _kind(trial: FrozenTrial) -> str:
    return "repeat" if kind_of(trial) == CONFIRM else trial.state.name.lower()


def timeline_key(blocks: Sequence[Block]) -> Markup:
    """Return the legend of the timeline: what it holds."""
    entries = (("complete", "complete"), ("pruned", "stopped early"), ("fail", "failed"))
    items = (*entries, ("repeat", "repeat with another seed"))
    there = {_kind(block.trial) for block in blocks}
    signs = (
        f'<span class="entry"><svg class="sign" viewBox="0 0 16 16" aria-hidden="true">'
        f'<rect class="block {css}" x="1" y="3" width="14" height="10"/></svg>{text}</span>'
        for css, text in items
        if css in there
    )
    return Markup(f'<div class="legend">{"".join(signs)}</div>')


def _time_axis(spans: Sequence[tuple[float, float]], count: int) -> tuple[Axis, str]:
    """Return an axis of the seconds in which trials ran, pauses cut out, and its unit."""
    total = sum(end - begin for begin, end in spans) or 1.0
    unit, seconds = ("hours", 3600.0) if total > 5400 else ("minutes", 60.0)
    unit, seconds = ("seconds", 1.0) if total < 150 else (unit, seconds)
    marks = linear(0.0, total / seconds, count=count)

    begins = [begin for begin, _ in spans]
    before = [0.0, *accumulate(end - begin for begin, end in spans)]  # seconds in earlier spans

    def place(second: float) -> float:
        index = bisect_right(begins, second)
        inside = min(second, spans[index - 1][1]) - begins[index - 1] if index else 0.0
        return (before[max(0, index - 1)] + inside) / total

    return Axis(place, marks.ticks), unit


def _natural(name: str) -> tuple[str, int]:
    digits = "".join(sign for sign in name if sign.isdigit())
    return name.rstrip("0123456789"), int(digits or 0)
