"""What a network costs: its parameters, the operations of an image, the time of one pass."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from detector.models.torchvision import dense_pass

WARM_UP, PASSES = 3, 15
LAYERS = (nn.Conv2d, nn.Linear)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
NORM_OPERATIONS = 4  # subtract the mean, divide by the deviation, multiply, add

# How a network is run to count its operations, by its family; all others are just called.
COUNTED: dict[str, Callable[[nn.Module, Tensor], object]] = {"torchvision": dense_pass}


def parameters(network: nn.Module) -> int:
    """Return the number of weights that are learned."""
    return sum(weight.numel() for weight in network.parameters())


@torch.inference_mode()
def gflops(network: nn.Module, imgsz: int, device: torch.device) -> float:
    """Return the operations of one image in 10^9, by the rule of YOLOX's table.

    Counted are convolutions and linear layers, a multiply-add as two operations, and norms, four
    operations for each number. Not counted: activations, pooling, additions, decoding and NMS. The
    network may be on the meta device. The box head of Faster R-CNN counts for as many regions as
    an image may have.
    """
    run = COUNTED.get(getattr(network, "family", ""), nn.Module.__call__)
    with _counting(network) as operations:
        run(network, _image(imgsz, device))
    return sum(operations) / 1e9


@contextmanager
def _counting(network: nn.Module) -> Iterator[list[int]]:
    """Collect the operations of all layers that are called; norms pass their input on.

    On the meta device, norms would take seven eighths of the time.
    """
    operations: list[int] = []

    def multiply_adds(module: nn.Module, inputs: object, output: Tensor) -> None:
        operations.append(2 * output.numel() * module.weight[0].numel())

    def pass_on(features: Tensor) -> Tensor:
        operations.append(NORM_OPERATIONS * features.numel())
        return features

    layers = [module for module in network.modules() if isinstance(module, LAYERS)]
    norms = [module for module in network.modules() if isinstance(module, NORMS)]
    hooks = [layer.register_forward_hook(multiply_adds) for layer in layers]
    for norm in norms:
        norm.forward = pass_on  # of the instance alone
    try:
        yield operations
    finally:
        for hook in hooks:
            hook.remove()
        for norm in norms:
            del norm.forward


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
