"""Batch norm whose statistics are those of all ranks' images, not only of the own ones.

Letters: B images of this rank, C channels, H, W.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def synchronise_norms(network: nn.Module, device: torch.device) -> None:
    """Let all ranks compute the batch norms of `network` together; weights keep their names.

    All ranks must then call it equally often, with an empty batch if need be.
    """
    if device.type != "cpu":  # PyTorch's own is for accelerators only
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, _on_cpu(child))


class SumOverRanks(torch.autograd.Function):
    """The sum of a tensor over all ranks; its gradient is summed over all ranks too."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class SharedBatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` with the statistics of all ranks in training."""

    def forward(self, features: Tensor) -> Tensor:
        """Normalise (B, C, H, W); B may be 0."""
        if not self.training:
            return super().forward(features)
        wide = features.float()
        count = torch.full((1,), float(features.numel() // self.num_features))
        sums = SumOverRanks.apply(torch.cat((wide.sum((0, 2, 3)), count)))  # (C + 1,)
        total = sums[-1]
        mean = sums[:-1] / total  # (C,)
        centred = wide - mean[:, None, None]
        variance = SumOverRanks.apply(centred.square().sum((0, 2, 3))) / total  # (C,)
        self._remember(mean.detach(), variance.detach() * total / (total - 1).clamp(min=1))
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(features.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, unbiased: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(unbiased, self.momentum)


def _on_cpu(norm: nn.BatchNorm2d) -> SharedBatchNorm:
    """Return a norm with the same parameters, buffers and mode."""
    shared = SharedBatchNorm(norm.num_features, norm.eps, norm.momentum)
    shared.weight, shared.bias = norm.weight, norm.bias
    for name, value in norm.named_buffers():
        setattr(shared, name, value)
    return shared.train(norm.training)
