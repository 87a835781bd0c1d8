from pathlib import Path

import pytest

from detector.errors import CheckpointError
from detector.runtimes.contract import one_line, read_sidecar, sidecar_path, write_sidecar


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    files = (tmp_path / "a.param", tmp_path / "a.bin")
    for file in files:
        file.write_text(file.name)
    write_sidecar(files, {"names": ["ü"], "imgsz": 64})
    return files


def test_a_sidecar_gives_back_what_was_written(pair: tuple[Path, Path]) -> None:
    assert sidecar_path(pair[0]).name == "a.param.json"
    facts = read_sidecar(pair[0], [pair[1]])
    assert (facts["names"], facts["imgsz"]) == (["ü"], 64)


@pytest.mark.parametrize("which", [0, 1])
def test_other_content_is_refused_by_the_files_name(pair: tuple[Path, Path], which: int) -> None:
    pair[which].write_text("other")
    with pytest.raises(CheckpointError, match=rf"{pair[which].name}: not the file that a\.param"):
        read_sidecar(pair[0], [pair[1]])


def test_missing_parts_are_named(pair: tuple[Path, Path]) -> None:
    pair[1].unlink()
    with pytest.raises(CheckpointError, match=r"a\.bin: no such file; a\.param needs it"):
        read_sidecar(pair[0], [pair[1]])
    sidecar_path(pair[0]).unlink()
    with pytest.raises(CheckpointError, match=r"there is no a\.param\.json beside it"):
        read_sidecar(pair[0])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"sha256": 3}'])
def test_a_sidecar_without_hashes_is_refused(pair: tuple[Path, Path], text: str) -> None:
    sidecar_path(pair[0]).write_text(text)
    with pytest.raises(CheckpointError, match="not a readable sidecar"):
        read_sidecar(pair[0])


def test_long_errors_are_one_short_line() -> None:
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(ValueError()) == "ValueError"
    assert len(one_line(ValueError("x" * 1000))) == 300
