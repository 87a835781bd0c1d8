"""Muon: momentum whose matrix is made orthogonal before each step.

Sources: Jordan et al. 2024 (kellerjordan.github.io/posts/muon: the iteration and its constants);
Liu et al. 2025 (arXiv 2502.16982, section 2.2: the size of an update, and decoupled decay).
Letters: N matrices of one shape, M rows, K columns, M <= K.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from detector.distributed import amp_dtype

QUINTIC = (3.4445, -4.7750, 2.0315)  # Source: Jordan et al. 2024
ITERATIONS = 5
UPDATE_RMS = 0.2  # root mean square of an AdamW update. Source: Liu et al. 2025, equation 4


@torch.no_grad()
def orthogonalised(matrices: Tensor) -> Tensor:
    """Return (N, M, K) with all singular values moved to about 1 (0.7 to 1.2), M <= K.

    Newton-Schulz iteration s <- a s + b s^3 + c s^5 on the singular values, without finding them.
    In bfloat16 where the device has it natively: enough for "about 1" (Jordan et al. 2024).
    """
    a, b, c = QUINTIC
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)  # every singular value <= 1
    if amp_dtype(x.device, True) == torch.bfloat16:
        x = x.bfloat16()
    for _ in range(ITERATIONS):
        gram = x @ x.mT  # (N, M, M)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Muon(torch.optim.Optimizer):
    """Muon for the groups that say `"muon": True`, AdamW for the others.

    A parameter of a Muon group is read as the matrix (first dimension, all others). Its update has
    the root mean square of an AdamW update, so that one learning rate and decay serve both parts.
    `betas[0]` is the momentum of the one and beta1 of the other.
    """

    def __init__(
        self,
        groups: list[dict],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        fused: bool = False,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0, "muon": False})
        # The inner optimizer works on the very dicts and state of this one: nothing is kept twice.
        rest = [group for group in self.param_groups if not group["muon"]]
        self._adamw = torch.optim.AdamW(rest, lr=lr, betas=betas, fused=fused) if rest else None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Move all parameters that have a gradient."""
        for group in self.param_groups:
            if group["muon"]:
                self._orthogonal_step(group)
        if self._adamw is not None:
            # load_state_dict replaces both, so they are handed over at each step
            self._adamw.param_groups = [g for g in self.param_groups if not g["muon"]]
            self._adamw.state = self.state
            self._adamw.step()

    def _orthogonal_step(self, group: dict) -> None:
        """One step of a Muon group; matrices of equal shape are worked on together."""
        momentum, rate = group["betas"][0], group["lr"]
        parameters = [weight for weight in group["params"] if weight.grad is not None]
        if not parameters:
            return
        for weight in parameters:
            if not self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        buffers = [self.state[weight]["momentum"] for weight in parameters]
        gradients = [weight.grad for weight in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, buffers, momentum)  # Nesterov
        torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
        for members in _by_shape(parameters):
            stack = torch.stack([_as_matrix(ahead[index]) for index in members])  # (N, M, K)
            size = UPDATE_RMS * max(stack.shape[1:]) ** 0.5
            for index, update in zip(members, orthogonalised(stack).unbind(), strict=True):
                weight = parameters[index]
                update = update.T if weight.shape[0] > update.shape[0] else update
                weight.add_(update.reshape(weight.shape), alpha=-rate * size)


def _as_matrix(kernel: Tensor) -> Tensor:
    """(out, in, k, k) as (out, in * k * k), turned so that it is not taller than wide."""
    matrix = kernel.flatten(1)
    return matrix.T if matrix.shape[0] > matrix.shape[1] else matrix


def _by_shape(parameters: Iterable[Tensor]) -> list[list[int]]:
    """Indices of the parameters, those whose matrix has the same sides together."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, weight in enumerate(parameters):
        sides = weight.shape[0], weight[0].numel()
        groups.setdefault((min(sides), max(sides)), []).append(index)
    return list(groups.values())
