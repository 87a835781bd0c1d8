"""One labelled image: what every reader produces and everything downstream consumes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detector.data.outlines import Outlines


@dataclass(frozen=True, eq=False)
class Sample:
    """One image of a data set with its labelled objects.

    `boxes` are xyxy in pixels of the image as stored on disk, already clipped to it, each with a
    positive area. An image without objects is background and has empty arrays.
    """

    path: Path
    size: tuple[int, int]  # (height, width) in pixels
    boxes: np.ndarray  # (n, 4) float32
    labels: np.ndarray  # (n,) int64, 0 .. num_classes - 1
    difficult: np.ndarray  # (n,) bool: VOC `difficult`, ignored by VOC evaluation
    crowd: np.ndarray  # (n,) bool: COCO `iscrowd`, never trained on, ignored by COCO evaluation
    outlines: Outlines | None = None  # the objects' masks, if the data set has any

    @property
    def id(self) -> str:
        """The image's file name without its extension."""
        return self.path.stem
