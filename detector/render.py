"""The OpenCV renderer: draws one `Plan` on the CPU, for workers and for training without a GPU."""

import cv2
import numpy as np

from detector.augment import GRAY, Images, Layer, Plan, front_outline, shift
from detector.data.outlines import fill_rings

Area = tuple[int, int, int, int]  # left, top, right, bottom in whole output pixels


def render(plan: Plan, images: Images) -> np.ndarray:
    """Draw the plan as (H, W, 3) uint8 BGR; `images[i]` is source i, the same. Mutates nothing.

    An output pixel shows a layer when its centre lies inside the layer's image (or outlines).
    Pixels between the centres of the outermost source pixels and the edge repeat the outermost.
    """
    pictures = []
    for layers in plan.scenes:
        canvas = np.full((*plan.size, 3), GRAY, dtype=np.uint8)
        for layer in layers:
            _draw_layer(canvas, images[layer.index], layer)
        pictures.append(canvas)
    picture = pictures[0]
    if len(pictures) == 2:
        picture = cv2.addWeighted(pictures[0], 0.5, pictures[1], 0.5, 0)
    return _recolour(picture, plan.hsv)


def _draw_layer(canvas: np.ndarray, image: np.ndarray, layer: Layer) -> None:
    """Draw `image` onto `canvas` in place; what the layer does not cover stays as it is."""
    height, width = image.shape[:2]
    frame = np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=np.float64)
    outline = front_outline(frame, layer.matrix)
    if len(outline) < 3:  # all of it is behind the picture
        return
    if layer.objects is None and not layer.matrix[[0, 1, 2, 2], [1, 0, 0, 1]].any():  # upright
        left, top, right, bottom = area = _covered(outline, canvas.shape[:2])
        if left < right and top < bottom:
            _warp(image, layer.matrix, area, canvas[top:bottom, left:right])
        return
    mask = _inside(outline, canvas.shape[:2])
    if layer.objects is not None:
        mask &= fill_rings(layer.rings, canvas.shape[:2])
    left, top, width, height = cv2.boundingRect(mask)
    if width and height:
        right, bottom = left + width, top + height
        drawn = _warp(image, layer.matrix, (left, top, right, bottom))
        cv2.copyTo(drawn, mask[top:bottom, left:right], canvas[top:bottom, left:right])


def _covered(outline: np.ndarray, size: tuple[int, int]) -> Area:
    """Return the pixels whose centres lie in the rectangle around `outline` (k, 2)."""
    limit = np.array(size[::-1])
    low = np.clip(np.ceil(outline.min(axis=0) - 0.5), 0, limit).astype(int)
    high = np.clip(np.ceil(outline.max(axis=0) - 0.5), 0, limit).astype(int)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def _inside(outline: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a mask, uint8, of the pixels whose centres lie inside a convex polygon (k, 2)."""
    y = np.arange(size[0])[:, None] + 0.5  # (H, 1)
    start, end = outline, np.roll(outline, -1, axis=0)
    across, down = (end - start).T  # (k,) each
    turn = np.sign(np.sum(start[:, 0] * end[:, 1] - start[:, 1] * end[:, 0]))
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = start[:, 0] + (y - start[:, 1]) / down * across  # (H, k) x on each edge's line
    # Going down, the inside is at the left of an edge when the polygon turns to the right.
    low = np.where(down * turn < 0, crossing, -np.inf).max(axis=1, initial=-np.inf)
    high = np.where(down * turn > 0, crossing, np.inf).min(axis=1, initial=np.inf)
    rows = (y > outline[:, 1].min()) & (y < outline[:, 1].max())
    first = np.where(rows[:, 0], np.clip(np.ceil(low - 0.5), 0, size[1]), size[1])
    after = np.where(rows[:, 0], np.clip(np.ceil(high - 0.5), 0, size[1]), 0)
    x = np.arange(size[1], dtype=np.int16)  # the narrowest type: this comparison is what takes time
    inside = (x >= first.astype(np.int16)[:, None]) & (x < after.astype(np.int16)[:, None])
    return inside.view(np.uint8)


def _warp(
    image: np.ndarray, matrix: np.ndarray, area: Area, out: np.ndarray | None = None
) -> np.ndarray:
    """Resample `image` into the `area` of the output that `matrix` leads to."""
    left, top, right, bottom = area
    # One more pixel on each side, a copy of the outermost: quicker than OpenCV's own replication.
    # Continuous coordinates have pixel centres at +0.5, OpenCV's have them at whole numbers.
    padded = cv2.copyMakeBorder(image, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    centred = shift(-left - 0.5, -top - 0.5) @ matrix @ shift(-0.5, -0.5)
    size = (right - left, bottom - top)
    if not centred[2, :2].any():
        return cv2.warpAffine(padded, centred[:2], size, out, cv2.INTER_LINEAR)
    return cv2.warpPerspective(padded, centred, size, out, cv2.INTER_LINEAR)


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
