"""Writers of the three formats, each the inverse of its reader: a data set from lists of samples.

What a format cannot say is counted in `Losses`, never dropped in silence.
"""

import json
import os
import shutil
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from detector.data.outlines import Outlines
from detector.data.sample import Sample
from detector.errors import DataError, did_you_mean

PLACING = ("copy", "link", "symlink")  # how images come into the new folder

Splits = Mapping[str, Sequence[Sample]]


@dataclass
class Losses:
    """How many objects lost something on the way, by what it was."""

    counts: Counter[str] = field(default_factory=Counter)

    def add(self, what: str, number: int = 1) -> None:
        self.counts[what] += number

    def lines(self) -> list[str]:
        return [f"{number} {what}" for what, number in self.counts.items() if number]


@dataclass(frozen=True)
class Target:
    """Where a data set is written, and how its images get there."""

    folder: Path
    names: tuple[str, ...]
    placing: str = "copy"
    masks: bool = False  # YOLO: polygon rows for objects with a single outline
    losses: Losses = field(default_factory=Losses)

    def __post_init__(self) -> None:
        if self.placing not in PLACING:
            hint = did_you_mean(self.placing, PLACING)
            raise DataError(f"--images {self.placing}: is not known{hint}")


def write_set(kind: str, splits: Splits, target: Target) -> Path:
    """Write a data set of `kind` (yolo, voc, coco) and return its description.

    Raises: DataError: a file cannot be written or an image cannot be read.
    """
    names = file_names(splits)
    try:
        target.folder.mkdir(parents=True, exist_ok=True)
        WRITERS[kind](splits, names, target)
        return write_description(target.folder, kind, splits, target.names)
    except OSError as error:
        place = error.filename or target.folder
        raise DataError(f"{place}: cannot be written: {error.strerror}") from error


def file_names(splits: Splits) -> dict[Path, str]:
    """Return a file name for each image: its own, with a number where another has its stem."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for sample in (sample for samples in splits.values() for sample in samples):
        if sample.path in names:
            continue
        stem, number = sample.id, 1
        while stem.lower() in taken:
            number += 1
            stem = f"{sample.id}-{number}"
        taken.add(stem.lower())
        names[sample.path] = stem + sample.path.suffix
    return names


def write_description(
    folder: Path, kind: str, splits: Splits, names: Sequence[str], **keys: Any
) -> Path:
    """Write data.yaml with the entries of `splits` that `keys` do not give; return its path."""
    entries = {
        "yolo": "images/{}", "voc": "{}", "coco": "annotations/instances_{}.json",
    }  # fmt: skip
    content: dict[str, Any] = {"format": kind, "path": "."}
    content |= {split: entries[kind].format(split) for split in splits}
    content |= {"names": list(names), **keys}
    path = folder / "data.yaml"
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")
    return path


def _place(source: Path, destination: Path, how: str) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    if destination.exists():
        return
    if how == "symlink":
        destination.symlink_to(source.absolute())
        return
    if how == "link":
        try:
            os.link(source, destination)
            return
        except OSError:  # another disk, or a file system without links
            pass
    shutil.copyfile(source, destination)


# ---- YOLO ------------------------------------------------------------------------------------


def _write_yolo(splits: Splits, names: Mapping[Path, str], target: Target) -> None:
    """`images/<split>/`, `labels/<split>/`: rows of fractions; difficult and crowd are unknown."""
    for split, samples in splits.items():
        rows = target.folder / "labels" / split
        rows.mkdir(parents=True, exist_ok=True)
        for sample in samples:
            name = names[sample.path]
            _place(sample.path, target.folder / "images" / split / name, target.placing)
            lines = [
                _yolo_row(sample, int(index), target) + "\n"
                for index in np.flatnonzero(~sample.crowd)
            ]
            (rows / f"{Path(name).stem}.txt").write_text("".join(lines), encoding="utf-8")
            target.losses.add("crowd boxes left out: YOLO has no such thing", sample.crowd.sum())
            difficult = int((sample.difficult & ~sample.crowd).sum())
            target.losses.add("boxes no longer marked difficult: YOLO has no such mark", difficult)


def _yolo_row(sample: Sample, index: int, target: Target) -> str:
    height, width = sample.size
    rings = _rings(sample.outlines, index)
    if target.masks and len(rings) == 1:
        fractions = rings[0].astype(float) / np.array([width, height])
        return f"{sample.labels[index]} " + _joined(fractions.clip(0, 1).reshape(-1))
    if rings:
        target.losses.add("masks left out (--masks keeps those of one polygon)")
    x1, y1, x2, y2 = sample.boxes[index].astype(float)
    centre = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height)
    return f"{sample.labels[index]} " + _joined((*centre, (x2 - x1) / width, (y2 - y1) / height))


def _joined(values: Any) -> str:
    return " ".join(f"{value:.10g}" for value in values)


def _rings(outlines: Outlines | None, index: int) -> list[np.ndarray]:
    return outlines.rings([int(index)]) if outlines is not None else []


# ---- VOC -------------------------------------------------------------------------------------


def _write_voc(splits: Splits, names: Mapping[Path, str], target: Target) -> None:
    """`JPEGImages/`, `Annotations/`, `ImageSets/Main/`; corners may have a fraction."""
    lists = target.folder / "ImageSets" / "Main"
    for folder in (lists, target.folder / "Annotations"):
        folder.mkdir(parents=True, exist_ok=True)
    for split, samples in splits.items():
        stems = [Path(names[sample.path]).stem for sample in samples]
        (lists / f"{split}.txt").write_text("".join(f"{one}\n" for one in stems), encoding="utf-8")
        for sample, stem in zip(samples, stems, strict=True):
            name = names[sample.path]
            _place(sample.path, target.folder / "JPEGImages" / name, target.placing)
            tree = ElementTree.ElementTree(_voc_annotation(sample, name, target))
            ElementTree.indent(tree)
            tree.write(target.folder / "Annotations" / f"{stem}.xml", encoding="utf-8")


def _voc_annotation(sample: Sample, name: str, target: Target) -> ElementTree.Element:
    def add(parent: ElementTree.Element, tag: str, text: str = "") -> ElementTree.Element:
        child = ElementTree.SubElement(parent, tag)
        child.text = text or None
        return child

    root = ElementTree.Element("annotation")
    add(root, "filename", name)
    size = add(root, "size")
    for tag, value in zip(("width", "height", "depth"), (*sample.size[::-1], 3), strict=True):
        add(size, tag, str(value))
    for index, box in enumerate(sample.boxes.astype(float)):
        ignored = bool(sample.difficult[index] or sample.crowd[index])
        item = add(root, "object")
        add(item, "name", target.names[sample.labels[index]])
        add(item, "difficult", str(int(ignored)))
        place = add(item, "bndbox")
        corners = box + np.array([1.0, 1.0, 0.0, 0.0])  # pixels count from 1, both corners inside
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), corners.tolist(), strict=True):
            add(place, tag, f"{value:.10g}")
        if (corners[2:] <= corners[:2]).any():
            target.losses.add("boxes of one pixel or less, which readers of VOC take for a slip")
        target.losses.add("masks left out: VOC has none", bool(_rings(sample.outlines, index)))
    target.losses.add("crowd boxes marked difficult: VOC has no crowds", sample.crowd.sum())
    return root


# ---- COCO ------------------------------------------------------------------------------------


def _write_coco(splits: Splits, names: Mapping[Path, str], target: Target) -> None:
    """`images/<split>/` and `annotations/instances_<split>.json`."""
    for split, samples in splits.items():
        for sample in samples:
            place = target.folder / "images" / split / names[sample.path]
            _place(sample.path, place, target.placing)
        path = target.folder / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = coco_content(samples, target.names, lambda sample: names[sample.path])
        path.write_text(json.dumps(content), encoding="utf-8")


def coco_content(
    samples: Sequence[Sample], names: Sequence[str], file_name: Callable[[Sample], str]
) -> dict[str, Any]:
    """Return the tables of a COCO file: ids count from 1, categories in the order of `names`.

    `difficult` is a key of ours beside COCO's: it is written where it is true, and read again.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, sample in enumerate(samples, start=1):
        height, width = sample.size
        images.append(
            {"id": number, "file_name": file_name(sample), "height": height, "width": width}
        )
        for index, (x1, y1, x2, y2) in enumerate(sample.boxes.astype(float).tolist()):
            rings = _rings(sample.outlines, index)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(sample.labels[index]) + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(sample.crowd[index]),
                    "segmentation": [ring.astype(float).reshape(-1).tolist() for ring in rings],
                    **({"difficult": 1} if sample.difficult[index] else {}),
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


WRITERS: dict[str, Callable[[Splits, Mapping[Path, str], Target], None]] = {
    "yolo": _write_yolo,
    "voc": _write_voc,
    "coco": _write_coco,
}
