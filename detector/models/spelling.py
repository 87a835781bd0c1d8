"""The free spelling of networks: `family:key=value,key=value`."""

import math
from collections.abc import Iterable

from detector.errors import ConfigError, did_you_mean


def read_options(options: str, allowed: Iterable[str], what: str, name: str) -> dict[str, str]:
    """Return the values of `key=value,key=value` as text, by their keys.

    Raises:
        ConfigError: a key that is not allowed for `what`; `name`, the whole model, is quoted.
    """
    values = {}
    for option in filter(None, options.replace(" ", "").split(",")):
        key, _, text = option.partition("=")
        if key not in allowed:
            hint = did_you_mean(key, allowed)
            raise ConfigError(f"model={name}: {key} is not an option of {what}{hint}")
        values[key] = text
    return values


def read_number(key: str, text: str, name: str, limits: tuple[float, float]) -> float:
    """Return the number that `text` spells.

    Raises:
        ConfigError: it is none, or not within `limits`.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    low, high = limits
    if not low <= number <= high:
        raise ConfigError(f"model={name}: {key}={text} must be a number from {low:g} to {high:g}")
    return number
