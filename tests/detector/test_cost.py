import pytest
import torch
from torch import nn

from detector.cost import gflops, latency_ms, parameters
from detector.models import build_model

CPU = torch.device("cpu")


def test_a_convolution_costs_what_it_costs_by_hand() -> None:
    network = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    assert parameters(network) == 3 * 8 * 3 * 3
    # each of 32 x 32 places: 8 outputs of 3 x 3 x 3 multiply-adds, two operations each
    assert gflops(network, 32, CPU) == 32 * 32 * 8 * 27 * 2 / 1e9


def test_a_norm_costs_four_operations_for_each_number() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8)).eval()
    convolution, norm = 16 * 16 * 8 * 3 * 2, 16 * 16 * 8 * 4
    assert gflops(network, 16, CPU) == (convolution + norm) / 1e9
    before = network(torch.ones(1, 3, 4, 4))
    gflops(network, 16, CPU)
    assert torch.equal(network(torch.ones(1, 3, 4, 4)), before)  # the network is as it was


@pytest.mark.parametrize("name", ["yolox-pico", "torchvision:fcos:backbone=resnet18,channels=32"])
def test_operations_are_those_that_torch_counts(name: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    network = build_model(name, 3).eval()
    counter, image = FlopCounterMode(display=False), torch.full((1, 3, 64, 64), 114.0)
    numbers = [0]
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            module.register_forward_hook(
                lambda _, inputs, output: numbers.append(4 * output.numel())
            )
    with counter, torch.no_grad():
        network(image)
    expected = (counter.get_total_flops() + sum(numbers)) / 1e9
    assert gflops(build_model(name, 3).eval(), 64, CPU) == pytest.approx(expected, rel=1e-9)


def test_a_deeper_network_takes_longer() -> None:
    def stack(depth: int) -> nn.Module:
        layers = [nn.Conv2d(3 if i == 0 else 16, 16, 3, padding=1) for i in range(depth)]
        return nn.Sequential(*layers).eval()

    assert latency_ms(stack(24), 64, CPU) > 2 * latency_ms(stack(2), 64, CPU) > 0
