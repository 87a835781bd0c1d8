"""Networks by name: `build_model(name, num_classes)`.

A network has the attributes `name` (which builds it again), `family`, `num_classes`,
`input_convention` (the order and scale of its pixels), `input_size` (pixels) and, if it
is dense, `strides`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import nn

from detector.errors import ConfigError, did_you_mean
from detector.models import torchvision, yolov3
from detector.models.darknet import Darknet
from detector.models.darknet_cfg import parse_cfg, read_cfg
from detector.models.evo import Evo, EvoShape
from detector.models.yolox import YOLOX, YoloxShape

_YOLOX_SHAPES = {
    "yolox-pico": YoloxShape(depth=0.33, width=0.125, depthwise=True, input_size=416),
    "yolox-nano": YoloxShape(depth=0.33, width=0.25, depthwise=True, input_size=416),
    "yolox-tiny": YoloxShape(depth=0.33, width=0.375, input_size=416),
    "yolox-s": YoloxShape(depth=0.33, width=0.50),
    "yolox-m": YoloxShape(depth=0.67, width=0.75),
    "yolox-l": YoloxShape(depth=1.0, width=1.0),
    "yolox-x": YoloxShape(depth=1.33, width=1.25),
    "yolox-darknet53": YoloxShape(darknet=True),
}

_EVO_SHAPES = {
    "evo-nano": EvoShape(depth=0.33, width=0.25, input_size=416),
    "evo-s": EvoShape(depth=0.67, width=0.6875),
}


def _yolox(name: str, shape: YoloxShape) -> Callable[[int], nn.Module]:
    """A constructor `num_classes -> network`."""
    return lambda num_classes: YOLOX(name, shape, num_classes)


def _evo(name: str, shape: EvoShape) -> Callable[[int], nn.Module]:
    """A constructor `num_classes -> network`."""
    return lambda num_classes: Evo(name, shape, num_classes)


def _yolov3(name: str, options: str = "") -> Callable[[int], nn.Module]:
    """A constructor `num_classes -> network` of a built-in YOLOv3."""

    def build(num_classes: int) -> nn.Module:
        layout = yolov3.built_in(name, options)
        return Darknet(layout.name, layout, num_classes)

    return build


def _torchvision(name: str) -> Callable[[int], nn.Module]:
    """A constructor `num_classes -> network`."""
    return lambda num_classes: torchvision.build(name, num_classes)


MODELS: dict[str, Callable[[int], nn.Module]] = {
    **{name: _yolox(name, shape) for name, shape in _YOLOX_SHAPES.items()},
    **{name: _evo(name, shape) for name, shape in _EVO_SHAPES.items()},
    **{name: _yolov3(name) for name in yolov3.NAMES},
    **{f"torchvision:{name}": _torchvision(f"torchvision:{name}") for name in torchvision.NAMES},
}


def build_model(name: str, num_classes: int, options: Mapping[str, str] | None = None) -> nn.Module:
    """The network of that name with random weights; `_` and `-` are equal in names.

    Any size is spelled `yolox:depth=0.33,width=0.125,depthwise=true` or `evo:depth=0.33,width=0.3`,
    a smaller YOLOv3 `yolov3-spp:width=0.25,depth=0.5`, a YOLOX with the pixels of version 0.1.0
    `yolox-s:input=rgb-imagenet`, a torchvision detector on a backbone of one's choice
    `torchvision:fcos:backbone=resnet18,channels=64`; `path/to/x.cfg` is a Darknet network, whose
    heads are made for `num_classes`. `options` are those of a checkpoint: `cfg` is the text of such
    a file, which is then not read.

    Raises:
        ConfigError: unknown name, wrong free form or file, or fewer than one class.
    """
    if num_classes < 1:
        raise ConfigError(f"num_classes={num_classes} must be at least 1")
    cfg = (options or {}).get("cfg")
    if cfg is not None:
        return Darknet(name, parse_cfg(cfg, name), num_classes)
    if name.strip().lower().endswith(".cfg"):
        return Darknet(Path(name.strip()).name, read_cfg(name.strip()), num_classes)
    canonical = name.strip().lower().replace("_", "-")
    family, colon, spelled = canonical.partition(":")
    if colon and family == "torchvision":
        return torchvision.build(name.strip(), num_classes)
    if colon and family == "yolox":
        shape = YoloxShape().with_options(spelled, ("depth", "width", "depthwise", "input"), name)
        return YOLOX(f"yolox:{shape.options()}", shape, num_classes)
    if colon and family in _YOLOX_SHAPES:
        shape = _YOLOX_SHAPES[family].with_options(spelled, ("input",), name)
        return YOLOX(family + shape.suffix(":"), shape, num_classes)
    if colon and family == "evo":
        own = EvoShape.from_options(spelled, name)
        return Evo(f"evo:{own.options()}", own, num_classes)
    if colon and family in yolov3.NAMES:
        return _yolov3(family, spelled)(num_classes)
    if canonical not in MODELS:
        hint = did_you_mean(canonical, MODELS)
        raise ConfigError(f"model={name} is not a known network{hint}")
    return MODELS[canonical](num_classes)
