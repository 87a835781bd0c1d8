"""Images that are the same or look the same: digests of content, and a hash of what is seen.

The hash is the difference hash: the picture is shrunk to 9 x 8 grey cells, and each of 64 bits says
whether a cell is brighter than the one to its left. Pictures are alike when at most `MAX_BITS` bits
differ and their 32 x 32 thumbnails, brought to one mean and spread, correlate by `MIN_LIKENESS`.
Both are tried with one of the pictures mirrored too.

Letters: N images, M other images.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from detector.data.images import decode_bytes, exif_turn, is_cut_off
from detector.errors import DataError

BITS = 64
MAX_BITS = 10
MIN_LIKENESS = 0.97
THUMBNAIL = 32  # pixels
TRIED = 8  # candidates of an image whose thumbnails are compared
BLOCK = 1024  # images that are compared with all others at once
THREADS = 4  # OpenCV decodes without holding Python's lock


@dataclass(frozen=True, eq=False)
class Look:
    """What is known of an image file after reading and decoding it once."""

    digest: bytes  # of the file
    error: str = ""  # why it cannot be decoded
    cut_off: bool = False  # the file ends before its end marker
    turn: int = 1  # EXIF orientation: 1 is upright
    size: tuple[int, int] = (0, 0)  # (height, width) as decoded
    bits: np.ndarray = field(default_factory=lambda: np.zeros(BITS, np.float32))  # +1 and -1
    thumbnail: np.ndarray = field(  # mean 0, length 1; all 0 if it has one colour
        default_factory=lambda: np.zeros((THUMBNAIL, THUMBNAIL), np.float32)
    )


def look_at(path: Path) -> Look:
    """Read and decode an image. Raises: DataError: the file cannot be read at all."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot read the image: {error.strerror}") from error
    digest = hashlib.blake2b(content, digest_size=16).digest()
    image = decode_bytes(np.frombuffer(content, np.uint8))
    if image is None:
        return Look(digest, "not a readable image", is_cut_off(content))
    gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    return Look(
        digest, "", is_cut_off(content), exif_turn(content), image.shape[:2],
        difference_bits(gray), _thumbnail(gray),
    )  # fmt: skip


def look_at_all(
    paths: Sequence[Path], step: Callable[[], object] = lambda: None
) -> Iterator[tuple[Path, Look | DataError]]:
    """Yield every path with what is known of it, in order; `step()` is called after each."""

    def careful(path: Path) -> Look | DataError:
        try:
            return look_at(path)
        except DataError as error:
            return error

    with ThreadPoolExecutor(THREADS) as pool:
        for path, look in zip(paths, pool.map(careful, paths), strict=True):
            step()
            yield path, look


def difference_bits(gray: np.ndarray) -> np.ndarray:
    """Return the difference hash of a grey image (H, W) as (64,) float32 of +1 and -1."""
    cells = cv2.resize(gray, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    return np.where(np.diff(cells, axis=1) > 0, np.float32(1), np.float32(-1)).reshape(BITS)


def mirrored_bits(bits: np.ndarray) -> np.ndarray:
    """Return the hashes (N, 64) of the mirrored images: cells in reverse order, other signs."""
    return -bits.reshape(-1, 8, 8)[:, :, ::-1].reshape(-1, BITS)


def find_alike(
    looks: Sequence[Look], others: Sequence[Look], before: bool = False
) -> dict[int, int]:
    """Return for each of `looks` (N) the most similar of `others` (M) that is alike, if one is.

    With `before` only others with a smaller index are tried: to compare a list with itself.
    """
    if not looks or not others:
        return {}
    bits = np.stack([look.bits for look in others])  # (M, 64)
    found = {}
    for start in range(0, len(looks), BLOCK):
        block = looks[start : start + BLOCK]
        own = np.stack([look.bits for look in block])
        # The dot product of two rows of signs is 64 - 2 x differing bits.
        near = np.maximum(own @ bits.T, mirrored_bits(own) @ bits.T)  # (block, M)
        if before:
            near[np.arange(len(others)) >= start + np.arange(len(block))[:, None]] = -BITS
        for row in np.flatnonzero(near.max(axis=1) >= BITS - 2 * MAX_BITS):
            best = _best(block[int(row)], others, near[row])
            if best is not None:
                found[start + int(row)] = best
    return found


def likeness(one: Look, other: Look) -> float:
    """Return the correlation of two thumbnails, -1 to 1, the better of plain and mirrored."""
    first, second = one.thumbnail, other.thumbnail
    if not first.any() or not second.any():  # of one colour: nothing to see
        return 1.0 if not first.any() and not second.any() else 0.0
    return float(max((first * second).sum(), (first[:, ::-1] * second).sum()))


def _best(look: Look, others: Sequence[Look], near: np.ndarray) -> int | None:
    candidates = np.flatnonzero(near >= BITS - 2 * MAX_BITS)
    candidates = candidates[np.argsort(-near[candidates], kind="stable")][:TRIED]
    scored = [(likeness(look, others[index]), -index) for index in candidates.tolist()]
    best, index = max(scored)
    return -index if best >= MIN_LIKENESS else None


def _thumbnail(gray: np.ndarray) -> np.ndarray:
    small = cv2.resize(gray, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    centred = small.astype(np.float32) - small.mean(dtype=np.float32)
    length = np.sqrt((centred**2).sum())
    return centred / length if length > 1e-3 * THUMBNAIL else np.zeros_like(centred)
