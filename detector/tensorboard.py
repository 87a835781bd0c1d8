"""TensorBoard for a training on its own: event files in the run's folder."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detector.errors import MissingPackageError
from detector.metrics import METRIC_NAMES
from detector.tracking import Tracker

log = logging.getLogger("detector")

METRICS = ("fitness", *METRIC_NAMES)


class TensorBoardTracker:
    """Writes `train/*`, `val/*`, metrics and learning rate into `<run>/tensorboard`.

    A fault of the writer is logged once and never stops a training.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingPackageError(
                "--tensorboard needs a package: pip install tensorboard"
            ) from error
        self._make = SummaryWriter
        self._writer: Any = None

    def start(
        self, config: Mapping[str, Any], hyp: Mapping[str, Any], directory: str | Path
    ) -> None:
        """See `Tracker.start`."""
        self._guarded(self._open, config, hyp, directory)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        self._guarded(self._write, step, metrics)

    def finish(self, status: str, artifacts: Sequence[str | Path]) -> None:
        """See `Tracker.finish`."""
        if self._writer is not None:
            self._guarded(self._writer.close)

    def _open(
        self, config: Mapping[str, Any], hyp: Mapping[str, Any], directory: str | Path
    ) -> None:
        self._writer = self._make(str(Path(directory) / "tensorboard"))
        table = "\n".join(f"| {name} | {value} |" for name, value in {**config, **hyp}.items())
        self._writer.add_text("settings", f"| name | value |\n|---|---|\n{table}")

    def _write(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._writer is None:
            return
        for name, value in metrics.items():
            group = "val/" if name in METRICS else "" if "/" in name else "run/"
            self._writer.add_scalar(f"{group}{name}", value, step)
        self._writer.flush()

    def _guarded(self, work: Any, *values: Any) -> None:
        try:
            work(*values)
        except Exception as error:  # a full disk, a removed folder: the training goes on
            log.warning("TensorBoard is off for this run: %s", error)
            self._writer = None


class Trackers:
    """Several trackers as one."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def start(
        self, config: Mapping[str, Any], hyp: Mapping[str, Any], directory: str | Path
    ) -> None:
        """See `Tracker.start`."""
        for tracker in self._trackers:
            tracker.start(config, hyp, directory)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        for tracker in self._trackers:
            tracker.log(step, metrics)

    def finish(self, status: str, artifacts: Sequence[str | Path]) -> None:
        """See `Tracker.finish`."""
        for tracker in self._trackers:
            tracker.finish(status, artifacts)
