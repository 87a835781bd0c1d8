"""Image files: which there are, their size from the header alone, and their pixels."""

import struct
from pathlib import Path

import cv2
import numpy as np

from detector.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
HEADER_BYTES = 32
END_BYTES = 4096  # where the end marker is looked for: some cameras write more behind it
EXIF_BYTES = 65536 + 64  # the first segments of a JPEG
EXIF_ORIENTATION = 0x0112
# every JPEG start-of-frame marker; C4, C8 and CC are tables, not frames
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
JPEG_BARE_MARKERS = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length


def is_image(path: Path) -> bool:
    """Whether the name ends like an image, in any case."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def list_images(folder: Path) -> list[Path]:
    """Return the images in `folder` and below it, sorted, hidden files left out."""
    found = (path for path in folder.rglob("*") if is_image(path) and path.name[0] != ".")
    return sorted(found)


def read_image(path: str | Path, upright: bool = False) -> np.ndarray:
    """Decode an image file to (H, W, 3) uint8 BGR.

    Gray, 16 bit and alpha are converted. An EXIF rotation is not applied unless `upright` is asked
    for: boxes are in the pixels as stored. Any file name that the system allows works.

    Raises:
        DataError: the file is missing, empty or not an image.
    """
    image = decode_bytes(_read_bytes(Path(path)), upright)
    if image is None:
        raise DataError(f"{path}: not a readable image")
    return image


def image_size(path: str | Path) -> tuple[int, int]:
    """Return (height, width) in pixels; from the header of a JPEG or PNG, else by decoding.

    Raises:
        DataError: the file is missing, empty or not an image.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(HEADER_BYTES)
            if not head:
                raise DataError(f"{path}: the image file is empty (0 bytes)")
            size = _png_size(head)
            if size is None and head[:2] == b"\xff\xd8":
                file.seek(2)
                size = _jpeg_size(file.read())
    except OSError as error:
        raise DataError(f"{path}: cannot read the image: {error.strerror}") from error
    if size is not None:
        return size
    height, width = read_image(path).shape[:2]
    return height, width


def _read_bytes(path: Path) -> np.ndarray:
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{path}: cannot read the image: {error.strerror}") from error
    if content.size == 0:
        raise DataError(f"{path}: the image file is empty (0 bytes)")
    return content


def decode_bytes(content: np.ndarray, upright: bool = False) -> np.ndarray | None:
    """Decode the bytes (n,) uint8 of an image file as `read_image` does; None if that fails."""
    turning = 0 if upright else cv2.IMREAD_IGNORE_ORIENTATION
    try:
        return cv2.imdecode(content, cv2.IMREAD_COLOR | turning)
    except cv2.error:  # some damaged files raise, others give None
        return None


def is_cut_off(content: bytes) -> bool:
    """Whether a JPEG or PNG file ends before its end marker; decoders fill the rest with gray."""
    if content[:2] == b"\xff\xd8":
        return b"\xff\xd9" not in content[-END_BYTES:]
    if content[:4] == b"\x89PNG":
        return b"IEND" not in content[-END_BYTES:]
    return False


def exif_turn(content: bytes) -> int:
    """Return the EXIF orientation of a JPEG, 1 to 8; 1 (upright) where none is written.

    Source: Exif 3.0, 4.6.2 and 4.7.2: APP1 segment, TIFF header, tag 0x0112 of the first directory.
    """
    start = content.find(b"Exif\x00\x00", 0, EXIF_BYTES)
    if content[:2] != b"\xff\xd8" or start < 0:
        return 1
    tiff = content[start + 6 :]
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    try:
        if order is None:
            return 1
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(count):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, directory + 2 + 12 * entry)
            if tag == EXIF_ORIENTATION:
                return value if 1 <= value <= 8 else 1
    except struct.error:  # the directory points out of the file
        pass
    return 1


def _png_size(head: bytes) -> tuple[int, int] | None:
    """Source: PNG specification, 11.2.1: IHDR is the first chunk, width then height."""
    if head[:8] != b"\x89PNG\r\n\x1a\n" or head[12:16] != b"IHDR" or len(head) < 24:
        return None
    width, height = struct.unpack(">II", head[16:24])
    return (height, width) if width and height else None


def _jpeg_size(body: bytes) -> tuple[int, int] | None:
    """Find the frame header in what follows the first marker. Source: ITU-T T.81, B.2.2."""
    at = 0
    while at + 9 <= len(body):
        if body[at] != 0xFF:
            return None
        marker = body[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in JPEG_BARE_MARKERS:
            at += 2
        elif marker in JPEG_FRAMES:
            height, width = struct.unpack(">HH", body[at + 5 : at + 9])
            return (height, width) if width and height else None
        else:
            at += 2 + int.from_bytes(body[at + 2 : at + 4], "big")
    return None
