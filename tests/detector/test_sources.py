"""Pictures from videos, lists, addresses and odd files."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.errors import DataError
from detector.sources import (
    Picture,
    Remote,
    Source,
    Stream,
    Unreadable,
    find_sources,
    open_pictures,
    read_ahead,
)


def pictures(source: Source | list[Source], **options: int) -> list[Picture | Unreadable]:
    return list(read_ahead(open_pictures(find_sources(source), **options), 3))  # type: ignore[arg-type]


@pytest.fixture
def frames() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (48, 64, 3)).astype(np.uint8) for _ in range(7)]


@pytest.fixture
def clip(tmp_path: Path, frames: list[np.ndarray]) -> Path:
    """Seven frames of 64 x 48 pixels, 10 a second."""
    path = tmp_path / "clip.AVI"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 48))
    for frame in frames:
        video.write(frame)
    video.release()
    return path


def test_frames_are_those_that_opencv_decodes(clip: Path) -> None:
    found = [one for one in pictures(clip) if isinstance(one, Picture)]
    capture = cv2.VideoCapture(str(clip))
    assert [one.frame for one in found] == list(range(7))
    for one in found:
        assert np.array_equal(one.image, capture.read()[1])
        assert (one.path, one.source, one.rate) == (clip, "clip.AVI", 10.0)


def test_every_nth_frame_and_no_more_than_asked_for(clip: Path) -> None:
    found = [one for one in pictures(clip, stride=3, most=2) if isinstance(one, Picture)]
    assert [one.frame for one in found] == [0, 3]


def test_a_video_that_breaks_off_gives_its_frames_and_one_message(clip: Path) -> None:
    content = clip.read_bytes()
    clip.write_bytes(content[: len(content) // 2])
    *found, last = pictures(clip)
    assert 0 < len(found) < 7
    assert isinstance(last, Unreadable) and "breaks off after" in last.reason


@pytest.mark.parametrize("content", [b"", b"this is no video"])
def test_what_is_no_video_is_one_message(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "text.mp4"
    path.write_bytes(content)
    (found,) = pictures(path)
    assert isinstance(found, Unreadable)
    assert found.reason == f"{path}: cannot be opened as a video"


def test_lists_numbers_and_addresses_are_told_apart(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "list.txt").write_text("a.png\n\nclip.AVI\n")  # beside the list
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert find_sources(tmp_path / "list.txt") == [tmp_path / "a.png", Stream(str(clip))]
    assert find_sources(["0", 1]) == [Stream(0), Stream(1)]
    Path("7").mkdir()
    with pytest.raises(DataError, match="the folder has no images or videos"):
        find_sources("7")  # a folder of that name comes first
    assert find_sources("rtsp://me:secret@camera/live") == [Stream("rtsp://me:secret@camera/live")]
    assert find_sources("http://host/x/a.JPG?size=2") == [Remote("http://host/x/a.JPG?size=2")]
    assert find_sources(tmp_path) == [tmp_path / "a.png", Stream(str(clip))]


def test_a_password_is_in_no_message() -> None:
    address = "http://me:secret@127.0.0.1:9/live.mjpg"
    (found,) = pictures(address)
    assert isinstance(found, Unreadable) and "secret" not in found.reason
    assert found.reason == "http://127.0.0.1:9/live.mjpg: cannot be opened as a video"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """A server of tmp_path on the loopback."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path))  # type: ignore[arg-type]

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_pictures_and_videos_come_from_addresses(
    served: str, clip: Path, tmp_path: Path, frames: list[np.ndarray]
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), frames[0])
    (tmp_path / "text.jpg").write_text("no picture")
    first, gone, text, *video = pictures(
        [f"{served}/{name}" for name in ("a.png", "gone.png", "text.jpg", "clip.AVI")]
    )
    assert isinstance(first, Picture) and np.array_equal(first.image, frames[0])
    assert isinstance(gone, Unreadable) and gone.reason.endswith(
        "gone.png: cannot be read: File not found"
    )
    assert isinstance(text, Unreadable) and "not a readable image" in text.reason
    assert len(video) == 7


def test_odd_images_are_pictures_of_three_channels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    odd = {
        "gray.png": rng.integers(0, 255, (9, 7)).astype(np.uint8),
        "deep.png": rng.integers(0, 65535, (9, 7, 3)).astype(np.uint16),
        "alpha.png": rng.integers(0, 255, (9, 7, 4)).astype(np.uint8),
        "thin.png": rng.integers(0, 255, (3, 4000, 3)).astype(np.uint8),
        "UPPER.PNG": rng.integers(0, 255, (9, 7, 3)).astype(np.uint8),
    }
    for name, image in odd.items():
        cv2.imwrite(str(tmp_path / name), image)
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "zero.jpg").write_bytes(b"")
    found = {one.source: one for one in pictures(tmp_path) if isinstance(one, Picture)}
    assert set(found) == set(odd)
    assert {found[name].image.shape[:2] == odd[name].shape[:2] for name in odd} == {True}
    assert {(one.image.dtype, one.image.shape[2]) for one in found.values()} == {
        (np.dtype(np.uint8), 3)
    }
    bad = [one.reason for one in pictures(tmp_path) if isinstance(one, Unreadable)]
    assert [reason.partition(": ")[2] for reason in bad] == [
        "not a readable image", "the image file is empty (0 bytes)",
    ]  # fmt: skip


def test_a_turned_photo_is_turned_when_asked_and_else_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    done, body = cv2.imencode(".jpg", np.zeros((20, 40, 3), np.uint8))
    assert done
    # APP1 with one entry of the TIFF directory: orientation (0x0112, SHORT) = 6
    tiff = (
        b"MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00"
        + b"\x00" * 4
    )
    exif = b"Exif\x00\x00" + tiff
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(body.tobytes()[:2] + segment + body.tobytes()[2:])
    shapes = [one.image.shape[:2] for one in pictures(tmp_path) if isinstance(one, Picture)]
    assert shapes == [(20, 40), (20, 40)]
    assert caplog.text.count("has an EXIF rotation, which is not applied") == 1
    turned = pictures(tmp_path, upright=True)
    assert [one.image.shape[:2] for one in turned if isinstance(one, Picture)] == [(40, 20)] * 2
