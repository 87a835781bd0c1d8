import copy

import pytest
import torch
from torch import nn

from detector.config import Hyp
from detector.muon import UPDATE_RMS, Muon, orthogonalised
from detector.optim import build_optimizer, muon_groups


def small_network() -> nn.Sequential:
    """Dense, depthwise, dense and prediction layers, as in a detector."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, groups=8, bias=False),
        nn.Conv2d(8, 4, 1, bias=False),
        nn.Conv2d(4, 2, 1),
    )


def train_steps(network: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    for step in range(count):
        images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        network(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def reference_iteration(matrix: torch.Tensor) -> torch.Tensor:
    """Newton-Schulz on the singular values of a full decomposition, in float64."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.square().sum().sqrt()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return (left * values) @ right


@pytest.mark.parametrize("sides", [(1, 1), (1, 5), (4, 4), (6, 27)])
def test_the_iteration_acts_on_the_singular_values_alone(sides: tuple[int, int]) -> None:
    matrices = torch.randn(3, *sides, generator=torch.Generator().manual_seed(1))
    expected = torch.stack([reference_iteration(matrix) for matrix in matrices])
    assert torch.allclose(orthogonalised(matrices).double(), expected, atol=1e-4)


def test_an_orthogonalised_matrix_is_nearly_orthogonal() -> None:
    matrices = torch.randn(4, 16, 64, generator=torch.Generator().manual_seed(2))
    values = torch.linalg.svdvals(orthogonalised(matrices))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_a_zero_matrix_stays_zero() -> None:
    assert torch.equal(orthogonalised(torch.zeros(1, 2, 3)), torch.zeros(1, 2, 3))


def test_first_step_of_a_single_row_worked_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([[1.0, 2.0]]))
    optimizer = Muon([{"params": [weight], "muon": True, "weight_decay": 0.5}], lr=0.1)
    weight.grad = torch.tensor([[3.0, 4.0]])
    optimizer.step()
    # A row has one singular value, 1 after division by its norm 5, and the direction (0.6, 0.8).
    # s <- 3.4445 s - 4.7750 s^3 + 2.0315 s^5, five times from 1:
    # 0.7010, 1.1136, 0.7207, 1.0900, 0.696436
    # Rate 0.1, size 0.2 * sqrt(2) = 0.282843: a move of 0.0196982 along the direction.
    # Before it the decay: 1 - 0.1 * 0.5 = 0.95
    expected = [0.95 * 1 - 0.0196982 * 0.6, 0.95 * 2 - 0.0196982 * 0.8]
    assert weight[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_an_update_has_the_size_of_an_adamw_update() -> None:
    weight = nn.Parameter(torch.zeros(32, 64, 3, 3))
    optimizer = Muon([{"params": [weight], "muon": True}], lr=1.0)
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
    optimizer.step()
    # 32 singular values of about 0.7 to 1.2 over 32 * 576 entries, times 0.2 * sqrt(576)
    assert weight.square().mean().sqrt().item() == pytest.approx(UPDATE_RMS, rel=0.25)


def test_momentum_is_nesterov() -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    optimizer = Muon([{"params": [weight], "muon": True}], lr=1.0, betas=(0.75, 0.999))
    first, second = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    weight.grad = first
    optimizer.step()
    before = weight.detach().clone()
    weight.grad = second
    optimizer.step()
    # buffer: 0.25 first, then 0.75 * 0.25 first + 0.25 second; ahead: 0.25 second + 0.75 buffer
    ahead = 0.25 * second + 0.75 * (0.1875 * first + 0.25 * second)
    size = 0.2 * 2**0.5
    expected = before - size * orthogonalised(ahead[None])[0]
    assert torch.allclose(weight, expected, atol=1e-6)


def test_only_dense_convolutions_before_a_norm_are_matrices() -> None:
    network = small_network()
    matrices, decayed, plain = muon_groups(network, 0.1)
    assert [weight.shape for weight in matrices["params"]] == [(8, 3, 3, 3), (4, 8, 1, 1)]
    assert [weight.shape for weight in decayed["params"]] == [(8, 1, 3, 3), (2, 4, 1, 1)]
    assert [weight.ndim for weight in plain["params"]] == [1, 1, 1]
    assert [group["weight_decay"] for group in (matrices, decayed, plain)] == [0.1, 0.1, 0.0]


def test_what_is_no_matrix_moves_exactly_as_under_adamw() -> None:
    first, second = small_network(), small_network()
    hyp = Hyp(lr0=0.01, weight_decay=0.1)
    for name, network in (("Muon", first), ("AdamW", second)):
        train_steps(network, build_optimizer(name, network, hyp), 1)
    for layer in (1, 2, 4):
        for own, other in zip(first[layer].parameters(), second[layer].parameters(), strict=True):
            assert torch.equal(own, other)
    assert not torch.equal(first[0].weight, second[0].weight)


def test_a_stack_of_equal_shapes_gives_what_each_matrix_gives_alone() -> None:
    # (4, 8) and (8, 4) share a stack: one of them lies on its side
    generator = torch.Generator().manual_seed(4)
    shapes = [(4, 8, 1, 1), (8, 4, 1, 1), (4, 2, 2, 2), (3, 3, 1, 1)]
    together = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    alone = [nn.Parameter(weight.detach().clone()) for weight in together]
    for one, other in zip(together, alone, strict=True):
        one.grad = torch.randn(one.shape, generator=generator)
        other.grad = one.grad.clone()
    Muon([{"params": together, "muon": True}], lr=0.1).step()
    for weight in alone:
        Muon([{"params": [weight], "muon": True}], lr=0.1).step()
    for one, other in zip(together, alone, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_channels_last_changes_nothing() -> None:
    plain, turned = small_network(), small_network().to(memory_format=torch.channels_last)
    for network in (plain, turned):
        train_steps(network, build_optimizer("Muon", network, Hyp()), 2)
    for own, other in zip(plain.parameters(), turned.parameters(), strict=True):
        assert torch.allclose(own, other, atol=1e-4)


def test_a_saved_and_loaded_optimizer_goes_on_as_if_it_had_not_stopped() -> None:
    whole = small_network()
    optimizer = build_optimizer("Muon", whole, Hyp(lr0=0.01))
    train_steps(whole, optimizer, 2)
    resumed = copy.deepcopy(whole)
    second = build_optimizer("Muon", resumed, Hyp(lr0=0.01))
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for network, used in ((whole, optimizer), (resumed, second)):
        train_steps(network, used, 2)
    assert all(
        torch.equal(one, other)
        for one, other in zip(whole.parameters(), resumed.parameters(), strict=True)
    )


def test_a_matrix_without_a_gradient_stays() -> None:
    still, moved = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([{"params": [still, moved], "muon": True, "weight_decay": 0.1}], lr=0.1)
    moved.grad = torch.eye(2)
    optimizer.step()
    assert torch.equal(still, torch.ones(2, 2))
    assert not torch.equal(moved, torch.ones(2, 2))
