"""A detector file with a kind of NMS and test-time augmentation, and what they cost.

Letters: B images, H and W of the input in pixels.
"""

import time
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from detector.augment import GRAY
from detector.backends import Backend
from detector.boxes import Detections
from detector.decode import MAX_CANDIDATES, candidates
from detector.finding import Settings
from detector.nms import suppress

# Of test-time augmentation: the size of the picture in its input, and whether it is mirrored.
# Smaller only: an exported engine has one input size.
View = tuple[float, bool]
VIEWS: tuple[View, ...] = ((1.0, False), (1.0, True), (0.8, False))


class Looker:
    """A `Backend` that selects its detections as `Settings` say; notes its seconds by stage."""

    def __init__(self, backend: Backend, settings: Settings) -> None:
        self.backend = backend
        self.nms, self.augment = settings.nms, settings.augment
        side = settings.imgsz or backend.imgsz
        self.seconds = {"network": 0.0, "NMS": 0.0}
        self.detect(torch.zeros(1, 3, side, side), 1.0, 1.0, 1)  # the first call is slow
        self.seconds = {"network": 0.0, "NMS": 0.0}

    def detect(self, images: Tensor, conf: float, iou: float, max_det: int) -> list[Detections]:
        """Return the detections of each BGR image, boxes in input pixels, best score first."""
        plain = self.nms == "class" and not self.augment
        if plain and self.backend.find is not None:  # with NMS inside
            started = self._now()
            found = self.backend.detect(images, conf, iou, max_det)
            self.seconds["network"] += self._now() - started
            return found
        every = self.candidates(images, conf, max(MAX_CANDIDATES, max_det))
        return [self.suppress(one, conf, iou, max_det) for one in every]

    def candidates(
        self, images: Tensor, conf: float, most: int = MAX_CANDIDATES
    ) -> list[Detections]:
        """Return the best `most` boxes of each image in each view, before NMS."""
        if not self.augment:
            return self._candidates(images, conf, most)
        views = [self._from_view(images, view, conf, most) for view in VIEWS]
        return [_joined(parts) for parts in zip(*views, strict=True)]

    def suppress(self, found: Detections, conf: float, iou: float, max_det: int) -> Detections:
        """Return what NMS leaves of one image's candidates."""
        started = self._now()
        kept = suppress(found, iou, self.nms, conf, max_det)
        self.seconds["NMS"] += self._now() - started
        return kept

    def _from_view(self, images: Tensor, view: View, conf: float, most: int) -> list[Detections]:
        shown, scales = _shown(images, view)
        found = self._candidates(shown, conf, most)
        return [_mapped_back(one, images.shape[3], view, scales) for one in found]

    def _candidates(self, images: Tensor, conf: float, most: int) -> list[Detections]:
        started = self._now()
        if self.backend.find is not None:  # IoU is never above 1: nothing is suppressed yet
            found = self.backend.detect(images, conf, 1.0, most)
            self.seconds["network"] += self._now() - started
            return found
        decoded = self.backend.decoded(images)
        middle = self._now()
        found = candidates(decoded, conf, most)
        self.seconds["network"] += middle - started
        self.seconds["NMS"] += self._now() - middle
        return found

    def _now(self) -> float:
        if self.backend.device.type != "cpu":
            torch.accelerator.synchronize(self.backend.device)
        return time.perf_counter()


def _shown(images: Tensor, view: View) -> tuple[Tensor, tuple[float, float]]:
    """Return the pictures of a view, of the same size, and their scale along x and y."""
    zoom, mirrored = view
    height, width = images.shape[2:]
    inner = round(height * zoom), round(width * zoom)
    if zoom != 1:
        small = interpolate(images.float(), inner, mode="bilinear", antialias=True)
        images = torch.full_like(images, GRAY)
        images[:, :, : inner[0], : inner[1]] = small
    return images.flip(3) if mirrored else images, (inner[1] / width, inner[0] / height)


def _mapped_back(
    found: Detections, width: int, view: View, scales: tuple[float, float]
) -> Detections:
    x1, y1, x2, y2 = found.boxes.unbind(-1)
    if view[1]:
        x1, x2 = width - x2, width - x1
    across, down = scales
    boxes = torch.stack((x1 / across, y1 / down, x2 / across, y2 / down), dim=-1)
    return Detections(boxes, found.scores, found.labels)


def _joined(parts: Sequence[Detections]) -> Detections:
    """Return the candidates of several views as those of one, best first."""
    scores = torch.cat([part.scores for part in parts])
    order = scores.argsort(descending=True, stable=True)
    boxes = torch.cat([part.boxes for part in parts])[order]
    return Detections(boxes, scores[order], torch.cat([part.labels for part in parts])[order])
