import torch
from torch import nn

from detector.cost import gflops, latency_ms, parameters

CPU = torch.device("cpu")


def test_a_convolution_costs_what_it_costs_by_hand() -> None:
    network = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    assert parameters(network) == 3 * 8 * 3 * 3
    # each of 32 x 32 places: 8 outputs of 3 x 3 x 3 multiply-adds, two operations each
    assert gflops(network, 32, CPU) == 32 * 32 * 8 * 27 * 2 / 1e9


def test_a_deeper_network_takes_longer() -> None:
    def stack(depth: int) -> nn.Module:
        layers = [nn.Conv2d(3 if i == 0 else 16, 16, 3, padding=1) for i in range(depth)]
        return nn.Sequential(*layers).eval()

    assert latency_ms(stack(24), 64, CPU) > 2 * latency_ms(stack(2), 64, CPU) > 0
