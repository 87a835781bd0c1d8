from pathlib import Path

import pytest

from detector.config import resolve
from detector.errors import ConfigError
from detector.yamlfile import read_mapping


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_a_file_takes_over_its_base_and_wins(tmp_path: Path) -> None:
    write(tmp_path / "base" / "a.yaml", "lr0: 0.01\nmixup: 0.2\ntrain: {epochs: 5, imgsz: 64}\n")
    child = write(tmp_path / "b.yaml", "base: base/a.yaml\nlr0: 0.02\ntrain: {epochs: 7}\n")
    config, hyp = resolve({}, child)
    assert (hyp.lr0, hyp.mixup, config.epochs, config.imgsz) == (0.02, 0.2, 7, 64)


def test_later_bases_win_and_bases_may_have_bases(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "x: 1\ny: 1\nz: 1\n")
    write(tmp_path / "b.yaml", "base: a.yaml\ny: 2\n")
    write(tmp_path / "c.yaml", "z: 3\n")
    child = write(tmp_path / "d.yaml", "base: [b.yaml, c.yaml]\n")
    assert read_mapping(child) == {"x": 1, "y": 2, "z": 3}


def test_the_weights_of_the_fitness_are_replaced_not_merged(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "train: {fitness: {mAP50: 0.5, F1: 0.5}}\n")
    child = write(tmp_path / "b.yaml", "base: a.yaml\ntrain: {fitness: {mAP50: 1.0}}\n")
    assert resolve({}, child)[0].fitness == {"mAP50": 1.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: b.yaml\n", "leads back to itself"),
        ("base: absent.yaml\n", r"a\.yaml: base: .*absent\.yaml: no such file"),
        ("base: 3\n", "base=3 must be the path of a file"),
    ],
)
def test_a_wrong_base_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    first = write(tmp_path / "a.yaml", text)
    write(tmp_path / "b.yaml", "base: a.yaml\n")
    with pytest.raises(ConfigError, match=message):
        read_mapping(first)
