"""Detections in COCO's result format, which COCO's own tools read.

Source: cocodataset.org, "results format".
"""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from detector.data import coco
from detector.data.description import DataConfig
from detector.data.sample import Sample
from detector.errors import DataError
from detector.metrics import Prediction


def coco_results(
    dataset: DataConfig, split: str, samples: Sequence[Sample], found: Sequence[Prediction]
) -> list[dict[str, Any]]:
    """Return detections as COCO results: bbox x, y, width, height in pixels of the image on disk.

    For a data set in COCO's format the image and category ids are its own; else an image's id is
    its file name without extension and a category's the label.

    Raises: DataError: the set is joined of several, whose ids would mix.
    """
    if dataset.parts:
        raise DataError(f"{dataset.path}: COCO results need one data set with its own classes")
    ids, categories = _ids(dataset, split, samples)
    rows = []
    for image, prediction in zip(ids, found, strict=True):
        corners = prediction.boxes.astype(float)
        bboxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        rows += [
            {"image_id": image, "category_id": categories[label], "bbox": bbox, "score": score}
            for label, bbox, score in zip(
                prediction.labels, bboxes.tolist(), prediction.scores.tolist(), strict=True
            )
        ]
    return rows


def _ids(dataset: DataConfig, split: str, samples: Sequence[Sample]) -> tuple[list[Any], list[Any]]:
    """Return the id of each sample and of each label."""
    if dataset.format != "coco":
        return [sample.id for sample in samples], list(range(dataset.num_classes))
    images: dict[tuple[str, ...], Any] = {}
    categories: dict[str, Any] = {}
    for entry in dataset.splits[split]:
        content = coco.load_coco(coco.find_json(dataset.root, entry))
        images |= {PurePath(row["file_name"]).parts: row["id"] for row in content.images}
        categories |= {str(row["name"]): row["id"] for row in content.categories}
    for entry in (entry for entries in dataset.splits.values() for entry in entries):
        for row in coco.load_coco(coco.find_json(dataset.root, entry)).categories:
            categories.setdefault(str(row["name"]), row["id"])  # a class this split does not list
    depths = sorted({len(parts) for parts in images}, reverse=True)
    ids = []
    for sample in samples:  # file_name may have folders of its own
        ends = (sample.path.parts[-depth:] for depth in depths)
        ids.append(next(images[end] for end in ends if end in images))
    unused = itertools.count(max(categories.values(), default=0) + 1)
    return ids, [categories.get(name, next(unused)) for name in dataset.names]


def write_json(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the results to a file. Raises: DataError: it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error
