"""What the losses of all dense families share."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detector.config import Hyp

Targets = Sequence[dict[str, Tensor]]  # per image: "boxes" (n, 4) xyxy pixels, "labels" (n,)


class DenseLoss(nn.Module):
    """A loss on raw maps. `use_l1` says that the no-augmentation tail has begun."""

    def __init__(self, hyp: Hyp) -> None:
        super().__init__()
        self.hyp = hyp
        self.use_l1 = False  # a family without an L1 part passes it over

    def forward(self, raw: Sequence[Tensor], targets: Targets) -> dict[str, Tensor]:
        """The parts of `sums` divided by max(count, 1), and their sum as "total"."""
        sums, count = self.sums(raw, targets)
        parts = {name: value / count.clamp(min=1) for name, value in sums.items()}
        return {**parts, "total": torch.stack(tuple(parts.values())).sum()}

    def sums(self, raw: Sequence[Tensor], targets: Targets) -> tuple[dict[str, Tensor], Tensor]:
        """Gain-weighted sums of the parts, and the count to divide them by.

        Sums and counts of several micro-batches add up to those of one large batch. Computed in
        float32 whatever the autocast state; 0-dim tensors.
        """
        raise NotImplementedError
