"""The blocks of a Darknet network as values: what a `.cfg` says, checked, and written back as text.

Source: Darknet (github.com/pjreddie/darknet, AlexeyAB's fork), public domain. Layers are counted
from 0 without `[net]`; references are absolute here, whatever the file says.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, NoReturn

from detector.errors import ConfigError

ACTIVATIONS = ("leaky", "linear", "mish", "relu", "logistic", "swish")

AnchorSizes = tuple[tuple[float, float], ...]  # (width, height) in pixels


def _line() -> int:
    return field(default=0, compare=False)  # of the block in its file; 0: no file


@dataclass(frozen=True)
class Conv:
    """A convolution, with a batch norm or a bias."""

    filters: int
    size: int = 1
    stride: int = 1
    padding: int = 0  # cells on each side
    groups: int = 1
    batch_norm: bool = True
    activation: str = "leaky"
    line: int = _line()


@dataclass(frozen=True)
class MaxPool:
    """The maximum of a window; `padding` cells in all, the larger half right and below."""

    size: int
    stride: int
    padding: int
    line: int = _line()


@dataclass(frozen=True)
class Shortcut:
    """The layer before, with layer `source` added to as many of its channels as that has."""

    source: int
    activation: str = "linear"
    line: int = _line()


@dataclass(frozen=True)
class Route:
    """Part `group` of `groups` of the channels of each source, one after the other."""

    sources: tuple[int, ...]
    groups: int = 1
    group: int = 0
    line: int = _line()


@dataclass(frozen=True)
class Upsample:
    """Each cell repeated `stride` times in both directions."""

    stride: int = 2
    line: int = _line()


@dataclass(frozen=True)
class Yolo:
    """A head: the layer before it predicts boxes by these anchors."""

    anchors: AnchorSizes
    classes: int
    scale_xy: float = 1.0  # how far a centre may leave its cell (`scale_x_y`)
    line: int = _line()


Block = Conv | MaxPool | Shortcut | Route | Upsample | Yolo


class Shape(NamedTuple):
    """The output of a layer."""

    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class Layout:
    """A whole network; `name` is the file or the built-in model that messages name."""

    name: str
    width: int  # pixels
    height: int
    blocks: tuple[Block, ...]

    @property
    def heads(self) -> tuple[Yolo, ...]:
        """Its `[yolo]` blocks, in order."""
        return tuple(block for block in self.blocks if isinstance(block, Yolo))

    def with_classes(self, classes: int) -> "Layout":
        """Return the layout for another number of classes: heads, and the filters before them."""
        blocks = list(self.blocks)
        for index, block in enumerate(blocks):
            before = blocks[index - 1] if index else None
            if isinstance(block, Yolo) and isinstance(before, Conv):
                filters = len(block.anchors) * (5 + classes)
                blocks[index - 1] = replace(before, filters=filters)
                blocks[index] = replace(block, classes=classes)
        return replace(self, blocks=tuple(blocks))

    def with_anchors(self, anchors: Sequence[AnchorSizes]) -> "Layout":
        """Return the layout with other anchors, one tuple a head, as many as before."""
        given = iter(anchors)
        blocks = [
            replace(block, anchors=next(given)) if isinstance(block, Yolo) else block
            for block in self.blocks
        ]
        return replace(self, blocks=tuple(blocks))

    def fail(self, block: Block | None, what: str) -> NoReturn:
        """Raise ConfigError that names the file and the line of `block`."""
        place = f"{self.name}:{block.line}" if block and block.line else self.name
        raise ConfigError(f"{place}: {what}")


# ---- shapes


def shapes_of(layout: Layout) -> list[Shape]:
    """Return the shape of each layer for an image of the layout's own size.

    Raises: ConfigError naming file and line for layers that do not fit together.
    """
    shapes: list[Shape] = []
    before = Shape(3, layout.height, layout.width)
    for index, block in enumerate(layout.blocks):
        _check_sources(layout, index, block)
        before = _shape(layout, block, before, shapes)
        if min(before) < 1:
            layout.fail(block, f"layer {index} has nothing left of the image: {tuple(before)}")
        if isinstance(block, Yolo):
            _check_head(layout, index, block)
        shapes.append(before)
    if not layout.heads:
        layout.fail(None, "there is no [yolo] section: not a detector")
    return shapes


def _shape(layout: Layout, block: Block, before: Shape, shapes: Sequence[Shape]) -> Shape:
    channels, height, width = before
    match block:
        case Conv(filters=filters, size=size, stride=stride, padding=padding, groups=groups):
            if channels % groups or filters % groups:
                layout.fail(block, f"groups={groups} must divide {channels} and {filters} channels")
            cut = 2 * padding - size
            return Shape(filters, (height + cut) // stride + 1, (width + cut) // stride + 1)
        case MaxPool(size=size, stride=stride, padding=padding):
            cut = padding - size
            return Shape(channels, (height + cut) // stride + 1, (width + cut) // stride + 1)
        case Upsample(stride=stride):
            return Shape(channels, height * stride, width * stride)
        case Shortcut(source=source):
            if shapes[source][1:] != before[1:]:
                layout.fail(
                    block,
                    f"layer {source} {tuple(shapes[source])} cannot be added to "
                    f"layer {len(shapes) - 1} {tuple(before)}",
                )
            return before
        case Route(sources=sources, groups=groups):
            parts = [shapes[source] for source in sources]
            if len({part[1:] for part in parts}) > 1:
                layout.fail(block, f"layers {sources} differ in size: {[tuple(p) for p in parts]}")
            if any(part.channels % groups for part in parts):
                layout.fail(block, f"groups={groups} must divide {[p.channels for p in parts]}")
            return parts[0]._replace(channels=sum(part.channels // groups for part in parts))
        case Yolo():
            return before


def sources_of(layout: Layout, index: int) -> tuple[int, ...]:
    """Return the layers that layer `index` reads; -1 is the image."""
    match layout.blocks[index]:
        case Route(sources=sources):
            return sources
        case Shortcut(source=source):
            return index - 1, source
        case _:
            return (index - 1,)


def _check_sources(layout: Layout, index: int, block: Block) -> None:
    named = isinstance(block, Shortcut | Route)
    if named and index == 0:
        layout.fail(block, f"[{SECTIONS[type(block)]}] cannot be the first layer")
    for source in sources_of(layout, index):
        if named and not 0 <= source < index:
            allowed = f"allowed are 0 to {index - 1}"
            layout.fail(block, f"layer {index} refers to layer {source}: {allowed}")
        if source >= 0 and isinstance(layout.blocks[source], Yolo):
            layout.fail(block, f"layer {index} reads layer {source}, a [yolo], which has no output")


def _check_head(layout: Layout, index: int, head: Yolo) -> None:
    before = layout.blocks[index - 1] if index else None
    if not isinstance(before, Conv) or before.activation != "linear":
        layout.fail(
            head, "the layer before [yolo] must be a [convolutional] with activation=linear"
        )
    count = len(head.anchors)
    if before.filters != count * (5 + head.classes):
        layout.fail(
            before,
            f"filters={before.filters} before [yolo] must be {count * (5 + head.classes)}: "
            f"{count} anchors * (5 + {head.classes} classes)",
        )


# ---- text


def cfg_text(layout: Layout) -> str:
    """Return the layout as a `.cfg` that Darknet reads; `parse_cfg` gives the layout back."""
    sections = [f"[net]\nwidth={layout.width}\nheight={layout.height}\nchannels=3\n"]
    for block in layout.blocks:
        rows = "".join(f"{key}={value}\n" for key, value in _keys(block))
        sections.append(f"[{SECTIONS[type(block)]}]\n{rows}")
    return "\n".join(sections)


SECTIONS = {
    Conv: "convolutional",
    MaxPool: "maxpool",
    Shortcut: "shortcut",
    Route: "route",
    Upsample: "upsample",
    Yolo: "yolo",
}


def _keys(block: Block) -> Iterator[tuple[str, object]]:
    match block:
        case Conv():
            if block.batch_norm:
                yield "batch_normalize", 1
            yield "filters", block.filters
            yield "size", block.size
            yield "stride", block.stride
            yield "padding", block.padding
            if block.groups > 1:
                yield "groups", block.groups
            yield "activation", block.activation
        case MaxPool():
            yield from (("size", block.size), ("stride", block.stride), ("padding", block.padding))
        case Shortcut():
            yield from (("from", block.source), ("activation", block.activation))
        case Route():
            yield "layers", ",".join(map(str, block.sources))
            if block.groups > 1:
                yield from (("groups", block.groups), ("group_id", block.group))
        case Upsample():
            yield "stride", block.stride
        case Yolo():
            count = len(block.anchors)
            yield "mask", ",".join(map(str, range(count)))
            yield (
                "anchors",
                ", ".join(f"{width:.9g},{height:.9g}" for width, height in block.anchors),
            )
            yield from (("classes", block.classes), ("num", count))
            if block.scale_xy != 1:
                yield "scale_x_y", f"{block.scale_xy:.9g}"
