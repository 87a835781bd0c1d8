"""Where the parts of a data set lie: descriptions, folders, splits and the format they speak of."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from detector.data.coco import ROBOFLOW_FILE
from detector.errors import DataError, did_you_mean

SPLITS = ("train", "val", "test")
FOLDER_NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
DESCRIPTION_NAMES = ("data.yaml", "dataset.yaml", "data.yml")
DATA_VARIABLE = "DETECTOR_DATA"


def data_home() -> Path | None:
    """Return the folder that the environment names for data sets, if it does."""
    value = os.environ.get(DATA_VARIABLE)
    return Path(value) if value else None


def candidates(description: Path, folder: str) -> Iterator[Path]:
    """Yield where a description's folder may be, best first."""
    if Path(folder).is_absolute():
        yield Path(folder)
        return
    if Path(folder) == Path():  # the description lies in the set's own folder
        yield description.parent
        return
    home = data_home()
    if home is not None:
        yield home / folder
        yield home / description.stem
    yield description.parent / folder
    yield Path(folder).absolute()


def is_filled(folder: Path) -> bool:
    """Whether it is a folder with something in it."""
    return folder.is_dir() and any(folder.iterdir())


def find_description(path: Path) -> Path:
    """Return the file or folder, also from under $DETECTOR_DATA. Raises: DataError: neither is."""
    home = data_home()
    if path.exists():
        return path
    if home is not None and (home / path).exists():
        return home / path
    known = [str(file) for file in sorted(path.parent.glob("*.yaml"))]
    hint = did_you_mean(str(path), known) if known else ""
    raise DataError(f"{path}: no such data set description (yaml, .data or folder){hint}")


def description_inside(folder: Path) -> Path | None:
    """Return the description that an exported set brings along, if there is one."""
    return next((folder / name for name in DESCRIPTION_NAMES if (folder / name).is_file()), None)


def find_existing(source: Path, written: str, place: str) -> Path:
    """Return a file or folder that `source` names: relative to it, its parent, here, or home.

    Raises:
        DataError: it is nowhere; `place` says where it was named.
    """
    home = data_home()
    bases = [source.parent, source.parent.parent, Path(), *([home] if home else [])]
    for base in bases:
        if (base / written).exists():
            return base / written
    raise DataError(f"{place}: {written} does not exist")


def detect_format(root: Path, given: Mapping[str, tuple[str, ...]]) -> str | None:
    """Return yolo, voc or coco as the files suggest, or None."""
    if (root / "JPEGImages").is_dir() or any(root.glob("VOC*/JPEGImages")):
        return "voc"
    entries = [entry for split in given.values() for entry in split]
    if any(entry.endswith(".json") for entry in entries):
        return "coco"
    places = [root / entry for entry in entries] or [root / name for name in ("train", "valid")]
    if any((place / ROBOFLOW_FILE).is_file() for place in places):
        return "coco"
    if any((root / "annotations").glob("instances_*.json")):
        return "coco"
    return "yolo" if entries or _yolo_folders(root, "train") else None


def complete_splits(
    root: Path, kind: str, given: Mapping[str, tuple[str, ...]], description: Path
) -> dict[str, tuple[str, ...]]:
    """Return the splits that are given, or else those that the folder's layout shows.

    Raises:
        DataError: no train split.
    """
    find = {"voc": _voc_lists, "coco": _coco_files, "yolo": _yolo_folders}[kind]
    splits = {}
    for split in SPLITS:
        if split in given:
            splits[split] = tuple(_below(root, entry) for entry in given[split])
        elif not given and find(root, split):
            splits[split] = find(root, split)
    if "train" not in splits:
        raise DataError(f"{description}: no train split: write `train:` ({kind} set in {root})")
    return splits


def _below(root: Path, entry: str) -> str:
    """Return an entry without the `../` that Roboflow writes before paths inside the set."""
    inner = entry
    while inner.startswith("../"):
        inner = inner[3:]
    return inner if not (root / entry).exists() and (root / inner).exists() else entry


def _voc_lists(root: Path, split: str) -> tuple[str, ...]:
    names = FOLDER_NAMES[split]
    bases = [root, *sorted(root.glob("VOC*"))]
    lists = [base / "ImageSets" / "Main" / f"{name}.txt" for base in bases for name in names]
    return tuple(path.relative_to(root).as_posix() for path in lists if path.is_file())


def _coco_files(root: Path, split: str) -> tuple[str, ...]:
    names = FOLDER_NAMES[split]
    exported = [f"{name}/{ROBOFLOW_FILE}" for name in names]
    official = [
        path.relative_to(root).as_posix()
        for name in names
        for path in sorted((root / "annotations").glob(f"instances_{name}*.json"))
    ]
    return tuple([name for name in exported if (root / name).is_file()] or official)


def _yolo_folders(root: Path, split: str) -> tuple[str, ...]:
    names = FOLDER_NAMES[split]
    places = [f"images/{name}" for name in names] + [f"{name}/images" for name in names]
    found = [place for place in places if (root / place).is_dir()]
    return tuple(found or [f"{name}.txt" for name in names if (root / f"{name}.txt").is_file()])
