"""Device memory: how much is used, the largest batch that fits, and taking it before others do."""

import gc
import logging
import resource
from collections.abc import Callable
from typing import Any

import torch

from detector.families import Family

log = logging.getLogger("detector")

SHARE = 0.8  # of the free memory that a tried batch may take: batches differ, and so do sizes
OBJECTS = 100  # in an image of a tried batch: more than most images have
ON_CPU = 16  # images: more at once are no faster there, and swapping would be far slower
OCCUPIED = 0.9  # of a device's memory that `occupy` takes


class OutOfMemory(RuntimeError):
    """The device's memory did not hold a batch; says which setting to change."""

    def __init__(self, imgsz: int, batch: int) -> None:
        smaller = f"try --batch {batch // 2}, which trains the same" if batch > 1 else "lower imgsz"
        super().__init__(f"out of memory with {batch} images of {imgsz} px at once: {smaller}")


def peak_memory(device: torch.device) -> int:
    """Return the most bytes of device memory used so far; of main memory for the CPU."""
    module = _module(device)
    if hasattr(module, "max_memory_reserved"):
        return int(module.max_memory_reserved(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def free_memory(device: torch.device) -> int | None:
    """Return the free bytes of a device, None where it cannot say."""
    module = _module(device)
    if not hasattr(module, "mem_get_info"):
        return None
    free, _ = module.mem_get_info(device)
    reusable = module.memory_reserved(device) - module.memory_allocated(device)
    return int(free + reusable)


def release(device: torch.device) -> None:
    """Give memory that nothing uses back to the device."""
    gc.collect()
    module = _module(device)
    if hasattr(module, "empty_cache"):
        module.empty_cache()


def largest_batch(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest number of images, up to `most`, that fits; 0 if not even one does.

    Tries 1, 2, 4, ..., and then halves what is left between the last two.
    """
    if not fits(1):
        return 0
    good, bad = 1, most + 1
    while good < most:
        images = min(2 * good, most)
        if not fits(images):
            bad = images
            break
        good = images
    while bad - good > 1:
        images = (good + bad) // 2
        good, bad = (images, bad) if fits(images) else (good, images)
    return good


def automatic_batch(
    family: Family, imgsz: int, nbs: int, device: torch.device, dtype: torch.dtype
) -> int:
    """Return the largest useful `batch`: as many images of a step as the device holds at once.

    Weights and statistics are afterwards as before. Raises: `OutOfMemory` if one image is too many.
    """
    if device.type == "cpu":
        return min(nbs, ON_CPU)
    free = free_memory(device)
    kept = {name: value.clone() for name, value in family.network.state_dict().items()}

    def fits(images: int) -> bool:
        try:
            taken = rehearse(family, imgsz, images, device, dtype)
        except torch.OutOfMemoryError:
            return False
        return taken is None or free is None or taken <= SHARE * free

    try:
        batch = largest_batch(fits, nbs)
    finally:
        family.network.load_state_dict(kept)
        family.network.zero_grad(set_to_none=True)
        release(device)
    if not batch:
        raise OutOfMemory(imgsz, 1)
    return batch


def rehearse(
    family: Family, imgsz: int, images: int, device: torch.device, dtype: torch.dtype
) -> int | None:
    """Run forward and backward on drawn noise; return the bytes it took at its peak."""
    module = _module(device)
    release(device)
    measured = hasattr(module, "reset_peak_memory_stats")
    if measured:
        module.reset_peak_memory_stats(device)
        before = module.memory_allocated(device)
    corners = torch.rand(OBJECTS, 2, device=device) * 0.8 * imgsz
    boxes = torch.cat((corners, corners + 0.2 * imgsz), dim=1)
    target = {"boxes": boxes, "labels": torch.zeros(OBJECTS, dtype=torch.int64, device=device)}
    pictures = torch.rand(images, 3, imgsz, imgsz, device=device) * 255
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        parts, _ = family.losses(pictures.contiguous(memory_format=torch.channels_last),
                                 [target] * images)  # fmt: skip
    parts["total"].backward()
    return int(module.max_memory_allocated(device) - before) if measured else None


def occupy(device: torch.device, share: float = OCCUPIED) -> int:
    """Reserve a share of the device's memory for this process; return the bytes reserved.

    The memory is freed into the process's own pool, so a training takes it from there and others
    on a shared device cannot. Where there is no such device, says so and returns 0.
    """
    module = _module(device)
    if not hasattr(module, "mem_get_info"):
        log.warning("--occupy: %s has no memory to reserve; going on", device)
        return 0
    free, total = module.mem_get_info(device)
    wanted = int(share * total) - int(module.memory_reserved(device))
    if wanted > free:
        log.warning(
            "--occupy: only %.1f of %.1f GB are free; taking most of them", free / 1e9, wanted / 1e9
        )
    taken = max(0, min(wanted, int(0.95 * free)))
    try:
        block = torch.empty(taken, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError:
        log.warning("--occupy: the memory was taken meanwhile; going on")
        return 0
    del block
    return taken


def _module(device: torch.device) -> Any:
    """Return torch's module of a kind of device, such as `torch.cuda`; None for the CPU."""
    return None if device.type == "cpu" else torch.get_device_module(device)
