"""What the page of a study shows: its trials, sorted out once, and what is known of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from optuna import Study
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from evolve.choice import start_of
from evolve.config import StudyConfig
from evolve.curves import RankCheck
from evolve.description import change_text, changes_of, description_of
from evolve.errors import ConfigError
from evolve.findings import Findings, findings, stop_reason
from evolve.insight import Importance
from evolve.printout import which_study
from evolve.record import CONFIRM, START, fitness, kind_of
from evolve.report import fitness_range
from evolve.space import Gene, Params, Space
from evolve.summary import Summary
from evolve.thinning import BEST_DRAWN, is_measured, thinned_out


@dataclass(frozen=True)
class Scene:
    """A study as the page needs it; `sign` is -1 where a smaller fitness is better.

    `search`: ended trials of the search; `measured`: those with a finite fitness; `drawn`: those of
    `search` that plots and tables show; `repeats`: ended trials with other seeds.
    """

    config: StudyConfig
    summary: Summary
    space: Space
    trials: Sequence[FrozenTrial]
    search: list[FrozenTrial]
    measured: list[FrozenTrial]
    drawn: list[FrozenTrial]
    repeats: list[FrozenTrial]
    start: FrozenTrial | None
    winner: FrozenTrial | None
    start_values: Params
    found: Findings | None
    stop: str
    options: str  # that lead a command to this study
    described: Mapping[str, Any]  # by the objective, with the first trial
    changes: list[str]  # of the data, in words
    sign: float = 1.0

    @property
    def importances(self) -> list[Importance]:
        """Of the genes, the largest first; empty where there are too few trials."""
        return self.found.importances if self.found else []

    @property
    def checks(self) -> list[RankCheck]:
        """One rank check for each epoch."""
        return self.found.checks if self.found else []

    @property
    def complete(self) -> list[FrozenTrial]:
        """The measured trials that ran to their end."""
        return [trial for trial in self.measured if trial.state == TrialState.COMPLETE]

    @property
    def drawn_measured(self) -> list[FrozenTrial]:
        """The drawn trials with a fitness."""
        return [trial for trial in self.drawn if is_measured(trial)]

    @property
    def genes(self) -> list[Gene]:
        """The genes, the most important first; where that is not known, those that changed."""
        order = {found.name: place for place, found in enumerate(self.importances)}

        def rank(gene: Gene) -> tuple[float, bool, str]:
            return order.get(gene.name, math.inf), not self.changed(gene), gene.name

        return sorted(self.space.genes, key=rank)

    def changed(self, gene: Gene) -> bool:
        """Return whether the recommended value differs from the start value."""
        if self.winner is None or gene.name not in self.winner.params:
            return False
        won, began = self.winner.params[gene.name], self.start_values.get(gene.name)
        if isinstance(won, float) and isinstance(began, float):
            return not math.isclose(won, began, rel_tol=1e-6)
        return bool(won != began)

    @property
    def thinned(self) -> str:
        """In words what is left out of plots and tables; empty if nothing is."""
        if len(self.drawn) == len(self.search):
            return ""
        return (
            f"{len(self.drawn):,} of {len(self.search):,} trials are shown: the best"
            f" {BEST_DRAWN} and every so-many-th of the others. All are in trials.csv."
        )

    @cached_property
    def range(self) -> tuple[float, float]:
        """The range of fitness to draw."""
        values = [self.sign * fitness(trial) for trial in [*self.measured, *self.repeats]]
        low, high = fitness_range(values)
        return (low, high) if self.sign > 0 else (-high, -low)

    def active(self, trial: FrozenTrial, gene: Gene) -> bool:
        """Return whether a gene of a trial has an effect."""
        if not gene.when:
            return True
        by_name = dict(zip(self.space.names, self.space.active(trial.params), strict=True))
        return by_name[gene.name]

    def folder(self, number: int) -> Path:
        """Folder of a trial's files."""
        return self.config.directory / "trials" / str(number)

    def runs_of(self, number: int) -> list[FrozenTrial]:
        """Return the repeats of a trial's values that have a fitness."""
        return [trial for trial in self.repeats if trial.user_attrs.get("of") == number]


def scene_of(config: StudyConfig, study: Study, summary: Summary) -> Scene:
    """Return all that the page of a study shows."""
    trials = study.get_trials(deepcopy=False)
    search = [t for t in trials if kind_of(t) != CONFIRM and t.state.is_finished()]
    measured = [trial for trial in search if is_measured(trial)]
    repeats = [t for t in trials if kind_of(t) == CONFIRM and is_measured(t)]
    sign = _sign(study)
    starts = [t for t in measured if kind_of(t) == START and t.state == TrialState.COMPLETE]
    winner = winner_of(study, summary)
    kept = {t.number for t in (*starts[:1], *([winner] if winner else []))}
    kept |= {int(trial.user_attrs.get("of", -1)) for trial in repeats}
    return Scene(
        config=config,
        summary=summary,
        space=_space_of(config, search),
        trials=trials,
        search=search,
        measured=measured,
        drawn=thinned_out(search, kept, sign),
        repeats=repeats,
        start=starts[0] if starts else None,
        winner=winner,
        start_values=start_of(config, trials),
        found=summary.found or findings(config, study),
        stop=stop_reason(study),
        options=_options(config),
        described=description_of(study),
        changes=[change_text(change) for change in changes_of(study)],
        sign=sign,
    )


def winner_of(study: Study, summary: Summary) -> FrozenTrial | None:
    """Return the recommended trial; the smallest one where Optuna minimises."""
    search = [t for t in study.get_trials(deepcopy=False) if kind_of(t) != CONFIRM]
    measured = [t for t in search if t.state.is_finished() and is_measured(t)]
    if _sign(study) > 0:
        return next((t for t in measured if t.number == summary.recommended_trial), None)
    complete = [trial for trial in measured if trial.state == TrialState.COMPLETE]
    return min(complete, key=fitness, default=None)


def _sign(study: Study) -> float:
    return -1.0 if study.directions[0] == StudyDirection.MINIMIZE else 1.0


def place_of(gene: Gene, params: Mapping[str, Any]) -> float | None:
    """Return where a trial stands on a gene's range; None if it does not have it there."""
    if gene.name not in params:
        return None
    try:
        return gene.to_unit(params[gene.name])
    except (ConfigError, ValueError, TypeError):
        return None  # a choice that the space no longer has


def _options(config: StudyConfig) -> str:
    try:
        return which_study(config)
    except ConfigError:  # the file is gone, or broken by now
        return f" --study {config.study.name}"


def _space_of(config: StudyConfig, trials: Sequence[FrozenTrial]) -> Space:
    """Return the genes that trials have, as the file describes them, or as Optuna does."""
    described = {gene.name: gene for gene in config.space.genes}
    own = {name: kind for trial in trials for name, kind in trial.distributions.items()}
    names = own or described
    others = Space.from_distributions({n: kind for n, kind in own.items() if n not in described})
    genes = [gene for name, gene in described.items() if name in names]
    return Space(tuple(sorted([*genes, *others.genes], key=lambda gene: gene.name)))
