"""Which configurations to trust: the recommendations of a study, within its limits.

The search chooses the best of many noisy values, so that what measured best is not what is best:
`evolve.recommend` blends the measurements with what the neighbours say.
"""

import math
from collections.abc import Sequence

from optuna import Study
from optuna.trial import FrozenTrial

from evolve.config import StudyConfig
from evolve.front import pareto_front
from evolve.problem import start_values
from evolve.recommend import Recommendation, recommendations
from evolve.record import CONFIRM, START, feasible, fitness, generations, kind_of, ranking
from evolve.space import Params, Space

FINALISTS = "finalists"  # user attribute: numbers of trials, chosen after so many generations
KEPT_FINALISTS = 20


def recommended(config: StudyConfig, trials: Sequence[FrozenTrial]) -> list[Recommendation]:
    """Return the measured configurations, best first; the start values only if nothing else is.

    One beyond a limit stands behind all that keep it. With several objectives these are the best
    trade-offs, by fitness as it was measured.
    """
    ranked = ranking(trials)
    if not ranked:
        return []
    if config.objectives:
        return [_as_measured(trial) for trial in pareto_front(trials, config.objectives)]
    start = start_of(config, trials)
    found = recommendations(trials, common_space(config.space, ranked), start)
    by_number = {trial.number: trial for trial in trials}
    if feasible(ranked[0]) and not (found and feasible(by_number[found[0].trial])):
        found.insert(0, _as_measured(ranked[0]))  # nothing but the start values keeps the limits
    return found


def common_space(space: Space, ranked: Sequence[FrozenTrial]) -> Space:
    """Return the genes that all these trials have; one may have been locked for some of them."""
    common = set(ranked[0].params).intersection(*(trial.params for trial in ranked))
    return space.lock(set(space.names) - common).searched()


def start_of(config: StudyConfig, trials: Sequence[FrozenTrial]) -> Params:
    """Return the start values as they were measured, or as the files say."""
    starts = [trial for trial in trials if kind_of(trial) == START and trial.params]
    given = start_values(config, lambda _: None)
    return {**given, **starts[0].params} if starts else given


def settle_finalists(config: StudyConfig, study: Study) -> None:
    """Choose the finalists from the search alone and keep them, so that repeats change nothing."""
    trials = study.get_trials(deepcopy=False)
    count = generations(trials)
    if study.user_attrs.get(FINALISTS, {}).get("generations") != count:
        search = [trial for trial in trials if kind_of(trial) != CONFIRM]
        chosen = [item.trial for item in recommended(config, search)][:KEPT_FINALISTS]
        study.set_user_attr(FINALISTS, {"generations": count, "trials": chosen})


def finalists(study: Study, now: Sequence[int] = ()) -> list[int] | None:
    """Return the numbers of the finalists' trials, best first; None: as they rank.

    `now` are those to take where the search went on since they were chosen.
    """
    kept = study.user_attrs.get(FINALISTS)
    if kept is None:  # a study of an older version
        return None
    fresh = kept["generations"] == generations(study.get_trials(deepcopy=False))
    return list(kept["trials"] if fresh else now)


def _as_measured(trial: FrozenTrial) -> Recommendation:
    unknown = (math.nan, math.nan)
    return Recommendation(dict(trial.params), fitness(trial), math.nan, 1, unknown, trial.number)
