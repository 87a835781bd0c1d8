"""Where a training runs. One process for now; every function then is a no-op or an identity."""

import torch

from detector.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda`, `cuda:1`, `0`, `mps`, ... into a device that can be used here.

    Raises: `ConfigError` for an unknown name, or a device that this machine does not have.
    """
    if name == "auto":
        return _accelerator() or torch.device("cpu")
    try:
        device = torch.device(f"cuda:{name}" if name.isdigit() else name)
    except RuntimeError as error:
        raise ConfigError(
            f"device={name!r} is unknown; allowed: auto, cpu, cuda, cuda:0"
        ) from error
    if device.type == "cpu":
        return device
    found = _accelerator()
    count = torch.accelerator.device_count() if found is not None else 0
    if found is None or found.type != device.type or (device.index or 0) >= count:
        have = ", ".join(["cpu"] + [f"{found.type}:{i}" for i in range(count)]) if found else "cpu"
        raise ConfigError(f"device={name!r} is not on this machine; it has: {have}")
    return device


def _accelerator() -> torch.device | None:
    # current_accelerator() alone names cuda even on a machine without a GPU.
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None


def amp_dtype(device: torch.device, wanted: bool) -> torch.dtype:
    """Return the dtype of mixed precision on `device`: bfloat16, float16, or float32 for none."""
    if not wanted or device.type == "cpu":
        return torch.float32
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return torch.float16
    return torch.bfloat16
