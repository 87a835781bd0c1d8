"""What was measured of trials is kept, and given back for exactly these trials."""

import json
from pathlib import Path

import numpy as np
import pytest

from evolve.beside import beside
from evolve.evidence import Evidence
from evolve.insight import measures
from evolve.memo import FILE, keep_measures, kept_measures
from evolve.space import Space

SPACE = Space.from_dict({name: {"low": 0.0, "high": 1.0} for name in "abc"}, "test")


def evidence(seed: int = 0) -> Evidence:
    """Return 60 trials of a hill in `a`."""
    rng = np.random.default_rng(seed)
    cube = rng.random((60, 3))
    values = 1.0 - (cube[:, 0] - 0.5) ** 2 + 0.01 * rng.standard_normal(60)
    return Evidence(SPACE, cube, np.ones((60, 3), dtype=np.bool_), values)


def test_measures_come_back_as_they_were(tmp_path: Path) -> None:
    data = evidence()
    assert kept_measures(tmp_path, data) is None
    measured = measures(data)
    keep_measures(tmp_path, data, measured)
    again = kept_measures(tmp_path, evidence())
    assert again is not None and again.steady.tolist() == measured.steady.tolist()
    assert len(again.findings) == len(measured.findings) > 0
    for one, other in zip(again.findings, measured.findings, strict=True):
        assert one.measure == other.measure
        for name in ("scores", "excess", "seen"):
            ours, theirs = getattr(one, name), getattr(other, name)
            assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)


@pytest.mark.parametrize("change", ["values", "cube", "active", "space"])
def test_nothing_is_given_for_other_trials(tmp_path: Path, change: str) -> None:
    data = evidence()
    keep_measures(tmp_path, data, measures(data))
    parts = {"values": data.values, "cube": data.cube, "active": data.active}
    space = SPACE
    if change == "space":
        space = Space.from_dict({n: {"low": 0.0, "high": 2.0} for n in "abc"}, "test")
    elif change == "active":
        parts["active"] = ~data.active
    else:
        parts[change] = parts[change] + 1e-9
    assert kept_measures(tmp_path, Evidence(space, **parts)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"digest": 1}', "null"])
def test_a_torn_file_is_no_file(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    assert kept_measures(tmp_path, evidence()) is None


def test_a_file_of_another_form_is_no_file(tmp_path: Path) -> None:
    data = evidence()
    keep_measures(tmp_path, data, measures(data))
    tree = json.loads((tmp_path / FILE).read_text())
    del tree["findings"][0]["scores"]
    (tmp_path / FILE).write_text(json.dumps(tree))
    assert kept_measures(tmp_path, data) is None


def test_a_study_without_a_folder_gets_none(tmp_path: Path) -> None:
    data = evidence()
    keep_measures(tmp_path / "nowhere", data, measures(data))
    assert not (tmp_path / "nowhere").exists()


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process look as if no earlier test had left a thread."""
    monkeypatch.setattr("evolve.beside.threading.active_count", lambda: 1)


def test_a_copy_of_the_process_gives_its_result(alone: None) -> None:
    found = beside(lambda: {"sum": float(np.arange(4).sum())})
    assert found() == {"sum": 6.0}


def test_what_fails_in_the_copy_is_done_here(tmp_path: Path, alone: None) -> None:
    """The copy fails once, and says nothing; the second time is here."""
    tried = tmp_path / "tried"

    def work() -> str:
        if not tried.exists():
            tried.touch()
            raise OSError("no space left")
        return "here"

    assert beside(work)() == "here" and tried.exists()
