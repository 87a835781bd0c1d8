import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from detector import objective
from detector.errors import UserError

SMALL = {"model": "yolox-pico", "imgsz": 64, "epochs": 2, "batch": 4, "no_aug_epochs": 1}


@dataclass
class Trial:
    directory: Path
    seed: int = 3
    devices: list[str] = field(default_factory=lambda: ["cpu"])
    threads: int = 1
    attempt: int = 1
    reports: list[int] = field(default_factory=list)
    stop_at: int = 99
    wanted: tuple[str, ...] = ()

    def report(self, step: int, metrics: Mapping[str, float]) -> bool:
        assert "fitness" in metrics
        self.reports.append(step)
        return step >= self.stop_at


def test_a_trial_trains_and_reports_every_epoch(tiny_set: Path, tmp_path: Path) -> None:
    trial = Trial(tmp_path / "trial")
    metrics = objective.evaluate({**SMALL, "data": str(tiny_set), "lr0": 0.01}, trial)
    assert trial.reports == [1, 2]
    assert set(metrics) >= {"fitness", "mAP50-95", "mAP50", "precision", "recall", "F1"}
    assert metrics["parameters"] > 1e4
    assert "latency_ms" not in metrics
    assert (trial.directory / "weights" / "best.pt").is_file()
    assert "lr0: 0.01" in (trial.directory / "hyp.yaml").read_text()
    assert "seed: 3" in (trial.directory / "hyp.yaml").read_text()


def test_latency_is_measured_if_the_study_wants_it(tiny_set: Path, tmp_path: Path) -> None:
    trial = Trial(tmp_path / "trial", wanted=("fitness", "latency_ms"))
    metrics = objective.evaluate({**SMALL, "data": str(tiny_set), "epochs": 1}, trial)
    assert 0.01 < metrics["latency_ms"] < 5000.0
    assert 0.0 < metrics["gflops"] < 1.0


def test_the_test_split_is_measured_if_the_study_wants_it(tiny_set: Path, tmp_path: Path) -> None:
    text = tiny_set.read_text()
    val = next(line for line in text.splitlines() if line.startswith("val:"))
    held_out = tiny_set.with_name("held_out.yaml")  # whose test split is the validation split
    held_out.write_text(f"{text}\ntest:{val.removeprefix('val:')}\n")
    params = {**SMALL, "data": str(held_out)}
    metrics = objective.evaluate(params, Trial(tmp_path / "trial", wanted=("fitness", "test/")))
    for name in ("mAP50-95", "mAP50", "precision", "recall", "F1"):
        assert metrics[f"test/{name}"] == pytest.approx(metrics[name], abs=1e-6)
    search = objective.evaluate(params, Trial(tmp_path / "search", wanted=("fitness",)))
    assert not [name for name in search if name.startswith("test/")]
    without = {**SMALL, "data": str(tiny_set)}  # which has no such split
    metrics = objective.evaluate(without, Trial(tmp_path / "without", wanted=("test/",)))
    assert not [name for name in metrics if name.startswith("test/")]


def test_a_reopened_trial_goes_on_from_its_last_epoch(tiny_set: Path, tmp_path: Path) -> None:
    params = {**SMALL, "data": str(tiny_set), "epochs": 3}
    objective.evaluate(params, Trial(tmp_path / "trial", stop_at=1))
    second = Trial(tmp_path / "trial", attempt=2)
    resumed = objective.evaluate(params, second)
    whole = objective.evaluate(params, Trial(tmp_path / "whole"))
    assert second.reports == [2, 3]
    assert resumed == whole


def preflight(data: Path, space: dict[str, Any], **values: Any) -> dict[str, Any]:
    return objective.preflight({**SMALL, "data": str(data), **values}, space)


def test_dead_hyperparameters_are_named_with_their_reason(tiny_set: Path) -> None:
    ranges = {name: {"low": 0.0, "high": 1.0} for name in ("lrf", "mixup", "hsv_s")}
    dead = preflight(tiny_set, ranges, schedule="multistep", mosaic=0)
    assert set(dead) == {"lrf", "mixup"}
    assert dead["lrf"] == "the schedule has no final value"


def test_copy_paste_is_dead_for_data_without_masks(tiny_set: Path, tmp_path: Path) -> None:
    space: dict[str, Any] = {"copy_paste": {"low": 0.0, "high": 1.0}}
    assert preflight(tiny_set, space) == {"copy_paste": "the data has no masks"}
    shutil.copytree(tiny_set.parent, tmp_path / "masked")
    (tmp_path / "masked" / "labels" / "000.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.6\n")
    text = "train: images\nval: images\nnames: [square, disc]\n"
    (tmp_path / "masked" / "data.yaml").write_text(text)
    masked = tmp_path / "masked" / "data.yaml"
    assert preflight(masked, space) == {}
    space["data"] = {"choices": [str(tiny_set), str(masked)]}
    assert preflight(masked, space)["copy_paste"]["when"] == {"data": [str(masked)]}


def test_a_hyperparameter_that_acts_somewhere_in_the_space_is_not_dead(tiny_set: Path) -> None:
    space = {
        "mosaic": {"low": 0.0, "high": 1.0},
        "mixup": {"low": 0.0, "high": 1.0},
        "mixup_scale_min": {"low": 0.1, "high": 0.9},
    }
    assert preflight(tiny_set, space, mosaic=0, mixup=0) == {}


def test_a_hyperparameter_that_acts_for_some_choices_alone_is_conditional(tiny_set: Path) -> None:
    space = {
        "lrf": {"low": 0.0, "high": 1.0},
        "schedule": {"choices": ["multistep", "cosine", "constant"]},
        "optimizer": {"choices": ["SGD", "AdamW"]},
        "mosaic": {"choices": [0.0, 0.5]},
        "mosaic_scale_min": {"low": 0.3, "high": 0.9},
    }
    found = preflight(tiny_set, space)
    reason = "the schedule has no final value"
    assert found.pop("lrf") == {"when": {"schedule": ["cosine"]}, "reason": reason}
    assert found.pop("mosaic_scale_min")["when"] == {"mosaic": [0.5]}
    assert found == {}
    del space["mosaic"]  # two settings that are not searched: dead for good
    assert set(preflight(tiny_set, space, mosaic=0)) == {"lrf", "mosaic_scale_min"}


@pytest.mark.parametrize(
    ("values", "dead"),
    [
        ({"schedule": "multistep"}, {"lrf"}),
        ({"mosaic": 0}, {"mosaic_scale_min", "mosaic_scale_max", "mixup", "mixup_scale_max"}),
        ({"mixup": 0}, {"mixup_scale_max"}),
        ({"warmup_epochs": 0}, {"warmup_lr", "warmup_momentum"}),
        ({"no_aug_epochs": 0}, {"l1"}),
        ({"no_aug_epochs": 2}, {"mosaic_scale_min", "mosaic_scale_max", "mixup", "degrees",
                                "mixup_scale_max"}),
    ],
)  # fmt: skip
def test_each_dead_hyperparameter_is_named(
    tiny_set: Path, values: dict[str, Any], dead: set[str]
) -> None:
    low_high = {
        "lrf": (0.01, 1.0), "mosaic_scale_min": (0.3, 0.9), "mosaic_scale_max": (1.0, 2.0),
        "mixup": (0.0, 0.5), "mixup_scale_max": (1.0, 2.0), "warmup_lr": (0.0, 0.1),
        "warmup_momentum": (0.1, 0.9), "l1": (0.1, 2.0), "degrees": (0.0, 10.0), "lr0": (0.01, 0.1),
    }  # fmt: skip
    space = {name: {"low": low, "high": high} for name, (low, high) in low_high.items()}
    for name in values.keys() & space.keys():
        del space[name]
    assert set(preflight(tiny_set, space, **values)) == dead


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("topk", {"low": 5.0, "high": 15.0}, "topk=8.81966 must be a whole number"),
        ("imgsz", {"low": 64, "high": 128}, "imgsz=65 must be a multiple of"),
        ("imgsz", {"choices": [64, 100]}, "imgsz=100 must be a multiple of"),
        (
            "model",
            {"choices": ["yolox-pico", "yolox-pica"]},
            "yolox-pica is not a known network; did you mean",
        ),
        ("data", {"choices": ["absent.yaml", "too.yaml"]}, "absent.yaml"),
        ("optimizer", {"choices": ["SGD", "Adan"]}, "optimizer='Adan'"),
    ],
)
def test_a_value_that_no_training_would_take_is_found_before_the_first_trial(
    tiny_set: Path, name: str, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        preflight(tiny_set, {name: keys})


def test_everything_can_be_searched(tiny_set: Path, tmp_path: Path) -> None:
    space = {
        "model": {"choices": ["yolox-pico", "yolox:depth=0.33,width=0.125"]},
        "imgsz": {"low": 64, "high": 96, "step": 32, "int": True},
        "optimizer": {"choices": ["SGD", "Muon"]},
        "nbs": {"low": 2, "high": 8, "log": True, "int": True},
        "batch": {"choices": [2, 4]},
        "schedule": {"choices": ["cosine", "constant"]},
        "amp": {"choices": [True, False]},
        "epochs": {"low": 1, "high": 2, "int": True},
        "workers": {"choices": [-1, 0]},
        "val_every": {"choices": [1, 3]},
    }
    assert preflight(tiny_set, space) == {}
    for index in (0, -1):
        ends = [
            (keys.get("choices") or [keys["low"], keys["high"]])[index] for keys in space.values()
        ]
        params = {**SMALL, "data": str(tiny_set), **dict(zip(space, ends, strict=True))}
        trial = Trial(tmp_path / f"trial{index}")
        assert 0 <= objective.evaluate(params, trial)["fitness"] <= 1
        assert trial.reports[-1] == params["epochs"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": "absent.yaml"}, "absent.yaml"),
        ({"imgsz": 100}, "imgsz=100 must be a multiple"),
        ({"learning_rate": 1}, "did you mean lr0?"),
    ],
)
def test_wrong_settings_are_found_before_the_first_trial(
    tiny_set: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        objective.preflight({**SMALL, "data": str(tiny_set), **values}, {})
    assert message in str(caught.value)


def test_a_bound_outside_the_allowed_range_is_found_before_the_first_trial(tiny_set: Path) -> None:
    with pytest.raises(UserError, match="momentum"):
        preflight(tiny_set, {"momentum": {"low": 0.5, "high": 1.5}})


def test_the_description_identifies_the_data(tiny_set: Path) -> None:
    description = objective.describe({**SMALL, "data": str(tiny_set)})
    assert set(description["digests"]) == {"train", "val"}
    assert description["classes"] == ["square", "disc"]
    assert description["hyp"]["lr0"] > 0


def test_a_gene_that_acts_only_at_a_mixed_corner_is_not_dead(tiny_set: Path) -> None:
    # mosaic_scale_min acts where mosaic is high and the tail is short: neither all low nor all high
    space = {
        "no_aug_epochs": {"low": 0, "high": 2},
        "mosaic": {"low": 0.0, "high": 1.0},
        "mosaic_scale_min": {"low": 0.3, "high": 0.9},
    }
    assert preflight(tiny_set, space, no_aug_epochs=2) == {}


def test_ranges_that_may_cross_are_found_before_the_first_trial(tiny_set: Path) -> None:
    space = {
        "mosaic_scale_min": {"low": 0.3, "high": 1.4},
        "mosaic_scale_max": {"low": 1.0, "high": 2.0},
    }
    with pytest.raises(UserError, match=r"mosaic_scale_min=1\.4 is above mosaic_scale_max=1\.0"):
        preflight(tiny_set, space)


def test_fitness_weights_of_unknown_metrics_are_found_before_the_first_trial(
    tiny_set: Path,
) -> None:
    with pytest.raises(UserError, match="mAP"):
        preflight(tiny_set, {}, fitness={"mAP": 1.0})
