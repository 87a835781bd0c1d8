"""Yaml files of settings, which may take over the values of others by `base:`."""

from pathlib import Path
from typing import Any

import yaml

from detector.errors import ConfigError


def read_mapping(path: Path, within: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return a yaml mapping; `base:` names files, relative to it, whose values it takes over.

    Later bases win over earlier ones and the file itself over all; mappings are merged.

    Raises: `ConfigError` naming the file.
    """
    path = Path(path)
    if not path.is_file():
        named = f"{within[-1]}: base: " if within else ""
        raise ConfigError(f"{named}{path}: no such file")
    if path.resolve() in [one.resolve() for one in within]:
        raise ConfigError(f"{within[-1]}: base: {path} leads back to itself")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first_line = " ".join(str(error).split())
        raise ConfigError(f"{path}: not valid yaml: {first_line}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `name: value` lines, got {type(values).__name__}")
    bases = values.pop("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: base={bases!r} must be the path of a file, or a list of them")
    merged: dict[str, Any] = {}
    for base in bases:
        merged = _merged(merged, read_mapping(path.parent / base, (*within, path)))
    return _merged(merged, values)


def _merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Return both mappings as one; where both have a value the second wins."""
    both = {
        name: _merged(first[name], value)
        for name, value in second.items()
        if isinstance(value, dict) and isinstance(first.get(name), dict) and name != "fitness"
    }
    return {**first, **second, **both}
