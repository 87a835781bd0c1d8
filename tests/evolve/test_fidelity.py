"""Stopping early saves epochs and keeps the winner."""

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from evolve.config import Plugin
from evolve.errors import ConfigError
from evolve.fidelity import PRUNERS, build_pruner, may_be_pruned, saved_share

EPOCHS = 9


def run_curves(pruning: Plugin, count: int = 40) -> optuna.Study:
    """Run trials whose curves never cross: value x of trial i is reached in 9 epochs."""
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=build_pruner(pruning),
    )
    for _ in range(count):
        trial = study.ask()
        height = trial.suggest_float("x", 0.0, 1.0)
        for epoch in range(EPOCHS):
            trial.report(height * (1.0 - 0.5 ** (epoch + 1)), epoch)
            if trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            study.tell(trial, height)
    return study


@pytest.mark.parametrize("name", ["successive-halving", "hyperband", "median"])
def test_forty_trials_cost_far_less_and_the_best_one_survives(name: str) -> None:
    study = run_curves(Plugin(name))
    best = max(study.trials, key=lambda trial: trial.params["x"])
    assert best.state == TrialState.COMPLETE
    assert saved_share(study.trials) > 0.25


def test_no_rule_stops_nothing() -> None:
    study = run_curves(Plugin("none"))
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
    assert saved_share(study.trials) == 0.0


def test_saved_share_is_what_was_not_run() -> None:
    def trial(epochs: int, state: TrialState, kind: str = "search") -> optuna.trial.FrozenTrial:
        return create_trial(
            value=None if state == TrialState.FAIL else 0.5,
            state=state,
            intermediate_values={epoch: 0.1 for epoch in range(epochs)},
            user_attrs={"kind": kind},
        )

    trials = [
        trial(10, TrialState.COMPLETE, "start"),
        trial(4, TrialState.PRUNED),
        trial(1, TrialState.PRUNED),
        trial(3, TrialState.FAIL),  # was not stopped to save anything
        trial(10, TrialState.COMPLETE, "confirm"),  # nor can it be
    ]
    # 15 epochs of 3 x 10 were run
    assert saved_share(trials) == pytest.approx(0.5)
    assert saved_share([]) == 0.0


def test_start_values_and_repeats_are_measured_whole() -> None:
    kinds = {
        kind: may_be_pruned(create_trial(value=0.0, user_attrs={"kind": kind}))
        for kind in ("start", "search", "confirm")
    }
    assert kinds == {"start": False, "search": True, "confirm": False}


@pytest.mark.parametrize("name", PRUNERS)
def test_every_rule_is_built_by_its_name(name: str) -> None:
    assert isinstance(build_pruner(Plugin(name)), PRUNERS[name])


@pytest.mark.parametrize(
    ("pruning", "message"),
    [
        (Plugin("halving"), "pruning halving is not known; did you mean successive-halving"),
        (Plugin("median", {"n_startup": 3}), "no option n_startup; did you mean n_startup_trials"),
        (Plugin("none", {"rungs": 3}), "no option rungs"),
        (Plugin("successive-halving", {"reduction_factor": 1}), "reduction_factor"),
    ],
)
def test_bad_rules_are_named(pruning: Plugin, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_pruner(pruning)
