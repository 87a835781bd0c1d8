"""The winner as files for others: its weights, or trained again, exported, with a model card."""

import inspect
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from optuna import Study

from evolve import champion
from evolve.card import CARD, Shipment, card_text
from evolve.config import StudyConfig
from evolve.errors import ConfigError, RunFailed, StudyError
from evolve.held_out import HELD_OUT
from evolve.machine import place_workers
from evolve.objective import Metrics, Objective, load_objective
from evolve.problem import all_values
from evolve.record import repeat_seed
from evolve.summary import Summary, recommended_params, summarise
from evolve.workers import Death, Job, Report, WorkerPool
from evolve.yamlfile import parse_value

Notice = Callable[[str], None]
RETRAINED = "retrain"  # folder of the study; in it one for each training
SEED = 1000  # index of the seed of a training for use, which no confirmation reaches
SHOWN = ("fitness", "mAP50-95", "F1")  # of an epoch


@dataclass(frozen=True)
class ExportRequest:
    """What is wanted of the winner.

    `formats` None: the objective's choice; `out` None: `export` in the study's folder; `options` go
    to the objective's export; `alias` names a version of the study's registered model, "": the
    study's winner as it stands; `retrain` are values other than the winner's for a training before
    the export, None: none.
    """

    formats: list[str] | None = None
    out: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    alias: str = ""
    retrain: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Exported:
    """What came out: the weights that were exported, the files, the card among them last."""

    weights: Path
    files: list[Path]


def export_winner(
    config: StudyConfig, study: Study, request: ExportRequest, notice: Notice
) -> Exported:
    """Turn the winner into files by the objective's own export; write a model card beside them.

    Raises: StudyError if there are no weights or the objective cannot do it, RunFailed if its
    training or export breaks down.
    """
    out, weights = request.out or config.directory / "export", None
    if request.alias:
        weights, number = champion.fetch(config, request.alias, out)
        config = replace(config, study=replace(config.study, pick=number))
    summary = summarise(config, study)
    recommended_params(summary)
    objective, metrics = load_objective(config.objective), None
    export = _export_of(objective, request.options)
    if request.retrain is not None:
        weights, metrics = _trained(config, summary, request.retrain, notice)
    weights = weights or summary.checkpoint
    if weights is None:
        raise StudyError(f"trial {summary.recommended_trial} of {summary.study} left no weights")
    files = _exported(export, weights, request, out)
    shipment = Shipment(
        weights=weights,
        files=files,
        speed=_speed(objective, weights, files, notice),
        retrained=dict(request.retrain or {}),
        retrained_metrics=metrics,
    )
    card = out / CARD
    card.write_text(card_text(config, study, summary, shipment), encoding="utf-8")
    lines = [champion.register_again(config, study, summary, shipment)] * (metrics is not None)
    for line in (*lines, champion.keep_files(config, weights, [*files, card])):
        if line:
            notice(line)
    return Exported(weights, [*files, card])


def parse_changes(texts: Sequence[str]) -> dict[str, Any]:
    """Return `epochs=300` and the like as values by name. Raises: ConfigError."""
    changes = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--retrain {text}: write it as name=value, such as epochs=300")
        changes[name.strip()] = parse_value(value, f"--retrain {text}")
    return changes


# ---- steps


def _export_of(objective: Objective, options: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the objective's export. Raises: StudyError if it has none, or takes no such option."""
    export = objective.optional("export")
    if export is None:
        raise StudyError(f"objective {objective.name} has no function export")
    taken = inspect.signature(export).parameters.values()
    anything = any(parameter.kind == parameter.VAR_KEYWORD for parameter in taken)
    for name, value in options.items():
        if not anything and name not in {parameter.name for parameter in taken}:
            raise StudyError(f"the export of objective {objective.name} takes no {name}={value}")
    return export


def _exported(
    export: Callable[..., Any], weights: Path, request: ExportRequest, out: Path
) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    try:
        files = export(weights, request.formats, out, **request.options)
    except ValueError:
        raise  # its message is for the person who typed the command
    except Exception as error:  # of any exporter
        if getattr(error, "exit_code", None) == 2:
            raise StudyError(str(error)) from error
        raise RunFailed(f"export failed: {type(error).__name__}: {error}") from error
    return [Path(path) for path in files]


def _speed(
    objective: Objective, weights: Path, files: Sequence[Path], notice: Notice
) -> list[dict[str, Any]]:
    """Return what the objective measures of the files on this machine; nothing if it cannot."""
    measure = objective.optional("measure_speed")
    if measure is None:
        return []
    try:
        return [dict(row) for row in measure(weights, files)]
    except Exception as error:  # an engine for another machine costs no export
        notice(f"speed could not be measured here: {type(error).__name__}: {error}")
        return []


def _trained(
    config: StudyConfig, summary: Summary, changes: Mapping[str, Any], notice: Notice
) -> tuple[Path, Metrics]:
    """Train the recommended values once more with some others; a begun training goes on.

    Raises: ConfigError for what the objective refuses, RunFailed if the training fails.
    """
    name = "-".join([str(summary.recommended_trial), *(f"{k}={v}" for k, v in changes.items())])
    folder = config.directory / RETRAINED / name.replace("/", "_")
    values = {**all_values(config, recommended_params(summary)), **changes}
    check = load_objective(config.objective).optional("preflight")
    if check is not None:
        check(values, {})
    attempt = 2 if folder.exists() else 1
    folder.mkdir(parents=True, exist_ok=True)
    notice(f"training trial {summary.recommended_trial} again in {folder}")
    wanted, seed = (*config.wanted, HELD_OUT), repeat_seed(config.study.seed, SEED)
    job = Job(0, values, seed, str(folder), attempt, wanted)
    metrics = _run(config, job, notice)
    for file in ("best.pt", "last.pt"):
        if (folder / "weights" / file).is_file():
            return folder / "weights" / file, metrics
    raise StudyError(f"the training in {folder} left no weights")


def _run(config: StudyConfig, job: Job, notice: Notice) -> Metrics:
    """Run one job on the whole machine and tell of its reports."""
    whole = place_workers(replace(config.workers, count=1))
    with WorkerPool(config.objective, whole) as pool:
        pool.submit(job)
        while True:
            for event in pool.events(1.0):
                if isinstance(event, Report):
                    pool.answer(job.number, stop=False)
                    shown = (f"{k} {v:.4f}" for k, v in event.metrics.items() if k in SHOWN)
                    notice(f"epoch {event.step}: {', '.join(shown)}")
                elif isinstance(event, Death) or event.metrics is None:
                    if job.attempt == 1:  # nothing to go on from: a wrong value, most often
                        shutil.rmtree(job.directory, ignore_errors=True)
                    raise RunFailed(f"the training failed: {event.reason}")
                else:
                    return event.metrics
