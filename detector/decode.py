"""Raw maps to boxes, scores and labels; export traces the first half of it.

Letters: B images, N points, C classes.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from detector.boxes import Detections, cxcywh_to_xyxy, xyxy_to_cxcywh
from detector.models.darknet import anchor_grid, flatten_heads, predicted_cxcywh
from detector.models.evo import raw_to_xyxy
from detector.models.yolox import flatten_raw, make_grid, raw_to_cxcywh
from detector.nms import suppress
from detector.voting import vote

MAX_CANDIDATES = 1000  # best boxes of an image that enter NMS


def decode(model: nn.Module, raw: Sequence[Tensor]) -> Tensor:
    """Raw maps to (B, N, 5 + C) float32: cx, cy, w, h in input pixels, objectness, classes.

    Objectness and class probabilities lie between 0 and 1. The grid comes from the shapes of
    `raw`, so the function can be traced for any batch size.
    """
    return DECODERS[model.family](model, raw)


def _decode_yolox(model: nn.Module, raw: Sequence[Tensor]) -> Tensor:
    table = flatten_raw(raw)
    cells, strides = make_grid(raw, model.strides)
    return torch.cat((raw_to_cxcywh(table, cells, strides), table[..., 4:].sigmoid()), dim=-1)


def _decode_evo(model: nn.Module, raw: Sequence[Tensor]) -> Tensor:
    """There is no objectness, its column is 1; a box is what the cells around agree on."""
    table = flatten_raw(raw)
    cells, strides = make_grid(raw, model.strides)
    scores = table[..., 4:].sigmoid()
    sizes = [(level.shape[-2], level.shape[-1]) for level in raw]
    voted = vote(raw_to_xyxy(table, cells, strides), scores.amax(-1), sizes)
    boxes = xyxy_to_cxcywh(voted)
    return torch.cat((boxes, torch.ones_like(boxes[..., :1]), scores), dim=-1)


def _decode_yolov3(model: nn.Module, raw: Sequence[Tensor]) -> Tensor:
    table = flatten_heads(raw, model.num_classes)
    boxes = predicted_cxcywh(table, anchor_grid(model, raw))
    scores = table[..., 4:].sigmoid()
    if model.num_classes == 1:  # what is an object is of the only class
        scores = torch.cat((scores[..., :1], torch.ones_like(scores[..., :1])), dim=-1)
    return torch.cat((boxes, scores), dim=-1)


# By the `family` of the network.
DECODERS: dict[str, Callable[[nn.Module, Sequence[Tensor]], Tensor]] = {
    "yolox": _decode_yolox,
    "evo": _decode_evo,
    "yolov3": _decode_yolov3,
}


@torch.no_grad()
def select(
    decoded: Tensor, conf: float, iou: float, max_det: int, nms: str = "class"
) -> list[Detections]:
    """The objects of each image of `decoded` (B, N, 5 + C), on the same device.

    score = objectness * best class. Boxes below `conf` go first; the best 1000 (or `max_det`, if
    that is more) of the rest go through NMS at `iou` (see nms.py for its kinds); at most `max_det`
    are returned.
    """
    found = candidates(decoded, conf, max(MAX_CANDIDATES, max_det))
    return [suppress(one, iou, nms, conf, max_det) for one in found]


@torch.no_grad()
def candidates(decoded: Tensor, conf: float, most: int = MAX_CANDIDATES) -> list[Detections]:
    """The best `most` boxes of each image with a score of at least `conf`, best first, before NMS.

    A box has one label: its best class.
    """
    decoded = decoded.float()  # an engine may answer in float16
    best, labels = decoded[..., 5:].max(dim=-1)
    scores = best * decoded[..., 4]  # (B, N)
    scores, order = scores.topk(min(most, scores.shape[1]), dim=1)
    labels = labels.gather(1, order)
    boxes = cxcywh_to_xyxy(decoded[..., :4].gather(1, order[..., None].expand(-1, -1, 4)))
    found = []
    for image_boxes, image_scores, image_labels in zip(boxes, scores, labels, strict=True):
        sure = image_scores >= conf
        found.append(Detections(image_boxes[sure], image_scores[sure], image_labels[sure]))
    return found
