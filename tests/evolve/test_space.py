"""The space owns scales, steps and names; numbers here are worked by hand."""

import json
import math
from typing import Any

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from evolve.errors import ConfigError
from evolve.space import Space

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"low": -2.0, "high": 3.0},
    "log": {"low": 1e-5, "high": 0.1, "log": True},
    "negative": {"low": -4.0, "high": -1.0},
    "stepped": {"low": 0.0, "high": 0.9, "step": 0.3},
    "whole": {"low": 2, "high": 9, "int": True},
    "whole_step": {"low": 32, "high": 128, "step": 32},
    "whole_log": {"low": 1, "high": 64, "log": True, "int": True},
    "shifted": {"low": 0, "high": 0.01, "log": True, "shift": 1e-5},
    "shifted_negative": {"low": -0.5, "high": 2, "log": True, "shift": 0.6},
    "whole_shifted": {"low": 0, "high": 100, "log": True, "int": True, "shift": 1},
    "depending": {"low": 0.0, "high": 1.0, "when": {"choice": ["SGD", None]}},
    "choice": {"choices": ["SGD", "AdamW", None, True]},
}


def gene(**keys: Any) -> Any:
    return Space.from_dict({"g": keys}).genes[0]


def test_log_gene_is_linear_in_the_exponent() -> None:
    lr0 = gene(low=1e-5, high=0.1, log=True)
    # -3 lies half way between -5 and -1
    assert lr0.to_unit(1e-3) == pytest.approx(0.5)
    assert lr0.from_unit(0.25) == pytest.approx(1e-4)


def test_a_shifted_logarithm_begins_at_zero() -> None:
    decay = gene(low=0, high=0.01, log=True, shift=1e-5)
    # log10: 1e-5 is -5, 0.01001 is -1.9996: half way is -3.4998 = 3.164e-4, less the shift
    assert decay.from_unit(0.0) == 0.0
    assert decay.from_unit(0.5) == pytest.approx(10**-3.4998 - 1e-5, rel=1e-3)
    assert decay.to_unit(0.0) == 0.0
    assert decay.distribution() == FloatDistribution(0.0, 0.01)
    assert decay.nearest(0.0, "start") == 0.0
    # whole: from 0.5 (half a cell below 0, shifted), log2 -1, to 8.5, log2 3.09; between 0 and 1
    # lies 1.5, log2 0.585: (0.585 + 1) / 4.09 = 0.388
    whole = gene(low=0, high=7, log=True, int=True, shift=1)
    assert [whole.from_unit(u) for u in (0.0, 0.38, 0.39, 1.0)] == [0, 0, 1, 7]
    assert whole.distribution() == IntDistribution(0, 7)


def test_every_whole_number_owns_an_equal_share_of_the_cube() -> None:
    whole = gene(low=2, high=4, int=True)
    # three cells: [0, 1/3) is 2, [1/3, 2/3) is 3, [2/3, 1] is 4
    assert [whole.from_unit(u) for u in (0.0, 0.32, 0.34, 0.66, 0.67, 1.0)] == [2, 2, 3, 3, 4, 4]
    assert whole.to_unit(3) == pytest.approx(0.5)
    assert all(isinstance(whole.from_unit(u), int) for u in (0.0, 0.5, 1.0))


def test_steps_have_no_rounding_dust() -> None:
    stepped = gene(low=0.0, high=0.9, step=0.3)
    assert [stepped.from_unit(u) for u in (0.1, 0.3, 0.6, 0.9)] == [0.0, 0.3, 0.6, 0.9]


@pytest.mark.parametrize("name", KINDS)
def test_values_go_to_the_cube_and_back(name: str) -> None:
    kind = gene(**{key: value for key, value in KINDS[name].items() if key != "when"})
    for place in np.linspace(0.0, 1.0, 41):
        value = kind.from_unit(float(place))
        again = kind.from_unit(kind.to_unit(value))
        assert again == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value)
        assert kind.distribution()._contains(kind.distribution().to_internal_repr(value))


def test_distributions_are_optunas() -> None:
    kinds = Space.from_dict(KINDS).distributions()
    assert kinds["log"] == FloatDistribution(1e-5, 0.1, log=True)
    assert kinds["stepped"] == FloatDistribution(0.0, 0.9, step=0.3)
    assert kinds["whole"] == IntDistribution(2, 9)
    assert kinds["whole_step"] == IntDistribution(32, 128, step=32)
    assert kinds["whole_log"] == IntDistribution(1, 64, log=True)
    assert kinds["choice"] == CategoricalDistribution(("SGD", "AdamW", None, True))


def test_whole_bounds_alone_do_not_make_a_whole_gene() -> None:
    assert isinstance(gene(low=0, high=1).distribution(), FloatDistribution)


def test_order_of_the_file_decides_nothing() -> None:
    space, turned = Space.from_dict(KINDS), Space.from_dict(dict(reversed(KINDS.items())))
    assert space == turned
    params = space.middle()
    assert np.array_equal(space.to_unit(params), turned.to_unit(dict(reversed(params.items()))))


def test_a_space_is_read_back_from_its_own_keys_and_from_optuna() -> None:
    space = Space.from_dict(KINDS)
    assert Space.from_dict(space.to_dict()) == space
    assert Space.from_dict(json.loads(json.dumps(space.to_dict()))) == space
    again = Space.from_distributions(space.distributions())
    assert again.distributions() == space.distributions()


def test_locked_genes_are_not_searched() -> None:
    space = Space.from_dict(KINDS).lock(["log", "choice"])
    assert set(space.names) - set(space.distributions()) == {"log", "choice"}
    assert "log" not in space.searched().names


def test_nearest_clips_and_rounds() -> None:
    assert gene(low=2, high=9, int=True).nearest(3.6, "s") == 4
    assert gene(low=0.0, high=1.0).nearest(7, "s") == 1.0
    assert gene(low=-4.0, high=-1.0).nearest(0.0, "s") == -1.0
    assert gene(low=0.0, high=0.9, step=0.3).nearest(0.5, "s") == 0.6


def test_true_is_not_the_choice_1() -> None:
    with pytest.raises(ConfigError, match="g=True is not a choice; allowed: 0, 1"):
        gene(choices=[0, 1]).nearest(True, "start")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"lo": 0, "high": 1}, "e.yaml: space.lr0.lo is not a key of a gene; did you mean low?"),
        ({"high": 1}, "low is missing"),
        ({"low": 1, "high": 1}, "low=1 must be below high=1"),
        ({"low": 2, "high": 1}, "low=2 must be below high=1"),
        ({"low": "a", "high": 1}, "low must be a number, got 'a'"),
        ({"low": True, "high": 2}, "low must be a number, got True"),
        ({"low": 0, "high": math.inf}, "high must be finite"),
        ({"low": 0, "high": math.nan}, "high must be finite"),
        ({"low": 0, "high": 1, "log": True}, "log: true needs low above 0, got 0"),
        ({"low": -2, "high": -1, "log": True}, "log: true needs low above 0"),
        ({"low": 0, "high": 1, "log": "yes"}, "log must be true or false, got 'yes'"),
        ({"low": 0, "high": 1, "shift": 1}, "lr0.shift=1 needs log: true"),
        ({"low": -1, "high": 1, "log": True, "shift": 1}, "lr0.shift=1 must be above 1"),
        ({"low": 0, "high": 9, "int": True, "log": True, "shift": 0.5}, "must be above 0.5"),
        ({"choices": [1, 2], "shift": 1}, "shift cannot stand beside choices"),
        ({"low": 0, "high": 1, "sigma": -0.1}, "sigma=-0.1 must not be negative"),
        ({"low": 0, "high": 1.5, "int": True}, "needs whole bounds"),
        ({"low": 0, "high": 1.0, "step": 0.3}, "try high: 0.9"),
        ({"low": 0, "high": 1.0, "step": 0}, "step=0 must be above 0"),
        ({"low": 1, "high": 9, "step": 2, "log": True}, "step cannot stand beside log"),
        ({"choices": ["a"]}, "two or more"),
        ({"choices": "ab"}, "two or more"),
        ({"choices": [1, [2]]}, r"\[2\] must be a number"),
        ({"choices": [1, 1]}, "twice"),
        ({"choices": [1, 2], "low": 1}, "low cannot stand beside choices"),
        (3, "must be {low"),
    ],
)
def test_bad_genes_are_named(keys: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Space.from_dict({"lr0": keys}, "e.yaml")


# ---- conditions

CONDITIONAL: dict[str, Any] = {
    "momentum": {"low": 0.6, "high": 0.98, "when": {"optimizer": "SGD"}},
    "nesterov": {"choices": [True, False], "when": {"optimizer": ["SGD"]}},
    "damping": {"low": 0.0, "high": 0.5, "when": {"nesterov": False, "layers": [1, 2]}},
    "optimizer": {"choices": ["SGD", "AdamW", "RMSprop"]},
    "layers": {"low": 1, "high": 3, "int": True},
}
START = {"momentum": 0.9, "nesterov": False, "damping": 0.1, "optimizer": "SGD", "layers": 1}


@pytest.mark.parametrize(
    ("changes", "inactive"),
    [
        ({}, set()),
        ({"nesterov": True}, {"damping"}),
        ({"layers": 3}, {"damping"}),
        # damping's own conditions hold, but nesterov, on which it depends, is inactive
        ({"optimizer": "AdamW"}, {"momentum", "nesterov", "damping"}),
    ],
)
def test_a_gene_is_active_while_all_its_conditions_hold(
    changes: dict[str, Any], inactive: set[str]
) -> None:
    space = Space.from_dict(CONDITIONAL)
    active = space.active({**START, **changes})
    assert {name for name, acts in zip(space.names, active, strict=True) if not acts} == inactive
    assert space.lock(["layers"]).searched().active({**START, **changes}) == tuple(
        acts for name, acts in zip(space.names, active, strict=True) if name != "layers"
    )


def test_inactive_genes_settle_at_their_start_values() -> None:
    space = Space.from_dict(CONDITIONAL)
    moved = {"momentum": 0.7, "nesterov": True, "damping": 0.4, "optimizer": "AdamW", "layers": 2}
    settled = space.settled(moved, START)
    assert settled == {**START, "optimizer": "AdamW", "layers": 2}
    assert space.active(settled) == space.active(moved)
    assert space.settled({**moved, "optimizer": "SGD"}, START)["momentum"] == 0.7


def test_conditions_on_what_is_not_searched_are_decided_once() -> None:
    data = {**CONDITIONAL, "schedule_end": {"low": 0, "high": 1, "when": {"schedule": "cosine"}}}
    space = Space.from_dict(data, constants=["schedule"])
    locked = space.lock(["optimizer"])
    held = locked.decided({"optimizer": "SGD", "schedule": "cosine"})
    assert set(held.searched().names) == {*CONDITIONAL, "schedule_end"} - {"optimizer"}
    assert held.searched().genes[0].when == (("layers", (1, 2)), ("nesterov", (False,)))
    gone = locked.decided({"optimizer": "AdamW", "schedule": "constant", "nesterov": False})
    # damping goes too: it depends on nesterov, which has gone
    assert gone.searched().names == ("layers",)


def test_conditions_can_be_added() -> None:
    space = Space.from_dict(CONDITIONAL)
    less = space.conditional("damping", {"optimizer": ["SGD"], "layers": [2, 3]})
    when = {gene.name: gene.when for gene in less.genes}["damping"]
    assert when == (("layers", (2,)), ("nesterov", (False,)), ("optimizer", ("SGD",)))
    nothing = space.conditional("momentum", {"optimizer": "AdamW"})
    assert "momentum" not in nothing.searched().names  # SGD alone and AdamW alone: never


@pytest.mark.parametrize(
    ("name", "when", "message"),
    [
        ("momentum", {"optimiser": "SGD"}, r"e.yaml: space.momentum.when.optimiser is neither a "
         r"gene nor a setting; did you mean optimizer\?"),
        ("momentum", {"optimizer": "Adam"}, r"momentum.when.optimizer: optimizer=Adam is not a "
         r"choice; allowed: SGD, AdamW, RMSprop"),
        ("momentum", {"layers": 4}, "space.momentum.when.layers: layers is never 4; next to it"),
        ("momentum", {"layers": 1.5}, "layers is never 1.5"),
        ("momentum", {"layers": True}, "must be a number, got True"),
        ("layers", {"damping": 0.1}, "damping has a range; name one with choices or steps"),
        ("momentum", {"optimizer": []}, "space.momentum.when.optimizer names no value"),
        ("momentum", {}, "space.momentum.when must be"),
        ("momentum", "SGD", "space.momentum.when must be"),
        ("layers", {"layers": 1}, "space.layers.when is a circle: layers -> layers"),
        ("optimizer", {"nesterov": True}, "a circle: nesterov -> optimizer -> nesterov"),
    ],
)  # fmt: skip
def test_bad_conditions_are_named(name: str, when: Any, message: str) -> None:
    data = {**CONDITIONAL, name: {**CONDITIONAL[name], "when": when}}
    with pytest.raises(ConfigError, match=message) as caught:
        Space.from_dict(data, "e.yaml")
    assert "\n" not in str(caught.value)
