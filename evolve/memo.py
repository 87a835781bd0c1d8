"""Measures of the last trials, kept in the study's folder: asked again, nothing is computed.

They are a function of the trials alone, and stand under a digest of all that goes into them.
"""

import hashlib
import json
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np

from evolve.evidence import Evidence, Finding
from evolve.insight import Measures
from evolve.report import replacing

FILE = ".measures.json"
FORMAT = 1  # to be raised when `measures` gives other numbers for the same trials
PACKAGES = ("optuna", "scikit-learn", "numpy")


def kept_measures(folder: Path, data: Evidence) -> Measures | None:
    """Return what was kept of exactly these trials; None if that is nothing."""
    try:
        tree = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if tree["digest"] != _digest(data):
            return None
        findings = [
            Finding(one["measure"], *(np.array(one[k]) for k in ("scores", "excess", "seen")))
            for one in tree["findings"]
        ]
        return Measures(findings, np.array(tree["steady"], dtype=np.bool_))
    except (OSError, ValueError, KeyError, TypeError):  # not there, cut short, or of another format
        return None


def keep_measures(folder: Path, data: Evidence, measured: Measures) -> None:
    """Keep measures in a study's folder, if it has one; nobody needs them there."""
    if not folder.is_dir():
        return
    findings = [
        {
            "measure": one.measure,
            "scores": one.scores.tolist(),
            "excess": one.excess.tolist(),
            "seen": one.seen.tolist(),
        }
        for one in measured.findings
    ]
    tree = {"digest": _digest(data), "findings": findings, "steady": measured.steady.tolist()}
    with suppress(OSError), replacing(folder / FILE) as partial:
        partial.write_text(json.dumps(tree), encoding="utf-8")


def _digest(data: Evidence) -> str:
    """Return a digest of trials, space and of what measures them."""
    found = hashlib.sha256(json.dumps([FORMAT, data.space.to_dict()], default=str).encode())
    for array in (data.cube, data.active, data.values):
        found.update(f"{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    for name in PACKAGES:
        with suppress(ModuleNotFoundError):  # PackageNotFoundError: one that is not installed
            found.update(f"{name} {version(name)}".encode())
    return found.hexdigest()
