"""Parameter groups, optimizers, schedules as pure functions of the step, and the weight average.

Nothing here keeps a learning rate: the training loop asks `learning_rate(step)` and sets it.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from detector.config import Hyp


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Return two groups: weights with decay; biases and normalisation parameters without."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim > 1 else plain).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def _sgd(groups: list[dict], hyp: Hyp) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=hyp.lr0, momentum=hyp.momentum, nesterov=hyp.momentum > 0)


def _adamw(groups: list[dict], hyp: Hyp) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=hyp.lr0, betas=(hyp.momentum, 0.999), fused=True)


OPTIMIZERS: dict[str, Callable[[list[dict], Hyp], torch.optim.Optimizer]] = {
    "SGD": _sgd,
    "AdamW": _adamw,
}


def build_optimizer(name: str, model: nn.Module, hyp: Hyp) -> torch.optim.Optimizer:
    """Return the named optimizer over the model's parameter groups."""
    return OPTIMIZERS[name](parameter_groups(model, hyp.weight_decay), hyp)


def set_step(optimizer: torch.optim.Optimizer, rate: float, momentum: float) -> None:
    """Set learning rate and momentum (beta1 of AdamW) of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate
        if "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        else:
            group["momentum"] = momentum
            group["nesterov"] = momentum > 0


# ---- schedules -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """Learning rate and momentum as pure functions of the optimizer step (counted from 0).

    The warm-up is quadratic (YOLOX) and its last step is the first at full rate. After it:
    `cosine` falls to `lrf * lr0` at the last step, `multistep` multiplies by 0.1 from epoch
    round(0.8 E) and again from round(0.9 E), `constant` stays at lr0.
    """

    name: str
    hyp: Hyp
    epochs: int
    steps_per_epoch: int

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of optimizer step `step`."""
        warm = self._warm(step)
        if warm < 1:
            return self.hyp.warmup_lr + (self.hyp.lr0 - self.hyp.warmup_lr) * warm
        return self.hyp.lr0 * FACTORS[self.name](self, step)

    def momentum(self, step: int) -> float:
        """Return the momentum of optimizer step `step`."""
        hyp = self.hyp
        return hyp.warmup_momentum + (hyp.momentum - hyp.warmup_momentum) * self._warm(step)

    @property
    def warmup(self) -> int:
        """Steps of the warm-up, at most half of the run."""
        wanted = round(self.hyp.warmup_epochs * self.steps_per_epoch)
        return min(wanted, self.epochs * self.steps_per_epoch // 2)

    def _warm(self, step: int) -> float:
        return min(1.0, ((step + 1) / self.warmup) ** 2) if self.warmup else 1.0


def _cosine(schedule: Schedule, step: int) -> float:
    span = max(1, schedule.epochs * schedule.steps_per_epoch - schedule.warmup)
    progress = min(1.0, max(0.0, (step + 1 - schedule.warmup) / span))
    final = schedule.hyp.lrf
    return final + 0.5 * (1 - final) * (1 + math.cos(math.pi * progress))


def _multistep(schedule: Schedule, step: int) -> float:
    epoch = step // schedule.steps_per_epoch
    passed = sum(epoch >= round(part * schedule.epochs) for part in (0.8, 0.9))
    return 0.1**passed


def _constant(schedule: Schedule, step: int) -> float:
    return 1.0


FACTORS: dict[str, Callable[[Schedule, int], float]] = {
    "cosine": _cosine,
    "multistep": _multistep,
    "constant": _constant,
}


class WeightAverage:
    """Exponential moving average of all floating-point entries of a model's state.

    The decay of update u is `decay * (1 - exp(-u / tau))`, so that early weights are forgotten
    soon. Decay 0 copies the weights.
    """

    def __init__(self, model: nn.Module, decay: float, tau: float) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.tau, self.updates = decay, tau, 0
        # The lists are made once: walking through a model's state costs as much as averaging it.
        pairs = list(zip(_state(self.module), _state(model), strict=True))
        self._floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._counters = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the present weights of the model."""
        self.updates += 1
        weight = 1 - self.decay * (1 - math.exp(-self.updates / self.tau))
        averages, values = zip(*self._floats, strict=True)
        torch._foreach_lerp_(averages, values, weight)
        for average, value in self._counters:
            average.copy_(value)


def _state(model: nn.Module) -> list[torch.Tensor]:
    return [value.detach() for value in model.state_dict().values()]
