"""Darknet `.weights` files, read and written; every byte is accounted for.

Source: Darknet's parser.c (public domain). A file is a header (int32 major, minor, revision, then
the images seen: int64 from version 0.2 on, int32 before) and float32 numbers, little-endian, layer
by layer: of a convolution its biases (with a batch norm: beta, gamma, mean, variance), then its
kernel. A cut-off file (darknet53.conv.74) ends after some layer.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from detector.errors import CheckpointError
from detector.files import write_whole
from detector.models.darknet import ConvLayer, Darknet
from detector.models.darknet_blocks import Yolo

WRITTEN = (0, 2, 5)  # the version that current Darknet writes
LARGEST = 1000  # of a version number: Darknet itself takes more for a mark of transposed layers
MAX_CLASSES = 100_000
BATCH_NORM = ("bn.bias", "bn.weight", "bn.running_mean", "bn.running_var")


@dataclass(frozen=True)
class Header:
    """What stands before the numbers."""

    version: tuple[int, int, int]
    seen: int  # images of its training
    size: int  # bytes


def is_darknet(path: Path) -> bool:
    """Whether a file begins like Darknet's; torch's begin with "PK" or a mark of pickle."""
    with path.open("rb") as file:
        start = file.read(16)
    return len(start) == 16 and _version(start) is not None


def _version(start: bytes) -> tuple[int, int, int] | None:
    major, minor, revision = struct.unpack("<3i", start[:12])
    whole = all(0 <= number < LARGEST for number in (major, minor, revision))
    return (major, minor, revision) if whole and major + minor > 0 else None


def read_header(path: Path) -> Header:
    """Return the header of a file. Raises: `CheckpointError` when it has none."""
    with path.open("rb") as file:
        start = file.read(20)
    version = _version(start) if len(start) >= 16 else None
    if version is None:
        raise CheckpointError(f"{path}: not a Darknet weight file (damaged or foreign)")
    long = 10 * version[0] + version[1] >= 2
    if long and len(start) < 20:
        raise CheckpointError(f"{path}: ends inside its header: {len(start)} of 20 bytes")
    (seen,) = struct.unpack("<q", start[12:20]) if long else struct.unpack("<i", start[12:16])
    return Header(version, seen, 20 if long else 16)


def read_darknet(path: Path, model: Darknet) -> dict[str, Tensor]:
    """Return the tensors of a file by the names of `model`; a cut-off file gives fewer.

    A file for another number of classes gives its head's convolutions in their own shape.

    Raises: `CheckpointError` naming expected and actual size for a file of another network, or one
    that ends inside a layer.
    """
    header = read_header(path)
    data = path.read_bytes()[header.size :]
    if len(data) % 4:
        raise CheckpointError(f"{path}: {len(data)} bytes after its header are no float32 numbers")
    numbers = np.frombuffer(data, dtype="<f4")
    layers = _layers(model)
    plan = _plan(path, layers, model, len(numbers))
    found: dict[str, Tensor] = {}
    start = 0
    for layer, shapes in plan:
        for name, shape in shapes.items():
            size = int(np.prod(shape))
            values = numbers[start : start + size].astype(np.float32)
            start += size
            if not np.isfinite(values).all():
                raise CheckpointError(f"{path}: numbers of layer {layer.index} are not finite")
            if name.endswith("running_var") and not (values >= 0).all():
                raise CheckpointError(
                    f"{path}: a variance of layer {layer.index} is negative: "
                    f"the file is not of {model.name}"
                )
            found[name] = torch.from_numpy(values).reshape(shape)
        if layer.has_norm:
            found[f"{layer.prefix}.bn.num_batches_tracked"] = torch.tensor(0)
    return found


@dataclass(frozen=True)
class _Layer:
    """A convolution of the network and the tensors that a file has of it, in its order."""

    index: int  # in the cfg
    prefix: str  # of its names
    shapes: dict[str, tuple[int, ...]]
    is_head: bool

    @property
    def has_norm(self) -> bool:
        return len(self.shapes) > 2

    def shapes_for(self, ratio: tuple[int, int]) -> dict[str, tuple[int, ...]]:
        """Return the shapes with ratio[0] outputs for each ratio[1] that the network has."""
        if not self.is_head:
            return self.shapes
        return {
            name: (shape[0] * ratio[0] // ratio[1], *shape[1:])
            for name, shape in self.shapes.items()
        }

    def size(self, ratio: tuple[int, int] = (1, 1)) -> int:
        """Return its numbers in a file."""
        return sum(int(np.prod(shape)) for shape in self.shapes_for(ratio).values())


def _layers(model: Darknet) -> list[_Layer]:
    state = model.state_dict()
    prefixes = [f"backbone.{index}" for index in range(len(model.backbone))]
    prefixes += [f"heads.{index}" for index in range(len(model.heads))]
    heads = {i - 1 for i, block in enumerate(model.layout.blocks) if isinstance(block, Yolo)}
    layers = []
    for index, (prefix, layer) in enumerate(zip(prefixes, model.layers, strict=True)):
        if isinstance(layer, ConvLayer):
            own = BATCH_NORM if layer.bn is not None else ("conv.bias",)
            names = [f"{prefix}.{name}" for name in (*own, "conv.weight")]
            shapes = {name: tuple(state[name].shape) for name in names}
            layers.append(_Layer(index, prefix, shapes, index in heads))
    return layers


Plan = Sequence[tuple[_Layer, dict[str, tuple[int, ...]]]]


def _plan(path: Path, layers: Sequence[_Layer], model: Darknet, count: int) -> Plan:
    """Return which layers the `count` numbers of a file are, and in which shapes."""
    whole = sum(layer.size() for layer in layers)
    if count != whole:
        classes = _other_classes(layers, model.num_classes, count)
        if classes is not None:
            ratio = (5 + classes, 5 + model.num_classes)
            return [(layer, layer.shapes_for(ratio)) for layer in layers]
    if count > whole:
        raise CheckpointError(
            f"{path}: holds {4 * count} bytes of numbers, {model.name} with "
            f"{model.num_classes} classes has {4 * whole}: another network, "
            "or cut off and for other classes"
        )
    plan, end = [], 0
    for layer in layers:
        if end == count:
            break
        end += layer.size()
        if end > count:
            raise CheckpointError(
                f"{path}: ends inside layer {layer.index} of {model.name}: expected {4 * end} "
                f"bytes of numbers up to there, found {4 * count} (the whole network has "
                f"{4 * whole}): cut off, or a file of another network"
            )
        plan.append((layer, layer.shapes))
    if not plan:
        raise CheckpointError(f"{path}: holds no numbers after its header")
    return plan


def _other_classes(layers: Sequence[_Layer], own: int, count: int) -> int | None:
    """Return the number of classes with which the network has `count` numbers, if there is one."""
    head = sum(layer.size() for layer in layers if layer.is_head)
    rest = sum(layer.size() for layer in layers if not layer.is_head)
    rows, left = divmod((count - rest) * (5 + own), head)
    classes = rows - 5
    return classes if not left and 1 <= classes <= MAX_CLASSES else None


def save_darknet(model: Darknet, path: str | Path, seen: int = 0) -> None:
    """Write the weights of `model` as a `.weights` file that Darknet reads with its cfg."""
    write_whole(Path(path), b"".join(_bytes(model, seen)))


def _bytes(model: Darknet, seen: int) -> Iterator[bytes]:
    yield struct.pack("<3iq", *WRITTEN, seen)
    state = model.state_dict()
    for layer in _layers(model):
        for name in layer.shapes:
            yield state[name].detach().cpu().float().numpy().astype("<f4").tobytes()
