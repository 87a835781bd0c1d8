"""Detections in VOC's result format: a file `comp4_det_test_<class>.txt` of each class.

A row is `image score xmin ymin xmax ymax`. VOC counts pixels from 1 and both corners are inside, so
xmin = x1 + 1, ymin = y1 + 1, xmax = x2, ymax = y2. Scores and corners have all their digits:
rounded scores merge ranks (B-56). An image is its whole file name without extension (B-57).

Source: VOCdevkit 2012, "devkit_doc", section 8.2.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from detector.data.labels import read_lines
from detector.data.sample import Sample
from detector.errors import DataError
from detector.matching import Prediction

NAME = "comp4_det_test_{}.txt"  # competition 4: detection, trained on any data


def write_voc_results(
    folder: Path, samples: Sequence[Sample], found: Sequence[Prediction], names: Sequence[str]
) -> list[Path]:
    """Write one file a class, also for a class that was not found; return the paths.

    Raises: DataError: a class name that is no file name, two images of one name, or a folder that
    cannot be written.
    """
    _check(folder, samples, names)
    rows: list[list[str]] = [[] for _ in names]
    for sample, one in zip(samples, found, strict=True):
        corners = one.boxes.astype(np.float64) + np.array([1.0, 1.0, 0.0, 0.0])
        for label, score, box in zip(
            one.labels.tolist(), one.scores.tolist(), corners.tolist(), strict=True
        ):
            numbers = " ".join(f"{value:.9g}" for value in (score, *box))
            rows[label].append(f"{sample.id} {numbers}\n")
    paths = [folder / NAME.format(name) for name in names]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, lines in zip(paths, rows, strict=True):
            path.write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror}") from error
    return paths


def _check(folder: Path, samples: Sequence[Sample], names: Sequence[str]) -> None:
    for name in names:
        if "/" in name or "\\" in name:
            raise DataError(f"{folder}: the class {name!r} cannot be part of a file name")
    stems: dict[str, Path] = {}
    for sample in samples:
        if any(letter.isspace() for letter in sample.id):
            raise DataError(f"{sample.path}: VOC results are split at spaces; rename the image")
        first = stems.setdefault(sample.id, sample.path)
        if first != sample.path:
            raise DataError(f"{sample.path}: VOC results would mix it with {first}: rename one")


def read_voc_results(
    folder: Path, samples: Sequence[Sample], names: Sequence[str]
) -> list[Prediction]:
    """Return what the files of a folder say of each sample, in the order of the samples.

    A class without a file was not found. Raises: DataError: no file at all, a bad row (file:line),
    or an image that is not among the samples.
    """
    paths = [folder / NAME.format(name) for name in names]
    if not any(path.is_file() for path in paths):
        raise DataError(f"{folder}: holds no {paths[0].name} nor that of another class")
    index = {sample.id: place for place, sample in enumerate(samples)}
    tables: list[list[tuple[float, ...]]] = [[] for _ in samples]
    for label, path in enumerate(paths):
        for number, line in read_lines(path) if path.is_file() else []:
            image, *words = line.rsplit(maxsplit=5)
            try:
                score, xmin, ymin, xmax, ymax = map(float, words)
                tables[index[image]].append((xmin - 1, ymin - 1, xmax, ymax, score, label))
            except ValueError as error:
                message = "a row is `image score xmin ymin xmax ymax`"
                raise DataError(f"{path}:{number}: {message}") from error
            except KeyError as error:
                raise DataError(f"{path}:{number}: {image} is no image of the split") from error
    arrays = [np.array(rows, np.float64).reshape(-1, 6) for rows in tables]
    return [Prediction(a[:, :4], a[:, 4], a[:, 5].astype(np.int64)) for a in arrays]
