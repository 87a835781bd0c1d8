"""Which prediction learns which object, one file per rule."""

from detector.assign.anchors import AnchorLevel, AnchorMatches, match_anchors, shape_iou
from detector.assign.simota import Level, simota
from detector.assign.targets import Matches, PaddedTargets, pad_targets
from detector.assign.task_aligned import Aligned, aligned

__all__ = [
    "Aligned",
    "AnchorLevel",
    "AnchorMatches",
    "Level",
    "Matches",
    "PaddedTargets",
    "aligned",
    "match_anchors",
    "pad_targets",
    "shape_iou",
    "simota",
]
