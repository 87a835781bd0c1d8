"""What a study keeps of its objective's description: digests of the data, versions."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna import Study
from optuna.trial import FrozenTrial
from rich.console import Console

from evolve import report
from evolve.compare import compared, side_of
from evolve.config import load_config, parse_config
from evolve.description import changes_of, description_of, digests_of, keep_description
from evolve.display import Display
from evolve.study import run_study

TOLD: dict[str, Any] = {
    "data": "shapes.yaml",
    "digests": {"train": "ab12", "val": "cd34"},
    "torch": "2.14.1",
    "latency_ms": 8.5,
    "hyp": {"lr0": 0.01},
    "config": {"epochs": 3},
}


def study_with_trials(count: int = 3, **params: float) -> tuple[Study, list[FrozenTrial]]:
    study = optuna.create_study(direction="maximize")
    distributions = {name: optuna.distributions.FloatDistribution(0, 1) for name in params}
    trial = optuna.trial.create_trial(value=1.0, params=params, distributions=distributions)
    study.add_trials([trial] * count)
    return study, study.get_trials()


def test_the_first_trial_describes_the_study() -> None:
    study, trials = study_with_trials()
    assert keep_description(study, trials[0], {}, strategy="guided", workers=2) == ""
    assert description_of(study) == {"strategy": "guided", "workers": 2}  # it told nothing
    assert keep_description(study, trials[0], TOLD, strategy="guided", workers=2) == ""
    assert keep_description(study, trials[1], {**TOLD, "torch": "3"}, strategy="tpe") == ""
    found = description_of(study)
    # a trial's own values are not the study's; the second trial changes nothing
    assert "hyp" not in found and "config" not in found
    assert (found["torch"], found["strategy"], found["workers"]) == ("2.14.1", "guided", 2)
    assert digests_of(found) == {"digests.train": "ab12", "digests.val": "cd34"}


def test_other_data_is_warned_of_once() -> None:
    study, trials = study_with_trials()
    other = {**TOLD, "latency_ms": 9.1, "digests": {"train": "ab12", "val": "ee55"}}
    keep_description(study, trials[0], TOLD)
    warning = keep_description(study, trials[1], other)
    assert warning.startswith("digests.val is ee55 from trial 1 on, was cd34")
    assert keep_description(study, trials[2], other) == ""
    change = {"trial": 1, "name": "digests.val", "was": "cd34", "now": "ee55"}
    assert changes_of(study) == [change]


def test_data_that_is_searched_may_change() -> None:
    study, trials = study_with_trials(data=0.5)
    keep_description(study, trials[0], TOLD)
    assert keep_description(study, trials[1], {**TOLD, "digests": {"val": "ee55"}}) == ""
    assert changes_of(study) == []


def test_comparing_studies_shows_other_data() -> None:
    tree = {"objective": "math:sqrt", "space": {"x": {"low": 0, "high": 1}}, "start": {"x": 0.5}}
    config = parse_config({**tree, "settings": {"data": "shapes.yaml"}}, Path("none.yaml"))
    sides = []
    for digest, strategy in (("cd34", "guided"), ("ee55", "tpe")):
        study, trials = study_with_trials(x=0.5)
        study.set_user_attr("identity", json.loads(json.dumps(config.identity())))
        study.set_user_attr("confirm", {"finalists": 1, "seeds": 2})
        told = {**TOLD, "digests": {"val": digest}}
        keep_description(study, trials[0], told, strategy=strategy)
        sides.append(side_of(config, study, digest))
    differences = compared(*sides).differences
    assert differences == {"strategy": ("guided", "tpe"), "digests.val": ("cd34", "ee55")}
    older, _ = study_with_trials(x=0.5)  # of a version that kept no description
    older.set_user_attr("identity", sides[0].study.user_attrs["identity"])
    older.set_user_attr("confirm", {"finalists": 1, "seeds": 2})
    assert compared(sides[0], side_of(config, older, "older")).differences == {}


def test_a_study_that_goes_on_with_other_data_says_so(
    write_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("write_convergence_plot", "write_parameter_plot"):
        monkeypatch.setattr(report, name, lambda *arguments: None)
    Path("told").mkdir()
    Path("told/objective.py").write_text(
        "from pathlib import Path\n"
        "def evaluate(params, context):\n"
        "    return {'fitness': params['x']}\n"
        "def describe(params):\n"
        "    return {'digests': {'val': Path('digest').read_text()}}\n"
    )
    monkeypatch.syspath_prepend(Path.cwd())
    monkeypatch.setenv("PYTHONPATH", f"{Path.cwd()}:{os.environ['PYTHONPATH']}")
    write_study("told.objective", generations=1)

    def run(generations: int) -> str:
        shown = io.StringIO()
        config = load_config("evolve.yaml", [f"study.generations={generations}"])
        run_study(config, Display(Console(file=shown, width=200)))
        return shown.getvalue()

    Path("digest").write_text("cd34")
    assert "changed under the study" not in run(1)
    Path("digest").write_text("ee55")
    assert "the data changed under the study: digests.val is ee55 from trial 1 on" in run(2)
