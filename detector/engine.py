"""TensorRT engines: build, describe, verify, run; the only file with `tensorrt` and `tensorrt_rtx`.

One path serves TensorRT 10.x, 11.x and TensorRT-RTX: strongly typed networks, whose precision is
what the ONNX graph says. A plan says nothing about itself without a GPU, so every engine has a
sidecar, `<engine>.json`, that says what it is, where it runs and how to build it again.
"""

import hashlib
import importlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from detector.engine_wish import EngineWish
from detector.errors import CheckpointError, ConfigError, MissingPackageError, UserError

LIBRARIES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}  # format -> module, best first
BATCHES = (1, 4, 16)  # smallest, tuned for, largest batch of a dynamic engine
RTX_CAPABILITY = "8.0"  # Source: TensorRT-RTX support matrix: Ampere and later
INSTALL = {
    "tensorrt": "pip install tensorrt (needs the NVIDIA package index), "
    "or use --format tensorrt-rtx",
    "tensorrt-rtx": "pip install 'evolve-detector[tensorrt-rtx]'",
}
REQUIRED_KEYS = (
    "format",
    "library_version",
    "engine_sha256",
    "gpu",
    "inputs",
    "outputs",
    "names",
    "imgsz",
    "input_convention",
    "batch",
    "rebuild",
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class BuiltEngine:
    """A serialized plan and what only the builder knows about it."""

    plan: bytes
    facts: dict[str, Any]  # the builder's part of the sidecar


# ---- build


def load_library(engine_format: str) -> ModuleType:
    """Import the library of `tensorrt` or `tensorrt-rtx`.

    Raises:
        MissingPackageError: it is not installed, or it is a stub without its libraries.
    """
    module = LIBRARIES[engine_format]
    try:
        library = importlib.import_module(module)
        if not hasattr(library, "Builder"):
            raise ImportError(f"{module} is there without its libraries")
    except (ImportError, OSError, RuntimeError) as error:  # a stub wheel raises any of them
        reason = " ".join(str(error).split())
        raise MissingPackageError(
            f"{engine_format} cannot be imported ({reason}): {INSTALL[engine_format]}"
        ) from error
    return library


def first_available() -> str | None:
    """Return the first engine format whose library can be imported: TensorRT, then TensorRT-RTX."""
    for engine_format in LIBRARIES:
        try:
            load_library(engine_format)
        except MissingPackageError as error:
            log.debug("%s", error)
        else:
            return engine_format
    return None


def build(
    engine_format: str,
    graph: bytes,
    dynamic: bool,
    precision: str = "fp32",
    wish: EngineWish | None = None,
) -> BuiltEngine:
    """Build an engine from a serialized ONNX graph; TensorRT-RTX needs no GPU for it.

    `precision` is what the graph has: networks are strongly typed, it changes nothing.

    Raises:
        ConfigError: the library has no such compute capability.
        MissingPackageError: the library cannot be imported.
        UserError: TensorRT, which tunes on the GPU it builds for, finds none.
        RuntimeError: the library refuses the graph or fails.
    """
    wish = wish or EngineWish()
    trt = load_library(engine_format)
    targets = _targets(trt, wish.capabilities)
    gpu = _target_gpu(engine_format, wish.capabilities)
    messages, logger = _logger(trt)
    builder = trt.Builder(logger)
    creation = trt.NetworkDefinitionCreationFlag
    typed = 1 << int(creation.STRONGLY_TYPED) if hasattr(creation, "STRONGLY_TYPED") else 0
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        reasons = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise RuntimeError(f"{engine_format} cannot read the ONNX graph: {reasons}")
    batches = (wish.batches or BATCHES) if dynamic else (1, 1, 1)
    config = _configured(trt, builder, network.get_input(0), batches, dynamic)
    if wish.workspace is not None:
        limit = int(wish.workspace * 2**30)
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, limit)
    if targets:
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            config.set_compute_capability(target, index)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        reason = messages[-1] if messages else "no reason given"
        raise RuntimeError(f"{engine_format} could not build the engine: {reason}")
    facts = {
        "format": engine_format,
        "library": LIBRARIES[engine_format],
        "library_version": trt.__version__,
        "gpu": gpu,
        "precision": precision,
        "tf32": False,
        "workspace_gib": wish.workspace,
        "batch": dict(zip(("min", "opt", "max"), batches, strict=True)),
        "inputs": [_describe(trt, network.get_input(i)) for i in range(network.num_inputs)],
        "outputs": [_describe(trt, network.get_output(i)) for i in range(network.num_outputs)],
    }
    return BuiltEngine(plan=bytes(plan), facts=facts)


def _configured(
    trt: ModuleType, builder: Any, images: Any, batches: tuple[int, int, int], dynamic: bool
) -> Any:
    """Return the builder's configuration: no TF32, and the batches of a dynamic engine."""
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default; without it fp32 means fp32
    if dynamic:
        profile = builder.create_optimization_profile()
        profile.set_shape(images.name, *[(batch, *tuple(images.shape)[1:]) for batch in batches])
        config.add_optimization_profile(profile)
    return config


def check_wish(wish: EngineWish, formats: Sequence[str], dynamic: bool) -> None:
    """Check what is asked of engines before anything is written; `formats` has what is built.

    Raises: ConfigError: no format takes it, or the library has no such compute capability.
    """
    if wish == EngineWish():
        return
    option = wish.words()[0]
    if not set(formats) & set(LIBRARIES):
        raise ConfigError(f"{option} is about engines: add {' or '.join(LIBRARIES)} to --format")
    if wish.batches and not dynamic:
        raise ConfigError("--batch is about engines with an open batch: add --dynamic")
    if wish.capabilities:
        if "tensorrt-rtx" not in formats:
            raise ConfigError("--capability is for --format tensorrt-rtx only")
        try:
            _targets(load_library("tensorrt-rtx"), wish.capabilities)
        except MissingPackageError as error:  # told when the engine's turn comes
            log.debug("%s", error)


def _targets(trt: ModuleType, capabilities: Sequence[str]) -> list[Any]:
    """Return the library's own names of compute capabilities. Raises: ConfigError."""
    if not capabilities:
        return []
    members = trt.ComputeCapability.__members__ if hasattr(trt, "ComputeCapability") else {}
    known = {
        f"{name[2:-1]}.{name[-1]}": member for name, member in members.items() if name[:2] == "SM"
    }
    for one in capabilities:
        if one not in known:
            allowed = ", ".join(sorted(known, key=_number)) or "none"
            raise ConfigError(f"--capability {one}: {trt.__name__} {trt.__version__} has {allowed}")
    return [known[one] for one in capabilities]


def _number(capability: str) -> tuple[int, ...]:
    """Return `8.6` as numbers that can be compared."""
    return tuple(map(int, capability.split(".")))


def _target_gpu(engine_format: str, capabilities: Sequence[str]) -> dict[str, Any]:
    """Return what the engine is valid for: one GPU, every GPU from a capability on, or a list."""
    if engine_format == "tensorrt-rtx":
        minimum = min(capabilities, key=_number) if capabilities else RTX_CAPABILITY
        listed = {"capabilities": list(capabilities)} if capabilities else {}
        return {"name": None, "compute_capability": None, "minimum": minimum, **listed}
    if not torch.cuda.is_available():
        raise UserError(
            f"{engine_format} tunes an engine on the GPU that it is for, and no NVIDIA GPU is "
            "available here: build there, or use --format tensorrt-rtx"
        )
    return {"name": torch.cuda.get_device_name(), "compute_capability": _here(), "minimum": None}


def _here(device: torch.device | None = None) -> str:
    """Return the compute capability of the GPU at hand, such as `9.0`."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"{major}.{minor}"


def _describe(trt: ModuleType, tensor: Any) -> dict[str, Any]:
    """Return name, shape (-1: any) and dtype of a network's input or output."""
    dtype = trt.nptype(tensor.dtype)
    return {"name": tensor.name, "shape": list(tensor.shape), "dtype": dtype.__name__}


def _logger(trt: ModuleType) -> tuple[list[str], Any]:
    """Return the list that collects the library's errors, and the logger that fills it."""
    errors: list[str] = []

    class Forward(trt.ILogger):  # type: ignore[name-defined]
        """Hands the library's messages to `logging`, at debug level: they are for developers."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                errors.append(" ".join(message.split()))
            if severity <= trt.ILogger.WARNING:
                log.debug("%s: %s", trt.__name__, message)

    return errors, Forward()


# ---- sidecar


def sidecar_path(engine: Path) -> Path:
    """Return the path of the sidecar: `x.engine` -> `x.engine.json`."""
    return engine.with_name(engine.name + ".json")


def read_sidecar(engine: Path) -> dict[str, Any]:
    """Return the sidecar of an engine.

    Raises:
        CheckpointError: engine or sidecar is missing or unreadable.
    """
    sidecar = sidecar_path(engine)
    try:
        with engine.open("rb") as file:
            looks_right = b"trt" in file.read(4)  # TensorRT-RTX plans begin with "vtrt"
    except OSError as error:
        raise CheckpointError(f"{engine}: cannot be read ({error.strerror})") from error
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        what = "its sidecar is missing" if looks_right else "not a TensorRT engine"
        raise CheckpointError(
            f"{engine}: {what} (there is no {sidecar.name} beside it); "
            "build it by: python -m detector.export --weights <checkpoint> --format tensorrt-rtx"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{sidecar}: not a readable sidecar ({error})") from error
    missing = [key for key in REQUIRED_KEYS if not isinstance(content, dict) or key not in content]
    if missing:
        raise CheckpointError(f"{sidecar}: not an engine's sidecar: no {', '.join(missing)}")
    return dict(content)


def verify(engine: Path, device: torch.device) -> tuple[dict[str, Any], bytes]:
    """Return sidecar and plan of an engine that is whole and made for this library and this GPU.

    Raises:
        CheckpointError: it is not; the message gives the reason and the command that rebuilds it.
        MissingPackageError: the library that runs it cannot be imported.
    """
    sidecar = read_sidecar(engine)
    plan = engine.read_bytes()

    def refuse(reason: str) -> CheckpointError:
        return CheckpointError(f"{engine}: {reason}; rebuild it by: {sidecar['rebuild']}")

    if hashlib.sha256(plan).hexdigest() != sidecar["engine_sha256"]:
        raise refuse("the file is not the one its sidecar describes (SHA-256 differs)")
    if sidecar["format"] not in LIBRARIES:
        raise refuse(f"format {sidecar['format']!r} is unknown; known: {', '.join(LIBRARIES)}")
    trt = load_library(sidecar["format"])
    if trt.__version__ != sidecar["library_version"]:
        raise refuse(
            f"built by {trt.__name__} {sidecar['library_version']}, installed is {trt.__version__}"
        )
    if not torch.cuda.is_available():
        raise CheckpointError(
            f"{engine}: needs an NVIDIA GPU and none is available here; "
            "the ONNX file runs on the CPU"
        )
    if device.type != "cuda":
        raise CheckpointError(f"{engine}: runs on an NVIDIA GPU, not on device={device}")
    reason = wrong_gpu(sidecar["gpu"], torch.cuda.get_device_name(device), _here(device))
    if reason:
        raise refuse(reason)
    return sidecar, plan


def wrong_gpu(gpu: dict[str, Any], name: str, capability: str) -> str | None:
    """Return why an engine made for `gpu` does not run on the GPU `name`, or None when it does."""
    minimum, listed = gpu["minimum"], gpu.get("capabilities")
    if listed:
        told = f"built for compute capability {', '.join(listed)}, {name} has {capability}"
        return None if capability in listed else told
    if minimum is not None:
        told = f"needs compute capability {minimum} or later, {name} has {capability}"
        return told if _number(capability) < _number(minimum) else None
    if (gpu["name"], gpu["compute_capability"]) == (name, capability):
        return None
    return (
        f"built for {gpu['name']} (compute capability {gpu['compute_capability']}), "
        f"this is {name} ({capability})"
    )


# ---- run


def load(engine: Path, device: torch.device) -> tuple[dict[str, Any], Callable[[Tensor], Tensor]]:
    """Return an engine's sidecar and its function: images on `device` -> decoded on `device`.

    Raises:
        CheckpointError, MissingPackageError: see `verify`.
    """
    sidecar, plan = verify(engine, device)
    trt = load_library(sidecar["format"])
    errors, logger = _logger(trt)
    with torch.cuda.device(device):
        runtime = trt.Runtime(logger)
        loaded = runtime.deserialize_cuda_engine(plan)
        context = None if loaded is None else loaded.create_execution_context()
        if context is None:
            reason = errors[-1] if errors else "no reason given"
            raise CheckpointError(
                f"{engine}: {trt.__name__} cannot load it ({reason}); "
                f"rebuild it by: {sidecar['rebuild']}"
            )
        stream = torch.cuda.Stream(device)
    source, target = sidecar["inputs"][0]["name"], sidecar["outputs"][0]["name"]

    def run(images: Tensor) -> Tensor:
        images = images.contiguous()
        if not context.set_input_shape(source, tuple(images.shape)):
            raise RuntimeError(f"{engine}: does not take images of shape {tuple(images.shape)}")
        decoded = torch.empty(tuple(context.get_tensor_shape(target)), device=device)
        context.set_tensor_address(source, images.data_ptr())
        context.set_tensor_address(target, decoded.data_ptr())
        with torch.cuda.device(device):
            stream.wait_stream(torch.cuda.current_stream(device))
            if not context.execute_async_v3(stream.cuda_stream):
                raise RuntimeError(f"{engine}: the engine failed: {errors[-1:]}")
            stream.synchronize()
        return decoded

    return sidecar, run
