import dataclasses
from pathlib import Path

import pytest
import yaml

from detector.config import (
    HYP_NAMES,
    TRAIN_NAMES,
    Hyp,
    TrainConfig,
    dump,
    family_name,
    parse_assignments,
    read_hyp_file,
    resolve,
)
from detector.errors import ConfigError


@pytest.mark.parametrize("family", ["yolox", "evo", "yolov3", "torchvision"])
def test_a_shipped_file_holds_every_hyperparameter_of_its_family(family: str) -> None:
    path = Path(__file__).parents[2] / "hyp" / f"{family}.yaml"
    own = {
        item.name
        for item in dataclasses.fields(Hyp)
        if not item.metadata["families"] or family in item.metadata["families"]
    }
    assert set(yaml.safe_load(path.read_text())) == own


def test_a_hyperparameter_and_a_setting_never_share_a_name() -> None:
    assert not set(HYP_NAMES) & set(TRAIN_NAMES)


def test_later_sources_win_over_earlier_ones(tmp_path: Path) -> None:
    file = tmp_path / "hyp.yaml"
    file.write_text("lr0: 0.02\nbox: 7\ntrain: {epochs: 12, imgsz: 64}\n")
    config, hyp = resolve({"lr0": 0.03, "epochs": 2}, file)
    assert (hyp.lr0, hyp.box, config.epochs, config.imgsz) == (0.03, 7.0, 2, 64)
    assert hyp.cls == Hyp.for_model("yolox-nano").cls


def test_a_dumped_configuration_reads_back_as_itself(tmp_path: Path) -> None:
    config, hyp = TrainConfig(imgsz=96, optimizer="SGD"), Hyp(lr0=1e-5, no_aug_epochs=3)
    file = tmp_path / "hyp.yaml"
    file.write_text(dump(config, hyp, "a header\nof two lines"))
    assert resolve({}, file) == (config, hyp)


def test_numbers_in_every_yaml_spelling_become_the_type_of_the_field() -> None:
    values = parse_assignments(["lr0=1e-3", "nbs=8", "momentum=0", "amp=False", "epochs=3.0"])
    config, hyp = resolve(values)
    assert (hyp.lr0, hyp.nbs, hyp.momentum, config.amp, config.epochs) == (0.001, 8, 0.0, False, 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rate": 1}, "neither a hyperparameter nor a setting; did you mean lr0?"),
        ({"warmup_epoch": 1}, "did you mean warmup_epochs?"),
        ({"lr": 0.1}, "did you mean lr0"),
        ({"lr0": "fast"}, "lr0='fast' must be a finite number"),
        ({"lr0": float("nan")}, "lr0=nan must be a finite number"),
        ({"lr0": -0.1}, "lr0=-0.1 is out of range; allowed: 1e-07 to 1.0"),
        ({"momentum": 1.0}, "momentum=1.0 is out of range"),
        ({"nbs": 2.5}, "nbs=2.5 must be a whole number"),
        ({"imgsz": 600}, "imgsz=600 must be a multiple of the largest stride (32): try 608"),
        ({"epochs": 0}, "epochs=0 is out of range; allowed: 1 or more"),
        ({"optimizer": "sgd"}, "optimizer='sgd' is unknown; allowed: SGD, Adam, AdamW, Muon"),
        ({"schedule": "cos"}, "schedule='cos' is unknown; allowed: cosine, yolox, linear,"),
        ({"warmup": "slow"}, "warmup='slow' is unknown; allowed: quadratic, linear, burn-in"),
        ({"scale_lr": -1}, "scale_lr=-1 is out of range; allowed: 0 or more"),
        ({"amp": "perhaps"}, "amp='perhaps' must be true or false"),
        ({"mosaic_scale_min": 2.0}, "mosaic_scale_min=2.0 is above mosaic_scale_max=1.5"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(
    values: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(values)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: 1", "learning_rate is not a hyperparameter"),
        ("epochs: 3", "epochs is a setting: put it under train:"),
        ("train: {epoch: 3}", "train.epoch is not a setting; did you mean epochs?"),
        ("train: 3", "train must be a mapping"),
        ("- lr0", "expected `name: value` lines"),
        ("lr0: [", "not valid yaml"),
        ("lr0: much", "lr0='much' must be a finite number"),
        ("lr0: 7", "lr0=7.0 is out of range"),
    ],
)
def test_a_fault_in_a_file_names_the_file(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        resolve({}, file)
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_hyp_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: no such file"):
        read_hyp_file("absent.yaml")


def test_an_assignment_without_equals_sign_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected name=value"):
        parse_assignments(["lr0"])


@pytest.mark.parametrize(
    ("config", "hyp", "dead"),
    [
        ({"schedule": "multistep"}, {}, {"lrf"}),
        ({}, {"mosaic": 0.0, "mixup": 0.5}, {"mosaic_scale_min", "mosaic_scale_max", "mixup"}),
        ({}, {"no_aug_epochs": 0}, {"l1"}),
        ({}, {"warmup_epochs": 0}, {"warmup_lr", "warmup_momentum"}),
        ({}, {"ema_decay": 0}, {"ema_tau"}),
        ({}, {"mosaic": 1.0}, {"scale"}),
    ],
)
def test_hyperparameters_without_effect_are_known(
    config: dict[str, object], hyp: dict[str, float], dead: set[str]
) -> None:
    resolved = resolve({**config, **hyp})
    assert dead <= set(resolved[1].dead(resolved[0]))


def test_every_hyperparameter_documents_itself_and_its_default_is_in_range() -> None:
    for item in dataclasses.fields(Hyp):
        assert len(item.metadata["help"]) > 10
        assert item.metadata["low"] <= item.default <= item.metadata["high"]


def test_the_reference_names_every_hyperparameter_with_its_default_and_range() -> None:
    reference = (Path(__file__).parents[2] / "docs" / "hyperparameters.md").read_text()
    for item in dataclasses.fields(Hyp):
        limits = f"{item.metadata['low']} to {item.metadata['high']}"
        assert f"| `{item.name}` | {item.default} | {limits} |" in reference


def test_shipped_start_values_are_the_defaults() -> None:
    assert Hyp.for_model("yolox-nano") == Hyp()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fitness": 5}, "fitness=5 must map metrics to weights"),
        ({"fitness": {"F1": "much"}}, "fitness.F1='much' must be a finite number"),
    ],
)
def test_wrong_fitness_weights_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(values)
    assert message in str(caught.value)


def test_text_is_no_number_and_no_switch_in_the_python_api() -> None:  # B-36
    with pytest.raises(ConfigError, match=r"lr0='0\.1' must be a number"):
        Hyp(lr0="0.1")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="amp='False' must be true or false"):
        TrainConfig(amp="False")  # type: ignore[arg-type]


@pytest.mark.parametrize("pair", ["lr0=[1", "weights=@x"])
def test_an_assignment_that_is_no_yaml_is_named(pair: str) -> None:
    with pytest.raises(ConfigError, match="is not a yaml value"):
        parse_assignments([pair])


def test_the_family_comes_from_the_name() -> None:
    names = {"yolox-nano": "yolox", "YOLOX_S": "yolox", "yolox:width=0.5": "yolox"}
    names |= {"yolov3-spp": "yolov3", "my/net-2.cfg": "yolov3", "torchvision:fcos": "torchvision"}
    names |= {"evo-nano": "evo", "evo:width=0.5": "evo"}
    assert {name: family_name(name) for name in names} == names


def test_a_hyperparameter_of_another_family_is_dead() -> None:
    dead = Hyp().dead(TrainConfig(model="torchvision:fcos_resnet50_fpn"))
    assert dead["topk"] == "torchvision:fcos_resnet50_fpn has none, only yolox, evo"
    assert "topk" not in Hyp().dead(TrainConfig(model="yolox-nano"))
