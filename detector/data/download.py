"""Getting a public data set: fetch an archive, check what is in it, move it into place at once."""

import hashlib
import http.client
import logging
import os
import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detector.errors import DataError

log = logging.getLogger(__name__)

TIMEOUT = 30  # seconds without a byte


@dataclass(frozen=True)
class Download:
    """Where a data set comes from and what must arrive."""

    url: str  # a zip archive
    folder: str  # the folder in the archive that holds the set; "" is the top
    include: tuple[str, ...]  # what is taken from that folder
    digest: str  # `folder_digest` of what is taken


def folder_digest(root: Path, include: Sequence[str]) -> str:
    """Return the SHA-256 over sorted relative paths and file bytes of some folders in `root`."""
    files = {
        path.relative_to(root).as_posix(): path
        for name in include
        for path in (root / name).rglob("*")
        if path.is_file()
    }
    digest = hashlib.sha256()
    for name in sorted(files):
        content = files[name].read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def fetch(download: Download, target: Path, advice: str) -> None:
    """Download a data set to the new folder `target`, which appears whole or not at all.

    `advice` tells in the error message what else a person can do. Of several processes that
    fetch the same set, the first one wins.

    Raises:
        DataError: no connection, a damaged archive or a different content.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f"{target.name}.", suffix=".part", dir=target.parent))
    except OSError as error:
        raise DataError(f"{target}: cannot write the data set: {error.strerror}") from error
    try:
        archive = part / "archive.zip"
        _download(download.url, archive, advice)
        found = _extract(archive, download, part / "unpacked", advice)
        if found != download.digest:
            raise DataError(
                f"{download.url}: the content is not the expected one "
                f"(digest {found[:16]}..., expected {download.digest[:16]}...); {advice}"
            )
        os.rename(part / "unpacked", target)
    except OSError as error:
        if not target.is_dir():  # nobody else was faster
            raise DataError(f"{target}: cannot write the data set: {error.strerror}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _download(url: str, archive: Path, advice: str) -> None:
    log.info("downloading %s", url)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as reply, archive.open("wb") as file:
            shutil.copyfileobj(reply, file)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(f"cannot download {url} ({reason}); {advice}") from error


def _extract(archive: Path, download: Download, target: Path, advice: str) -> str:
    """Unpack the wanted folders to `target` and return their digest."""
    wanted = tuple(f"{download.folder}/{name}/".lstrip("/") for name in download.include)
    start = len(f"{download.folder}/".lstrip("/"))
    target.mkdir()
    try:
        with zipfile.ZipFile(archive) as content:
            for entry in content.infolist():
                if entry.is_dir() or not entry.filename.startswith(wanted):
                    continue
                path = target / entry.filename[start:]
                if not path.resolve().is_relative_to(target.resolve()):
                    raise DataError(f"{download.url}: {entry.filename} points out of the folder")
                path.parent.mkdir(parents=True, exist_ok=True)
                with content.open(entry) as source, path.open("wb") as file:
                    shutil.copyfileobj(source, file)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise DataError(f"{download.url}: not a whole zip archive ({error}); {advice}") from error
    return folder_digest(target, download.include)
