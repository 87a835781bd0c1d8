"""YOLO text labels: `class xc yc w h` rows, fractions of the image, one file per image."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from detector.data.images import is_image, list_images
from detector.data.labels import (
    Box,
    LabelError,
    Problems,
    checked_size,
    make_sample,
    read_lines,
)
from detector.data.sample import Sample
from detector.errors import DataError

TOLERANCE = 1e-3  # how far outside 0..1 a coordinate may be, rounding of other tools; then clipped


def read_yolo(
    root: Path, entries: Sequence[str], names: Sequence[str], problems: Problems
) -> list[Sample]:
    """Read a split: `entries` are folders of images or list files, relative to `root`.

    Raises:
        DataError: no images, a missing image, or a bad label row (file:line).
    """
    samples = []
    for path in image_paths(root, entries, problems):
        size = checked_size(path, problems)
        if size is not None:
            boxes = read_label_file(label_path(path), size, len(names), problems)
            samples.append(make_sample(path, size, boxes, problems))
    return samples


def image_paths(root: Path, entries: Sequence[str], problems: Problems) -> list[Path]:
    """Return the images of folders and list files in their order, each once."""
    paths: dict[Path, None] = {}
    for entry in entries:
        source = root / entry
        if source.is_dir():
            found = list_images(source)
        elif source.is_file() and is_image(source):
            found = [source]
        elif source.is_file():
            found = _listed_images(source, root, problems)
        else:
            raise DataError(f"{source}: no such image folder or list file")
        if not found:
            raise DataError(f"{source}: no images")
        paths.update(dict.fromkeys(found))
    return list(paths)


def label_path(image: Path) -> Path:
    """Return the label file of an image: the last `images` folder becomes `labels` (B-25)."""
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def read_label_file(
    path: Path, size: tuple[int, int], num_classes: int, problems: Problems
) -> list[Box]:
    """Return the boxes of one label file in pixels; a missing file is a background image."""
    if not path.exists():
        problems.no_labels(path)
        return []
    height, width = size
    boxes = []
    try:
        lines = read_lines(path)
    except DataError as error:
        problems.bad(str(error), "label-file")
        return []
    for number, line in lines:
        place = f"{path}:{number}"
        try:
            label, (x1, y1, x2, y2), polygon = parse_row(line, num_classes)
        except LabelError as error:
            problems.bad(f"{place}: {error}", error.check)
            continue
        edges = (x1 * width, y1 * height, x2 * width, y2 * height)
        outline = () if polygon is None else (polygon * np.array([width, height]),)
        boxes.append(Box(edges, label, place, outline=outline))
    return boxes


def parse_row(
    line: str, num_classes: int
) -> tuple[int, tuple[float, float, float, float], np.ndarray | None]:
    """Return label, box (xyxy) and the (k, 2) polygon, if it is one, of a box or polygon row.

    All are fractions of the image.

    Raises:
        LabelError: wrong number of columns, not a number, or out of range; without the place.
    """
    words = line.split()
    is_polygon = len(words) >= 7 and len(words) % 2 == 1
    if len(words) != 5 and not is_polygon:
        raise LabelError(
            f"{len(words)} columns; a row is `class xc yc w h`, or `class x1 y1 x2 y2 x3 y3 ...`",
            "label-columns",
        )
    label = _parse_class(words[0], num_classes)
    values = [_parse_fraction(word) for word in words[1:]]
    if is_polygon:
        xs, ys = values[0::2], values[1::2]
        return label, (min(xs), min(ys), max(xs), max(ys)), np.array([xs, ys]).T
    xc, yc, w, h = values
    return label, (xc - w / 2, yc - h / 2, xc + w / 2, yc + h / 2), None


def _parse_class(word: str, num_classes: int) -> int:
    value = _parse_number(word)
    if value != int(value) or not 0 <= value < num_classes:
        raise LabelError(
            f"class {word} must be a whole number from 0 to {num_classes - 1}", "label-class"
        )
    return int(value)


def _parse_fraction(word: str) -> float:
    value = _parse_number(word)
    if not -TOLERANCE <= value <= 1 + TOLERANCE:
        raise LabelError(
            f"coordinate {word} must be from 0 to 1 (a fraction of the image)", "label-range"
        )
    return min(max(value, 0.0), 1.0)


def _parse_number(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise LabelError(f"{word!r} is not a number", "label-number")
    return value


def _listed_images(source: Path, root: Path, problems: Problems) -> list[Path]:
    """Return the images of a list file; each line is absolute or relative to one of three."""
    found = []
    bases = (root, source.parent, Path())
    for number, line in read_lines(source):
        candidates = [base / line.replace("\\", "/") for base in bases]
        path = next((path for path in candidates if path.is_file()), None)
        if path is None:
            problems.bad(f"{source}:{number}: image {line} does not exist", "image-missing")
        else:
            found.append(path)
    return found
