"""Weight files of other programs: their layouts and names, brought to those of a network here."""

import logging
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detector.darknet_weights import is_darknet, read_darknet
from detector.errors import CheckpointError
from detector.models import torchvision_weights
from detector.models.darknet import Darknet
from detector.models.darknet_cfg import parse_cfg

log = logging.getLogger("detector")

# Keys under which a file may hold its state dict; averaged weights before raw ones.
HOLDERS = (
    *("weights", "ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "ema"),
    *("model", "model_state_dict", "state_dict", "network", "net"),
)
WRAPPERS = ("module", "model", "ema", "ema_model", "_orig_mod")  # DDP, averages, torch.compile
DEPTH = 3  # how deep a state dict may lie in a file

# By the family of the network: names in a foreign state dict to the names here.
RENAMED: dict[str, Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]]] = {
    "torchvision": torchvision_weights.own_names,
}
# By the family: the file that a word stands for, such as "imagenet".
NAMED: dict[str, Callable[[nn.Module, str], Path | None]] = {
    "torchvision": torchvision_weights.cached_file,
}


def read_weights(path: str | Path, model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict in a file of any known layout, by the names that `model` uses.

    Raises: `CheckpointError` for a missing, torn or foreign file, or one without tensors.
    """
    named = NAMED.get(model.family)
    path = (named and named(model, str(path))) or Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weight file")
    if is_darknet(path):
        if model.family != "yolov3":
            raise CheckpointError(
                f"{path}: Darknet weights are for yolov3 models and *.cfg, not {model.name}"
            )
        return read_darknet(path, model)
    content = load_safely(path)
    found = state_dict_in(content)
    if not found:
        raise CheckpointError(f"{path}: holds no tensors that could be loaded")
    _warn_of_other_pixels(path, content, model)
    _warn_of_other_anchors(path, content, model)
    own = set(model.state_dict())
    found = {own_name(name, own): value for name, value in found.items()}
    rename = RENAMED.get(model.family)
    return rename(model, found) if rename else found


def state_dict_in(content: Any, depth: int = DEPTH) -> dict[str, Tensor]:
    """Return the state dict that a file's content holds under one of the known keys, or is."""
    if not isinstance(content, Mapping) or not depth:
        return {}
    for key in HOLDERS:
        if found := state_dict_in(content.get(key), depth - 1):
            return found
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state and len(content) == 1:  # the word of a wrapper, around all
        return state_dict_in(next(iter(content.values())), depth - 1)
    return state


def own_name(name: str, own: set[str]) -> str:
    """Return `name` without the words that wrappers put before it (`module.`, ...)."""
    while name not in own:
        wrapper, _, rest = name.partition(".")
        if wrapper not in WRAPPERS or not rest:
            break
        name = rest
    return name


def load_safely(path: Path) -> Any:
    """Read a torch file without running code from it. Raises: `CheckpointError`."""
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code:
            raise CheckpointError(
                f"{path}: not a readable checkpoint: it holds objects of a program "
                f"({code[1]}), not tensors alone; save its state_dict instead"
            ) from error
        raise CheckpointError(f"{path}: not a readable checkpoint (damaged or foreign)") from error
    except Exception as error:  # unpickling bytes that are no pickle raises nearly anything
        raise CheckpointError(f"{path}: not a readable checkpoint (damaged or foreign)") from error


def _numpy_scalars() -> list[Any]:
    """What a pickled numpy number needs: YOLOX saves its best AP as one, numpy 1 or 2."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in ("float32", "float64", "int64")]
    places = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [np.dtype, *kinds, *((scalar, place) for place in places)]


def _warn_of_other_pixels(path: Path, content: Any, model: nn.Module) -> None:
    """Say so when a checkpoint of ours was trained on pixels of another convention."""
    trained = content.get("input_convention") if isinstance(content, Mapping) else None
    if isinstance(trained, str) and trained != model.input_convention:
        log.warning(
            "%s was trained with input_convention=%s, %s takes %s",
            path, trained, model.name, model.input_convention,
        )  # fmt: skip


def _warn_of_other_anchors(path: Path, content: Any, model: nn.Module) -> None:
    """Say so when a checkpoint of ours was trained with other anchors: its heads belong to them."""
    facts = content.get("model") if isinstance(content, Mapping) else None
    options = facts.get("options") if isinstance(facts, Mapping) else None
    cfg = options.get("cfg") if isinstance(options, Mapping) else None
    if not isinstance(cfg, str) or not isinstance(model, Darknet):
        return
    anchors = [size for head in parse_cfg(cfg, str(path)).heads for size in head.anchors]
    if anchors != [size for head in model.anchors for size in head]:
        written = ",".join(f"{side:g}" for size in anchors for side in size)
        log.warning("%s was trained with --anchors %s, here are others", path, written)
