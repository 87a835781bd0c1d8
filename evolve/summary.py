"""What came out of a study: numbers for people and for scripts, best.yaml, the winner's weights."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from evolve.budget import CLOCK, ENDED
from evolve.choice import finalists, recommended
from evolve.config import StudyConfig
from evolve.confirm import Gain, Measured, Verdict, judge
from evolve.errors import StudyError
from evolve.fidelity import saved_share
from evolve.findings import Findings
from evolve.front import pareto_front
from evolve.held_out import HeldOut, held_out
from evolve.keep import drop_weights
from evolve.limits import limits_text
from evolve.objective import load_objective
from evolve.problem import best_values, train_fields_of
from evolve.recommend import Recommendation
from evolve.record import (
    CONFIRM,
    START,
    feasible,
    fitness,
    generations,
    kind_of,
    ranking,
    reason_of,
)
from evolve.space import Params
from evolve.yamlfile import write_yaml

HYP_BEST = Path("hyp/best.yaml")  # of the study that ended last, whichever it was
FILES = ("best.yaml", "report.html")  # of a result, in the study's folder
TOTAL = "generations"  # user attribute of the study: what its last run was to reach
TRAIN_FIELDS = "train_fields"  # ... : names that are settings of a training; [] if nobody says


@dataclass(frozen=True)
class Summary:
    """A study in numbers: `recommended` values of the genes, and `best`, the search's own best.

    `ended` is why the search ended, empty while it has not; `estimate` what is known of the
    recommended values; `front` the best trade-offs of several `objectives`; `infeasible` the number
    of complete trials beyond the `limits`; `files` those of the result in the study's folder, at
    the end of a run those that it wrote; `train_fields` the names that stand under `train:` in
    best.yaml, None where the study does not say; `found` what a run learned from its trials.
    """

    study: str
    generations: int
    total: int
    states: dict[str, int]
    failures: dict[str, int]
    saved_epochs: float
    start: FrozenTrial | None
    best: FrozenTrial | None
    verdict: Verdict
    recommended: Params | None
    recommended_trial: int | None
    checkpoint: Path | None
    ended: str = ""
    seconds: float = 0.0  # that the search ran
    estimate: Recommendation | None = None
    objectives: dict[str, str] = field(default_factory=dict)
    front: list[FrozenTrial] = field(default_factory=list)
    limits: str = ""
    infeasible: int = 0
    train_fields: list[str] | None = None
    found: Findings | None = None
    files: list[Path] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)  # pages of the tracker
    held_out: HeldOut | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the summary in JSON types."""
        gain = self.verdict.gain
        measured = [m for m in (self.verdict.start, *self.verdict.finalists) if m is not None]
        return {
            "study": self.study,
            "generations": self.generations,
            "total": self.total,
            "trials": self.states,
            "failures": self.failures,
            "saved_epochs": round(self.saved_epochs, 4),
            "ended": self.ended,
            "hours": round(self.seconds / 3600.0, 4),
            "start": _trial_dict(self.start),
            "best": _trial_dict(self.best),
            "recommended": {
                "trial": self.recommended_trial,
                "params": self.recommended,
                **_estimate_dict(self.estimate),
            },
            "front": [_front_dict(trial, self.objectives) for trial in self.front],
            "limits": self.limits,
            "infeasible": self.infeasible,
            "verdict": self.verdict.word,
            "verdict_text": self.verdict.text,
            "gain": None if gain is None else _gain_dict(gain),
            "held_out": None if self.held_out is None else self.held_out.to_dict(),
            "confirmed": [_measured_dict(m) for m in measured],
            "checkpoint": None if self.checkpoint is None else str(self.checkpoint),
            "files": [str(path) for path in self.files],
            "links": dict(self.links),
        }


def summarise(config: StudyConfig, study: Study) -> Summary:
    """Return what a study says so far. Raises: StudyError if the trial to pick is not complete."""
    trials = study.get_trials(deepcopy=False)
    estimates = {item.trial: item for item in recommended(config, trials)}
    means = {} if config.objectives else {n: item.mean for n, item in estimates.items()}
    verdict = judge(trials, config.confirm, finalists(study, list(estimates)), means)
    best = next(iter(ranking(trials)), None)
    starts = [t for t in trials if kind_of(t) == START and t.state == TrialState.COMPLETE]
    number, params = _chosen(config, trials, verdict, list(estimates.values()))
    return Summary(
        study=config.study.name,
        generations=generations(trials),
        total=study.user_attrs.get(TOTAL, config.study.generations),
        states=_states(trials),
        failures=dict(Counter(reason_of(t) for t in trials if t.state == TrialState.FAIL)),
        saved_epochs=saved_share(trials),
        start=starts[0] if starts else None,
        best=best,
        verdict=verdict,
        recommended=params,
        recommended_trial=number,
        checkpoint=_checkpoint(config, trials, number),
        ended=study.user_attrs.get(ENDED, ""),
        seconds=study.user_attrs.get(CLOCK, 0.0),
        estimate=None if number is None else estimates.get(number),
        objectives=config.objectives,
        front=pareto_front(trials, config.objectives) if config.objectives else [],
        limits=limits_text(config.limits),
        train_fields=study.user_attrs.get(TRAIN_FIELDS),
        infeasible=sum(not feasible(trial) for trial in ranking(trials)),
        files=[config.directory / name for name in FILES if (config.directory / name).is_file()],
        held_out=held_out(trials, verdict, config.fitness),
    )


def verdict_lines(summary: Summary) -> list[str]:
    """Return the verdict, and what the test split says of it where there is one."""
    return [summary.verdict.text, *([summary.held_out.text] if summary.held_out else [])]


def _chosen(
    config: StudyConfig,
    trials: Sequence[FrozenTrial],
    verdict: Verdict,
    estimates: Sequence[Recommendation],
) -> tuple[int | None, Params | None]:
    """Return number and values of the configuration to recommend: picked, confirmed, estimated."""
    pick = config.study.pick
    if pick is not None:
        picked = [t for t in trials if t.number == pick and t.state == TrialState.COMPLETE]
        if not picked:
            raise StudyError(f"pick: study {config.study.name} has no complete trial {pick}")
        return pick, picked[0].params
    if verdict.recommended is not None:
        return verdict.recommended.configuration.of, verdict.recommended.configuration.params
    return (estimates[0].trial, estimates[0].params) if estimates else (None, None)


def best_yaml(config: StudyConfig, summary: Summary) -> str:
    """Return best.yaml: a comment with the verdict, all hyperparameters, the settings."""
    fields = summary.train_fields
    if fields is None:  # a study of an older version
        fields = train_fields_of(load_objective(config.objective))
    values = best_values(config, fields, recommended_params(summary))
    return "".join(f"# {line}\n" for line in _header(summary)) + write_yaml(values)


def recommended_params(summary: Summary) -> Params:
    """Return the recommended values. Raises: StudyError if no trial is complete."""
    if summary.recommended is None:
        raise StudyError(f"study {summary.study} has no complete trial yet")
    return summary.recommended


def write_best(config: StudyConfig, study: Study, summary: Summary) -> None:
    """Write best.yaml into the study's folder and hyp/, and drop weights that nobody needs."""
    if summary.recommended is None:
        return
    text = best_yaml(config, summary)
    for path in (config.directory / "best.yaml", HYP_BEST):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
        summary.files.append(path)
    for trial in study.get_trials(deepcopy=False):
        folder = config.directory / "trials" / str(trial.number)
        is_winner = summary.checkpoint is not None and folder in summary.checkpoint.parents
        if kind_of(trial) == CONFIRM and trial.state.is_finished() and not is_winner:
            drop_weights(folder)


def _header(summary: Summary) -> list[str]:
    verdict, number = summary.verdict, summary.recommended_trial
    judged = verdict.recommended is None or verdict.recommended.configuration.of == number
    text = verdict.text if judged else f"not confirmed: trial {number} was picked by hand"
    lines = [f"study {summary.study}, {summary.generations} generations", text]
    lines += verdict_lines(summary)[1:] if judged else []
    measured = [m for m in verdict.finalists if m.configuration.of == number]
    if verdict.start is not None:
        lines.append(f"start values:  {measured_text(verdict.start)}")
        lines += [f"these values:  {measured_text(m)}" for m in measured]
    if not measured and summary.estimate is not None:
        lines.append(estimate_text(summary.estimate))
    lines += [f"limits: {summary.limits}"] * bool(summary.limits)
    for trial in (trial for trial in summary.front if trial.number == number):
        pairs = zip(summary.objectives, trial.values, strict=True)
        lines.append(", ".join(f"{name} {value:.5g}" for name, value in pairs))
    return [*lines, f"values of trial {number}"]


def estimate_text(estimate: Recommendation) -> str:
    """Return what is known of values that were not confirmed."""
    low, high = estimate.interval
    if not low <= high:
        return f"fitness {estimate.mean:.4f}, measured once"
    times = "once" if estimate.n == 1 else f"{estimate.n} times"
    return f"estimated fitness {estimate.mean:.4f} (90 % {low:.4f} to {high:.4f}), measured {times}"


def measured_text(measured: Measured) -> str:
    """Return mean, standard deviation and number of a configuration's repeats."""
    sd = f", sd {measured.sd:.4f}" if len(measured.values) > 1 else ""
    failed = f", {measured.failed} failed" if measured.failed else ""
    return f"fitness {measured.mean:.4f}{sd}, n {len(measured.values)}{failed}"


def _checkpoint(config: StudyConfig, trials: list[FrozenTrial], number: int | None) -> Path | None:
    """Return the weights of the recommended values' best run, a repeat if there is one."""
    repeats = [t for t in trials if kind_of(t) == CONFIRM and t.user_attrs.get("of") == number]
    own = [trial for trial in trials if trial.number == number]
    for runs in (repeats, own):
        complete = [trial for trial in runs if trial.state == TrialState.COMPLETE]
        for trial in sorted(complete, key=fitness, reverse=True):
            for name in ("best.pt", "last.pt"):
                path = config.directory / "trials" / str(trial.number) / "weights" / name
                if path.is_file():
                    return path
    return None


def _states(trials: list[FrozenTrial]) -> dict[str, int]:
    search = Counter(t.state.name.lower() for t in trials if kind_of(t) != CONFIRM)
    confirm = sum(kind_of(t) == CONFIRM for t in trials)
    names = ("complete", "pruned", "failed", "running", "waiting")
    counts = {name: search["fail" if name == "failed" else name] for name in names}
    return {**counts, "confirm": confirm}


def _trial_dict(trial: FrozenTrial | None) -> dict[str, Any] | None:
    if trial is None:
        return None
    metrics: Mapping[str, float] = trial.user_attrs.get("metrics", {})
    return {
        "trial": trial.number,
        "fitness": fitness(trial),
        "metrics": {name: _finite(value) for name, value in metrics.items()},
        "params": trial.params,
    }


def _estimate_dict(estimate: Recommendation | None) -> dict[str, Any]:
    if estimate is None:
        return {}
    mean, sd = _finite(estimate.mean), _finite(estimate.sd)
    return {"mean": mean, "sd": sd, "n": estimate.n, "interval": [*map(_finite, estimate.interval)]}


def _front_dict(trial: FrozenTrial, objectives: Mapping[str, str]) -> dict[str, Any]:
    values = dict(zip(objectives, map(_finite, trial.values), strict=True))
    return {"trial": trial.number, "values": values, "params": trial.params}


def _gain_dict(gain: Gain) -> dict[str, Any]:
    return {
        "mean": _finite(gain.mean),
        "sd": _finite(gain.sd),
        "n": gain.n,
        "interval": [_finite(gain.low), _finite(gain.high)],
        "finalists": gain.compared,
    }


def _measured_dict(measured: Measured) -> dict[str, Any]:
    return {
        "trial": measured.configuration.of,
        "start": measured.configuration.is_start,
        "params": measured.configuration.params,
        "mean": _finite(measured.mean),
        "sd": _finite(measured.sd),
        "n": len(measured.values),
        "failed": measured.failed,
        "values": list(measured.values.values()),
    }


def _finite(value: float) -> float | None:
    return value if value - value == 0 else None  # JSON has no NaN
