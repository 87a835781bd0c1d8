"""Dead genes: what an objective says of itself, what trying finds, and what becomes of it."""

import math
from types import ModuleType
from typing import Any

import pytest

from evolve.config import Start, StudyConfig
from evolve.errors import ConfigError
from evolve.objective import Objective
from evolve.preflight import probe
from evolve.problem import Problem, build_problem
from evolve.space import Params, Space

SPACE: dict[str, Any] = {
    "lr0": {"low": 1e-4, "high": 0.1, "log": True},
    "lrf": {"low": 0.01, "high": 1.0},
    "momentum": {"low": 0.6, "high": 0.98},
    "optimizer": {"choices": ["SGD", "Adagrad"]},
    "mosaic": {"low": 0.0, "high": 1.0},
    "mosaic_scale": {"low": 0.5, "high": 1.0},
}
START: Params = {"lr0": 0.01, "lrf": 0.1, "momentum": 0.9, "optimizer": "SGD", "mosaic": 0.0,
                 "mosaic_scale": 0.7}  # fmt: skip


def trainer(params: Params) -> dict[str, float]:
    """A trainer in four lines: what acts depends on schedule, optimizer and mosaic."""
    end = params["lrf"] if params.get("schedule", "cosine") == "cosine" else 0.1
    momentum = params["momentum"] if params["optimizer"] == "SGD" else 0.0
    scale = params["mosaic"] * params["mosaic_scale"]
    return {"fitness": params["lr0"] * (1 + end + momentum) + scale + params["mosaic"]}


def problem_of(
    space: dict[str, Any], settings: Params, preflight: Any = None, probing: bool = False
) -> tuple[Problem, list[str]]:
    module = ModuleType("toy")
    if preflight is not None:
        module.preflight = preflight  # type: ignore[attr-defined]
    config = StudyConfig(
        objective="toy",
        space=Space.from_dict(space, constants=settings),
        settings=settings,
        start=Start({name: START[name] for name in space}),
    )
    notices: list[str] = []
    evaluate = trainer if probing else None
    objective = Objective("toy", lambda params, context: {}, module)
    return build_problem(config, objective, notices.append, evaluate), notices


def test_trying_names_what_changes_no_metric() -> None:
    fixed = {"optimizer", "mosaic"}
    space = {name: keys for name, keys in SPACE.items() if name not in fixed}
    problem, notices = problem_of(
        space, {"optimizer": "Adagrad", "mosaic": 0, "schedule": "multistep"}, probing=True
    )
    assert set(problem.dead) == {"lrf", "momentum", "mosaic_scale"}
    assert problem.space.names == ("lr0",)
    assert problem.params({"lr0": 0.02}) == {
        "lr0": 0.02, "lrf": 0.1, "momentum": 0.9, "mosaic_scale": 0.7,
        "optimizer": "Adagrad", "mosaic": 0, "schedule": "multistep",
    }  # fmt: skip
    assert (
        "not searched: lrf has no effect here (its extreme values gave the same metrics);"
        " it stays at 0.1" in notices
    )


def test_a_gene_that_another_switches_on_is_not_dead() -> None:
    # mosaic is 0 at the start, so that mosaic_scale changes nothing there; in the middle it does
    assert probe(Space.from_dict(SPACE), START, trainer) == {}


def test_a_conditional_gene_is_tried_where_it_acts() -> None:
    space = {**SPACE, "momentum": {**SPACE["momentum"], "when": {"optimizer": "SGD"}}}
    start = {**START, "optimizer": "Adagrad"}
    assert probe(Space.from_dict(space), start, trainer) == {}
    space["momentum"]["when"] = {"optimizer": "Adagrad"}
    assert set(probe(Space.from_dict(space), start, trainer)) == {"momentum"}


def test_metrics_that_never_repeat_tell_nothing(caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def clock(params: Params) -> dict[str, float]:
        calls.append(params)
        return {"seconds": float(len(calls))}

    assert probe(Space.from_dict(SPACE), START, clock) == {}
    assert len(calls) == 2
    assert "share no metric" in caplog.text
    with_time = probe(
        Space.from_dict(SPACE), START, lambda params: {**clock(params), "x": params["lr0"]}
    )
    assert set(with_time) == set(SPACE) - {"lr0"}


def test_a_run_that_breaks_is_an_effect_and_nan_is_a_value() -> None:
    def fragile(params: Params) -> dict[str, float]:
        if params["lr0"] > 0.05:
            raise RuntimeError("diverged")
        return {"fitness": math.nan}

    assert set(probe(Space.from_dict(SPACE), START, fragile)) == set(SPACE) - {"lr0"}


def test_trying_costs_two_runs_for_a_gene_that_acts() -> None:
    calls = []

    def counted(params: Params) -> dict[str, float]:
        calls.append(params)
        return {"fitness": sum(params.values())}

    space = Space.from_dict({name: {"low": 0.0, "high": 1.0} for name in "abcd"})
    assert probe(space, dict.fromkeys("abcd", 0.5), counted) == {}
    assert len(calls) <= 2 + 2 * 4


def test_what_acts_for_some_choices_alone_becomes_conditional() -> None:
    def preflight(params: Params, space: dict[str, Any]) -> dict[str, Any]:
        return {
            "momentum": {"when": {"optimizer": ["SGD"]}, "reason": "Adagrad has none"},
            "lrf": "the schedule has no final value",
            "not_searched": "?",
        }

    problem, notices = problem_of(SPACE, {}, preflight, probing=True)
    assert notices == [
        "searched only while optimizer is SGD: momentum (Adagrad has none)",
        "not searched: lrf has no effect here (the schedule has no final value); it stays at 0.1",
    ]
    values = {**problem.start, "optimizer": "Adagrad", "momentum": 0.7}
    assert problem.params(values)["momentum"] == START["momentum"]
    assert problem.params({**values, "optimizer": "SGD"})["momentum"] == 0.7
    wrong = {"momentum": {"when": {"optimizer": ["Adam"]}, "reason": ""}}
    with pytest.raises(ConfigError, match="optimizer=Adam is not a choice"):
        problem_of(SPACE, {}, lambda params, space: wrong)


def test_a_condition_on_a_setting_is_decided_once() -> None:
    space = {**SPACE, "lrf": {**SPACE["lrf"], "when": {"schedule": ["cosine"]}}}
    problem, notices = problem_of(space, {"schedule": "multistep"})
    assert "lrf" not in problem.space.names
    assert problem.dead == {"lrf": "it acts only while schedule is cosine"}
    assert notices[0].startswith("not searched: lrf has no effect here (it acts only while")
    problem, notices = problem_of(space, {"schedule": "cosine"})
    assert "lrf" in problem.space.names
    assert notices == []
    # a locked gene is a constant too
    space = {
        **SPACE,
        "optimizer": {**SPACE["optimizer"], "locked": True},
        "momentum": {**SPACE["momentum"], "when": {"optimizer": "Adagrad"}},
    }
    assert "momentum" not in problem_of(space, {})[0].space.names
