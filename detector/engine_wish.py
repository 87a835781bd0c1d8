"""What a user may ask of an engine beyond its ONNX graph."""

import math
from dataclasses import dataclass

from detector.errors import ConfigError


@dataclass(frozen=True)
class EngineWish:
    """What is asked of an engine; by default the library decides. Raises: ConfigError."""

    capabilities: tuple[str, ...] = ()  # compute capabilities it is for, `8.6`; TensorRT-RTX only
    workspace: float | None = None  # GiB of GPU memory at most, while building and running
    batches: tuple[int, int, int] | None = None  # of a dynamic engine: least, usual, most images

    def __post_init__(self) -> None:
        if self.workspace is not None and not 0 < self.workspace < math.inf:
            raise ConfigError(f"--workspace {self.workspace:g} must be above 0 (GiB)")
        if self.batches is not None:
            low, usual, high = self.batches
            if not 1 <= low <= usual <= high:
                raise ConfigError(
                    f"--batch {low},{usual},{high} must rise from 1 on: least, usual and most "
                    "images, such as 1,8,32"
                )

    def words(self) -> list[str]:
        """Return the options of the command that asks for it."""
        words = ["--capability", ",".join(self.capabilities)] if self.capabilities else []
        words += [] if self.workspace is None else ["--workspace", f"{self.workspace:g}"]
        words += ["--batch", ",".join(map(str, self.batches))] if self.batches else []
        return words
