"""The keys of a data set description, each checked by itself."""

from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

from detector.data.layout import SPLITS
from detector.data.shapes import ShapesConfig
from detector.errors import DataError, did_you_mean

FORMATS = ("yolo", "voc", "coco", "darknet", "shapes")
KEYS = frozenset(
    {"format", "path", *SPLITS, "names", "nc", "ignore", "on_error", "download", "size", "seed"}
)
FOREIGN_KEYS = frozenset({"roboflow", "valid"})  # Roboflow's; `valid` is another word for val
SHAPES_KEYS = frozenset(field.name for field in fields(ShapesConfig))


class WrongKey(DataError):
    """A key of a description that is wrong; without it the rest can still be looked at."""

    def __init__(self, path: Path, key: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.key = key


def check_keys(path: Path, content: dict[str, Any]) -> None:
    """Raises: WrongKey: a key that is unknown or belongs to another format."""
    for key in content:
        if key not in KEYS | FOREIGN_KEYS:
            raise WrongKey(path, key, f"{key} is not a known key{did_you_mean(str(key), KEYS)}")
        if key in ("size", "seed") and content.get("format") != "shapes":
            raise WrongKey(path, key, f"{key} belongs to format: shapes only")


def read_entries(path: Path, content: dict[str, Any], key: str) -> tuple[str, ...]:
    """Return what a split is read from. Raises: WrongKey."""
    value = content[key]
    values = value if isinstance(value, list) else [value]
    for item in values:
        if not isinstance(item, str) or not item:
            raise WrongKey(path, key, f"{key}: {item!r} must be a folder, list file, name or json")
    return tuple(values)


def read_names(path: Path, content: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of a description; empty when it has none. Raises: WrongKey."""
    names = content.get("names", [])
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise WrongKey(
                path, "names", f"names must be numbered 0 to {len(names) - 1} without gaps"
            )
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list):
        raise WrongKey(path, "names", "names must be a list, or numbers with names (0: person)")
    for name in names:
        if not isinstance(name, str | int) or isinstance(name, bool) or not str(name).strip():
            raise WrongKey(
                path, "names", f"the class name {name!r} must be text; write it in quotes"
            )
    checked = tuple(str(name).strip() for name in names)
    repeated = [name for name, count in Counter(checked).items() if count > 1]
    if repeated:
        raise WrongKey(path, "names", f"the class name {repeated[0]} occurs twice")
    if "names" in content and not checked:
        raise WrongKey(path, "names", "names is empty")
    if "nc" in content and checked and content["nc"] != len(checked):
        raise WrongKey(path, "nc", f"nc is {content['nc']}, but there are {len(checked)} names")
    return checked


def read_ignore(path: Path, content: dict[str, Any], kind: str) -> tuple[str, ...]:
    """Return the class names whose objects are left out. Raises: WrongKey."""
    ignore = content.get("ignore") or []
    ignore = [ignore] if isinstance(ignore, str) else ignore
    if not isinstance(ignore, list) or not all(isinstance(name, str) for name in ignore):
        raise WrongKey(path, "ignore", f"ignore: {ignore!r} must be a list of class names")
    if ignore and kind == "yolo":
        raise WrongKey(path, "ignore", "ignore: is for voc and coco; YOLO labels have no names")
    both = sorted(set(ignore) & set(read_names(path, content)))
    if both:
        raise WrongKey(path, "ignore", f"{both[0]} is in names and in ignore")
    return tuple(ignore)


def read_skips(path: Path, content: dict[str, Any]) -> bool:
    """Return whether bad labels are skipped. Raises: WrongKey."""
    value = content.get("on_error", "raise")
    if value not in ("raise", "skip"):
        raise WrongKey(path, "on_error", f"on_error: {value!r} must be raise or skip")
    return bool(value == "skip")
