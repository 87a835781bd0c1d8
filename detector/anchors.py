"""Anchors from a data set: k-means over box sizes; `python -m detector.anchors`.

Source: Redmon and Farhadi 2017 (arXiv 1612.08242), section 2 (distance 1 - IoU); the 2019 PyTorch
trainers took the Euclidean distance. Letters: N boxes, K anchors.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from detector.config import TrainConfig
from detector.data.cache import scaled_size
from detector.data.sample import Sample
from detector.errors import ConfigError, DataError

METRICS = ("iou", "euclidean")
RESTARTS = 5
ROUNDS = 300
MOST_BOXES = 50_000  # of a larger set a random part is taken
AUTO = "auto"

EXAMPLES = """examples:
  python -m detector.anchors --data data/bccd.yaml --imgsz 320
  python -m detector.anchors --data data/bccd.yaml --imgsz 320 --model yolov3 --metric euclidean
  python -m detector.train --data data/bccd.yaml --model yolov3-tiny --anchors auto
"""


def box_sizes(samples: Sequence[Sample], imgsz: int) -> np.ndarray:
    """Return width and height (N, 2) of all trained boxes, pixels of the letterboxed image."""
    sizes = [np.zeros((0, 2))]
    for sample in samples:
        height, width = scaled_size(sample.size, imgsz)
        boxes = sample.boxes[~sample.crowd].astype(np.float64)
        scale = np.array([width / sample.size[1], height / sample.size[0]])
        sizes.append((boxes[:, 2:] - boxes[:, :2]) * scale)
    return np.concatenate(sizes)


def shape_ious(sizes: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Return IoU (N, K) of sizes (N, 2) and anchors (K, 2), as if their centres were one."""
    shared = np.minimum(sizes[:, None], anchors[None]).prod(axis=2)
    return shared / (sizes.prod(axis=1)[:, None] + anchors.prod(axis=1)[None] - shared)


def fit(sizes: np.ndarray, anchors: np.ndarray, iou_t: float) -> tuple[float, float]:
    """Return the share of boxes with an anchor of IoU above `iou_t`, and the mean best IoU."""
    best = shape_ious(sizes, anchors).max(axis=1)
    return float((best > iou_t).mean()), float(best.mean())


def kmeans(sizes: np.ndarray, k: int, metric: str = "iou", seed: int = 0) -> np.ndarray:
    """Return `k` anchors (K, 2) for box sizes (N, 2), sorted by area.

    The best of some restarts by the mean distance of a box to its anchor: 1 - IoU, or the Euclidean
    one in pixels. Raises: DataError for fewer boxes of different size than anchors.
    """
    if metric not in METRICS:
        raise ConfigError(f"metric={metric} is unknown; allowed: {', '.join(METRICS)}")
    if k < 1:
        raise ConfigError(f"k={k} must be at least 1")
    different = len(np.unique(sizes, axis=0))
    if different < k:
        raise DataError(f"{different} boxes of different size are too few for {k} anchors")
    rng = np.random.default_rng(seed)
    if len(sizes) > MOST_BOXES:
        sizes = sizes[rng.choice(len(sizes), MOST_BOXES, replace=False)]
    tries = [_lloyd(sizes, _spread(sizes, k, metric, rng), metric) for _ in range(RESTARTS)]
    costs = [_distances(sizes, anchors, metric).min(axis=1).mean() for anchors in tries]
    best = tries[int(np.argmin(costs))]
    return best[np.argsort(best.prod(axis=1))]


def _distances(sizes: np.ndarray, anchors: np.ndarray, metric: str) -> np.ndarray:
    if metric == "iou":
        return 1 - shape_ious(sizes, anchors)
    return np.linalg.norm(sizes[:, None] - anchors[None], axis=2)


def _spread(sizes: np.ndarray, k: int, metric: str, rng: np.random.Generator) -> np.ndarray:
    """Return k boxes (K, 2) far from each other. Source: Arthur and Vassilvitskii 2007."""
    chosen = sizes[rng.integers(len(sizes), size=1)]
    while len(chosen) < k:
        far = _distances(sizes, chosen, metric).min(axis=1).clip(min=0) ** 2
        chosen = np.concatenate((chosen, sizes[rng.choice(len(sizes), 1, p=far / far.sum())]))
    return chosen


def _lloyd(sizes: np.ndarray, anchors: np.ndarray, metric: str) -> np.ndarray:
    """Move each anchor to the mean of the boxes nearest to it until nothing changes."""
    owner = np.full(len(sizes), -1)
    for _ in range(ROUNDS):
        nearest = _distances(sizes, anchors, metric).argmin(axis=1)
        if (nearest == owner).all():
            break
        owner = nearest
        anchors = np.stack(
            [
                sizes[owner == index].mean(axis=0) if (owner == index).any() else anchors[index]
                for index in range(len(anchors))
            ]
        )
    return anchors


# ---- a network's anchors


def set_anchors(network: nn.Module, wanted: str, samples: Sequence[Sample], imgsz: int) -> None:
    """Give a network the anchors that the setting `anchors` asks for; none if it is empty.

    The smallest go to the finest map. Raises: ConfigError, DataError.
    """
    if not wanted:
        return
    if not hasattr(network, "set_anchors"):
        raise ConfigError(f"anchors={wanted}: {network.name} has no anchors")
    count = sum(len(anchors) for anchors in network.anchors)
    if wanted == AUTO:
        anchors = kmeans(box_sizes(samples, imgsz), count)
    else:
        anchors = _written(wanted, count, network.name)
    network.set_anchors(spread_over_heads(anchors, network))


def _written(text: str, count: int, model: str) -> np.ndarray:
    try:
        numbers = np.array([float(part) for part in text.replace(" ", "").split(",")])
    except ValueError:
        numbers = np.array([np.nan])
    if len(numbers) != 2 * count or not (np.isfinite(numbers) & (numbers > 0)).all():
        raise ConfigError(
            f"anchors={text}: {model} needs auto, or {count} pairs w,h,... of pixels above 0"
        )
    return numbers.reshape(-1, 2)


def spread_over_heads(
    anchors: np.ndarray, network: nn.Module
) -> list[tuple[tuple[float, float], ...]]:
    """Return anchors (K, 2) by head: the smallest for the head of the smallest stride."""
    left = anchors[np.argsort(anchors.prod(axis=1), kind="stable")].round(2).tolist()
    found: dict[int, tuple[tuple[float, float], ...]] = {}
    for head in np.argsort(network.strides, kind="stable").tolist():
        count = len(network.anchors[head])
        found[head] = tuple((width, height) for width, height in left[:count])
        left = left[count:]
    return [found[head] for head in range(len(found))]


# ---- command


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    from detector.cli import add_common, run_command

    parser = argparse.ArgumentParser(
        "python -m detector.anchors",
        description="Anchors for a data set by k-means, and how well they fit its boxes.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", required=True, help=TrainConfig.__dataclass_fields__["data"].metadata["help"]
    )
    parser.add_argument(
        "--model", default="yolov3-tiny", help="network to compare with (default yolov3-tiny)"
    )
    parser.add_argument("--k", type=int, help="number of anchors (default: that of the network)")
    parser.add_argument(
        "--imgsz", type=int, default=TrainConfig.imgsz, help="training size, pixels"
    )
    parser.add_argument("--metric", default="iou", choices=METRICS, help="distance (default iou)")
    parser.add_argument("--iou-t", type=float, default=0.3, help="shape IoU of a fitting anchor")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first guesses")
    add_common(parser)
    return run_command(_body, parser, argv)


def _body(options: argparse.Namespace) -> dict[str, Any]:
    from detector.data.description import load_data, read_split
    from detector.models import build_model

    if options.imgsz < 1:
        raise ConfigError(f"--imgsz {options.imgsz} must be at least 1")
    with torch.device("meta"):
        network = build_model(options.model, 1)
    if not hasattr(network, "anchors"):
        raise ConfigError(f"--model {options.model}: has no anchors; for example yolov3-tiny")
    own = np.array([anchor for anchors in network.anchors for anchor in anchors], np.float64)
    sizes = box_sizes(read_split(load_data(options.data), "train"), options.imgsz)
    anchors = kmeans(
        sizes, len(own) if options.k is None else options.k, options.metric, options.seed
    )
    rows = {
        "k-means": fit(sizes, anchors, options.iou_t),
        network.name: fit(sizes, own, options.iou_t),
    }
    if not options.json:
        print(", ".join(f"{width:.0f},{height:.0f}" for width, height in anchors))
        for name, (recall, mean) in rows.items():
            print(
                f"{name:12} recall {recall:.4f} at IoU {options.iou_t:g}, mean best IoU {mean:.4f}"
            )
    return {
        "anchors": anchors.round(2).tolist(),
        "boxes": len(sizes),
        "fit": {name: {"recall": row[0], "mean_best_iou": row[1]} for name, row in rows.items()},
    }


if __name__ == "__main__":
    raise SystemExit(main())
