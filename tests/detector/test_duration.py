import pytest

from detector.duration import planned_epochs, seconds_of
from detector.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2h", 7200), ("90m", 5400), ("1h30m", 5400), ("45s", 45), ("0.5h", 1800), ("", 0)],
)
def test_a_duration_is_read_with_its_units(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["2", "2x", "h", "-1h", "1h 30", "soon", "0s"])
def test_what_is_no_duration_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=r"time='.*' must be"):
        seconds_of(text)


def test_epochs_are_planned_from_the_median_of_those_done() -> None:
    # 100 s are left of 130; 97 % of them hold 9 epochs of 10 s, after the three done
    assert planned_epochs([10.0, 10.0, 10.0], 130.0) == 3 + 9
    # the median ignores one slow epoch: 70 s left, 67.9 s hold 6
    assert planned_epochs([40.0, 10.0, 10.0], 130.0) == 3 + 6


def test_an_overdrawn_budget_plans_nothing_more() -> None:
    assert planned_epochs([10.0, 10.0], 15.0) == 2
