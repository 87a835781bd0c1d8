"""Where pictures to predict on come from: files, lists, videos, cameras, streams, memory."""

import glob
import logging
import urllib.error
import urllib.parse
import urllib.request
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from detector.data.images import EXIF_BYTES, decode_bytes, exif_turn, is_image, read_image
from detector.data.labels import read_lines
from detector.errors import DataError

log = logging.getLogger("detector")

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts"}
)
TIMEOUT = 20.0  # seconds, for a picture from the network
WHOLE = 0.95  # of the frames that a video tells: with fewer it is broken; the number may be a guess

Source = str | Path | int | np.ndarray


@dataclass(frozen=True)
class Stream:
    """A video file, camera (its number) or address that gives frames."""

    address: str | int

    @property
    def path(self) -> Path | None:
        """The file, if it is one."""
        return None if self.live else Path(str(self.address))

    @property
    def live(self) -> bool:
        """Whether it is no file: it may never end."""
        return isinstance(self.address, int) or "://" in self.address

    @property
    def name(self) -> str:
        """What people call it; without a password that an address may hold."""
        if isinstance(self.address, int):
            return f"camera-{self.address}"
        if not self.live:
            return Path(self.address).name
        parts = urllib.parse.urlsplit(self.address)
        return PurePosixPath(parts.path).name or parts.hostname or "stream"


@dataclass(frozen=True)
class Remote:
    """A picture at an http address."""

    address: str

    @property
    def name(self) -> str:
        return PurePosixPath(urllib.parse.urlsplit(self.address).path).name


Item = Path | np.ndarray | Stream | Remote


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture to look at."""

    image: np.ndarray  # (H, W, 3) uint8 BGR
    path: Path | None = None
    frame: int | None = None
    source: str = ""
    rate: float = 0.0  # frames a second of its video; 0: unknown, or not a video


@dataclass(frozen=True)
class Unreadable:
    """A picture, video or stream that could not be read, or not to its end, and why."""

    path: Path | None
    reason: str


# ---- which -----------------------------------------------------------------------------------


def find_sources(source: Source | Sequence[Source]) -> list[Item]:
    """Return what a source names, sorted within a folder or pattern.

    An image or video file, a folder of them, a glob pattern, a text file that lists any of these,
    the number of a camera, an address (rtsp://, http:// of a stream or a picture), a picture in
    memory (H, W, 3) uint8 BGR, or a list of all that.

    Raises: DataError: nothing is there.
    """
    if isinstance(source, np.ndarray):
        return [source]
    if isinstance(source, int):
        return [Stream(source)]
    if isinstance(source, str | Path):
        return _named(str(source))
    found = [item for part in source for item in find_sources(part)]
    if not found:
        raise DataError("source: no images given")
    return found


def _named(text: str) -> list[Item]:
    path = Path(text)
    if "://" in text:
        remote = Remote(text)
        return [remote if is_image(Path(remote.name)) else Stream(text)]
    if text.isdecimal() and not path.exists():
        return [Stream(int(text))]
    if path.is_dir():
        return _kept(sorted(path.iterdir()), f"{path}: the folder has no images or videos")
    if path.exists():
        if path.suffix.lower() == ".txt":
            return _listed(path)
        return [Stream(text) if path.suffix.lower() in VIDEO_SUFFIXES else path]
    if glob.has_magic(text):
        found = sorted(map(Path, glob.glob(text, recursive=True)))
        return _kept(found, f"{path}: no image or video matches the pattern")
    raise DataError(f"{path}: no such file or folder")


def _kept(paths: Sequence[Path], otherwise: str) -> list[Item]:
    """Return the images and videos among paths. Raises: DataError: `otherwise`, if none is."""
    found: list[Item] = []
    for path in (path for path in paths if path.is_file() and path.name[0] != "."):
        if is_image(path):
            found.append(path)
        elif path.suffix.lower() in VIDEO_SUFFIXES:
            found.append(Stream(str(path)))
    if not found:
        raise DataError(otherwise)
    return found


def _listed(path: Path) -> list[Item]:
    """Return what the lines of a list name, as they stand or relative to the list."""
    found: list[Item] = []
    for number, line in read_lines(path):
        beside = path.parent / line
        name = str(beside) if not Path(line).exists() and beside.exists() else line
        try:
            found += _named(name)
        except DataError as error:
            raise DataError(f"{path}:{number}: {error}") from error
    if not found:
        raise DataError(f"{path}: the list names no images")
    return found


# ---- pictures --------------------------------------------------------------------------------


def open_pictures(
    sources: Sequence[Item], stride: int = 1, most: int = 0, upright: bool = False
) -> Iterator[Picture | Unreadable]:
    """Yield the pictures of sources in order; of a video every `stride`-th frame, at most `most`.

    `most` 0 means all. `upright` turns image files as their EXIF says.
    Raises: DataError for a picture in memory that is none.
    """
    told = upright
    for source in sources:
        if isinstance(source, Stream):
            yield from _frames(source, stride, most)
        elif isinstance(source, np.ndarray):
            yield Picture(_checked(source))
        else:
            picture = _read(source, upright)
            if not told and isinstance(source, Path) and isinstance(picture, Picture):
                told = _warn_of_turn(source)
            yield picture


def _read(source: Path | Remote, upright: bool) -> Picture | Unreadable:
    try:
        if isinstance(source, Remote):
            return Picture(_fetched(source), source=source.name)
        return Picture(read_image(source, upright), source, source=source.name)
    except DataError as error:
        return Unreadable(source if isinstance(source, Path) else None, str(error))


def _warn_of_turn(path: Path) -> bool:
    """Say so if a photo is stored turned; once is enough, the next ones are often alike."""
    with path.open("rb") as file:
        turned = exif_turn(file.read(EXIF_BYTES)) != 1
    if turned:
        log.warning(
            "%s: has an EXIF rotation, which is not applied: boxes are in the pixels as stored "
            "(predict --upright turns photos)", path,
        )  # fmt: skip
    return turned


def _fetched(source: Remote) -> np.ndarray:
    try:
        with urllib.request.urlopen(source.address, timeout=TIMEOUT) as reply:
            content = reply.read()
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(f"{source.address}: cannot be read: {reason}") from error
    image = decode_bytes(np.frombuffer(content, np.uint8)) if content else None
    if image is None:
        raise DataError(f"{source.address}: not a readable image")
    return image


def _frames(stream: Stream, stride: int, most: int) -> Iterator[Picture | Unreadable]:
    capture = cv2.VideoCapture(stream.address)
    try:
        if not capture.isOpened():
            kind = "camera" if isinstance(stream.address, int) else "video"
            yield Unreadable(stream.path, f"{_place(stream)}: cannot be opened as a {kind}")
            return
        told, rate = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
        number = shown = 0
        while not (most and shown == most) and capture.grab():
            if number % stride == 0:
                there, image = capture.retrieve()
                if not there:
                    break
                shown += 1
                yield Picture(_coloured(image), stream.path, number, stream.name, max(rate, 0.0))
            number += 1
        if not number:
            yield Unreadable(stream.path, f"{_place(stream)}: has no frame that can be read")
        elif not (most and shown == most) and not stream.live and number < WHOLE * told - 1:
            reason = f"breaks off after {number} of {told:.0f} frames"
            yield Unreadable(stream.path, f"{_place(stream)}: {reason}")
    finally:
        capture.release()


def _place(stream: Stream) -> str:
    """Return the address for a message, without a name and password that it may hold."""
    if isinstance(stream.address, int) or not stream.live:
        return stream.name if isinstance(stream.address, int) else stream.address
    parts = urllib.parse.urlsplit(stream.address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _coloured(image: np.ndarray) -> np.ndarray:
    """Return a frame as (H, W, 3) uint8; cameras may give gray ones."""
    if image.ndim == 2 or image.shape[2] == 1:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    return image


def _checked(picture: np.ndarray) -> np.ndarray:
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
        shape = f"{picture.shape} {picture.dtype}"
        raise DataError(f"a picture must be (H, W, 3) uint8 BGR with pixels, got {shape}")
    return picture


def read_ahead(
    pictures: Iterator[Picture | Unreadable], count: int
) -> Iterator[Picture | Unreadable]:
    """Yield the same, read by a thread up to `count` pictures before they are asked for."""
    with ThreadPoolExecutor(1) as pool:  # one: a generator cannot be asked twice at once
        pending = deque(pool.submit(next, pictures, None) for _ in range(count))
        while (picture := pending.popleft().result()) is not None:
            pending.append(pool.submit(next, pictures, None))
            yield picture
