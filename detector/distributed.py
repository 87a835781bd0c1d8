"""Where a training runs: its device, and its rank among the processes that train together.

A launcher (`torchrun`) or a caller starts the processes. In one process every function here is a
no-op or an identity, so callers need no branch. What is said to be collective must be called by
all ranks in the same order.
"""

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial, wraps
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from detector.errors import ConfigError

# The longest wait for another rank: it may be writing a checkpoint or decoding a data set.
TIMEOUT = timedelta(minutes=60)
LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what a launcher sets
Value = TypeVar("Value")
Function = TypeVar("Function", bound=Callable[..., Any])


# ---- device --------------------------------------------------------------------------------


def choose_device(name: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda`, `cuda:1`, `0`, `mps`, ... into a device that can be used here.

    Among several processes of a machine each one gets its own accelerator.

    Raises: `ConfigError` for an unknown name, or a device that this machine does not have.
    """
    found = _accelerator()
    if name == "auto":
        return _own_index(found, name) if found else torch.device("cpu")
    try:
        device = torch.device(
            f"{found.type if found else 'cuda'}:{name}" if name.isdigit() else name
        )
    except RuntimeError as error:
        raise ConfigError(
            f"device={name!r} is unknown; allowed: auto, cpu, cuda, cuda:0"
        ) from error
    if device.type == "cpu":
        return device
    count = torch.accelerator.device_count() if found is not None else 0
    if found is None or found.type != device.type or (device.index or 0) >= count:
        raise ConfigError(f"device={name!r} is not on this machine; it has: {_devices(found)}")
    return _own_index(device, name)


def _own_index(device: torch.device, name: str) -> torch.device:
    """Give each of several processes the accelerator of its number on this machine."""
    if world_size() == 1:
        return device
    if device.index is not None:
        raise ConfigError(
            f"device={name!r} is one device for {world_size()} processes: try {device.type}"
        )
    if local_rank() >= torch.accelerator.device_count():
        raise ConfigError(
            f"device={name!r}: process {local_rank()} of this machine has none; the machine has: "
            f"{_devices(device)}: start fewer processes or choose device=cpu"
        )
    return torch.device(device.type, local_rank())


def _devices(found: torch.device | None) -> str:
    count = torch.accelerator.device_count() if found else 0
    return ", ".join(["cpu"] + [f"{found.type}:{i}" for i in range(count) if found])


def _accelerator() -> torch.device | None:
    # current_accelerator() alone names cuda even on a machine without a GPU.
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None


def amp_dtype(device: torch.device, wanted: bool) -> torch.dtype:
    """Return the dtype of mixed precision on `device`: bfloat16, float16, or float32 for none."""
    if not wanted or device.type == "cpu" or not torch.amp.is_autocast_available(device.type):
        return torch.float32
    supported: Any = getattr(torch.get_device_module(device), "is_bf16_supported", lambda: True)
    try:
        native = supported(including_emulation=False)  # emulated bfloat16 is slower than float32
    except TypeError:
        native = supported()
    return torch.bfloat16 if native else torch.float16


def pins_memory(device: torch.device) -> bool:
    """Tell whether page-locked memory of this machine speeds copies to `device` up."""
    if device.type in ("cpu", "mps"):  # the data loader cannot pin for mps
        return False
    try:
        return torch.empty(1).pin_memory().is_pinned()
    except (RuntimeError, NotImplementedError):  # out-of-tree devices need not have it
        return False


# ---- processes -----------------------------------------------------------------------------


def rank() -> int:
    """Return the number of this process among those that train together, from 0."""
    if dist.is_initialized():
        return dist.get_rank()
    return int(os.environ["RANK"]) if _launched() else 0


def world_size() -> int:
    """Return how many processes train together."""
    if dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ["WORLD_SIZE"]) if _launched() else 1


def local_rank() -> int:
    """Return the number of this process among those on its machine, from 0."""
    if "LOCAL_RANK" in os.environ and world_size() > 1:
        return int(os.environ["LOCAL_RANK"])
    return rank() % max(1, torch.accelerator.device_count()) if _accelerator() else rank()


def is_first() -> bool:
    """Tell whether this is rank 0, which alone writes, logs and reports."""
    return rank() == 0


def processes_here() -> int:
    """Return how many of the processes run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size())) if world_size() > 1 else 1


def _launched() -> bool:
    return all(name in os.environ for name in LAUNCHED)


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Collective: join the other processes, with `device` current, and leave them on every path.

    A group that exists already is the caller's: it is used and left as it is.

    Raises: `ConfigError` when there is no way for devices of this kind to talk to each other.
    """
    if world_size() == 1 or dist.is_initialized():
        with _current(device):
            yield
        return
    backend = dist.Backend.default_device_backend_map.get(device.type)
    if backend is None:
        raise ConfigError(f"device={device.type} has no backend for several processes; use one")
    with _current(device):
        dist.init_process_group(backend, timeout=TIMEOUT)
        try:
            yield
        except BaseException:
            # The others may be waiting in a collective that this rank will never join.
            with suppress(Exception):
                dist.group.WORLD.abort()
            with suppress(Exception):
                dist.destroy_process_group()
            raise
        dist.destroy_process_group()


def in_process_group(function: Function) -> Function:
    """Decorate a function of a config: it runs in the process group of `config.device`."""

    @wraps(function)
    def run(config: Any, *arguments: Any, **named: Any) -> Any:
        with process_group(choose_device(config.device)):
            return function(config, *arguments, **named)

    return cast(Function, run)


@contextmanager
def _current(device: torch.device) -> Iterator[None]:
    """Make `device` the current one of its kind: collectives of objects take that."""
    if device.type == "cpu" or device.index is None:
        yield
        return
    kind = torch.get_device_module(device)
    before = kind.current_device()
    kind.set_device(device.index)
    try:
        yield
    finally:
        kind.set_device(before)


# ---- collectives: all ranks call them in the same order ---------------------------------


def _alone() -> bool:
    return world_size() == 1


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace float32 tensors of one device by their sums over all ranks, in one collective."""
    if not _alone():
        _flattened(tensors, dist.all_reduce)


def _flattened(tensors: Sequence[Tensor], collective: Callable[[Tensor], Any]) -> None:
    """Run a collective on tensors of one kind laid end to end, and write the result back."""
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    collective(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.detach().copy_(part.view_as(tensor))


def any_rank(here: bool) -> bool:
    """Tell every rank whether `here` is true on any rank. Waits for the others."""
    return here if _alone() else any(_all_objects(here))


def smallest(here: int) -> int:
    """Return the smallest of all ranks' values."""
    return here if _alone() else min(_all_objects(here))


def from_first(make: Callable[..., Value], *arguments: Any) -> Value:
    """Call `make` on rank 0 alone and return its value on all; its error is raised on all."""
    if _alone():
        return make(*arguments)
    answer: list[Any] = [None, None]
    if is_first():
        try:
            answer[0] = make(*arguments)
        except Exception as error:
            dist.broadcast_object_list([None, _sendable(error)])
            raise
    dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def gathered(values: Sequence[Value]) -> list[list[Value]]:
    """Return the values of every rank, by rank, on rank 0; on the others an empty list."""
    if _alone():
        return [list(values)]
    everything: list[Any] | None = [None] * dist.get_world_size() if is_first() else None
    dist.gather_object(list(values), everything)
    return everything or []


def copy_from_first(*modules: nn.Module) -> None:
    """Give parameters and buffers of rank 0 to all ranks, in place."""
    if _alone():
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for module in modules:
        for value in module.state_dict().values():
            by_dtype.setdefault(value.dtype, []).append(value)
    for tensors in by_dtype.values():
        _flattened(tensors, partial(dist.broadcast, src=0))


@contextmanager
def first_on_machine() -> Iterator[None]:
    """Collective: one process of a machine runs the block first, the others find what it left.

    Files that all need are then made once. An error of the first does not hold the others up.
    """
    if not _alone() and local_rank() > 0:
        any_rank(False)
    try:
        yield
    finally:
        if not _alone() and local_rank() == 0:
            any_rank(False)


def _all_objects(value: Value) -> list[Value]:
    everything: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everything, value)
    return everything


def _sendable(error: Exception) -> Exception:
    """Return an error that survives its journey to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
