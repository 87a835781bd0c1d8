"""Pascal VOC: `ImageSets/Main/<split>.txt`, `JPEGImages/`, `Annotations/*.xml`.

VOC counts pixels from 1 and both corners are inside the box. Ours count from 0 and are continuous:
x1 = xmin - 1, y1 = ymin - 1, x2 = xmax, y2 = ymax, so that a box from 1 to 10 is 10 pixels wide.
"""

import logging
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from detector.data.images import IMAGE_SUFFIXES, is_image
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

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VocObject:
    """One `<object>` of an xml file."""

    name: str
    corners: tuple[float, float, float, float]  # xmin, ymin, xmax, ymax as written
    difficult: bool
    place: str


def read_voc(
    root: Path, entries: Sequence[str], names: Sequence[str], ignore: Sequence[str],
    problems: Problems,
) -> list[Sample]:  # fmt: skip
    """Read a split: `entries` are list names such as `train` or `VOC2007/trainval`, or .txt files.

    Raises:
        DataError: a missing or empty list, a missing image, a damaged xml or an unknown class.
    """
    found = []  # (image, size, objects)
    for list_file in (find_list(root, entry) for entry in entries):
        base = _set_folder(list_file, root)
        for image, xml in _listed_files(list_file, base, problems):
            size = checked_size(image, problems)
            if size is not None:
                found.append((image, size, read_xml(xml, problems)))
    _check_classes((item for *_, objects in found for item in objects), names, ignore, problems)
    samples = []
    for image, size, objects in found:
        boxes = _to_boxes(objects, names, ignore, problems)
        samples.append(make_sample(image, size, boxes, problems))
    return samples


def find_list(root: Path, entry: str) -> Path:
    """Return the list file that a split's entry names. Raises: DataError: there is none."""
    folder, name = (root / entry).parent, Path(entry).name
    candidates = [root / entry, folder / "ImageSets" / "Main" / f"{name}.txt"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise DataError(f"{candidates[-1]}: no such list of images (split {entry!r})")


def list_stems(list_file: Path) -> dict[str, int]:
    """Return each image's stem with its first line number; extensions and repeats are dropped."""
    stems: dict[str, int] = {}
    for number, line in read_lines(list_file):
        name = Path(line.replace("\\", "/")).name
        suffix = Path(name).suffix
        if suffix.lower() in IMAGE_SUFFIXES or suffix.lower() == ".xml":
            name = name[: -len(suffix)]
        stems.setdefault(name, number)
    if not stems:
        raise DataError(f"{list_file}: no images: the list is empty")
    return stems


def class_names(root: Path) -> tuple[str, ...]:
    """Return every class in the xml files of a set, sorted. Raises: DataError: there is none."""
    problems = Problems(str(root))
    folders = [root / "Annotations", *sorted(root.glob("VOC*/Annotations"))]
    files = [path for folder in folders for path in sorted(folder.glob("*.xml"))]
    names = sorted({item.name for path in files for item in read_xml(path, problems)})
    if not names:
        raise DataError(f"{root}: no labelled object in Annotations, so there are no class names")
    return tuple(names)


def read_xml(path: Path, problems: Problems) -> list[VocObject]:
    """Return the objects of one annotation; a missing file is a background image (B-60).

    Fields other than name and bndbox may be absent. Coordinates may have a fraction (B-50).
    """
    if not path.exists():
        problems.no_labels(path)
        return []
    try:
        tree = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, ValueError, LookupError, OSError) as error:
        problems.bad(f"{path}: not a readable annotation: {error}", "label-file")
        return []
    objects = []
    for index, element in enumerate(tree.iter("object"), start=1):
        place = f"{path}: object {index}"
        try:
            objects.append(_parse_object(element, place))
        except LabelError as error:
            problems.bad(f"{place}: {error}", error.check)
    return objects


def written_size(path: Path) -> tuple[int, int] | None:
    """Return the (height, width) that an annotation tells; None if it tells none, or zeros."""
    try:
        size = ElementTree.parse(path).getroot().find("size")
        if size is None:
            return None
        height, width = (_parse_number(size.findtext(tag), tag) for tag in ("height", "width"))
    except (ElementTree.ParseError, ValueError, LookupError, OSError):
        return None
    return (int(height), int(width)) if height and width else None


def warn_overlap(root: Path, split: str, entries: Sequence[str], train: Sequence[str]) -> None:
    """Log a warning when images of a split are in the training lists too."""
    trained = {stem for entry in train for stem in list_stems(find_list(root, entry))}
    stems = {stem for entry in entries for stem in list_stems(find_list(root, entry))}
    shared = sorted(trained & stems)
    if shared:
        log.warning(
            "%s: %d image(s) of the %s split are in train too, first: %s",
            root, len(shared), split, shared[0],
        )  # fmt: skip


def _parse_object(element: ElementTree.Element, place: str) -> VocObject:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise LabelError("no class name")
    corners = element.find("bndbox")
    if corners is None:
        raise LabelError(f"{name}: no bndbox")
    xmin, ymin, xmax, ymax = (
        _parse_number(corners.findtext(tag), tag) for tag in ("xmin", "ymin", "xmax", "ymax")
    )
    difficult = _parse_number(element.findtext("difficult") or "0", "difficult") != 0
    return VocObject(name, (xmin, ymin, xmax, ymax), difficult, f"{place} ({name})")


def _parse_number(text: str | None, tag: str) -> float:
    try:
        value = float((text or "").strip())
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise LabelError(f"{tag} {text!r} is not a number", "label-number")
    return value


def _to_boxes(
    objects: Sequence[VocObject], names: Sequence[str], ignore: Sequence[str], problems: Problems
) -> list[Box]:
    boxes = []
    for item in objects:
        if item.name in ignore:
            problems.ignore(item.name)
            continue
        if item.name not in names:  # noted already
            continue
        xmin, ymin, xmax, ymax = item.corners
        if xmax <= xmin or ymax <= ymin:  # as written: a box of a single pixel is a slip of a hand
            problems.empty_boxes.append(item.place)
            continue
        corners = (xmin - 1, ymin - 1, xmax, ymax)
        boxes.append(Box(corners, names.index(item.name), item.place, item.difficult))
    return boxes


def _check_classes(
    objects: Iterable[VocObject], names: Sequence[str], ignore: Sequence[str], problems: Problems
) -> None:
    places: dict[str, list[str]] = {}
    for item in objects:
        places.setdefault(item.name, []).append(item.place)
    found = ", ".join(f"{name} ({len(where)})" for name, where in sorted(places.items()))
    for name in sorted(set(places) - set(names) - set(ignore)):
        for place in places[name]:
            problems.wrong(
                f"{place}: class {name!r} is not in names; classes found: {found}", "label-class"
            )


def _set_folder(list_file: Path, root: Path) -> Path:
    """Return the folder that holds JPEGImages for a list file."""
    inside = list_file.parent.parent.parent  # <base>/ImageSets/Main/<split>.txt
    return inside if (inside / "JPEGImages").is_dir() else root


def _listed_files(list_file: Path, base: Path, problems: Problems) -> list[tuple[Path, Path]]:
    folder = base / "JPEGImages"
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images")
    images = {path.stem: path for path in sorted(folder.iterdir(), reverse=True) if is_image(path)}
    found = []
    for stem, number in list_stems(list_file).items():
        if stem in images:
            found.append((images[stem], base / "Annotations" / f"{stem}.xml"))
        else:
            problems.bad(f"{list_file}:{number}: no image {stem} in {folder}", "image-missing")
    return found
