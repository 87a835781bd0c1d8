import logging
import math

import pytest
import torch
from torch import nn

from detector import config
from detector.config import Hyp, TrainConfig
from detector.errors import ConfigError
from detector.models import build_model
from detector.optim import (
    OPTIMIZERS,
    WeightAverage,
    build_optimizer,
    freeze,
    hold,
    parameter_groups,
    rate_scale,
    set_norm_momentum,
    set_step,
)


def test_every_name_that_can_be_chosen_has_an_optimizer_and_nothing_else() -> None:
    assert set(OPTIMIZERS) == set(config.OPTIMIZERS)


# ---- optimizers


def two_steps(name: str, **values: float) -> list[float]:
    """Return a weight of 1 (with decay) after each of two steps with the gradients 2 and 1."""
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    optimizer = build_optimizer(name, model, Hyp(lr0=0.1, momentum=0.5, **values))
    seen = []
    for gradient in (2.0, 1.0):
        model.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
        seen.append(model.weight.item())
    return seen


def test_two_steps_of_sgd_worked_by_hand() -> None:
    # gradient with decay: 2 + 0.1 * 1 = 2.1; the first buffer is the gradient itself
    # step: 1 - 0.1 * (2.1 + 0.5 * 2.1) = 0.685
    # then g = 1 + 0.0685, buffer 0.5 * 2.1 + g = 2.1185, 0.685 - 0.1 * (g + 0.5 * 2.1185)
    expected = [0.685, 0.685 - 0.1 * (1.0685 + 1.05925)]
    assert two_steps("SGD", weight_decay=0.1) == pytest.approx(expected)


def adam_by_hand(decay: float, decoupled: bool) -> list[float]:
    """Kingma and Ba 2015 (algorithm 1), with L2 or decoupled decay, for the same two gradients."""
    weight, mean, square, seen = 1.0, 0.0, 0.0, []
    for step, gradient in enumerate((2.0, 1.0), 1):
        if decoupled:
            weight *= 1 - 0.1 * decay
        else:
            gradient += decay * weight
        mean = 0.5 * mean + 0.5 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        unbiased = mean / (1 - 0.5**step), square / (1 - 0.999**step)
        weight -= 0.1 * unbiased[0] / (math.sqrt(unbiased[1]) + 1e-8)
        seen.append(weight)
    return seen


@pytest.mark.parametrize(("name", "decoupled"), [("Adam", False), ("AdamW", True), ("Muon", True)])
def test_two_steps_of_the_adam_family_equal_the_paper(name: str, decoupled: bool) -> None:
    # under Muon, a linear layer is no dense convolution and stays with AdamW
    expected = adam_by_hand(0.1, decoupled)
    assert two_steps(name, weight_decay=0.1) == pytest.approx(expected, rel=1e-5)


def test_without_momentum_sgd_is_plain_gradient_descent() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    optimizer = build_optimizer("SGD", model, Hyp(lr0=0.1, momentum=0.0, weight_decay=0.0))
    for _ in range(2):
        model.weight.grad = torch.full((1, 1), 2.0)
        optimizer.step()
    assert model.weight.item() == pytest.approx(1 - 2 * 0.1 * 2)


def test_norms_and_biases_have_no_weight_decay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    decayed, plain = parameter_groups(model, 0.1)
    assert [weight.ndim for weight in decayed["params"]] == [4]
    assert len(plain["params"]) == 3
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rate_and_momentum_of_a_step_reach_every_group(name: str) -> None:
    optimizer = build_optimizer(name, nn.Linear(2, 2), Hyp())
    set_step(optimizer, 0.25, 0.5)
    for group in optimizer.param_groups:
        assert group["lr"] == 0.25
        assert group.get("momentum", group.get("betas", (None,))[0]) == 0.5


@pytest.mark.parametrize(
    ("name", "scaled"),
    [("SGD", 0.04), ("Adam", 0.02), ("AdamW", 0.02), ("Muon", 0.02)],
)
def test_a_rate_is_scaled_to_the_batch_on_request_and_said(
    name: str, scaled: float, caplog: pytest.LogCaptureFixture
) -> None:
    # from 16 images to 64: times 4 under SGD, times sqrt(4) under the others
    with caplog.at_level(logging.INFO, "detector"):
        factor = rate_scale(TrainConfig(optimizer=name, scale_lr=16), Hyp(lr0=0.01, nbs=64))
    assert 0.01 * factor == pytest.approx(scaled)
    assert caplog.messages == [f"lr0 0.01 at 16 images a step becomes {scaled} at 64"]


def test_a_rate_is_left_alone_without_a_request() -> None:
    assert rate_scale(TrainConfig(), Hyp(nbs=64)) == 1.0


def test_the_norm_momentum_is_the_share_of_a_batch_in_the_statistics() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1, momentum=0.03))
    set_norm_momentum(model, 0.25)
    model(torch.full((2, 1, 2, 2), 8.0))
    assert model[0].running_mean.item() == pytest.approx(2.0)  # 0.75 * 0 + 0.25 * 8
    assert model[0].running_var.item() == pytest.approx(0.75)  # 0.75 * 1 + 0.25 * 0


# ---- frozen parts


def test_a_frozen_backbone_neither_learns_nor_counts() -> None:
    model = build_model("yolox-pico", 2)
    frozen = freeze(model, "backbone")
    backbone = model.backbone.backbone
    assert frozen == [backbone]
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    optimizer = build_optimizer("AdamW", model, Hyp())
    model.train()
    hold(frozen)
    sum(level.square().mean() for level in model(torch.rand(2, 3, 64, 64))).backward()
    optimizer.step()
    assert not any(module.training for module in backbone.modules())
    assert model.head.training
    assert all(torch.equal(before[name], v) for name, v in backbone.state_dict().items())
    assert model.backbone.lateral_conv0.bn.num_batches_tracked == 1


def test_a_number_freezes_that_many_leading_blocks() -> None:
    model = build_model("yolox-pico", 2)
    freeze(model, "2")
    backbone = model.backbone.backbone
    still = [name for name, block in backbone.named_children() if not _learns(block)]
    assert still == ["stem", "dark2"]
    assert all(_learns(part) for part in (model.head, model.backbone.C3_p4))


def test_modules_are_frozen_by_name() -> None:
    model = build_model("yolox-pico", 2)
    freeze(model, "backbone, head.stems")
    assert not _learns(model.head.stems)
    assert not _learns(model.backbone.backbone)
    assert _learns(model.head.cls_convs)


def _learns(module: nn.Module) -> bool:
    return any(weight.requires_grad for weight in module.parameters())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("neck", "freeze=neck is no part of this network; it has: backbone,"),
        ("0", "freeze=0: the backbone has 5 blocks (stem, dark2, dark3, dark4, dark5)"),
        ("6", "give 1 to 5"),
    ],
)
def test_a_part_that_does_not_exist_is_named(names: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        freeze(build_model("yolox-pico", 2), names)
    assert message in str(caught.value)


def test_a_network_that_is_frozen_whole_is_refused() -> None:
    model = build_model("yolox-pico", 2)
    freeze(model, "backbone,head")
    model.backbone.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing is left to train"):
        build_optimizer("SGD", model, Hyp())


# ---- weight average


def test_average_follows_the_ramped_decay() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    average = WeightAverage(model, decay=0.9, tau=2.0)
    model.weight.data.fill_(1.0)
    expected = 0.0
    for update in (1, 2, 3):
        average.update()
        decay = 0.9 * (1 - math.exp(-update / 2))
        expected = decay * expected + (1 - decay) * 1.0
        assert average.module.weight.item() == pytest.approx(expected)


def test_average_includes_batch_statistics_and_copies_counters() -> None:
    model = nn.BatchNorm1d(2)
    average = WeightAverage(model, decay=0.0, tau=1.0)
    model(torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
    average.update()
    assert torch.equal(average.module.running_mean, model.running_mean)
    assert average.module.num_batches_tracked == 1
