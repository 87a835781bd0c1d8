"""Darknet `*.data` files: `key = value` lines that name image lists and a file of class names."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from detector.data.labels import read_lines
from detector.errors import DataError, did_you_mean

log = logging.getLogger(__name__)

SPLIT_KEYS = {"train": "train", "valid": "val", "val": "val", "test": "test"}
REQUIRED_KEYS = ("classes", "train", "valid", "names")
OTHER_KEYS = ("backup", "eval", "results", "labels", "map", "top")  # Darknet's own; not for us
KNOWN_KEYS = frozenset({*SPLIT_KEYS, *REQUIRED_KEYS, *OTHER_KEYS})


@dataclass(frozen=True)
class DarknetData:
    """A parsed `*.data` file; values are as written."""

    names: tuple[str, ...]
    splits: dict[str, tuple[str, str]]  # train, val, test -> list file as written, file:line


def parse_data_file(path: Path) -> dict[str, tuple[int, str]]:
    """Return key -> (line number, value) of a `*.data` file.

    Raises:
        DataError: a line without '=', a key that is unknown or given twice (file:line).
    """
    values: dict[str, tuple[int, str]] = {}
    for number, text in read_lines(path):
        line = text.split("#", 1)[0].strip()
        if not line:
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not value:
            raise DataError(f"{path}:{number}: {line!r} is not `key = value`")
        if key not in KNOWN_KEYS:
            raise DataError(
                f"{path}:{number}: {key} is not a known key{did_you_mean(key, KNOWN_KEYS)}"
            )
        if key in values:
            raise DataError(f"{path}:{number}: {key} is given twice (line {values[key][0]})")
        values[key] = (number, value)
    return values


def read_data_file(path: Path, find: Callable[[str, str], Path]) -> DarknetData:
    """Read a `*.data` file and its names; `find(written, place)` gives the existing path.

    Raises:
        DataError: a missing key or names file, or fewer names than classes.
    """
    values = parse_data_file(path)
    for key in REQUIRED_KEYS:
        if key not in values and not (key == "valid" and "val" in values):
            last = len(path.read_text(encoding="utf-8-sig").splitlines())
            raise DataError(f"{path}:{last}: the key {key} is missing (`{key} = ...`)")
    number, text = values["classes"]
    if not text.isdecimal() or int(text) < 1:
        raise DataError(f"{path}:{number}: classes = {text} must be a whole number, at least 1")
    splits = {
        SPLIT_KEYS[key]: (value, f"{path}:{line}")
        for key, (line, value) in values.items()
        if key in SPLIT_KEYS
    }
    line, names_file = values["names"]
    names = read_names(find(names_file, f"{path}:{line}"), int(text), f"{path}:{number}")
    return DarknetData(names, splits)


def read_names(path: Path, count: int, place: str) -> tuple[str, ...]:
    """Return the first `count` names, one a line, empty lines dropped.

    Raises:
        DataError: there are fewer; `place` is where the count was written.
    """
    names = tuple(name for _, name in read_lines(path))
    if len(names) < count:
        raise DataError(f"{path}: {len(names)} names, but {place} says classes = {count}")
    if len(names) > count:
        log.warning("%s: %d names, the first %d are used (%s)", path, len(names), count, place)
    return names[:count]
