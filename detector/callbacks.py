"""What a caller of `train` may hook into."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor


def nothing(number: int, values: Mapping[str, object]) -> bool | None:
    """Do nothing, and go on."""
    return None


@dataclass(frozen=True)
class Callbacks:
    """Functions that `train` calls; True ends the training there, with its state saved.

    `on_step(step, parts)` follows each optimizer step; `parts` are its loss parts, 0-dim tensors on
    the device: reading one waits for the device. `on_epoch(epoch, row)` follows each epoch with
    its row of results.csv.
    """

    on_step: Callable[[int, Mapping[str, Tensor]], bool | None] = nothing
    on_epoch: Callable[[int, Mapping[str, float]], bool | None] = nothing
