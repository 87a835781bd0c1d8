"""A generated data set: shapes on cluttered, noisy backgrounds, the same for the same parameters.

Texture, size and angle say nothing about the class, and colour is only a hint: most objects lean to
the hue of their class. Small squares look like circles, some objects cover others, and there is
unlabelled clutter, so that training settings make a difference.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from detector.errors import DataError

log = logging.getLogger(__name__)

CLASSES = ("circle", "triangle", "square")
CORNERS = {"circle": 48, "triangle": 3, "square": 4}
HUES = {"circle": 0.05, "triangle": 0.38, "square": 0.66}  # of the colour circle
LEANING = 0.7  # share of the objects whose colour leans towards the hue of their class
SPLITS = ("train", "val", "test")
VERSION = 2  # part of the key: raise it when the pictures change
HIDDEN_LIMIT = 0.6  # an object with more of it hidden than this is not labelled
MIN_BOX = 4  # pixels: what is left of an object is not labelled when a side is shorter
PNG_OPTIONS = (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY)  # fast on noise
SUBPIXEL = 4  # bits of fraction in the coordinates that OpenCV draws with


@dataclass(frozen=True)
class ShapesConfig:
    """How many images there are in each split and how they are drawn."""

    train: int = 320
    val: int = 96
    test: int = 96
    size: int = 160  # pixels, side of the square images
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises: DataError: a parameter is not a whole number in its range."""
        ranges = {"train": 1, "val": 1, "test": 0, "size": 32, "seed": 0}
        for name, low in ranges.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise DataError(f"shapes: {name}={value} must be a whole number, at least {low}")

    @property
    def key(self) -> str:
        """The name of the folder for exactly these parameters."""
        text = json.dumps({"version": VERSION, **asdict(self)}, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def generate(config: ShapesConfig, parent: Path) -> Path:
    """Write the set to `parent`/<key> unless it is there, and return that folder.

    The folder appears at once and whole; of several processes that make it, the first one wins.

    Raises:
        DataError: the folder cannot be written.
    """
    target = parent / config.key
    if target.is_dir():
        return target
    log.info("drawing the shapes data set into %s", target)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f"{config.key}.", suffix=".part", dir=parent))
    except OSError as error:
        raise DataError(f"{parent}: cannot write the data set: {error.strerror}") from error
    try:
        for split in SPLITS:
            _write_split(config, split, part)
        part.chmod(0o755)
        os.rename(part, target)
    except OSError as error:
        if not target.is_dir():  # nobody else was faster
            raise DataError(f"{target}: cannot write the data set: {error.strerror}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def draw_image(
    size: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[tuple[int, tuple[int, int, int, int]]]]:
    """Draw one image with at least one labelled object.

    Returns (size, size, 3) uint8 BGR and a list of (label, xyxy pixels of what is visible).
    """
    while True:
        canvas = _Canvas(size, rng)
        canvas.clutter(int(rng.integers(2, 7)))
        for _ in range(int(rng.integers(2, 9))):
            canvas.add_object(int(rng.integers(len(CLASSES))))
        canvas.clutter(int(rng.integers(0, 4)))
        found = canvas.visible_objects()
        if found:
            return canvas.finished(), found


def _write_split(config: ShapesConfig, split: str, folder: Path) -> None:
    images, labels = folder / "images" / split, folder / "labels" / split
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for index in range(getattr(config, split)):
        rng = np.random.default_rng([config.seed, SPLITS.index(split), index])
        image, found = draw_image(config.size, rng)
        _, content = cv2.imencode(".png", image, PNG_OPTIONS)
        (images / f"{index:05d}.png").write_bytes(content.tobytes())
        rows = [_row(label, box, config.size) for label, box in found]
        (labels / f"{index:05d}.txt").write_text("".join(rows), encoding="utf-8")


def _row(label: int, box: tuple[int, int, int, int], size: int) -> str:
    x1, y1, x2, y2 = (edge / size for edge in box)
    return f"{label} {(x1 + x2) / 2:.7f} {(y1 + y2) / 2:.7f} {x2 - x1:.7f} {y2 - y1:.7f}\n"


class _Canvas:
    """A picture in the making: its pixels, and which object each pixel shows."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.size = size
        self.rng = rng
        self.pixels = _background(size, rng)  # (size, size, 3) float32, 0..255
        self.owner = np.full((size, size), -1, dtype=np.int32)  # index of the object on top
        self.objects: list[tuple[int, float]] = []  # label, area in pixels if all were visible

    def add_object(self, label: int) -> None:
        rng, size = self.rng, self.size
        radius = size * np.exp(rng.uniform(np.log(0.05), np.log(0.22)))
        centre = rng.uniform(0.02 * size, 0.98 * size, 2)
        outline = _outline(CLASSES[label], radius, centre, rng)
        area = _area(outline)
        self.owner[self._paint(outline, HUES[CLASSES[label]])] = len(self.objects)
        self.objects.append((label, area))

    def clutter(self, count: int) -> None:
        """Draw things that are not objects: sticks, crosses, arcs and specks."""
        drawings = (self._stick, self._cross, self._arc, self._specks)
        for _ in range(count):
            draw: Callable[[np.ndarray], None] = drawings[int(self.rng.integers(len(drawings)))]
            mask = np.zeros((self.size, self.size), dtype=np.uint8)
            draw(mask)
            self._blend(mask, self._colour(mask))
            self.owner[mask > 127] = -1

    def visible_objects(self) -> list[tuple[int, tuple[int, int, int, int]]]:
        found = []
        for index, (label, area) in enumerate(self.objects):
            ys, xs = np.nonzero(self.owner == index)
            if len(xs) < (1 - HIDDEN_LIMIT) * area or not len(xs):
                continue
            box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
            if min(box[2] - box[0], box[3] - box[1]) >= MIN_BOX:
                found.append((label, box))
        return found

    def finished(self) -> np.ndarray:
        """Return the picture with blur, light and sensor noise as uint8."""
        rng = self.rng
        blur = rng.uniform(0.3, 1.1)
        pixels = cv2.GaussianBlur(self.pixels, (0, 0), blur)
        contrast, light = rng.uniform(0.6, 1.15), rng.uniform(-35, 35)
        pixels = pixels * np.float32(contrast) + np.float32(128 * (1 - contrast) + light)
        noise = rng.standard_normal(pixels.shape, dtype=np.float32)
        pixels += noise * np.float32(rng.uniform(3, 16))
        return pixels.clip(0, 255).astype(np.uint8)

    def _paint(self, outline: np.ndarray, hue: float) -> np.ndarray:
        """Fill an outline with a colour and a weak texture; return the mask of its pixels."""
        mask = np.zeros((self.size, self.size), dtype=np.uint8)
        points = np.round(outline * (1 << SUBPIXEL)).astype(np.int32)
        cv2.fillPoly(mask, [points], 255, cv2.LINE_AA, SUBPIXEL)
        *_, width, height = cv2.boundingRect(mask)
        texture = _stripes((height, width), self.size, self.rng, self.rng.uniform(0, 22))
        self._blend(mask, self._colour(mask, hue) + texture)
        return mask > 127

    def _colour(self, mask: np.ndarray, hue: float | None = None) -> np.ndarray:
        """Return a colour that can be told from what is under the mask, (1, 1, 3) float32 BGR."""
        mean = np.array(cv2.mean(self.pixels, mask)[:3])
        if self.rng.random() >= LEANING:
            hue = None
        for _ in range(20):
            colour = self.rng.uniform(0, 255, 3) if hue is None else self._near(hue)
            if np.abs(colour - mean).mean() > 32:
                break
        return colour.astype(np.float32).reshape(1, 1, 3)

    def _near(self, hue: float) -> np.ndarray:
        """Return a colour (3,) BGR, 0 to 255, with a hue around `hue`."""
        level = (hue + self.rng.normal(0, 0.06)) % 1.0
        saturation, value = self.rng.uniform(0.4, 1.0), self.rng.uniform(0.35, 1.0)
        hsv = np.array([[[level * 360, saturation, value]]], dtype=np.float32)
        return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0] * 255.0, dtype=np.float64)

    def _blend(self, mask: np.ndarray, colour: np.ndarray) -> None:
        """Lay a colour over the pixels as far as the mask is set: one, or one for each pixel of
        the mask's bounding rectangle.
        """
        x, y, width, height = cv2.boundingRect(mask)
        part = np.s_[y : y + height, x : x + width]
        alpha = mask[part][..., None] * np.float32(1 / 255)
        self.pixels[part] += (colour - self.pixels[part]) * alpha

    def _point(self) -> tuple[int, int]:
        x, y = self.rng.integers(0, self.size, 2)
        return int(x), int(y)

    def _thickness(self) -> int:
        return max(1, int(self.rng.integers(1, 5)) * self.size // 160)

    def _stick(self, mask: np.ndarray) -> None:
        cv2.line(mask, self._point(), self._point(), 255, self._thickness(), cv2.LINE_AA)

    def _cross(self, mask: np.ndarray) -> None:
        (x, y), reach = self._point(), self.rng.uniform(0.03, 0.12) * self.size
        angle = self.rng.uniform(0, np.pi / 2)
        dx, dy = int(reach * np.cos(angle)), int(reach * np.sin(angle))
        width = self._thickness() + 1
        cv2.line(mask, (x - dx, y - dy), (x + dx, y + dy), 255, width, cv2.LINE_AA)
        cv2.line(mask, (x + dy, y - dx), (x - dy, y + dx), 255, width, cv2.LINE_AA)

    def _arc(self, mask: np.ndarray) -> None:
        rx, ry = (int(v) + 1 for v in self.rng.uniform(0.04, 0.2, 2) * self.size)
        start, turn = int(self.rng.integers(360)), int(self.rng.integers(60, 240))
        tilt = int(self.rng.integers(180))
        width = self._thickness()
        cv2.ellipse(mask, self._point(), (rx, ry), tilt, start, start + turn, 255, width)

    def _specks(self, mask: np.ndarray) -> None:
        (x, y), spread = self._point(), 0.08 * self.size
        for dx, dy in self.rng.normal(0, spread, (12, 2)):
            cv2.circle(mask, (int(x + dx), int(y + dy)), 1, 255, -1)


def _outline(name: str, radius: float, centre: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the corners (n, 2) of a turned and slightly stretched shape, xy pixels."""
    corners = CORNERS[name]
    angles = np.arange(corners) * 2 * np.pi / corners
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points /= np.sqrt(_area(points) / np.pi)  # equal areas: size says nothing about the class
    spin, stretch = rng.uniform(0, 2 * np.pi), np.exp(rng.uniform(-0.15, 0.15))
    points = points @ _rotation(spin) * [stretch, 1 / stretch] @ _rotation(rng.uniform(0, np.pi))
    return np.asarray(points * radius + centre)


def _rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _area(points: np.ndarray) -> float:
    """Return the area of a polygon (n, 2) by the shoelace formula."""
    x, y = points.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def _background(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return soft patches of colour with stripes and grain, (size, size, 3) float32."""
    cells = int(rng.integers(2, 7))
    patches = rng.uniform(20, 235, (cells, cells, 3)).astype(np.float32)
    patches = patches.mean() + (patches - patches.mean()) * rng.uniform(0.25, 0.8)
    pixels = cv2.resize(patches.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    grain = rng.normal(0, rng.uniform(0, 40), (size // 3, size // 3, 1)).astype(np.float32)
    pixels += cv2.resize(grain, (size, size), interpolation=cv2.INTER_LINEAR)[..., None]
    pixels += _stripes((size, size), size, rng, rng.uniform(0, 18))
    return np.asarray(pixels, dtype=np.float32)


def _stripes(
    shape: tuple[int, int], size: int, rng: np.random.Generator, height: float
) -> np.ndarray:
    """Return waves of brightness, (*shape, 1) float32, `height` up and down."""
    angle, length = rng.uniform(0, np.pi), rng.uniform(0.03, 0.2) * size
    phase = rng.uniform(0, 2 * np.pi)
    down, right = (np.arange(side, dtype=np.float32) for side in shape)
    dx, dy = (2 * np.pi / length * part for part in (np.cos(angle), np.sin(angle)))
    waves = np.sin(right * np.float32(dx) + (down * np.float32(dy) + np.float32(phase))[:, None])
    return (np.float32(height) * waves)[..., None]
