"""Data set descriptions (`data/*.yaml`): where the images are, in which format, with which classes.

A description is a yaml file of ours or in the style of Ultralytics, a Darknet `*.data` file, or
simply the folder of a set; several at once are joined. docs/data.md lists the keys.
"""

import functools
import logging
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from detector.data import coco, darknet, layout, voc, yolo
from detector.data.cache import content_digest
from detector.data.download import Download, fetch
from detector.data.keys import (
    FORMATS,
    SHAPES_KEYS,
    WrongKey,
    check_keys,
    read_entries,
    read_ignore,
    read_names,
    read_skips,
)
from detector.data.labels import Problems, read_lines
from detector.data.layout import SPLITS
from detector.data.sample import Sample
from detector.data.shapes import CLASSES, ShapesConfig, generate
from detector.data.wrappers import SINGLE_CLASS, label_map, relabel
from detector.errors import DataError, did_you_mean

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataConfig:
    """A data set that is there: its folder, classes and what each split is read from."""

    path: Path  # the description
    root: Path
    format: str  # yolo, voc or coco: who reads the labels
    names: tuple[str, ...]
    splits: dict[str, tuple[str, ...]]  # train, val, test -> folders, lists, names or json files
    ignore: tuple[str, ...] = ()  # classes whose objects are left out
    skip_bad: bool = False  # count and leave out bad labels and images
    parts: tuple["DataConfig", ...] = ()  # the sets that this one is made of; it has no own images

    @property
    def num_classes(self) -> int:
        return len(self.names)


def load_data(path: str | Path) -> DataConfig:
    """Read a description and find its images; generate or download them when it says so.

    Several descriptions, with commas between them, are one set: splits are joined, labels follow
    the names of the first. The images are looked for under $DETECTOR_DATA, then beside the
    description, then in the current folder; an absolute path is taken as it is.

    Raises:
        DataError: a missing file or folder, an unknown key, a wrong value, or sets that do not
            have the same classes.
    """
    words = split_list(path)
    if len(words) > 1:
        return join([load_data(word) for word in words])
    return _describe(*_opened(words[0]))


def load_leniently(path: str | Path) -> tuple[DataConfig | None, list[str]]:
    """Return what is left of a single description without its wrong keys, and all that is wrong.

    Raises: DataError: there is no such description.
    """
    errors: list[str] = []
    found = layout.find_description(Path(path))
    try:
        found, content = _opened(path)
    except DataError as error:
        return None, [str(error)]
    dropped: set[str] = set()
    while True:
        try:
            return _describe(found, content), errors
        except WrongKey as error:
            if error.key not in dropped:
                errors.append(str(error))
            if error.key not in content:
                return None, errors
            dropped.add(error.key)
            content = {key: value for key, value in content.items() if key != error.key}
        except DataError as error:
            return None, [*errors, str(error)]


def _opened(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """Return the description behind a path and its content."""
    path = layout.find_description(Path(path))
    if path.is_dir():
        inner = layout.description_inside(path)
        path, content = inner or path, _read_yaml(inner) if inner else {"path": str(path)}
    else:
        content = {"format": "darknet"} if path.suffix == ".data" else _read_yaml(path)
    if "valid" in content and "val" not in content:
        content["val"] = content.pop("valid")
    return path, content


def split_list(path: str | Path) -> list[str]:
    """Return the descriptions that stand between commas. Raises: DataError: one is empty."""
    if "," not in str(path) or Path(path).exists():
        return [str(path)]
    words = [word.strip() for word in str(path).split(",")]
    if not all(words):
        raise DataError(f"data {path}: a name is missing before or after a comma")
    return words


def short_name(path: str | Path) -> str:
    """Return a name for runs on this data: `bccd` for data/bccd.yaml, `a+b` for several sets."""
    return "+".join(Path(word).stem for word in split_list(path))


def join(sets: Sequence[DataConfig]) -> DataConfig:
    """Return several sets as one with the names of the first, in its order.

    Raises: DataError: a set is given twice, or they do not have the same classes.
    """
    first, paths = sets[0], [data.path for data in sets]
    for data in sets:
        if paths.count(data.path) > 1:
            raise DataError(f"{data.path}: is given twice; to show images more often: repeat")
        label_map(str(data.path), data.names, first.names)
    splits = {
        split: tuple(str(data.path) for data in sets if split in data.splits) for split in SPLITS
    }
    found = {split: holders for split, holders in splits.items() if holders}
    path = Path(",".join(map(str, paths)))
    return DataConfig(path, first.root, "joined", first.names, found, parts=tuple(sets))


def single_class(data: DataConfig) -> DataConfig:
    """Return the set with all its classes as one."""
    parts = data.parts or (data,)
    return replace(data, format="joined", names=(SINGLE_CLASS,), parts=parts)


def read_sets(data: DataConfig, split: str) -> dict[str, list[Sample]]:
    """Return the samples of each set that `data` was joined from, by its name; see `read_split`.

    A set without the split is left out; labels are those of `data`.
    """
    _require_split(data, split)
    read: dict[str, list[Sample]] = {}
    for part in data.parts or (data,):
        if split not in part.splits:
            log.info("%s: has no %s split", part.path, split)
            continue
        samples = read_split(part, split)
        if data.parts:
            single = data.names == (SINGLE_CLASS,)
            source = str(part.path)
            labels = [0] * part.num_classes if single else label_map(source, part.names, data.names)
            samples = relabel(samples, labels)
        read[_set_name(part.path, read)] = samples
    return read


def _set_name(path: Path, taken: Collection[str]) -> str:
    """Return a name for one of several sets: exported ones are all called data.yaml."""
    name = path.parent.name if path.name in layout.DESCRIPTION_NAMES else path.stem
    return name if name not in taken else f"{name}-{len(taken) + 1}"


def _require_split(data: DataConfig, split: str) -> None:
    if split not in data.splits:
        allowed = ", ".join(data.splits)
        raise DataError(f"{data.path}: there is no {split} split; there are: {allowed}")


def read_split(data: DataConfig, split: str) -> list[Sample]:
    """Return the labelled images of train, val or test in a fixed order.

    What was dropped, skipped or looks wrong is logged in one line each.

    Raises:
        DataError: no such split, no images, or bad labels or images.
    """
    if data.parts:
        return [sample for samples in read_sets(data, split).values() for sample in samples]
    _require_split(data, split)
    entries = data.splits[split]
    problems = Problems(f"{data.path}: {split}", data.skip_bad)
    samples = read_labels(data, entries, problems)
    if data.format == "voc" and split != "train":
        voc.warn_overlap(data.root, split, entries, data.splits["train"])
    problems.report()
    if not samples:
        raise DataError(f"{data.path}: the {split} split has no images that can be read")
    _report_classes(data, split, samples)
    return samples


def read_labels(data: DataConfig, entries: Sequence[str], problems: Problems) -> list[Sample]:
    """Return the samples of a split's entries; `problems` hears of everything that is wrong.

    Raises: DataError: what `problems` does not take, such as a missing folder.
    """
    if data.format == "voc":
        return voc.read_voc(data.root, entries, data.names, data.ignore, problems)
    if data.format == "coco":
        return coco.read_coco(data.root, entries, data.names, data.ignore, problems)
    return yolo.read_yolo(data.root, entries, data.names, problems)


def digest(samples: Sequence[Sample]) -> str:
    """Return a hex digest of the content: image bytes, boxes and labels; not of the paths."""
    return content_digest(samples)


def _report_classes(data: DataConfig, split: str, samples: Sequence[Sample]) -> None:
    counts = Counter(int(label) for sample in samples for label in sample.labels)
    log.info(
        "%s: %s: %d images, %d boxes", data.path, split, len(samples), sum(counts.values())
    )  # fmt: skip
    unused = [name for index, name in enumerate(data.names) if not counts[index]]
    if len(unused) == data.num_classes:
        log.warning("%s: the %s split has no boxes at all", data.path, split)
    elif unused and split == "train":
        log.warning("%s: no box in the train split for: %s", data.path, ", ".join(unused))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file (UTF-8)") from error
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not a yaml file: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: a description has lines `key: value`")
    return content


def _describe(path: Path, content: dict[str, Any]) -> DataConfig:
    """Turn the content of a description into a checked `DataConfig`."""
    content = dict(content)
    kind = content.get("format")
    if kind is not None and kind not in FORMATS:
        hint = did_you_mean(str(kind), FORMATS)
        raise WrongKey(path, "format", f"format {kind} is not known{hint}")
    if kind is None and isinstance(content.get("train"), int):
        content["format"] = kind = "shapes"  # a number of images to draw
    check_keys(path, content)
    if kind == "darknet" or str(content.get("path", "")).endswith(".data"):
        return _describe_darknet(path, content)
    if kind == "shapes":
        return _describe_shapes(path, content)
    root = _find_root(path, content)
    given = {split: read_entries(path, content, split) for split in SPLITS if content.get(split)}
    kind = kind or layout.detect_format(root, given)
    if kind is None:
        raise DataError(f"{root}: cannot tell the format; write `format:` (yolo, voc, coco)")
    splits = layout.complete_splits(root, kind, given, path)
    ignore = read_ignore(path, content, kind)
    names = read_names(path, content) or _found_names(root, kind, splits, ignore, path)
    return DataConfig(path, root, kind, names, splits, ignore, read_skips(path, content))


def _describe_darknet(path: Path, content: dict[str, Any]) -> DataConfig:
    for key in content:
        if key not in ("format", "path", "on_error"):
            raise WrongKey(path, key, f"{key} is said by the .data file, it cannot be given here")
    find = functools.partial(layout.find_existing, path)
    file = path if path.suffix == ".data" else find(str(content.get("path")), str(path))
    find = functools.partial(layout.find_existing, file)
    data = darknet.read_data_file(file, find)
    splits: dict[str, tuple[str, ...]] = {
        split: (str(find(*data.splits[split]).absolute()),)
        for split in SPLITS
        if split in data.splits
    }
    return DataConfig(
        path, file.absolute().parent, "yolo", data.names, splits, skip_bad=read_skips(path, content)
    )


def _describe_shapes(path: Path, content: dict[str, Any]) -> DataConfig:
    values = {key: content[key] for key in SHAPES_KEYS if key in content}
    try:
        config = ShapesConfig(**values)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    names = read_names(path, content) or CLASSES
    if names != CLASSES:
        raise WrongKey(path, "names", f"the names of format shapes are {', '.join(CLASSES)}")
    folder = content.get("path", "shapes")
    parent = next(
        (base for base in layout.candidates(path, folder) if (base / config.key).is_dir()),
        path.parent / folder,
    )
    root = generate(config, parent)
    splits: dict[str, tuple[str, ...]] = {
        split: (f"images/{split}",) for split in SPLITS if getattr(config, split)
    }
    return DataConfig(path, root, "yolo", names, splits)


def _find_root(path: Path, content: dict[str, Any]) -> Path:
    if path.is_dir():
        return path
    folder = content.get("path") or "."
    if not isinstance(folder, str):
        raise WrongKey(path, "path", f"path: {folder!r} must be text")
    for candidate in layout.candidates(path, folder):
        if layout.is_filled(candidate):
            return candidate
    target = path.parent / folder
    advice = f"put it by hand into {target}, or set DETECTOR_DATA to a folder with {path.stem}/"
    if isinstance(content.get("download"), dict):  # the text of other tools is never followed
        download = _download(path, content["download"])
        fetch(download, target, f"{advice} ({', '.join(download.include)})")
        return target
    raise DataError(f"{path}: the folder {folder} does not exist; {advice}")


def _download(path: Path, content: dict[str, Any]) -> Download:
    known = [field.name for field in fields(Download)]
    for key in content:
        if key not in known:
            raise DataError(f"{path}: download: {key} is not a key{did_you_mean(str(key), known)}")
    missing = [key for key in known if key not in content]
    if missing:
        raise DataError(f"{path}: download: {missing[0]} is missing")
    include = tuple(str(name) for name in content["include"])
    return Download(
        str(content["url"]), str(content["folder"]), include, str(content["digest"])
    )  # fmt: skip


def _found_names(
    root: Path,
    kind: str,
    splits: dict[str, tuple[str, ...]],
    ignore: tuple[str, ...],
    path: Path,
) -> tuple[str, ...]:
    if kind == "yolo":
        if (root / "classes.txt").is_file():  # as LabelImg writes it
            return tuple(name for _, name in read_lines(root / "classes.txt"))
        raise WrongKey(path, "names", "names is missing: YOLO labels have numbers only")
    if kind == "voc":
        names = voc.class_names(root)
    else:
        entries = [entry for split in splits.values() for entry in split]
        names = coco.class_names([coco.find_json(root, entry) for entry in entries])
    return tuple(name for name in names if name not in ignore)
