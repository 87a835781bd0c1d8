"""Darknet-53 with an SPP block and a feature pyramid: the Darknet53 variant of YOLOX.

Source: Redmon, Farhadi 2018 (arXiv 1804.02767) and Ge et al. 2021 (arXiv 2107.08430, section 2.1).
Parameter names are those of the official YOLOX weight file. Letters: B batch, C channels, H, W.
"""

import torch
from torch import Tensor, nn

from detector.models.blocks import BaseConv, LeakyReLU, SPPBottleneck

BLOCKS = (1, 2, 8, 8, 4)  # residual blocks at strides 2, 4, 8, 16 and 32
CHANNELS = (128, 256, 512)  # of the pyramid's maps at strides 8, 16 and 32


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> BaseConv:
    """A convolution with batch norm and leaky ReLU."""
    return BaseConv(in_channels, out_channels, kernel, stride, activation=LeakyReLU)


class Residual(nn.Module):
    """1x1 to half of the channels, 3x3 back, and the input added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer1 = conv(channels, channels // 2, 1)
        self.layer2 = conv(channels // 2, channels, 3)

    def forward(self, features: Tensor) -> Tensor:
        return features + self.layer2(self.layer1(features))


def stage(in_channels: int, num_blocks: int) -> list[nn.Module]:
    """Half the resolution and twice the channels, then residual blocks."""
    channels = 2 * in_channels
    return [conv(in_channels, channels, 3, 2), *(Residual(channels) for _ in range(num_blocks))]


def embedding(in_channels: int, narrow: int) -> nn.Sequential:
    """Five convolutions, in turn 1x1 to `narrow` channels and 3x3 to twice as many."""
    return nn.Sequential(
        conv(in_channels, narrow, 1),
        conv(narrow, 2 * narrow, 3),
        conv(2 * narrow, narrow, 1),
        conv(narrow, 2 * narrow, 3),
        conv(2 * narrow, narrow, 1),
    )


class Darknet53(nn.Module):
    """Images (B, 3, H, W) to features at strides 8, 16 and 32 with 256, 512 and 512 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 32, 3), *stage(32, BLOCKS[0]))
        self.dark2 = nn.Sequential(*stage(64, BLOCKS[1]))
        self.dark3 = nn.Sequential(*stage(128, BLOCKS[2]))
        self.dark4 = nn.Sequential(*stage(256, BLOCKS[3]))
        self.dark5 = nn.Sequential(
            *stage(512, BLOCKS[4]),
            conv(1024, 512, 1),
            conv(512, 1024, 3),
            SPPBottleneck(1024, 512, LeakyReLU),
            conv(512, 1024, 3),
            conv(1024, 512, 1),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        stride8 = self.dark3(self.dark2(self.stem(images)))
        stride16 = self.dark4(stride8)
        return stride8, stride16, self.dark5(stride16)


class DarknetFPN(nn.Module):
    """The backbone, and coarse features that flow down to fine ones; see CHANNELS."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Darknet53()
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.out1_cbl = conv(512, 256, 1)
        self.out1 = embedding(256 + 512, 256)
        self.out2_cbl = conv(256, 128, 1)
        self.out2 = embedding(128 + 256, 128)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        stride8, stride16, stride32 = self.backbone(images)
        down = self.upsample(self.out1_cbl(stride32))
        middle = self.out1(torch.cat((down, stride16), dim=1))
        down = self.upsample(self.out2_cbl(middle))
        return self.out2(torch.cat((down, stride8), dim=1)), middle, stride32
