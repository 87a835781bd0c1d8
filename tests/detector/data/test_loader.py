import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detector.config import Hyp, TrainConfig
from detector.data.cache import ImageCache
from detector.data.description import load_data, read_split
from detector.data.loader import (
    Batch,
    EpochOrder,
    TrainingLoader,
    TrainingPictures,
    collate,
    collate_plans,
    training_side,
)
from detector.data.outlines import pack_outlines
from detector.data.rect import by_shape, rect_size
from detector.data.wrappers import numbered
from detector.errors import DataError
from detector.render_device import DeviceImages

NONE = torch.zeros(0, dtype=torch.int64)


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


@pytest.mark.parametrize("where", ["disk", "none"])
def test_threads_draw_what_one_thread_draws(tiny_set: Path, where: str) -> None:
    samples, before = read_split(load_data(tiny_set), "train"), torch.get_num_threads()
    epochs = []
    for threads in (1, 3):
        cache = ImageCache(samples, 64, where=where)
        source = TrainingPictures(samples, cache, 64, Hyp(mosaic=1, mixup=1), 0)
        loader = TrainingLoader(source, 8, 4, workers=0, pin_memory=False)
        torch.set_num_threads(threads)
        try:
            epochs.append(list(loader.epoch(1, tail=False)))
        finally:
            torch.set_num_threads(before)
    for one, three in zip(*epochs, strict=True):
        assert torch.equal(one.images, three.images) and torch.equal(one.boxes, three.boxes)
        assert torch.equal(one.labels, three.labels) and one.counts == three.counts


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork and threads
def test_workers_give_the_same_epochs_and_see_the_tail_and_a_jump(tiny_set: Path) -> None:
    # B-42: the workers live on and are two batches ahead each: epoch 2 is begun with mosaic when
    # the tail is asked for. B-43: after a resume, epoch 5 is epoch 5. An epoch may be left early.
    hyp = Hyp(mosaic=1.0)
    alone = TrainingLoader(pictures(tiny_set, hyp), 3, 16, workers=0, pin_memory=False)
    helped = TrainingLoader(pictures(tiny_set, hyp), 3, 16, workers=2, pin_memory=False)
    pids = []
    for epoch, tail in ((1, False), (2, True), (3, True), (5, False), (6, False)):
        expected = TrainingLoader(pictures(tiny_set, hyp), 3, 16, 0, False)
        images = epoch_images(expected, epoch, tail)
        assert torch.equal(epoch_images(alone, epoch, tail), images)
        assert torch.equal(epoch_images(helped, epoch, tail), images)
        pids.append([worker.pid for worker in helped.loader._iterator._workers])
        next(helped.epoch(epoch, tail))
    assert all(pid == pids[0] for pid in pids)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_next_epoch_is_prepared_while_the_last_one_is_evaluated(tiny_set: Path) -> None:
    loader = TrainingLoader(pictures(tiny_set, Hyp()), 3, 16, workers=1, pin_memory=False)
    list(loader.epoch(1, False))
    sent = loader.loader._iterator._send_idx  # tasks given to the worker so far
    assert sent > len(loader)
    list(loader.epoch(2, False))  # and they are used, not made again
    assert loader.loader._iterator._rcvd_idx == 2 * len(loader)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_goes_on_after_its_first_steps(tiny_set: Path, workers: int) -> None:
    whole = TrainingLoader(pictures(tiny_set, Hyp()), 3, 2, workers, pin_memory=False)
    rest = TrainingLoader(pictures(tiny_set, Hyp()), 3, 2, workers, pin_memory=False)
    list(whole.epoch(1, False))
    expected = [batch.images for batch in whole.epoch(2, False)]  # 2, 2, 1 micro-batches
    for epoch in (2, 3):
        skipped = 3 - epoch  # into epoch 2 after its first step, into epoch 3 as usual
        found = [batch.images for batch in rest.epoch(epoch, False, skipped)]
        assert len(found) == 5 - 2 * skipped
        wanted = expected[2:] if skipped else [batch.images for batch in whole.epoch(3, False)]
        assert all(torch.equal(one, two) for one, two in zip(found, wanted, strict=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_weights_that_change_after_an_epoch_are_used_in_the_next(tiny_set: Path) -> None:
    helped = TrainingLoader(pictures(tiny_set, Hyp()), 3, 2, workers=1, pin_memory=False)
    alone = TrainingLoader(pictures(tiny_set, Hyp()), 3, 2, workers=0, pin_memory=False)
    for epoch, favourite in enumerate([None, 2, 5, None]):
        weights = None if favourite is None else np.eye(8)[favourite]
        helped.order.weights = alone.order.weights = weights
        expected = epoch_images(alone, epoch)
        assert torch.equal(epoch_images(helped, epoch), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_lost_is_named_in_one_line(
    tiny_set: Path, tmp_path: Path, workers: int
) -> None:
    samples = read_split(load_data(tiny_set), "train")
    gone = [*samples[1:], replace(samples[0], path=tmp_path / "gone.png")]
    source = TrainingPictures(gone, ImageCache(gone, 64, where="none"), 64, Hyp(), 0)
    with pytest.raises(DataError) as caught:
        list(TrainingLoader(source, 3, 16, workers, False).epoch(1, False))
    assert str(caught.value) == f"{tmp_path}/gone.png: cannot read the image: {os.strerror(2)}"


@pytest.mark.parametrize("where", ["none", "ram", "disk"])
def test_pictures_are_the_same_wherever_images_are_kept_and_do_not_change_them(
    tiny_set: Path, where: str
) -> None:  # B-27
    samples = read_split(load_data(tiny_set), "train")
    strong = Hyp(hsv_h=0.5, hsv_s=1, hsv_v=1)
    cache = ImageCache(samples, 64, where=where)
    before = [cache[index].copy() for index in range(8)]
    loader = TrainingLoader(TrainingPictures(samples, cache, 64, strong, 0), 3, 16, 0, False)
    expected = TrainingLoader(pictures(tiny_set, strong), 3, 16, 0, False)
    assert torch.equal(epoch_images(loader, 1), epoch_images(expected, 1))
    assert all(np.array_equal(cache[index], image) for index, image in enumerate(before))


def test_a_device_draws_the_pictures_of_the_workers(tiny_set: Path) -> None:
    hyp = Hyp(mosaic=0.7, mixup=0.5, degrees=20, shear=5, perspective=0.0005, hsv_h=0.1)
    source = pictures(tiny_set, hyp)
    store = DeviceImages.load(source.cache, torch.device("cpu"))
    workers = TrainingLoader(source, 4, 3, 0, False)
    device = TrainingLoader(source, 4, 3, 0, False, sources=store)
    expected_batches = list(workers.epoch(1, False))
    source.cache = None  # no image is touched from here on
    for batch, expected in zip(device.epoch(1, False), expected_batches, strict=True):
        drawn = batch.to(torch.device("cpu"))
        assert (drawn.images - expected.images.float()).abs().mean() < 2
        assert drawn.counts == expected.counts
        assert torch.equal(drawn.boxes, expected.boxes)
        assert torch.equal(drawn.labels, expected.labels)


def test_copy_paste_acts_where_there_are_masks_and_before_the_tail(
    tiny_set: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = read_split(load_data(tiny_set), "train")
    rings = [
        [np.array([[x1, y1], [x2, y1], [x2, y2]])] for x1, y1, x2, y2 in samples[3].boxes.tolist()
    ]
    masked = [*samples[:3], replace(samples[3], outlines=pack_outlines(rings)), *samples[4:]]
    shown = {}
    for name, chosen in (("masked", masked), ("plain", samples)):
        for share in (0, 1):
            hyp = Hyp(copy_paste=share)
            source = TrainingPictures(chosen, ImageCache(chosen, 64), 64, hyp, 0)
            loader = TrainingLoader(source, 4, 4, 0, False)
            for tail in (False, True):
                batches = list(loader.epoch(1, tail))
                images = torch.cat([batch.images for batch in batches])
                shown[name, share, tail] = images, torch.cat([batch.boxes for batch in batches])
    images, boxes = shown["masked", 1, False]
    assert not torch.equal(images, shown["masked", 0, False][0])
    assert len(boxes) > len(shown["masked", 0, False][1])
    assert torch.equal(shown["masked", 1, True][0], shown["masked", 0, True][0])
    for tail in (False, True):
        assert torch.equal(shown["plain", 1, tail][0], shown["plain", 0, tail][0])
    assert caplog.messages == ["copy_paste=1 has no effect: the data has no masks"]


def test_a_set_of_one_image_and_one_without_objects_work(tiny_set: Path) -> None:
    first = read_split(load_data(tiny_set), "train")[0]
    empty = replace(
        first, boxes=first.boxes[:0], labels=first.labels[:0], crowd=first.crowd[:0],
        difficult=first.difficult[:0],
    )  # fmt: skip
    hyp = Hyp(mosaic=1, mixup=1, copy_paste=1)
    for sample, most in ((first, 99), (empty, 0)):
        source = TrainingPictures([sample], ImageCache([sample], 64), 64, hyp, 0)
        store = DeviceImages.load(source.cache, torch.device("cpu"))
        for sources in (None, store):
            (batch,) = TrainingLoader(source, 4, 4, 0, False, sources).epoch(1, False)
            assert batch.to(torch.device("cpu")).images.shape == (1, 3, 64, 64)
            assert len(batch.boxes) <= most


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
    parts = list(order.parts(1, False))
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
    whole = EpochOrder(count, nbs, batch, seed=3)
    alone = [index for part in whole.parts(1, False) for _, index, *_ in part]
    orders = [EpochOrder(count, nbs, batch, 3, rank, ranks) for rank in range(ranks)]
    shares = [list(order.parts(1, False)) for order in orders]
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
    parts = list(EpochOrder(5, 8, 4, seed=0, rank=5, ranks=6).parts(1, False))
    assert parts == [[]]
    batch = collate([], (64, 96))
    assert batch.images.shape == (0, 3, 64, 96)
    assert batch.targets == []
    source = DeviceImages(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.ones(1, 2), NONE)
    batch = replace(collate_plans([], (64, 96)), sources=source).to(torch.device("cpu"))
    assert batch.targets == []
    assert batch.resized(128).images.shape == (0, 3, 96, 128)


# ---- images drawn by weight


def test_weights_say_how_often_an_image_is_drawn() -> None:
    order = EpochOrder(4, 8, 8, seed=0)
    order.weights = np.array([0.5, 0.3, 0.2, 0.0])
    counts: Counter[int] = Counter()
    for epoch in range(1000):
        drawn = [index % 4 for part in order.parts(epoch, False) for _, index, *_ in part]
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
    list(orders[0].parts(1, False))
    assert list(orders[0].parts(7, False)) == list(orders[1].parts(7, False))


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
    parts = list(order.parts(1, False))
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


@pytest.mark.parametrize(
    ("imgsz", "spread", "sides"),
    [
        (320, 0.2, [256, 288, 320, 352, 384]),  # 320 x 0.8 = 256, 320 x 1.2 = 384
        (64, 0.5, [32, 64, 96]),
        (64, 0.9, [32, 64, 96]),  # 6.4 rounds up to 32, 121.6 down to 96
        (416, 0.05, [416]),  # 395.2 to 436.8: no other multiple of 32
        (320, 0.0, [320]),
    ],
)
def test_training_sides_reach_both_ends(imgsz: int, spread: float, sides: list[int]) -> None:
    config = TrainConfig(imgsz=imgsz, multi_scale=spread, multi_scale_every=3)
    drawn = [training_side(config, step) for step in range(600)]
    assert sorted(set(drawn)) == sides
    assert all(drawn[step] == drawn[step - step % 3] for step in range(600))
    other = TrainConfig(imgsz=imgsz, multi_scale=spread, multi_scale_every=3, seed=1)
    assert len(sides) == 1 or [training_side(other, step) for step in range(600)] != drawn


def test_resizing_scales_boxes_exactly_and_the_picture_with_them() -> None:
    image = torch.zeros(2, 3, 64, 128)
    image[0, :, 16:32, 32:96] = 200
    boxes = torch.tensor([[32.0, 16, 96, 32]])
    batch = Batch(image, boxes, torch.tensor([1]), (1, 0)).resized(256)
    assert batch.images.shape == (2, 3, 128, 256)
    assert batch.boxes.tolist() == [[64, 32, 192, 64]]
    assert [target["boxes"].shape[0] for target in batch.targets] == [1, 0]
    rows, columns = torch.nonzero(batch.images[0, 0] > 100, as_tuple=True)
    bound = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert [int(edge) for edge in bound] == [64, 32, 192, 64]


def test_resizing_rounds_the_shorter_side_up_to_the_stride() -> None:
    # 128 -> 160 is x 1.25: 96 would be 120 rows and becomes 128, boxes 128 / 96 on that axis.
    batch = Batch(torch.zeros(1, 3, 96, 128), torch.tensor([[0.0, 48, 64, 96]]), NONE, (1,))
    resized = batch.resized(160)
    assert resized.images.shape == (1, 3, 128, 160)
    assert resized.boxes.tolist() == [[0, 64, 80, 128]]
    assert batch.resized(128) is batch
