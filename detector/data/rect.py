"""Rectangular batches: images of like shape together, padded no further than the network needs."""

from collections.abc import Sequence

import numpy as np

STRIDE = 32  # pixels; the sides of a batch are multiples of it

Size = tuple[int, int]  # (height, width) in pixels


def rect_size(shapes: Sequence[Size], scale: float = 1.0) -> Size:
    """Return the smallest size of multiples of the stride that holds all `shapes` times `scale`."""
    height, width = (max(shape[axis] for shape in shapes) * scale for axis in (0, 1))
    return _up(height), _up(width)


def by_shape(order: np.ndarray, shapes: Sequence[Size], step: int) -> np.ndarray:
    """Return `order`, (n,) indices, so that every full run of `step` has images of like shape.

    Images are sorted by the aspect ratio that they have when padded alone. Those of one ratio stay
    in the given order, and so do the runs, by their first image. What is left over for a shorter
    last run are the last ones of `order`, whatever their shape. An index i + n stands for i again.
    """
    padded = (rect_size([shape]) for shape in shapes)
    ratios = np.array([width / height for height, width in padded])[order % len(shapes)]
    whole = len(order) // step * step
    place = np.argsort(ratios[:whole], kind="stable")  # positions in order
    runs = place.reshape(-1, step)
    runs = runs[np.argsort(runs.min(axis=1))]
    return np.concatenate([order[runs.reshape(-1)], order[whole:]])


def _up(pixels: float) -> int:
    return max(1, int(np.ceil(np.round(pixels / STRIDE, 6)))) * STRIDE
