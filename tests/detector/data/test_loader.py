import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detector.config import Hyp
from detector.data.cache import ImageCache
from detector.data.description import load_data, read_split
from detector.data.loader import EpochOrder, TrainingLoader, TrainingPictures, collate
from detector.data.rect import by_shape, rect_size
from detector.data.wrappers import numbered


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
    _, boxes, labels = doubled[(0, 2, False, (128, 128))]
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
    assert sorted(index for part in parts for _, index, *_ in part) == list(range(8))


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize(("nbs", "batch"), [(4, 16), (4, 1), (6, 2), (7, 3), (32, 4)])
def test_ranks_together_take_the_images_of_one_process_in_every_step(
    ranks: int, nbs: int, batch: int
) -> None:
    count = 17
    steps = [range(start, min(start + nbs, count)) for start in range(0, count, nbs)]
    alone = [index for part in EpochOrder(count, nbs, batch, seed=3) for _, index, *_ in part]
    orders = [EpochOrder(count, nbs, batch, 3, rank, ranks) for rank in range(ranks)]
    shares = [list(order) for order in orders]
    assert all(len(order) == len(share) for order, share in zip(orders, shares, strict=True))
    assert all(len(part) <= batch for share in shares for part in share)
    start = 0
    for step in steps:
        stop = start + orders[0].micro_batches(len(step))
        taken = [index for share in shares for part in share[start:stop] for _, index, *_ in part]
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


# ---- images drawn by weight


def test_weights_say_how_often_an_image_is_drawn() -> None:
    order = EpochOrder(4, 8, 8, seed=0)
    order.weights = np.array([0.5, 0.3, 0.2, 0.0])
    counts: Counter[int] = Counter()
    for epoch in range(1000):
        order.epoch = epoch
        drawn = [index % 4 for part in order for _, index, *_ in part]
        assert len(drawn) == 4
        counts.update(drawn)
    # 4000 draws: standard deviations sqrt(4000 p (1 - p)) = 32, 29, 25; five of them
    assert [counts[i] for i in range(4)] == pytest.approx([2000, 1200, 800, 0], abs=160)
    assert counts[3] == 0


def test_an_image_that_is_drawn_again_has_a_number_of_its_own() -> None:
    # image 2 three times, image 0 twice: i + 5 k for the k-th further time
    assert numbered(np.array([2, 0, 2, 4, 0, 2]), 5).tolist() == [2, 0, 7, 4, 5, 12]


def test_an_image_that_is_drawn_again_looks_different(tiny_set: Path) -> None:
    source = pictures(tiny_set, Hyp(mosaic=0))
    first, again = (source[(1, index, False, (64, 64))] for index in (3, 11))
    assert sorted(first[2]) == sorted(again[2])  # the same objects
    assert not np.array_equal(first[0], again[0])


def test_seed_epoch_and_weights_alone_decide_what_is_drawn() -> None:
    orders = [EpochOrder(20, 5, 5, seed=1) for _ in range(2)]
    for order in orders:
        order.weights = np.arange(20) / 190
    list(orders[0])
    orders[0].epoch = orders[1].epoch = 7
    assert list(orders[0]) == list(orders[1])


# ---- rectangular batches


@pytest.mark.parametrize(
    ("shapes", "scale", "size"),
    [
        ([(48, 64)], 1.0, (64, 64)),
        ([(75, 100), (60, 100)], 1.0, (96, 128)),  # 75 -> 96, 100 -> 128
        ([(96, 128)], 1.0, (96, 128)),  # multiples stay
        ([(96, 128)], 1.5, (160, 192)),  # 144 -> 160 (B-16)
        ([(160, 320)], 0.7, (128, 224)),  # 112 -> 128, 224 although 0.7 x 320 is 223.99...
        ([(1, 64)], 1.0, (32, 64)),
    ],
)
def test_a_batch_is_no_larger_than_its_images_need(
    shapes: list[tuple[int, int]], scale: float, size: tuple[int, int]
) -> None:
    assert rect_size(shapes, scale) == size


def test_a_step_has_images_of_like_shape_and_the_smallest_size() -> None:
    shapes = [(80 + i % 3, 128) if i % 5 % 2 == 0 else (128, 65 + i % 3) for i in range(17)]
    order = EpochOrder(17, 4, 2, seed=0)
    order.shapes, order.size = shapes, (128, 128)
    parts = list(order)
    assert [len(part) for part in parts] == [2] * 8 + [1]
    assert sorted(index for part in parts for _, index, *_ in part) == list(range(17))
    sizes = []
    for start in range(0, 8, 2):  # both micro-batches of a step have one size
        step = [item for part in parts[start : start + 2] for item in part]
        assert {item[3] for item in step} == {rect_size([shapes[item[1]] for item in step])}
        sizes.append(step[0][3])
    # 10 wide and 7 tall ones, one is left over: two steps of wide ones, one of tall ones, one mixed
    assert sorted(sizes) == [(96, 128), (96, 128), (128, 96), (128, 128)]


def test_runs_of_like_shape_by_hand() -> None:
    shapes = [(32, 64), (64, 32), (30, 64), (64, 31), (20, 64), (64, 32), (64, 64)]
    order = np.array([1, 0, 5, 2, 3, 4, 6])
    # padded ratios: 0, 2 and 4 are 32 x 64 (2), 1, 3 and 5 are 64 x 32 (0.5); 6 is left over.
    # Sorted, each in the given order: 1, 5 | 3, 0 | 2, 4; the runs by their first image in `order`:
    # the places are 1: 0, 5: 2 | 3: 4, 0: 1 | 2: 3, 4: 5.
    assert by_shape(order, shapes, 2).tolist() == [1, 5, 3, 0, 2, 4, 6]


def test_images_of_one_shape_come_as_without_rectangles() -> None:
    order = np.random.default_rng(0).permutation(13)
    assert by_shape(order, [(48, 64)] * 13, 4).tolist() == order.tolist()


def test_rectangular_batches_hold_whole_pictures_with_their_boxes(
    tiny_set: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_set.parent, tmp_path / "set")
    for path in sorted((tmp_path / "set" / "images").iterdir())[:4]:  # now 40 x 64
        cv2.imwrite(str(path), cv2.imread(str(path))[:40])
    text = "train: images\nval: images\nnames: [square, disc]\n"
    (tmp_path / "set" / "data.yaml").write_text(text)
    still = Hyp(mosaic=0, scale=0, translate=0, hsv_h=0, hsv_s=0, hsv_v=0, fliplr=0, flipud=0)
    samples = read_split(load_data(tmp_path / "set"), "train")
    source = TrainingPictures(samples, ImageCache(samples, 96), 96, still, 0)
    loader = TrainingLoader(source, 4, 4, workers=0, pin_memory=False, rect=True)
    batches = list(loader.epoch(1, False))
    assert sorted(tuple(batch.images.shape[2:]) for batch in batches) == [(64, 96), (96, 96)]
    boxes = np.concatenate([target["boxes"] for batch in batches for target in batch.targets])
    expected = np.concatenate([sample.boxes for sample in samples]) * 1.5  # 64 -> 96
    assert np.sort(boxes, axis=0) == pytest.approx(np.sort(expected, axis=0), abs=1e-3)
