"""What a training will see: `python -m detector.preview --hyp hyp/best.yaml --data data/bccd.yaml`.

Writes `batch.jpg`, training pictures as the network gets them with their boxes, and `labels.png`,
what the labels of the data set look like. Nothing is trained.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detector.cli import add_common, new_directory, run_command
from detector.config import Hyp, TrainConfig, parse_assignments, resolve
from detector.data.cache import ImageCache, scaled_size
from detector.data.description import load_data, read_split, short_name, single_class
from detector.data.layout import SPLITS
from detector.data.loader import EpochOrder, TrainingPictures, collate
from detector.data.sample import Sample
from detector.data.wrappers import chosen_samples
from detector.errors import ConfigError
from detector.pictures import draw_batch
from detector.plots import LabelFacts, plot_labels

log = logging.getLogger("detector")

COUNT = 16  # pictures
EXAMPLES = """examples:
  python -m detector.preview --data data/bccd.yaml --imgsz 320
  python -m detector.preview --hyp hyp/best.yaml --data data/bccd.yaml --count 9 --seed 3
  python -m detector.preview --data data/bccd.yaml --set mosaic=1 --set degrees=20 --epoch 2
  python -m detector.preview --data data/bccd.yaml --tail         as in the last epochs
"""


@dataclass(frozen=True)
class Preview:
    """The files of a preview."""

    batch: Path
    labels: Path
    pictures: int
    boxes: int


def preview(
    config: TrainConfig,
    hyp: Hyp,
    folder: str | Path,
    count: int = COUNT,
    epoch: int = 1,
    tail: bool = False,
) -> Preview:
    """Write what the first `count` pictures of an epoch look like, and the statistics of labels.

    They are those that a training with this config, seed included, starts the epoch with. `tail`
    shows the no-augmentation tail. Raises: UserError for bad data or wrong values.
    """
    for name, value in (("count", count), ("epoch", epoch)):
        if value < 1:
            raise ConfigError(f"--{name} {value} must be at least 1")
    folder = Path(folder)
    data = load_data(config.data)
    data = single_class(data) if config.single_cls else data
    splits = {split: read_split(data, split) for split in SPLITS if split in data.splits}
    samples = chosen_samples(splits["train"], config)
    cache = ImageCache(samples, config.imgsz, where="none")
    pictures = TrainingPictures(samples, cache, config.imgsz, hyp, config.seed)
    order = EpochOrder(len(pictures), hyp.nbs, config.imgsz, config.seed)
    order.size = pictures.size
    items = [item for part in order.parts(epoch, tail) for item in part][:count]
    batch = collate([pictures[item] for item in items], pictures.size)
    draw_batch(batch, data.names, folder / "batch.jpg", most=count)
    facts = label_facts(splits, data.names, config.imgsz)
    plot_labels(facts, folder / "labels.png")
    return Preview(folder / "batch.jpg", folder / "labels.png", len(items), len(batch.labels))


def label_facts(splits: dict[str, list[Sample]], names: Sequence[str], imgsz: int) -> LabelFacts:
    """Return what the labels of a data set look like, for training at `imgsz` pixels."""
    counts, centres, sides, per_image = {}, [], [], []
    for split, samples in splits.items():
        labels = np.concatenate([np.zeros(0, int), *(sample.labels for sample in samples)])
        counts[split] = np.bincount(labels, minlength=len(names))
    for sample in splits["train"]:
        boxes, size = sample.boxes.astype(float), np.array(sample.size[::-1] * 2, float)
        fractions = boxes / size
        scaled = np.array(scaled_size(sample.size, imgsz)[::-1])
        centres.append((fractions[:, :2] + fractions[:, 2:]) / 2)
        sides.append((fractions[:, 2:] - fractions[:, :2]) * scaled)
        per_image.append(len(boxes))
    return LabelFacts(
        names=tuple(names),
        counts=counts,
        centres=np.concatenate([np.zeros((0, 2)), *centres]),
        sides=np.concatenate([np.zeros((0, 2)), *sides]),
        per_image=np.array(per_image, int),
        imgsz=imgsz,
    )


# ---- command -------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        "python -m detector.preview",
        description="Draw what a training will see, and what its labels look like.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--hyp", metavar="FILE", help="hyperparameters (yaml), e.g. hyp/best.yaml")
    for name in ("data", "model", "imgsz", "seed"):
        parser.add_argument(f"--{name}", help="as in detector.train")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="any hyperparameter"
    )
    parser.add_argument("--count", type=int, default=COUNT, help=f"pictures (default {COUNT})")
    parser.add_argument("--epoch", type=int, default=1, help="that is shown (default 1)")
    parser.add_argument("--tail", action="store_true", help="the tail without augmentation")
    parser.add_argument("--out", help="new folder (default runs/preview/<data>)")
    add_common(parser)
    return run_command(_preview_command, parser, argv)


def _preview_command(options: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(options, name) for name in ("data", "model", "imgsz", "seed")}
    values = {name: value for name, value in given.items() if value is not None}
    config, hyp = resolve(values | parse_assignments(options.set), options.hyp)
    load_data(config.data)  # before the folder is made
    wanted = options.out or Path("runs/preview") / short_name(config.data)
    folder = new_directory(Path(wanted))
    found = preview(config, hyp, folder, options.count, options.epoch, options.tail)
    log.info("%d pictures with %d boxes: %s", found.pictures, found.boxes, found.batch)
    log.info("labels: %s", found.labels)
    return {name: str(value) for name, value in vars(found).items()}


if __name__ == "__main__":
    raise SystemExit(main())
