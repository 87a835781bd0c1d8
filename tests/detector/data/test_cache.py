import logging
import multiprocessing
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.data.cache import (
    ImageCache,
    SharedMemory,
    content_digest,
    free_memory,
    scaled_size,
)
from detector.data.outlines import pack_outlines
from detector.data.sample import Sample
from detector.errors import DataError


def make_sample(path: Path, height: int, width: int, seed: int = 0) -> Sample:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return Sample(
        path, (height, width), np.array([[1, 2, 3, 4]], np.float32), np.array([1]),
        np.zeros(1, bool), np.zeros(1, bool),
    )  # fmt: skip


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    sizes = [(40, 80), (64, 32), (10, 10), (3, 90)]
    return [make_sample(tmp_path / f"{i}.png", *size, seed=i) for i, size in enumerate(sizes)]


def expected(sample: Sample, imgsz: int) -> np.ndarray:
    image = cv2.imread(str(sample.path))
    ratio = imgsz / max(image.shape)
    height, width = (max(1, round(side * ratio)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


@pytest.mark.parametrize(
    ("size", "scaled"),
    [((40, 80), (32, 64)), ((80, 40), (64, 32)), ((10, 10), (64, 64)), ((1, 1000), (1, 64))],
)
def test_scaled_size_fits_the_square_and_is_never_zero(
    size: tuple[int, int], scaled: tuple[int, int]
) -> None:
    assert scaled_size(size, 64) == scaled


@pytest.mark.parametrize("limit", [1 << 30, 0], ids=["mapped", "on demand"])
def test_images_are_the_scaled_pictures(samples: list[Sample], tmp_path: Path, limit: int) -> None:
    cache = ImageCache(samples, 64, tmp_path / "cache", limit_bytes=limit)
    assert len(cache) == 4
    assert (cache.path is None) == (limit == 0)
    for index, sample in enumerate(samples):
        assert np.array_equal(cache[index], expected(sample, 64))
        with pytest.raises(ValueError, match="read-only"):
            cache[index][0, 0] = 0
    with pytest.raises(IndexError, match="image 4 of 4"):
        cache[4]


def test_cache_too_large_for_the_limit_says_so(
    samples: list[Sample], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        ImageCache(samples, 64, tmp_path / "cache", limit_bytes=100)
    assert len(caplog.messages) == 1 and "decoded on demand" in caplog.messages[0]
    assert not (tmp_path / "cache").exists()


def test_folder_that_cannot_be_written_decodes_on_demand(
    samples: list[Sample], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file")
    with caplog.at_level(logging.WARNING):
        cache = ImageCache(samples, 64, tmp_path / "cache")
    assert "decoded on demand" in caplog.messages[0]
    assert np.array_equal(cache[0], expected(samples[0], 64))


def test_second_cache_of_the_same_images_uses_the_file(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ImageCache(samples, 64, tmp_path / "cache")

    def fail(path: Path) -> np.ndarray:
        raise AssertionError(f"{path} is decoded again")

    monkeypatch.setattr("detector.data.cache.read_image", fail)
    second = ImageCache(samples, 64, tmp_path / "cache")
    assert second.path == first.path
    assert np.array_equal(second[1], first[1])


def test_key_follows_content_and_size_not_names(samples: list[Sample], tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    first = ImageCache(samples, 64, folder).path
    assert ImageCache(samples, 32, folder).path != first
    assert ImageCache(samples[::-1], 64, folder).path != first
    moved = replace(samples[0], path=samples[0].path.rename(tmp_path / "moved.png"))
    assert ImageCache([moved, *samples[1:]], 64, folder).path == first
    make_sample(moved.path, 40, 80, seed=9)  # another picture under the same name
    assert ImageCache([moved, *samples[1:]], 64, folder).path != first


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"junk"])
def test_damaged_file_is_made_again(samples: list[Sample], tmp_path: Path, damage: bytes) -> None:
    path = ImageCache(samples, 64, tmp_path / "cache").path
    assert path is not None
    path.write_bytes(damage)
    cache = ImageCache(samples, 64, tmp_path / "cache")
    assert np.array_equal(cache[1], expected(samples[1], 64))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_cache_travels_to_another_process_without_its_pixels(
    samples: list[Sample], tmp_path: Path
) -> None:
    cache = ImageCache(samples * 50, 64, tmp_path / "cache")
    content = pickle.dumps(cache)
    assert len(content) < cache.num_bytes / 5
    assert np.array_equal(pickle.loads(content)[1], cache[1])


def test_writers_at_once_are_all_right(samples: list[Sample], tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        caches = list(pool.map(lambda _: ImageCache(samples, 64, tmp_path / "cache"), range(4)))
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [caches[0].path.name]
    for cache in caches:
        assert np.array_equal(cache[2], expected(samples[2], 64))


@pytest.mark.slow  # every new process imports torch
def test_processes_at_once_are_all_right(samples: list[Sample], tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        caches = pool.starmap(ImageCache, [(samples, 64, tmp_path / "cache")] * 3)
    assert len({cache.path for cache in caches}) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1
    for cache in caches:
        assert np.array_equal(cache[2], expected(samples[2], 64))


def test_broken_image_is_an_error_and_leaves_no_file(samples: list[Sample], tmp_path: Path) -> None:
    samples[1].path.write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"1\.png: not a readable image"):
        ImageCache(samples, 64, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_image_of_another_size_than_its_sample_is_an_error(
    samples: list[Sample], tmp_path: Path
) -> None:
    wrong = replace(samples[0], size=(80, 40))
    with pytest.raises(DataError, match=r"0\.png: decoded to 80x40, its header says 40x80"):
        ImageCache([wrong], 64, tmp_path / "cache")


def test_empty_list_is_an_empty_cache(tmp_path: Path) -> None:
    cache = ImageCache([], 64, tmp_path / "cache")
    assert len(cache) == 0 and list(cache) == []


def test_digest_follows_pixels_boxes_and_labels(samples: list[Sample]) -> None:
    first = samples[0]
    digests = {
        content_digest([first]),
        content_digest([first, first]),
        content_digest([samples[1]]),
        content_digest([replace(first, boxes=first.boxes + 1)]),
        content_digest([replace(first, labels=first.labels + 1)]),
        content_digest([replace(first, crowd=~first.crowd)]),
        content_digest([first], labels=False),
    }
    assert len(digests) == 7
    copy = replace(first, boxes=first.boxes.astype(np.float64), labels=first.labels.copy())
    assert content_digest([copy]) == content_digest([first])


def test_digest_of_a_missing_image_is_an_error(samples: list[Sample]) -> None:
    samples[0].path.unlink()
    with pytest.raises(DataError, match=r"0\.png: cannot read the image"):
        content_digest(samples)


def test_a_sample_that_stands_there_twice_is_stored_once(
    samples: list[Sample], tmp_path: Path
) -> None:
    alone = ImageCache(samples, 64, tmp_path / "cache")
    doubled = ImageCache([*samples[::-1], *samples], 64, tmp_path / "cache", among=samples)
    assert len(doubled) == 8 and doubled.num_bytes == alone.num_bytes
    assert doubled.path == alone.path and doubled.slots == [3, 2, 1, 0, 0, 1, 2, 3]
    for index, sample in enumerate([*samples[::-1], *samples]):
        assert np.array_equal(doubled[index], expected(sample, 64))


def test_choices_from_one_set_share_its_file_if_it_fits(
    samples: list[Sample], tmp_path: Path
) -> None:
    whole = ImageCache(samples, 64, tmp_path / "cache")
    chosen = ImageCache(samples[2:], 64, tmp_path / "cache", among=samples)
    assert chosen.path == whole.path and len(chosen) == 2
    assert np.array_equal(chosen[0], expected(samples[2], 64))
    limit = whole.num_bytes - 1  # too much for all of them, enough for the two
    few = ImageCache(samples[2:], 64, tmp_path / "cache", limit_bytes=limit, among=samples)
    assert few.path not in (None, whole.path) and few.num_bytes < limit
    assert np.array_equal(few[1], expected(samples[3], 64))


# ---- where images are kept


@pytest.mark.parametrize("where", ["auto", "disk", "ram", "none"])
def test_images_are_the_same_wherever_they_are_kept(
    samples: list[Sample], tmp_path: Path, where: str
) -> None:
    cache = ImageCache(samples, 64, tmp_path / "cache", where=where)
    travelled = pickle.loads(pickle.dumps(cache))  # as to a worker that is not a fork
    for index, sample in enumerate(samples):
        assert np.array_equal(cache[index], expected(sample, 64))
        assert np.array_equal(travelled[index], expected(sample, 64))
        for read in (cache[index], travelled[index]):
            with pytest.raises(ValueError, match="read-only"):
                read[0, 0] = 0
    assert (tmp_path / "cache").exists() == (where in ("auto", "disk"))


def test_memory_holds_the_images_after_their_files_are_gone(
    samples: list[Sample], tmp_path: Path
) -> None:
    images = [expected(sample, 64) for sample in samples]
    cache = ImageCache(samples, 64, tmp_path / "cache", where="ram")
    for sample in samples:
        sample.path.unlink()
    assert all(np.array_equal(cache[index], image) for index, image in enumerate(images))


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="memory files are of Linux")
def test_memory_travels_as_a_name_and_ends_with_its_maker() -> None:
    memory = SharedMemory(1 << 20)
    memory.array(writable=True)[5] = 7
    content = pickle.dumps(memory)
    assert len(content) < 1000
    assert pickle.loads(content).array()[5] == 7
    del memory
    with pytest.raises(FileNotFoundError):
        pickle.loads(content).array()


def test_memory_that_is_too_small_falls_back_to_the_disk_and_then_to_decoding(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    needed = 3 * (32 * 64 + 64 * 32 + 64 * 64 + 2 * 64)  # 90 x 3 becomes 64 x 2
    monkeypatch.setattr("detector.data.cache.free_memory", lambda: 2 * needed - 1)
    with caplog.at_level(logging.WARNING):
        cache = ImageCache(samples, 64, tmp_path / "cache", where="ram")
    assert caplog.messages[0].startswith("images are not kept in memory: they take 0.0 GB")
    assert cache.path is not None and cache.path.is_file()
    (tmp_path / "blocked").write_text("a file")
    with caplog.at_level(logging.WARNING):
        cache = ImageCache(samples, 64, tmp_path / "blocked", where="ram")
    assert "decoded on demand" in caplog.messages[-1]
    assert np.array_equal(cache[1], expected(samples[1], 64))
    monkeypatch.setattr("detector.data.cache.free_memory", lambda: 2 * needed)
    assert ImageCache(samples, 64, tmp_path / "other", where="ram").path is None


def test_a_file_that_was_asked_for_has_no_limit_but_the_disk(
    samples: list[Sample], tmp_path: Path
) -> None:
    cache = ImageCache(samples, 64, tmp_path / "cache", limit_bytes=100, where="disk")
    assert cache.path is not None and cache.path.is_file()


def test_free_memory_is_a_number_of_bytes_where_the_system_tells() -> None:
    free = free_memory()
    assert free is None or 0 < free < 1 << 50


def test_digest_follows_masks(samples: list[Sample]) -> None:
    ring = np.array([[1.0, 2], [3, 2], [3, 4]])
    outlined = [replace(samples[0], outlines=pack_outlines([[ring + move]])) for move in (0, 1)]
    digests = {content_digest([sample]) for sample in [*outlined, samples[0]]}
    assert len(digests) == 3


def test_several_processes_share_a_file(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detector.distributed.world_size", lambda: 2)
    assert ImageCache(samples, 64, tmp_path / "cache", where="ram").path is not None
