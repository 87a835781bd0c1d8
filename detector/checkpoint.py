"""Weight files: written atomically, read with `weights_only=True`, complete in themselves.

Schema of a checkpoint (a dict of tensors and plain Python values):

    format       "evolve-detector/1"
    model        {"name", "num_classes", "options"}: what `build_model` needs; the options of a
                 Darknet network are {"cfg": its text, with the anchors}
    weights      state dict of the averaged (EMA) weights: what evaluation and export use
    names        list of class names
    imgsz        side of the square input, pixels
    input_convention   "bgr-255" or "rgb-255"
    config, hyp  the resolved TrainConfig and Hyp as dicts
    metrics      of `weights` on the validation split
    epoch        epochs done
    versions     torch, python
    state        only in last.pt and previous.pt: raw weights, optimizer, scaler, best, history, ...
"""

import logging
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detector.darknet_weights import is_darknet, read_darknet
from detector.errors import CheckpointError
from detector.models import build_model

log = logging.getLogger("detector")

FORMAT = "evolve-detector/1"
LAST, PREVIOUS = "last.pt", "previous.pt"  # the newest training state, and the one before it


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
        raise OSError(
            f"{path}: cannot be written, {free:.0f} MB were left on its disk; "
            "what was saved before is whole"
        ) from error
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
        "versions": {"torch": str(torch.__version__), "python": platform.python_version()},
        **more,
    }


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of ours without running any code from it.

    Raises: `CheckpointError` for a missing, torn or foreign file.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    content = _load_safely(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{path}: not a checkpoint of this program (format {found!r})")
    return content


def load_model(path: str | Path, device: str | torch.device = "cpu") -> LoadedModel:
    """Read a checkpoint and build its network with the averaged weights.

    Raises: `CheckpointError` for a missing, torn or foreign file, or one that does not fit.
    """
    content = read_checkpoint(path)
    facts = content["model"]
    model = build_model(facts["name"], facts["num_classes"], facts.get("options"))
    try:
        model.load_state_dict(content["weights"])
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its weights do not fit {facts['name']}") from error
    meta = {name: value for name, value in content.items() if name not in ("weights", "state")}
    model = model.to(device).eval()
    return LoadedModel(model, tuple(content["names"]), int(content["imgsz"]), meta, Path(path))


@dataclass(frozen=True)
class LoadReport:
    """Names of the tensors of a model that a weight file filled, and of those it did not."""

    loaded: tuple[str, ...]
    reinitialised: tuple[str, ...]  # in the model; missing in the file or of another shape there
    skipped: tuple[str, ...]  # in the file only


def load_weights(model: nn.Module, path: str | Path) -> LoadReport:
    """Fill `model` in place from our checkpoint, an official YOLOX `.pth` or Darknet's `.weights`.

    Tensors go by name and shape; those of Darknet files by their order.

    Raises: `CheckpointError` when the file cannot be read or not one tensor fits.
    """
    source = _foreign_weights(Path(path), model)
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
        reinitialised=tuple(name for name in own if name not in fitting),
        skipped=tuple(name for name in source if name not in own),
    )


def _foreign_weights(path: Path, model: nn.Module) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weight file")
    if is_darknet(path):
        if model.family != "yolov3":
            raise CheckpointError(
                f"{path}: Darknet weights are for yolov3 models and *.cfg, not {model.name}"
            )
        return read_darknet(path, model)
    content = _load_safely(path)
    for key in ("weights", "model"):  # ours, official YOLOX
        if (
            isinstance(content, dict)
            and isinstance(content.get(key), dict)
            and "name" not in content[key]
        ):
            content = content[key]
    tensors = {
        name: value
        for name, value in (content.items() if isinstance(content, dict) else ())
        if isinstance(value, torch.Tensor)
    }
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors that could be loaded")
    return tensors


def _load_safely(path: Path) -> Any:
    """Read a torch file without running code from it. Raises: `CheckpointError`."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling bytes that are no pickle raises nearly anything
        raise CheckpointError(f"{path}: not a readable checkpoint (damaged or foreign)") from error
