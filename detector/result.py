"""What a training gives back."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Result:
    """The outcome of `train`; `metrics` and `fitness` are the last epoch's averaged weights'."""

    fitness: float | None  # None: nothing was evaluated
    metrics: dict[str, float]
    best: dict[str, float]  # metrics of best.pt, with its epoch (from 1)
    best_checkpoint: Path
    directory: Path
    epochs: int  # done, earlier runs that were resumed included
    seconds: float  # of this run
    ended: str  # finished, stopped (by the caller), early stop (patience), interrupted (resumable)
    # of the last evaluation: {class: {"AP50-95": ..., "AP50": ..., "objects": ...}}
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
