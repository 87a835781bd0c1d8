"""Search over any function from a configuration to a result, built on Optuna.

from evolve import GeneticSampler, Space
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evolve.samplers.genetic import GeneticSampler
    from evolve.space import Space

__all__ = ["GeneticSampler", "Space"]

_HOMES = {"GeneticSampler": "evolve.samplers.genetic", "Space": "evolve.space"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that a worker starts without Optuna."""
    if name not in _HOMES:
        raise AttributeError(f"module 'evolve' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
