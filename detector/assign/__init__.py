"""Which prediction learns which object, one file per rule."""

from detector.assign.simota import Level, Matches, PaddedTargets, pad_targets, simota

__all__ = ["Level", "Matches", "PaddedTargets", "pad_targets", "simota"]
