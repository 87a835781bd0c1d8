"""Importance names what matters, keeps quiet about noise, and proposes locks only where sure."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from evolve.insight import Importance, importance, insight_text, lock_proposals
from evolve.space import Space
from evolve.yamlfile import parse_value

Objective = Callable[[Mapping[str, Any]], float]


def ranges(*names: str) -> Space:
    return Space.from_dict({name: {"low": 0.0, "high": 1.0} for name in names})


def searched(
    space: Space, objective: Objective, count: int = 120, seed: int = 0
) -> list[FrozenTrial]:
    """Return complete trials at uniform places."""
    rng = np.random.default_rng(seed)
    trials = []
    for number in range(count):
        params = space.from_unit(rng.random(len(space.genes)))
        trials.append(finished(space, params, objective(params), number))
    return trials


def finished(
    space: Space, params: Mapping[str, Any], value: float, number: int, **attributes: Any
) -> FrozenTrial:
    trial = create_trial(
        value=value,
        params=dict(params),
        distributions=space.distributions(),
        user_attrs=attributes,
    )
    trial.number = number
    return trial


def named(importances: Sequence[Importance]) -> dict[str, Importance]:
    return {found.name: found for found in importances}


def hill(params: Mapping[str, Any]) -> float:
    """Only a and b count, a more."""
    return -3.0 * (params["a"] - 0.5) ** 2 - 1.5 * (params["b"] - 0.3) ** 2


FOUR = ranges("a", "b", "c", "d")


def test_what_matters_is_first_and_what_does_not_is_said_so() -> None:
    found = importance(searched(FOUR, hill), FOUR)
    assert [one.name for one in found][:2] == ["a", "b"]
    assert [one.word for one in found] == ["matters"] * 2 + ["no effect seen"] * 2
    assert sum(one.share for one in found) == pytest.approx(1.0)
    assert found[0].share > 0.5
    assert all(one.trials == 120 for one in found)
    assert found[0].tried == pytest.approx(0.8, abs=0.1)  # nine tenths less one tenth of uniform


def test_every_measure_sums_to_one() -> None:
    scales = {"a": 0.2, "b": 0.4, "c": 2.0, "d": 4.0}
    found = importance(searched(FOUR, hill), FOUR, length_scales=scales)
    assert set(found[0].evidence) == {"ped-anova", "fanova", "model"}
    for measure in found[0].evidence:
        assert sum(one.evidence[measure] for one in found) == pytest.approx(1.0)
    # 1/0.2 of 1/0.2 + 1/0.4 + 1/2 + 1/4 = 5 of 8.25
    assert named(found)["a"].evidence["model"] == pytest.approx(5 / 8.25)
    assert named(found)["a"].seen == ("ped-anova", "fanova", "model")


def test_pure_noise_is_not_sold_as_importance() -> None:
    rng = np.random.default_rng(5)
    space = ranges(*"abcdefgh")
    for seed in range(3):
        found = importance(searched(space, lambda _: float(rng.random()), 60, seed), space)
        assert not [one for one in found if one.word == "matters"]
        assert lock_proposals(found, space) == []  # nothing was to be seen at all


def test_a_gene_that_drifts_along_with_the_search_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    trials = []
    for number in range(150):
        near = number / 150  # a and z both move from 0 to 1; only a brings fitness
        a, z, b = np.clip([near, near, 0.5] + 0.1 * rng.standard_normal(3), 0.0, 1.0)
        params = {"a": float(a), "b": float(b), "z": float(z)}
        trials.append(finished(ranges("a", "b", "z"), params, float(a), number))
    found = named(importance(trials, ranges("a", "b", "z")))
    assert found["z"].word != "matters"
    assert found["a"].share > 0.8


def test_minimising_asks_the_other_way_round() -> None:
    study = optuna.create_study(direction="minimize")
    study.add_trials(searched(FOUR, lambda params: -hill(params)))
    found = importance(study, FOUR)
    mirrored = importance(searched(FOUR, hill), FOUR)
    assert [one.word for one in found] == [one.word for one in mirrored]
    assert found[0].share == pytest.approx(mirrored[0].share)


def test_it_is_the_same_every_time_and_leaves_the_generators_alone() -> None:
    trials = searched(FOUR, hill, 60)
    state = np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    assert importance(trials, FOUR) == importance(trials, FOUR)
    assert np.random.get_state()[1].tolist() == state  # type: ignore[index, union-attr]


def test_fewer_than_thirty_complete_trials_say_so() -> None:
    trials = searched(FOUR, hill, 29)
    assert importance(trials, FOUR) == []
    assert importance([], FOUR) == []
    assert insight_text([], FOUR) == [
        "importance of hyperparameters is told after 30 complete trials"
    ]
    assert importance([*trials, *searched(FOUR, hill, 1, seed=1)], FOUR)


def test_failed_and_repeated_trials_do_not_count() -> None:
    trials = searched(FOUR, hill, 40)
    params = {"a": 0.0, "b": 0.0, "c": 0.0, "d": 0.0}
    odd = [finished(FOUR, params, 9.0, 90 + n, kind="confirm") for n in range(20)]
    for trial in odd[:10]:
        trial.user_attrs = {}
        trial.state, trial.values = TrialState.FAIL, None
    assert importance([*trials, *odd], FOUR) == importance(trials, FOUR)


def test_stopped_trials_count_with_their_forecast() -> None:
    trials = searched(FOUR, hill, 90)
    for trial in trials:
        assert trial.value is not None
        trial.intermediate_values = {0: 0.5 * trial.value, 1: trial.value}
    for trial in trials[::3]:
        trial.intermediate_values = {0: trial.intermediate_values[0]}
        trial.state, trial.values = TrialState.PRUNED, None
    found = named(importance(trials, FOUR))
    assert found["a"].trials == 90
    assert found["a"].word == "matters"


def test_constants_categories_and_shifted_logarithms_are_judged() -> None:
    space = Space.from_dict(
        {
            "lr0": {"low": 1.0e-5, "high": 0.1, "log": True},
            "decay": {"low": 0.0, "high": 0.1, "log": True, "shift": 1.0e-5},
            "optimizer": {"choices": ["SGD", "AdamW", None]},
            "steps": {"low": 1, "high": 4, "step": 1},
            "still": {"low": 0.0, "high": 1.0},
            "frozen": {"low": 0.0, "high": 1.0, "locked": True},
        }
    )

    def objective(params: Mapping[str, Any]) -> float:
        return float(np.log10(params["lr0"]) + 2.0 * (params["optimizer"] == "AdamW"))

    trials = []
    for trial in searched(space.searched(), objective, 150):
        params = {**trial.params, "still": 0.5}
        assert trial.value is not None
        trials.append(finished(space, params, trial.value, trial.number))
    found = named(importance(trials, space))
    assert sorted(found) == ["decay", "lr0", "optimizer", "steps", "still"]
    assert {name for name, one in found.items() if one.word == "matters"} == {"lr0", "optimizer"}
    assert found["still"].tried == 0.0
    locked = [line.partition(":")[0] for line in lock_proposals(list(found.values()), space)]
    assert "still" not in locked  # it was never tried
    assert "decay" in locked


def test_a_conditional_gene_is_judged_where_it_acts() -> None:
    space = Space.from_dict(
        {
            "optimizer": {"choices": ["SGD", "AdamW"]},
            "momentum": {"low": 0.0, "high": 1.0, "when": {"optimizer": "SGD"}},
            "other": {"low": 0.0, "high": 1.0},
        }
    )

    def objective(params: Mapping[str, Any]) -> float:
        return -((params["momentum"] - 0.5) ** 2) if params["optimizer"] == "SGD" else -0.1

    start = {"optimizer": "SGD", "momentum": 0.5, "other": 0.5}
    trials = [
        finished(space, space.settled(trial.params, start), trial.values[0], trial.number)
        for trial in searched(space, objective, 160)
    ]
    found = named(importance(trials, space))
    assert 60 < found["momentum"].trials < 100
    assert found["momentum"].word != "no effect seen"
    assert found["other"].word != "matters"


def test_the_first_of_several_objectives_is_judged() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    rng = np.random.default_rng(0)
    for trial in searched(FOUR, hill):
        study.add_trial(
            create_trial(
                values=[trial.values[0], float(rng.random())],
                params=trial.params,
                distributions=trial.distributions,
            )
        )
    assert [one.name for one in importance(study, FOUR)][:2] == ["a", "b"]


def test_without_scikit_learn_the_other_measures_remain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evolve.insight.find_spec", lambda name: None)
    found = importance(searched(FOUR, hill), FOUR)
    assert set(found[0].evidence) == {"ped-anova"}
    assert found[0].word == "matters"


# ---- what to do with it


def test_a_proposal_is_a_line_of_yaml_that_locks_the_gene() -> None:
    space = Space.from_dict(
        {
            "a": {"low": 0.0, "high": 1.0},
            "b": {"low": 0.0, "high": 1.0},
            "c": {"low": 0.0, "high": 1.0, "sigma": 0.3},
            "d": {"choices": ["on", "off"]},
        }
    )
    lines = lock_proposals(importance(searched(space, hill, 150), space), space)
    assert sorted(lines) == [
        "c: {low: 0.0, high: 1.0, sigma: 0.3, locked: true}",
        "d: {choices: ['on', 'off'], locked: true}",
    ]
    tree = dict(space.to_dict()) | {
        k: v for line in lines for k, v in parse_value(line, "").items()
    }
    assert Space.from_dict(tree).searched().names == ("a", "b")


def test_one_measure_that_sees_an_effect_prevents_a_lock() -> None:
    scales = {"a": 0.2, "b": 0.4, "c": 0.3, "d": 9.0}
    found = importance(searched(FOUR, hill), FOUR, length_scales=scales)
    assert [line[0] for line in lock_proposals(found, FOUR)] == ["d"]
    assert named(found)["c"].word == "unsure"


def test_a_gene_that_was_hardly_moved_is_not_proposed() -> None:
    trials = [
        finished(FOUR, {**trial.params, "d": 0.5 + 0.1 * trial.params["d"]}, trial.values[0], n)
        for n, trial in enumerate(searched(FOUR, hill))
    ]
    found = importance(trials, FOUR)
    assert [line[0] for line in lock_proposals(found, FOUR)] == ["c"]


def test_the_text_has_a_table_the_silent_ones_and_the_proposals() -> None:
    text = insight_text(importance(searched(FOUR, hill), FOUR), FOUR)
    assert text[0] == "importance over 120 trials (ped-anova, fanova):"
    assert text[1].startswith("  a  ") and text[1].endswith("matters")
    assert "  no effect seen, within what was tried: c, d" in text
    assert "  c: {low: 0.0, high: 1.0, locked: true}" in text


def test_noise_has_one_line_instead_of_a_table() -> None:
    silent = [Importance("a", 0.0, "no effect seen", {"fanova": 1.0}, (), False, 40, 0.8)]
    assert insight_text(silent, ranges("a"))[1:] == ["  no hyperparameter stands out from chance"]


def test_two_genes_of_24_are_found_in_three_hundred_trials() -> None:
    space = ranges(*(f"g{index:02d}" for index in range(24)))
    trials = searched(space, lambda params: float(params["g00"] + params["g01"]), 300)
    found = importance(trials, space)
    assert {one.name for one in found[:2]} == {"g00", "g01"}


def test_other_warnings_are_shown_as_before() -> None:
    importance(searched(FOUR, hill, 40), FOUR)
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        warnings.warn("mine", optuna.exceptions.ExperimentalWarning, stacklevel=1)
