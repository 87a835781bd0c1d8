"""Typed look-ups in a mapping read from YAML; whatever is wrong is named by file and dotted key."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evolve.errors import ConfigError, did_you_mean
from evolve.space import finite_number


@dataclass(frozen=True)
class Reader:
    """Typed look-ups in one mapping; `prefix` is the dotted name of that mapping."""

    path: Path
    tree: Mapping[str, Any]
    prefix: str = ""

    def where(self, key: str) -> str:
        return f"{self.path}: {self.prefix}{key}"

    def anything(self, key: str) -> dict[str, Any]:
        """Return a mapping with any keys; nothing there is an empty one."""
        value = self.tree.get(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise ConfigError(f"{self.where(key)} must be a mapping, got {value!r}")
        return {str(name): entry for name, entry in value.items()}

    def mapping(self, key: str, allowed: Iterable[str]) -> "Reader":
        """Return a reader of a mapping that may hold only the allowed keys."""
        allowed = tuple(allowed)
        tree = self.anything(key)
        for name in tree:
            if name not in allowed:
                raise ConfigError(
                    f"{self.where(key)}.{name} is not a key{did_you_mean(name, allowed)}"
                )
        return Reader(self.path, tree, f"{self.prefix}{key}.")

    def text(self, key: str, default: str = "") -> str:
        value = self.tree.get(key, default)
        if not isinstance(value, str) or not value:
            raise ConfigError(f"{self.where(key)} must be text, got {value!r}")
        return value

    def integer(self, key: str, default: int, low: int) -> int:
        value = self.tree.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ConfigError(
                f"{self.where(key)} must be a whole number of {low} or more, got {value!r}"
            )
        return value

    def positive(self, key: str) -> float | None:
        """Return a number above 0, or None if there is none."""
        if self.tree.get(key) is None:
            return None
        value = finite_number(self.tree[key], self.where(key))
        if value <= 0:
            raise ConfigError(f"{self.where(key)}={value:g} must be above 0")
        return value

    def boolean(self, key: str, default: bool) -> bool:
        value = self.tree.get(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.where(key)} must be true or false, got {value!r}")
        return value
