"""The model card: one page that says what was made, of what, how good it is, how fast, its limits.

Source of the parts: Mitchell et al. 2019, Model Cards for Model Reporting, arXiv 1810.03993.
"""

import hashlib
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from evolve.config import StudyConfig
from evolve.confirm import CONFIDENCE, student_t
from evolve.description import description_of, digests_of
from evolve.glance import moves, short
from evolve.held_out import HELD_OUT
from evolve.objective import Metrics
from evolve.page.pictures import classes_of
from evolve.printout import which_study
from evolve.problem import all_values
from evolve.record import CONFIRM, kind_of
from evolve.summary import Summary, recommended_params, verdict_lines

CARD = "model_card.md"
FEW = 30  # objects of a class in the data that was measured on: its AP is hardly known below
NOT_QUALITY = ("parameters", "gflops", "latency_ms")  # metrics that say what a model costs


@dataclass(frozen=True)
class Shipment:
    """What was exported: `weights`, the `files` made of them, rows of their `speed`.

    `retrained` are the values that a training after the search had other than the winner's, and
    `retrained_metrics` what it gave; None: there was none.
    """

    weights: Path
    files: Sequence[Path]
    speed: Sequence[Mapping[str, Any]] = ()
    retrained: Mapping[str, Any] = field(default_factory=dict)
    retrained_metrics: Metrics | None = None


def card_text(config: StudyConfig, study: Study, summary: Summary, shipment: Shipment) -> str:
    """Return the model card as Markdown."""
    trials = study.get_trials(deepcopy=False)
    winner = next(t for t in trials if t.number == summary.recommended_trial)
    values = {**all_values(config, recommended_params(summary)), **shipment.retrained}
    described = description_of(study)
    sections = {
        f"{config.study.name}, trial {winner.number}": [
            "; ".join(verdict_lines(summary)) + ".",
            "",
            *_facts(config, values, described, shipment),
        ],
        "Metrics": _metrics(trials, winner, summary, shipment),
        "Classes": _classes(config, trials, winner, shipment),
        "Speed": _speed(shipment),
        "Hyperparameters": _hyperparameters(winner, values, summary),
        "Limits": _limits(config, trials, winner, values, shipment),
        "Again": _again(config, shipment),
    }
    parts = [
        "\n".join([f"{'#' if not index else '##'} {title}", "", *lines])
        for index, (title, lines) in enumerate(sections.items())
        if lines
    ]
    return "\n\n".join(parts) + "\n"


# ---- sections


def _facts(
    config: StudyConfig,
    values: Mapping[str, Any],
    described: Mapping[str, Any],
    shipment: Shipment,
) -> list[str]:
    known = {
        "weights": f"`{shipment.weights.name}`, SHA-256 `{_digest(shipment.weights)[:16]}`",
        "files": ", ".join(f"`{path.name}`" for path in shipment.files),
        **{name: values.get(name) for name in ("model", "imgsz", "epochs", "batch")},
        "data": described.get("data", values.get("data")),
        "digests": ", ".join(
            f"{name.rpartition('.')[2]} `{digest[:12]}`"
            for name, digest in digests_of(described).items()
        ),
        "classes": ", ".join(map(str, described.get("classes") or ())),
        "trained by": f"study `{config.study.name}`, objective `{config.objective}`",
        "written": date.today().isoformat(),
    }
    return _table(("", ""), [(name, value) for name, value in known.items() if value])


def _metrics(
    trials: Sequence[FrozenTrial], winner: FrozenTrial, summary: Summary, shipment: Shipment
) -> list[str]:
    """Return each metric's mean over the seeds with its interval, winner beside start values."""
    sides = [_runs(trials, winner)]
    if summary.start is not None and summary.start.number != winner.number:
        sides.append(_runs(trials, summary.start))
    names = [name for name in sides[0][0] if name not in NOT_QUALITY]
    title = [f"trial {winner.number}", "start values"][: len(sides)]
    rows = [(name, *(_mean(side, name) for side in sides)) for name in names]
    if shipment.retrained_metrics is not None:
        changed = ", ".join(f"{name}={value}" for name, value in shipment.retrained.items())
        title = [f"these weights ({changed})", *title]
        rows = [(r[0], _number(shipment.retrained_metrics.get(r[0])), *r[1:]) for r in rows]
    sizes = zip(title[-len(sides) :], sides, strict=True)
    counts = ", ".join(f"{name}: {len(side)}" for name, side in sizes)
    note = f"Mean over trainings with different seeds ({counts})"
    if any(len(side) > 1 for side in sides):
        note += f" ± half of the {100 * CONFIDENCE:.0f} % interval of the mean (Student)"
    held = f"; `{HELD_OUT}...` on the test split" if any(map(_held_out, names)) else ""
    return [f"{note}, on the validation split{held}.", "", *_table(("metric", *title), rows)]


def _classes(
    config: StudyConfig, trials: Sequence[FrozenTrial], winner: FrozenTrial, shipment: Shipment
) -> list[str]:
    found = _per_class(config, trials, winner, shipment)
    columns = list(dict.fromkeys(name for metrics in found.values() for name in metrics))
    rows = [
        (name, *(_number(metrics.get(column)) for column in columns))
        for name, metrics in found.items()
    ]
    return _table(("class", *columns), rows) if rows else []


def _speed(shipment: Shipment) -> list[str]:
    columns = list(dict.fromkeys(name for row in shipment.speed for name in row))
    rows = [tuple(_number(row.get(name)) for name in columns) for row in shipment.speed]
    if not rows:
        return []
    return ["Measured where the files were made.", "", *_table(tuple(columns), rows)]


def _hyperparameters(winner: FrozenTrial, values: Mapping[str, Any], summary: Summary) -> list[str]:
    """Return what the search moved, the longest way first, and all other values in a line."""
    start = summary.start.params if summary.start is not None else {}
    moved = moves(winner, recommended_params(summary), start)
    rows = [(name, short(old), short(new)) for name, old, new in moved]
    rest = {name: value for name, value in values.items() if name not in {row[0] for row in rows}}
    lines = _table(("searched", "start", "value"), rows) + [""] * bool(rows)
    return [*lines, "As they were: " + ", ".join(f"{k} {short(v)}" for k, v in rest.items()) + "."]


def _limits(
    config: StudyConfig,
    trials: Sequence[FrozenTrial],
    winner: FrozenTrial,
    values: Mapping[str, Any],
    shipment: Shipment,
) -> list[str]:
    runs = _runs(trials, winner)
    lines = []
    if not any(_held_out(name) for run in runs for name in run):
        lines.append(
            "The metrics are of the validation split, by which the search chose: on new images"
            " expect somewhat less."
        )
    if len(runs) < 2:
        lines.append("Measured with one seed: how much a training varies is not known.")
    if shipment.retrained_metrics is not None:
        lines.append("The weights are of one training after the search; its seed is one of many.")
    rare = [
        f"{name} ({metrics['objects']:.0f})"
        for name, metrics in _per_class(config, trials, winner, shipment).items()
        if metrics.get("objects", math.inf) < FEW
    ]
    if rare:
        lines.append(f"Few objects were there to measure these classes by: {', '.join(rare)}.")
    if "imgsz" in values:
        lines.append(f"Trained and measured at {values['imgsz']} pixels; other sizes were not.")
    lines.append("Other cameras, light or classes than those of the data were not measured.")
    return [f"- {line}" for line in lines]


def _again(config: StudyConfig, shipment: Shipment) -> list[str]:
    which = which_study(config)
    changes = "".join(f" --retrain {name}={value}" for name, value in shipment.retrained.items())
    return [
        "```bash",
        f"python -m evolve best{which} --yaml > best.yaml  # all values",
        f"python -m evolve export{which}{changes}",
        "```",
    ]


# ---- what they say


def _runs(trials: Sequence[FrozenTrial], trial: FrozenTrial) -> list[Metrics]:
    """Return the metrics of the repeats of a trial; without any, of the trial itself."""
    repeats = [
        t for t in trials if kind_of(t) == CONFIRM and t.user_attrs.get("of") == trial.number
    ]
    complete = [t for t in repeats if t.state == TrialState.COMPLETE] or [trial]
    return [dict(t.user_attrs.get("metrics") or {}) for t in complete]


def _per_class(
    config: StudyConfig, trials: Sequence[FrozenTrial], winner: FrozenTrial, shipment: Shipment
) -> dict[str, dict[str, float]]:
    """Return metrics by class of the training that left the weights, else of the winner's."""
    own = classes_of(shipment.weights.parent.parent / "result.json")
    return own or classes_of(config.directory / "trials" / str(winner.number) / "result.json")


def _mean(runs: Sequence[Mapping[str, float]], name: str) -> str:
    """Return the mean of a metric, with half of its interval if there are two values or more."""
    values = [run[name] for run in runs if math.isfinite(run.get(name, math.nan))]
    if len(values) < 2:
        return _number(values[0] if values else None)
    half = student_t(CONFIDENCE, len(values) - 1) * statistics.stdev(values)
    return f"{statistics.fmean(values):.4f} ± {half / math.sqrt(len(values)):.4f}"


def _held_out(name: str) -> bool:
    return name.startswith(HELD_OUT)


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 1 else f"{value:.4g}"
    return "" if value is None else str(value)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Return a Markdown table; nothing without rows."""
    if not rows:
        return []
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines]
