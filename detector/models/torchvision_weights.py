"""torchvision's weight files: where they lie on this machine, and the names inside of them."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model_builder, get_model_weights

from detector.errors import CheckpointError
from detector.models.torchvision import KINDS

WORDS = ("imagenet", "coco")  # weights of the backbone, weights of the whole detector
BACKBONE = ("backbone.body.", "backbone.features.", "backbone.extra.0.")
CLASSIFIER = ("fc.", "classifier.")  # of an ImageNet network
# Heads of earlier versions of torchvision: what a name was, and what it is.
OLD_HEADS = (
    (r"^(rpn\.head\.conv)\.(weight|bias)$", lambda old: f"{old[1]}.0.0.{old[2]}"),
    (
        r"^(head\.\w+_head\.conv)\.([0246])\.(weight|bias)$",
        lambda old: f"{old[1]}.{int(old[2]) // 2}.0.{old[3]}",
    ),
)


def cached_file(network: nn.Module, word: str) -> Path | None:
    """Return the file that "imagenet" or "coco" means for a network; None for any other word.

    It is looked for where torch keeps what it once downloaded; nothing is downloaded.

    Raises: `CheckpointError` when it is not there, naming the file and its address.
    """
    if word not in WORDS:
        return None
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    addresses = [weights.url for weights in _published(network.name, word)]
    if not addresses:
        raise CheckpointError(f"weights={word}: torchvision has none for {network.name}")
    files = [folder / address.rsplit("/", 1)[-1] for address in addresses]
    for file in files:
        if file.is_file():
            return file
    raise CheckpointError(
        f"weights={word}: {' or '.join(file.name for file in files)} is not in {folder}; "
        f"nothing is downloaded by itself: put {addresses[0]} there"
    )


def _published(name: str, word: str) -> Iterator[WeightsEnum]:
    """Yield the weights that torchvision offers for a network or its backbone."""
    kind, _, options = name.removeprefix("torchvision:").partition(":")
    if word == "coco":
        yield from () if kind in KINDS else get_model_weights(kind)
    elif kind in KINDS:
        backbone = re.search(r"backbone=(\w+)", options)
        assert backbone
        yield from get_model_weights(backbone[1])
    else:
        annotation = inspect.signature(get_model_builder(kind)).parameters["weights_backbone"]
        enums: list[Any] = [
            part
            for part in get_args(annotation.annotation)
            if isinstance(part, type) and issubclass(part, WeightsEnum)
        ]
        for enum in enums:
            yield from enum


def own_names(network: nn.Module, source: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict of torchvision by the names that `network` has.

    It may be of a whole detector, also of an earlier version, or of an ImageNet classifier, whose
    tensors then belong to the backbone, in their order.
    """
    own = network.state_dict()
    renamed = {_new_name(name, own): value for name, value in source.items()}
    if any(name in own for name in renamed):
        return renamed
    inside = [name for name in own if name.startswith(BACKBONE) and _is_weight(name)]
    given = [name for name in source if not name.startswith(CLASSIFIER) and _is_weight(name)]
    pairs = list(zip(inside, given, strict=False))
    fitting = sum(own[mine].shape == source[theirs].shape for mine, theirs in pairs)
    if 2 * fitting <= len(pairs):  # the first layers of other backbones fit by chance
        return source
    return {mine: source[theirs] for mine, theirs in pairs}


def _new_name(name: str, own: dict[str, Tensor]) -> str:
    for pattern, new in OLD_HEADS:
        old = re.match(pattern, name)
        if old and name not in own:
            return new(old)
    return name


def _is_weight(name: str) -> bool:
    """Whether a tensor is more than a counter, which older files do not have."""
    return not name.endswith("num_batches_tracked")
