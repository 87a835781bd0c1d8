"""Building blocks of the CSP networks.

Attribute names (`conv`, `bn`, `dconv`, `m`, ...) are those of the official YOLOX weight files.
Letters: B batch, C channels, H, W.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of red, green and blue, as fractions of 255
IMAGENET_STD = (0.229, 0.224, 0.225)


class PixelScaling(nn.Module):
    """Pixels (B, 3, H, W) of 0 to 255 to (pixel / 255 - mean) / std, per channel.

    The numbers are no part of the state dict: they follow from the name of a network.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            scaled = 255.0 * torch.tensor(values).reshape(1, 3, 1, 1)
            self.register_buffer(name, scaled, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


class LeakyReLU(nn.LeakyReLU):
    """Leaky ReLU with Darknet's slope of 0.1."""

    def __init__(self) -> None:
        super().__init__(0.1)


class BaseConv(nn.Module):
    """Convolution with `same` padding, batch norm, SiLU or another activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        activation: type[nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel,
            stride,
            padding=(kernel - 1) // 2,
            groups=groups,
            bias=False,
        )
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.03)
        self.act = activation()  # not in place: the gradient of SiLU would need a copy of the input

    def forward(self, features: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(features)))


class DWConv(nn.Module):
    """Depthwise convolution, then a pointwise one."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.dconv = BaseConv(in_channels, in_channels, kernel, stride, groups=in_channels)
        self.pconv = BaseConv(in_channels, out_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.pconv(self.dconv(features))


def conv_block(depthwise: bool) -> type[BaseConv] | type[DWConv]:
    """The class of a network's spatial convolutions."""
    return DWConv if depthwise else BaseConv


class Bottleneck(nn.Module):
    """1x1, then 3x3, with the input added on request; the width stays."""

    def __init__(self, channels: int, shortcut: bool, depthwise: bool) -> None:
        super().__init__()
        self.conv1 = BaseConv(channels, channels, 1)
        self.conv2 = conv_block(depthwise)(channels, channels, 3)
        self.shortcut = shortcut

    def forward(self, features: Tensor) -> Tensor:
        update = self.conv2(self.conv1(features))
        return features + update if self.shortcut else update


class CSPLayer(nn.Module):
    """Cross-stage partial layer: half of the channels through `num_blocks` bottlenecks.

    Source: Wang et al. 2020 (arXiv 1911.11929), in the three-convolution form of YOLOv5 and YOLOX.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_blocks: int,
        shortcut: bool,
        depthwise: bool,
    ) -> None:
        super().__init__()
        hidden = out_channels // 2
        self.conv1 = BaseConv(in_channels, hidden, 1)
        self.conv2 = BaseConv(in_channels, hidden, 1)
        self.conv3 = BaseConv(2 * hidden, out_channels, 1)
        self.m = nn.Sequential(
            *(Bottleneck(hidden, shortcut, depthwise) for _ in range(num_blocks))
        )

    def forward(self, features: Tensor) -> Tensor:
        deep, plain = self.m(self.conv1(features)), self.conv2(features)
        return self.conv3(torch.cat((deep, plain), dim=1))


class SPPBottleneck(nn.Module):
    """Spatial pyramid pooling over windows of 5, 9 and 13 cells.

    Two 5x5 maxima in a row see 9x9 and three see 13x13: the same numbers, less work.
    """

    def __init__(
        self, in_channels: int, out_channels: int, activation: type[nn.Module] = nn.SiLU
    ) -> None:
        super().__init__()
        hidden = in_channels // 2
        self.conv1 = BaseConv(in_channels, hidden, 1, activation=activation)
        self.pool = nn.MaxPool2d(kernel_size=5, stride=1, padding=2)
        self.conv2 = BaseConv(4 * hidden, out_channels, 1, activation=activation)

    def forward(self, features: Tensor) -> Tensor:
        own = self.conv1(features)
        window5 = self.pool(own)
        window9 = self.pool(window5)
        window13 = self.pool(window9)
        return self.conv2(torch.cat((own, window5, window9, window13), dim=1))


class Focus(nn.Module):
    """Fold each 2x2 block of pixels into channels, then convolve: (B, C, H, W) to half the size."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = BaseConv(4 * in_channels, out_channels, kernel)

    def forward(self, images: Tensor) -> Tensor:
        # column by column, as the official weights expect: top-left, bottom-left, top-right, ...
        corners = [images[..., row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.conv(torch.cat(corners, dim=1))
