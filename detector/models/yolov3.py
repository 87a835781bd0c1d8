"""The built-in YOLOv3 networks as Darknet blocks; no file is needed.

Source: Redmon and Farhadi 2018 (arXiv 1804.02767); anchors and masks as in the published files.
"""

from dataclasses import dataclass

from detector.errors import ConfigError, did_you_mean
from detector.models.darknet_blocks import (
    AnchorSizes,
    Block,
    Conv,
    Layout,
    MaxPool,
    Route,
    Shortcut,
    Upsample,
    Yolo,
    shapes_of,
)
from detector.models.spelling import read_number, read_options

ANCHORS = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)
TINY_ANCHORS = (  # the smallest of the six, 10 x 14, is used by no head
    ((23, 27), (37, 58), (81, 82)),
    ((81, 82), (135, 169), (344, 319)),
)
CLASSES = 80
REPEATS = (1, 2, 8, 8, 4)  # residual blocks at strides 2, 4, 8, 16, 32
SPP_WINDOWS = (5, 9, 13)  # cells
SIDE = 416  # pixels
LIMITS = (0.03, 4.0)  # of a smaller relative's width and depth


@dataclass(frozen=True)
class Scale:
    """A smaller relative of a built-in network: factors of its channels and its repeats."""

    width: float = 1.0
    depth: float = 1.0

    @classmethod
    def from_options(cls, options: str, name: str) -> "Scale":
        """Read `width=0.25,depth=0.5`; what is missing is 1. Raises: ConfigError naming `name`."""
        given = read_options(options, ("width", "depth"), "yolov3", name)
        found = {key: read_number(key, text, name, LIMITS) for key, text in given.items()}
        return cls(**found)

    def suffix(self) -> str:
        """The free spelling, `:width=0.25,depth=0.5`; empty for the published network."""
        return "" if self == Scale() else f":width={self.width:g},depth={self.depth:g}"

    def repeats(self, count: int) -> int:
        """Return the number of residual blocks where the published network has `count`."""
        return max(1, round(self.depth * count))


class _Builder:
    """Blocks one after the other, with short names for what the YOLOv3 files repeat."""

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self.blocks: list[Block] = []

    @property
    def last(self) -> int:
        """The number of the newest layer."""
        return len(self.blocks) - 1

    def filters(self, published: int) -> int:
        return max(2, 2 * round(self.scale.width * published / 2))

    def conv(self, filters: int, size: int, stride: int = 1) -> None:
        self.blocks.append(Conv(self.filters(filters), size, stride, size // 2))

    def pool(self, size: int, stride: int) -> None:
        self.blocks.append(MaxPool(size, stride, size - 1))

    def route(self, *sources: int) -> None:
        self.blocks.append(Route(sources))

    def residual(self, filters: int) -> None:
        """A 1x1 and a 3x3 convolution, and their input added."""
        source = self.last
        self.conv(filters // 2, 1)
        self.conv(filters, 3)
        self.blocks.append(Shortcut(source))

    def spp(self) -> None:
        """The newest layer and its maxima over windows of 5, 9 and 13 cells, largest first."""
        own, pooled = self.last, []
        for window in SPP_WINDOWS:
            if self.last != own:
                self.route(own)
            self.pool(window, 1)
            pooled.append(self.last)
        self.route(*reversed(pooled), own)

    def head(self, anchors: AnchorSizes) -> None:
        filters = len(anchors) * (5 + CLASSES)
        self.blocks.append(Conv(filters, 1, batch_norm=False, activation="linear"))
        self.blocks.append(Yolo(anchors, CLASSES))

    def layout(self, name: str) -> Layout:
        found = Layout(name, SIDE, SIDE, tuple(self.blocks))
        shapes_of(found)
        return found


def yolov3(name: str, scale: Scale, spp: bool) -> Layout:
    """Return YOLOv3 on Darknet-53, with spatial pyramid pooling or without."""
    net = _Builder(scale)
    net.conv(32, 3)
    features = []  # the last layer at strides 2, 4, 8, 16, 32
    for filters, repeats in zip((64, 128, 256, 512, 1024), REPEATS, strict=True):
        net.conv(filters, 3, stride=2)
        for _ in range(scale.repeats(repeats)):
            net.residual(filters)
        features.append(net.last)
    for level, filters in ((2, 512), (1, 256), (0, 128)):
        if level < 2:
            net.route(net.last - 3)  # the last 1x1 convolution of the coarser head
            net.conv(filters, 1)
            net.blocks.append(Upsample(2))
            net.route(net.last, features[level + 2])
        for step in range(3):
            net.conv(filters, 1)
            if spp and level == 2 and step == 1:
                net.spp()
                net.conv(filters, 1)
            net.conv(2 * filters, 3)
        net.head(ANCHORS[level])
    return net.layout(name)


def yolov3_tiny(name: str, scale: Scale) -> Layout:
    """Return YOLOv3-tiny: seven convolutions with pooling between them, two heads."""
    net = _Builder(scale)
    for filters in (16, 32, 64, 128, 256):
        net.conv(filters, 3)
        middle = net.last  # at the end: the layer at stride 16
        net.pool(2, 2)
    net.conv(512, 3)
    net.pool(2, 1)
    net.conv(1024, 3)
    net.conv(256, 1)
    shared = net.last
    net.conv(512, 3)
    net.head(TINY_ANCHORS[1])
    net.route(shared)
    net.conv(128, 1)
    net.blocks.append(Upsample(2))
    net.route(net.last, middle)
    net.conv(256, 3)
    net.head(TINY_ANCHORS[0])
    return net.layout(name)


def built_in(name: str, options: str = "") -> Layout:
    """Return the layout of `yolov3`, `yolov3-spp` or `yolov3-tiny` at the scale of `options`.

    Raises: ConfigError for an unknown name or a wrong option.
    """
    scale = Scale.from_options(options, f"{name}:{options}")
    full = name + scale.suffix()
    if name == "yolov3-tiny":
        if scale.depth != 1:
            raise ConfigError(f"model={name}:{options}: yolov3-tiny has no repeats: no depth")
        return yolov3_tiny(full, scale)
    if name not in NAMES:
        raise ConfigError(f"model={name} is not a known network{did_you_mean(name, NAMES)}")
    return yolov3(full, scale, spp=name == "yolov3-spp")


NAMES = ("yolov3", "yolov3-spp", "yolov3-tiny")
