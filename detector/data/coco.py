"""COCO json: `instances_*.json` beside image folders, or Roboflow's `_annotations.coco.json`."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detector.data.labels import Box, Problems, checked_size, make_sample
from detector.data.outlines import parse_segmentation
from detector.data.sample import Sample
from detector.errors import DataError

ROBOFLOW_FILE = "_annotations.coco.json"
TABLES = {  # and the keys that every row needs
    "images": ("id", "file_name"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}


@dataclass(frozen=True)
class CocoFile:
    """The three tables of one json file, checked for their keys."""

    path: Path
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]


def read_coco(
    root: Path, entries: Sequence[str], names: Sequence[str], ignore: Sequence[str],
    problems: Problems,
) -> list[Sample]:  # fmt: skip
    """Read a split: `entries` are json files or folders that hold one, relative to `root`.

    Raises:
        DataError: missing json or image, no images, a bad box, duplicate or unknown ids, or a
            category with boxes that is neither in `names` nor in `ignore`.
    """
    samples = []
    for entry in entries:
        coco = load_coco(find_json(root, entry), problems)
        boxes = _boxes_by_image(coco, names, ignore, problems)
        folder = _image_folder(coco, root)
        for image in coco.images:
            path = folder / str(image["file_name"])
            if not path.is_file():
                message = f"{coco.path}: image id {image['id']}: no file {path}"
                problems.bad(message, "image-missing")
                continue
            size = checked_size(path, problems)
            if size is not None and _has_size(coco.path, image, size, problems):
                samples.append(make_sample(path, size, boxes[image["id"]], problems))
    return samples


def find_json(root: Path, entry: str) -> Path:
    """Return the json file that a split's entry names. Raises: DataError: there is none."""
    path = root / entry
    if path.is_dir():
        if (path / ROBOFLOW_FILE).is_file():
            return path / ROBOFLOW_FILE
        files = sorted(path.glob("*.json"))
        if len(files) == 1:
            return files[0]
        raise DataError(f"{path}: {len(files)} json files and no {ROBOFLOW_FILE}; name the file")
    if not path.is_file():
        raise DataError(f"{path}: no such annotation file")
    return path


def load_coco(path: Path, problems: Problems | None = None) -> CocoFile:
    """Read and check the tables of a json file; bad rows are left out if `problems` allows it.

    Raises: DataError: damaged or ambiguous.
    """
    problems = problems or Problems(str(path))
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror}") from error
    except ValueError as error:  # bad json, bad UTF-8
        raise DataError(f"{path}: not a json file: {error}") from error
    tables = {}
    for key, needed in TABLES.items():
        table = content.get(key) if isinstance(content, dict) else None
        if not isinstance(table, list):
            raise DataError(f"{path}: no list {key!r}; this is not a COCO detection file")
        whole = [row for row in table if _is_whole(path, key, row, needed, problems)]
        unique = {"images": "image", "categories": "category"}
        tables[key] = _unique(path, unique[key], whole, problems) if key in unique else whole
    if not tables["images"]:
        raise DataError(f"{path}: no images")
    return CocoFile(path, **tables)


def class_names(files: Sequence[Path]) -> tuple[str, ...]:
    """Return the category names in the order of their ids.

    A super-category without boxes (Roboflow writes one) is not a class.
    """
    names: dict[int | str, str] = {}
    supers: set[str] = set()
    used: set[int | str] = set()
    for path in files:
        coco = load_coco(path, Problems(str(path), skip=True))  # who reads the boxes judges them
        names.update({row["id"]: str(row["name"]) for row in coco.categories})
        supers.update(
            str(row.get("supercategory"))
            for row in coco.categories
            if row.get("supercategory") != row["name"]
        )
        used.update(row["category_id"] for row in coco.annotations)
    order = sorted(names, key=lambda key: (isinstance(key, str), key))
    kept = [names[key] for key in order if key in used or names[key] not in supers]
    return tuple(dict.fromkeys(kept))


def _is_whole(path: Path, key: str, row: Any, needed: Sequence[str], problems: Problems) -> bool:
    missing = [name for name in needed if not isinstance(row, dict) or name not in row]
    if missing:
        message = f"{path}: {key}: {missing[0]!r} is missing in {str(row)[:80]}"
        problems.bad(message, "label-columns")
        return False
    ids = [row[name] for name in needed if name.endswith("id")]
    if not all(isinstance(value, int | str) for value in ids):
        message = f"{path}: {key}: ids are whole numbers or text: {str(row)[:80]}"
        problems.bad(message, "annotation-id")
        return False
    return True


def _unique(path: Path, what: str, rows: list[Any], problems: Problems) -> list[Any]:
    first: dict[Any, Any] = {}
    for row in rows:
        if row["id"] in first:
            problems.bad(f"{path}: {what} id {row['id']} occurs twice", "annotation-id")
        else:
            first[row["id"]] = row
    return list(first.values())


def _boxes_by_image(
    coco: CocoFile, names: Sequence[str], ignore: Sequence[str], problems: Problems
) -> dict[Any, list[Box]]:
    categories = {row["id"]: str(row["name"]) for row in coco.categories}
    boxes: dict[Any, list[Box]] = {image["id"]: [] for image in coco.images}
    unknown: dict[str, int] = {}
    for row in coco.annotations:
        place = f"{coco.path}: annotation id {row['id']}"
        name = categories.get(row["category_id"])
        if row["image_id"] not in boxes:
            problems.bad(f"{place}: unknown image id {row['image_id']}", "annotation-id")
        elif name is None:
            problems.bad(f"{place}: unknown category id {row['category_id']}", "annotation-id")
        elif name in ignore:
            problems.ignore(name)
        elif name not in names:
            unknown[name] = unknown.get(name, 0) + 1
        else:
            box = _parse_box(row, names.index(name), place, problems)
            boxes[row["image_id"]].extend(box)
    for name, count in unknown.items():
        problems.wrong(
            f"{coco.path}: category {name!r} has {count} box(es) and is not in names: "
            "add it there, or to ignore",
            "label-class",
        )
    return boxes


def _parse_box(row: dict[str, Any], label: int, place: str, problems: Problems) -> list[Box]:
    """Return the annotation as a list of one box, or of none for a bad one that is skipped."""
    bbox = row["bbox"]
    numbers = isinstance(bbox, list) and all(
        isinstance(value, int | float) and math.isfinite(value) for value in bbox
    )
    if not numbers or len(bbox) != 4:
        problems.bad(
            f"{place}: bbox {bbox} must be four numbers x, y, width, height", "label-columns"
        )
        return []
    x, y, width, height = bbox
    if width < 0 or height < 0:
        problems.bad(f"{place}: bbox {bbox} has a negative size", "label-range")
        return []
    crowd = bool(row.get("iscrowd", 0))
    outline = [] if crowd else _parse_outline(row, place, problems)
    corners = (x, y, x + width, y + height)
    difficult = bool(row.get("difficult", 0))  # no key of COCO's: detector.convert writes it
    return [Box(corners, label, place, difficult, crowd, outline)]


def _parse_outline(row: dict[str, Any], place: str, problems: Problems) -> list[np.ndarray]:
    try:
        return parse_segmentation(row.get("segmentation"))
    except DataError as error:
        problems.bad_outline(f"{place}: {error}")
        return []


def _has_size(
    source: Path, image: dict[str, Any], size: tuple[int, int], problems: Problems
) -> bool:
    """Whether the json, if it tells a size, means this picture and not a resized or turned one."""
    height, width = image.get("height") or size[0], image.get("width") or size[1]
    if (height, width) == size:
        return True
    problems.bad(
        f"{source}: image id {image['id']}: {width}x{height} here, but {image['file_name']} has "
        f"{size[1]}x{size[0]} pixels as stored",
        "image-size",
    )
    return False


def _image_folder(coco: CocoFile, root: Path) -> Path:
    """Return the folder that `file_name` is relative to: beside the json, or named like it."""
    split = coco.path.stem.removeprefix("instances_")
    candidates = (
        coco.path.parent, root / split, root / "images" / split, root / "images", root,
        coco.path.parent.parent / split, coco.path.parent / split, coco.path.parent / "images",
    )  # fmt: skip
    first = str(coco.images[0]["file_name"])
    return next((folder for folder in candidates if (folder / first).is_file()), candidates[0])
