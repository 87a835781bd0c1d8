"""What won, by how much, is it real, what next: the top of the page."""

import math
from collections.abc import Sequence
from typing import Any

from evolve.confirm import BETTER, UNCONFIRMED, UNDECIDED, WORSE, Gain, Measured, student_t
from evolve.fidelity import rank_text
from evolve.insight import MATTERS, lock_proposals
from evolve.page.axes import Axis, Plot, diamond, dot, label, linear, star
from evolve.page.charts import key
from evolve.page.markup import Markup, fixed, joined, number, signed, tag
from evolve.page.scene import Scene, place_of
from evolve.progress import duration
from evolve.record import COUNTED, fitness
from evolve.space import Gene
from evolve.summary import estimate_text

BADGES = {BETTER: "✓", UNDECIDED: "≈", WORSE: "✗", UNCONFIRMED: "?"}
EDGE = 0.02  # share of its range within which a value stands at a bound
BOUNDS = 6  # named, the most important ones
MANY_FAILED = 0.1  # share of failed trials that is worth a word
SEEDS = 30  # repeats that are proposed, at most


def headline(scene: Scene) -> tuple[str, str]:
    """Return the verdict as a word and as one sentence."""
    verdict, gain, number_ = scene.summary.verdict, scene.summary.verdict.gain, _number(scene)
    if number_ is None:
        return UNCONFIRMED, "No trial has ended with a fitness yet: there is nothing to recommend."
    if scene.summary.objectives:
        count, names = len(scene.summary.front), ", ".join(scene.summary.objectives)
        trades = f"{count} best trade-off{'s' * (count != 1)} of {names}. "
    else:
        trades = ""
    if gain is None or not _judged(scene):
        return UNCONFIRMED, f"{trades}{_unconfirmed(scene, number_)}"
    if math.isnan(gain.low):
        text = (
            f"Trial {number_} gains {signed(gain.mean)} over the start values in {gain.n} pair of"
        )
        return verdict.word, f"{trades}{text} repeats, which is too few to tell it from luck."
    interval = f"90 % interval {signed(gain.low)} to {signed(gain.high)}"
    pairs = f"{gain.n} pairs of trainings with the same new seeds"
    if verdict.word == BETTER:
        text = f"Trial {number_} is better than the start values: {signed(gain.mean)} fitness"
        text += f"{_relative(scene, gain)}, {interval}, {pairs}."
    elif verdict.word == WORSE:
        text = "Nothing better than the start values was found: they are recommended. "
        text += f"The best finalist differs by {signed(gain.mean)} ({interval}, {pairs})."
    else:
        text = f"No difference shown between trial {number_} and the start values: "
        text += f"gain {signed(gain.mean)}, and 0 is inside the {interval}, {pairs}."
    return verdict.word, trades + text


def _number(scene: Scene) -> int | None:
    return scene.winner.number if scene.winner else None


def _judged(scene: Scene) -> bool:
    """Return whether the verdict is about the winner, not about what a hand picked instead."""
    recommended = scene.summary.verdict.recommended
    return recommended is None or recommended.configuration.of == scene.summary.recommended_trial


def _unconfirmed(scene: Scene, number_: int) -> str:
    estimate, start = scene.summary.estimate, scene.start
    if start is not None and number_ == start.number and len(scene.measured) == 1:
        return f"Only the start values have been measured: fitness {fixed(fitness(start))}."
    assert scene.winner is not None
    text = f"Trial {number_} looks best"
    if scene.sign > 0 and estimate is not None and math.isfinite(estimate.interval[0]):
        text += f": {estimate_text(estimate)}"
    else:
        text += f": fitness {fixed(fitness(scene.winner))}, measured once"
    text += f"; the start values gave {fixed(fitness(start))}" if start is not None else ""
    why = scene.summary.verdict.text.removeprefix(f"{UNCONFIRMED}: ")
    if not _judged(scene):
        why = f"trial {number_} was picked by hand"
    return f"{text}. Not confirmed, so it may be luck: {why}."


def _relative(scene: Scene, gain: Gain) -> str:
    start = scene.summary.verdict.start
    if start is None or not start.mean > 0:
        return ""
    return f" ({100 * gain.mean / start.mean:+.1f} %)"


def hero(scene: Scene) -> Markup:
    """Return the verdict: a sign, a word, a sentence, and the repeats as a picture."""
    word, sentence = headline(scene)
    css = {BETTER: "better", WORSE: "worse", UNDECIDED: "undecided"}.get(word, "unconfirmed")
    badge = tag(
        "div", tag("span", BADGES[word], aria_hidden="true"), " ", word, class_=f"badge {css}"
    )
    sentence = sentence.replace(" %", "\N{NO-BREAK SPACE}%")
    gain = scene.summary.verdict.gain
    bar = gain_bar(gain, "the start values") if gain and _judged(scene) else ""
    return joined([badge, tag("p", sentence, class_="sentence"), bar])


def gain_bar(gain: Gain, over: str) -> Markup:
    """Return the gain and its interval beside 0, which is no gain; empty without an interval."""
    if not math.isfinite(gain.low):
        return Markup("")
    low, high = min(gain.low, 0.0), max(gain.high, 0.0)
    margin = 0.08 * (high - low)
    title = f"gain over {over} (dot) and its 90 % interval"
    x = linear(low - margin, high + margin, title, 5)
    plot = Plot(x, Axis(lambda place: place, ()), 360, 74, 10, 10, 4, 40)
    zero, left, right, row = (*map(plot.px, (0.0, gain.low, gain.high)), plot.row(0.5))
    css = "gain" if gain.low > 0 else "loss" if gain.high < 0 else "unclear"
    parts = [
        f'<path class="zero" d="M{zero:.1f} {plot.row(1):.1f}V{plot.row(0):.1f}"/>',
        f'<path class="span {css}" d="M{left:.1f} {row:.1f}H{right:.1f}"/>',
        f'<circle class="{css}" cx="{plot.px(gain.mean):.1f}" cy="{row:.1f}" r="6"/>',
    ]
    alt = f"Gain {signed(gain.mean)}, 90 % interval {signed(gain.low)} to {signed(gain.high)}"
    return plot.drawing(alt, *parts, css="gainbar")


def tiles(scene: Scene) -> Markup:
    """Return the key figures."""
    summary, states = scene.summary, scene.summary.states
    figures: list[tuple[str, str, str]] = []
    start, won = _level(scene, "start"), _level(scene, "winner")
    if won is not None:
        change = "" if start is None else f"start values {fixed(start)}"
        figures.append(("fitness, recommended", fixed(won), change))
    counts = [f"{states[n]} {n}" for n in ("pruned", "failed", "running") if states[n]]
    figures.append(
        ("generations", f"{summary.generations:,} of {summary.total:,}", ", ".join(counts))
    )
    if states["confirm"]:
        figures.append(("repeats", str(states["confirm"]), "with other seeds"))
    if summary.seconds:
        counted = [t for t in scene.search if t.state in COUNTED]
        each = summary.seconds / max(1, len(counted))
        pace = f"a trial every {duration(each) if each >= 10 else f'{each:.1f} s'}"
        figures.append(("search time", duration(summary.seconds), pace))
    if states["pruned"]:
        figures.append(("epochs saved", f"{summary.saved_epochs:.0%}", "by stopping early"))
    if summary.limits:
        figures.append(("beyond a limit", str(summary.infeasible), summary.limits))
    found = [one for one in scene.importances if one.word == MATTERS][:3]
    if found:
        rest = ", ".join(f"{one.name} {one.share:.0%}" for one in found[1:])
        figures.append(("matters most", f"{found[0].name} {found[0].share:.0%}", rest))
    cells = (
        tag("div", tag("span", name), tag("b", value), tag("small", more), class_="tile")
        for name, value, more in figures
    )
    return tag("div", *cells, class_="tiles")


def _level(scene: Scene, which: str) -> float | None:
    """Return the mean of the repeats of start values or winner, or what was measured once."""
    trial = scene.start if which == "start" else scene.winner
    if trial is None:
        return None
    verdict = scene.summary.verdict
    groups = [m for m in (verdict.start, *verdict.finalists) if m is not None and m.values]
    found = [m.mean for m in groups if m.configuration.of == trial.number]
    return found[0] if found and verdict.start is not None else fitness(trial)


# ---- the repeats


def repeats_chart(scene: Scene) -> Markup:
    """Return each repeat of the start values and the finalists as a dot, and their means."""
    groups = _groups(scene)
    values = [value for measured in groups for value in measured.values.values()]
    if not values:
        return Markup("")
    margin = 0.08 * (max(values) - min(values)) or 0.01
    parts = [
        _repeats(scene, groups, (min(values) - margin, max(values) + margin), *size)
        for size in ((960.0, "wide"), (360.0, "narrow"))
    ]
    signs = key(
        ("repeat", "one training with another seed"),
        ("start", "mean of the start values"),
        ("winner", "mean of a finalist"),
    )
    return joined([*parts, signs])


def _groups(scene: Scene) -> list[Measured]:
    verdict = scene.summary.verdict
    return [m for m in (verdict.start, *verdict.finalists) if m is not None and m.values]


def _repeats(
    scene: Scene, groups: Sequence[Measured], limits: tuple[float, float], width: float, css: str
) -> Markup:
    x = linear(*limits, "fitness", 6 if css == "wide" else 4)
    height = 30.0 * len(groups) + 52
    plot = Plot(x, Axis(lambda row: 1 - (row + 0.5) / len(groups), ()), width, height, 92, 14, 4)
    parts: list[str] = []
    for row, measured in enumerate(groups):
        level, of = plot.py(row), measured.configuration.of
        name = "start values" if measured.configuration.is_start else f"trial {of}"
        parts.append(label(plot.left - 8, level + 4, name, "end"))
        numbers = {t.user_attrs.get("repeat"): t.number for t in scene.runs_of(of)}
        parts += [dot(plot.px(v), level, numbers.get(k, of)) for k, v in measured.values.items()]
        mark = diamond if measured.configuration.is_start else star
        parts.append(mark(plot.px(measured.mean), level, size=7.0))
    alt = ", ".join(f"{fixed(m.mean)} (n {len(m.values)})" for m in groups)
    return plot.drawing(f"Means of the repeats: {alt}", *parts, css=f"{css} repeats")


# ---- what next


def advice(scene: Scene) -> list[tuple[str, str]]:
    """Return what to try next: (words, command or yaml, which may be empty)."""
    if scene.winner is None:
        return [
            (
                "Run it: no trial has ended with a fitness yet.",
                f"python -m evolve run{scene.options}",
            )
        ]
    found = [_more_repeats(scene), _more_trials(scene), *_bounds(scene)]
    locks = lock_proposals(scene.importances, scene.space) if scene.found else []
    if locks:
        found.append(
            ("No effect was seen of these: lock them in the next study.", "\n".join(locks))
        )
    failed = scene.summary.states["failed"]
    if failed > MANY_FAILED * max(1, len(scene.search)):
        share = failed / len(scene.search)
        found.append((f"{share:.0%} of the trials failed: the reasons are below.", ""))
    if any(check.usable for check in scene.checks) and scene.config.pruning.name == "none":
        ranks = rank_text(scene.checks)
        text = f"{ranks[0].upper()}{ranks[1:]} Stopping bad trials early would save time."
        found.append((text, f"python -m evolve run{scene.options} --set pruning.name=forecast"))
    return [entry for entry in found if entry is not None]


def _more_repeats(scene: Scene) -> tuple[str, str] | None:
    """Propose the number of repeats that would show the gain that was measured."""
    run = f"python -m evolve run{scene.options} --set confirm.finalists=1"
    verdict, gain = scene.summary.verdict, scene.summary.verdict.gain
    if verdict.word == UNCONFIRMED:
        coming = not scene.summary.ended and scene.config.confirm.finalists > 0
        if scene.summary.generations < 2 or scene.sign < 0 or coming:
            return None
        return (
            "Find out whether it is real: repeat it with other seeds.",
            f"{run} --set confirm.seeds=5",
        )
    if verdict.word != UNDECIDED or gain is None or not gain.mean > 0:
        return None
    seeds = 5 if math.isnan(gain.sd) else pairs_needed(gain.mean, gain.sd)
    if seeds is None:
        return f"The gain is too small to show: it would take over {SEEDS} pairs of repeats.", ""
    text = f"If the gain is real, {seeds} pairs of repeats of one finalist would show it."
    return text, f"{run} --set confirm.seeds={seeds}"


def pairs_needed(mean: float, sd: float) -> int | None:
    """Return the pairs after which a 90 % interval of such a gain leaves 0 out; None beyond 30."""
    for n in range(3, SEEDS + 1):
        if student_t(0.90, n - 1) * sd / math.sqrt(n) < mean:
            return n
    return None


def _more_trials(scene: Scene) -> tuple[str, str] | None:
    summary = scene.summary
    command = f"python -m evolve run{scene.options} --generations"
    if summary.generations < summary.total and not summary.ended:
        return "The search is not over: the same command goes on.", f"{command} {summary.total}"
    if scene.stop:
        text = f"More trials of this space hardly pay: {scene.stop}."
        return f"{text} Change the space, the data or the model instead.", ""
    more = max(summary.generations + 10, math.ceil(1.5 * summary.generations))
    return "The search did not say that it is done: more trials may help.", f"{command} {more}"


def _bounds(scene: Scene) -> list[tuple[str, str]]:
    """Name the bounds that the winner stands at, though the start values do not.

    Beyond 0 and 1 there is mostly nothing: shares, probabilities and gains end there.
    """
    found = []
    for gene in scene.genes:
        if gene.choices or scene.winner is None or not scene.active(scene.winner, gene):
            continue
        end = bound_of(gene, scene.winner.params.get(gene.name))
        if not end or end == bound_of(gene, scene.start_values.get(gene.name)):
            continue
        bound = gene.low if end == "low" else gene.high
        if bound not in (0, 1):
            found.append(f"{gene.name} ({end}est, {number(bound)})")
    if not found:
        return []
    more = f" and {len(found) - BOUNDS} more" if len(found) > BOUNDS else ""
    names = ", ".join(found[:BOUNDS])
    return [(f"At an end of their range: {names}{more}. A wider one may hold better values.", "")]


def bound_of(gene: Gene, value: Any) -> str:
    """Return `low` or `high` if a value stands at that end of its range, else nothing."""
    place = place_of(gene, {gene.name: value})
    if place is None:
        return ""
    if value == gene.low or place < EDGE:
        return "low"
    return "high" if value == gene.high or place > 1 - EDGE else ""
