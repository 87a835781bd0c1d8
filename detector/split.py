"""Train, val and test from all images of a data set: `python -m detector.split data.yaml`.

Classes are spread evenly, rare ones first, and images that look alike stay in one split: else val
would hold pictures that training has seen.

Source: Sechidis et al. 2011, "On the stratification of multi-label data", algorithm 1; here over
groups of images instead of single ones.
"""

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from detector.cli import add_common, run_command
from detector.data.description import DataConfig, load_data, read_split
from detector.data.formats import coco_content, write_description
from detector.data.likeness import Look, find_alike, look_at_all
from detector.data.sample import Sample
from detector.errors import ConfigError, DataError

log = logging.getLogger("detector")

EXAMPLES = """examples:
  python -m detector.split data/mine.yaml --val 0.2 --out data/mine-split
  python -m detector.split data/mine.yaml --val 0.15 --test 0.15 --seed 1 --out data/mine-1
"""


@dataclass(frozen=True)
class Split:
    """The parts of a data set, and its new description."""

    description: Path
    names: tuple[str, ...]
    parts: Mapping[str, Sequence[Sample]]
    groups: int  # of images that look alike, single ones included

    def report(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "description": str(self.description),
            "groups": self.groups,
            "splits": {
                split: {"images": len(samples), "boxes": self.boxes(split)}
                for split, samples in self.parts.items()
            },
        }

    def boxes(self, split: str) -> dict[str, int]:
        """Return the number of boxes of each class."""
        labels = [sample.labels for sample in self.parts[split]]
        counts = np.bincount(np.concatenate([np.zeros(0, int), *labels]), minlength=len(self.names))
        return dict(zip(self.names, counts.tolist(), strict=True))


def split_data(
    data: str | Path,
    folder: str | Path,
    val: float = 0.2,
    test: float = 0.0,
    seed: int = 0,
    alike: bool = True,
) -> Split:
    """Divide all images of a data set anew and write lists and a description into `folder`.

    `val` and `test` are shares of the images. Nothing is copied: the lists name the images where
    they are. With `alike`, images that look alike stay together.

    Raises: DataError: bad data, or too few images for a split. ConfigError: impossible shares.
    """
    shares = _shares(val, test)
    source = load_data(data)
    if source.parts:
        raise DataError(f"{data}: split one set at a time, or detector.convert them to one first")
    samples = _all_samples(source)
    group = _alike_groups(samples) if alike else np.arange(len(samples))
    holds = np.zeros((len(samples), source.num_classes), np.int64)
    for row, sample in zip(holds, samples, strict=True):
        row[np.unique(sample.labels)] = 1
    chosen = stratify(holds, group, np.array(list(shares.values())), seed)
    parts = {
        split: [samples[index] for index in np.flatnonzero(chosen == number)]
        for number, split in enumerate(shares)
    }
    for split, members in parts.items():
        if not members:
            raise DataError(f"{data}: {len(samples)} images are too few: {split} would be empty")
    path = _write(source, parts, Path(folder))
    return Split(path, source.names, parts, int(group.max()) + 1)


def _shares(val: float, test: float) -> dict[str, float]:
    if not (0 < val < 1 and 0 <= test < 1 and val + test < 1):
        raise ConfigError(
            f"--val {val:g} --test {test:g}: shares are 0 to 1 and leave some for train"
        )
    shares = {"train": 1 - val - test, "val": val, "test": test}
    return {split: share for split, share in shares.items() if share}


def _all_samples(source: DataConfig) -> list[Sample]:
    """Return the images of all splits, each once."""
    found = {sample.path: sample for split in source.splits for sample in read_split(source, split)}
    return [found[path] for path in sorted(found)]


def _alike_groups(samples: Sequence[Sample]) -> np.ndarray:
    """Return a group number for each image (n,): alike ones share it."""
    paths = [sample.path for sample in samples]
    with tqdm(total=len(paths), desc="images", leave=False, disable=None) as bar:
        looks = [look for _, look in look_at_all(paths, bar.update)]
    for look in looks:
        if isinstance(look, DataError):
            raise look
    good = [look for look in looks if isinstance(look, Look)]
    group = np.arange(len(samples))
    first: dict[bytes, int] = {}
    pairs = [(i, first.setdefault(look.digest, i)) for i, look in enumerate(good)]
    pairs += list(find_alike(good, good, before=True).items())
    for one, other in pairs:
        group[group == group[one]] = group[other]
    return np.unique(group, return_inverse=True)[1]


def stratify(holds: np.ndarray, group: np.ndarray, shares: np.ndarray, seed: int) -> np.ndarray:
    """Return the number of the split (n,) of each image.

    `holds` (n, C) of 0 and 1 says which classes an image holds, `group` (n,) which images stay
    together, `shares` (S,) how much of the images and of each class a split gets.
    """
    counts = np.column_stack([holds, holds.sum(axis=1) == 0])  # no class is a class of its own
    rng = np.random.default_rng([seed, 6])
    members = int(group.max()) + 1
    table = np.zeros((members, counts.shape[1]), np.int64)
    np.add.at(table, group, counts)
    sizes = np.bincount(group, minlength=members)
    wanted = shares[:, None] * table.sum(axis=0)  # (S, C) still to be given
    room = shares * len(counts)  # (S,) images still to be given
    split = np.full(members, -1)
    order = np.lexsort((rng.random(members), -sizes))  # large groups first: they fit worst
    while (split < 0).any():
        left = table[split < 0].sum(axis=0)
        rarest = int(np.argmin(np.where(left > 0, left, np.iinfo(np.int64).max)))
        for one in (one for one in order if split[one] < 0 and table[one, rarest]):
            # the split that lacks most of the class, then the one with most room
            best = int(np.lexsort((rng.random(len(shares)), -room, -wanted[:, rarest]))[0])
            split[one] = best
            wanted[best] -= table[one]
            room[best] -= sizes[one]
    return split[group]


# ---- files ---------------------------------------------------------------------------------


def _write(source: DataConfig, parts: Mapping[str, Sequence[Sample]], folder: Path) -> Path:
    """Write lists (COCO: json files) and a description; images stay where they are."""
    suffix = "json" if source.format == "coco" else "txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for split, samples in parts.items():
            if source.format == "coco":
                content = coco_content(samples, source.names, lambda one: str(one.path.absolute()))
                text = json.dumps(content)
            else:
                text = "".join(f"{_listed(source, sample)}\n" for sample in samples)
            (folder / f"{split}.{suffix}").write_text(text, encoding="utf-8")
        entries = {split: str((folder / f"{split}.{suffix}").absolute()) for split in parts}
        root = {"path": str(source.root.absolute())} if source.format == "voc" else {}
        ignored = (
            {"ignore": list(source.ignore)} if source.format == "voc" and source.ignore else {}
        )
        return write_description(
            folder, source.format, parts, source.names, **entries, **root, **ignored
        )
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror}") from error


def _listed(source: DataConfig, sample: Sample) -> str:
    """Return how a list names an image. Raises: DataError: it is in one of several VOC folders."""
    if source.format == "yolo":
        return str(sample.path.absolute())
    if sample.path.parent != source.root / "JPEGImages":
        raise DataError(f"{source.path}: has several VOC folders; detector.convert it first")
    return sample.id


# ---- command -------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        "python -m detector.split",
        description="Divide all images of a data set into train, val and test.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", help="description (yaml), folder or *.data file")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="new folder for the lists")
    parser.add_argument("--val", type=float, default=0.2, help="share of the images (default 0.2)")
    parser.add_argument("--test", type=float, default=0.0, help="share of the images (default 0)")
    parser.add_argument("--seed", type=int, default=0, help="of the division (default 0)")
    parser.add_argument(
        "--quick", action="store_true", help="do not look for images that are alike"
    )
    add_common(parser)
    return run_command(_split_command, parser, argv)


def _split_command(options: argparse.Namespace) -> dict[str, Any]:
    if options.seed < 0:
        raise ConfigError(f"--seed {options.seed} must be 0 or more")
    if Path(options.out).exists():
        raise ConfigError(f"--out {options.out}: exists already; name a new folder")
    found = split_data(
        options.data, options.out, options.val, options.test, options.seed, not options.quick
    )
    if not options.json:
        print(table(found))
    return found.report()


def table(found: Split) -> str:
    """Return images and boxes of each class in each split as lines of fixed columns."""
    width = max(len(name) for name in ("images", *found.names))
    rows = {"images": [len(samples) for samples in found.parts.values()]}
    rows |= {name: [found.boxes(split)[name] for split in found.parts] for name in found.names}
    lines = [" " * width + "".join(f"{split:>14}" for split in found.parts)]
    for name, numbers in rows.items():
        total = max(1, sum(numbers))
        cells = "".join(f"{number:>7} {number / total:>5.1%}" for number in numbers)
        lines.append(f"{name:<{width}}{cells}")
    images = sum(rows["images"])
    if found.groups < images:
        lines.append(f"{images} images in {found.groups} groups that look alike: each in one split")
    return "\n".join([*lines, f"use --data {found.description}"])


if __name__ == "__main__":
    raise SystemExit(main())
