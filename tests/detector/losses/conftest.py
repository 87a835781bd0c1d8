"""Random maps and objects for the tests of the losses."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

Maps = Callable[..., list[Tensor]]
Objects = Callable[..., list[dict[str, Tensor]]]


@pytest.fixture(scope="session")
def random_maps() -> Maps:
    """Return `random_maps(channels, images, seed)`: raw maps of pictures of `side` pixels."""

    def make(
        channels: int, images: int, seed: int, strides: Sequence[int] = (8, 16, 32), side: int = 64
    ) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [
            torch.randn(images, channels, side // stride, side // stride, generator=generator)
            for stride in strides
        ]

    return make


@pytest.fixture(scope="session")
def random_objects() -> Objects:
    """Return `random_objects(counts, seed, classes)`: that many objects of at least 2 px."""

    def make(
        counts: Sequence[int], seed: int, classes: int = 3, side: int = 64
    ) -> list[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        targets = []
        for count in counts:
            low = torch.rand(count, 2, generator=generator) * (side - 10)
            high = low + 2 + torch.rand(count, 2, generator=generator) * (side - low - 2)
            labels = torch.randint(0, classes, (count,), generator=generator)
            targets.append({"boxes": torch.cat((low, high), dim=1), "labels": labels})
        return targets

    return make
