"""Batches of training and validation pictures, in an order that seed and epoch alone decide.

An item of the loader is (epoch, index, tail, size): what a picture becomes is a function of these
and of the seed, so workers hold no state and cannot miss the switch to the no-augmentation tail.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset, Sampler

from detector import distributed
from detector.augment import Donors, Plan, place_boxes, sample_plan
from detector.config import Hyp, TrainConfig
from detector.data.cache import ImageCache, scaled_size
from detector.data.outlines import Outlines, keep_objects
from detector.data.rect import STRIDE, Size, by_shape, rect_size
from detector.data.sample import Sample
from detector.data.wrappers import numbered
from detector.errors import DataError
from detector.render import render
from detector.render_device import DeviceImages, PackedPlans, pack, render_batch

log = logging.getLogger(__name__)

# epoch, index of the sample (plus n x k when it is drawn for the k-th further time), tail, size
Item = tuple[int, int, bool, Size]
Pictured = tuple[np.ndarray, np.ndarray, np.ndarray]  # picture, boxes (n, 4), labels (n,)
Planned = tuple[Plan, np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Batch:
    """B training pictures and their T objects."""

    images: Tensor  # (B, 3, H, W) BGR, uint8; on the device float32
    boxes: Tensor  # (T, 4) float32 xyxy pixels
    labels: Tensor  # (T,) int64
    counts: tuple[int, ...]  # objects of each picture

    @property
    def targets(self) -> list[dict[str, Tensor]]:
        """One dict of `boxes` and `labels` a picture."""
        parts = zip(self.boxes.split(self.counts), self.labels.split(self.counts), strict=True)
        return [{"boxes": boxes, "labels": labels} for boxes, labels in parts]

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory; the data loader calls this for a GPU."""
        images, boxes, labels = self.images, self.boxes, self.labels
        return Batch(images.pin_memory(), boxes.pin_memory(), labels.pin_memory(), self.counts)

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`; images become float32, 0 to 255, channels last."""
        images = self.images.to(device, non_blocking=True).float()
        boxes = self.boxes.to(device, non_blocking=True)
        labels = self.labels.to(device, non_blocking=True)
        images = images.contiguous(memory_format=torch.channels_last)
        return Batch(images, boxes, labels, self.counts)

    def resized(self, side: int) -> "Batch":
        """Return the batch with pictures and boxes scaled so that the longer side is `side`.

        The shorter side is rounded up to a multiple of the stride.
        """
        old_height, old_width = self.images.shape[2:]
        longest = max(old_height, old_width)
        if side == longest:
            return self
        height, width = rect_size([(old_height, old_width)], side / longest)
        images = interpolate(self.images, (height, width), mode="bilinear", align_corners=False)
        boxes = self.boxes.clone()
        boxes[:, 0::2] *= width / old_width
        boxes[:, 1::2] *= height / old_height
        return replace(self, images=images, boxes=boxes)


@dataclass(frozen=True, eq=False)
class PlanBatch:
    """The plans of B training pictures, for the device that holds `sources`, and their objects."""

    plans: PackedPlans
    boxes: Tensor  # as in `Batch`
    labels: Tensor
    counts: tuple[int, ...]
    sources: DeviceImages | None = None

    def pin_memory(self) -> "PlanBatch":
        """Return the batch in page-locked memory."""
        plans, boxes, labels = self.plans, self.boxes, self.labels
        return PlanBatch(plans.pin_memory(), boxes.pin_memory(), labels.pin_memory(), self.counts)

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`, where the sources are, with its pictures drawn."""
        assert self.sources is not None and self.sources.device.type == device.type
        images = render_batch(self.plans.to(device, non_blocking=True), self.sources)
        return Batch(images, self.boxes, self.labels, self.counts).to(device)


def training_side(config: TrainConfig, step: int) -> int:
    """Return the longer side of the training pictures at an optimizer step: multi-scale training.

    Every `multi_scale_every` steps it is drawn from all multiples of the stride between
    imgsz (1 - multi_scale) and imgsz (1 + multi_scale), both included, by seed and step alone.
    """
    if not config.multi_scale:
        return config.imgsz
    low, high = (side // STRIDE for side in side_range(config))
    rng = np.random.default_rng([config.seed, 2, step // config.multi_scale_every])
    return STRIDE * int(rng.integers(low, high + 1))


def side_range(config: TrainConfig) -> tuple[int, int]:
    """Return the smallest and the largest side of multi-scale training, multiples of the stride."""
    low = math.ceil(config.imgsz * (1 - config.multi_scale) / STRIDE - 1e-6)
    high = math.floor(config.imgsz * (1 + config.multi_scale) / STRIDE + 1e-6)
    return STRIDE * low, STRIDE * high


class TrainingPictures(Dataset):
    """Augmented pictures of a list of samples."""

    def __init__(
        self, samples: Sequence[Sample], cache: ImageCache, imgsz: int, hyp: Hyp, seed: int
    ) -> None:
        self.cache, self.size, self.hyp, self.seed = cache, (imgsz, imgsz), hyp, seed
        self.shapes = [scaled_size(sample.size, imgsz) for sample in samples]
        self.boxes: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []
        outlines: list[Outlines | None] = []
        for sample, shape in zip(samples, self.shapes, strict=True):
            trained = ~sample.crowd
            ratios = np.array(shape[::-1]) / np.array(sample.size[::-1])  # x, y
            self.boxes.append((sample.boxes[trained] * np.tile(ratios, 2)).astype(np.float32))
            self.labels.append(sample.labels[trained])
            own = keep_objects(sample.outlines, trained) if hyp.copy_paste else None
            outlines.append(own and own.scaled(*ratios))
        givers = np.array([i for i, own in enumerate(outlines) if own is not None], dtype=np.int64)
        self.donors = Donors(self.boxes, outlines, givers) if len(givers) else None
        if hyp.copy_paste and self.donors is None:
            log.warning("copy_paste=%g has no effect: the data has no masks", hyp.copy_paste)

    def __len__(self) -> int:
        return len(self.shapes)

    def plan(self, item: Item) -> Planned:
        """Return the plan of a picture with its boxes (n, 4) and labels (n,)."""
        epoch, index, tail, size = item
        rng = np.random.default_rng([self.seed, 1, epoch, index])
        source = index % len(self)
        plan = sample_plan(source, self.shapes, size, self.hyp, rng, tail, self.donors)
        return plan, *place_boxes(plan, self.boxes, self.labels)

    def __getitem__(self, item: Item) -> Pictured:
        plan, boxes, labels = self.plan(item)
        return render(plan, self.cache), boxes, labels


class TrainingPlans(Dataset):
    """The same pictures as plans, for a device to draw."""

    def __init__(self, pictures: TrainingPictures) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, item: Item) -> Planned:
        return self.pictures.plan(item)


class EpochOrder:
    """The micro-batches of one epoch, drawn from (seed, epoch): a permutation, or with `weights`
    as many draws, each image with this probability.

    It is cut into optimizer steps of exactly `nbs` images (the last may be shorter). A step's
    images are dealt to the ranks, each rank's cut into equal micro-batches of at most `batch`. All
    ranks have equally many micro-batches; some may be empty in a short step. With `shapes` a step
    has images of like shape, and all its pictures the smallest size that holds them, not `size`.
    """

    def __init__(
        self, count: int, nbs: int, batch: int, seed: int, rank: int = 0, ranks: int = 1
    ) -> None:
        self.count, self.nbs, self.batch, self.seed = count, nbs, batch, seed
        self.rank, self.ranks = rank, ranks
        self.size: Size = (0, 0)
        self.shapes: Sequence[Size] | None = None
        self.weights: np.ndarray | None = None  # (n,), sum 1

    def __len__(self) -> int:
        full, rest = divmod(self.count, self.nbs)
        return full * self.micro_batches(self.nbs) + self.micro_batches(rest)

    def micro_batches(self, images: int) -> int:
        """Return the number of micro-batches of a step of `images` images."""
        largest_share = -(-images // self.ranks)
        return -(-largest_share // self.batch)

    def parts(self, epoch: int, tail: bool, skipped: int = 0) -> Iterator[list[Item]]:
        """Yield the micro-batches of `epoch`, without those of its first `skipped` steps."""
        order = self._drawn(epoch)
        for start in range(skipped * self.nbs, self.count, self.nbs):
            chosen = order[start : start + self.nbs]
            size = self._size(chosen)
            own = chosen[self.rank :: self.ranks]
            for part in np.array_split(own, self.micro_batches(len(chosen))):
                yield [(epoch, int(index), tail, size) for index in part]

    def _drawn(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, 0, epoch])
        if self.weights is None:
            order = rng.permutation(self.count)
        else:
            order = numbered(rng.choice(self.count, self.count, p=self.weights), self.count)
        return order if self.shapes is None else by_shape(order, self.shapes, self.nbs)

    def _size(self, chosen: np.ndarray) -> Size:
        if self.shapes is None:
            return self.size
        return rect_size([self.shapes[index % self.count] for index in chosen])


class EndlessOrder(Sampler[list[Item]]):
    """The micro-batches from `begin` (epoch, tail, skipped steps) on, one epoch after the other.

    So that workers go on with the next epoch while the last one is evaluated. With weights, which
    may change in between, it is one epoch alone.
    """

    def __init__(self, order: EpochOrder) -> None:
        self.order, self.begin = order, (0, False, 0)

    def __iter__(self) -> Iterator[list[Item]]:
        epoch, tail, skipped = self.begin
        yield from self.order.parts(epoch, tail, skipped)
        while self.order.weights is None:
            epoch += 1
            yield from self.order.parts(epoch, tail)


def collate(items: Sequence[Pictured], size: Size) -> Batch:
    """Stack pictures (`size` if there are none) and join their targets."""
    pictures = np.empty((len(items), *(items[0][0].shape[:2] if items else size), 3), np.uint8)
    for picture, (image, _, _) in zip(pictures, items, strict=True):
        picture[:] = image
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    return Batch(images, *_join_targets(items))


def collate_plans(items: Sequence[Planned], size: Size) -> PlanBatch:
    """Pack plans (pictures of `size` if there are none) and join their targets."""
    plans = [plan for plan, _, _ in items]
    return PlanBatch(pack(plans, plans[0].size if plans else size), *_join_targets(items))


def _join_targets(items: Sequence[Pictured | Planned]) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(boxes for _, boxes, _ in items)])
    labels = np.concatenate([np.zeros(0, np.int64), *(labels for _, _, labels in items)])
    counts = tuple(len(labels) for _, _, labels in items)
    return torch.from_numpy(boxes), torch.from_numpy(labels), counts


class TrainingLoader:
    """Batches of an epoch; `loader.epoch(3, tail=False)` iterates over those of epoch 3.

    Worker processes, if any, live as long as the loader. With `sources` they only plan, and the
    pictures are drawn on the device that holds the sources.
    """

    def __init__(
        self,
        pictures: TrainingPictures,
        nbs: int,
        batch: int,
        workers: int,
        pin_memory: bool,
        rect: bool = False,
        sources: DeviceImages | None = None,
    ) -> None:
        self.order = EpochOrder(
            len(pictures), nbs, batch, pictures.seed, distributed.rank(), distributed.world_size()
        )
        self.order.size = pictures.size
        self.order.shapes = pictures.shapes if rect else None
        self.per_step = self.order.micro_batches(nbs)  # batches; the last step may have fewer
        self.sources = sources
        self._endless = EndlessOrder(self.order)
        self._batches: Iterator[Batch | PlanBatch] = iter(())
        self._next: tuple[int, bool, int] | None = None  # what the next batch begins, if anything
        join: Callable[..., Batch | PlanBatch] = collate if sources is None else collate_plans
        self.loader: DataLoader = DataLoader(
            pictures if sources is None else TrainingPlans(pictures),
            batch_sampler=self._endless,
            collate_fn=partial(join, size=pictures.size),
            num_workers=workers,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            worker_init_fn=_one_thread if workers else None,
            generator=torch.Generator(),  # the loader draws a seed: not from the global stream
        )

    def __len__(self) -> int:
        return len(self.order)

    def epoch(self, epoch: int, tail: bool, skipped: int = 0) -> Iterator[Batch | PlanBatch]:
        """Yield the batches of `epoch`, without those of its first `skipped` optimizer steps.

        With sources a batch is drawn when it moves to the device. The workers then go on with the
        next epoch, as it looks now.

        Raises:
            DataError: an image cannot be read.
        """
        begin, weighted = (epoch, tail, skipped), self.order.weights is not None
        if self._next != begin or weighted:
            self._endless.begin = begin
            self._batches = iter(self.loader)
        self._next = None
        for _ in range(len(self) - skipped * self.per_step):
            batch = self._take()
            yield replace(batch, sources=self.sources) if isinstance(batch, PlanBatch) else batch
        self._next = None if weighted else (epoch + 1, tail, 0)

    def close(self) -> None:
        """End the workers, if any; another epoch would start new ones."""
        self._batches, self._next = iter(()), None
        self.loader._iterator = None  # where a loader with persistent workers keeps them

    def _take(self) -> Batch | PlanBatch:
        try:
            return next(self._batches)
        except DataError as error:  # from a worker it comes with a traceback in its text
            reason = str(error).strip().splitlines()[-1]
            error.__traceback__ = None  # its frames hold the workers
            self.close()
            raise DataError(reason.removeprefix(f"{DataError.__module__}.DataError: ")) from None


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
