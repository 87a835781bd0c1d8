"""Decoded images, scaled to the training size, in one file or memory that processes share."""

import errno
import hashlib
import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detector import distributed
from detector.data.images import read_image
from detector.data.sample import Sample
from detector.errors import DataError

__all__ = ["ImageCache", "content_digest", "read_image", "scaled_size"]

log = logging.getLogger(__name__)

DEFAULT_DIRECTORY = Path("runs/cache")
DEFAULT_LIMIT = 8 << 30  # bytes of one cache file that nobody asked for
MEMORY_SHARE = 0.5  # of the memory that is free may be taken by images


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
            if sample.outlines is not None:
                digest.update(sample.outlines.points.astype("<f4").tobytes())
    return digest.hexdigest()


def _num_bytes(samples: Iterable[Sample], imgsz: int) -> int:
    return sum(3 * h * w for h, w in (scaled_size(sample.size, imgsz) for sample in samples))


class ImageCache:
    """The images of `samples`, fitted into imgsz x imgsz; `cache[i]` is (h, w, 3) uint8 BGR.

    `where` they are kept:

    - `disk`: one read-only memory-mapped file, made by whoever needs it first; several processes
      share its pages, and several that make it at once are all right.
    - `ram`: memory that the worker processes share.
    - `none`: nowhere; each image is decoded when it is asked for.
    - `auto`: a file of at most `limit_bytes`.

    What cannot be kept as asked is kept as the next of `ram`, `disk`, `none`, with a message.
    Nobody may write to the images. A sample that stands in the list twice is stored once.

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
        where: str = "auto",
    ) -> None:
        self.imgsz = imgsz
        stored = {sample.path: sample for sample in [*among, *samples]}
        wanted = _num_bytes(stored.values(), imgsz)
        if among and (where in ("ram", "none") or wanted > limit_bytes):
            stored = {sample.path: sample for sample in samples}
        place = {path: slot for slot, path in enumerate(stored)}
        self.slots = [place[sample.path] for sample in samples]  # of each sample in what is stored
        self._samples = list(stored.values())
        self._shapes = [(*scaled_size(sample.size, imgsz), 3) for sample in self._samples]
        self._offsets = np.cumsum([0, *(h * w * c for h, w, c in self._shapes)])
        self.path: Path | None = None  # the file, when there is one
        self._pixels: np.ndarray | None = None
        self._memory: SharedMemory | None = None
        directory = DEFAULT_DIRECTORY if directory is None else Path(directory)
        if not self._samples or where == "none":
            return
        if where == "ram" and distributed.world_size() > 1:
            log.info("images are kept on disk: several processes share a file, not their memory")
        elif where == "ram" and self._fill_memory():
            return
        if where == "auto" and self.num_bytes > limit_bytes:
            log.warning(
                "images are decoded on demand: the cache would take %.1f GB, the limit is %.1f GB; "
                "cache=disk or cache=ram lifts it",
                self.num_bytes / 1e9, limit_bytes / 1e9,
            )  # fmt: skip
            return
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
        if self._pixels is None:  # in a new process
            self._pixels = self._memory.array() if self._memory else self._open()
        if self._pixels is None:
            return self._decode(slot)
        start, stop = self._offsets[slot], self._offsets[slot + 1]
        return np.asarray(self._pixels[start:stop]).reshape(self._shapes[slot])

    def __getstate__(self) -> dict[str, Any]:
        """Travel to another process without the pixels: it maps the same file or memory."""
        return {**self.__dict__, "_pixels": None}

    @property
    def num_bytes(self) -> int:
        """Size of all stored images in bytes."""
        return int(self._offsets[-1])

    def shape(self, slot: int) -> tuple[int, int]:
        """Return the (height, width) of a stored image."""
        return self._shapes[slot][:2]

    def _fill_memory(self) -> bool:
        """Decode all images into memory; False, with a warning, when there is not enough."""
        free = free_memory()
        if free is not None and self.num_bytes > MEMORY_SHARE * free:
            log.warning(
                "images are not kept in memory: they take %.1f GB, and %.1f GB are free, of which "
                "they may take %.0f %%",
                self.num_bytes / 1e9, free / 1e9, 100 * MEMORY_SHARE,
            )  # fmt: skip
            return False
        self._memory = SharedMemory(self.num_bytes)
        self._decode_all(self._memory.array(writable=True))
        self._pixels = self._memory.array()
        return True

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
        """Map the file; None when there is none, or not what we would have written."""
        if self.path is None:
            return None
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
            self._decode_all(pixels)
            pixels.flush()
            del pixels
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)

    def _decode_all(self, pixels: np.ndarray) -> None:
        """Write all images into `pixels`, several at a time.

        Raises:
            DataError: the first one that cannot be read.
        """

        def fill(slot: int) -> None:
            start, stop = self._offsets[slot], self._offsets[slot + 1]
            pixels[start:stop] = self._decode(slot).reshape(-1)

        with ThreadPoolExecutor(min(8, _cores())) as pool:
            jobs = [pool.submit(fill, slot) for slot in range(len(self._samples))]
            try:
                for job in jobs:
                    job.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


class SharedMemory:
    """Zeroed memory that other processes map too, while the one that made it lives.

    Where the system has no memory files (outside Linux), a process that is not a fork gets a copy.
    """

    def __init__(self, num_bytes: int) -> None:
        self._path, self._array = "", np.zeros(0, np.uint8)
        if hasattr(os, "memfd_create"):
            handle = os.memfd_create("images")
            weakref.finalize(self, os.close, handle)
            os.truncate(handle, num_bytes)
            self._path = f"/proc/{os.getpid()}/fd/{handle}"
        else:
            self._array = np.zeros(num_bytes, np.uint8)

    def array(self, writable: bool = False) -> np.ndarray:
        """Return the memory as an array of uint8."""
        if self._path:
            return np.memmap(self._path, np.uint8, "r+" if writable else "r")
        view = self._array.view()
        view.flags.writeable = writable
        return view


def free_memory() -> int | None:
    """Return the bytes of memory that this process may still take; None where nothing tells."""
    found = []
    with suppress(OSError, ValueError, KeyError):
        found.append(_table(Path("/proc/meminfo"))["MemAvailable:"] << 10)
    with suppress(OSError, ValueError, KeyError):  # a container's own limit; "max" if it has none
        group = Path("/sys/fs/cgroup")
        used = int((group / "memory.current").read_text())
        reclaimable = _table(group / "memory.stat")["inactive_file"]
        found.append(int((group / "memory.max").read_text()) - used + reclaimable)
    return min(found) if found else None


def _table(path: Path) -> dict[str, int]:
    """Read lines of a name, a whole number and perhaps a unit."""
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows}


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
