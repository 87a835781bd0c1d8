"""From a checkpoint to ONNX, TensorRT and Darknet; `python -m detector.export`.

Every exported file takes plain pixels, returns decoded predictions (B, N, 5 + C), and says itself
what it is: class names, input size, letterbox rule, origin. An ONNX file appears only when its
outputs are those of the checkpoint; an engine is built from that ONNX file.
"""

import argparse
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from detector import engine, onnx_graph
from detector.backends import load_backend, onnxruntime, wrap_checkpoint
from detector.checkpoint import LoadedModel, load_model
from detector.cli import add_common, run_command
from detector.darknet_weights import save_darknet
from detector.decode import DECODERS
from detector.errors import ConfigError, MissingPackageError, UserError
from detector.files import write_whole
from detector.models.darknet import Darknet
from detector.models.darknet_blocks import cfg_text
from detector.parity import (
    BOX_TOLERANCE,
    SCORE_TOLERANCE,
    Difference,
    comparison_images,
    measure,
)

FORMATS = ("onnx", *engine.LIBRARIES, "darknet")
DEFAULT_OPSET = 17
LETTERBOX = {
    "mode": "top-left",
    "scale": "r = min(imgsz / height, imgsz / width)",
    "size": "(max(1, round(height * r)), max(1, round(width * r)))",
    "interpolation": "bilinear (OpenCV INTER_LINEAR)",
    "pad": 114,
    "boxes": "pixels of the original image = pixels of the input / r",
}
OUTPUT_LAYOUT = {
    "shape": "(B, N, 5 + C)",
    "columns": ["cx", "cy", "w", "h", "objectness", "class probabilities, in the order of names"],
    "boxes": "centre and size in pixels of the input",
    "score": "objectness * class probability",
    "nms": "not in the graph",
}

NO_ENGINE = (
    "neither tensorrt nor tensorrt_rtx can be imported, so there is no engine: "
    f"{engine.INSTALL['tensorrt-rtx']}, or pip install tensorrt (needs the NVIDIA package index)"
)


@dataclass(frozen=True)
class ExportedFile:
    """One file that an export wrote."""

    path: Path
    format: str  # one of FORMATS
    sidecar: Path | None  # the JSON file beside an engine, the cfg beside Darknet weights
    difference: Difference | None  # None: not compared (engines; their ONNX file was)


class EngineNotBuilt(MissingPackageError):
    """An engine was asked for and cannot be built here; `files` were written all the same."""

    def __init__(self, message: str, files: Sequence[ExportedFile]) -> None:
        super().__init__(message)
        self.files = tuple(files)


@dataclass(frozen=True, eq=False)
class _Job:
    """A checked request."""

    loaded: LoadedModel
    imgsz: int
    folder: Path
    dynamic: bool
    opset: int

    def target(self, ending: str) -> Path:
        """Return the path of an exported file: `best.pt` -> `<folder>/best.<ending>`."""
        return self.folder / f"{self.loaded.path.stem}.{ending}"

    def command(self, engine_format: str) -> str:
        """Return the command that builds an engine again."""
        words = ["python", "-m", "detector.export", "--weights", str(self.loaded.path)]
        words += ["--format", engine_format, "--imgsz", str(self.imgsz)]
        words += ["--dynamic"] if self.dynamic else []
        words += ["--opset", str(self.opset)] if self.opset != DEFAULT_OPSET else []
        words += ["--out", str(self.folder)] if self.folder != self.loaded.path.parent else []
        return shlex.join(words)


# ---- export


def export(
    weights: str | Path,
    formats: str | Sequence[str] | None = None,
    out: str | Path | None = None,
    imgsz: int | None = None,
    dynamic: bool = False,
    opset: int = DEFAULT_OPSET,
) -> list[ExportedFile]:
    """Write a checkpoint as ONNX and, from that, as engines; return the files, ONNX first.

    `formats` is a list or "onnx,tensorrt-rtx"; None means TensorRT if it can be imported, else
    TensorRT-RTX; "darknet" alone writes `.weights` and `.cfg`, and no ONNX. The files go to the
    folder `out`, by default the checkpoint's. `imgsz` is by default the checkpoint's. `dynamic`
    leaves the batch open (an engine: 1 to 16 images).

    Raises:
        ConfigError: a wrong format, size, opset or folder.
        CheckpointError: the checkpoint cannot be read.
        MissingPackageError: the ONNX packages are missing; nothing was written.
        EngineNotBuilt: an engine cannot be built here; the other files were written.
        RuntimeError: the exported file disagrees with the checkpoint, or a library failed.
    """
    wanted = None if formats is None else check_formats(formats)
    onnx_graph.check_opset(opset)
    if wanted != ("darknet",):
        onnx_graph.require_packages()
        onnxruntime()
    loaded = _check_dense(load_model(weights))
    job = _Job(
        loaded=loaded,
        imgsz=_check_size(loaded.imgsz if imgsz is None else imgsz, loaded),
        folder=_make_folder(loaded.path.parent if out is None else Path(out)),
        dynamic=dynamic,
        opset=opset,
    )
    darknet = [_export_darknet(job)] if "darknet" in (wanted or ()) else []
    if wanted == ("darknet",):
        return darknet
    metadata = _describe(job)
    graph, difference = _export_onnx(job, metadata)
    file = ExportedFile(job.target("onnx"), "onnx", None, difference)
    origin = {
        **metadata,
        "onnx": file.path.name,
        "onnx_sha256": hashlib.sha256(graph).hexdigest(),
        "onnx_difference": dataclasses.asdict(difference),
    }
    engines, refused = _export_engines(job, graph, origin, wanted)
    files = [file, *engines, *darknet]
    if refused:
        raise EngineNotBuilt(f"{'; '.join(refused)}; {file.path} was written", files)
    return files


def _export_onnx(job: _Job, metadata: dict[str, Any]) -> tuple[bytes, Difference]:
    """Write the ONNX file if it agrees with the checkpoint; return its content."""
    graph = onnx_graph.trace(job.loaded.model, job.imgsz, job.opset, job.dynamic)
    difference = _compare(job.loaded, onnx_graph.with_metadata(graph, metadata), job.imgsz)
    if not difference.is_small():
        raise RuntimeError(
            f"{job.loaded.path}: the ONNX graph disagrees with the checkpoint, nothing was "
            f"written: boxes differ by up to {difference.box_px:.3g} px (allowed "
            f"{BOX_TOLERANCE}), scores by {difference.score:.3g} (allowed {SCORE_TOLERANCE})"
        )
    complete = {**metadata, "difference": dataclasses.asdict(difference)}
    graph = onnx_graph.with_metadata(graph, complete)
    write_whole(job.target("onnx"), graph)
    return graph, difference


def _export_engines(
    job: _Job, graph: bytes, origin: dict[str, Any], wanted: tuple[str, ...] | None
) -> tuple[list[ExportedFile], list[str]]:
    """Build and write the engines; return them, and why others cannot be built here."""
    if wanted is None:
        best = engine.first_available()
        if best is None:
            return [], [NO_ENGINE]
        wanted = (best,)
    files, refused = [], []
    for engine_format in wanted:
        if engine_format not in engine.LIBRARIES:
            continue
        try:
            built = engine.build(engine_format, graph, job.dynamic)
        except UserError as error:
            refused.append(str(error))
        except RuntimeError as error:
            raise RuntimeError(f"{error}; {job.target('onnx')} was written") from error
        else:
            target = job.target(f"{engine_format}.engine")
            rebuild = {"rebuild": job.command(engine_format)}
            files.append(_write_engine(target, built, {**origin, **rebuild}))
    return files, refused


def _export_darknet(job: _Job) -> ExportedFile:
    """Write `.weights` and the `.cfg` they belong to. Raises: ConfigError for other networks."""
    model = job.loaded.model
    if not isinstance(model, Darknet):
        raise ConfigError(f"--format darknet: {model.name} is no Darknet network")
    target, cfg = job.target("weights"), job.target("cfg")
    layout = dataclasses.replace(model.layout, width=job.imgsz, height=job.imgsz)
    write_whole(cfg, cfg_text(layout).encode())
    save_darknet(model, target)
    return ExportedFile(target, "darknet", cfg, None)


def check_formats(formats: str | Sequence[str]) -> tuple[str, ...]:
    """Return the canonical names of formats, each once.

    Raises:
        ConfigError: one does not exist; the message lists those that do.
    """
    names = formats.split(",") if isinstance(formats, str) else list(formats)
    canonical = [name.strip().lower().replace("_", "-") for name in names]
    for name in canonical:
        if name not in FORMATS:
            raise ConfigError(f"--format {name!r} does not exist; there are: {', '.join(FORMATS)}")
    return tuple(dict.fromkeys(canonical))


def _check_size(imgsz: int, loaded: LoadedModel) -> int:
    stride = max(loaded.model.strides)
    if imgsz < stride or imgsz % stride:
        nearest = max(1, round(imgsz / stride)) * stride
        raise ConfigError(
            f"imgsz={imgsz} must be a multiple of the largest stride ({stride}): try {nearest}"
        )
    return imgsz


def _check_dense(loaded: LoadedModel) -> LoadedModel:
    """Raise ConfigError for a network that selects its detections itself: nothing to decode."""
    if loaded.model.family not in DECODERS:
        raise ConfigError(
            f"{loaded.path}: {loaded.model.name} cannot be exported, because its selection of "
            f"detections cannot be traced; these can: {', '.join(DECODERS)}"
        )
    return loaded


def _make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: not a folder to write into ({error.strerror})") from error
    return folder


def _describe(job: _Job) -> dict[str, Any]:
    """Return what a user of the exported file has to know, and where the file comes from."""
    loaded = job.loaded
    with loaded.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "names": list(loaded.names),
        "imgsz": job.imgsz,
        "stride": list(loaded.model.strides),
        "letterbox": LETTERBOX,
        "input_convention": str(loaded.model.input_convention),
        "output_layout": OUTPUT_LAYOUT,
        "model": str(loaded.model.name),
        "metrics": _finite(loaded.meta.get("metrics") or {}),
        "checkpoint": loaded.path.name,
        "checkpoint_sha256": digest,
        "torch_version": str(torch.__version__),
        "evolve_detector_version": _version(),
    }


def _finite(metrics: dict[str, Any]) -> dict[str, float]:
    """Return the metrics that JSON has a spelling for: the finite numbers."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _version() -> str:
    try:
        return importlib.metadata.version("evolve-detector")
    except importlib.metadata.PackageNotFoundError:  # run from a folder, not installed
        return "not installed"


def _compare(loaded: LoadedModel, graph: bytes, imgsz: int) -> Difference:
    """Return how far the outputs of an ONNX file are from the checkpoint's."""
    images, source = comparison_images(loaded, imgsz)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "compared.onnx"
        path.write_bytes(graph)
        return measure(wrap_checkpoint(loaded), load_backend(path), images, source)


# ---- files


def _write_engine(path: Path, built: engine.BuiltEngine, origin: dict[str, Any]) -> ExportedFile:
    """Write an engine, then its sidecar: until both are there, the hash refuses the engine."""
    sidecar = {
        **built.facts,
        "engine_sha256": hashlib.sha256(built.plan).hexdigest(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **origin,
    }
    write_whole(path, built.plan)
    write_whole(engine.sidecar_path(path), json.dumps(sidecar, indent=2).encode())
    return ExportedFile(path, built.facts["format"], engine.sidecar_path(path), None)


# ---- command


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(_body, _parser(), argv)


def _body(options: argparse.Namespace) -> dict[str, Any]:
    failure: dict[str, Any] = {}
    try:
        files = export(
            options.weights,
            formats=options.format,
            out=options.out,
            imgsz=options.imgsz,
            dynamic=options.dynamic,
            opset=options.opset,
        )
    except EngineNotBuilt as error:
        files = list(error.files)
        failure = {"error": str(error), "exit_code": 2}
    if not options.json:
        for file in files:
            print(_line(file))
    if failure:
        print(f"error: {failure['error']}", file=sys.stderr)
    return {"files": [dataclasses.asdict(file) for file in files], **failure}


def _line(file: ExportedFile) -> str:
    text = f"{file.format:13s} {file.path}  {file.path.stat().st_size / 1e6:.1f} MB"
    if file.difference is not None:
        text += (
            f"  largest difference to the checkpoint: boxes {file.difference.box_px:.1e} px, "
            f"scores {file.difference.score:.1e} ({file.difference.images} images: "
            f"{file.difference.source})"
        )
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m detector.export",
        description="Write a checkpoint as ONNX and as TensorRT engines; compare the outputs.",
        epilog="examples:\n"
        "  python -m detector.export --weights runs/train/exp/weights/best.pt --format onnx\n"
        "  python -m detector.export --weights best.pt --format onnx,tensorrt-rtx --dynamic\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--weights", required=True, help="checkpoint (.pt)")
    parser.add_argument(
        "--format",
        help=f"one or more of {', '.join(FORMATS)}, separated by commas "
        "(default: tensorrt if it can be imported, else tensorrt-rtx)",
    )
    parser.add_argument("--out", help="folder for the files (default: the checkpoint's)")
    parser.add_argument("--imgsz", type=int, help="input side in pixels (default: as trained)")
    parser.add_argument("--dynamic", action="store_true", help="leave the batch size open")
    parser.add_argument(
        "--opset",
        type=int,
        default=DEFAULT_OPSET,
        help=f"ONNX operator set, {onnx_graph.OPSETS[0]} to {onnx_graph.OPSETS[-1]} "
        f"(default: {DEFAULT_OPSET})",
    )
    add_common(parser)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
