"""YOLOX: CSPDarknet, PAFPN and the decoupled head.

Source: Ge et al. 2021 (arXiv 2107.08430). Parameter names are those of the official weight files,
so an official `.pth` loads as it is. Letters: B batch, C classes, P points (all cells of the three
maps, row by row, finest map first), H, W.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from detector.errors import ConfigError
from detector.models import darknet53
from detector.models.blocks import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    BaseConv,
    CSPLayer,
    Focus,
    LeakyReLU,
    PixelScaling,
    SPPBottleneck,
    conv_block,
)
from detector.models.spelling import read_number, read_options

STRIDES = (8, 16, 32)
LIMITS = {"depth": (0.01, 4.0), "width": (0.05, 4.0)}  # what a free spelling may ask for
# What a YOLOX takes: pixels of 0 to 255 in this order, as they are or normalised inside.
CONVENTIONS = ("bgr-255", "rgb-imagenet")  # the present one of YOLOX, and that of version 0.1.0
PRIOR = 0.01  # probability that a fresh head gives to every class and to "object"


@dataclass(frozen=True)
class YoloxShape:
    """How deep and wide a YOLOX is; 1.0 and 1.0 are YOLOX-l."""

    depth: float = 1.0
    width: float = 1.0
    depthwise: bool = False
    input_size: int = 640  # pixels: the size the network is meant for; any multiple of 32 works
    darknet: bool = False  # Darknet-53 instead of the CSPDarknet of this depth and width
    convention: str = CONVENTIONS[0]

    @property
    def channels(self) -> tuple[int, int, int, int, int]:
        """Channels at strides 2, 4, 8, 16 and 32."""
        base = int(self.width * 64)
        return base, 2 * base, 4 * base, 8 * base, 16 * base

    @property
    def blocks(self) -> int:
        """Bottlenecks of a shallow CSP layer; the deep ones have three times as many."""
        return max(round(3 * self.depth), 1)

    def options(self) -> str:
        """The free spelling, `depth=0.33,width=0.125,depthwise=true`."""
        depthwise = str(self.depthwise).lower()
        return f"depth={self.depth:g},width={self.width:g},depthwise={depthwise}{self.suffix(',')}"

    def suffix(self, before: str) -> str:
        """What a name says of a convention that is not the usual one: `:input=rgb-imagenet`."""
        return "" if self.convention == CONVENTIONS[0] else f"{before}input={self.convention}"

    def with_options(self, options: str, allowed: Sequence[str], name: str) -> "YoloxShape":
        """Read `depth=0.33,width=0.125,depthwise=true,input=rgb-imagenet`; the rest stays.

        Raises:
            ConfigError: a key that is not allowed or a value of the wrong kind; `name` is quoted.
        """
        changes: dict[str, Any] = {}
        for key, text in read_options(options, allowed, "yolox", name).items():
            if key == "depthwise":
                if text not in ("true", "false"):
                    raise ConfigError(f"model={name}: depthwise={text} must be true or false")
                changes[key] = text == "true"
            elif key == "input":
                if text not in CONVENTIONS:
                    known = " or ".join(CONVENTIONS)
                    raise ConfigError(f"model={name}: input={text} must be {known}")
                changes["convention"] = text
            else:
                changes[key] = read_number(key, text, name, LIMITS[key])
        return replace(self, **changes)


class CSPDarknet(nn.Module):
    """The backbone: images to features at strides 8, 16 and 32."""

    def __init__(self, shape: YoloxShape) -> None:
        super().__init__()
        conv, blocks, depthwise = conv_block(shape.depthwise), shape.blocks, shape.depthwise
        c2, c4, c8, c16, c32 = shape.channels
        self.stem = Focus(3, c2, kernel=3)
        self.dark2 = nn.Sequential(conv(c2, c4, 3, 2), CSPLayer(c4, c4, blocks, True, depthwise))
        self.dark3 = nn.Sequential(
            conv(c4, c8, 3, 2), CSPLayer(c8, c8, 3 * blocks, True, depthwise)
        )
        self.dark4 = nn.Sequential(
            conv(c8, c16, 3, 2), CSPLayer(c16, c16, 3 * blocks, True, depthwise)
        )
        self.dark5 = nn.Sequential(
            conv(c16, c32, 3, 2),
            SPPBottleneck(c32, c32),
            CSPLayer(c32, c32, blocks, False, depthwise),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        stride8 = self.dark3(self.dark2(self.stem(images)))
        stride16 = self.dark4(stride8)
        return stride8, stride16, self.dark5(stride16)


class PAFPN(nn.Module):
    """Path aggregation: coarse features flow down to fine ones and back up again."""

    def __init__(self, shape: YoloxShape) -> None:
        super().__init__()
        conv, blocks, depthwise = conv_block(shape.depthwise), shape.blocks, shape.depthwise
        _, _, c8, c16, c32 = shape.channels
        self.backbone = CSPDarknet(shape)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.lateral_conv0 = BaseConv(c32, c16, 1)
        self.C3_p4 = CSPLayer(2 * c16, c16, blocks, False, depthwise)
        self.reduce_conv1 = BaseConv(c16, c8, 1)
        self.C3_p3 = CSPLayer(2 * c8, c8, blocks, False, depthwise)
        self.bu_conv2 = conv(c8, c8, 3, 2)
        self.C3_n3 = CSPLayer(2 * c8, c16, blocks, False, depthwise)
        self.bu_conv1 = conv(c16, c16, 3, 2)
        self.C3_n4 = CSPLayer(2 * c16, c32, blocks, False, depthwise)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        stride8, stride16, stride32 = self.backbone(images)
        top = self.lateral_conv0(stride32)
        middle = self.C3_p4(torch.cat((self.upsample(top), stride16), dim=1))
        middle = self.reduce_conv1(middle)
        fine = self.C3_p3(torch.cat((self.upsample(middle), stride8), dim=1))
        medium = self.C3_n3(torch.cat((self.bu_conv2(fine), middle), dim=1))
        coarse = self.C3_n4(torch.cat((self.bu_conv1(medium), top), dim=1))
        return fine, medium, coarse


class YOLOXHead(nn.Module):
    """Decoupled head: one branch for classes, one for box and objectness, on each map."""

    def __init__(self, shape: YoloxShape, num_classes: int) -> None:
        super().__init__()
        inputs = darknet53.CHANNELS if shape.darknet else shape.channels[2:]
        hidden = shape.channels[2]

        def branch() -> nn.Sequential:
            conv = darknet53.conv if shape.darknet else conv_block(shape.depthwise)
            return nn.Sequential(conv(hidden, hidden, 3), conv(hidden, hidden, 3))

        activation = LeakyReLU if shape.darknet else nn.SiLU
        self.cls_convs = nn.ModuleList(branch() for _ in inputs)
        self.reg_convs = nn.ModuleList(branch() for _ in inputs)
        self.cls_preds = nn.ModuleList(nn.Conv2d(hidden, num_classes, 1) for _ in inputs)
        self.reg_preds = nn.ModuleList(nn.Conv2d(hidden, 4, 1) for _ in inputs)
        self.obj_preds = nn.ModuleList(nn.Conv2d(hidden, 1, 1) for _ in inputs)
        self.stems = nn.ModuleList(
            BaseConv(channels, hidden, 1, activation=activation) for channels in inputs
        )
        for layer in (*self.cls_preds, *self.obj_preds):
            nn.init.constant_(layer.bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        raw = []
        for level, feature in enumerate(features):
            stem = self.stems[level](feature)
            classes = self.cls_preds[level](self.cls_convs[level](stem))
            region = self.reg_convs[level](stem)
            box, objectness = self.reg_preds[level](region), self.obj_preds[level](region)
            raw.append(torch.cat((box, objectness, classes), dim=1))
        return raw


class YOLOX(nn.Module):
    """Images (B, 3, H, W) float32, 0 to 255, to three raw maps (B, 5 + C, H/s, W/s).

    The channels of an image are in the order of `input_convention`; those of a map are cx, cy, w,
    h, objectness, classes, all before any sigmoid or exp, the same in train and eval mode.
    """

    def __init__(self, name: str, shape: YoloxShape, num_classes: int) -> None:
        super().__init__()
        self.name = name
        self.family = "yolox"
        self.shape = shape
        self.num_classes = num_classes
        self.strides = STRIDES
        self.input_convention = shape.convention
        self.input_size = shape.input_size
        legacy = shape.convention == "rgb-imagenet"
        self.scaling = PixelScaling(IMAGENET_MEAN, IMAGENET_STD) if legacy else nn.Identity()
        self.backbone = darknet53.DarknetFPN() if shape.darknet else PAFPN(shape)
        self.head = YOLOXHead(shape, num_classes)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Raises ConfigError when a side of `images` is not a multiple of 32."""
        check_sides(images)
        return self.head(self.backbone(self.scaling(images)))


def check_sides(images: Tensor) -> None:
    """Raise ConfigError when a side of `images` is not a multiple of the largest stride."""
    for side in images.shape[-2:]:
        if side % STRIDES[-1]:
            nearest = max(round(side / STRIDES[-1]), 1) * STRIDES[-1]
            raise ConfigError(
                f"image_size={side} must be a multiple of the largest stride "
                f"({STRIDES[-1]}): try {nearest}"
            )


def flatten_raw(raw: Sequence[Tensor]) -> Tensor:
    """Raw maps (B, 5 + C, H, W) to one float32 table (B, P, 5 + C)."""
    return torch.cat([level.flatten(2) for level in raw], dim=2).transpose(1, 2).float()


def make_grid(raw: Sequence[Tensor], strides: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Column and row (P, 2) of each point's cell, and its stride (P, 1) in pixels; float32."""
    cells, steps = [], []
    for level, stride in zip(raw, strides, strict=True):
        height, width = level.shape[-2:]
        rows = torch.arange(height, device=level.device, dtype=torch.float32)
        columns = torch.arange(width, device=level.device, dtype=torch.float32)
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        cells.append(torch.stack((x, y), dim=-1).reshape(-1, 2))
        steps.append(torch.full_like(cells[-1][:, :1], stride))
    return torch.cat(cells), torch.cat(steps)


def raw_to_cxcywh(table: Tensor, cells: Tensor, strides: Tensor) -> Tensor:
    """Boxes (B, P, 4) cxcywh in input pixels from the first four columns of `flatten_raw`."""
    centre = (table[..., :2] + cells) * strides
    return torch.cat((centre, table[..., 2:4].exp() * strides), dim=-1)
