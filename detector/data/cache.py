"""Decoded images, scaled to the training size, in one file that all processes share."""

import errno
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detector.data.images import read_image
from detector.data.sample import Sample
from detector.errors import DataError

__all__ = ["ImageCache", "content_digest", "read_image", "scaled_size"]

log = logging.getLogger(__name__)

DEFAULT_DIRECTORY = Path("runs/cache")
DEFAULT_LIMIT = 8 << 30  # bytes of one cache file


def scaled_size(size: tuple[int, int], imgsz: int) -> tuple[int, int]:
    """Return the (height, width) of an image of `size` that is fitted into imgsz x imgsz."""
    height, width = size
    ratio = min(imgsz / height, imgsz / width)
    return max(1, round(height * ratio)), max(1, round(width * ratio))


def content_digest(samples: Sequence[Sample], labels: bool = True) -> str:
    """Return a hex digest of the image bytes in order and, if wanted, of all that is labelled.

    Paths and file times do not matter. Raises: DataError: an image cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for sample in samples:
        try:
            content = sample.path.read_bytes()
        except OSError as error:
            raise DataError(f"{sample.path}: cannot read the image: {error.strerror}") from error
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
        if labels:
            digest.update(len(sample.boxes).to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(sample.boxes, dtype="<f4").tobytes())
            digest.update(np.ascontiguousarray(sample.labels, dtype="<i8").tobytes())
            digest.update(np.packbits([sample.difficult, sample.crowd]).tobytes())
    return digest.hexdigest()


def _num_bytes(samples: Iterable[Sample], imgsz: int) -> int:
    return sum(3 * h * w for h, w in (scaled_size(sample.size, imgsz) for sample in samples))


class ImageCache:
    """The images of `samples`, fitted into imgsz x imgsz; `cache[i]` is (h, w, 3) uint8 BGR.

    Images come from one read-only memory-mapped file, made by whoever needs it first: several
    processes share its pages, and several that make it at once are all right. They must not be
    written to. When the file would be larger than `limit_bytes` or there is no room for it, every
    image is decoded when it is asked for. A sample that stands in the list twice is stored once.

    `among` are all the images that `samples` were chosen from: if they fit, the file holds them
    all, so that runs with other choices share it.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        imgsz: int,
        directory: str | Path | None = None,
        limit_bytes: int = DEFAULT_LIMIT,
        among: Sequence[Sample] = (),
    ) -> None:
        self.imgsz = imgsz
        stored = {sample.path: sample for sample in [*among, *samples]}
        if among and _num_bytes(stored.values(), imgsz) > limit_bytes:
            stored = {sample.path: sample for sample in samples}
        place = {path: slot for slot, path in enumerate(stored)}
        self.slots = [place[sample.path] for sample in samples]  # of each sample in what is stored
        self._samples = list(stored.values())
        self._shapes = [(*scaled_size(sample.size, imgsz), 3) for sample in self._samples]
        self._offsets = np.cumsum([0, *(h * w * c for h, w, c in self._shapes)])
        self.path: Path | None = None  # the file, when there is one
        self._pixels: np.ndarray | None = None
        directory = DEFAULT_DIRECTORY if directory is None else Path(directory)
        if self.num_bytes > limit_bytes:
            log.warning(
                "images are decoded on demand: the cache would take %.1f GB, the limit is %.1f GB",
                self.num_bytes / 1e9, limit_bytes / 1e9,
            )  # fmt: skip
        elif self._samples:
            self.path = directory / f"{content_digest(self._samples, labels=False)}-{imgsz}.npy"
            self._pixels = self._open()
            if self._pixels is None:
                self._pixels = self._make()

    def __len__(self) -> int:
        return len(self.slots)

    def __getitem__(self, index: int) -> np.ndarray:
        """Return image `index` as a read-only (h, w, 3) uint8 BGR array."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        slot = self.slots[index]
        if self._pixels is None and self.path is not None:
            self._pixels = self._open()
        if self._pixels is None:
            return self._decode(slot)
        start, stop = self._offsets[slot], self._offsets[slot + 1]
        return np.asarray(self._pixels[start:stop]).reshape(self._shapes[slot])

    def __getstate__(self) -> dict[str, Any]:
        """Travel to another process without the pixels: it maps the same file."""
        return {**self.__dict__, "_pixels": None}

    @property
    def num_bytes(self) -> int:
        """Size of all stored images in bytes."""
        return int(self._offsets[-1])

    def _make(self) -> np.ndarray | None:
        """Write and map the file; None, with a warning, when the folder cannot take it."""
        assert self.path is not None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self.path.parent).free < 2 * self.num_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._write(self.path)
        except OSError as error:
            log.warning("images are decoded on demand: %s: %s", self.path, error.strerror)
        return self._open()

    def _decode(self, slot: int) -> np.ndarray:
        sample = self._samples[slot]
        image = read_image(sample.path)
        if image.shape[:2] != tuple(sample.size):
            raise DataError(
                f"{sample.path}: decoded to {image.shape[1]}x{image.shape[0]}, "
                f"its header says {sample.size[1]}x{sample.size[0]}"
            )
        height, width, _ = self._shapes[slot]
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        image.flags.writeable = False
        return image

    def _open(self) -> np.ndarray | None:
        """Map the file; None when it is missing or not what we would have written."""
        assert self.path is not None
        try:
            pixels: np.ndarray = np.load(self.path, mmap_mode="r")
        except (OSError, ValueError, EOFError):
            return None
        whole = pixels.dtype == np.uint8 and pixels.shape == (self.num_bytes,)
        return pixels if whole else None

    def _write(self, path: Path) -> None:
        log.info("decoding %d images into %s", len(self._samples), path)
        handle, name = tempfile.mkstemp(prefix=f"{path.stem}.", suffix=".part", dir=path.parent)
        os.close(handle)
        try:
            pixels = np.lib.format.open_memmap(name, "w+", np.uint8, (self.num_bytes,))
            for slot in range(len(self._samples)):
                start, stop = self._offsets[slot], self._offsets[slot + 1]
                pixels[start:stop] = self._decode(slot).reshape(-1)
            pixels.flush()
            del pixels
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)
