"""The loss of the validation images, with gains that are equal for every training of a family.

A trial that searches its loss gains cannot be compared by its own loss, and mAP says nothing in
the first epochs from scratch; this can be compared from the first epoch on.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from detector.augment import Images
from detector.config import Hyp, TrainConfig
from detector.data.cache import scaled_size
from detector.data.sample import Sample
from detector.distributed import from_first, gathered, rank, world_size
from detector.families import build_family
from detector.finding import Settings, batches_of, letterboxed_batches


@torch.no_grad()
def reference_losses(
    network: nn.Module,
    samples: Sequence[Sample],
    images: Images,
    config: TrainConfig,
    device: torch.device,
) -> dict[str, float]:
    """Return `val/<part>` for each part and `val/total`, per positive, by the shipped gains.

    `network` is in eval mode; `images[i]` is of `samples[i]`, scaled to config.imgsz or larger.
    """
    family = build_family(network, Hyp.for_model(config.model))
    sums: dict[str, float] = {}
    settings = Settings(config.imgsz, rect=config.rect)
    groups = batches_of([sample.size for sample in samples], settings)[rank() :: world_size()]
    batches = letterboxed_batches(images, groups)
    for (indices, _), pictures in zip(groups, batches, strict=True):
        targets = [_target(samples[index], config.imgsz, device) for index in indices]
        parts, positives = family.losses(pictures.to(device).float(), targets)
        for name, value in (parts | {"positives": positives}).items():
            sums[name] = sums.get(name, 0.0) + float(value)
    return from_first(_per_positive, gathered([sums]))


def _per_positive(ranks: list[list[dict[str, float]]]) -> dict[str, float]:
    """Add up the sums of all ranks and divide them by the number of positives."""
    total: Counter[str] = Counter()
    for (sums,) in ranks:
        total.update(sums)
    positives = max(total.pop("positives"), 1.0)
    return {f"val/{name}": value / positives for name, value in total.items()}


def _target(sample: Sample, imgsz: int, device: torch.device) -> dict[str, torch.Tensor]:
    height, width = scaled_size(sample.size, imgsz)
    scale = np.tile([width / sample.size[1], height / sample.size[0]], 2)
    trained = ~sample.crowd
    boxes = (sample.boxes[trained] * scale).astype(np.float32)
    return {
        "boxes": torch.from_numpy(boxes).to(device),
        "labels": torch.from_numpy(sample.labels[trained]).to(device),
    }
