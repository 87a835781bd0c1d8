"""From a checkpoint to ONNX, TensorRT and Darknet; `python -m detector.export`.

Every exported file takes plain pixels, returns decoded predictions (B, N, 5 + C), and says itself
what it is: class names, input size, letterbox rule, origin. An ONNX file appears only when its
outputs are those of the checkpoint; an engine is built from that ONNX file.
"""

import argparse
import dataclasses
import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from detector import engine, graph_nms, onnx_graph
from detector.backends import load_backend, onnxruntime, wrap_checkpoint
from detector.checkpoint import load_model
from detector.cli import run_command
from detector.darknet_weights import save_darknet
from detector.engine_wish import EngineWish
from detector.errors import ConfigError, MissingPackageError, UserError
from detector.export_job import (
    DEFAULT_OPSET,
    ExportJob,
    calibration_images,
    check_formats,
    check_nms,
    check_precision,
    check_size,
    make_folder,
    selects_itself,
)
from detector.export_options import build_parser, request_of
from detector.files import write_whole
from detector.graph_nms import GraphNms
from detector.models.darknet import Darknet
from detector.models.darknet_blocks import cfg_text
from detector.origin import describe
from detector.parity import (
    TOLERANCES,
    Difference,
    comparison_images,
    measure,
    measure_detections,
)
from detector.precision import to_fp16, to_int8, with_7_bit_weights
from detector.runtimes import CONVERTERS, REQUIRE, Request
from detector.torchvision_family import set_thresholds

NO_ENGINE = (
    "neither tensorrt nor tensorrt_rtx can be imported, so there is no engine: "
    f"{engine.INSTALL['tensorrt-rtx']}, or pip install tensorrt (needs the NVIDIA package index)"
)


@dataclass(frozen=True)
class ExportedFile:
    """One file that an export wrote."""

    path: Path
    format: str  # one of FORMATS
    sidecar: Path | None  # what belongs to it: JSON of an engine, cfg of Darknet, .bin of OpenVINO
    difference: Difference | None  # None: not compared (engines; their ONNX file was)


class EngineNotBuilt(MissingPackageError):
    """An engine was asked for and cannot be built here; `files` were written all the same."""

    def __init__(self, message: str, files: Sequence[ExportedFile]) -> None:
        super().__init__(message)
        self.files = tuple(files)


# ---- export


def export(
    weights: str | Path,
    formats: str | Sequence[str] | None = None,
    out: str | Path | None = None,
    imgsz: int | None = None,
    dynamic: bool = False,
    opset: int = DEFAULT_OPSET,
    precision: str = "fp32",
    data: str | None = None,
    nms: bool | GraphNms = False,
    engines: EngineWish | None = None,
) -> list[ExportedFile]:
    """Write a checkpoint as ONNX and, from that, as engines; return the files, ONNX first.

    `formats` is a list or "onnx,tensorrt-rtx"; None means TensorRT if it can be imported, else
    TensorRT-RTX; "darknet" alone writes `.weights` and `.cfg`, and no ONNX. The files go to the
    folder `out`, by default the checkpoint's. `imgsz` is by default the checkpoint's. `dynamic`
    leaves the batch open (an engine: 1 to 16 images). `precision` is fp32, fp16 or int8, which is
    calibrated on the training images of `data`, by default the checkpoint's own. `nms` puts NMS
    into the graph of ONNX and TensorRT files. `engines` says what is asked of engines.

    Raises:
        ConfigError: a wrong format, size, opset, folder or precision; no images to calibrate on.
        CheckpointError: the checkpoint cannot be read.
        MissingPackageError: the ONNX packages are missing; nothing was written.
        EngineNotBuilt: an engine cannot be built here; the other files were written.
        RuntimeError: the exported file disagrees with the checkpoint, or a library failed.
    """
    rule, wanted = check_nms(nms, None if formats is None else check_formats(formats))
    check_precision(precision, wanted or ())
    onnx_graph.check_opset(opset)
    wish = engines or EngineWish()
    engine.check_wish(wish, [engine.first_available() or ""] if wanted is None else wanted, dynamic)
    _require_packages(wanted)
    loaded = load_model(weights)
    selected = selects_itself(loaded, wanted, dynamic, precision)
    job = ExportJob(
        loaded=loaded,
        imgsz=check_size(loaded.imgsz if imgsz is None else imgsz, loaded),
        folder=loaded.path.parent if out is None else Path(out),
        dynamic=dynamic,
        opset=opset,
        precision=precision,
        data=data,
        nms=rule or (GraphNms() if selected else None),
        engines=wish,
    )
    calibration = calibration_images(job) if precision == "int8" else None
    make_folder(job.folder)
    darknet = [_export_darknet(job)] if "darknet" in (wanted or ()) else []
    if wanted == ("darknet",):
        return darknet
    if selected:
        return [_export_selected(job)]
    return _export_graph(job, wanted, calibration, darknet)


def _require_packages(wanted: tuple[str, ...] | None) -> None:
    """Raise MissingPackageError for what the formats need; engines are tried later."""
    if wanted != ("darknet",):
        onnx_graph.require_packages()
        onnxruntime()
    for name in wanted or ():
        if name in REQUIRE:
            REQUIRE[name]()


def _export_graph(
    job: ExportJob,
    wanted: tuple[str, ...] | None,
    calibration: Tensor | None,
    darknet: list[ExportedFile],
) -> list[ExportedFile]:
    """Write the ONNX file and all that is made from its graph; return these and `darknet`."""
    metadata = describe(job.loaded, job.imgsz, job.precision)
    if job.nms:
        metadata |= {"nms": job.nms.facts(), "output_layout": graph_nms.LAYOUT}
    graph = onnx_graph.trace(job.loaded.model, job.imgsz, job.opset, job.dynamic)
    file, content = _export_onnx(job, graph, metadata, calibration)
    request = Request(
        model=job.loaded.model,
        graph=graph,
        imgsz=job.imgsz,
        dynamic=job.dynamic,
        target=job.stem,
        metadata=metadata,
        precision=job.precision,
        int8_graph=with_7_bit_weights(content) if job.precision == "int8" else None,
    )
    runtimes = [_export_runtime(job, name, request) for name in wanted or () if name in CONVERTERS]
    origin = {
        **metadata,
        "onnx": file.path.name,
        "onnx_sha256": hashlib.sha256(content).hexdigest(),
        "onnx_difference": dataclasses.asdict(_compared(file)),
    }
    engines, refused = _export_engines(job, content, origin, wanted)
    files = [file, *runtimes, *engines, *darknet]
    if refused:
        raise EngineNotBuilt(f"{'; '.join(refused)}; {file.path} was written", files)
    return files


def _export_selected(job: ExportJob) -> ExportedFile:
    """Write the ONNX file of a network that selects its detections itself, with its thresholds."""
    assert job.nms is not None
    network, rule = job.loaded.model, job.nms
    set_thresholds(network, rule.conf, rule.iou, rule.max_det)
    graph = onnx_graph.trace_selected(network, job.imgsz, job.opset, rule.max_det)
    own = {**dataclasses.asdict(rule), "kind": "the network's own"}
    facts = describe(job.loaded, job.imgsz, job.precision)
    facts |= {"nms": own, "output_layout": graph_nms.OWN_LAYOUT}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "compared.onnx"
        path.write_bytes(onnx_graph.with_metadata(graph, facts))
        difference = _compare(job, path, "the ONNX graph")
    facts["difference"] = dataclasses.asdict(difference)
    write_whole(job.target("onnx"), onnx_graph.with_metadata(graph, facts))
    return ExportedFile(job.target("onnx"), "onnx", None, difference)


def _export_onnx(
    job: ExportJob, graph: bytes, metadata: dict[str, Any], calibration: Tensor | None
) -> tuple[ExportedFile, bytes]:
    """Write the ONNX file if it agrees with the checkpoint; return it and its content."""
    facts = dict(metadata)
    if job.precision == "fp16":
        graph = to_fp16(graph)
    elif calibration is not None:
        graph, quantized, every = to_int8(graph, calibration)
        facts["int8_convolutions"] = f"{quantized} of {every}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "compared.onnx"
        plain = {key: value for key, value in facts.items() if key != "nms"}
        path.write_bytes(onnx_graph.with_metadata(graph, plain))
        difference = _compare(job, path, "the ONNX graph")
        if job.nms:
            graph = onnx_graph.with_nms(graph, job.nms)
            path.write_bytes(onnx_graph.with_metadata(graph, facts))
            _compare(job, path, "the ONNX graph with NMS")
    complete = {**facts, "difference": dataclasses.asdict(difference)}
    content = onnx_graph.with_metadata(graph, complete)
    write_whole(job.target("onnx"), content)
    return ExportedFile(job.target("onnx"), "onnx", None, difference), content


def _export_runtime(job: ExportJob, name: str, request: Request) -> ExportedFile:
    """Write the files of another runtime, all of them or, if they disagree, none."""
    with tempfile.TemporaryDirectory(dir=job.folder, prefix=".export-") as folder:
        place = Path(folder) / request.target.name
        path, *others = CONVERTERS[name](dataclasses.replace(request, target=place))
        difference = _compare(job, path, path.name)
        written = [file.replace(job.folder / file.name) for file in (*others, path)]
    return ExportedFile(written[-1], name, written[0] if others else None, difference)


def _compare(job: ExportJob, path: Path, what: str) -> Difference:
    """Return how far a file's outputs are from the checkpoint's.

    Raises: RuntimeError: further than its precision allows.
    """
    images, source = comparison_images(job.loaded, job.imgsz)
    checkpoint, exported = wrap_checkpoint(job.loaded), load_backend(path)
    if exported.run is None:
        rule = job.nms or GraphNms()
        found = measure_detections(checkpoint, exported, images, source, rule)
    else:
        found = measure(checkpoint, exported, images, source)
    reason = found.beyond(TOLERANCES[job.precision])
    if reason:
        raise RuntimeError(
            f"{job.loaded.path}: {what} disagrees with the checkpoint and was not written: {reason}"
        )
    return found


def _compared(file: ExportedFile) -> Difference:
    assert file.difference is not None
    return file.difference


def _export_engines(
    job: ExportJob, graph: bytes, origin: dict[str, Any], wanted: tuple[str, ...] | None
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
            built = engine.build(engine_format, graph, job.dynamic, job.precision, job.engines)
        except UserError as error:
            refused.append(str(error))
        except RuntimeError as error:
            raise RuntimeError(f"{error}; {job.target('onnx')} was written") from error
        else:
            target = job.target(f"{engine_format}.engine")
            rebuild = {"rebuild": job.command(engine_format)}
            files.append(_write_engine(target, built, {**origin, **rebuild}))
    return files, refused


def _export_darknet(job: ExportJob) -> ExportedFile:
    """Write `.weights` and the `.cfg` they belong to. Raises: ConfigError for other networks."""
    model = job.loaded.model
    if not isinstance(model, Darknet):
        raise ConfigError(f"--format darknet: {model.name} is no Darknet network")
    target, cfg = job.target("weights"), job.target("cfg")
    layout = dataclasses.replace(model.layout, width=job.imgsz, height=job.imgsz)
    write_whole(cfg, cfg_text(layout).encode())
    save_darknet(model, target)
    return ExportedFile(target, "darknet", cfg, None)


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
    return run_command(_body, build_parser(), argv)


def _body(options: argparse.Namespace) -> dict[str, Any]:
    failure: dict[str, Any] = {}
    try:
        files = export(**request_of(options))
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
            f"scores {file.difference.score:.1e}, objects {file.difference.harm:.1e} "
            f"({file.difference.images} images: {file.difference.source})"
        )
    return text


if __name__ == "__main__":
    raise SystemExit(main())
