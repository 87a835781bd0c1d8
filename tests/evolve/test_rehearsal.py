"""Short runs before a study, for the preflight of an objective that offers none."""

from collections.abc import Callable
from pathlib import Path

import pytest

from evolve.__main__ import main
from evolve.config import load_config
from evolve.errors import RunFailed
from evolve.rehearsal import rehearsal

WriteStudy = Callable[..., Path]


def test_a_run_ends_at_its_first_report_and_is_kept(write_study: WriteStudy) -> None:
    write_study("idle_gene", preflight=True)
    config = load_config("evolve.yaml")
    for _ in range(2):  # going on with a study does not try again
        with rehearsal(config) as evaluate:
            assert evaluate is not None
            assert evaluate({"x": 0.25, "y": 1}) == {"fitness": 0.25}
            assert evaluate({"x": 0.25, "y": 1}) == {"fitness": 0.25}
        assert Path("epochs.txt").read_text() == "0\n0\n"  # the same values twice, in one epoch


def test_nobody_asked(write_study: WriteStudy) -> None:
    write_study("idle_gene")
    with rehearsal(load_config("evolve.yaml")) as evaluate:
        assert evaluate is None


def test_an_objective_that_fails_says_why(write_study: WriteStudy) -> None:
    write_study("broken", preflight=True)
    with (
        rehearsal(load_config("evolve.yaml")) as evaluate,
        pytest.raises(RunFailed, match=r"preflight: FileNotFoundError: data/none"),
    ):
        assert evaluate is not None
        evaluate({"x": 1})


def test_a_gene_without_effect_is_not_searched(
    write_study: WriteStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study("idle_gene", generations=2, preflight=True)
    assert main(["run"]) == 0
    assert "not searched: y has no effect here" in capsys.readouterr().err
