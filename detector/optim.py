"""Parameter groups, optimizers, frozen parts, and the weight average.

Nothing here keeps a learning rate: the training loop asks a `Schedule` for it and sets it.
"""

import copy
import logging
import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from detector.config import Hyp, TrainConfig
from detector.errors import ConfigError
from detector.muon import Muon

FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")  # where torch has one kernel for a whole step

log = logging.getLogger("detector")


# ---- parameter groups ----------------------------------------------------------------------


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Return two groups: weights with decay; biases and normalisation parameters without."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim > 1 else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def muon_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Return the groups of `parameter_groups`, with a third one before them for Muon.

    Muon takes what is a matrix between normalised features: dense convolutions without a bias.
    Depthwise kernels are no matrices, and a prediction (it has a bias) has an output of its own
    scale; both stay with AdamW.
    """
    matrices = [
        module.weight
        for module in model.modules()
        if isinstance(module, nn.Conv2d) and module.groups == 1 and module.bias is None
    ]
    matrices = [weight for weight in matrices if weight.requires_grad]
    known = {id(weight) for weight in matrices}
    groups = parameter_groups(model, weight_decay)
    for group in groups:
        group["params"] = [weight for weight in group["params"] if id(weight) not in known]
    first = {"params": matrices, "weight_decay": weight_decay, "muon": True}
    return [group for group in (first, *groups) if group["params"]]


# ---- optimizers ----------------------------------------------------------------------------


def _sgd(model: nn.Module, hyp: Hyp, fused: bool) -> torch.optim.Optimizer:
    nesterov = hyp.momentum > 0
    groups = parameter_groups(model, hyp.weight_decay)
    return torch.optim.SGD(groups, hyp.lr0, hyp.momentum, nesterov=nesterov, fused=fused)


def _adam(model: nn.Module, hyp: Hyp, fused: bool) -> torch.optim.Optimizer:
    groups = parameter_groups(model, hyp.weight_decay)
    return torch.optim.Adam(groups, hyp.lr0, (hyp.momentum, 0.999), fused=fused)


def _adamw(model: nn.Module, hyp: Hyp, fused: bool) -> torch.optim.Optimizer:
    groups = parameter_groups(model, hyp.weight_decay)
    return torch.optim.AdamW(groups, hyp.lr0, (hyp.momentum, 0.999), fused=fused)


def _muon(model: nn.Module, hyp: Hyp, fused: bool) -> torch.optim.Optimizer:
    groups = muon_groups(model, hyp.weight_decay)
    return Muon(groups, hyp.lr0, (hyp.momentum, 0.999), fused=fused)


OPTIMIZERS: dict[str, Callable[[nn.Module, Hyp, bool], torch.optim.Optimizer]] = {
    "SGD": _sgd,
    "Adam": _adam,
    "AdamW": _adamw,
    "Muon": _muon,
}


def build_optimizer(name: str, model: nn.Module, hyp: Hyp) -> torch.optim.Optimizer:
    """Return the named optimizer over all parameters of `model` that are not frozen.

    Raises: `ConfigError` if everything is frozen.
    """
    kinds = {weight.device.type for weight in model.parameters() if weight.requires_grad}
    if not kinds:
        raise ConfigError("every parameter is frozen: nothing is left to train")
    return OPTIMIZERS[name](model, hyp, kinds <= set(FUSED_DEVICES))


def set_step(optimizer: torch.optim.Optimizer, rate: float, momentum: float) -> None:
    """Set learning rate and momentum (beta1 of the Adam family) of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate
        if "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        else:
            group["momentum"] = momentum
            group["nesterov"] = momentum > 0


def rate_scale(config: TrainConfig, hyp: Hyp) -> float:
    """Return what all learning rates are multiplied by: 1 unless `scale_lr` names a batch.

    From a batch of `scale_lr` images to one of `nbs`: in proportion under SGD (Goyal et al. 2017,
    arXiv 1706.02677), by the square root under the Adam family (Malladi et al. 2022, arXiv
    2205.10287), whose step does not grow with the gradient.
    """
    if not config.scale_lr:
        return 1.0
    ratio = hyp.nbs / config.scale_lr
    scale = ratio if config.optimizer == "SGD" else math.sqrt(ratio)
    log.info(
        "lr0 %.4g at %d images a step becomes %.4g at %d",
        hyp.lr0,
        config.scale_lr,
        hyp.lr0 * scale,
        hyp.nbs,
    )
    return scale


def set_norm_momentum(model: nn.Module, momentum: float) -> None:
    """Set the share of each new batch in the running statistics of all batch norms, in place."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = momentum


# ---- frozen parts --------------------------------------------------------------------------


def freeze(model: nn.Module, names: str) -> list[nn.Module]:
    """Freeze parts of `model` in place and return them; keep them in eval mode with `hold`.

    `names`: empty, `backbone`, a number of leading blocks of the backbone, or names of modules,
    separated by commas. Raises: `ConfigError` naming what the model offers.
    """
    frozen: list[nn.Module] = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        frozen += _parts(model, name)
    for module in frozen:
        module.requires_grad_(False)
    hold(frozen)
    return frozen


def hold(frozen: Iterable[nn.Module]) -> None:
    """Put frozen modules into eval mode: their batch statistics stay as they are, too."""
    for module in frozen:
        module.eval()


def _parts(model: nn.Module, name: str) -> list[nn.Module]:
    backbone = _backbone(model)
    blocks = dict(backbone.named_children())
    if name == "backbone" and backbone is not model:
        return [backbone]
    if name.isdecimal():
        if not 1 <= int(name) <= len(blocks):
            known = ", ".join(blocks)
            raise ConfigError(
                f"freeze={name}: the backbone has {len(blocks)} blocks ({known}):"
                f" give 1 to {len(blocks)}"
            )
        return list(blocks.values())[: int(name)]
    modules = dict(model.named_modules())
    if name not in modules:
        known = ", ".join(path for path in modules if path and path.count(".") < 2)
        raise ConfigError(f"freeze={name} is no part of this network; it has: backbone, {known}")
    return [modules[name]]


def _backbone(model: nn.Module) -> nn.Module:
    """The network that images enter, or `model`: it may lie in a neck (YOLOX) or pyramid."""
    for name in ("backbone", "backbone", "body"):
        inner = getattr(model, name, None)
        model = inner if isinstance(inner, nn.Module) else model
    return model


# ---- weight average ------------------------------------------------------------------------


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
        if self._counters:
            torch._foreach_copy_(*zip(*self._counters, strict=True))


def _state(model: nn.Module) -> list[torch.Tensor]:
    return [value.detach() for value in model.state_dict().values()]
