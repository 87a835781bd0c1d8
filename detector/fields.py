"""Declaring the fields of the two dataclasses of config.py, and checking their values."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from detector.errors import ConfigError

if TYPE_CHECKING:
    from detector.config import Hyp, TrainConfig

AUTO = -1  # batch: the largest that fits


@dataclass(frozen=True)
class Rule:
    """When a hyperparameter has an effect; `reason` says why it has none otherwise."""

    reason: str
    holds: Callable[["TrainConfig", "Hyp"], bool]


def option(
    default: Any,
    text: str,
    low: float | None = None,
    choices: tuple[str, ...] = (),
    high: float | None = None,
) -> Any:
    """Declare a `TrainConfig` field: default, closed range or choices, one line of help."""
    metadata = {"low": low, "high": high, "choices": choices, "help": text}
    return field(default=default, metadata=metadata)


def gene(
    default: float,
    low: float,
    high: float,
    text: str,
    active_when: Rule | None = None,
    families: tuple[str, ...] = (),
) -> Any:
    """Declare a `Hyp` field: default, closed range, help with its unit, activity rule.

    `families` names the model families that have it; empty: all.
    """
    metadata = {"low": low, "high": high, "help": text}
    metadata |= {"active_when": active_when, "families": families}
    return field(default=default, metadata=metadata)


def converted(owner: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` with each one as the type of its field of the dataclass `owner`."""
    return {name: convert(owner, name, value) for name, value in values.items()}


def convert(owner: type, name: str, value: Any) -> Any:
    """Return `value` as the field's type: yaml reads `1e-3` as text and `2` as int."""
    kind = next(item.type for item in dataclasses.fields(owner) if item.name == name)
    if kind is bool:
        words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
        value = words.get(str(value).strip().lower(), value)
        if not isinstance(value, bool):
            raise ConfigError(f"{name}={value!r} must be true or false")
    elif kind in (int, float):
        value = AUTO if name == "batch" and value == "auto" else _number(name, value, kind)
    elif kind is str:
        value = "" if value is None else str(value)
    elif name == "fitness":
        if not isinstance(value, Mapping) or not value:
            raise ConfigError(
                f"fitness={value!r} must map metrics to weights, like {{mAP50-95: 0.5, F1: 0.5}}"
            )
        value = {str(key): _number(f"fitness.{key}", part, float) for key, part in value.items()}
    return value


def _number(name: str, value: Any, kind: type) -> float | int:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise ConfigError(f"{name}={value!r} must be a finite number")
    if kind is int and number != int(number):
        raise ConfigError(f"{name}={value!r} must be a whole number")
    return kind(number)


def check_fields(values: Any, what: str) -> None:
    """Raise `ConfigError` for a field of a dataclass that is not of its type or range."""
    for item in dataclasses.fields(values):
        value, limits = getattr(values, item.name), item.metadata
        if limits.get("choices") and value not in limits["choices"]:
            allowed = ", ".join(limits["choices"])
            raise ConfigError(f"{what} {item.name}={value!r} is unknown; allowed: {allowed}")
        low, high = limits.get("low"), limits.get("high")
        if item.type in (int, float):
            if isinstance(value, str):
                raise ConfigError(f"{what} {item.name}={value!r} must be a number, not text")
            _number(item.name, value, item.type)
        if item.type is bool and not isinstance(value, bool):
            raise ConfigError(f"{what} {item.name}={value!r} must be true or false")
        if low is not None and (value < low or (high is not None and value > high)):
            allowed = f"{low} to {high}" if high is not None else f"{low} or more"
            raise ConfigError(f"{what} {item.name}={value} is out of range; allowed: {allowed}")
