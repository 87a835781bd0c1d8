"""Outlines of objects: the polygons of one image, packed into three arrays.

A mask is kept as the polygons around it, not as pixels: a few hundred bytes an object, at any
scale. An object may have several polygons (rings); their union is the object. Holes are filled.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from detector.errors import DataError

SHIFT = 4  # bits of a pixel's fraction that OpenCV's polygon filling takes


@dataclass(frozen=True, eq=False)
class Outlines:
    """Polygons of the objects of one image, in pixels (continuous: the first pixel is 0 to 1)."""

    points: np.ndarray  # (p, 2) float32 x, y of all rings in order
    starts: np.ndarray  # (r + 1,) int32: ring k is points[starts[k] : starts[k + 1]]
    owners: np.ndarray  # (r,) int32: the object of each ring, rising

    @property
    def objects(self) -> np.ndarray:
        """The numbers of the objects that have an outline, rising."""
        return np.unique(self.owners)

    def rings(self, objects: Iterable[int]) -> list[np.ndarray]:
        """Return the (k, 2) polygons of `objects`."""
        chosen = np.flatnonzero(np.isin(self.owners, list(objects)))
        return [self.points[self.starts[ring] : self.starts[ring + 1]] for ring in chosen]

    def scaled(self, scale_x: float, scale_y: float) -> "Outlines":
        """Return the outlines of the resized image."""
        scale = np.array([scale_x, scale_y], dtype=np.float32)
        return Outlines(self.points * scale, self.starts, self.owners)


def pack_outlines(rings_by_object: Sequence[Sequence[np.ndarray]]) -> Outlines | None:
    """Pack each object's list of (k, 2) polygons; None when no object has any."""
    rings = [ring for rings in rings_by_object for ring in rings]
    if not rings:
        return None
    owners = np.repeat(np.arange(len(rings_by_object)), [len(rings) for rings in rings_by_object])
    starts = np.cumsum([0, *(len(ring) for ring in rings)])
    points = np.concatenate(rings).astype(np.float32)
    return Outlines(points, starts.astype(np.int32), owners.astype(np.int32))


def keep_objects(outlines: Outlines | None, kept: np.ndarray) -> Outlines | None:
    """Return the outlines of the objects where `kept` (n,) is true, numbered anew."""
    if outlines is None or kept.all():
        return outlines
    chosen = np.flatnonzero(kept)
    return pack_outlines([outlines.rings([int(number)]) for number in chosen])


def fill_rings(rings: Iterable[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Draw the union of polygons as a mask of `size` (height, width), uint8, 0 or 1."""
    mask = np.zeros(size, dtype=np.uint8)
    for ring in rings:
        # OpenCV counts from pixel centres; one polygon at a time, as an overlap is not a hole.
        fixed = np.rint((ring - 0.5) * (1 << SHIFT)).astype(np.int32)
        cv2.fillPoly(mask, [fixed], (1,), shift=SHIFT)
    return mask


def rings_of_mask(mask: np.ndarray) -> list[np.ndarray]:
    """Return the polygons around the non-zero pixels of a (H, W) uint8 mask."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [contour.reshape(-1, 2).astype(np.float32) + 0.5 for contour in contours]


# ---- COCO ----------------------------------------------------------------------------------


def parse_segmentation(value: Any) -> list[np.ndarray]:
    """Return the polygons of a COCO `segmentation`: lists of x, y, or run lengths (RLE).

    An absent or empty one gives no polygon.

    Raises:
        DataError: neither; the message says what is wrong, not where.
    """
    if not value:
        return []
    if isinstance(value, dict):
        return rings_of_mask(_decode_runs(value))
    if not isinstance(value, list) or not all(isinstance(ring, list) for ring in value):
        raise DataError("segmentation is neither a list of polygons nor run lengths (RLE)")
    return [_parse_polygon(ring) for ring in value if ring]


def _parse_polygon(numbers: list[Any]) -> np.ndarray:
    try:
        ring = np.array(numbers, dtype=np.float32)
    except (TypeError, ValueError):
        ring = np.full(1, np.nan, dtype=np.float32)
    if ring.ndim != 1 or len(ring) < 6 or len(ring) % 2 or not np.isfinite(ring).all():
        raise DataError(
            f"segmentation polygon {str(numbers)[:40]} must be at least three pairs of numbers"
        )
    return ring.reshape(-1, 2)


def _decode_runs(value: dict[str, Any]) -> np.ndarray:
    """Return the (height, width) uint8 mask of run lengths: background first, down the columns."""
    counts = value.get("counts")
    try:
        height, width = map(int, value["size"])
        runs = _unpack_runs(counts) if isinstance(counts, str) else counts
        lengths = np.array(runs, dtype=np.int64)
    except (KeyError, TypeError, ValueError, OverflowError, IndexError) as error:
        raise DataError(f"segmentation {str(value)[:60]} is not a size and run lengths") from error
    if lengths.ndim != 1 or (lengths < 0).any() or lengths.sum() != height * width:
        raise DataError(f"segmentation counts do not add up to {height} x {width} pixels")
    values = (np.arange(len(lengths)) % 2).astype(np.uint8)
    mask = np.repeat(values, lengths).reshape(width, height).T
    return np.ascontiguousarray(mask)


def _unpack_runs(text: str) -> list[int]:
    """Read the compressed run lengths of COCO: groups of 5 bits, low first, from character 48 on.

    Bit 6 says that another group follows, bit 5 of the last group is the sign. From the fourth
    number on, each is the difference to the number two places before it.
    """
    runs: list[int] = []
    at = 0
    while at < len(text):
        number, shift, more = 0, 0, True
        while more:
            group = ord(text[at]) - 48
            number |= (group & 31) << shift
            more, at, shift = bool(group & 32), at + 1, shift + 5
            if not more and group & 16:
                number -= 1 << shift
        runs.append(number + runs[-2] if len(runs) > 2 else number)
    return runs
