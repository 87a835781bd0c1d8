"""Networks by name: `build_model(name, num_classes)`."""

from collections.abc import Callable

from torch import nn

from detector.errors import ConfigError, did_you_mean
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


MODELS: dict[str, Callable[[int], nn.Module]] = {
    **{name: _yolox(name, shape) for name, shape in _YOLOX_SHAPES.items()},
    **{name: _evo(name, shape) for name, shape in _EVO_SHAPES.items()},
}


def build_model(name: str, num_classes: int) -> nn.Module:
    """The network of that name with random weights; `_` and `-` are equal in names.

    Any size is spelled `yolox:depth=0.33,width=0.125,depthwise=true` or `evo:depth=0.33,width=0.3`.

    Raises:
        ConfigError: unknown name, wrong free form, or fewer than one class.
    """
    if num_classes < 1:
        raise ConfigError(f"num_classes={num_classes} must be at least 1")
    canonical = name.strip().lower().replace("_", "-")
    family, colon, options = canonical.partition(":")
    if colon and family == "yolox":
        shape = YoloxShape.from_options(options, name)
        return YOLOX(f"yolox:{shape.options()}", shape, num_classes)
    if colon and family == "evo":
        own = EvoShape.from_options(options, name)
        return Evo(f"evo:{own.options()}", own, num_classes)
    if canonical not in MODELS:
        hint = did_you_mean(canonical, MODELS)
        raise ConfigError(f"model={name} is not a known network{hint}")
    return MODELS[canonical](num_classes)
