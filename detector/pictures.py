"""Pictures of a training to look at: what the network is shown, and what it finds."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from detector.checkpoint import load_model
from detector.config import Hyp, TrainConfig
from detector.data.description import load_data, read_split
from detector.data.loader import Batch
from detector.distributed import choose_device
from detector.draw import Tile, draw_grid
from detector.families import build_family
from detector.finding import Originals, Settings, find_objects

MOST = 16  # pictures on a sheet
CELL = (320, 320)  # height and width of one, pixels
CONFIDENCE = 0.25  # least score of a detection that is shown


def draw_batch(batch: Batch, names: Sequence[str], path: Path) -> None:
    """Write a sheet of augmented training pictures with their boxes, as the network gets them."""
    tiles = []
    for number, (image, target) in enumerate(zip(batch.images, batch.targets, strict=True)):
        boxes, labels = target["boxes"].cpu().numpy(), target["labels"].cpu().numpy()
        pixels = np.ascontiguousarray(image.cpu().numpy().transpose(1, 2, 0)).astype(np.uint8)
        tiles.append(Tile(pixels, boxes, labels, None, f"{number + 1}: {len(boxes)} objects"))
    sheet = draw_grid(tiles[:MOST], names, columns=min(4, len(tiles)), cell=CELL)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), sheet)


def draw_found(checkpoint: Path, config: TrainConfig, path: Path) -> None:
    """Write a sheet of validation pictures: the objects they have, and those that are found."""
    device = choose_device(config.device)
    data = load_data(config.data)
    samples = read_split(data, "val")[: MOST // 2]
    loaded = load_model(checkpoint, device)
    family, images = build_family(loaded.model, Hyp()), Originals(samples)
    settings = Settings(config.imgsz, len(samples), conf=CONFIDENCE)
    tiles = []
    for index, found in enumerate(find_objects(family, samples, images, settings, device)):
        sample, image, name = samples[index], images[index], samples[index].path.name
        tiles.append(Tile(image, sample.boxes, sample.labels, None, f"{name}: true"))
        tiles.append(Tile(image, found.boxes, found.labels, found.scores, f"{name}: found"))
    cv2.imwrite(str(path), draw_grid(tiles, data.names, columns=4, cell=CELL))
