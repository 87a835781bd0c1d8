"""Shared by the tests of the search: toy objectives that workers can import, and small studies."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make `toy_objectives` importable here, in workers and in commands; returns its folder."""
    folder = Path(__file__).parent
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{folder.parent.parent}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return folder


@pytest.fixture
def write_study(toys: Path) -> Callable[..., Path]:
    """Return a function that writes evolve.yaml with a toy objective and returns its path."""

    def write(objective: str = "quadratic", generations: int = 6, **sections: Any) -> Path:
        tree = {
            "study": {"name": "toy", "generations": generations, "seed": 1},
            "objective": objective if "." in objective else f"toy_objectives:{objective}",
            "start": {"x": 0.1, "y": 0.9},
            "space": {"x": {"low": 0.0, "high": 1.0}, "y": {"low": 0.0, "high": 1.0}},
            "confirm": 0,
            "workers": {"count": 1},
            "tracking": "none",
        }
        path = Path("evolve.yaml")
        path.write_text(yaml.safe_dump({**tree, **sections}))
        return path

    return write
