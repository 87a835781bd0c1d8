"""torchvision's detectors as networks of ours: by name, or on a backbone of one's choice.

    torchvision:fasterrcnn_resnet50_fpn_v2              any box detector that torchvision builds
    torchvision:fcos:backbone=resnet18,channels=64      fasterrcnn, retinanet or fcos, by its parts

They take letterboxed pixels of 0 to 255 and normalise them inside; nothing resizes a second time.
Weights are random: nothing is ever downloaded. The parameter names are torchvision's own, and so
is the label 0 of the background, which the family adds and takes away. Letters: B batch, C, H, W.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models as library
from torchvision.models import detection, get_model, list_models
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from detector.errors import ConfigError, did_you_mean
from detector.models.blocks import IMAGENET_MEAN, PixelScaling
from detector.models.spelling import read_options

NAMES = tuple(list_models(module=detection, exclude=["maskrcnn*", "keypointrcnn*"]))
BACKBONES = tuple(list_models(module=library, include=["resn*", "wide_resnet*", "mobilenet*"]))
SMALLEST = {"ssd300_vgg16": 288}  # pixels: its last layers would have no cell left
STRIDE = 32  # images have sides that are multiples of it
ROIS = 7  # cells of a region's features, each way


@dataclass(frozen=True)
class Parts:
    """What the free spelling says."""

    kind: str  # fasterrcnn, retinanet or fcos
    backbone: str = "resnet50"
    channels: int = 256  # of the pyramid and the heads
    anchor: int = 32  # side of the smallest anchors, pixels; fcos has none

    @property
    def name(self) -> str:
        """The canonical spelling."""
        anchor = "" if self.kind == "fcos" else f",anchor={self.anchor}"
        return f"torchvision:{self.kind}:backbone={self.backbone},channels={self.channels}{anchor}"


def build(name: str, num_classes: int) -> nn.Module:
    """The detector of that name with random weights.

    Raises:
        ConfigError: unknown name, or an option of the wrong kind.
    """
    _, _, rest = name.lower().partition(":")
    kind, colon, options = rest.partition(":")
    kind = kind.strip().replace("-", "_")
    if kind in KINDS:
        parts = _read_options(kind, options, name)
        network = KINDS[kind](parts, num_classes + 1)
        return _as_ours(network, parts.name, num_classes)
    if kind.startswith(("maskrcnn", "keypointrcnn")):
        raise ConfigError(f"model={name}: needs masks or keypoints, and there are boxes only")
    if kind not in NAMES:
        hint = did_you_mean(kind, (*NAMES, *KINDS))
        raise ConfigError(f"model={name} is not a detector of torchvision{hint}")
    if colon:
        raise ConfigError(
            f"model={name}: {kind} has no options; only {', '.join(KINDS)} are built from parts"
        )
    network = get_model(kind, weights=None, weights_backbone=None, num_classes=num_classes + 1)
    return _as_ours(network, f"torchvision:{kind}", num_classes)


def _read_options(kind: str, options: str, name: str) -> Parts:
    values: dict[str, Any] = {}
    allowed = ("backbone", "channels") if kind == "fcos" else ("backbone", "channels", "anchor")
    for key, value in read_options(options, allowed, kind, name).items():
        if key == "backbone":
            values[key] = value.replace("-", "_")
            if values[key] not in BACKBONES:
                hint = did_you_mean(values[key], BACKBONES)
                raise ConfigError(f"model={name}: backbone={value} is unknown{hint}")
        else:
            step, most = (32, 1024) if key == "channels" else (1, 512)
            values[key] = int(value) if value.isdecimal() else 0
            if not step <= values[key] <= most or values[key] % step:
                what = f"a multiple of 32 up to {most}" if step > 1 else f"1 to {most} pixels"
                raise ConfigError(f"model={name}: {key}={value} must be {what}")
    return Parts(kind, **values)


# ---- detectors from parts ------------------------------------------------------------------


def _pyramid(parts: Parts, strides: tuple[int, ...], coarser: nn.Module) -> BackboneWithFPN:
    """A backbone with a feature pyramid at these strides, and the coarser maps of `coarser`."""
    body = get_model(parts.backbone, weights=None)
    body = getattr(body, "features", body)
    last = _last_layers(body)
    return BackboneWithFPN(
        body,
        return_layers={last[stride][0]: str(level) for level, stride in enumerate(strides)},
        in_channels_list=[last[stride][1] for stride in strides],
        out_channels=parts.channels,
        extra_blocks=coarser,
        norm_layer=nn.BatchNorm2d,
    )


def _last_layers(body: nn.Module) -> dict[int, tuple[str, int]]:
    """By stride: the name of the last layer of `body` there, and its channels."""
    found: dict[int, tuple[str, int]] = {}
    features = torch.zeros(1, 3, 2 * STRIDE, 2 * STRIDE, device=next(body.parameters()).device)
    body.eval()
    with torch.no_grad():
        for name, layer in body.named_children():
            if isinstance(layer, nn.AdaptiveAvgPool2d):
                break
            features = layer(features)
            found[2 * STRIDE // features.shape[-1]] = name, features.shape[1]
    body.train()
    return found


def _fasterrcnn(parts: Parts, outputs: int) -> nn.Module:
    backbone = _pyramid(parts, (4, 8, 16, 32), LastLevelMaxPool())
    sizes = tuple((parts.anchor * 2**level,) for level in range(5))
    hidden = 4 * parts.channels
    return detection.FasterRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5),
        box_head=TwoMLPHead(parts.channels * ROIS**2, hidden),
        box_predictor=FastRCNNPredictor(hidden, outputs),
    )


def _retinanet(parts: Parts, outputs: int) -> nn.Module:
    """The second version of torchvision's: group norm in the heads, GIoU loss."""
    backbone = _pyramid(parts, (8, 16, 32), LastLevelP6P7(parts.channels, parts.channels))
    smallest = [parts.anchor * 2**level for level in range(5)]
    sizes = tuple(tuple(int(side * 2 ** (third / 3)) for third in range(3)) for side in smallest)
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)
    head = RetinaNetHead(parts.channels, 9, outputs, norm_layer=partial(nn.GroupNorm, 32))
    head.regression_head._loss_type = "giou"
    return detection.RetinaNet(backbone, outputs, anchor_generator=anchors, head=head)


def _fcos(parts: Parts, outputs: int) -> nn.Module:
    backbone = _pyramid(parts, (8, 16, 32), LastLevelP6P7(parts.channels, parts.channels))
    return detection.FCOS(backbone, outputs)


KINDS = {"fasterrcnn": _fasterrcnn, "retinanet": _retinanet, "fcos": _fcos}


# ---- what all of them get ------------------------------------------------------------------


def _as_ours(network: nn.Module, name: str, num_classes: int) -> nn.Module:
    """Give a detector of torchvision the attributes and the manners of our networks, in place."""
    before = network.transform
    kind = name.split(":")[1]
    network.name = name
    network.family = "torchvision"
    network.num_classes = num_classes
    imagenet = tuple(before.image_mean) == IMAGENET_MEAN
    network.input_convention = "rgb-imagenet" if imagenet else "rgb-255"
    network.input_size = -(-max(before.fixed_size or before.min_size) // STRIDE) * STRIDE
    smallest = SMALLEST.get(kind, STRIDE)
    network.transform = Letterboxed(name, before.image_mean, before.image_std, smallest)
    heads = [network.backbone]
    if hasattr(network, "rpn"):
        heads += [network.rpn.head, network.roi_heads.box_predictor]
        for owner in (network.rpn, network.roi_heads):
            owner.fg_bg_sampler = CountedSampler(owner.fg_bg_sampler)
    else:
        heads += [network.head]
        if getattr(network.anchor_generator, "steps", None):
            network.anchor_generator.steps = None  # of 300 px; the maps say them for any size
    for module in heads:
        module.register_forward_hook(_in_float32)
    for module in list(network.modules()):
        for part, child in module.named_children():
            if type(child) is nn.GroupNorm:
                setattr(module, part, AnyGroupNorm(child))
    return network


class AnyGroupNorm(nn.GroupNorm):
    """Group norm that takes a single image with a map of one cell: torch refuses that, as a batch
    norm must. Such a map is the coarsest one of a small image (up to 128 px)."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__(norm.num_groups, norm.num_channels, norm.eps)
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, features: Tensor) -> Tensor:
        return torch.group_norm(features, self.num_groups, self.weight, self.bias, self.eps)


class Letterboxed(nn.Module):
    """Takes the place of torchvision's transform: all images (B, 3, H, W) have one size already."""

    def __init__(self, name: str, mean: list[float], std: list[float], smallest: int) -> None:
        super().__init__()
        self.name, self.smallest = name, smallest
        self.scaling = PixelScaling(mean, std)

    def forward(
        self, images: Tensor, targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[ImageList, list[dict[str, Tensor]] | None]:
        """Normalise the images. Raises ConfigError when they are too small for the network."""
        height, width = images.shape[-2:]
        if min(height, width) < self.smallest:
            raise ConfigError(
                f"imgsz={min(height, width)} is too small for {self.name}: {self.smallest} or more"
            )
        return ImageList(self.scaling(images), [(height, width)] * len(images)), targets

    def postprocess(
        self, found: list[dict[str, Tensor]], sizes: list[Any], original: list[Any]
    ) -> list[dict[str, Tensor]]:
        """Return the detections as they are: in pixels of the input."""
        return found


class CountedSampler(nn.Module):
    """Draws the regions that a loss is computed on, like torchvision's `BalancedPositive...`.

    What it draws depends on a counter that checkpoints keep, not on a global generator: so a
    resumed training draws what an uninterrupted one does.
    """

    def __init__(self, sampler: Any) -> None:
        super().__init__()
        self.regions = int(sampler.batch_size_per_image)
        self.positives = int(sampler.batch_size_per_image * sampler.positive_fraction)
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def forward(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return two masks for each image: positives (label >= 1), and negatives (label 0)."""
        generator = torch.Generator(self.draws.device).manual_seed(int(self.draws))
        self.draws += 1
        positives, negatives = [], []
        for one in labels:
            positive, negative = torch.where(one >= 1)[0], torch.where(one == 0)[0]
            count = min(len(positive), self.positives)
            positives.append(_drawn(one, positive, count, generator))
            negatives.append(_drawn(one, negative, self.regions - count, generator))
        return positives, negatives


def _drawn(labels: Tensor, members: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """A mask like `labels` that is true for up to `count` of `members`."""
    mask = torch.zeros_like(labels, dtype=torch.bool)
    order = torch.randperm(len(members), generator=generator, device=members.device)
    mask[members[order[:count]]] = True
    return mask


def _in_float32(module: nn.Module, inputs: Any, output: Any) -> Any:
    """A forward hook: under autocast, anchors and boxes would get the precision of the features.

    In bfloat16 a coordinate of 600 px would be a multiple of 4.
    """
    if isinstance(output, Tensor):
        return output.float()
    if isinstance(output, Mapping):
        return {name: _in_float32(module, inputs, value) for name, value in output.items()}
    return type(output)(_in_float32(module, inputs, value) for value in output)


def dense_pass(network: nn.Module, images: Tensor) -> None:
    """Run what an image (B, 3, H, W) costs whatever is in it: backbone and heads.

    The box head of Faster R-CNN gets as many regions as an image may have. Anchors, pooling of
    regions and NMS are left out, so it runs on the meta device.
    """
    features = network.backbone(network.transform.scaling(images))
    maps = list(features.values())
    if not hasattr(network, "rpn"):
        network.head(maps)
        return
    network.rpn.head(maps)
    regions = len(images) * network.rpn.post_nms_top_n()
    heads = network.roi_heads
    pooled = images.new_zeros(regions, maps[0].shape[1], *heads.box_roi_pool.output_size)
    heads.box_predictor(heads.box_head(pooled))
