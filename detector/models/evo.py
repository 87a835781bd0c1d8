"""Evo: our own detector, for training from scratch on small data.

Dense 3x3 convolutions wherever channels are few (they learn faster than depthwise ones, and cost a
CPU less memory traffic), a stem that goes to stride 8 in three layers, and a light head whose
convolutions all three maps share. No objectness: a class score says how good its box is.

Sources of the parts: blocks that keep every stage's output, Wang et al. 2022 (arXiv 2211.04800);
path aggregation, Liu et al. 2018 (arXiv 1803.01534); shared head convolutions with norms of their
own for each map, Lyu et al. 2022 (arXiv 2212.07784); distances to four sides, Tian et al. 2019
(arXiv 1904.01355). Letters: B batch, C classes, P points (all cells of the three maps), H, W.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detector.models.blocks import BaseConv, SPPBottleneck
from detector.models.spelling import read_number, read_options
from detector.models.yolox import LIMITS, PRIOR, STRIDES, check_sides

MAX_LOG_DISTANCE = 10.0  # 22,000 cells: no number of a diverging network is infinite
GREY, CONTRAST = 114.0, 64.0  # pixels are centred on the padding's grey, and scaled


@dataclass(frozen=True)
class EvoShape:
    """How deep and wide a network is; 1.0 and 1.0 would be the size of a YOLOX-l."""

    depth: float = 1.0
    width: float = 1.0
    input_size: int = 640  # pixels: the size the network is meant for; any multiple of 32 works

    @property
    def channels(self) -> tuple[int, int, int, int, int]:
        """Channels at strides 2, 4, 8, 16 and 32; neck and head have those of stride 8."""
        base = int(self.width * 64)
        return base, 2 * base, 4 * base, 6 * base, 8 * base

    @property
    def blocks(self) -> int:
        """Convolutions of a shallow stage; those at strides 8 and 16 have twice as many."""
        return max(round(3 * self.depth), 1)

    def options(self) -> str:
        """The free spelling, `depth=0.33,width=0.25`."""
        return f"depth={self.depth:g},width={self.width:g}"

    @classmethod
    def from_options(cls, options: str, name: str) -> "EvoShape":
        """Read `depth=0.33,width=0.25`; what is missing is 1.0.

        Raises:
            ConfigError: unknown key or a value of the wrong kind; `name` is quoted in the message.
        """
        values = {"depth": 1.0, "width": 1.0}
        for key, text in read_options(options, values, "evo", name).items():
            values[key] = read_number(key, text, name, LIMITS[key])
        return cls(values["depth"], values["width"])


class Stage(nn.Module):
    """Half of the channels through residual 3x3 convolutions; the last 1x1 sees every step."""

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int) -> None:
        super().__init__()
        hidden = out_channels // 2
        self.split = BaseConv(in_channels, 2 * hidden, 1)
        self.steps = nn.ModuleList(BaseConv(hidden, hidden, 3) for _ in range(num_blocks))
        self.join = BaseConv((2 + num_blocks) * hidden, out_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        seen = list(self.split(features).chunk(2, dim=1))
        for step in self.steps:
            seen.append(seen[-1] + step(seen[-1]))
        return self.join(torch.cat(seen, dim=1))


class EvoBackbone(nn.Module):
    """Images to features at strides 8, 16 and 32."""

    def __init__(self, shape: EvoShape) -> None:
        super().__init__()
        c2, c4, c8, c16, c32 = shape.channels
        self.stem = nn.Sequential(
            BaseConv(3, c2, 3, 2), BaseConv(c2, c4, 3, 2), BaseConv(c4, c8, 3, 2)
        )
        self.stage8 = Stage(c8, c8, 2 * shape.blocks)
        self.stage16 = nn.Sequential(BaseConv(c8, c16, 3, 2), Stage(c16, c16, 2 * shape.blocks))
        self.stage32 = nn.Sequential(
            BaseConv(c16, c32, 3, 2), SPPBottleneck(c32, c32), Stage(c32, c32, shape.blocks)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        stride8 = self.stage8(self.stem((images - GREY) / CONTRAST))
        stride16 = self.stage16(stride8)
        return stride8, stride16, self.stage32(stride16)


class EvoNeck(nn.Module):
    """Coarse features flow down to fine ones and back up; all three maps leave with one width."""

    def __init__(self, shape: EvoShape) -> None:
        super().__init__()
        _, _, c8, c16, c32 = shape.channels
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.lateral = BaseConv(c32, c8, 1)
        self.down_medium = Stage(c8 + c16, c8, shape.blocks)
        self.down_fine = Stage(c8 + c8, c8, shape.blocks)
        self.to_medium = BaseConv(c8, c8, 3, 2)
        self.up_medium = Stage(c8 + c8, c8, shape.blocks)
        self.to_coarse = BaseConv(c8, c8, 3, 2)
        self.up_coarse = Stage(c8 + c8, c8, shape.blocks)

    def forward(self, stride8: Tensor, stride16: Tensor, stride32: Tensor) -> list[Tensor]:
        top = self.lateral(stride32)
        middle = self.down_medium(torch.cat((self.upsample(top), stride16), dim=1))
        fine = self.down_fine(torch.cat((self.upsample(middle), stride8), dim=1))
        medium = self.up_medium(torch.cat((self.to_medium(fine), middle), dim=1))
        coarse = self.up_coarse(torch.cat((self.to_coarse(medium), top), dim=1))
        return [fine, medium, coarse]


class SharedConv(nn.Module):
    """Depthwise 5x5, then 1x1 and SiLU; the maps share the kernels, each has its own norms."""

    def __init__(self, channels: int, maps: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(channels, channels, 5, padding=2, groups=channels, bias=False)
        self.mixing = nn.Conv2d(channels, channels, 1, bias=False)
        norms = [nn.BatchNorm2d(channels, eps=1e-3, momentum=0.03) for _ in range(2 * maps)]
        self.spatial_norms, self.mixing_norms = (
            nn.ModuleList(norms[:maps]),
            nn.ModuleList(norms[maps:]),
        )
        self.act = nn.SiLU()

    def forward(self, features: Tensor, level: int) -> Tensor:
        spread = self.spatial_norms[level](self.spatial(features))
        return self.act(self.mixing_norms[level](self.mixing(spread)))


class EvoHead(nn.Module):
    """One branch for the box, one for the classes."""

    def __init__(self, shape: EvoShape, num_classes: int) -> None:
        super().__init__()
        channels, maps = shape.channels[2], len(STRIDES)
        self.box_conv, self.class_conv = SharedConv(channels, maps), SharedConv(channels, maps)
        self.box_preds = nn.ModuleList(nn.Conv2d(channels, 4, 1) for _ in STRIDES)
        self.class_preds = nn.ModuleList(nn.Conv2d(channels, num_classes, 1) for _ in STRIDES)
        for layer in self.class_preds:
            nn.init.constant_(layer.bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        raw = []
        for level, feature in enumerate(features):
            box = self.box_preds[level](self.box_conv(feature, level))
            classes = self.class_preds[level](self.class_conv(feature, level))
            raw.append(torch.cat((box, classes), dim=1))
        return raw


class Evo(nn.Module):
    """Images (B, 3, H, W) float32, 0 to 255, BGR, to three raw maps (B, 4 + C, H/s, W/s).

    Channels: logarithms of the distances from the cell's centre to the left, upper, right and lower
    side in cells, then class logits; the same in train and eval mode.
    """

    def __init__(self, name: str, shape: EvoShape, num_classes: int) -> None:
        super().__init__()
        self.name = name
        self.family = "evo"
        self.shape = shape
        self.num_classes = num_classes
        self.strides = STRIDES
        self.input_convention = "bgr-255"
        self.input_size = shape.input_size
        self.backbone = EvoBackbone(shape)
        self.neck = EvoNeck(shape)
        self.head = EvoHead(shape, num_classes)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Raises ConfigError when a side of `images` is not a multiple of 32."""
        check_sides(images)
        return self.head(self.neck(*self.backbone(images)))


def raw_to_xyxy(table: Tensor, cells: Tensor, strides: Tensor) -> Tensor:
    """Boxes (B, P, 4) xyxy in input pixels from the first four columns of `flatten_raw`.

    `cells` (P, 2) and `strides` (P, 1) are those of `make_grid`.
    """
    distance = table[..., :4].clamp(max=MAX_LOG_DISTANCE).exp() * strides
    centre = (cells + 0.5) * strides
    return torch.cat((centre - distance[..., :2], centre + distance[..., 2:]), dim=-1)
