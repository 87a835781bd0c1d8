"""Networks of the YOLOv3 family, built from Darknet blocks.

Letters: B batch, A anchors of a head, C classes, H, W, P predictions of an image: head by head, in
a head anchor by anchor, in an anchor row by row.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.errors import ConfigError
from detector.models.darknet_blocks import (
    AnchorSizes,
    Block,
    Conv,
    Layout,
    MaxPool,
    Route,
    Shape,
    Shortcut,
    Upsample,
    Yolo,
    cfg_text,
    shapes_of,
    sources_of,
)

PRIOR = 0.01  # probability of an object that a fresh head gives to every anchor


def activation(name: str) -> nn.Module:
    """Return a Darknet activation."""
    match name:
        case "leaky":
            return nn.LeakyReLU(0.1, inplace=True)
        case "relu":
            return nn.ReLU(inplace=True)
        case "mish":
            return nn.Mish()
        case "swish":
            return nn.SiLU()
        case "logistic":
            return nn.Sigmoid()
    assert name == "linear", name
    return nn.Identity()


class ConvLayer(nn.Module):
    """Convolution, batch norm or bias, activation."""

    def __init__(self, block: Conv, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            channels,
            block.filters,
            block.size,
            block.stride,
            block.padding,
            groups=block.groups,
            bias=not block.batch_norm,
        )
        self.bn = nn.BatchNorm2d(block.filters, momentum=0.03) if block.batch_norm else None
        self.act = activation(block.activation)

    def forward(self, features: Tensor) -> Tensor:
        features = self.conv(features)
        return self.act(features if self.bn is None else self.bn(features))


class PoolLayer(nn.Module):
    """Maximum of a window; cells beyond the border count as minus infinity."""

    def __init__(self, block: MaxPool) -> None:
        super().__init__()
        before, after = block.padding // 2, block.padding - block.padding // 2
        even = before == after and 2 * before <= block.size  # torch pads both sides alike,
        partial = before == 0 and after == block.stride - 1  # or lets the last window stick out
        self.border = None if even or partial else (before, after, before, after)
        self.pool = nn.MaxPool2d(
            block.size, block.stride, before if even else 0, ceil_mode=partial and not even
        )

    def forward(self, features: Tensor) -> Tensor:
        if self.border is not None:
            features = F.pad(features, self.border, value=-math.inf)
        return self.pool(features)


class RouteLayer(nn.Module):
    """Channels of several layers one after the other; of each, one of `groups` parts."""

    def __init__(self, block: Route) -> None:
        super().__init__()
        self.groups, self.group = block.groups, block.group

    def forward(self, sources: Sequence[Tensor]) -> Tensor:
        parts = [source.chunk(self.groups, dim=1)[self.group] for source in sources]
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


class ShortcutLayer(nn.Module):
    """The sum of two layers, and an activation; channels that only the first has stay as they are.

    Channels that only the second has are not used.
    """

    def __init__(self, block: Shortcut) -> None:
        super().__init__()
        self.act = activation(block.activation)

    def forward(self, sources: Sequence[Tensor]) -> Tensor:
        own, added = sources
        channels = min(own.shape[1], added.shape[1])
        total = own[:, :channels] + added[:, :channels]
        if channels < own.shape[1]:
            total = torch.cat((total, own[:, channels:]), dim=1)
        return self.act(total)


def _layer(block: Block, channels: int) -> nn.Module:
    match block:
        case Conv():
            return ConvLayer(block, channels)
        case MaxPool():
            return PoolLayer(block)
        case Route():
            return RouteLayer(block)
        case Shortcut():
            return ShortcutLayer(block)
        case Upsample(stride=stride):
            return nn.Upsample(scale_factor=stride, mode="nearest")
        case Yolo():
            return nn.Identity()


def _backbone_length(layout: Layout) -> int:
    """Return how many leading layers are the backbone.

    They end with the last shortcut before the first head (75 layers of YOLOv3), or where there is
    none with the last layer before that head's own convolution (15 of YOLOv3-tiny): what Darknet's
    pretrained files darknet53.conv.74 and yolov3-tiny.conv.15 hold.
    """
    kinds = [type(block) for block in layout.blocks]
    first = kinds.index(Yolo)
    shortcuts = [index for index in range(first) if kinds[index] is Shortcut]
    return shortcuts[-1] + 1 if shortcuts else first - 1


class Darknet(nn.Module):
    """Images (B, 3, H, W) float32, 0 to 255, RGB, to one raw map (B, A * (5 + C), H/s, W/s) a head.

    Channels, anchor by anchor: x, y, w, h, objectness, classes, all before any sigmoid or exp, the
    same in train and eval mode. Layer i of the file is child i of `backbone` and `heads` together.
    """

    def __init__(self, name: str, layout: Layout, num_classes: int) -> None:
        """Build for `num_classes`, whatever number the layout says. Raises: ConfigError."""
        super().__init__()
        layout = layout.with_classes(num_classes)
        shapes = shapes_of(layout)
        self.name = name
        self.family = "yolov3"
        self.num_classes = num_classes
        self.input_convention = "rgb-255"
        self.layout = layout
        self.input_size = layout.width
        self.strides = _strides(layout, shapes)
        self.sources = [sources_of(layout, index) for index in range(len(layout.blocks))]
        self.kept = {source for sources in self.sources for source in sources}
        channels = [3, *(shape.channels for shape in shapes)]
        layers = [_layer(block, channels[index]) for index, block in enumerate(layout.blocks)]
        length = _backbone_length(layout)
        self.backbone = nn.ModuleList(layers[:length])
        self.heads = nn.ModuleList(layers[length:])
        for index, head in enumerate(layout.heads):
            # not in the state dict: anchors belong to the layout, which a checkpoint holds as text
            self.register_buffer(f"anchors{index}", torch.tensor(head.anchors), persistent=False)
        self._set_priors()

    @property
    def layers(self) -> list[nn.Module]:
        """All layers, in the order of the file."""
        return [*self.backbone, *self.heads]

    @property
    def anchors(self) -> tuple[AnchorSizes, ...]:
        """The anchors of each head, (width, height) in pixels."""
        return tuple(head.anchors for head in self.layout.heads)

    @property
    def anchor_tables(self) -> list[Tensor]:
        """The anchors of each head as tensors (A, 2) on the network's device."""
        return [getattr(self, f"anchors{index}") for index in range(len(self.strides))]

    @property
    def options(self) -> dict[str, Any]:
        """What `build_model` needs beside name and classes to build this network again."""
        return {"cfg": cfg_text(self.layout)}

    def set_anchors(self, anchors: Sequence[AnchorSizes]) -> None:
        """Give the heads other anchors, as many as they have."""
        self.layout = self.layout.with_anchors(anchors)
        for table, sizes in zip(self.anchor_tables, anchors, strict=True):
            table.copy_(torch.tensor(sizes))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Raises ConfigError when a side of `images` is not a multiple of the largest stride."""
        largest = max(self.strides)
        for side in images.shape[-2:]:
            if side % largest:
                nearest = max(round(side / largest), 1) * largest
                raise ConfigError(
                    f"image_size={side} must be a multiple of the largest stride "
                    f"({largest}): try {nearest}"
                )
        outputs: dict[int, Tensor] = {}  # of the layers that another one reads
        raw, features = [], images / 255
        for index, layer in enumerate(self.layers):
            if isinstance(layer, RouteLayer | ShortcutLayer):
                features = layer([outputs[source] for source in self.sources[index]])
            else:
                features = layer(features)
            if index in self.kept:
                outputs[index] = features
            if isinstance(self.layout.blocks[index], Yolo):
                raw.append(features)
        return raw

    def _set_priors(self) -> None:
        """Let fresh heads expect few objects and any class alike."""
        layers = self.layers
        for index, block in enumerate(self.layout.blocks):
            convolution = layers[index - 1].conv if isinstance(block, Yolo) else None
            if convolution is None or convolution.bias is None:
                continue
            with torch.no_grad():
                rows = convolution.bias.view(-1, 5 + self.num_classes)  # (A, 5 + C)
                rows[:, :4] = 0
                rows[:, 4] = -math.log((1 - PRIOR) / PRIOR)
                rows[:, 5:] = -math.log(max(self.num_classes - 1, 1))


def _strides(layout: Layout, shapes: Sequence[Shape]) -> tuple[int, ...]:
    """Return the pixels per cell of each head."""
    strides = []
    for block, shape in zip(layout.blocks, shapes, strict=True):
        if isinstance(block, Yolo):
            stride = round(layout.width / shape.width)
            if (shape.height * stride, shape.width * stride) != (layout.height, layout.width):
                layout.fail(
                    block,
                    f"a map of {shape.height} x {shape.width} cells does not divide an input of "
                    f"{layout.height} x {layout.width} pixels evenly",
                )
            strides.append(stride)
    return tuple(strides)


# ---- raw maps


class AnchorGrid(NamedTuple):
    """Where each prediction stands, and what it starts from; float32."""

    cells: Tensor  # (P, 2) column and row
    strides: Tensor  # (P, 1) pixels
    anchors: Tensor  # (P, 2) width and height, pixels
    reach: Tensor  # (P, 1) scale_x_y: 1, or more where centres may leave their cell


def flatten_heads(raw: Sequence[Tensor], num_classes: int) -> Tensor:
    """Raw maps (B, A * (5 + C), H, W) to one float32 table (B, P, 5 + C)."""
    tables = [
        level.unflatten(1, (-1, 5 + num_classes)).flatten(3).transpose(2, 3).flatten(1, 2)
        for level in raw
    ]
    return torch.cat(tables, dim=1).float()


def anchor_grid(model: Darknet, raw: Sequence[Tensor]) -> AnchorGrid:
    """Return the grid of all predictions of the heads, in the order of `flatten_heads`."""
    parts = []
    for level, stride, table, head in zip(
        raw, model.strides, model.anchor_tables, model.layout.heads, strict=True
    ):
        height, width = level.shape[-2:]
        rows = torch.arange(height, device=level.device, dtype=torch.float32)
        columns = torch.arange(width, device=level.device, dtype=torch.float32)
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        cells = torch.stack((x, y), dim=-1).reshape(1, -1, 2).expand(len(table), -1, -1)
        anchors = table.float()[:, None].expand_as(cells).reshape(-1, 2)
        cells = cells.reshape(-1, 2)
        steps = torch.full_like(cells[:, :1], stride)
        parts.append((cells, steps, anchors, torch.full_like(steps, head.scale_xy)))
    return AnchorGrid(*(torch.cat(column) for column in zip(*parts, strict=True)))


def predicted_centres(table: Tensor, reach: Tensor) -> Tensor:
    """Centres (..., 2) within their cells, 0 to 1 (a little more each way where reach is above 1).

    Source: Redmon and Farhadi 2018, section 2.1; Bochkovskiy et al. 2020, "grid sensitivity".
    """
    return table[..., :2].sigmoid() * reach - (reach - 1) / 2


def predicted_cxcywh(table: Tensor, grid: AnchorGrid) -> Tensor:
    """Boxes (..., 4) cxcywh in pixels from rows (..., 5 + C) of `flatten_heads` and their grid."""
    centre = (predicted_centres(table, grid.reach) + grid.cells) * grid.strides
    return torch.cat((centre, table[..., 2:4].exp() * grid.anchors), dim=-1)
