"""What an export is asked for, checked before anything is written."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from detector import engine
from detector.checkpoint import LoadedModel
from detector.decode import DECODERS
from detector.engine_wish import EngineWish
from detector.errors import ConfigError, UserError
from detector.graph_nms import GraphNms, refuse_formats
from detector.models.channels import in_convention
from detector.models.torchvision import STRIDE
from detector.parity import letterboxed, read_pictures
from detector.precision import CALIBRATION_IMAGES, PRECISIONS
from detector.runtimes import CONVERTERS
from detector.runtimes import PRECISIONS as RUNTIME_PRECISIONS

FORMATS = ("onnx", *engine.LIBRARIES, *CONVERTERS, "darknet")
DEFAULT_OPSET = 17
OPTION_OF = {"fp32": [], "fp16": ["--half"], "int8": ["--int8"]}


@dataclass(frozen=True, eq=False)
class ExportJob:
    """A checked request."""

    loaded: LoadedModel
    imgsz: int
    folder: Path
    dynamic: bool
    opset: int
    precision: str
    data: str | None  # to calibrate int8 on; None: what the checkpoint was trained on
    nms: GraphNms | None = None  # None: not in the graph
    engines: EngineWish = field(default_factory=EngineWish)

    @property
    def stem(self) -> Path:
        """Folder and beginning of the files: `best.pt` -> `<folder>/best`, `<folder>/best.fp16`."""
        kind = "" if self.precision == "fp32" else f".{self.precision}"
        return self.folder / f"{self.loaded.path.stem}{kind}{'.nms' if self.nms else ''}"

    def target(self, ending: str) -> Path:
        """Return the path of an exported file: `best.pt` -> `<folder>/best.<ending>`."""
        return self.stem.with_name(f"{self.stem.name}.{ending}")

    def command(self, engine_format: str) -> str:
        """Return the command that builds an engine again."""
        words = ["python", "-m", "detector.export", "--weights", str(self.loaded.path)]
        words += ["--format", engine_format, "--imgsz", str(self.imgsz)]
        words += ["--dynamic"] if self.dynamic else []
        words += OPTION_OF[self.precision] + (["--data", self.data] if self.data else [])
        words += self.nms.words() if self.nms else []
        words += self.engines.words()
        words += ["--opset", str(self.opset)] if self.opset != DEFAULT_OPSET else []
        words += ["--out", str(self.folder)] if self.folder != self.loaded.path.parent else []
        return shlex.join(words)


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


def check_precision(precision: str, formats: Sequence[str]) -> None:
    """Raise ConfigError for a precision that does not exist, or not in one of the formats."""
    if precision not in PRECISIONS:
        raise ConfigError(f"precision={precision}: allowed are {', '.join(PRECISIONS)}")
    for name in formats:
        allowed = ("fp32",) if name == "darknet" else RUNTIME_PRECISIONS.get(name, PRECISIONS)
        if precision not in allowed:
            raise ConfigError(f"--format {name} has no {precision}; it has {', '.join(allowed)}")


def check_nms(
    nms: bool | GraphNms, formats: tuple[str, ...] | None
) -> tuple[GraphNms | None, tuple[str, ...] | None]:
    """Return the thresholds of NMS in the graph, None without, and the formats.

    Without formats TensorRT is the only engine that it can be in.

    Raises: ConfigError: one of the formats cannot have it.
    """
    if not nms:
        return None, formats
    formats = ("tensorrt",) if formats is None else formats
    refuse_formats(formats)
    return GraphNms() if nms is True else nms, formats


def calibration_images(job: ExportJob) -> Tensor:
    """Return letterboxed training images (K, 3, H, W) to calibrate int8 on.

    Raises: ConfigError: there are none, and why.
    """
    data = job.data or str((job.loaded.meta.get("config") or {}).get("data") or "")
    hint = "name a data set of like images with --data"
    if not data:
        raise ConfigError(f"int8: {job.loaded.path} does not say what it was trained on: {hint}")
    try:
        pictures = read_pictures(data, "train", CALIBRATION_IMAGES)
    except UserError as error:
        raise ConfigError(f"int8: no images to calibrate on ({error}): {hint}") from error
    return in_convention(letterboxed(pictures, job.imgsz), str(job.loaded.model.input_convention))


def check_size(imgsz: int, loaded: LoadedModel) -> int:
    stride = max(getattr(loaded.model, "strides", (STRIDE,)))
    if imgsz < stride or imgsz % stride:
        nearest = max(1, round(imgsz / stride)) * stride
        raise ConfigError(
            f"imgsz={imgsz} must be a multiple of the largest stride ({stride}): try {nearest}"
        )
    return imgsz


def selects_itself(
    loaded: LoadedModel, formats: Sequence[str] | None, dynamic: bool, precision: str
) -> bool:
    """Tell whether a network selects its detections itself, as torchvision's do.

    Raises: ConfigError: it does, and is asked for in another form than the one that there is.
    """
    if loaded.model.family in DECODERS:
        return False
    name = f"{loaded.path}: {loaded.model.name} selects its detections itself"
    if formats is None or set(formats) != {"onnx"}:
        raise ConfigError(f"{name}: it can be exported with --format onnx only")
    if dynamic:
        raise ConfigError(f"{name}: its graph is for one image, not --dynamic")
    if precision != "fp32":
        raise ConfigError(f"{name}: it can be exported in fp32 only, not in {precision}")
    return True


def make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: not a folder to write into ({error.strerror})") from error
    return folder
