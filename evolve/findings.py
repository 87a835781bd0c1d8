"""What a study's trials say together: which genes matter, which epochs rank, whether to go on."""

from collections.abc import Mapping
from dataclasses import dataclass

from optuna import Study
from optuna.study import StudyDirection

from evolve.budget import STOPPED
from evolve.choice import common_space, start_of
from evolve.config import StudyConfig
from evolve.curves import RankCheck
from evolve.fidelity import rank_check
from evolve.front import FITNESS
from evolve.insight import Importance, importance
from evolve.record import ranking
from evolve.space import Space

JUDGED = 600  # trials that importance is computed from, about; more hardly change it


@dataclass(frozen=True)
class Findings:
    """`importances`, the largest first, of the genes of `space`; `checks`, one for each epoch."""

    space: Space
    importances: list[Importance]
    checks: list[RankCheck]


def findings(config: StudyConfig, study: Study) -> Findings | None:
    """Return what a study with complete trials says; None without any."""
    # heavy, and of use to few commands
    from evolve.evidence import LEAST
    from evolve.recommend import length_scales

    trials = study.get_trials(deepcopy=False)
    ranked = ranking(trials)
    if not ranked:
        return None
    space = common_space(config.space, ranked)
    maximize, scales = study.directions[0] == StudyDirection.MAXIMIZE, None
    if len(ranked) >= LEAST and not config.objectives:
        scales = length_scales(trials, space, start_of(config, trials), maximize=maximize)
    every = max(1, len(trials) // JUDGED)
    found = importance(trials[::every], space, length_scales=scales, maximize=maximize)
    return Findings(space, found, rank_check(trials, maximize=maximize))


def scope_text(objectives: Mapping[str, str]) -> str:
    """Return what importance is about in a study of several objectives; empty for one."""
    others = ", ".join(name for name in objectives if name != FITNESS)
    return f"for {FITNESS} alone: {others} may depend on others" if others else ""


def stop_reason(study: Study) -> str:
    """Return why the search said that another trial does not pay; "" if it did not."""
    said = study.user_attrs.get(STOPPED)
    return "" if said is None else str(said["reason"])
