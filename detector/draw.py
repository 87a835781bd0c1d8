"""Pictures with boxes: detections on an image, and sheets of many images side by side.

Images are (H, W, 3) uint8 BGR and are never changed in place; boxes are xyxy in their pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from detector.errors import DataError

# RGB, told apart by colour-blind people too. Source: Okabe and Ito 2008 (the first seven), and
# Paul Tol, "Colour schemes" 2021, scheme "muted" (the rest).
PALETTE = (
    "E69F00", "56B4E9", "009E73", "F0E442", "0072B2", "D55E00", "CC79A7",
    "88CCEE", "CC6677", "117733", "DDCC77", "332288", "AA4499", "44AA99", "999933", "882255",
)  # fmt: skip
FONT = cv2.FONT_HERSHEY_SIMPLEX
BACKGROUND = (255, 255, 255)
INK = (40, 40, 40)
MAX_COVERED = 0.25  # of a picture by labels
SMALL = 3  # an object of less than so many times a label's area would be hidden by one
SMALLEST = 0.4  # size of OpenCV's font: 9 pixels
EDGE = 3  # pixels of an object's border that a label may touch
MAX_LEGEND = 24  # classes
QUALITY = 88  # of a JPEG

Colour = tuple[int, int, int]


def class_colour(label: int) -> Colour:
    """Return the BGR colour of a class; classes beyond the palette share colours."""
    code = PALETTE[label % len(PALETTE)]
    red, green, blue = (int(code[i : i + 2], 16) for i in (0, 2, 4))
    return blue, green, red


def write_picture(path: Path, image: np.ndarray) -> None:
    """Write an image, in the format of its suffix; any file name that the system allows works.

    Raises: DataError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imencode(path.suffix.lower(), image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tofile(
            path
        )
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error


def text_colour(background: Colour) -> Colour:
    """Return black or white, whichever reads better. Source: WCAG 2.1, relative luminance."""
    blue, green, red = ((value / 255) ** 2.2 for value in background)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None,
    names: Sequence[str],
) -> np.ndarray:
    """Return a copy of `image` with boxes (n, 4), labelled `name 0.87`, or `name` without scores.

    Lines and text grow with the image, text less where the objects are small. Labels stay inside
    it and never overlap: the highest score gets the best place, and what finds no place, or comes
    after labels that cover `MAX_COVERED` of a small picture, has a box only.
    """
    canvas = np.ascontiguousarray(image).copy()
    size = canvas.shape[:2]
    line = max(1, min(2, round(sum(size) / 300)), round(sum(size) / 640))
    order = np.arange(len(boxes)) if scores is None else np.argsort(-scores, kind="stable")
    corners = [_pixels(boxes[i], size) for i in order]
    colours = [class_colour(int(labels[i])) for i in order]
    for (x1, y1, x2, y2), colour in reversed(list(zip(corners, colours, strict=True))):
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, line)
    texts = [names[int(labels[i])] + ("" if scores is None else f" {scores[i]:.2f}") for i in order]
    style = _Style.for_image(size)
    if texts:
        widths = [style.size(text)[1] for text in texts]
        style = style.narrowed(np.median([x2 - x1 for x1, _, x2, _ in corners]) / np.median(widths))
    plates = [style.size(text) for text in texts]
    covered = np.cumsum([height * width for height, width in plates])
    shown = max(1, int(np.sum(covered <= MAX_COVERED * size[0] * size[1])))
    places = place_labels(corners[:shown], plates[:shown], size)
    for text, place, colour in zip(texts, places, colours, strict=False):
        if place is not None:
            style.write(canvas, text, place, colour)
    return canvas


def _pixels(box: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return whole pixels inside an image of `size` (height, width)."""
    limit = np.array([size[1], size[0], size[1], size[0]]) - 1
    x1, y1, x2, y2 = np.clip(np.round(np.nan_to_num(box)), 0, limit).astype(int).tolist()
    return x1, y1, x2, y2


@dataclass(frozen=True)
class _Style:
    """How a label looks: text height and margins in pixels follow the image's size."""

    scale: float  # of OpenCV's font
    thickness: int
    margin: int

    @classmethod
    def for_image(cls, size: tuple[int, int]) -> "_Style":
        return cls._scaled(float(np.clip((size[0] + size[1]) / 2600, SMALLEST, 2.5)))

    @classmethod
    def _scaled(cls, scale: float) -> "_Style":
        return cls(scale, max(1, round(scale)), max(2, round(4 * scale)))

    def narrowed(self, ratio: float) -> "_Style":
        """Return smaller text if labels are wider than objects, which are `ratio` times as wide."""
        return self._scaled(max(SMALLEST, self.scale * float(np.clip(ratio, 0.5, 1))))

    def size(self, text: str) -> tuple[int, int]:
        """Return the (height, width) of the label's plate."""
        (width, height), below = cv2.getTextSize(text, FONT, self.scale, self.thickness)
        return height + below + self.margin, width + 2 * self.margin

    def write(self, canvas: np.ndarray, text: str, place: tuple[int, int], colour: Colour) -> None:
        """Draw a plate with its top left corner at `place` (y, x) on `canvas`."""
        (width, height), below = cv2.getTextSize(text, FONT, self.scale, self.thickness)
        y, x = place
        plate = (x + width + 2 * self.margin - 1, y + height + below + self.margin - 1)
        cv2.rectangle(canvas, (x, y), plate, colour, cv2.FILLED)
        base = (x + self.margin, y + self.margin // 2 + height)
        ink = text_colour(colour)
        cv2.putText(canvas, text, base, FONT, self.scale, ink, self.thickness, cv2.LINE_AA)


def place_labels(
    boxes: Sequence[tuple[int, int, int, int]],
    sizes: Sequence[tuple[int, int]],
    image_size: tuple[int, int],
) -> list[tuple[int, int] | None]:
    """Return the top left corner (y, x) of each label, of `sizes` (height, width), pixels.

    A label stands above its box, else inside at the top, below, inside at the bottom, a line
    further out, at the left or right edge: where it hides least of small objects among the places
    that no earlier label takes. None: all are taken. It is moved into the image where it sticks
    out.
    """
    table = np.array(boxes, float).reshape(-1, 4)[:, [1, 0, 3, 2]]  # y1, x1, y2, x2
    areas = (table[:, 2:] - table[:, :2]).prod(axis=1)
    taken = np.zeros((0, 4))
    places: list[tuple[int, int] | None] = []
    for (x1, y1, x2, y2), (height, width) in zip(boxes, sizes, strict=True):
        above, below = y1 - height + 1, y2
        rows = (above, y1 + 1, below, y2 - height, above - height, below + height)
        options = np.array([(y, x) for x in (x1, x2 - width + 1) for y in rows])
        options[:, 0] = options[:, 0].clip(0, max(0, image_size[0] - height))
        options[:, 1] = options[:, 1].clip(0, max(0, image_size[1] - width))
        plates = np.concatenate([options, options + np.array((height, width))], axis=1)
        free = np.flatnonzero(_shared(plates, taken) == 0)
        if not len(free):
            places.append(None)
            continue
        small = table[areas < SMALL * height * width] + np.array((EDGE, EDGE, -EDGE, -EDGE))
        hidden = _shared(plates[free], small)
        best = free[int(np.argmin(hidden))]
        taken = np.concatenate([taken, plates[best : best + 1]])
        places.append((int(options[best, 0]), int(options[best, 1])))
    return places


def _shared(plates: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return how many pixels of each of `plates` (n, 4) y1, x1, y2, x2 lie on `others` (m, 4)."""
    low = np.maximum(plates[:, None, :2], others[None, :, :2])
    shared = np.maximum(np.minimum(plates[:, None, 2:], others[None, :, 2:]) - low, 0)
    return np.asarray(shared.prod(axis=2).sum(axis=1))


# ---- sheets --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Tile:
    """One picture of a sheet: an image, what is drawn on it, and the line above it."""

    image: np.ndarray  # (H, W, 3) uint8 BGR
    boxes: np.ndarray  # (n, 4) xyxy pixels
    labels: np.ndarray  # (n,)
    scores: np.ndarray | None  # (n,); None: ground truth
    caption: str


def draw_grid(
    tiles: Sequence[Tile],
    names: Sequence[str],
    columns: int = 2,
    cell: tuple[int, int] = (480, 640),
) -> np.ndarray:
    """Return one sheet: tiles in rows of `columns`, each fitted into `cell` (height, width).

    Two tiles an image, ground truth and detections, in an even number of columns show both side
    by side. Images are enlarged or reduced before boxes are drawn, so labels are readable. Below
    stands what the colours mean, if there are several classes.
    """
    style = _Style.for_image(cell)
    bar = style.size("Xg")[0] + 2 * style.margin
    gap = 4
    height, width = cell[0] + bar + gap, cell[1] + gap
    rows = max(1, -(-len(tiles) // columns))
    sheet = np.full((rows * height + gap, columns * width + gap, 3), BACKGROUND, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * height + gap, i % columns * width + gap
        caption = _shortened(tile.caption, cell[1], style)
        base = (left + style.margin, top + bar - 2 * style.margin)
        cv2.putText(sheet, caption, base, FONT, style.scale, INK, style.thickness, cv2.LINE_AA)
        picture = _fitted(tile, names, cell)
        h, w = picture.shape[:2]
        sheet[top + bar : top + bar + h, left : left + w] = picture
    shown = np.unique(np.concatenate([np.zeros(0, int), *(tile.labels for tile in tiles)]))
    return np.concatenate([sheet, _legend(shown.tolist(), names, sheet.shape[1], style)])


def _legend(labels: Sequence[int], names: Sequence[str], width: int, style: "_Style") -> np.ndarray:
    """Return a strip (H, width, 3) with the names on their colours; of no height without need."""
    if not 1 < len(labels) <= MAX_LEGEND:
        return np.zeros((0, width, 3), np.uint8)
    plates = [style.size(names[label]) for label in labels]
    line, gap = plates[0][0] + 4, 6
    places, x, y = [], gap, 2
    for _, wide in plates:
        if x > gap and x + wide + gap > width:
            x, y = gap, y + line
        places.append((y, x))
        x += wide + gap
    strip = np.full((y + line + 2, width, 3), BACKGROUND, np.uint8)
    for label, place in zip(labels, places, strict=True):
        style.write(strip, names[label], place, class_colour(label))
    return strip


def _fitted(tile: Tile, names: Sequence[str], cell: tuple[int, int]) -> np.ndarray:
    height, width = tile.image.shape[:2]
    scale = min(cell[0] / height, cell[1] / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    shrink = scale < 1
    image = cv2.resize(
        tile.image, size, interpolation=cv2.INTER_AREA if shrink else cv2.INTER_CUBIC
    )
    boxes = tile.boxes * np.tile([size[0] / width, size[1] / height], 2)
    return draw_detections(image, boxes, tile.labels, tile.scores, names)


def _shortened(text: str, width: int, style: _Style) -> str:
    """Return `text`, its end replaced by dots where it is wider than `width` pixels."""
    cut = len(text)
    while cut and style.size(text[:cut] + "..." * (cut < len(text)))[1] > width:
        cut -= 1
    return text[:cut] + "..." * (cut < len(text))
