"""Augmentation in two steps: a `Plan` of sampled numbers, then a picture drawn from the plan.

Every geometric change (letterbox, mosaic tile, affine, perspective, flip) is one 3 x 3 homography
from source pixels to output pixels, so each source image is resampled once and its boxes follow
the same matrix. Renderers only read the plan; they draw no random numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np

from detector.config import Hyp

GRAY = 114  # padding, all channels
MIN_SIDE = 2.0  # pixels: a box that is thinner after clipping is dropped
NEAREST = 0.05  # homogeneous w of a corner: below it the corner is behind the picture
MIN_VISIBLE = 0.1  # a box of which less is left inside the picture is dropped


class Images(Protocol):
    """Source pictures by index, each (h, w, 3) uint8 BGR: a list or an `ImageCache`."""

    def __getitem__(self, index: int, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Layer:
    """One source image and the homography that places it in the output (pixels to pixels)."""

    index: int
    matrix: np.ndarray  # (3, 3) float64


@dataclass(frozen=True)
class Plan:
    """All the numbers of one training picture.

    `scenes` are drawn separately, each from its layers in order, and averaged (mixup has two).
    `hsv` is (hue shift as a fraction of the circle, saturation gain, value gain).
    """

    size: tuple[int, int]  # (height, width) of the output
    scenes: tuple[tuple[Layer, ...], ...]
    hsv: tuple[float, float, float] = (0.0, 1.0, 1.0)


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
) -> Plan:
    """Draw the plan of training picture `index`.

    `shapes` are the (height, width) of all source images as they will be handed to the renderer;
    `tail` is the no-augmentation phase: letterbox, flips and colour only. The source of the
    mosaic is the YOLOX paper (arXiv 2107.08430, section 2.2); mixup is arXiv 1710.09412.
    """
    mosaic = not tail and rng.random() < hyp.mosaic
    if mosaic:
        base = _mosaic(index, shapes, size, hyp, rng)
    elif tail:
        base = (Layer(index, _fit(shapes[index], size)),)
    else:
        change = _affine(size, (1 - hyp.scale, 1 + hyp.scale), hyp, rng)
        base = (Layer(index, change @ _fit(shapes[index], size)),)
    scenes = [_flipped(base, size, hyp, rng)]
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


def _shift(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], dtype=np.float64)


def _zoom(scale: float, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    centre = _shift(width / 2, height / 2)
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
    canvas_to_output = _affine(size, (hyp.mosaic_scale_min, hyp.mosaic_scale_max), hyp, rng)
    canvas_to_output = canvas_to_output @ _shift(-width / 2, -height / 2)
    layers = []
    for corner, source in enumerate(sources):
        fit = _fit(shapes[source], size)
        tile_height, tile_width = shapes[source][0] * fit[0, 0], shapes[source][1] * fit[0, 0]
        left = centre_x - tile_width if corner % 2 == 0 else centre_x
        top = centre_y - tile_height if corner < 2 else centre_y
        layers.append(Layer(source, canvas_to_output @ _shift(left, top) @ fit))
    return tuple(layers)


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
    forth = _shift(width / 2 + move_x * width, height / 2 + move_y * height)
    return forth @ shear @ rotate @ tilt @ _shift(-width / 2, -height / 2)


def _flipped(
    layers: tuple[Layer, ...], size: tuple[int, int], hyp: Hyp, rng: np.random.Generator
) -> tuple[Layer, ...]:
    height, width = size
    flip = np.eye(3)
    if rng.random() < hyp.fliplr:
        flip = np.array([[-1, 0, width], [0, 1, 0], [0, 0, 1.0]]) @ flip
    if rng.random() < hyp.flipud:
        flip = np.array([[1, 0, 0], [0, -1, height], [0, 0, 1.0]]) @ flip
    return tuple(Layer(layer.index, flip @ layer.matrix) for layer in layers)


# ---- drawing -------------------------------------------------------------------------------


def render(plan: Plan, images: Images) -> np.ndarray:
    """Draw the plan with OpenCV; `images[i]` is source i, (h, w, 3) uint8 BGR. Mutates nothing."""
    height, width = plan.size
    pictures = []
    for layers in plan.scenes:
        canvas = np.full((height, width, 3), GRAY, dtype=np.uint8)
        for layer in layers:
            _draw_layer(canvas, images[layer.index], layer.matrix)
        pictures.append(canvas)
    picture = pictures[0]
    if len(pictures) == 2:
        picture = cv2.addWeighted(pictures[0], 0.5, pictures[1], 0.5, 0)
    return _recolour(picture, plan.hsv)


def _draw_layer(canvas: np.ndarray, image: np.ndarray, matrix: np.ndarray) -> None:
    """Warp `image` onto `canvas` in place; what the image does not cover stays as it is."""
    size = (canvas.shape[1], canvas.shape[0])
    # Continuous coordinates have pixel centres at +0.5, OpenCV's have them at whole numbers.
    centred = _shift(-0.5, -0.5) @ matrix @ _shift(0.5, 0.5)
    options: dict[str, Any] = {
        "dst": canvas,
        "flags": cv2.INTER_LINEAR,
        "borderMode": cv2.BORDER_TRANSPARENT,
    }
    if np.array_equal(centred, np.eye(3)):
        height, width = min(size[1], image.shape[0]), min(size[0], image.shape[1])
        canvas[:height, :width] = image[:height, :width]
    elif np.array_equal(centred[2], (0, 0, 1)):
        cv2.warpAffine(image, centred[:2], size, **options)
    else:
        cv2.warpPerspective(image, centred, size, **options)


def _recolour(image: np.ndarray, hsv: tuple[float, float, float]) -> np.ndarray:
    """Shift the hue and multiply saturation and value through look-up tables."""
    if hsv == (0.0, 1.0, 1.0):
        return image
    levels = np.arange(256)
    hue = ((levels + round(hsv[0] * 180)) % 180).astype(np.uint8)
    saturation = np.clip(levels * hsv[1], 0, 255).astype(np.uint8)
    value = np.clip(levels * hsv[2], 0, 255).astype(np.uint8)
    table = np.stack((hue, saturation, value), axis=-1)[None]  # (1, 256, 3)
    changed = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_BGR2HSV), table)
    return cv2.cvtColor(changed, cv2.COLOR_HSV2BGR)


# ---- boxes ---------------------------------------------------------------------------------


def place_boxes(
    plan: Plan, boxes: Sequence[np.ndarray], labels: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes (n, 4) float32 xyxy output pixels and labels (n,) of all layers of a plan.

    `boxes[i]`, `labels[i]` belong to source i, in its pixels. A box is dropped when less than
    `MIN_VISIBLE` of it stays inside the picture or a side falls below `MIN_SIDE`.
    """
    parts, names = [], []
    for layer in (layer for layers in plan.scenes for layer in layers):
        moved, keep = _move_boxes(boxes[layer.index], layer.matrix, plan.size)
        parts.append(moved[keep])
        names.append(labels[layer.index][keep])
    return (
        np.concatenate(parts).astype(np.float32).reshape(-1, 4),
        np.concatenate(names).astype(np.int64),
    )


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
