"""Suppression: of several boxes on one object, what is left. Letters: N candidates, K kept ones."""

import numpy as np
import torch
from torch import Tensor

from detector.boxes import Detections, batched_nms, box_iou

KINDS = {
    "class": "a box goes when a better one of its class overlaps it",
    "agnostic": "a box goes when a better one of any class overlaps it",
    "merge": "as class; the box that stays is the mean, by score, of itself and those that go",
    "soft": "no box goes: its score falls with the overlap of better ones of its class",
}
SIGMA = 0.5  # of the Gaussian of soft NMS


def suppress(found: Detections, iou: float, kind: str, conf: float, max_det: int) -> Detections:
    """Return at most `max_det` of the candidates, best score first.

    `kind` is one of KINDS. Overlap is an IoU above `iou`, which soft NMS has no use for: with it,
    scores that fall below `conf` go. Source of soft: Bodla et al. 2017 (arXiv 1704.04503), the
    Gaussian; of merge: ultralytics/yolov3 of 2019, its behaviour.
    """
    if kind == "soft":
        return _soften(found, conf, max_det)
    labels = torch.zeros_like(found.labels) if kind == "agnostic" else found.labels
    kept = batched_nms(found.boxes, found.scores, labels, iou)[:max_det]
    boxes = _merged(found, kept, iou) if kind == "merge" else found.boxes[kept]
    return Detections(boxes, found.scores[kept], found.labels[kept])


def _merged(found: Detections, kept: Tensor, iou: float) -> Tensor:
    """Return the boxes (K, 4) of `kept`: means with those that each of them made go."""
    if not len(kept):
        return found.boxes[kept]
    near = box_iou(found.boxes[kept], found.boxes) > iou  # (K, N)
    near &= found.labels[kept][:, None] == found.labels
    near[:, kept] = False
    near[torch.arange(len(kept), device=kept.device), kept] = True
    gone = near.any(0).nonzero()[:, 0]
    owner = near[:, gone].byte().argmax(0)  # the first, that is the best one that it overlaps
    weights = found.scores[gone].clamp(min=1e-9)
    total = torch.zeros_like(found.scores[kept]).index_add(0, owner, weights)
    sums = torch.zeros_like(found.boxes[kept])
    return sums.index_add(0, owner, weights[:, None] * found.boxes[gone]) / total[:, None]


def _soften(found: Detections, conf: float, max_det: int) -> Detections:
    """Take the best of what is left, and lower the scores of its class around it, again and again.

    On the CPU: each choice depends on the one before.
    """
    overlap = box_iou(found.boxes, found.boxes)
    rivals = found.labels[:, None] == found.labels
    fading = torch.where(rivals, torch.exp(-overlap.square() / SIGMA), 1.0).cpu().numpy()  # (N, N)
    scores = found.scores.cpu().numpy().copy()
    final = scores.copy()
    chosen: list[int] = []
    while len(chosen) < min(max_det, len(scores)):
        best = int(scores.argmax())
        if scores[best] < conf:
            break
        chosen.append(best)
        final[best] = scores[best]
        scores *= fading[best]
        scores[best] = -np.inf
    index = torch.tensor(chosen, dtype=torch.int64, device=found.boxes.device)
    faded = torch.from_numpy(final[chosen]).to(found.scores)
    return Detections(found.boxes[index], faded, found.labels[index])
