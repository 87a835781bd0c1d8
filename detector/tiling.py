"""Large pictures in overlapping tiles, so that small objects keep their pixels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detector.errors import ConfigError

Region = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels of the picture
MARGIN = 0.01  # of a tile's side: a box that ends so near to an inner edge goes on behind it


@dataclass(frozen=True)
class Tiles:
    """How a picture is cut. Raises: ConfigError."""

    side: int = 0  # of a tile, pixels of the picture; 0: not cut
    overlap: float = 0.2  # of neighbouring tiles, share of a side

    def __post_init__(self) -> None:
        if self.side < 0 or 0 < self.side < 32:
            raise ConfigError(f"tile={self.side} must be 0 (off), or 32 pixels or more")
        if not 0 <= self.overlap <= 0.9:
            raise ConfigError(f"overlap={self.overlap} must be 0 to 0.9")

    def regions(self, size: tuple[int, int]) -> list[Region]:
        """Return the whole picture of `size` (height, width), and its tiles if it has several.

        Tiles are of one size, spread evenly, and reach from edge to edge.
        """
        height, width = size
        whole = (0, 0, width, height)
        if not self.side or max(size) <= self.side:
            return [whole]
        rows, columns = self._starts(height), self._starts(width)
        tile_height, tile_width = min(self.side, height), min(self.side, width)
        tiles = [(x, y, x + tile_width, y + tile_height) for y in rows for x in columns]
        return [whole, *tiles]

    def _starts(self, length: int) -> list[int]:
        if length <= self.side:
            return [0]
        step = self.side * (1 - self.overlap)
        count = math.ceil((length - self.side) / step) + 1
        return [round(n * (length - self.side) / (count - 1)) for n in range(count)]


def whole_objects(boxes: np.ndarray, region: Region, size: tuple[int, int]) -> np.ndarray:
    """Return which boxes (n, 4) xyxy pixels of the picture are not cut by an inner edge, (n,) bool.

    What is cut stands whole in a neighbouring tile, or in the view of the whole picture.
    """
    x1, y1, x2, y2 = region
    margin = MARGIN * max(x2 - x1, y2 - y1)
    height, width = size
    low = np.array([x1 + margin if x1 > 0 else -np.inf, y1 + margin if y1 > 0 else -np.inf])
    high = np.array([x2 - margin if x2 < width else np.inf, y2 - margin if y2 < height else np.inf])
    return np.asarray((boxes[:, :2] >= low).all(axis=1) & (boxes[:, 2:] <= high).all(axis=1))


def cut_out(image: np.ndarray, regions: Sequence[Region]) -> list[np.ndarray]:
    """Return the parts of a picture (H, W, 3), views of it."""
    return [image[y1:y2, x1:x2] for x1, y1, x2, y2 in regions]
