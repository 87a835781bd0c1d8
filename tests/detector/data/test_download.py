import os
import zipfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.data.description import load_data, read_split
from detector.data.download import Download, fetch, folder_digest
from detector.errors import DataError

XML = (
    "<annotation><object><name>RBC</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>8</xmax>"
    "<ymax>9</ymax></bndbox></object></annotation>"
)
INCLUDE = ("Annotations", "ImageSets", "JPEGImages")


def write_set(root: Path) -> None:
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / name).mkdir(parents=True)
    (root / "Annotations" / "a.xml").write_text(XML)
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    content = cv2.imencode(".jpg", np.zeros((20, 30, 3), np.uint8))[1].tobytes()
    (root / "JPEGImages" / "a.jpg").write_bytes(content)


@pytest.fixture
def origin(tmp_path: Path) -> Download:
    """A zip archive like GitHub's: the set in a folder of a folder, with other files."""
    write_set(tmp_path / "origin")
    archive = tmp_path / "origin.zip"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("set-1234/README.md", "not wanted")
        content.writestr("set-1234/SET/Annotations/", "")
        content.writestr("set-1234/SET/Annotations2/x.xml", "not wanted")
        for path in sorted((tmp_path / "origin").rglob("*")):
            if path.is_file():
                name = path.relative_to(tmp_path / "origin").as_posix()
                content.write(path, f"set-1234/SET/{name}")
    digest = folder_digest(tmp_path / "origin", INCLUDE)
    return Download(archive.as_uri(), "set-1234/SET", INCLUDE, digest)


def write_description(folder: Path, origin: Download) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "cells.yaml"
    path.write_text(
        f"format: voc\npath: cells\ntrain: train\nnames: [RBC]\ndownload:\n  url: {origin.url}\n"
        f"  folder: {origin.folder}\n  include: [{', '.join(origin.include)}]\n"
        f"  digest: '{origin.digest}'\n"
    )
    return path


def test_description_downloads_its_set_once(tmp_path: Path, origin: Download) -> None:
    path = write_description(tmp_path / "data", origin)
    data = load_data(path)
    assert data.root == tmp_path / "data" / "cells"
    assert sorted(file.name for file in data.root.iterdir()) == sorted(INCLUDE)
    (sample,) = read_split(data, "train")
    assert sample.boxes.tolist() == [[0, 0, 8, 9]]
    (tmp_path / "origin.zip").unlink()
    assert load_data(path) == data
    assert sorted(file.name for file in path.parent.iterdir()) == ["cells", "cells.yaml"]


def test_set_under_the_environment_folder_wins(
    tmp_path: Path, origin: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_description(tmp_path / "data", origin)
    write_set(tmp_path / "home" / "cells")
    monkeypatch.setenv("DETECTOR_DATA", str(tmp_path / "home"))
    assert load_data(path).root == tmp_path / "home" / "cells"
    assert not (tmp_path / "data" / "cells").exists()


def test_other_content_is_an_error_and_nothing_is_left(tmp_path: Path, origin: Download) -> None:
    wrong = replace(origin, digest="0" * 64)
    with pytest.raises(DataError, match="the content is not the expected one") as caught:
        fetch(wrong, tmp_path / "data" / "cells", "put it there by hand")
    assert str(caught.value).endswith("put it there by hand")
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize("keep", [0, 100, -30])
def test_damaged_archive_is_an_error_and_nothing_is_left(
    tmp_path: Path, origin: Download, keep: int
) -> None:
    archive = tmp_path / "origin.zip"
    archive.write_bytes(archive.read_bytes()[:keep])
    with pytest.raises(DataError, match="not a whole zip archive"):
        fetch(origin, tmp_path / "data" / "cells", "advice")
    assert list((tmp_path / "data").iterdir()) == []


def test_no_connection_is_one_line_that_says_what_to_do(tmp_path: Path, origin: Download) -> None:
    path = write_description(tmp_path / "data", replace(origin, url="http://127.0.0.1:9/a.zip"))
    with pytest.raises(DataError) as caught:
        load_data(path)
    text = str(caught.value)
    assert "cannot download http://127.0.0.1:9/a.zip" in text and "\n" not in text
    assert f"put it by hand into {tmp_path}/data/cells" in text and "DETECTOR_DATA" in text
    assert [file.name for file in (tmp_path / "data").iterdir()] == ["cells.yaml"]


@pytest.mark.parametrize("url", ["file:///does/not/exist.zip", "no address", "gopher://x/y"])
def test_address_that_cannot_be_opened_is_an_error(
    tmp_path: Path, origin: Download, url: str
) -> None:
    with pytest.raises(DataError, match="cannot download"):
        fetch(replace(origin, url=url), tmp_path / "cells", "advice")


def test_archive_cannot_write_outside_its_folder(tmp_path: Path, origin: Download) -> None:
    with zipfile.ZipFile(tmp_path / "origin.zip", "a") as content:
        content.writestr("set-1234/SET/Annotations/../../../evil.txt", "x")
    with pytest.raises(DataError, match=r"evil\.txt points out of the folder"):
        fetch(origin, tmp_path / "data" / "cells", "advice")
    assert list(tmp_path.rglob("evil.txt")) == []


def test_set_that_another_process_fetched_meanwhile_is_kept(
    tmp_path: Path, origin: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "data" / "cells"
    rename = os.rename

    def slower(source: Path, to: Path) -> None:
        write_set(target)
        rename(source, to)

    monkeypatch.setattr("detector.data.download.os.rename", slower)
    fetch(origin, target, "advice")
    assert folder_digest(target, INCLUDE) == origin.digest
    assert [file.name for file in target.parent.iterdir()] == ["cells"]


def test_digest_follows_names_and_content(tmp_path: Path) -> None:
    digests = set()
    for name, text in (("a", "x"), ("b", "x"), ("a", "y"), ("a/b", "x")):
        root = tmp_path / str(len(digests))
        file = root / "in" / name
        file.parent.mkdir(parents=True)
        file.write_text(text)
        (root / "other").mkdir()
        digests.add(folder_digest(root, ["in"]))
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  url:", "  link:", "download: link is not a key"),
        ("  digest:", "  diggest:", r"diggest is not a key; did you mean digest\?"),
    ],
)
def test_wrong_download_entry_is_an_error(
    tmp_path: Path, origin: Download, old: str, new: str, message: str
) -> None:
    path = write_description(tmp_path / "data", origin)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=rf"cells\.yaml: .*{message}"):
        load_data(path)
