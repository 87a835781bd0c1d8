"""What a study's trials say: their attributes by name, and the questions that everybody asks them.

User attributes of a trial:
    kind         start (the start values), search, or confirm (known values, another seed)
    seed         of the training, a function of the study's seed and the trial's number
    lease        [owner, beat] while several processes share the study
    attempts     how often it was begun; more than 1 after a death of its worker or of the study
    worker       name of the worker that has it
    metrics      what evaluate returned
    seconds      duration of all its attempts together; `spent` is the same while it runs
    gpus         how many GPUs it has; a share of one where workers share it; absent: none
    reason       why it failed
    warm         index among the configurations that a warm start brought
    of, repeat   confirm: number of the search's trial with the same values, index of the seed

The system attribute `constraints` holds how far it is beyond each limit; 0 and below is kept.
"""

from collections.abc import Iterable

import numpy as np
from optuna import Study
from optuna.trial import FrozenTrial, TrialState

START, SEARCH, CONFIRM = "start", "search", "confirm"
COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)
DIVERGED = "diverged"
LEASE = "lease"
CONSTRAINTS = "constraints"  # Optuna's system attribute of a trial: a list of floats


def kind_of(trial: FrozenTrial) -> str:
    """Return start, search or confirm."""
    kind: str = trial.user_attrs.get("kind", SEARCH)
    return kind


def search_trials(study: Study) -> list[FrozenTrial]:
    """Return all trials but those that only measure known values again.

    Under Hyperband too, which shows a sampler a study whose `get_trials` holds one bracket only.
    """
    return [trial for trial in study._get_trials(deepcopy=False) if kind_of(trial) != CONFIRM]


def generations(trials: Iterable[FrozenTrial]) -> int:
    """Return how many trials count: complete or pruned, and not of kind confirm."""
    return sum(trial.state in COUNTED and kind_of(trial) != CONFIRM for trial in trials)


def ranking(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Return the complete trials of the search, best first; of equals the earlier one.

    A trial beyond a limit stands behind all that keep it; the nearest to its limits goes first.
    """
    complete = [
        trial
        for trial in trials
        if trial.state == TrialState.COMPLETE and kind_of(trial) != CONFIRM
    ]
    return sorted(complete, key=lambda trial: (excess(trial), -fitness(trial), trial.number))


def fitness(trial: FrozenTrial) -> float:
    """Return the fitness of a complete or pruned trial."""
    value = value_of(trial)
    assert value is not None
    return value


def value_of(trial: FrozenTrial) -> float | None:
    """Return the fitness of any trial, also with several objectives: it is the first of them."""
    values: list[float] | None = trial.values
    return values[0] if values else None


def feasible(trial: FrozenTrial) -> bool:
    """Return whether a trial keeps all limits of its study."""
    return excess(trial) <= 0.0


def excess(trial: FrozenTrial) -> float:
    """Return by how much a trial is beyond its limits, summed over them; 0 if it keeps all."""
    beyond: list[float] = trial.system_attrs.get(CONSTRAINTS) or []
    return sum(max(0.0, value) for value in beyond)


def seconds_of(trial: FrozenTrial) -> float:
    """Return how long a trial took so far, its earlier attempts included."""
    return float(trial.user_attrs.get("seconds", trial.user_attrs.get("spent", 0.0)))


def reason_of(trial: FrozenTrial) -> str:
    """Return why a trial failed."""
    reason: str = trial.user_attrs.get("reason", "unknown")
    return reason


def trial_seed(study_seed: int, number: int) -> int:
    """Return the training seed of a trial, 0 to 2**31 - 1."""
    return _seed(np.random.SeedSequence([study_seed, number]))


def repeat_seed(study_seed: int, repeat: int) -> int:
    """Return the training seed of a confirmation: the same for every configuration, new to all."""
    return _seed(np.random.SeedSequence([study_seed], spawn_key=(1, repeat)))


def _seed(sequence: np.random.SeedSequence) -> int:
    return int(sequence.generate_state(1)[0] & 0x7FFFFFFF)
