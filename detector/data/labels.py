"""From a reader's raw boxes to a `Sample`, and what to do with those that are wrong."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from detector.data.images import image_size, read_image
from detector.data.outlines import pack_outlines
from detector.data.sample import Sample
from detector.errors import DataError

log = logging.getLogger(__name__)


class LabelError(ValueError):
    """What is wrong with one label, without its place; `check` names the broken rule."""

    def __init__(self, message: str, check: str = "label") -> None:
        super().__init__(message)
        self.check = check


@dataclass
class Problems:
    """Collects what is wrong in one split: raises at once, or counts and reports in one line each.

    Boxes without area are always dropped and counted; everything else raises unless `skip`.
    """

    source: str  # what the summary is about, for instance "data/bccd.yaml: train"
    skip: bool = False
    empty_boxes: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    ignored: dict[str, int] = field(default_factory=dict)
    bad_outlines: list[str] = field(default_factory=list)

    @property
    def decodes(self) -> bool:
        """Whether pixels are looked at too: a whole header says nothing about what is behind it."""
        return self.skip

    def bad(self, message: str, check: str = "label") -> None:
        """Note one bad label or image. Raises: DataError: unless bad ones are skipped.

        `check` names the rule that was broken; a report goes by it.
        """
        if not self.skip:
            raise DataError(message)
        self.skipped.append(message)

    def wrong(self, message: str, check: str) -> None:
        """Note what is wrong with the description, not a label. Raises: DataError: always here."""
        raise DataError(message)

    def image(self, path: Path) -> None:
        """Note an image file of the split, before it is looked at."""

    def no_labels(self, path: Path) -> None:
        """Note an image without its label file: it is background."""

    def found(self, path: Path, size: tuple[int, int], boxes: "Sequence[Box]") -> None:
        """Note an image and its boxes as they are written, before they are clipped."""

    def ignore(self, name: str) -> None:
        """Note one object of a class that the description lists under `ignore`."""
        self.ignored[name] = self.ignored.get(name, 0) + 1

    def bad_outline(self, message: str) -> None:
        """Note a mask that cannot be read: its box is good, only copy-paste goes without it."""
        self.bad_outlines.append(message)

    def report(self) -> None:
        """Log one summary line for each kind of problem that occurred."""
        if self.empty_boxes:
            log.warning(
                "%s: dropped %d box(es) without area, first in %s",
                self.source, len(self.empty_boxes), self.empty_boxes[0],
            )  # fmt: skip
        if self.skipped:
            log.warning(
                "%s: skipped %d bad label(s) or image(s), first: %s",
                self.source, len(self.skipped), self.skipped[0],
            )  # fmt: skip
        if self.bad_outlines:
            log.warning(
                "%s: %d mask(s) cannot be read, copy-paste goes without them, first: %s",
                self.source, len(self.bad_outlines), self.bad_outlines[0],
            )  # fmt: skip
        for name, count in sorted(self.ignored.items()):
            log.warning("%s: ignored %d box(es) of class %r (ignore:)", self.source, count, name)


@dataclass(frozen=True)
class Box:
    """One object as a reader found it: xyxy pixels, not clipped, and where it was written.

    `outline` holds the (k, 2) polygons of its mask in pixels, if the data set has one.
    """

    xyxy: tuple[float, float, float, float]
    label: int
    place: str  # file:line or another place that a person can go to
    difficult: bool = False
    crowd: bool = False
    outline: Sequence[np.ndarray] = ()


def checked_size(path: Path, problems: Problems) -> tuple[int, int] | None:
    """Return the image's (height, width), or None for a bad image that is skipped."""
    problems.image(path)
    try:
        size = image_size(path)
        if problems.decodes:
            read_image(path)
        return size
    except DataError as error:
        problems.bad(str(error), "image-unreadable")
        return None


def make_sample(
    path: Path, size: tuple[int, int], found: Sequence[Box], problems: Problems
) -> Sample:
    """Clip the boxes to the image, drop those without area and pack the rest."""
    problems.found(path, size, found)
    height, width = size
    edges = np.array([box.xyxy for box in found], dtype=np.float64).reshape(-1, 4)
    edges = edges.clip(0, [width, height, width, height]).astype(np.float32)
    has_area = (edges[:, 2] > edges[:, 0]) & (edges[:, 3] > edges[:, 1])
    kept = []
    for box, good in zip(found, has_area, strict=True):
        if good:
            kept.append(box)
        else:
            problems.empty_boxes.append(box.place)
    return Sample(
        path=path,
        size=size,
        boxes=edges[has_area],
        labels=np.array([box.label for box in kept], dtype=np.int64),
        difficult=np.array([box.difficult for box in kept], dtype=bool),
        crowd=np.array([box.crowd for box in kept], dtype=bool),
        outlines=pack_outlines([box.outline for box in kept]),
    )


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Return (line number, stripped text) of the lines that are not blank.

    Raises:
        DataError: the file is missing or not text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file (UTF-8)") from error
    lines = ((number, line.strip()) for number, line in enumerate(text.split("\n"), start=1))
    return [(number, line) for number, line in lines if line]
