"""Batches of training and validation pictures, in an order that seed and epoch alone decide.

An item of the loader is (epoch, index, tail, size): what a picture becomes is a function of these
and of the seed, so workers hold no state and cannot miss the switch to the no-augmentation tail.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from detector import distributed
from detector.augment import place_boxes, render, sample_plan
from detector.config import Hyp
from detector.data.cache import ImageCache, scaled_size
from detector.data.rect import Size, by_shape, rect_size
from detector.data.sample import Sample
from detector.data.wrappers import numbered

# epoch, index of the sample (plus n x k when it is drawn for the k-th further time), tail, size
Item = tuple[int, int, bool, Size]


@dataclass(frozen=True, eq=False)
class Batch:
    """`images` (B, 3, H, W) uint8 BGR; `targets` one dict of boxes and labels an image."""

    images: torch.Tensor
    targets: list[dict[str, torch.Tensor]]

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory; the data loader calls this for a GPU."""
        targets = [{name: v.pin_memory() for name, v in target.items()} for target in self.targets]
        return Batch(self.images.pin_memory(), targets)

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`; images become float32, 0 to 255, channels last."""
        images = self.images.to(device, non_blocking=True).float()
        targets = [
            {name: value.to(device, non_blocking=True) for name, value in target.items()}
            for target in self.targets
        ]
        return Batch(images.contiguous(memory_format=torch.channels_last), targets)


class TrainingPictures(Dataset):
    """Augmented pictures of a list of samples."""

    def __init__(
        self, samples: Sequence[Sample], cache: ImageCache, imgsz: int, hyp: Hyp, seed: int
    ) -> None:
        self.cache, self.size, self.hyp, self.seed = cache, (imgsz, imgsz), hyp, seed
        self.shapes = [scaled_size(sample.size, imgsz) for sample in samples]
        self.boxes: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []
        for sample, shape in zip(samples, self.shapes, strict=True):
            trained = ~sample.crowd
            to_cached = np.array(shape[::-1] * 2) / np.array(sample.size[::-1] * 2)
            self.boxes.append((sample.boxes[trained] * to_cached).astype(np.float32))
            self.labels.append(sample.labels[trained])

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, item: Item) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        epoch, index, tail, size = item
        rng = np.random.default_rng([self.seed, 1, epoch, index])
        plan = sample_plan(index % len(self), self.shapes, size, self.hyp, rng, tail)
        return render(plan, self.cache), *place_boxes(plan, self.boxes, self.labels)


class EpochOrder(Sampler[list[Item]]):
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
        self.epoch, self.tail, self.skipped = 0, False, 0
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

    def __iter__(self) -> Iterator[list[Item]]:
        order = self._drawn()
        for start in range(self.skipped * self.nbs, self.count, self.nbs):
            chosen = order[start : start + self.nbs]
            size = self._size(chosen)
            own = chosen[self.rank :: self.ranks]
            for part in np.array_split(own, self.micro_batches(len(chosen))):
                yield [(self.epoch, int(index), self.tail, size) for index in part]

    def _drawn(self) -> np.ndarray:
        rng = np.random.default_rng([self.seed, 0, self.epoch])
        if self.weights is None:
            order = rng.permutation(self.count)
        else:
            order = numbered(rng.choice(self.count, self.count, p=self.weights), self.count)
        return order if self.shapes is None else by_shape(order, self.shapes, self.nbs)

    def _size(self, chosen: np.ndarray) -> Size:
        if self.shapes is None:
            return self.size
        return rect_size([self.shapes[index % self.count] for index in chosen])


def collate(items: list[tuple[np.ndarray, np.ndarray, np.ndarray]], size: tuple[int, int]) -> Batch:
    """Stack pictures (`size` if there are none); keep each one's targets as a dict of tensors."""
    pictures = np.empty((len(items), *(items[0][0].shape[:2] if items else size), 3), np.uint8)
    for picture, (image, _, _) in zip(pictures, items, strict=True):
        picture[:] = image
    images = torch.from_numpy(pictures)
    targets = [
        {"boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(labels)}
        for _, boxes, labels in items
    ]
    return Batch(images.permute(0, 3, 1, 2), targets)


class TrainingLoader:
    """Batches of an epoch; `loader.epoch(3, tail=False)` iterates over those of epoch 3.

    Worker processes, if any, live as long as the loader.
    """

    def __init__(
        self, pictures: TrainingPictures, nbs: int, batch: int, workers: int, pin_memory: bool,
        rect: bool = False,
    ) -> None:  # fmt: skip
        self.order = EpochOrder(
            len(pictures), nbs, batch, pictures.seed, distributed.rank(), distributed.world_size()
        )
        self.order.size = pictures.size
        self.order.shapes = pictures.shapes if rect else None
        self.per_step = self.order.micro_batches(nbs)  # batches; the last step may have fewer
        self.loader: DataLoader = DataLoader(
            pictures,
            batch_sampler=self.order,
            collate_fn=partial(collate, size=pictures.size),
            num_workers=workers,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            worker_init_fn=_one_thread if workers else None,
            generator=torch.Generator(),  # the loader draws a seed: not from the global stream
        )

    def __len__(self) -> int:
        return len(self.order)

    def epoch(self, epoch: int, tail: bool, skipped: int = 0) -> Iterator[Batch]:
        """Yield the batches of `epoch`, without those of its first `skipped` optimizer steps."""
        self.order.epoch, self.order.tail, self.order.skipped = epoch, tail, skipped
        yield from self.loader


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(1)
