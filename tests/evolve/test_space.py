"""The space owns scales, steps and names; numbers here are worked by hand."""

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
    "choice": {"choices": ["SGD", "AdamW", None, True]},
}


def gene(**keys: Any) -> Any:
    return Space.from_dict({"g": keys}).genes[0]


def test_log_gene_is_linear_in_the_exponent() -> None:
    lr0 = gene(low=1e-5, high=0.1, log=True)
    # -3 lies half way between -5 and -1
    assert lr0.to_unit(1e-3) == pytest.approx(0.5)
    assert lr0.from_unit(0.25) == pytest.approx(1e-4)


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
    kind = gene(**KINDS[name])
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
