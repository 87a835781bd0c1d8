"""`torch.compile` as an option that a training survives where it does not work."""

import logging
from collections.abc import Callable
from typing import Any

from torch import nn

log = logging.getLogger("detector")


def compiled(network: nn.Module, attempt: Callable[[], Any]) -> bool:
    """Compile a network in place; `attempt` runs it once. False, with a notice, if that fails."""
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    network.compile()
    try:
        attempt()
    except Exception as error:  # the compiler and its back ends raise whatever they like
        log.warning("compile: not possible here, going on without: %s", _first_line(error))
        network._compiled_call_impl = None
        return False
    finally:
        network.load_state_dict(kept)
        network.zero_grad(set_to_none=True)
    return True


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
