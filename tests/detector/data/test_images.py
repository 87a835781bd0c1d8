import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.data.images import exif_turn, image_size, is_cut_off, list_images, read_image
from detector.errors import DataError

PICTURE = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)  # 20 high, 30 wide


def encoded(suffix: str, image: np.ndarray = PICTURE) -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tiff"])
def test_size_is_height_and_width_in_every_format(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encoded(suffix))
    assert image_size(path) == (20, 30)


def test_size_of_a_progressive_jpeg_comes_from_the_header(tmp_path: Path) -> None:
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
    path = tmp_path / "a.jpg"
    path.write_bytes(cv2.imencode(".jpg", PICTURE, options)[1].tobytes())
    assert image_size(path) == (20, 30)


def test_size_skips_an_embedded_thumbnail_and_fill_bytes(tmp_path: Path) -> None:
    plain = encoded(".jpg")
    thumbnail = encoded(".jpg", np.zeros((4, 5, 3), np.uint8))
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    path = tmp_path / "a.jpg"
    path.write_bytes(plain[:2] + segment + b"\xff" + plain[2:])
    assert image_size(path) == (20, 30)


def test_size_needs_only_the_header_of_a_png(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(".png")[:40])
    assert image_size(path) == (20, 30)
    with pytest.raises(DataError, match=r"a\.png: not a readable image"):
        read_image(path)


@pytest.mark.parametrize("function", [image_size, read_image])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"this is text, renamed", "not a readable image"),
        (b"\xff\xd8\xff", "not a readable image"),
        (b"\x89PNG\r\n\x1a\n", "not a readable image"),
    ],
)
def test_what_is_no_image_is_an_error_naming_the_file(
    tmp_path: Path, function: object, content: bytes, message: str
) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"broken\.jpg: .*{message}"):
        function(path)  # type: ignore[operator]


@pytest.mark.parametrize("function", [image_size, read_image])
def test_missing_image_is_an_error_naming_the_file(tmp_path: Path, function: object) -> None:
    with pytest.raises(DataError, match=r"gone\.jpg.*No such file"):
        function(tmp_path / "gone.jpg")  # type: ignore[operator]


def test_names_outside_ascii_work(tmp_path: Path) -> None:
    path = tmp_path / "bild ü 图.png"
    path.write_bytes(encoded(".png"))
    assert np.array_equal(read_image(path), PICTURE)
    assert image_size(path) == (20, 30)


@pytest.mark.parametrize(
    "stored",
    [
        np.full((6, 8), 200, np.uint8),
        np.full((6, 8), 200 * 257, np.uint16),
        np.full((6, 8, 4), 200, np.uint8),
        np.full((6, 8, 3), 200 * 257, np.uint16),
    ],
    ids=["gray", "gray 16 bit", "alpha", "colour 16 bit"],
)
def test_every_depth_becomes_8_bit_bgr(tmp_path: Path, stored: np.ndarray) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(".png", stored))
    image = read_image(path)
    assert image.dtype == np.uint8
    assert np.array_equal(image, np.full((6, 8, 3), 200, np.uint8))


def test_exif_rotation_is_not_applied(tmp_path: Path) -> None:
    # a TIFF block with one entry: tag 0x0112 (orientation), type 3 (short), 1 value: 6 = turned
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    tiff = b"MM\0*" + struct.pack(">I", 8) + struct.pack(">H", 1) + entry + b"\0\0\0\0"
    exif = b"Exif\0\0" + tiff
    plain = encoded(".jpg")
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    path = tmp_path / "turned.jpg"
    path.write_bytes(plain[:2] + segment + plain[2:])
    assert cv2.imread(str(path)).shape[:2] == (30, 20)  # OpenCV would turn it
    assert read_image(path).shape[:2] == image_size(path) == (20, 30)


def test_list_is_sorted_takes_any_case_and_leaves_out_hidden_files(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for name in ("b.JPG", "a.png", "below/c.jpeg", ".d.png", "e.txt"):
        (tmp_path / name).write_bytes(b"x")
    found = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert found == ["a.png", "b.JPG", "below/c.jpeg"]


def with_exif(order: str, turn: int, tags: int = 2) -> bytes:
    """Return a JPEG with an EXIF segment whose last tag is the orientation."""
    mark = {"<": b"II", ">": b"MM"}[order]
    entries = b"".join(
        struct.pack(f"{order}HHIHH", 0x0112 if i == tags - 1 else 0x0100 + i, 3, 1, turn, 0)
        for i in range(tags)
    )
    tiff = mark + struct.pack(f"{order}HIH", 42, 8, tags) + entries + struct.pack(f"{order}I", 0)
    body = b"Exif\x00\x00" + tiff
    plain = encoded(".jpg")
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + plain[2:]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("turn", [1, 3, 6, 8])
def test_exif_orientation_is_read_in_both_byte_orders(order: str, turn: int) -> None:
    content = with_exif(order, turn)
    assert exif_turn(content) == turn
    # OpenCV reads the same tag: it turns the 30 x 20 picture by a quarter for 6 and 8
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert image.shape[:2] == ((30, 20) if turn in (6, 8) else (20, 30))


@pytest.mark.parametrize(
    "content",
    [encoded(".jpg"), encoded(".png"), b"", with_exif("<", 99), with_exif("<", 6)[:40]],
    ids=["plain", "png", "empty", "nonsense", "cut off"],
)
def test_images_without_a_known_orientation_are_upright(content: bytes) -> None:
    assert exif_turn(content) == 1


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_file_without_its_end_is_cut_off(suffix: str) -> None:
    content = encoded(suffix)
    assert not is_cut_off(content)
    assert not is_cut_off(content + b"camera data" * 50)
    assert is_cut_off(content[:-13])
    assert not is_cut_off(encoded(".bmp")[:-13])  # has no end marker
