"""YAML as people mean it: 1e-5 is a number, a key given twice is an error."""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from evolve.errors import ConfigError

# PyYAML follows YAML 1.1, where 1e-5 without a dot is text
FLOAT = ("tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"))


class _Loader(yaml.SafeLoader):
    """The safe loader with YAML 1.2 floats and without silent duplicates."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - an attribute of the parent class
        letter: [*([FLOAT] if letter in "-+0123456789" else []), *resolvers]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping. Raises: ConstructorError for a key that stands twice."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a file that holds a mapping; an empty file is an empty one. Raises: ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    tree = _parse(text, str(path))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must hold a mapping, got {type(tree).__name__}")
    return {str(key): value for key, value in tree.items()}


def parse_value(text: str, source: str) -> Any:
    """Read one value as YAML would; `source` is named in messages. Raises: ConfigError."""
    return _parse(text, source)


def write_yaml(tree: dict[str, Any]) -> str:
    """Return the tree as YAML in its own order."""
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, default_flow_style=False)


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{source}:{line} not valid YAML: {problem}") from error
