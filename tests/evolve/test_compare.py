"""Two studies side by side."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from evolve.__main__ import main
from evolve.compare import Side, compared, differing, side_of, welch_gain
from evolve.config import StudyConfig, parse_config
from evolve.page.versus import best_line, comparison_page

sys.path.insert(0, str(Path(__file__).parent))
from page_reader import Page

SPACE = {"x": {"low": 0.0, "high": 1.0}}


def configured(**sections: object) -> StudyConfig:
    tree = {"objective": "math:sqrt", "space": SPACE, "start": {"x": 0.5}, "study": {"name": "toy"}}
    return parse_config(
        {**tree, "confirm": {"finalists": 1, "seeds": 2}, **sections}, Path("none.yaml")
    )


def side(name: str, repeats: dict[int, float], best: float = 0.9, **sections: object) -> Side:
    """Return a study with start values, one better trial, and repeats of both by seed."""
    config = configured(**sections)
    study = optuna.create_study(direction="maximize")
    study.set_user_attr("identity", json.loads(json.dumps(config.identity())))
    study.set_user_attr("confirm", {"finalists": 1, "seeds": len(repeats)})

    def add(value: float, x: float, **attributes: object) -> None:
        study.add_trial(
            optuna.trial.create_trial(
                value=value,
                params={"x": x},
                distributions=config.space.distributions(),
                user_attrs=attributes,
            )
        )

    add(0.5, 0.5, kind="start", seed=1)
    add(best, 0.25, kind="search", seed=2)
    for repeat, (seed, value) in enumerate(repeats.items()):
        add(0.5, 0.5, kind="confirm", of=0, repeat=repeat, seed=seed)
        add(value, 0.25, kind="confirm", of=1, repeat=repeat, seed=seed)
    return side_of(config, study, name)


def test_repeats_with_the_same_seeds_are_compared_in_pairs() -> None:
    found = compared(side("one", {7: 0.60, 8: 0.70}), side("two", {7: 0.65, 8: 0.76}))
    # differences 0.05, 0.06: mean 0.055, sd 0.0070711; half 6.3138 * 0.0070711 / sqrt(2) = 0.0316
    assert found.method == "same seeds"
    assert found.gain.mean == pytest.approx(0.055)
    assert (found.gain.low, found.gain.high) == pytest.approx((0.0234, 0.0866), abs=1e-4)
    assert found.word == "two is better"
    assert (
        "two against one +0.0550 fitness (90 % interval +0.0234 to +0.0866; 2 pairs" in found.text
    )


def test_repeats_with_other_seeds_are_compared_as_two_groups() -> None:
    found = compared(side("one", {7: 0.60, 8: 0.70}), side("two", {17: 0.65, 18: 0.76}))
    assert found.method == "two groups"
    assert found.word == "no difference shown"
    # variances 0.005 and 0.00605, over n: 0.0025 and 0.003025, sum 0.005525, root 0.07433
    # freedom 0.005525^2 / (0.0025^2 + 0.003025^2) = 1.98, rounded down to 1: t = 6.3138
    gain = welch_gain([0.60, 0.70], [0.65, 0.76])
    assert gain.mean == pytest.approx(0.055)
    assert gain.high - gain.mean == pytest.approx(6.3138 * 0.07433, abs=1e-3)


def test_without_repeats_nothing_is_shown() -> None:
    found = compared(side("one", {}), side("two", {}, best=0.95))
    assert found.method == "measured once"
    assert found.gain.mean == pytest.approx(0.05)
    assert math.isnan(found.gain.low)
    assert found.word == "not shown"


def test_another_measure_of_fitness_cannot_be_compared() -> None:
    found = compared(side("one", {}), side("two", {}, fitness={"F1": 1.0}))
    assert found.word == "not comparable"
    assert "fitness" in found.text


def test_what_was_different_is_named() -> None:
    wider = {"x": {"low": 0.0, "high": 2.0}, "y": {"low": 0.0, "high": 1.0}}
    assert differing({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4}) == {
        "a.c": (2, 3),
        "d": (None, 4),
    }
    one = side("one", {})
    config = configured(space=wider, settings={"epochs": 9})
    study = optuna.create_study(direction="maximize")
    study.set_user_attr("identity", json.loads(json.dumps(config.identity())))
    study.set_user_attr("confirm", {"finalists": 1, "seeds": 0})
    found = compared(one, side_of(configured(), study, "two"))
    assert found.differences["space.x.high"] == (1.0, 2.0)
    assert found.differences["settings"] == ({}, {"epochs": 9})
    assert "space.y" in found.differences
    assert found.text == "not shown: a study has no complete trial yet"
    Page(comparison_page(found))  # well nested, though one study is empty


def test_the_page_has_both_lines_and_escapes_names() -> None:
    found = compared(side("<one>", {7: 0.60, 8: 0.70}), side("two&", {7: 0.65, 8: 0.76}))
    assert best_line(found.a) == [(1, 0.5), (2, 0.9), (2, 0.9)]
    text = comparison_page(found)
    page = Page(text)
    assert "<one>" not in text and "<one>" in page.words["table"]
    assert sum(given.get("class") == "line-a" for _, given in page.elements) == 3  # 2 sizes, 1 sign
    assert not [address for address in page.addresses if not address.startswith("#")]


def test_the_command_prints_and_writes_the_comparison(
    write_study: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write_study()
    for name in ("one", "two"):
        assert main(["run", "--study", name, "--generations", "2", "--strategy", "random"]) == 0
    capsys.readouterr()
    assert main(["compare", "one", "two"]) == 0
    out = capsys.readouterr().out
    assert "fitness of the recommended values" in out
    assert "settings, start values and spaces are equal" in out
    assert main(["compare", "one", "runs/evolve.db#two", "--json", "--out", "both.html"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["a"]["study"], data["b"]["study"]) == ("one", "two")
    assert data["files"] == ["both.html"] and Path("both.html").is_file()
    assert main(["compare", "one", "tow"]) == 2
    assert "did you mean two?" in capsys.readouterr().err
    assert main(["compare", "one", "one"]) == 2
