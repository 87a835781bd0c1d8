"""Checkpoints and exported files as one callable: pixels in, decoded predictions out.

Shapes: B batch, H and W input pixels, N predictions of one image, C classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detector import engine, graph_nms, runtimes
from detector.boxes import Detections
from detector.checkpoint import LoadedModel, load_model
from detector.config import Hyp
from detector.decode import DECODERS, decode, select
from detector.errors import CheckpointError, ConfigError, MissingPackageError, did_you_mean
from detector.families import build_family
from detector.models.channels import in_convention
from detector.onnx_graph import plain

SUFFIXES = (".pt", ".onnx", ".engine", *runtimes.LOADERS)
RUNTIMES = ("onnxruntime", *runtimes.ONNX_LOADERS)  # what reads .onnx files, the default first


@dataclass(frozen=True, eq=False)
class Backend:
    """A detector read from any kind of file.

    Called with images (B, 3, H, W) float32, 0 to 255, in the channel order of `input_convention`,
    it returns the decoded predictions (B, N, 5 + C) float32 on the device of the images: cx, cy,
    w, h in input pixels, objectness, class probabilities. Any B works, 0 included: more images than
    `max_batch` are done in parts. `detect` takes BGR images, whatever the convention. A detector
    that selects its detections itself, and a file with NMS in its graph, has `find` and no decoded
    predictions.
    """

    path: Path
    names: tuple[str, ...]  # of the classes
    imgsz: int  # side of the square input in pixels
    input_convention: str
    device: torch.device  # where `run` computes
    run: Callable[[Tensor], Tensor] | None  # images on `device`, at most `max_batch` -> decoded
    max_batch: int | None = None  # None: no limit
    any_size: bool = False  # images of other sizes than `imgsz` work too
    find: Callable[[Tensor, float, float, int], list[Detections]] | None = None  # BGR images
    metadata: Mapping[str, Any] = field(default_factory=dict)  # what an exported file says

    def __call__(self, images: Tensor) -> Tensor:
        self._check(images)
        if self.run is None:
            raise ConfigError(f"{self.path}: selects its detections itself, nothing can be decoded")
        if len(images) == 0:
            blank = torch.zeros(1, *images.shape[1:], device=images.device)
            return self(blank)[:0]
        parts = images.split(self.max_batch or len(images))
        decoded = [self.run(part.to(self.device, torch.float32)) for part in parts]
        return torch.cat(decoded).to(images.device)

    def detect(self, images: Tensor, conf: float, iou: float, max_det: int) -> list[Detections]:
        """Return the detections of each BGR image, boxes in input pixels, like a family."""
        if self.find is not None:
            self._check(images)
            return self.find(images.to(self.device, torch.float32), conf, iou, max_det)
        return select(self.decoded(images), conf, iou, max_det)

    def decoded(self, images: Tensor) -> Tensor:
        """Return the decoded predictions of BGR images."""
        return self(in_convention(images, self.input_convention))

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ConfigError(f"images must be (B, 3, H, W), got {tuple(images.shape)}")
        height, width = images.shape[2:]
        if not self.any_size and (height, width) != (self.imgsz, self.imgsz):
            raise ConfigError(
                f"{self.path}: takes images of {self.imgsz}x{self.imgsz}, got {height}x{width}; "
                f"use imgsz={self.imgsz}, or export with another --imgsz"
            )


def load_backend(
    path: str | Path,
    device: str | torch.device = "cpu",
    threads: int | None = None,
    runtime: str | None = None,
) -> Backend:
    """Read a checkpoint (.pt) or any file that `detector.export` writes as a `Backend`.

    `threads` is for files that compute on the CPU whatever the device; by default it is torch's own
    number, for ncnn 1. TorchScript and checkpoints always take torch's number. `runtime` is one of
    RUNTIMES, for .onnx files.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind than its suffix says, or not
            for this machine.
        ConfigError: a `runtime` that does not exist or does not read such files.
        MissingPackageError: the file's runtime is not installed.
    """
    path, device = Path(path), torch.device(device)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise CheckpointError(f"{path}: unknown kind of model file; known: {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    _check_runtime(path, runtime)
    if suffix == ".pt":
        return wrap_checkpoint(load_model(path, device=str(device)), device)
    if suffix == ".engine":
        return _load_engine(path, device)
    loader = runtimes.ONNX_LOADERS.get(runtime or "") or runtimes.LOADERS.get(suffix)
    if loader is None:
        return _load_onnx(path, threads)
    loaded = loader(path, device, threads)
    return _described(path, loaded)


def _check_runtime(path: Path, runtime: str | None) -> None:
    if runtime is None:
        return
    if runtime not in RUNTIMES:
        hint = did_you_mean(runtime, RUNTIMES)
        raise ConfigError(f"--runtime {runtime}: no such runtime{hint}")
    if path.suffix.lower() != ".onnx":
        raise ConfigError(f"--runtime {runtime}: reads .onnx files only, not {path}")


def wrap_checkpoint(loaded: LoadedModel, device: str | torch.device = "cpu") -> Backend:
    """Return a checkpoint that is already on `device` as a `Backend`."""
    model = loaded.model

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return decode(model, model(images))

    dense = model.family in DECODERS
    return Backend(
        path=loaded.path,
        names=tuple(loaded.names),
        imgsz=loaded.imgsz,
        input_convention=str(model.input_convention),
        device=torch.device(device),
        run=run if dense else None,
        any_size=True,
        find=None if dense else build_family(model, Hyp()).detect,
    )


def _load_onnx(path: Path, threads: int | None) -> Backend:
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3  # errors
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors share no base below Exception
        raise CheckpointError(f"{path}: not a readable ONNX file ({_one_line(error)})") from error
    source = session.get_inputs()[0]
    batch = source.shape[0]  # a number, or the name of an open dimension

    def run(images: Tensor) -> Tensor:
        (decoded,) = session.run(None, {source.name: images.contiguous().numpy()})
        return torch.from_numpy(decoded)

    def rows(images: Tensor, wanted: graph_nms.GraphNms) -> Tensor:
        feed = {source.name: images.numpy(), **wanted.inputs()}
        (found,) = session.run(None, feed)
        return torch.from_numpy(found)

    texts = session.get_modelmeta().custom_metadata_map
    metadata = {key: plain(text) for key, text in texts.items()}
    most = batch if isinstance(batch, int) else None
    adjustable = bool(session.get_overridable_initializers())
    return _described(path, runtimes.Loaded(metadata, run, most), rows if adjustable else None)


def onnxruntime() -> Any:
    """Import ONNX Runtime.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MissingPackageError(
            f"ONNX files need onnxruntime ({_one_line(error)}): "
            "pip install 'evolve-detector[export]'"
        ) from error
    return ort


def _described(path: Path, loaded: runtimes.Loaded, rows: graph_nms.Rows | None = None) -> Backend:
    """Return a file that says itself what it is as a `Backend`.

    `rows` runs a file with NMS in its graph where its thresholds can be changed.
    """
    facts = loaded.metadata
    try:
        names = tuple(map(str, facts["names"]))
        imgsz, convention = int(facts["imgsz"]), str(facts["input_convention"])
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path}: not written by detector.export: its metadata has no usable "
            f"names, imgsz and input_convention ({_one_line(error)})"
        ) from error
    rule = graph_nms.rule_of(path, facts)
    if rule is not None:
        rows = rows or graph_nms.fixed_rows(path, rule, loaded.run)
    return Backend(
        path=path,
        names=names,
        imgsz=imgsz,
        input_convention=convention,
        device=loaded.device,
        run=loaded.run if rule is None else None,
        max_batch=loaded.max_batch,
        find=graph_nms.finder(rows, convention, loaded.max_batch) if rule and rows else None,
        metadata=facts,
    )


def _load_engine(path: Path, device: torch.device) -> Backend:
    sidecar, run = engine.load(path, device)
    most = int(sidecar["batch"]["max"])
    return _described(path, runtimes.Loaded(sidecar, run, most, device))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
