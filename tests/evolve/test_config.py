"""evolve.yaml: what stands in it, what may not, and what overrides it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evolve.config import ConfirmOptions, Plugin, StudyConfig, TrackingOptions, load_config
from evolve.errors import ConfigError
from evolve.limits import Limit
from evolve.problem import start_values

MINIMAL = "objective: toy\nspace: {x: {low: 0.0, high: 1.0}}\n"


def load(text: str, *overrides: str) -> StudyConfig:
    path = Path("evolve.yaml")
    path.write_text(text)
    return load_config(path, overrides)


def test_a_whole_file_is_read() -> None:
    Path("hyp").mkdir()
    Path("hyp/start.yaml").write_text("lr0: 1e-2\nbox: 5\ntrain: {model: yolox-tiny, epochs: 9}\n")
    config = load(
        """
study: {name: shapes, generations: 30, hours: 8, gpu_hours: 2.5, early_stop: false, seed: 4,
  storage: "sqlite:///x.db", pick: 7}
objective: detector.objective
settings: {model: yolox-nano, epochs: 4}
fitness: {mAP50-95: 0.5, F1: 0.5}
strategy: {name: tpe, n_startup_trials: 5}
start: hyp/start.yaml
space:
  lr0: {low: 1e-5, high: 0.1, log: true, sigma: 0.2}
  optimizer: {choices: [SGD, AdamW]}
pruning: {name: hyperband, reduction_factor: 4}
confirm: {finalists: 2, seeds: 5}
workers: {count: 3, per_device: 2}
limits: {latency_ms: 5, mAP50: {min: 0.5}, parameters: {min: 10, max: 3e6}}
preflight: true
warm_start: hyp/earlier.yaml
tracking: {uri: "sqlite:///m.db", experiment: e}
"""
    )
    assert (config.study.name, config.study.generations, config.study.seed) == ("shapes", 30, 4)
    assert config.strategy == Plugin("tpe", {"n_startup_trials": 5})
    assert config.pruning == Plugin("hyperband", {"reduction_factor": 4})
    assert config.fitness == {"mAP50-95": 0.5, "F1": 0.5}
    assert config.start.values == {"lr0": 0.01, "box": 5}  # 1e-2 is a number, not a text
    assert config.start.train == {"model": "yolox-tiny", "epochs": 9}
    assert config.confirm == ConfirmOptions(2, 5)
    assert (config.workers.count, config.workers.per_device) == (3, 2)
    assert config.tracking == TrackingOptions("sqlite:///m.db", "e")
    assert config.space.names == ("lr0", "optimizer")
    assert (config.study.hours, config.study.gpu_hours, config.study.early_stop) == (8, 2.5, False)
    assert config.limits == {
        "latency_ms": Limit(max=5.0),
        "mAP50": Limit(min=0.5),
        "parameters": Limit(10.0, 3e6),
    }
    assert (config.preflight, config.warm_start) == (True, "hyp/earlier.yaml")
    assert config.study.pick == 7
    assert config.wanted == ("mAP50-95", "F1", "latency_ms", "mAP50", "parameters")


def test_defaults_are_those_of_the_design() -> None:
    config = load(MINIMAL)
    assert config.study.storage == "sqlite:///runs/evolve.db"
    assert config.fitness == {"fitness": 1.0}
    assert (config.study.generations, config.confirm) == (300, ConfirmOptions(3, 3))
    assert config.workers.count == "auto"
    assert config.tracking.uri == "sqlite:///runs/mlflow.db"
    assert (config.study.hours, config.study.gpu_hours, config.study.early_stop) == (
        None,
        None,
        True,
    )


def test_the_identity_of_a_study_without_later_keys_is_what_it_was() -> None:
    plain = load(MINIMAL).identity()
    assert set(plain) == {"objective", "settings", "fitness", "start", "space", "seed"}
    assert plain["space"] == {"x": {"low": 0.0, "high": 1.0, "log": False}}
    assert load(MINIMAL + "study: {hours: 3, early_stop: false}\n").identity() == plain
    assert load(MINIMAL + "limits: {a: 5}\n").identity()["limits"] == {"a": {"min": None, "max": 5}}


def test_objectives_stand_in_one_order_with_fitness_first() -> None:
    config = load(MINIMAL + "objectives: [latency_ms, {mAP50: maximize}, fitness]\n")
    assert list(config.objectives.items()) == [
        ("fitness", "maximize"),
        ("latency_ms", "minimize"),
        ("mAP50", "maximize"),
    ]
    assert config.strategy == Plugin("tpe")  # ours have one objective
    assert config.wanted == ("fitness", "latency_ms", "mAP50")
    assert load(MINIMAL + "objectives: [fitness]\n").objectives == {}
    foreign = load(MINIMAL + "objectives: [fitness, b]\nstrategy: a:B\n")
    assert foreign.strategy == Plugin("a:B")


def test_a_gene_may_depend_on_a_setting() -> None:
    text = "objective: t\nspace: {x: {low: 0, high: 1, when: {optimizer: SGD}}}\n"
    config = load(text + "settings: {optimizer: AdamW}\n")
    assert config.space.genes[0].when == (("optimizer", ("SGD",)),)
    with pytest.raises(ConfigError, match=r"x\.when\.optimizer is neither a gene nor a setting"):
        load(text)


def test_one_metric_may_be_named() -> None:
    assert load(MINIMAL + "metric: accuracy\n").fitness == {"accuracy": 1.0}


def test_set_overrides_dotted_names() -> None:
    config = load(
        MINIMAL + "strategy: tpe\n",
        "settings.epochs=10",
        "space.x.high=2e-1",
        "space.y={low: 1, high: 3, int: true}",
        "strategy.n_startup_trials=4",
        "study.name=other",
        "confirm=0",
        "tracking=none",
        "workers.count=2",
    )
    assert config.settings == {"epochs": 10}
    assert config.space.genes[0].high == 0.2
    assert config.space.names == ("x", "y")
    assert config.strategy == Plugin("tpe", {"n_startup_trials": 4})
    assert (config.study.name, config.workers.count) == ("other", 2)
    assert config.confirm == ConfirmOptions(0, 0)
    assert config.tracking.uri is None


def test_set_can_take_a_gene_out() -> None:
    config = load(
        "objective: t\nspace: {x: {low: 0, high: 1}, y: {low: 0, high: 1}}", "space.y=null"
    )
    assert config.space.names == ("x",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("spase: {}\n", "evolve.yaml: spase is not a section; did you mean space?"),
        ("study: {generation: 3}\n", "study.generation is not a key; did you mean generations?"),
        ("study: {generations: -1}\n", "study.generations must be a whole number of 0 or more"),
        ("study: {generations: 2.5}\n", "whole number"),
        ("study: {generations: true}\n", "whole number"),
        ("study: {name: ../up}\n", "names a folder"),
        ("study: 3\n", "study must be a mapping, got 3"),
        ("workers: {count: 0}\n", "workers.count must be a whole number of 1 or more, got 0"),
        ("workers: {count: many}\n", "workers.count must be a whole number"),
        ("fitness: {mAP50: high}\n", "fitness.mAP50 must be a number, got 'high'"),
        ("fitness: {mAP50: 0}\n", "all weights are 0"),
        ("fitness: {a: 1}\nmetric: b\n", "not both"),
        ("start: hyp/none.yaml\n", "there is no file hyp/none.yaml"),
        ("study: {hours: 0}\n", "study.hours=0 must be above 0"),
        ("study: {gpu_hours: long}\n", "study.gpu_hours must be a number, got 'long'"),
        ("study: {early_stop: 3}\n", "study.early_stop must be true or false, got 3"),
        ("study: {pick: -1}\n", "study.pick must be a whole number of 0 or more"),
        ("limits: {latency_ms: fast}\n", "limits.latency_ms must be a number, got 'fast'"),
        ("limits: {F1: {mim: 0.5}}\n", "limits.F1.mim is not a key; did you mean min?"),
        ("limits: {F1: {}}\n", "limits.F1 needs min or max"),
        ("objectives: fitness\n", "objectives must be a list such as"),
        ("objectives: [latency_ms]\n", "objectives must hold fitness"),
        ("objectives: [{fitness: minimize}, b]\n", "objectives must hold fitness"),
        ("objectives: [fitness, b, b]\n", "'b' must be a name, and stand there once"),
        ("objectives: [fitness, {b: up}]\n", "objectives.b must be maximize or minimize"),
        ("objectives: [fitness, b]\nstrategy: genetic\n", "genetic has one objective; .* tpe, ns"),
        ("objectives: [fitness, b]\npruning: median\n", "median cannot stop trials of several"),
        ("preflight: 1\n", "preflight must be true or false"),
        ("warm_start: [a]\n", "warm_start must be text"),
        ("confirm: {seed: 3}\n", "confirm.seed is not a key; did you mean seeds?"),
        ("settings: {a: 1, a: 2}\n", "line 3: not valid YAML: a is given twice"),
        ("settings: {a: [}\n", "line 3: not valid YAML"),
    ],
)
def test_bad_files_are_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(MINIMAL + text)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("settings.epochs", "write it as section.key=value"),
        ("setings.epochs=3", "setings is not a section; did you mean settings?"),
        ("=3", "write it as"),
        ("study.generations=few", "whole number"),
    ],
)
def test_bad_overrides_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(MINIMAL, override)


def test_a_missing_file_and_missing_sections_are_named() -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        load_config("none.yaml")
    with pytest.raises(ConfigError, match="objective is missing"):
        load("space: {x: {low: 0, high: 1}}")
    with pytest.raises(ConfigError, match="space is missing"):
        load("objective: toy")


def notices_and_start(text: str) -> tuple[dict[str, Any], list[str]]:
    notices: list[str] = []
    return start_values(load(text), notices.append), notices


def test_start_values_outside_the_space_are_clipped_with_a_notice() -> None:
    start, notices = notices_and_start(MINIMAL + "start: {x: 3}\n")
    assert start == {"x": 1.0}
    assert notices == ["evolve.yaml: start: x=3 is outside its space: it starts at 1.0"]


def test_a_gene_without_a_start_value_starts_in_the_middle_with_a_notice() -> None:
    start, notices = notices_and_start(MINIMAL + "start: {other: 3}\n")
    assert start == {"x": 0.5}
    assert "has no x: it starts at 0.5" in notices[0]


def test_settings_win_over_the_start_file() -> None:
    start, notices = notices_and_start(MINIMAL + "start: {x: 0.2}\nsettings: {x: 0.3}\n")
    assert (start, notices) == ({"x": 0.3}, [])


def test_the_shipped_study_starts_inside_its_space() -> None:
    config = load_config(Path(__file__).parents[2] / "evolve.yaml")
    notices: list[str] = []
    start = start_values(config, notices.append)
    assert notices == []
    assert len(start) >= 14
    assert config.strategy.name == "guided"


@pytest.mark.parametrize("override", ["tracking=none", "tracking.uri=none", "tracking.uri=null"])
def test_tracking_can_be_turned_off(write_study: Callable[..., Path], override: str) -> None:
    path = write_study(tracking={"experiment": "mine"})
    assert load_config(path, [override]).tracking.uri is None


def test_an_option_of_the_default_strategy_needs_no_name(tmp_path: Path) -> None:
    path = tmp_path / "evolve.yaml"
    path.write_text("objective: x:y\nspace: {a: {low: 0, high: 1}}\n")
    config = load_config(path, ["strategy.cost=0.5", "pruning.check_after=10"])
    assert (config.strategy.name, config.strategy.options) == ("guided", {"cost": 0.5})
    assert (config.pruning.name, config.pruning.options) == ("none", {"check_after": 10})


def test_numbers_with_a_fraction_and_an_exponent_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "evolve.yaml"
    path.write_text("objective: x:y\nspace: {a: {low: 1.5e-3, high: 3.0e6, log: true}}\n")
    (gene,) = load_config(path).space.genes
    assert (gene.low, gene.high) == (0.0015, 3e6)
