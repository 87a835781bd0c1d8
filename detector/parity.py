"""How far the outputs of an exported file are from those of its checkpoint, and on which images.

Shapes: B batch, N predictions of one image, C classes.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from torch import Tensor

from detector.augment import letterbox
from detector.backends import Backend
from detector.checkpoint import LoadedModel
from detector.data import layout
from detector.data.description import load_data, read_split
from detector.data.images import read_image
from detector.errors import UserError

BOX_TOLERANCE = 0.05  # pixels of the input
SCORE_TOLERANCE = 1e-3
PARTS = (1, 2, 5)  # images given at once; their sum is the number of images compared

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Difference:
    """Largest difference between the outputs of an exported file and of its checkpoint."""

    box_px: float  # pixels of the input; for boxes larger than the input: scaled down to it
    score: float  # objectness and class probabilities
    images: int  # how many were compared
    source: str  # where they come from

    def is_small(self) -> bool:
        """Whether both are within the tolerance; NaN is not."""
        return self.box_px <= BOX_TOLERANCE and self.score <= SCORE_TOLERANCE


def measure(reference: Backend, exported: Backend, images: Tensor, source: str) -> Difference:
    """Return the largest differences over `images`, given in parts of 1, 2 and 5 at once.

    Raises:
        RuntimeError: the outputs have different shapes.
    """
    box_px, score = [], []
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
    return Difference(  # torch.max keeps NaN: it never passes for a small difference
        box_px=float(torch.stack(box_px).max()),
        score=float(torch.stack(score).max()),
        images=len(images),
        source=source,
    )


def comparison_images(loaded: LoadedModel, imgsz: int) -> tuple[Tensor, str]:
    """Return letterboxed images (8, 3, imgsz, imgsz) float32 and where they come from.

    They are from the validation split that the checkpoint was trained with; if that is not on this
    machine, they are drawn, the same at each call.
    """
    count = sum(PARTS)
    source = str((loaded.meta.get("config") or {}).get("data") or "")
    pictures = _validation_pictures(source, count) if source else []
    if not pictures:
        source, pictures = "drawn", [textured_picture(seed, imgsz) for seed in range(count)]
    pictures = (pictures * count)[:count]
    boxed = np.stack([letterbox(picture, (imgsz, imgsz))[0] for picture in pictures])
    return torch.from_numpy(boxed).permute(0, 3, 1, 2).float().contiguous(), source


def own_data(loaded: LoadedModel) -> str | None:
    """Return the data set that a checkpoint was trained with, if its images are on this machine."""
    source = str((loaded.meta.get("config") or {}).get("data") or "")
    try:
        here = bool(source) and _images_are_here(layout.find_description(Path(source)))
    except UserError:
        return None
    return source if here else None


def _validation_pictures(source: str, count: int) -> list[np.ndarray]:
    """Return up to `count` pictures of a data set; none when it is not here or damaged."""
    try:
        description = layout.find_description(Path(source))
        if not _images_are_here(description):
            return []
        samples = read_split(load_data(description), "val")
        return [read_image(sample.path) for sample in samples[:count]]
    except UserError as error:
        log.info("comparing on drawn pictures: %s", error)
        return []


def _images_are_here(description: Path) -> bool:
    """Whether reading the data set downloads nothing: a description may ask for a download."""
    if description.suffix not in (".yaml", ".yml"):
        return True
    try:
        content = yaml.safe_load(description.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
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
