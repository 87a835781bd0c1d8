"""The files of a prediction: pictures, videos, YOLO rows, JSON, COCO, csv, crops."""

import csv
import itertools
import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import cv2
import numpy as np

from detector.cli import new_directory
from detector.data.images import is_image
from detector.draw import write_picture
from detector.errors import DataError
from detector.image_result import Result

log = logging.getLogger("detector")

RATE = 25.0  # frames a second of a written video where its source does not tell
CSV_COLUMNS = ("image", "frame", "label", "name", "score", "x1", "y1", "x2", "y2")


@dataclass(frozen=True)
class Wanted:
    """Which files are wanted."""

    pictures: bool = True
    txt: bool = False
    json: bool = False
    coco: bool = False
    csv: bool = False
    crops: bool = False

    @property
    def any(self) -> bool:
        return any(vars(self).values())


class Writer:
    """Writes results into a folder as they come; see `open_writer`."""

    def __init__(self, folder: Path, wanted: Wanted, files: ExitStack) -> None:
        self.folder, self.wanted, self._files = folder, wanted, files
        self._taken: set[str] = set()
        self._names: dict[str, str] = {}  # of the videos
        self._videos: dict[str, cv2.VideoWriter] = {}
        self._json = self._list_file("predictions.json") if wanted.json else None
        self._coco = self._list_file("coco.json") if wanted.coco else None
        self._rows = self._table() if wanted.csv else None

    def write(self, result: Result, rate: float = 0.0) -> None:
        """Write what is wanted of one result; `rate` is that of the frames of its video."""
        name = self._name(result)
        stem = Path(name).stem + ("" if result.frame is None else f"_{result.frame:06}")
        if self.wanted.pictures:
            self._draw(result, name, rate)
        if self.wanted.txt:
            _write_rows(result, self.folder / "labels" / f"{stem}.txt")
        if self._json:
            self._json.add([result.to_dict()])
        if self._coco:
            self._coco.add(result.to_coco(stem))
        if self._rows:
            self._rows.writerows(_csv_rows(result))
        if self.wanted.crops:
            crops = zip(result.crops(), result.labels.tolist(), strict=True)
            for number, (crop, label) in enumerate(crops, start=1):
                place = self.folder / "crops" / _file_name(result.names[label])
                write_picture(place / f"{stem}-{number}.png", crop)

    def _name(self, result: Result) -> str:
        """Return the file name for a result; all frames of a video have one."""
        path = result.path or Path(result.source or "picture.png")
        if result.frame is None:
            suffix = path.suffix if is_image(path) else ".png"
            return free_name(path.stem, suffix, self._taken)
        key = str(result.path or result.source)
        if key not in self._names:
            self._names[key] = free_name(path.stem, ".mp4", self._taken)
        return self._names[key]

    def _draw(self, result: Result, name: str, rate: float) -> None:
        if result.frame is None:
            write_picture(self.folder / name, result.plot())
            return
        if name not in self._videos:
            self._videos[name] = self._video(name, result.size, rate)
        self._videos[name].write(result.plot())

    def _video(self, name: str, size: tuple[int, int], rate: float) -> cv2.VideoWriter:
        path, code = self.folder / name, cv2.VideoWriter.fourcc(*"mp4v")
        video = cv2.VideoWriter(str(path), code, rate or RATE, (size[1], size[0]))
        if not video.isOpened():
            raise DataError(f"{path}: the video cannot be written")
        self._files.callback(video.release)
        return video

    def _list_file(self, name: str) -> "_JsonList":
        file = self._files.enter_context((self.folder / name).open("w", encoding="utf-8"))
        rows = _JsonList(file)
        self._files.callback(rows.close)
        return rows

    def _table(self) -> Any:
        path = self.folder / "predictions.csv"
        rows = csv.writer(self._files.enter_context(path.open("w", newline="", encoding="utf-8")))
        rows.writerow(CSV_COLUMNS)
        return rows


@contextmanager
def open_writer(wanted_folder: Path, wanted: Wanted) -> Iterator[Writer | None]:
    """Give a writer into a new folder, None if no file is wanted; all files are whole at the end.

    Raises: ConfigError: the folder cannot be made.
    """
    if not wanted.any:
        yield None
        return
    with ExitStack() as files:
        yield Writer(new_directory(wanted_folder), wanted, files)


class _JsonList:
    """A JSON list that is written item by item."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._lead = file, "["

    def add(self, items: list[dict[str, Any]]) -> None:
        for item in items:
            self._file.write(f"{self._lead}\n{json.dumps(item)}")
            self._lead = ","

    def close(self) -> None:
        self._file.write(("[" if self._lead == "[" else "\n") + "]\n")


def free_name(stem: str, suffix: str, taken: set[str]) -> str:
    """Return a file name with a number if the stem is taken, and add it to `taken`.

    Images of several folders may have equal names, and `a.jpg` and `a.png` share `a.txt`.
    """
    for number in itertools.count(1):
        name = stem if number == 1 else f"{stem}-{number}"
        if name.lower() not in taken:
            taken.add(name.lower())
            return name + suffix
    raise AssertionError


def _file_name(text: str) -> str:
    """Return a class name that can be a folder."""
    return "".join(letter if letter.isalnum() or letter in " -_." else "_" for letter in text)


def _write_rows(result: Result, path: Path) -> None:
    """Write YOLO rows `class cx cy w h score`, in fractions of the image's sides."""
    path.parent.mkdir(exist_ok=True)
    rows = zip(result.labels, result.normalized_cxcywh, result.scores, strict=True)
    lines = [
        f"{label} {' '.join(f'{value:.6f}' for value in box)} {score:.6g}\n"
        for label, box, score in rows
    ]
    path.write_text("".join(lines), encoding="utf-8")


def _csv_rows(result: Result) -> Iterator[tuple[Any, ...]]:
    image = str(result.path or result.source)
    frame = "" if result.frame is None else result.frame
    boxes = np.round(result.boxes.astype(float), 3)
    for label, score, box in zip(result.labels.tolist(), result.scores, boxes, strict=True):
        yield image, frame, label, result.names[label], f"{score:.6g}", *box.tolist()
