"""What a network costs: its parameters, the operations of an image, the time of one pass."""

import statistics
import time

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

WARM_UP, PASSES = 3, 15


def parameters(network: nn.Module) -> int:
    """Return the number of weights that are learned."""
    return sum(weight.numel() for weight in network.parameters())


@torch.inference_mode()
def gflops(network: nn.Module, imgsz: int, device: torch.device) -> float:
    """Return the operations of one image in 10^9; a multiply-add counts as two."""
    counter = FlopCounterMode(display=False)
    with counter:
        network(_image(imgsz, device))
    return counter.get_total_flops() / 1e9


@torch.inference_mode()
def latency_ms(network: nn.Module, imgsz: int, device: torch.device) -> float:
    """Return the median milliseconds of a pass with one image, without decoding and NMS.

    The network is in eval mode on `device`; the caller has chosen the number of threads.
    """
    image = _image(imgsz, device)
    seconds = []
    for _ in range(WARM_UP + PASSES):
        begin = time.perf_counter()
        network(image)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return 1000.0 * statistics.median(seconds[WARM_UP:])


def _image(imgsz: int, device: torch.device) -> Tensor:
    return torch.full((1, 3, imgsz, imgsz), 114.0, device=device)
