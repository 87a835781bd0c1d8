"""Finding the objects of many images: settings, batches, boxes in pixels of the images on disk.

Letters: B images of a batch, n objects of an image. Training, evaluation and the pictures of a run
use the same letterbox and the same code, so they give the same numbers.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from detector.augment import Images, letterbox
from detector.boxes import Detections
from detector.data.cache import scaled_size
from detector.data.images import read_image
from detector.data.rect import Size, rect_size
from detector.data.sample import Sample
from detector.distributed import gathered, rank, world_size
from detector.errors import ConfigError, did_you_mean
from detector.metrics import Prediction
from detector.nms import KINDS

LOADER_THREADS = 2  # decoding runs beside the network
BATCHES_AHEAD = 2

Group = tuple[list[int], Size]  # the images of a batch, and the (height, width) of its pictures


class Detector(Protocol):
    """What finds objects: a `Family` or a `Backend`."""

    def detect(self, images: Tensor, conf: float, iou: float, max_det: int) -> list[Detections]:
        """Return the detections of each image, boxes in input pixels."""


class Originals:
    """The images of `samples` as stored on disk, decoded when they are asked for."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples

    def __getitem__(self, index: int, /) -> np.ndarray:
        return read_image(self._samples[index].path)


@dataclass(frozen=True)
class Settings:
    """How detections are made for an evaluation. Raises: ConfigError for values out of range."""

    imgsz: int = 0  # side of the square input, pixels; 0: what the weights were made for
    batch: int = 16
    conf: float = 0.001  # lower scores are dropped
    iou: float = 0.65  # of NMS
    max_det: int = 300  # per image; of these, 100 per class and image count
    rect: bool = False  # images of like shape together, padded to multiples of 32 only
    nms: str = "class"  # a kind of nms.py
    augment: bool = False  # several views of each picture, joined (test-time augmentation)

    def __post_init__(self) -> None:
        if self.imgsz < 0 or self.imgsz % 32:
            nearest = max(32, round(self.imgsz / 32) * 32)
            raise ConfigError(f"imgsz={self.imgsz} must be a multiple of 32: try {nearest}")
        for name in ("batch", "max_det"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("conf", "iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be 0 to 1")
        if self.nms not in KINDS:
            raise ConfigError(f"nms={self.nms} is no kind of NMS{did_you_mean(self.nms, KINDS)}")

    def sized(self, imgsz: int) -> "Settings":
        """Return the settings with an input side: their own, or else `imgsz`."""
        return replace(self, imgsz=self.imgsz or imgsz)


def find_objects(
    detector: Detector,
    samples: Sequence[Sample],
    images: Images,
    settings: Settings,
    device: torch.device,
) -> list[Prediction]:
    """Return what `detector` finds in each image, in pixels of the image on disk."""
    found = _found(detector, samples, images, settings, device)
    return [prediction for _, prediction in sorted(found, key=itemgetter(0))]


def find_objects_together(
    detector: Detector,
    samples: Sequence[Sample],
    images: Images,
    settings: Settings,
    device: torch.device,
) -> list[Prediction]:
    """Find objects like `find_objects`, on all ranks (collective).

    The ranks take whole batches in turn, so every image is seen as by one process; rank 0 returns
    what all of them found, the others an empty list.
    """
    shares = _found(detector, samples, images, settings, device, rank(), world_size())
    in_order = sorted((share for ranks in gathered(shares) for share in ranks), key=itemgetter(0))
    return [prediction for _, prediction in in_order]


def _found(
    detector: Detector,
    samples: Sequence[Sample],
    images: Images,
    settings: Settings,
    device: torch.device,
    first: int = 0,
    every: int = 1,
) -> list[tuple[int, Prediction]]:
    """Return the index and the prediction of each image of every n-th batch from `first` on."""
    sizes = [sample.size for sample in samples]
    groups = batches_of(sizes, settings)[first::every]
    shares: list[tuple[int, Prediction]] = []
    batches = letterboxed_batches(images, groups)
    for (indices, _), pictures in zip(groups, batches, strict=True):
        inputs = pictures.to(device).float()
        detections = detector.detect(inputs, settings.conf, settings.iou, settings.max_det)
        for index, one in zip(indices, detections, strict=True):
            shares.append((index, in_image_pixels(one, sizes[index], settings.imgsz)))
    return shares


def batches_of(sizes: Sequence[Size], settings: Settings) -> list[Group]:
    """Return the batches of images of these sizes: in their order, or with `rect` by shape."""
    shapes = [scaled_size(size, settings.imgsz) for size in sizes]
    order = list(range(len(sizes)))
    if settings.rect:
        order.sort(key=lambda index: shapes[index][1] / shapes[index][0])
    starts = range(0, len(order), settings.batch)
    parts = [order[start : start + settings.batch] for start in starts]
    square = (settings.imgsz, settings.imgsz)
    return [
        (part, rect_size([shapes[index] for index in part]) if settings.rect else square)
        for part in parts
    ]


def in_image_pixels(detections: Detections, size: tuple[int, int], imgsz: int) -> Prediction:
    """Undo the letterbox: boxes in pixels of an image of `size` (height, width), clipped to it.

    Each axis has its own scale, because the letterbox rounds the sides to whole pixels.
    """
    height, width = scaled_size(size, imgsz)
    boxes = detections.boxes.cpu().numpy() * np.tile([size[1] / width, size[0] / height], 2)
    boxes = boxes.clip(0, np.array([size[1], size[0], size[1], size[0]])).astype(np.float32)
    return Prediction(boxes, detections.scores.cpu().numpy(), detections.labels.cpu().numpy())


def letterboxed_batches(images: Images, groups: Sequence[Group]) -> Iterator[Tensor]:
    """Yield letterboxed batches (B, 3, H, W) uint8, loaded a little ahead by threads."""

    def load(group: Group) -> Tensor:
        indices, size = group
        pictures = np.stack([letterbox(images[index], size)[0] for index in indices])
        return torch.from_numpy(pictures).permute(0, 3, 1, 2)

    with ThreadPoolExecutor(LOADER_THREADS) as pool:
        pending: deque[Future[Tensor]] = deque()
        for group in groups:
            pending.append(pool.submit(load, group))
            if len(pending) > BATCHES_AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
