"""Which prediction learns which object, one file per rule."""

from detector.assign.simota import Level, Matches, PaddedTargets, pad_targets, simota
from detector.assign.task_aligned import Aligned, aligned

__all__ = ["Aligned", "Level", "Matches", "PaddedTargets", "aligned", "pad_targets", "simota"]
