"""Augmentation in two steps: a `Plan` of sampled numbers, then a picture drawn from the plan.

Every geometric change (letterbox, mosaic tile, affine, perspective, flip) is one 3 x 3 homography
from source pixels to output pixels, so each source image is resampled once and its boxes and
outlines follow the same matrix. Coordinates are continuous: the first pixel is 0 to 1, its centre
is at 0.5. `render` (OpenCV, one picture) and `render_device` (torch, a batch) only read the plan;
they draw no random numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import cv2
import numpy as np

from detector.config import Hyp
from detector.data.outlines import Outlines, fill_rings

GRAY = 114  # padding, all channels
MIN_SIDE = 2.0  # pixels: a box that is thinner after clipping is dropped
NEAREST = 0.05  # homogeneous w of a corner: below it the corner is behind the picture
MIN_VISIBLE = 0.1  # a box of which less is left inside the picture is dropped


class Images(Protocol):
    """Source pictures by index, each (h, w, 3) uint8 BGR: a list or an `ImageCache`."""

    def __getitem__(self, index: int, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Layer:
    """One source image and the homography that places it in the output (pixels to pixels).

    A layer with `objects` shows these objects of its image alone, inside `rings`.
    """

    index: int
    matrix: np.ndarray  # (3, 3) float64
    objects: tuple[int, ...] | None = None
    rings: tuple[np.ndarray, ...] = ()  # (k, 2) polygons in output pixels


@dataclass(frozen=True)
class Plan:
    """All the numbers of one training picture.

    `scenes` are drawn separately, each from its layers in order, and averaged (mixup has two).
    `hsv` is (hue shift as a fraction of the circle, saturation gain, value gain).
    """

    size: tuple[int, int]  # (height, width) of the output
    scenes: tuple[tuple[Layer, ...], ...]
    hsv: tuple[float, float, float] = (0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Donors:
    """What copy-paste takes objects from: boxes and outlines of all sources, in their pixels."""

    boxes: Sequence[np.ndarray]
    outlines: Sequence[Outlines | None]
    indices: np.ndarray  # the sources that have an outline


def letterbox(image: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, float]:
    """Fit `image` (H, W, 3) into `size` (height, width), top-left, padded with gray.

    Returns the uint8 picture and the scale r; box / r leads back to the image's own pixels.
    """
    height, width = image.shape[:2]
    scale = min(size[0] / height, size[1] / width)
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    if (new_height, new_width) != (height, width):
        image = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
    canvas = np.full((*size, 3), GRAY, dtype=np.uint8)
    canvas[:new_height, :new_width] = image
    return canvas, scale


# ---- sampling ------------------------------------------------------------------------------


def sample_plan(
    index: int,
    shapes: Sequence[tuple[int, int]],
    size: tuple[int, int],
    hyp: Hyp,
    rng: np.random.Generator,
    tail: bool = False,
    donors: Donors | None = None,
) -> Plan:
    """Draw the plan of training picture `index`.

    `shapes` are the (height, width) of all source images as they will be handed to the renderer;
    `tail` is the no-augmentation phase: letterbox, flips and colour only. Sources: mosaic is of the
    YOLOX paper (arXiv 2107.08430, section 2.2), mixup of 1710.09412, copy-paste of 2012.07177.
    """
    mosaic = not tail and rng.random() < hyp.mosaic
    if mosaic:
        base = _mosaic(index, shapes, size, hyp, rng)
    elif tail:
        base = (Layer(index, _fit(shapes[index], size)),)
    else:
        change = _affine(size, _zooms(hyp, mosaic), hyp, rng)
        base = (Layer(index, change @ _fit(shapes[index], size)),)
    # Without donors no number is drawn: the other numbers stay what they were.
    if donors is not None and not tail and hyp.copy_paste and rng.random() < hyp.copy_paste:
        zooms = _zooms(hyp, mosaic)
        base = (*base, _pasted(donors, shapes, size, zooms, hyp, rng))
    scenes = [_with_rings(_flipped(base, size, hyp, rng), donors, size)]
    if mosaic and rng.random() < hyp.mixup:
        other = int(rng.integers(len(shapes)))
        zoom = _zoom(rng.uniform(hyp.mixup_scale_min, hyp.mixup_scale_max), size)
        scenes.append(_flipped((Layer(other, zoom @ _fit(shapes[other], size)),), size, hyp, rng))
    hsv = (
        rng.uniform(-hyp.hsv_h, hyp.hsv_h),
        1 + rng.uniform(-hyp.hsv_s, hyp.hsv_s),
        1 + rng.uniform(-hyp.hsv_v, hyp.hsv_v),
    )
    return Plan(size, tuple(scenes), hsv)


def plain_plan(index: int, shape: tuple[int, int], size: tuple[int, int]) -> Plan:
    """Return the plan that only letterboxes."""
    return Plan(size, ((Layer(index, _fit(shape, size)),),))


def _fit(shape: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Letterbox as a matrix: top-left, the longer side filled."""
    scale = min(size[0] / shape[0], size[1] / shape[1])
    return np.diag([scale, scale, 1.0])


def shift(x: float, y: float) -> np.ndarray:
    """Return the translation by x, y pixels as a matrix."""
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], dtype=np.float64)


def _zoom(scale: float, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    centre = shift(width / 2, height / 2)
    return centre @ np.diag([scale, scale, 1.0]) @ np.linalg.inv(centre)


def _mosaic(
    index: int,
    shapes: Sequence[tuple[int, int]],
    size: tuple[int, int],
    hyp: Hyp,
    rng: np.random.Generator,
) -> tuple[Layer, ...]:
    """Place four images around a random centre of a doubled canvas, then map it to `size`."""
    height, width = size
    centre_x, centre_y = rng.uniform(0.5, 1.5) * width, rng.uniform(0.5, 1.5) * height
    sources = [index, *(int(other) for other in rng.integers(len(shapes), size=3))]
    canvas_to_output = _affine(size, _zooms(hyp, True), hyp, rng)
    canvas_to_output = canvas_to_output @ shift(-width / 2, -height / 2)
    layers = []
    for corner, source in enumerate(sources):
        fit = _fit(shapes[source], size)
        tile_height, tile_width = shapes[source][0] * fit[0, 0], shapes[source][1] * fit[0, 0]
        left = centre_x - tile_width if corner % 2 == 0 else centre_x
        top = centre_y - tile_height if corner < 2 else centre_y
        layers.append(Layer(source, canvas_to_output @ shift(left, top) @ fit))
    return tuple(layers)


def _zooms(hyp: Hyp, mosaic: bool) -> tuple[float, float]:
    if mosaic:
        return hyp.mosaic_scale_min, hyp.mosaic_scale_max
    return 1 - hyp.scale, 1 + hyp.scale


def _affine(
    size: tuple[int, int], scales: tuple[float, float], hyp: Hyp, rng: np.random.Generator
) -> np.ndarray:
    """Rotation, scale, shear and perspective about the centre, then a shift on each axis."""
    height, width = size
    angle = np.deg2rad(rng.uniform(-hyp.degrees, hyp.degrees))
    scale = rng.uniform(*scales)
    shear_x, shear_y = np.tan(np.deg2rad(rng.uniform(-hyp.shear, hyp.shear, 2)))
    tilt_x, tilt_y = rng.uniform(-hyp.perspective, hyp.perspective, 2)
    move_x, move_y = rng.uniform(-hyp.translate, hyp.translate, 2)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    rotate = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    shear = np.array([[1, shear_x, 0], [shear_y, 1, 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, 1, 0], [tilt_x, tilt_y, 1]])
    forth = shift(width / 2 + move_x * width, height / 2 + move_y * height)
    return forth @ shear @ rotate @ tilt @ shift(-width / 2, -height / 2)


def _flipped(
    layers: tuple[Layer, ...], size: tuple[int, int], hyp: Hyp, rng: np.random.Generator
) -> tuple[Layer, ...]:
    height, width = size
    flip = np.eye(3)
    if rng.random() < hyp.fliplr:
        flip = np.array([[-1, 0, width], [0, 1, 0], [0, 0, 1.0]]) @ flip
    if rng.random() < hyp.flipud:
        flip = np.array([[1, 0, 0], [0, -1, height], [0, 0, 1.0]]) @ flip
    return tuple(replace(layer, matrix=flip @ layer.matrix) for layer in layers)


# ---- copy-paste ----------------------------------------------------------------------------


def _pasted(
    donors: Donors,
    shapes: Sequence[tuple[int, int]],
    size: tuple[int, int],
    zooms: tuple[float, float],
    hyp: Hyp,
    rng: np.random.Generator,
) -> Layer:
    """Choose another image, some of its objects (at least one) and a place for them."""
    index = int(rng.choice(donors.indices))
    outlines = donors.outlines[index]
    assert outlines is not None
    objects = outlines.objects
    chosen = objects[rng.random(len(objects)) < 0.5]
    if not len(chosen):
        chosen = rng.choice(objects, 1)
    matrix = _affine(size, zooms, hyp, rng) @ _fit(shapes[index], size)
    return Layer(index, matrix, tuple(chosen.tolist()))


def _with_rings(
    layers: tuple[Layer, ...], donors: Donors | None, size: tuple[int, int]
) -> tuple[Layer, ...]:
    """Give pasted objects their outlines in the output; those that lose their box are left out."""
    placed = []
    for layer in layers:
        if layer.objects is not None:
            assert donors is not None
            boxes = donors.boxes[layer.index][list(layer.objects)]
            _, keep = _move_boxes(boxes, layer.matrix, size)
            objects = tuple(
                number for number, kept in zip(layer.objects, keep, strict=True) if kept
            )
            outlines = donors.outlines[layer.index]
            if not objects or outlines is None:
                continue
            rings = (front_outline(ring, layer.matrix) for ring in outlines.rings(objects))
            seen = tuple(ring for ring in rings if len(ring) > 2)
            layer = replace(layer, objects=objects, rings=seen)
        placed.append(layer)
    return tuple(placed)


def front_outline(ring: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return the part of a polygon (k, 2) that lies in front of the picture, in output pixels."""
    points = np.concatenate((ring, np.ones((len(ring), 1))), axis=-1) @ matrix.T  # (k, 3)
    if (points[:, 2] > NEAREST).all():
        return points[:, :2] / points[:, 2:]
    return _cut_behind(points)


def _cut_behind(points: np.ndarray) -> np.ndarray:
    """Cut a homogeneous polygon (k, 3) at w = NEAREST. Source: Sutherland and Hodgman, 1974."""
    kept = []
    for start, end in zip(points, np.roll(points, -1, axis=0), strict=True):
        if start[2] > NEAREST:
            kept.append(start)
        if (start[2] > NEAREST) != (end[2] > NEAREST):
            share = (NEAREST - start[2]) / (end[2] - start[2])
            kept.append(start + share * (end - start))
    cut = np.array(kept).reshape(-1, 3)
    return cut[:, :2] / cut[:, 2:]


# ---- boxes ---------------------------------------------------------------------------------


def place_boxes(
    plan: Plan, boxes: Sequence[np.ndarray], labels: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes (n, 4) float32 xyxy output pixels and labels (n,) of all layers of a plan.

    `boxes[i]`, `labels[i]` belong to source i, in its pixels. A box is dropped when less than
    `MIN_VISIBLE` of it stays inside the picture or is left uncovered by a pasted object, or when a
    side falls below `MIN_SIDE`.
    """
    parts, names = [np.zeros((0, 4))], [np.zeros(0, dtype=np.int64)]
    for layers in plan.scenes:
        first = len(parts)
        for layer in layers:
            own = slice(None) if layer.objects is None else list(layer.objects)
            moved, keep = _move_boxes(boxes[layer.index][own], layer.matrix, plan.size)
            if layer.rings:
                cover = fill_rings(layer.rings, plan.size)
                for part in range(first, len(parts)):
                    seen = _visible_share(parts[part], cover) >= MIN_VISIBLE
                    parts[part], names[part] = parts[part][seen], names[part][seen]
            parts.append(moved[keep])
            names.append(labels[layer.index][own][keep])
    return np.concatenate(parts).astype(np.float32), np.concatenate(names).astype(np.int64)


def _visible_share(boxes: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """Return which share of the pixels of each box (n, 4) the mask `cover` (H, W) leaves free."""
    covered = cv2.integral(cover)  # (H + 1, W + 1): sums above and left of each corner
    left, top, right, bottom = np.rint(boxes).astype(np.int64).T
    area = np.maximum((right - left) * (bottom - top), 1)
    hidden = covered[bottom, right] - covered[top, right]
    hidden = hidden - covered[bottom, left] + covered[top, left]
    return 1 - hidden / area


def _move_boxes(
    boxes: np.ndarray, matrix: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2).astype(np.float64)
    homogeneous = np.concatenate((corners, np.ones((*corners.shape[:2], 1))), axis=-1) @ matrix.T
    in_front = (homogeneous[..., 2] > NEAREST).all(axis=1)
    points = homogeneous[..., :2] / np.maximum(homogeneous[..., 2:], NEAREST)  # (n, 4 corners, xy)
    whole = np.concatenate((points.min(axis=1), points.max(axis=1)), axis=-1)
    clipped = np.clip(whole, 0, np.array([size[1], size[0], size[1], size[0]]))
    sides, whole_sides = clipped[:, 2:] - clipped[:, :2], whole[:, 2:] - whole[:, :2]
    visible = sides.prod(axis=1) / np.maximum(whole_sides.prod(axis=1), 1e-9)
    return clipped, in_front & (sides >= MIN_SIDE).all(axis=1) & (visible >= MIN_VISIBLE)
