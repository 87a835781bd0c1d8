"""Weight files: written atomically, read with `weights_only=True`, complete in themselves.

Schema of a checkpoint (a dict of tensors and plain Python values):

    format       "evolve-detector/1"
    model        {"name", "num_classes", "options"}: what `build_model` needs; the options of a
                 Darknet network are {"cfg": its text, with the anchors}
    weights      state dict of the averaged (EMA) weights: what evaluation and export use
    names        list of class names
    imgsz        side of the square input, pixels
    input_convention   what the network takes: "bgr-255", "rgb-255" or "rgb-imagenet"
    config, hyp  the resolved TrainConfig and Hyp as dicts
    metrics      of `weights` on the validation split
    epoch        epochs done
    versions     torch, torchvision, python
    state        only in last.pt and previous.pt: raw weights, optimizer, scaler, best, history, ...
"""

import errno
import logging
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from detector.errors import CheckpointError, ConfigError
from detector.foreign import load_safely, read_weights
from detector.models import build_model

log = logging.getLogger("detector")

FORMAT = "evolve-detector/1"
LAST, PREVIOUS = "last.pt", "previous.pt"  # the newest training state, and the one before it
# The parts that every checkpoint has.
SCHEMA = {"model": dict, "weights": dict, "names": list, "imgsz": int, "input_convention": str}


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A network ready for use: averaged weights, eval mode; `meta` is the rest of the file."""

    model: nn.Module
    names: tuple[str, ...]
    imgsz: int
    meta: dict[str, Any]
    path: Path


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint so that `path` is always whole: the old file or the new one.

    Raises: `OSError`, also when the disk is full.
    """
    _write(path, content, keep=False)


def save_state(path: Path, content: dict[str, Any]) -> None:
    """Write last.pt as `save_checkpoint` does, and keep the one before it as previous.pt."""
    _write(path, content, keep=True)


def _write(path: Path, content: dict[str, Any], keep: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        torch.save(content, partial)
        if keep and path.is_file():
            path.replace(path.with_name(PREVIOUS))
        partial.replace(path)
    except (RuntimeError, OSError) as error:  # torch tells of a full disk by a position in its file
        free = shutil.disk_usage(path.parent).free / 1e6
        fault = OSError(
            f"{path}: cannot be written, {free:.0f} MB were left on its disk; "
            "what was saved before is whole"
        )
        fault.errno = getattr(error, "errno", None) or errno.ENOSPC
        raise fault from error
    finally:
        partial.unlink(missing_ok=True)


def newest_state(weights: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest whole training state in a run's `weights` folder, None if there is none.

    A torn last.pt is named in a warning, and previous.pt is taken. Other files, whatever their
    names, are not looked at.

    Raises: `CheckpointError` when files are there and none of them is whole.
    """
    torn: list[CheckpointError] = []
    for path in (weights / LAST, weights / PREVIOUS):
        if not path.is_file():
            continue
        try:
            content = read_checkpoint(path)
            if "state" not in content:
                raise CheckpointError(
                    f"{path}: holds no training state; only last.pt of a run does"
                )
        except CheckpointError as error:
            torn.append(error)
            continue
        if torn:
            log.warning("%s; going on from %s instead", torn[0], path)
        return path, content
    if torn:
        raise torn[0]
    return None


def model_content(
    model: nn.Module, names: tuple[str, ...], imgsz: int, **more: Any
) -> dict[str, Any]:
    """Return the checkpoint content that `load_model` needs, and `more` beside it."""
    return {
        "format": FORMAT,
        "model": {
            "name": model.name,
            "num_classes": model.num_classes,
            "options": getattr(model, "options", {}),
        },
        "weights": {name: value.detach().cpu() for name, value in model.state_dict().items()},
        "names": list(names),
        "imgsz": imgsz,
        "input_convention": model.input_convention,
        "versions": {
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
            "python": platform.python_version(),
        },
        **more,
    }


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of ours without running any code from it.

    Raises: `CheckpointError` for a missing, torn or foreign file, or one that lacks a part.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    content = load_safely(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        hint = "; python -m detector.adopt makes one of others' weights"
        raise CheckpointError(f"{path}: not a checkpoint of this program (format {found!r}){hint}")
    _check_schema(path, content)
    return content


def _check_schema(path: Path, content: dict[str, Any]) -> None:
    """Raise `CheckpointError` for a part that is missing or of the wrong kind."""
    for name, kind in SCHEMA.items():
        if not isinstance(content.get(name), kind):
            found = type(content[name]).__name__ if name in content else "missing"
            raise CheckpointError(f"{path}: its {name} must be a {kind.__name__}, but is {found}")
    model, names = content["model"], content["names"]
    if not isinstance(model.get("name"), str) or not isinstance(model.get("num_classes"), int):
        raise CheckpointError(f"{path}: its model must have a name and num_classes, but is {model}")
    if len(names) != model["num_classes"]:
        raise CheckpointError(
            f"{path}: has {len(names)} class names for {model['num_classes']} classes"
        )


def load_model(path: str | Path, device: str | torch.device = "cpu") -> LoadedModel:
    """Read a checkpoint and build its network with the averaged weights.

    Raises: `CheckpointError` for a missing, torn or foreign file, or one that does not fit.
    """
    content = read_checkpoint(path)
    facts = content["model"]
    try:
        model = build_model(facts["name"], facts["num_classes"], facts.get("options"))
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if misfit := _misfit(model, content):
        raise CheckpointError(f"{path}: is not a whole {facts['name']}: {misfit}")
    model.load_state_dict(content["weights"])
    meta = {name: value for name, value in content.items() if name not in ("weights", "state")}
    model = model.to(device).eval()
    return LoadedModel(model, tuple(content["names"]), int(content["imgsz"]), meta, Path(path))


def _misfit(model: nn.Module, content: dict[str, Any]) -> str:
    """Return what is wrong with a checkpoint's weights for its model, empty if nothing is."""
    own, given = model.state_dict(), content["weights"]
    shapes = {name: getattr(value, "shape", None) for name, value in given.items()}
    missing = [name for name in own if name not in given]
    foreign = [name for name in given if name not in own]
    misshapen = [name for name in own if name in given and shapes[name] != own[name].shape]
    faults = ((missing, "missing"), (foreign, "unknown"), (misshapen, "of another shape"))
    found = [f"{len(names)} tensors {what} (first {names[0]})" for names, what in faults if names]
    if content["input_convention"] != model.input_convention:
        found.append(f"takes {content['input_convention']}, not {model.input_convention}")
    return ", ".join(found)


@dataclass(frozen=True)
class LoadReport:
    """Names of the tensors of a model that a weight file filled, and of those it did not.

    Counters (tensors without a dimension) are not told of: they are no weights.
    """

    loaded: tuple[str, ...]
    reinitialised: tuple[str, ...]  # in the model; missing in the file or of another shape there
    skipped: tuple[str, ...]  # in the file only


def load_weights(model: nn.Module, path: str | Path) -> LoadReport:
    """Fill `model` in place from a weight file of any known layout, by name and shape.

    It may be our checkpoint, an official YOLOX `.pth` in any of its layouts, Darknet's `.weights`
    (whose tensors go by their order), or a state dict of torchvision; for the latter, "imagenet"
    and "coco" mean files in torch's cache. See foreign.py.

    Raises: `CheckpointError` when the file cannot be read or not one tensor fits.
    """
    source = read_weights(path, model)
    own = model.state_dict()
    fitting = {
        name: value
        for name, value in source.items()
        if name in own and own[name].shape == value.shape
    }
    if not any(value.ndim > 1 for value in fitting.values()):  # biases and counters fit anything
        raise CheckpointError(f"{path}: not one tensor fits {model.name} by name and shape")
    model.load_state_dict(fitting, strict=False)
    return LoadReport(
        loaded=tuple(fitting),
        reinitialised=tuple(
            name for name, value in own.items() if name not in fitting and value.ndim
        ),
        skipped=tuple(name for name, value in source.items() if name not in own and value.ndim),
    )
