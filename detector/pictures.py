"""Pictures of a training to look at: what the network is shown, and what it finds."""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from detector.data.loader import Batch
from detector.data.sample import Sample
from detector.draw import Tile, draw_grid, write_picture
from detector.families import Family
from detector.finding import Originals, Settings, find_objects
from detector.metrics import Truth, count_hits

FOUND = "pictures/detections.jpg"  # in the folder of a run
MOST = 16  # pictures on a sheet of a batch
EXAMPLES = 3  # validation pictures on a sheet of detections
CELL = (320, 320)  # height and width of a picture on a sheet, pixels


def draw_batch(batch: Batch, names: Sequence[str], path: Path, most: int = MOST) -> None:
    """Write a sheet of augmented training pictures with their boxes, as the network gets them.

    At most the first `most` of them.
    """
    tiles = []
    for number, (image, target) in enumerate(zip(batch.images, batch.targets, strict=True)):
        boxes, labels = target["boxes"].cpu().numpy(), target["labels"].cpu().numpy()
        pixels = np.ascontiguousarray(image.cpu().numpy().transpose(1, 2, 0)).astype(np.uint8)
        tiles.append(
            Tile(
                pixels,
                boxes,
                labels,
                None,
                f"{number + 1}: {len(boxes)} object" + "s" * (len(boxes) != 1),
            )
        )
    _write(path, tiles[:most], names, columns=min(4, len(tiles)))


def draw_found(
    family: Family,
    samples: Sequence[Sample],
    names: Sequence[str],
    path: Path,
    settings: Settings,
    device: torch.device,
) -> None:
    """Write a sheet of validation pictures: at the left their objects, at the right what is found.

    The pictures are the same for every training on the same data. `family` is in eval mode.
    """
    shown = typical(samples)
    images, settings = Originals(shown), replace(settings, batch=max(1, len(shown)))
    predictions = find_objects(family, shown, images, settings, device)
    tiles = []
    for index, (sample, one) in enumerate(zip(shown, predictions, strict=True)):
        truth = Truth(sample.boxes, sample.labels, sample.crowd, sample.difficult)
        hits, misses, objects = count_hits(truth, one, len(names))
        image, plural = images[index], "" if objects == 1 else "s"
        true = f"true: {objects} object{plural} ({sample.path.name})"
        text = f"found: {hits} of {objects}, {misses} wrong (score {settings.conf:.2f}+)"
        tiles.append(Tile(image, sample.boxes, sample.labels, None, true))
        tiles.append(Tile(image, one.boxes, one.labels, one.scores, text))
    tallest = max((sample.size[0] / sample.size[1] for sample in shown), default=1.0)
    height = round(CELL[1] * min(max(tallest, 0.5), 1.5))
    _write(path, tiles, names, columns=2, height=height)


def typical(samples: Sequence[Sample], count: int = EXAMPLES) -> list[Sample]:
    """Return the sample with the most objects, then typical ones that show other classes.

    Typical is a number of objects near the median; of equals the first one. It depends on nothing
    but the samples.
    """
    left = [sample for sample in samples if len(sample.boxes)] or list(samples)
    if not left:
        return []
    middle = statistics.median(len(sample.boxes) for sample in left)
    chosen = [max(left, key=lambda sample: len(sample.boxes))]

    def worth(sample: Sample) -> tuple[int, float]:
        seen = {label for one in chosen for label in one.labels.tolist()}
        return len(set(sample.labels.tolist()) - seen), -abs(len(sample.boxes) - middle)

    while len(chosen) < min(count, len(left)):
        chosen.append(max((one for one in left if one not in chosen), key=worth))
    return chosen


def _write(
    path: Path, tiles: Sequence[Tile], names: Sequence[str], columns: int, height: int = CELL[0]
) -> None:
    write_picture(path, draw_grid(tiles, names, columns=columns, cell=(height, CELL[1])))
