"""A data set in another format: `python -m detector.convert data.yaml --to coco --out folder`.

What was written is read again and compared box by box before the command says that it is done.
"""

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detector.cli import add_common, run_command
from detector.data.description import load_data, read_split
from detector.data.formats import PLACING, WRITERS, Target, file_names, write_set
from detector.data.layout import SPLITS
from detector.data.sample import Sample
from detector.errors import ConfigError, DataError, did_you_mean

log = logging.getLogger("detector")

CLOSE = 1e-3  # pixels that a box may move on the way

EXAMPLES = """examples:
  python -m detector.convert data/bccd.yaml --to coco --out bccd-coco
  python -m detector.convert data/a.yaml,data/b.yaml --to yolo --out both --images link
  python -m detector.convert data/mine.yaml --to yolo --masks --out mine-yolo
"""


@dataclass(frozen=True)
class Conversion:
    """What was written, and what the new format could not hold."""

    description: Path
    images: dict[str, int]  # of each split
    boxes: dict[str, int]
    losses: list[str]
    missing: int  # boxes that a reader of the new set does not find any more

    def report(self) -> dict[str, Any]:
        """Return plain values."""
        return {**vars(self), "description": str(self.description)}


def convert(
    data: str | Path, kind: str, folder: str | Path, images: str = "copy", masks: bool = False
) -> Conversion:
    """Write a data set (or several as one) in format `kind` into a new folder.

    `images` is one of copy, link (hard links, copies where there can be none), symlink. `masks`
    writes YOLO polygon rows. Raises: DataError: bad data, or a file that cannot be written.
    """
    if kind not in WRITERS:
        raise ConfigError(f"--to {kind}: is no format{did_you_mean(kind, WRITERS)}")
    source = load_data(data)
    splits = {split: read_split(source, split) for split in SPLITS if split in source.splits}
    target = Target(Path(folder), source.names, images, masks)
    path = write_set(kind, splits, target)
    written, names = load_data(path), file_names(splits)
    missing = 0
    for split, samples in splits.items():
        after = {sample.path.name: sample for sample in read_split(written, split)}
        if {names[sample.path] for sample in samples} != set(after):
            raise DataError(f"{path}: {split}: other images are read than were written")
        missing += sum(_missing(old, after[names[old.path]], kind, masks) for old in samples)
    return Conversion(
        description=path,
        images={split: len(samples) for split, samples in splits.items()},
        boxes={split: sum(len(one.boxes) for one in samples) for split, samples in splits.items()},
        losses=target.losses.lines(),
        missing=missing,
    )


def _missing(old: Sample, new: Sample, kind: str, masks: bool) -> int:
    """Return how many boxes of an image are not there any more.

    Crowds are not looked for in YOLO, and with `masks` a box may have become that of its polygon.
    Raises: DataError: a box is elsewhere, or has another label.
    """
    wanted = ~old.crowd if kind == "yolo" else np.ones(len(old.boxes), bool)
    boxes, labels = old.boxes[wanted], old.labels[wanted]
    if masks:
        return max(0, len(boxes) - len(new.boxes))
    near = (np.abs(boxes[:, None] - new.boxes[None]) <= CLOSE).all(axis=2)  # (old, new)
    near &= labels[:, None] == new.labels[None]
    if not near.any(axis=0).all():
        raise DataError(f"{new.path}: holds a box that {old.path} has not")
    return len(boxes) - len(new.boxes)


# ---- command -------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        "python -m detector.convert",
        description="Write a data set in another format. Exit code 1: boxes were lost on the way.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", help="description (yaml), folder or *.data file; a.yaml,b.yaml")
    parser.add_argument("--to", required=True, metavar="FORMAT", help=", ".join(WRITERS))
    parser.add_argument("--out", required=True, metavar="FOLDER", help="new folder")
    parser.add_argument(
        "--images", default="copy", help=f"{', '.join(PLACING)}: how images come there"
    )
    parser.add_argument(
        "--masks", action="store_true", help="to yolo: rows of polygons where there are masks"
    )
    add_common(parser)
    return run_command(_convert_command, parser, argv)


def _convert_command(options: argparse.Namespace) -> dict[str, Any]:
    if Path(options.out).exists():
        raise ConfigError(f"--out {options.out}: exists already; name a new folder")
    found = convert(options.data, options.to, options.out, options.images, options.masks)
    for line in found.losses:
        log.warning(line)
    if found.missing:
        log.error("%d boxes are not read again", found.missing)
    if not options.json:
        for split, count in found.images.items():
            print(f"{split}: {count} images, {found.boxes[split]} boxes")
        print(f"read again and compared; use --data {found.description}")
    return found.report() | {"exit_code": int(found.missing > 0)}


if __name__ == "__main__":
    raise SystemExit(main())
