"""What a study's trials say together: which genes matter, which epochs rank, whether to go on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from optuna import Study
from optuna.study import StudyDirection

from evolve.beside import beside
from evolve.budget import STOPPED
from evolve.choice import common_space, start_of
from evolve.config import StudyConfig
from evolve.curves import RankCheck
from evolve.fidelity import rank_check
from evolve.front import FITNESS
from evolve.insight import Importance
from evolve.record import ranking
from evolve.space import Space

JUDGED = 600  # trials that importance is computed from, about; more hardly change it
MANY = 1000  # trials from which on two things are done at once


@dataclass(frozen=True)
class Findings:
    """`importances`, the largest first, of the genes of `space`; `checks`, one for each epoch."""

    space: Space
    importances: list[Importance]
    checks: list[RankCheck]


def findings(config: StudyConfig, study: Study) -> Findings | None:
    """Return what a study with complete trials says; None without any."""
    return begin_findings(config, study)()


def begin_findings(config: StudyConfig, study: Study) -> Callable[[], Findings | None]:
    """Begin to find out what a study says; returns what gives it.

    Of many trials the measuring is done in a copy of this process meanwhile.
    """
    # heavy, and of use to few commands
    from evolve.evidence import LEAST, Evidence
    from evolve.insight import Measures, combined, measures
    from evolve.memo import keep_measures, kept_measures
    from evolve.recommend import length_scales

    trials = study.get_trials(deepcopy=False)
    ranked = ranking(trials)
    if not ranked:
        return lambda: None
    space = common_space(config.space, ranked)
    maximize = study.directions[0] == StudyDirection.MAXIMIZE
    every = max(1, len(trials) // JUDGED)
    data = Evidence.of(trials[::every], space.searched(), maximize)

    def measure() -> Measures:
        assert data is not None
        found = measures(data)
        keep_measures(config.directory, data, found)
        return found

    known = None if data is None else kept_measures(config.directory, data)
    begun = beside(measure) if data and not known and len(trials) > MANY else measure

    def finish() -> Findings:
        scales = None
        if len(ranked) >= LEAST and not config.objectives:
            scales = length_scales(trials, space, start_of(config, trials), maximize=maximize)
        checks = rank_check(trials, maximize=maximize)
        importances = [] if data is None else combined(data, known or begun(), scales)
        return Findings(space, importances, checks)

    return finish


def scope_text(objectives: Mapping[str, str]) -> str:
    """Return what importance is about in a study of several objectives; empty for one."""
    others = ", ".join(name for name in objectives if name != FITNESS)
    return f"for {FITNESS} alone: {others} may depend on others" if others else ""


def stop_reason(study: Study) -> str:
    """Return why the search said that another trial does not pay; "" if it did not."""
    said = study.user_attrs.get(STOPPED)
    return "" if said is None else str(said["reason"])
