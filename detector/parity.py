"""How far the outputs of an exported file are from those of its checkpoint, and on which images.

Shapes: B batch, N predictions of one image, C classes.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from torch import Tensor

from detector.augment import letterbox
from detector.backends import Backend
from detector.boxes import Detections, box_iou, cxcywh_to_xyxy, elementwise_iou
from detector.checkpoint import LoadedModel
from detector.data import layout
from detector.data.description import load_data, read_split
from detector.data.images import read_image
from detector.errors import DataError, UserError
from detector.graph_nms import GraphNms

SURE = 0.25  # score from which a prediction is taken for an object
SAME = 0.9  # IoU from which two detections are the same one
PARTS = (1, 2, 5)  # images given at once; their sum is the number of images compared

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tolerance:
    """How far an exported file may be from its checkpoint; see `Difference`."""

    box_px: float
    score: float
    harm: float


# Everywhere the same numbers in fp32; in fewer bits it is the objects that must be found again.
TOLERANCES = {
    "fp32": Tolerance(box_px=0.05, score=1e-3, harm=1e-3),
    "fp16": Tolerance(box_px=math.inf, score=0.05, harm=0.02),
    "int8": Tolerance(box_px=math.inf, score=math.inf, harm=0.3),
}


@dataclass(frozen=True)
class Difference:
    """Largest difference between the outputs of an exported file and of its checkpoint."""

    box_px: float  # pixels of the input; for boxes larger than the input: scaled down to it
    score: float  # objectness and class probabilities
    images: int  # how many were compared
    source: str  # where they come from
    harm: float = 0.0  # of the objects: mean of 1 - IoU + change of the score

    def beyond(self, allowed: Tolerance) -> str:
        """Return what is larger than allowed, in words; empty if nothing is. NaN is too large."""
        pairs = (
            ("boxes differ by up to {:.3g} px", self.box_px, allowed.box_px),
            ("scores differ by up to {:.3g}", self.score, allowed.score),
            ("objects change by {:.3g} (1 - IoU + change of the score)", self.harm, allowed.harm),
        )
        return ", ".join(
            f"{text.format(value)} (allowed {limit:g})"
            for text, value, limit in pairs
            if not value <= limit
        )


def measure(reference: Backend, exported: Backend, images: Tensor, source: str) -> Difference:
    """Return the largest differences over `images`, given in parts of 1, 2 and 5 at once.

    Raises:
        RuntimeError: the outputs have different shapes.
    """
    box_px, score, harm = [], [], []
    for part in images.split(PARTS):
        expected, got = reference(part), exported(part)  # (B, N, 5 + C)
        if expected.shape != got.shape:
            raise RuntimeError(
                f"{exported.path}: returns {tuple(got.shape)}, the checkpoint "
                f"{tuple(expected.shape)}"
            )
        gap = (expected - got).abs()
        oversize = expected[..., 2:4].amax(dim=-1, keepdim=True) / images.shape[-1]
        box_px.append((gap[..., :4] / oversize.clamp(min=1.0)).max())
        score.append(gap[..., 4:].max())
        harm.append(object_harm(expected, got) * len(part) / len(images))
    return Difference(  # torch.max keeps NaN: it never passes for a small difference
        box_px=float(torch.stack(box_px).max()),
        score=float(torch.stack(score).max()),
        images=len(images),
        source=source,
        harm=sum(harm),
    )


def object_harm(expected: Tensor, got: Tensor) -> float:
    """Return how much worse `got` finds the objects of `expected`, both (B, N, 5 + C).

    Mean of 1 - IoU and the largest change of a class's score, over the predictions of `expected`
    with a score from `SURE` on; if there are few of these, over its best 0.1 %.
    """
    scores = (expected[..., 4:5] * expected[..., 5:]).flatten(0, 1)  # (B N, C)
    found = (got[..., 4:5] * got[..., 5:]).flatten(0, 1)
    best = scores.amax(dim=-1)
    count = max(int((best >= SURE).sum()), len(best) // 1000, 1)
    chosen = best.topk(count).indices
    boxes = (cxcywh_to_xyxy(x[..., :4].flatten(0, 1)[chosen]) for x in (expected, got))
    change = (scores - found)[chosen].abs().amax(dim=-1)
    return float((1 - elementwise_iou(*boxes) + change).mean())


def measure_detections(
    reference: Backend, exported: Backend, images: Tensor, source: str, rule: GraphNms
) -> Difference:
    """Return the largest differences between what both detect in BGR `images`, after NMS.

    Detections of one label are the same one from an IoU of 0.9 on. `harm` is the mean over the
    objects of both: 1 - IoU + change of the score, 1 for an object that the other does not find.
    Objects have a score from `SURE` on; if there are few of these, they are the best tenth. The
    images are given in parts of 1, 2 and 5 at once.
    """
    gaps = []
    for part in images.split(PARTS):
        both = [
            one.detect(part, rule.conf, rule.iou, rule.max_det) for one in (reference, exported)
        ]
        for expected, got in zip(*both, strict=True):
            gaps += [_gaps(expected, got, images.shape[-1]), _gaps(got, expected, images.shape[-1])]
    table = torch.cat(gaps).cpu()  # (objects, 3)
    same = table[:, 2] < math.inf
    largest = torch.cat((table[same], torch.zeros(1, 3))).amax(dim=0)
    harm = table[:, 2].clamp(max=1.0)
    return Difference(
        box_px=float(largest[0]),
        score=float(largest[1]),
        images=len(images),
        source=source,
        harm=float(harm.mean()) if len(harm) else 0.0,
    )


def _gaps(these: Detections, those: Detections, side: int) -> Tensor:
    """Return (objects of these, 3): box in pixels, score, harm; without the same one: 0, 0, inf."""
    count = max(int((these.scores >= SURE).sum()), math.ceil(len(these) / 10))
    boxes, scores, labels = these.boxes[:count], these.scores[:count], these.labels[:count]
    lost = torch.tensor([0.0, 0.0, math.inf], device=boxes.device).expand(count, 3)
    if not len(those):
        return lost
    overlap = box_iou(boxes, those.boxes) * (labels[:, None] == those.labels)
    iou, match = overlap.max(dim=1)
    oversize = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1) / side
    pixels = (boxes - those.boxes[match]).abs().amax(dim=1) / oversize.clamp(min=1.0)
    change = (scores - those.scores[match]).abs()
    found = torch.stack((pixels, change, 1 - iou + change), dim=1)
    return torch.where(iou[:, None] >= SAME, found, lost)


def comparison_images(loaded: LoadedModel, imgsz: int) -> tuple[Tensor, str]:
    """Return letterboxed images (8, 3, imgsz, imgsz) float32 and where they come from.

    They are from the validation split that the checkpoint was trained with; if that is not on this
    machine, they are drawn, the same at each call.
    """
    count = sum(PARTS)
    source = str((loaded.meta.get("config") or {}).get("data") or "")
    pictures = pictures_of(source, "val", count) if source else []
    if not pictures:
        source, pictures = "drawn", [textured_picture(seed, imgsz) for seed in range(count)]
    return letterboxed((pictures * count)[:count], imgsz), source


def letterboxed(pictures: Sequence[np.ndarray], imgsz: int) -> Tensor:
    """Return BGR pictures (H, W, 3) uint8 as a batch (K, 3, imgsz, imgsz) float32."""
    boxed = np.stack([letterbox(picture, (imgsz, imgsz))[0] for picture in pictures])
    return torch.from_numpy(boxed).permute(0, 3, 1, 2).float().contiguous()


def own_data(loaded: LoadedModel) -> str | None:
    """Return the data set that a checkpoint was trained with, if its images are on this machine."""
    source = str((loaded.meta.get("config") or {}).get("data") or "")
    try:
        here = bool(source) and _images_are_here(layout.find_description(Path(source)))
    except UserError:
        return None
    return source if here else None


def pictures_of(source: str, split: str, count: int) -> list[np.ndarray]:
    """Return up to `count` pictures of a data set; none when it is not here or damaged."""
    try:
        return read_pictures(source, split, count)
    except UserError as error:
        log.info("no pictures of %s: %s", source, error)
        return []


def read_pictures(source: str, split: str, count: int) -> list[np.ndarray]:
    """Return up to `count` pictures of a data set, which is not downloaded for it.

    Raises: UserError: it is not on this machine, damaged or empty.
    """
    description = layout.find_description(Path(source))
    if not _images_are_here(description):
        raise DataError(f"{source}: its images are not on this machine")
    samples = read_split(load_data(description), split)
    if not samples:
        raise DataError(f"{source}: its split {split} has no images")
    return [read_image(sample.path) for sample in samples[:count]]


def _images_are_here(description: Path) -> bool:
    """Whether reading the data set downloads nothing: a description may ask for a download."""
    if description.suffix not in (".yaml", ".yml"):
        return True
    try:
        content = yaml.safe_load(description.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    if isinstance(content, dict) and content.get("format") == "shapes":
        return True  # drawn, not downloaded
    folder = content.get("path") if isinstance(content, dict) else None
    return any(place.is_dir() for place in layout.candidates(description, str(folder or ".")))


def textured_picture(seed: int, imgsz: int) -> np.ndarray:
    """Draw a picture (H, W, 3) uint8 with smooth colours, fine noise and hard edges."""
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(imgsz // 2, imgsz * 3 // 2, size=2))
    coarse = rng.integers(0, 256, size=(6, 6, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    picture = smooth + rng.integers(-20, 21, size=smooth.shape)
    for _ in range(5):
        top, left = int(rng.integers(height)), int(rng.integers(width))
        tall, wide = rng.integers(4, 5 + imgsz // 3, size=2)
        picture[top : top + tall, left : left + wide] = rng.integers(0, 256, size=3)
    return picture.clip(0, 255).astype(np.uint8)
