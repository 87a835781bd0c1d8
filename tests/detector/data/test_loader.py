from pathlib import Path

import numpy as np
import pytest
import torch

from detector.config import Hyp
from detector.data.cache import ImageCache
from detector.data.description import load_data, read_split
from detector.data.loader import EpochOrder, TrainingLoader, TrainingPictures, collate


def pictures(data: Path, hyp: Hyp, seed: int = 0) -> TrainingPictures:
    samples = read_split(load_data(data), "train")
    return TrainingPictures(samples, ImageCache(samples, 64), 64, hyp, seed)


def epoch_images(loader: TrainingLoader, epoch: int, tail: bool = False) -> torch.Tensor:
    return torch.cat([batch.images for batch in loader.epoch(epoch, tail)])


def test_an_epoch_shows_every_picture_once(tiny_set: Path) -> None:
    still = Hyp(mosaic=0, scale=0, translate=0, hsv_h=0, hsv_s=0, hsv_v=0, fliplr=0, flipud=0)
    source = pictures(tiny_set, still)
    loader = TrainingLoader(source, 3, 16, workers=0, pin_memory=False)
    assert len(loader) == 3
    shown = {image.numpy().tobytes() for image in epoch_images(loader, 1)}
    stored = {np.ascontiguousarray(source.cache[i].transpose(2, 0, 1)).tobytes() for i in range(8)}
    assert shown == stored


def test_seed_and_epoch_alone_decide_an_epoch(tiny_set: Path) -> None:
    first = TrainingLoader(pictures(tiny_set, Hyp()), 3, 16, workers=0, pin_memory=False)
    second = TrainingLoader(pictures(tiny_set, Hyp()), 3, 16, workers=0, pin_memory=False)
    epoch_images(first, 1)  # what was drawn before does not matter
    assert torch.equal(epoch_images(first, 2), epoch_images(second, 2))
    assert not torch.equal(epoch_images(first, 2), epoch_images(first, 3))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_workers_give_the_same_epoch_and_see_the_tail(tiny_set: Path) -> None:  # B-42
    hyp = Hyp(mosaic=1.0)
    alone = TrainingLoader(pictures(tiny_set, hyp), 3, 16, workers=0, pin_memory=False)
    helped = TrainingLoader(pictures(tiny_set, hyp), 3, 16, workers=1, pin_memory=False)
    for epoch, tail in ((1, False), (2, True)):
        assert torch.equal(epoch_images(alone, epoch, tail), epoch_images(helped, epoch, tail))


def test_boxes_follow_a_picture_that_is_scaled(tiny_set: Path) -> None:
    samples = read_split(load_data(tiny_set), "train")
    still = Hyp(mosaic=0, scale=0, translate=0, fliplr=0, flipud=0)
    doubled = TrainingPictures(samples, ImageCache(samples, 128), 128, still, 0)
    _, boxes, labels = doubled[(0, 2, False)]
    assert boxes == pytest.approx(samples[2].boxes * 2, abs=1e-3)
    assert labels.tolist() == samples[2].labels.tolist()


@pytest.mark.parametrize(
    ("nbs", "batch", "sizes"),
    [(5, 4, [3, 2, 3]), (8, 3, [3, 3, 2]), (3, 16, [3, 3, 2]), (24, 16, [8]), (6, 4, [3, 3, 2])],
)
def test_a_step_takes_exactly_the_nominal_batch_in_equal_parts(
    nbs: int, batch: int, sizes: list[int]
) -> None:
    order = EpochOrder(8, nbs, batch, seed=0)
    parts = list(order)
    assert [len(part) for part in parts] == sizes
    assert len(order) == len(sizes)
    assert sorted(index for part in parts for _, index, _ in part) == list(range(8))


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize(("nbs", "batch"), [(4, 16), (4, 1), (6, 2), (7, 3), (32, 4)])
def test_ranks_together_take_the_images_of_one_process_in_every_step(
    ranks: int, nbs: int, batch: int
) -> None:
    count = 17
    steps = [range(start, min(start + nbs, count)) for start in range(0, count, nbs)]
    alone = [index for part in EpochOrder(count, nbs, batch, seed=3) for _, index, _ in part]
    orders = [EpochOrder(count, nbs, batch, 3, rank, ranks) for rank in range(ranks)]
    shares = [list(order) for order in orders]
    assert all(len(order) == len(share) for order, share in zip(orders, shares, strict=True))
    assert all(len(part) <= batch for share in shares for part in share)
    start = 0
    for step in steps:
        stop = start + orders[0].micro_batches(len(step))
        taken = [index for share in shares for part in share[start:stop] for _, index, _ in part]
        assert sorted(taken) == sorted(alone[position] for position in step)
        sizes = [sum(len(part) for part in share[start:stop]) for share in shares]
        assert max(sizes) - min(sizes) <= 1
        start = stop
    assert all(len(share) == start for share in shares)


def test_a_rank_without_images_gets_an_empty_batch() -> None:
    # 5 images in one step of 8 for 6 ranks: the sixth has none, and still takes part.
    parts = list(EpochOrder(5, 8, 4, seed=0, rank=5, ranks=6))
    assert parts == [[]]
    batch = collate([], (64, 96))
    assert batch.images.shape == (0, 3, 64, 96)
    assert batch.targets == []
