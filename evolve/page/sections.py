"""The page, section by section, best first; one without data says why in a line."""

from collections.abc import Callable, Sequence
from datetime import datetime
from importlib import resources

from optuna.trial import TrialState

from evolve.description import digests_of
from evolve.evidence import LEAST
from evolve.fidelity import rank_text
from evolve.findings import scope_text
from evolve.insight import NOTHING, UNSURE
from evolve.page import charts, tables, timeline, traces, verdict
from evolve.page.markup import Markup, escaped, joined, number, table, tag
from evolve.page.pictures import picture_pair
from evolve.page.scene import Scene
from evolve.summary import verdict_lines

DIGEST_SHOWN = 12  # characters

Section = tuple[str, str, Markup]  # id, title, content


def page_of(scene: Scene, now: datetime) -> str:
    """Return the whole page as text; it asks nothing of any server."""
    word, sentence = verdict.headline(scene)
    title = f"{scene.config.study.name}: {word}"
    sections = [section(scene) for section in SECTIONS]
    links = (tag("a", anchor.replace("-", " "), href=f"#{anchor}") for anchor, _, _ in sections)
    body = [
        tag("header", tag("h1", scene.config.study.name), _subtitle(scene, now)),
        tag("section", verdict.hero(scene), verdict.tiles(scene), id="verdict"),
        tag("nav", *links, aria_label="sections"),
        *(
            tag("section", tag("h2", name), content, id=anchor)
            for anchor, name, content in sections
        ),
    ]
    return html_page(title, sentence, body)


def html_page(title: str, sentence: str, body: Sequence[Markup]) -> str:
    """Return a whole page with our style and script inside; `sentence` describes it."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="description", content=sentence),
        tag("title", title),
        tag("style", Markup(_file("page.css"))),
    )
    footer = tag("footer", "Made by python -m evolve. No request leaves this page.")
    whole = tag("body", tag("main", *body, footer), tag("script", Markup(_file("page.js"))))
    return f"<!doctype html>\n{tag('html', head, whole, lang='en')}\n"


def _file(name: str) -> str:
    return resources.files("evolve.page").joinpath(name).read_text(encoding="utf-8")


def _subtitle(scene: Scene, now: datetime) -> Markup:
    weights = scene.config.fitness
    terms = [name if weight == 1 else f"{weight:g} {name}" for name, weight in weights.items()]
    parts = [f"strategy {scene.config.strategy.name}", f"objective {scene.config.objective}"]
    formula = " + ".join(terms)
    parts += [f"fitness = {formula}"] if formula != "fitness" else []
    parts += [
        f"{key} {scene.config.settings[key]}"
        for key in ("model", "data", "epochs", "imgsz")
        if key in scene.config.settings
    ]
    parts += _data(scene)
    parts.append(f"{now:%Y-%m-%d %H:%M}")
    warnings = (tag("p", f"The data changed under the study: {c}.") for c in scene.changes)
    return joined([tag("p", " · ".join(parts), class_="dim"), *warnings])


def _data(scene: Scene) -> list[str]:
    """Return the digests of the data, and the version of torch, if they were described."""
    digests = digests_of(scene.described).items()
    pairs = [f"{name.rpartition('.')[2]} {digest[:DIGEST_SHOWN]}" for name, digest in digests]
    found = [f"data digest {', '.join(pairs)}"] if pairs else []
    version = scene.described.get("torch")
    return found + [f"torch {version}"] * bool(version)


def _nothing(why: str) -> Markup:
    return tag("p", why, class_="dim none")


def _note(text: str) -> Markup:
    return tag("p", text, class_="note") if text else Markup("")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _progress(scene: Scene) -> Section:
    name = "Trade-offs" if scene.summary.objectives else "The search"
    if not scene.search:
        return "search", name, _nothing("No trial has ended yet.")
    if not scene.summary.objectives:
        return "search", name, joined([charts.progress(scene), _note(scene.thinned)])
    if not scene.complete:
        return "search", name, _nothing("No trial is complete yet.")
    heads = ["trial", *(f"{key} ({way})" for key, way in scene.summary.objectives.items())]
    rows = ([trial.number, *map(number, trial.values)] for trial in scene.summary.front)
    content = [charts.front_chart(scene), table(heads, rows), _note(scene.thinned)]
    return "search", name, joined(content)


def _repeats(scene: Scene) -> Section:
    chart = verdict.repeats_chart(scene)
    if not chart:
        text = "No repeats with other seeds yet: what was measured once may be luck."
        return "repeats", "Is it real?", _nothing(text)
    text = "; ".join(verdict_lines(scene.summary))
    why = f"{_sentence(text)}. What the search measured is not counted here."
    return "repeats", "Is it real?", joined([chart, _note(why)])


def _next(scene: Scene) -> Section:
    items = []
    for words, command in verdict.advice(scene):
        code = tag("pre", command) if command else ""
        items.append(tag("li", words, code))
    return "next", "What to try next", tag("ul", *items, class_="advice")


def _values(scene: Scene) -> Section:
    name = "Recommended values beside the start values"
    if scene.winner is None:
        return "values", name, _nothing("Nothing is recommended yet.")
    metrics = joined([tag("h3", "Metrics"), tables.metrics_table(scene)])
    parts = [tag("div", tables.values_table(scene), tag("div", metrics), class_="pair")]
    for title, found, missing in (
        ("Each class", tables.class_table(scene), "the trials left no metrics of classes"),
        ("Pictures", picture_pair(scene), "the trials left no pictures of detections"),
    ):
        parts += [tag("h3", title), found] if found else [_nothing(f"{title}: {missing}.")]
    return "values", name, joined(parts)


def _importance(scene: Scene) -> Section:
    name = "Which hyperparameters matter"
    if not scene.importances:
        count = len(scene.complete)
        text = f"Importance is told after {LEAST} complete trials; there are {count}."
        return "importance", name, _nothing(text)
    silent = sorted(f.name for f in scene.importances if f.word == NOTHING)
    notes = [f"No effect seen, within what was tried: {', '.join(silent)}."] if silent else []
    chart = charts.importance_chart(scene)
    if not chart:
        notes.insert(0, "No hyperparameter stands out from chance.")
    measures = ", ".join(scene.importances[0].evidence)
    notes.append(f"Shares of all effects beyond what chance shows, by {measures}.")
    if any(found.word == UNSURE for found in scene.importances):
        notes.append("Unsure: most measures, or one half of the trials, do not show it.")
    scope = scope_text(scene.config.objectives)
    notes += [f"Importance is {scope}."] * bool(scope)
    return "importance", name, joined([chart, *map(_note, notes)])


def _genes(scene: Scene) -> Section:
    name = "Every hyperparameter against fitness"
    if not scene.measured or not scene.genes:
        return "hyperparameters", name, _nothing("No trial has a fitness yet.")
    order = "the most important first" if scene.importances else "those that changed first"
    note = f"Each panel spans the whole range, {order}. Trials where it has no effect are left out."
    return "hyperparameters", name, joined([charts.gene_charts(scene), _note(note)])


def _parallel(scene: Scene) -> Section:
    name = "Trials as lines"
    if len(scene.complete) < 2 or not scene.genes:
        return "lines", name, _nothing("Lines need two complete trials.")
    notes = []
    if len(scene.genes) > traces.AXES:
        which = "most important" if scene.importances else "first of those above"
        notes.append(f"{traces.AXES} of {len(scene.genes)} hyperparameters, the {which}.")
    if len(scene.complete) > traces.LINES:
        notes.append(f"The best {traces.LINES} of {len(scene.complete):,} complete trials.")
    return "lines", name, joined([traces.parallel(scene), _note(" ".join(notes))])


def _curves(scene: Scene) -> Section:
    name = "Learning curves"
    if not traces.has_curves(scene):
        return "curves", name, _nothing("No trial reported its fitness by epoch.")
    return "curves", name, traces.learning_curves(scene)


def _ranks(scene: Scene) -> Section:
    name = "Can bad trials be stopped early?"
    text = rank_text(scene.checks)
    if not traces.has_ranks(scene):
        return (
            "early-stopping",
            name,
            _nothing(_sentence(text) or "The trials reported no fitness by epoch."),
        )
    return "early-stopping", name, joined([_note(_sentence(text)), traces.rank_chart(scene)])


def _time(scene: Scene) -> Section:
    name = "Time and workers"
    blocks = timeline.blocks_of(scene.trials)
    if not blocks:
        return (
            "workers",
            name,
            _nothing("The trials have no times: they were imported, or still run."),
        )
    parts = [
        timeline.timeline(blocks),
        timeline.timeline_key(blocks),
        _note(timeline.timeline_text(blocks)),
    ]
    return "workers", name, joined(parts)


def _failures(scene: Scene) -> Section:
    name = "Failures"
    if not any(trial.state == TrialState.FAIL for trial in scene.trials):
        return "failures", name, _nothing("No trial failed.")
    return "failures", name, tables.failures_table(scene)


def _trials(scene: Scene) -> Section:
    name = "All trials" if not scene.thinned else "Trials"
    if not scene.search:
        return "trials", name, _nothing("No trial has ended yet.")
    words = escaped("words to filter by: a state, a value, a reason")
    box = Markup(f'<input class="filter" type="search" placeholder="{words}" aria-label="{words}">')
    hint = "The best first. With JavaScript a click on a heading sorts by it."
    return (
        "trials",
        name,
        joined([_note(f"{hint} {scene.thinned}"), box, tables.trials_table(scene)]),
    )


def _commands(scene: Scene) -> Section:
    return "commands", "Where the numbers come from", tables.commands_table(scene)


SECTIONS: tuple[Callable[[Scene], Section], ...] = (
    _repeats,
    _next,
    _progress,
    _values,
    _importance,
    _genes,
    _parallel,
    _curves,
    _ranks,
    _time,
    _failures,
    _trials,
    _commands,
)
