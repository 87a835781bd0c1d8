"""Search over any function from a configuration to a result, built on Optuna.

from evolve import ClassicSampler, GeneticSampler, GuidedSampler, Space
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evolve.samplers.classic import ClassicSampler
    from evolve.samplers.genetic import GeneticSampler
    from evolve.samplers.guided import GuidedSampler
    from evolve.space import Space

__all__ = ["ClassicSampler", "GeneticSampler", "GuidedSampler", "Space"]

_HOMES = {
    "ClassicSampler": "evolve.samplers.classic",
    "GeneticSampler": "evolve.samplers.genetic",
    "GuidedSampler": "evolve.samplers.guided",
    "Space": "evolve.space",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that a worker starts without Optuna."""
    if name not in _HOMES:
        raise AttributeError(f"module 'evolve' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
