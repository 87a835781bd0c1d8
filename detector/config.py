"""What a training is told: `TrainConfig` (what, where, how long) and `Hyp` (the numbers to search).

A value travels: dataclass default < the family's file (`hyp/yolox.yaml`) < `--hyp` file <
command-line option or `--set` < a trial's parameters; it is checked once and then frozen.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from detector.duration import seconds_of
from detector.errors import ConfigError, did_you_mean
from detector.fields import AUTO, Rule, check_fields, convert, converted, gene, option
from detector.yamlfile import read_mapping

OPTIMIZERS = ("SGD", "Adam", "AdamW", "Muon")
WARMUPS = ("quadratic", "linear", "burn-in")
# Those without a final value come last.
SCHEDULES = ("cosine", "yolox", "linear", "exponential", "inverse", "multistep", "constant")
RAMPS = SCHEDULES[:5]
CACHES = ("auto", "ram", "disk", "none")
RENDERERS = ("auto", "cpu", "device")


def family_name(model: str) -> str:
    """Return the family of a model by its name: "yolox" of yolox-nano; a *.cfg is a "yolov3"."""
    name = model.strip().lower()
    if name.endswith(".cfg"):
        return "yolov3"
    return re.split("[-_:]", name)[0]


WITH_RAMP = Rule("the schedule has no final value", lambda config, hyp: config.schedule in RAMPS)
WITH_WARMUP = Rule("warmup_epochs is 0", lambda config, hyp: hyp.warmup_epochs > 0)
WITH_TAIL = Rule("no_aug_epochs is 0, and L1 acts only then", lambda c, hyp: hyp.no_aug_epochs > 0)
BEFORE_TAIL = Rule("no_aug_epochs fills the run", lambda c, hyp: hyp.no_aug_epochs < c.epochs)
WITH_MOSAIC = Rule(
    "mosaic is 0 or no_aug_epochs fills the run",
    lambda c, hyp: hyp.mosaic > 0 and BEFORE_TAIL.holds(c, hyp),
)
WITH_MIXUP = Rule(
    "mosaic or mixup is 0 or no_aug_epochs fills the run",
    lambda c, hyp: hyp.mixup > 0 and WITH_MOSAIC.holds(c, hyp),
)
WITHOUT_FULL_MOSAIC = Rule(
    "mosaic is 1, so mosaic_scale_* act, or no_aug_epochs fills the run",
    lambda c, hyp: hyp.mosaic < 1 and BEFORE_TAIL.holds(c, hyp),
)
WITH_OBJECTNESS = Rule(
    "this detector has no objectness loss",
    lambda c, hyp: not re.match(r"\s*torchvision:(retinanet|ssd)", c.model.lower()),
)
# The families that have a hyperparameter.
YOLOX = ("yolox",)
EVO = ("evo",)
YOLOX_EVO = ("yolox", "evo")
WITH_BOX = ("yolox", "evo", "torchvision")
WITH_OBJ = ("yolox", "yolov3", "torchvision")
YOLOV3 = ("yolov3",)
WITH_GIOU = Rule("xywh is 1: xy and wh act instead", lambda config, hyp: hyp.xywh == 0)
WITH_XYWH = Rule("xywh is 0: giou acts instead", lambda config, hyp: hyp.xywh == 1)
WITH_EMA = Rule("ema_decay is 0", lambda config, hyp: hyp.ema_decay > 0)


# By family: settings that cannot be on, and why.
REFUSED = {
    "torchvision": {
        "compile": "the shapes inside change from image to image",
        "sync_bn": "a process without images cannot take part in its norms",
    },
}
# The first of each pair must not exceed the second.
ORDERED_PAIRS = (
    ("mosaic_scale_min", "mosaic_scale_max"),
    ("mixup_scale_min", "mixup_scale_max"),
)


@dataclass(frozen=True)
class Hyp:
    """Hyperparameters of a training, by the names of the field; fractions if no unit is given."""

    # ---- optimizer
    lr0: float = gene(0.01, 1e-7, 1.0, "learning rate at nbs images per optimizer step")
    lrf: float = gene(0.05, 0.0, 1.0, "final learning rate as a fraction of lr0", WITH_RAMP)
    momentum: float = gene(0.9, 0.0, 0.999, "momentum of SGD and Muon, beta1 of Adam and AdamW")
    weight_decay: float = gene(0.0005, 0.0, 1.0, "decay of weights; norms and biases have none")
    warmup_epochs: float = gene(1.5, 0.0, 1000.0, "epochs until lr0 is reached")
    warmup_lr: float = gene(0.0, 0.0, 1.0, "learning rate at the first step", WITH_WARMUP)
    warmup_momentum: float = gene(0.9, 0.0, 0.999, "momentum at the first step", WITH_WARMUP)
    nbs: int = gene(4, 1, 4096, "nominal batch: images per optimizer step")
    ema_decay: float = gene(0.998, 0.0, 0.99999, "decay of the weight average; 0 turns it off")
    ema_tau: float = gene(200.0, 1.0, 100000.0, "steps over which the decay ramps up", WITH_EMA)
    bn_momentum: float = gene(0.03, 0.001, 1.0, "share of a batch in the norms' running statistics")
    # ---- losses
    box: float = gene(5.0, 0.0, 1000.0, "gain of the box loss", families=WITH_BOX)
    obj: float = gene(
        1.0, 0.0, 1000.0, "gain of the objectness loss", WITH_OBJECTNESS, families=WITH_OBJ
    )
    cls: float = gene(1.0, 0.0, 1000.0, "gain of the class loss")
    focus: float = gene(
        0.0, 0.0, 10.0, "power of |score - goal| that weights the class loss", families=EVO
    )
    l1: float = gene(
        1.0,
        0.0,
        1000.0,
        "gain of the L1 loss in the last no_aug_epochs",
        WITH_TAIL,
        families=YOLOX_EVO,
    )
    no_aug_epochs: int = gene(4, 0, 1000, "last epochs without mosaic, mixup and affine, with L1")
    xywh: int = gene(
        0, 0, 1, "box loss: 0 GIoU, 1 squared errors of centre and size", families=YOLOV3
    )
    giou: float = gene(1.0, 0.0, 1000.0, "gain of the GIoU loss", WITH_GIOU, families=YOLOV3)
    xy: float = gene(
        4.0, 0.0, 1000.0, "gain of the squared error of centres", WITH_XYWH, families=YOLOV3
    )
    wh: float = gene(
        0.2, 0.0, 1000.0, "gain of the squared error of log sizes", WITH_XYWH, families=YOLOV3
    )
    obj_pw: float = gene(
        1.0, 0.01, 100.0, "weight of positives in the objectness loss", families=YOLOV3
    )
    cls_pw: float = gene(
        1.0, 0.01, 100.0, "weight of the true class in the class loss", families=YOLOV3
    )
    # ---- assignment (SimOTA; evo: task-aligned; yolov3: anchors)
    center_radius: float = gene(
        1.5, 0.1, 10.0, "candidate points around an object's centre, cells", families=YOLOX
    )
    topk: int = gene(
        10,
        1,
        100,
        "most positives of an object (yolox: the largest IoUs whose sum is their number)",
        families=YOLOX_EVO,
    )
    iou_cost: float = gene(
        3.0, 0.0, 100.0, "weight of -ln(IoU) in the assignment cost", families=YOLOX
    )
    cls_cost: float = gene(
        1.0, 0.0, 100.0, "weight of the class error in the assignment cost", families=YOLOX
    )
    cls_power: float = gene(
        0.5, 0.0, 10.0, "power of the score in a point's alignment with an object", families=EVO
    )
    iou_power: float = gene(
        6.0, 0.0, 20.0, "power of the IoU in a point's alignment with an object", families=EVO
    )
    iou_t: float = gene(
        0.3, 0.0, 0.99, "shape IoU above which an anchor takes an object", families=YOLOV3
    )
    best_anchor: int = gene(
        0, 0, 1, "1: only an object's best anchor of a level takes it", families=YOLOV3
    )
    # ---- augmentation
    mosaic: float = gene(0.5, 0.0, 1.0, "probability of a mosaic of four images", BEFORE_TAIL)
    mosaic_scale_min: float = gene(0.5, 0.05, 10.0, "smallest scale of a mosaic", WITH_MOSAIC)
    mosaic_scale_max: float = gene(1.5, 0.05, 10.0, "largest scale of a mosaic", WITH_MOSAIC)
    mixup: float = gene(0.0, 0.0, 1.0, "probability of blending another image in", WITH_MOSAIC)
    mixup_scale_min: float = gene(0.5, 0.05, 10.0, "smallest scale of the other image", WITH_MIXUP)
    mixup_scale_max: float = gene(1.5, 0.05, 10.0, "largest scale of the other image", WITH_MIXUP)
    copy_paste: float = gene(0.0, 0.0, 1.0, "probability of pasting masked objects", BEFORE_TAIL)
    degrees: float = gene(0.0, 0.0, 180.0, "rotation, +- degrees", BEFORE_TAIL)
    translate: float = gene(0.1, 0.0, 1.0, "shift, +- fraction of the side", BEFORE_TAIL)
    scale: float = gene(0.5, 0.0, 0.95, "zoom of a single image, 1 +- this", WITHOUT_FULL_MOSAIC)
    shear: float = gene(0.0, 0.0, 60.0, "shear, +- degrees", BEFORE_TAIL)
    perspective: float = gene(0.0, 0.0, 0.001, "perspective, +- fraction per pixel", BEFORE_TAIL)
    hsv_h: float = gene(0.015, 0.0, 0.5, "hue shift, +- fraction of the circle")
    hsv_s: float = gene(0.5, 0.0, 1.0, "saturation gain, 1 +- this")
    hsv_v: float = gene(0.4, 0.0, 1.0, "value (brightness) gain, 1 +- this")
    fliplr: float = gene(0.5, 0.0, 1.0, "probability of a left-right flip")
    flipud: float = gene(0.5, 0.0, 1.0, "probability of an up-down flip; 0 if up matters")

    def __post_init__(self) -> None:
        check_fields(self, "hyperparameter")
        for low, high in ORDERED_PAIRS:
            if getattr(self, low) > getattr(self, high):
                raise ConfigError(
                    f"{low}={getattr(self, low)} is above {high}={getattr(self, high)}"
                )

    @classmethod
    def for_model(cls, name: str) -> "Hyp":
        """Return the shipped start values of the model's family (`hyp/<family>.yaml`)."""
        path = family_file(name)
        if not path.is_file():
            return cls()
        return cls(**_family_values(path, path.stat().st_mtime_ns))

    def dead(self, config: "TrainConfig") -> dict[str, str]:
        """Return the names that have no effect under this configuration, with the reason."""
        dead, family = {}, family_name(config.model)
        for item in dataclasses.fields(self):
            rule, families = item.metadata["active_when"], item.metadata["families"]
            if families and family not in families:
                dead[item.name] = f"{config.model} has none, only {', '.join(families)}"
            elif rule and not rule.holds(config, self):
                dead[item.name] = rule.reason
        return dead


@dataclass(frozen=True)
class TrainConfig:
    """What is trained, on what, where and for how long."""

    model: str = option(
        "yolox-nano", "network: `yolox-nano`, `evo-nano`, `yolov3-tiny`, a *.cfg, ..."
    )
    anchors: str = option(
        "", "anchors of a yolov3: auto (from the training boxes), or w,h,w,h,... in pixels"
    )
    data: str = option("data/shapes.yaml", "description (yaml), folder or *.data; a.yaml,b.yaml")
    fraction: float = option(1.0, "share of the training images, drawn by the seed", 1e-6, high=1.0)
    single_cls: bool = option(False, "train on all classes as one")
    class_balanced: float = option(
        0.0, "repeat images whose classes are in fewer than this share of images", 0.0, high=1.0
    )
    repeat: int = option(1, "how often an epoch shows each training image", 1)
    image_weights: bool = option(False, "draw images of rare and badly found classes more often")
    rect: bool = option(False, "rectangular batches: images of like shape with less padding")
    weights: str = option("", "start from these weights (.pt, .pth, .weights); empty: from scratch")
    imgsz: int = option(416, "side of the square network input, pixels, a multiple of 32", 64)
    epochs: int = option(30, "passes over the training images", 1)
    batch: int = option(
        16, "most images in one forward pass (memory), or auto; nbs is the step's size", AUTO
    )
    optimizer: str = option("Muon", "optimizer", choices=OPTIMIZERS)
    schedule: str = option("cosine", "learning-rate schedule", choices=SCHEDULES)
    warmup: str = option("quadratic", "how the rate rises in warmup_epochs", choices=WARMUPS)
    scale_lr: int = option(0, "scale lr0 from this batch to nbs; 0: lr0 is meant for nbs", 0)
    freeze: str = option("", "not trained: `backbone`, its first n blocks (`3`), module names")
    amp: bool = option(True, "mixed precision where the device has it")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps, ...")
    sync_bn: bool = option(False, "batch norm over the images of all processes, not of each")
    workers: int = option(-1, "processes that load images; -1: by device", -1)
    cache: str = option("auto", "where decoded images are kept", choices=CACHES)
    render: str = option("auto", "where training pictures are drawn", choices=RENDERERS)
    multi_scale: float = option(
        0.0, "vary the training size by this fraction; 0: off", 0.0, high=0.9
    )
    multi_scale_every: int = option(10, "steps between two training sizes", 1)
    val_every: int = option(1, "evaluate every n epochs and at the last one", 1)
    validate: bool = option(True, "false: never evaluate; the last weights are the best then")
    val_loss: bool = option(
        False, "also compute the loss of the validation images, with equal gains"
    )
    patience: int = option(0, "stop after n epochs without a better fitness; 0: never", 0)
    time: str = option("", "time budget such as 2h or 90m: epochs are planned to fit")
    compile: bool = option(False, "torch.compile the network, where that works")
    seed: int = option(0, "seed of initial weights, order and augmentation", 0)
    fitness: Mapping[str, float] = field(
        default_factory=lambda: {"mAP50-95": 0.5, "F1": 0.5},
        metadata={"help": "weights of the metrics in the fitness", "low": None, "choices": ()},
    )

    def __post_init__(self) -> None:
        check_fields(self, "setting")
        if self.batch == 0:
            raise ConfigError("setting batch=0 is out of range; allowed: 1 or more, or auto")
        for name, reason in REFUSED.get(family_name(self.model), {}).items():
            if getattr(self, name):
                raise ConfigError(f"{name}=true does not go with model={self.model}: {reason}")
        if self.patience and not self.validate:
            raise ConfigError(f"patience={self.patience} needs evaluations: validate is false")
        seconds_of(self.time)
        if self.imgsz % 32:
            nearest = max(32, round(self.imgsz / 32) * 32)
            raise ConfigError(
                f"imgsz={self.imgsz} must be a multiple of the largest stride (32): try {nearest}"
            )


HYP_NAMES = tuple(item.name for item in dataclasses.fields(Hyp))
TRAIN_NAMES = tuple(item.name for item in dataclasses.fields(TrainConfig))


def check_schedule(name: str, hyp: Hyp, epochs: int) -> None:
    """Raise `ConfigError` when `hyp` leaves no room for schedule `name` in `epochs` epochs."""
    if name in ("exponential", "inverse") and hyp.lrf <= 0:
        raise ConfigError(f"lrf={hyp.lrf} must be above 0 for schedule={name}, a power of lrf")
    if name == "yolox" and hyp.warmup_epochs + hyp.no_aug_epochs >= epochs:
        raise ConfigError(
            f"schedule=yolox: warmup_epochs={hyp.warmup_epochs:g} and no_aug_epochs="
            f"{hyp.no_aug_epochs} leave nothing of epochs={epochs} for the cosine between them"
        )


def family_file(model: str) -> Path:
    """Return the path of the shipped hyperparameters of a model's family."""
    return Path(__file__).resolve().parent.parent / "hyp" / f"{family_name(model)}.yaml"


@functools.cache  # a preflight resolves some hundred configurations
def _family_values(path: Path, changed: int) -> dict[str, Any]:
    return read_hyp_file(path)[0]


def read_hyp_file(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the hyperparameters of a yaml file and the settings under its `train:` key.

    Raises: `ConfigError` naming file and key for a missing file, wrong yaml, an unknown name, a
    value of the wrong type or out of range.
    """
    values = read_mapping(Path(path))
    train = values.pop("train", None) or {}
    if not isinstance(train, dict):
        raise ConfigError(f"{path}: train must be a mapping of settings, not {train!r}")
    for name in values:
        if name not in HYP_NAMES:
            hint = (
                f"; {name} is a setting: put it under train:"
                if name in TRAIN_NAMES
                else did_you_mean(str(name), HYP_NAMES)
            )
            raise ConfigError(f"{path}: {name} is not a hyperparameter{hint}")
    for name in train:
        if name not in TRAIN_NAMES:
            raise ConfigError(
                f"{path}: train.{name} is not a setting{did_you_mean(str(name), TRAIN_NAMES)}"
            )
    try:
        return (
            {name: convert(Hyp, name, value) for name, value in values.items()},
            {name: convert(TrainConfig, name, value) for name, value in train.items()},
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def resolve(
    values: Mapping[str, Any], hyp_file: str | Path | None = None
) -> tuple[TrainConfig, Hyp]:
    """Merge defaults, the family's file, `hyp_file` and `values` (settings and hyperparameters).

    Raises: `ConfigError` for an unknown name or a wrong value.
    """
    unknown = [name for name in values if name not in HYP_NAMES + TRAIN_NAMES]
    if unknown:
        hint = did_you_mean(unknown[0], HYP_NAMES + TRAIN_NAMES)
        raise ConfigError(f"{unknown[0]} is neither a hyperparameter nor a setting{hint}")
    file_hyp, file_train = read_hyp_file(hyp_file) if hyp_file else ({}, {})
    given_train = {name: values[name] for name in values if name in TRAIN_NAMES}
    given_hyp = {name: values[name] for name in values if name in HYP_NAMES}
    config = TrainConfig(**converted(TrainConfig, {**file_train, **given_train}))
    start = dataclasses.asdict(Hyp.for_model(config.model))
    try:
        hyp = Hyp(**converted(Hyp, {**start, **file_hyp, **given_hyp}))
    except ConfigError as error:
        wrong_in_file = hyp_file and not any(name in str(error) for name in given_hyp)
        raise ConfigError(f"{hyp_file}: {error}" if wrong_in_file else str(error)) from error
    check_schedule(config.schedule, hyp, config.epochs)
    return config, hyp


def parse_assignments(pairs: list[str]) -> dict[str, Any]:
    """Turn `["lr0=0.02", "optimizer=SGD"]` into a mapping; values are read as yaml."""
    values = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--set {pair}: expected name=value, for example lr0=0.02")
        try:
            values[name.strip()] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {pair}: {text!r} is not a yaml value") from error
    return values


def dump(config: TrainConfig, hyp: Hyp, header: str = "") -> str:
    """Return yaml text that `--hyp` reads back: hyperparameters, and settings under `train:`."""
    values = {**dataclasses.asdict(hyp), "train": dataclasses.asdict(config)}
    comment = "".join(f"# {line}\n" for line in header.splitlines())
    return comment + yaml.safe_dump(values, sort_keys=False)
