"""NMS as part of an ONNX graph: the rule of `decode.select`, and what comes out of such a file.

Letters: B images, N predictions of one image, K candidates for NMS, D rows of one image, C classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from detector.boxes import Detections
from detector.decode import MAX_CANDIDATES
from detector.errors import CheckpointError, ConfigError
from detector.models.channels import in_convention

OUTPUT = "detections"
FORMATS = ("onnx", "tensorrt")  # that can have it
REFUSED = {  # why others cannot
    "tensorrt-rtx": "TensorRT-RTX has no runner for the node NonMaxSuppression",
}
LAYOUT = {
    "shape": "(B, D, 6), D at most max_det",
    "columns": ["x1", "y1", "x2", "y2", "score", "label: index into names"],
    "boxes": "corners in pixels of the input",
    "score": "objectness * class probability of the best class; best score first",
    "nms": "in the graph; rows that are not used: zeros with label -1",
}


OWN_LAYOUT = {  # of a network that selects its detections itself
    **LAYOUT,
    "score": "the network's own; best score first",
}


@dataclass(frozen=True)
class GraphNms:
    """Thresholds of the NMS in a graph. Raises: ConfigError for values out of range."""

    conf: float = 0.001  # lower scores are dropped
    iou: float = 0.65  # a box goes when a better one of its class overlaps it by more
    max_det: int = 300  # rows of an image

    def __post_init__(self) -> None:
        for name in ("conf", "iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"--{name} {getattr(self, name)} must be 0 to 1")
        if self.max_det < 1:
            raise ConfigError(f"--max-det {self.max_det} must be at least 1")

    def words(self) -> list[str]:
        """Return the options of the command that asks for it."""
        usual, words = GraphNms(), ["--nms"]
        for name in ("conf", "iou", "max_det"):
            if getattr(self, name) != getattr(usual, name):
                words += [f"--{name.replace('_', '-')}", f"{getattr(self, name):g}"]
        return words

    def inputs(self) -> dict[str, np.ndarray]:
        """Return the graph's inputs of these names."""
        return {
            "conf": np.array(self.conf, np.float32),
            "iou": np.array(self.iou, np.float32),
            "max_det": np.array([self.max_det], np.int64),
        }

    def facts(self) -> dict[str, Any]:
        """Return what a file says about it."""
        return {**asdict(self), "candidates": MAX_CANDIDATES, "kind": "class"}


def refuse_formats(formats: tuple[str, ...]) -> None:
    """Raise ConfigError for a format that cannot have NMS in its graph."""
    for name in formats:
        if name not in FORMATS:
            why = f" ({REFUSED[name]})" if name in REFUSED else ""
            raise ConfigError(f"--nms: not for --format {name}{why}; for {', '.join(FORMATS)}")


# ---- the graph

# ONNX text format. `conf`, `iou` and `max_det` have values and may be given as inputs as well.
# Scores fall along K, so index and order are the same thing there. A class is a plane of scores in
# which other classes have -1, below NonMaxSuppression's threshold: 0 is a score that may stay.
# Written for operator set 11: what has changed since then (axes as inputs) is avoided.
TEXT = """
<ir_version: {ir}, opset_import: ["": {opset}]>
nms (float[batch,N,F] output, float conf = {{{conf}}}, float iou = {{{iou}}},
     int64[1] max_det = {{{max_det}}}) => (float[batch,D,6] detections)
<int64[2] nms_first = {{0, 1}}, int64[2] nms_second = {{2, 3}}, int64[1] nms_fifth = {{4}},
 int64[1] nms_from = {{5}}, int64[1] nms_to = {{1000000}}, int64[1] nms_axis = {{2}},
 int64[1] nms_one = {{1}}, int64[2] nms_flat = {{0, -1}}, int64[3] nms_column = {{0, -1, 1}},
 int64[3] nms_row = {{0, 1, -1}}, int64[3] nms_four = {{1, 1, 4}}, int64[2] nms_ends = {{0, 2}},
 int64[1] nms_candidates = {{{candidates}}}, int64[1] nms_predictions = {{{predictions}}},
 int64[1,{classes},1] nms_classes = {{{labels}}}, float nms_half = {{0.5}}, float nms_zero = {{0}},
 float nms_none = {{-1}}, float nms_threshold = {{-0.5}}, float nms_low = {{-1e7}},
 float nms_high = {{1e7}}>
{{
  nms_centre = Gather<axis=2>(output, nms_first)
  nms_sides = Gather<axis=2>(output, nms_second)
  nms_reach = Mul(nms_sides, nms_half)
  nms_corner = Sub(nms_centre, nms_reach)
  nms_opposite = Add(nms_centre, nms_reach)
  nms_boxes = Concat<axis=2>(nms_corner, nms_opposite)
  nms_objectness = Gather<axis=2>(output, nms_fifth)
  nms_probabilities = Slice(output, nms_from, nms_to, nms_axis)
  nms_best, nms_label = TopK<axis=2>(nms_probabilities, nms_one)
  nms_product = Mul(nms_best, nms_objectness)
  nms_scores_n = Reshape(nms_product, nms_flat)
  nms_labels_n = Reshape(nms_label, nms_flat)
  nms_many = Less(nms_candidates, max_det)
  nms_wanted = Where(nms_many, max_det, nms_candidates)
  nms_few = Less(nms_predictions, nms_wanted)
  nms_k = Where(nms_few, nms_predictions, nms_wanted)
  nms_scores, nms_order = TopK<axis=1>(nms_scores_n, nms_k)
  nms_order_column = Reshape(nms_order, nms_column)
  nms_order_four = Expand(nms_order_column, nms_four)
  nms_boxes_k = GatherElements<axis=1>(nms_boxes, nms_order_four)
  nms_labels = GatherElements<axis=1>(nms_labels_n, nms_order)
  nms_labels_row = Reshape(nms_labels, nms_row)
  nms_scores_row = Reshape(nms_scores, nms_row)
  nms_of_class = Equal(nms_labels_row, nms_classes)
  nms_unsure = Less(nms_scores_row, conf)
  nms_sure = Not(nms_unsure)
  nms_votes = And(nms_of_class, nms_sure)
  nms_planes = Where(nms_votes, nms_scores_row, nms_none)
  nms_plane = Clip(nms_boxes_k, nms_low, nms_high)
  nms_chosen = NonMaxSuppression(nms_plane, nms_planes, max_det, iou, nms_threshold)
  nms_places = Gather<axis=1>(nms_chosen, nms_ends)
  nms_stay = GatherND(nms_scores, nms_places)
  nms_shape = Shape(nms_scores)
  nms_blank = ConstantOfShape<value = float[1] {{-1}}>(nms_shape)
  nms_kept = ScatterND(nms_blank, nms_places, nms_stay)
  nms_fewer = Less(max_det, nms_k)
  nms_d = Where(nms_fewer, max_det, nms_k)
  nms_final, nms_place = TopK<axis=1>(nms_kept, nms_d)
  nms_place_column = Reshape(nms_place, nms_column)
  nms_place_four = Expand(nms_place_column, nms_four)
  nms_final_boxes = GatherElements<axis=1>(nms_boxes_k, nms_place_four)
  nms_final_labels = GatherElements<axis=1>(nms_labels, nms_place)
  nms_label_numbers = Cast<to=1>(nms_final_labels)
  nms_label_column = Reshape(nms_label_numbers, nms_column)
  nms_score_column = Reshape(nms_final, nms_column)
  nms_unused = Less(nms_score_column, nms_zero)
  nms_out_boxes = Where(nms_unused, nms_zero, nms_final_boxes)
  nms_out_scores = Where(nms_unused, nms_zero, nms_score_column)
  nms_out_labels = Where(nms_unused, nms_none, nms_label_column)
  detections = Concat<axis=2>(nms_out_boxes, nms_out_scores, nms_out_labels)
}}
"""


def text(rule: GraphNms, predictions: int, num_classes: int, ir: int, opset: int) -> str:
    """Return the graph `output` (B, N, 5 + C) -> `detections` (B, D, 6) in ONNX's text format.

    D is `max_det`, or N (`predictions`) if that is less.
    """
    return TEXT.format(
        ir=ir,
        opset=opset,
        conf=float(rule.conf),
        iou=float(rule.iou),
        max_det=rule.max_det,
        candidates=MAX_CANDIDATES,
        predictions=predictions,
        classes=num_classes,
        labels=", ".join(map(str, range(num_classes))),
    )


# ---- what comes out

# Images (B, 3, H, W) in the file's own convention, on its device, and thresholds -> (B, D, 6).
Rows = Callable[[Tensor, GraphNms], Tensor]


def rule_of(path: Path, metadata: Mapping[str, Any]) -> GraphNms | None:
    """Return the thresholds in a file's metadata; None: NMS is not in its graph.

    Raises: CheckpointError: they cannot be read.
    """
    facts = metadata.get("nms")
    if facts is None:
        return None
    try:
        return GraphNms(float(facts["conf"]), float(facts["iou"]), int(facts["max_det"]))
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{path}: its metadata has no usable nms ({error})") from error


def detections_of(rows: Tensor, conf: float, max_det: int) -> list[Detections]:
    """Return the detections of rows (B, D, 6), best score first."""
    found = []
    for image in rows:
        used = image[(image[:, 5] >= 0) & (image[:, 4] >= conf)][:max_det]
        found.append(Detections(used[:, :4], used[:, 4], used[:, 5].long()))
    return found


def fixed_rows(path: Path, rule: GraphNms, run: Callable[[Tensor], Tensor]) -> Rows:
    """Return `Rows` of a file whose thresholds cannot be changed.

    A higher `conf` and a lower `max_det` only drop rows; anything else is a ConfigError.
    """

    def rows(images: Tensor, wanted: GraphNms) -> Tensor:
        fits = wanted.conf >= rule.conf and wanted.max_det <= rule.max_det
        same = wanted.iou == rule.iou or wanted.max_det == 1  # the best box stays anyway
        if not (fits and same):
            raise ConfigError(
                f"{path}: its NMS is in the graph, with conf {rule.conf:g}, iou {rule.iou:g}, "
                f"max_det {rule.max_det}; conf {wanted.conf:g}, iou {wanted.iou:g}, max_det "
                f"{wanted.max_det} cannot be had from it: allowed are a conf from there on, this "
                "iou, at most this max_det; or export without --nms"
            )
        return run(images)

    return rows


def finder(
    rows: Rows, convention: str, max_batch: int | None
) -> Callable[[Tensor, float, float, int], list[Detections]]:
    """Return the `find` of a Backend: BGR images on its device -> detections of each."""

    def find(images: Tensor, conf: float, iou: float, max_det: int) -> list[Detections]:
        wanted = GraphNms(conf, iou, max_det)
        pixels = in_convention(images, convention)
        found: list[Detections] = []
        for part in pixels.split(max_batch or max(len(pixels), 1)) if len(pixels) else ():
            found += detections_of(rows(part.contiguous(), wanted), conf, max_det)
        return found

    return find
