"""What is wrong or worth knowing about the files, labels and classes of a data set.

Everything is found by the readers' own rules: a `Collector` goes on where training stops. Each
`Issue` names a rule of `RULES`; likeness.py says when images look alike.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from detector.data import voc, yolo
from detector.data.description import DataConfig, read_labels
from detector.data.images import is_image
from detector.data.labels import Box, Problems
from detector.errors import DataError

THIN = 2.0  # pixels at the training size: a box that is thinner is not trained on
TINY = 8.0  # pixels at the training size: one cell of the finest grid
OUTSIDE = 1.0  # pixels of the image that a box may reach out of it: rounding of other tools
RARE = 20  # a class with so many times fewer boxes than the most frequent one is rare

RULES = {  # rule -> severity, what there is
    "config": ("error", "mistakes in the description"),
    "split": ("error", "splits, or parts of one, that cannot be read"),
    "image-missing": ("error", "listed images that do not exist"),
    "image-unreadable": ("error", "images that cannot be read"),
    "image-size": ("error", "images of another size than their labels say"),
    "image-leak": ("error", "images that are in the training split too"),
    "label": ("error", "labels that cannot be understood"),
    "label-columns": ("error", "labels with the wrong number of columns or keys"),
    "label-number": ("error", "labels with something that is not a number"),
    "label-range": ("error", "labels out of range"),
    "label-class": ("error", "labels of a class that is not in names"),
    "label-file": ("error", "label files that cannot be read"),
    "annotation-id": ("error", "rows with an id that is unknown, wrong or taken"),
    "no-boxes": ("error", "a split without any box"),
    "image-cut-off": ("warning", "images that end too early: their last rows are made up"),
    "image-turned": ("warning", "images with an EXIF rotation, which is not applied: their boxes "
                     "must fit the pixels as stored"),
    "image-duplicate": ("warning", "images that stand in the split twice"),
    "image-duplicate-labels": ("warning", "images that stand in the split twice, with other boxes"),
    "image-shared": ("warning", "images that stand in val and test"),
    "image-leak-alike": ("warning", "images that look like one of the training split"),
    "label-size": ("warning", "xml files that tell another image size"),
    "box-empty": ("warning", "boxes without area, which are dropped"),
    "box-outside": ("warning", "boxes that reach out of their image, and are clipped"),
    "box-duplicate": ("warning", "boxes that stand there twice"),
    "box-two-classes": ("warning", "boxes with two classes"),
    "box-mixed": ("warning", "label files that mix boxes and polygons (which become their box)"),
    "mask": ("warning", "masks that cannot be read: copy-paste goes without them"),
    "box-thin": ("warning", f"boxes thinner than {THIN:g} px at the training size, not learned"),
    "class-unused": ("warning", "classes without any box"),
    "class-untrained": ("warning", "classes with boxes, but none in train"),
    "background": ("warning", "a split in which most images have no box"),
    "box-tiny": ("note", f"boxes smaller than {TINY:g} px at the training size"),
    "class-unmeasured": ("note", "classes without a box in val, which have no part in its metrics"),
    "class-rare": ("note", f"classes with {RARE} times fewer boxes than the most frequent one "
                   "(class_balanced and image_weights show them more often)"),
    "class-ignored": ("note", "classes whose boxes are ignored"),
    "label-none": ("note", "images without a label file, which count as background"),
    "label-unused": ("note", "label files that belong to no image"),
    "image-unused": ("note", "images that belong to no split"),
    "image-alike": ("note", "images that look like another one of the split"),
}  # fmt: skip
SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Issue:
    """One broken rule at one place; `split` is empty when it is about the whole set."""

    rule: str
    split: str
    message: str  # with its place: file:line or the like


@dataclass(frozen=True, eq=False)
class Seen:
    """An image that a reader found, its size (height, width) and its boxes as written."""

    path: Path
    size: tuple[int, int]
    boxes: tuple[Box, ...]

    def clipped(self) -> np.ndarray:
        """Return the boxes (n, 4) xyxy in pixels, clipped to the image."""
        height, width = self.size
        return self.edges().clip(0, [width, height, width, height])

    def edges(self) -> np.ndarray:
        """Return the boxes (n, 4) xyxy in pixels as written."""
        return np.array([box.xyxy for box in self.boxes], np.float64).reshape(-1, 4)


@dataclass
class Collector(Problems):
    """Takes every problem of a split as an issue, and remembers what the reader found."""

    split: str = ""
    skip: bool = True
    issues: list[Issue] = field(default_factory=list)
    images: dict[Path, Seen] = field(default_factory=dict)
    files: dict[Path, None] = field(default_factory=dict)  # of all images, in order

    @property
    def decodes(self) -> bool:
        """Pixels are looked at later, once for all checks."""
        return False

    def bad(self, message: str, check: str = "label") -> None:
        """Note a bad label or image."""
        self.issues.append(Issue(check, self.split, message))

    def wrong(self, message: str, check: str) -> None:
        """Note what would stop a training in any case."""
        self.issues.append(Issue(check, self.split, message))

    def image(self, path: Path) -> None:
        """Remember an image file, whole or not."""
        self.files[path] = None

    def no_labels(self, path: Path) -> None:
        """Note an image without its label file."""
        self.issues.append(Issue("label-none", self.split, str(path)))

    def found(self, path: Path, size: tuple[int, int], boxes: Sequence[Box]) -> None:
        """Keep an image with its boxes; one that several lists name counts once."""
        self.images.setdefault(path, Seen(path, size, tuple(boxes)))


def collect(data: DataConfig, split: str) -> Collector:
    """Read a split to its end, whatever is wrong with it."""
    collector = Collector(str(data.path), split=split)
    for entry in data.splits[split]:
        try:
            read_labels(data, (entry,), collector)
        except DataError as error:
            collector.wrong(str(error), "split")
    for place in collector.empty_boxes:
        collector.bad(place, "box-empty")
    for message in collector.bad_outlines:
        collector.bad(message, "mask")
    for name, count in sorted(collector.ignored.items()):
        collector.bad(f"{data.path}: {count} of class {name!r}", "class-ignored")
    return collector


# ---- boxes ---------------------------------------------------------------------------------


def box_issues(seen: Seen, split: str, imgsz: int) -> Iterator[Issue]:
    """Yield what is wrong with the boxes of one image that is trained at `imgsz` pixels."""
    if not seen.boxes:
        return
    height, width = seen.size
    raw, inside = seen.edges(), seen.clipped()
    beyond = np.abs(raw - inside).max(axis=1)  # pixels
    sides = (inside[:, 2:] - inside[:, :2]) * min(imgsz / height, imgsz / width)
    for box, out, (w, h) in zip(seen.boxes, beyond.tolist(), sides.tolist(), strict=True):
        if w <= 0 or h <= 0:
            continue
        if out > OUTSIDE:
            yield Issue("box-outside", split, f"{box.place}: by {out:.0f} px")
        if min(w, h) < THIN:
            yield Issue("box-thin", split, f"{box.place}: {w:.1f} x {h:.1f} px at {imgsz} px")
        elif max(w, h) < TINY:
            yield Issue("box-tiny", split, f"{box.place}: {w:.1f} x {h:.1f} px at {imgsz} px")
    yield from _repeated(seen, split)


def _repeated(seen: Seen, split: str) -> Iterator[Issue]:
    """Yield boxes that stand in one image twice, to half a pixel."""
    first: dict[tuple[float, ...], Box] = {}
    for box in seen.boxes:
        place = tuple(round(2 * edge) for edge in box.xyxy)
        other = first.setdefault(place, box)
        if other is not box:
            rule = "box-duplicate" if other.label == box.label else "box-two-classes"
            yield Issue(rule, split, f"{box.place}: the same box as {other.place}")


# ---- classes -------------------------------------------------------------------------------


@dataclass
class Tally:
    """What a split holds: images, those without a box, boxes and images of each class."""

    images: int = 0
    background: int = 0
    boxes: Counter[str] = field(default_factory=Counter)
    holders: Counter[str] = field(default_factory=Counter)

    def add(self, seen: Seen, names: Sequence[str]) -> None:
        """Count one image; boxes without area do not count."""
        area = np.prod(np.diff(seen.clipped().reshape(-1, 2, 2), axis=1), axis=(1, 2))
        labels = [box.label for box, kept in zip(seen.boxes, area > 0, strict=True) if kept]
        self.images += 1
        self.background += not labels
        self.boxes.update(names[label] for label in labels)
        self.holders.update({names[label] for label in labels})


def class_issues(path: str, names: Sequence[str], tallies: dict[str, Tally]) -> Iterator[Issue]:
    """Yield what is wrong with the balance of classes and background in the splits."""
    boxes = {split: tally.boxes for split, tally in tallies.items()}
    train = boxes.get("train", Counter())
    for name in names:
        if not any(counts[name] for counts in boxes.values()):
            yield Issue("class-unused", "", f"{path}: {name}")
        elif not train[name]:
            yield Issue("class-untrained", "", f"{path}: {name}")
        elif "val" in boxes and not boxes["val"][name]:
            yield Issue("class-unmeasured", "val", f"{path}: {name}")
        if train[name] and train[name] * RARE <= max(train.values()):
            most = max(train, key=lambda other: train[other])
            message = f"{path}: {name} ({train[name]}; {most}: {train[most]})"
            yield Issue("class-rare", "train", message)
    for split, tally in tallies.items():
        if tally.images and tally.background == tally.images:
            yield Issue("no-boxes", split, f"{path}: {tally.images} images")
        elif 2 * tally.background > tally.images:
            message = f"{path}: {tally.background} of {tally.images} images"
            yield Issue("background", split, message)


# ---- files ---------------------------------------------------------------------------------


def file_issues(data: DataConfig, used: set[Path]) -> Iterator[Issue]:
    """Yield label files and images that no split uses; `used` are the image files of all splits."""
    if data.format == "yolo":
        yield from _unused_rows(used)
    elif data.format == "voc":
        yield from _unused_xml(data, used)


def _unused_rows(used: set[Path]) -> Iterator[Issue]:
    """Look through the folders that hold label files, and nothing else, of the used images."""
    wanted = {yolo.label_path(path) for path in used}
    for folder in sorted({path.parent for path in wanted} - {path.parent for path in used}):
        for path in sorted(folder.glob("*.txt")):
            if path not in wanted and path.name != "classes.txt":
                yield Issue("label-unused", "", str(path))


def _unused_xml(data: DataConfig, used: set[Path]) -> Iterator[Issue]:
    for folder in sorted({path.parent for path in used}):
        images = [path for path in sorted(folder.iterdir()) if is_image(path)]
        stems = {path.stem for path in images}
        yield from (Issue("image-unused", "", str(path)) for path in images if path not in used)
        for xml in sorted((folder.parent / "Annotations").glob("*.xml")):
            if xml.stem not in stems:
                yield Issue("label-unused", "", str(xml))


def label_file_issues(data: DataConfig, seen: Seen, split: str) -> Iterator[Issue]:
    """Yield what is wrong with the label file of an image as a whole."""
    if data.format == "yolo":
        polygons = [box for box in seen.boxes if len(box.outline)]
        if polygons and len(polygons) < len(seen.boxes):
            message = f"{polygons[0].place}: {len(polygons)} of {len(seen.boxes)} rows are polygons"
            yield Issue("box-mixed", split, message)
    elif data.format == "voc":
        xml = seen.path.parent.parent / "Annotations" / f"{seen.path.stem}.xml"
        written = voc.written_size(xml)
        if written not in (None, seen.size):
            told, real = (f"{size[1]}x{size[0]}" for size in (written, seen.size))
            yield Issue("label-size", split, f"{xml}: {told}, the image has {real}")


def grouped(issues: Iterable[Issue]) -> dict[tuple[str, str], list[str]]:
    """Return the messages of each (rule, split), errors first, in the order of `RULES`."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for issue in issues:
        found[issue.rule, issue.split].append(issue.message)
    order = {rule: place for place, rule in enumerate(RULES)}
    return dict(sorted(found.items(), key=lambda item: order[item[0][0]]))
