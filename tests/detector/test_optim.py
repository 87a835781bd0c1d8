import math

import pytest
import torch
from torch import nn

from detector.config import Hyp
from detector.optim import (
    Schedule,
    WeightAverage,
    build_optimizer,
    parameter_groups,
    set_step,
)


def schedule(name: str, epochs: int, steps: int, **values: float) -> Schedule:
    return Schedule(name, Hyp(**{"warmup_epochs": 0, "no_aug_epochs": 0, **values}), epochs, steps)


def test_warmup_is_quadratic_and_its_last_step_reaches_the_full_rate() -> None:
    rates = schedule("constant", 10, 4, lr0=0.16, warmup_epochs=1)
    # ((step + 1) / 4) ** 2 * 0.16
    assert [rates.learning_rate(step) for step in range(5)] == pytest.approx(
        [0.01, 0.04, 0.09, 0.16, 0.16]
    )


def test_one_batch_per_epoch_still_reaches_the_full_rate() -> None:  # B-02
    rates = schedule("constant", 5, 1, lr0=0.1, warmup_epochs=1)
    assert rates.learning_rate(0) == pytest.approx(0.1)


def test_warmup_never_takes_more_than_half_of_the_run() -> None:  # B-40
    rates = schedule("cosine", 4, 5, lr0=0.1, warmup_epochs=100)
    assert rates.warmup == 10
    assert rates.learning_rate(9) == pytest.approx(0.1)


def test_warmup_starts_at_its_own_rate_and_momentum() -> None:
    rates = schedule(
        "constant", 4, 2, lr0=0.1, warmup_epochs=1, warmup_lr=0.02, warmup_momentum=0.5
    )
    # a quarter of the way: 0.02 + 0.08 / 4, 0.5 + 0.4 / 4
    assert rates.learning_rate(0) == pytest.approx(0.04)
    assert rates.momentum(0) == pytest.approx(0.6)
    assert rates.momentum(1) == pytest.approx(0.9)


def test_cosine_is_halfway_at_half_time_and_ends_at_the_final_fraction() -> None:
    rates = schedule("cosine", 10, 10, lr0=1.0, lrf=0.2)
    assert rates.learning_rate(49) == pytest.approx(0.6)  # 0.2 + 0.5 * 0.8 * (1 + cos(pi / 2))
    assert rates.learning_rate(99) == pytest.approx(0.2)


def test_a_tail_that_fills_the_run_leaves_the_learning_rate_alone() -> None:
    short = schedule("cosine", 4, 10, lr0=1.0, lrf=0.1, no_aug_epochs=4)
    whole = schedule("cosine", 4, 10, lr0=1.0, lrf=0.1)
    assert [short.learning_rate(s) for s in range(40)] == [
        whole.learning_rate(s) for s in range(40)
    ]


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [(1, [1]), (2, [1, 1]), (5, [1, 1, 1, 1, 0.01]), (10, [1] * 8 + [0.1, 0.01])],
)
def test_multistep_falls_at_80_and_90_percent(epochs: int, expected: list[float]) -> None:  # B-01
    rates = schedule("multistep", epochs, 3, lr0=1.0)
    assert [rates.learning_rate(3 * epoch) for epoch in range(epochs)] == pytest.approx(expected)


def test_norms_and_biases_have_no_weight_decay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    decayed, plain = parameter_groups(model, 0.1)
    assert [weight.ndim for weight in decayed["params"]] == [4]
    assert len(plain["params"]) == 3
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_rate_and_momentum_of_a_step_reach_every_group(name: str) -> None:
    optimizer = build_optimizer(name, nn.Linear(2, 2), Hyp())
    set_step(optimizer, 0.25, 0.5)
    for group in optimizer.param_groups:
        assert group["lr"] == 0.25
        assert group.get("momentum", group.get("betas", (None,))[0]) == 0.5


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
