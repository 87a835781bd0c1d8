"""A training as the guest of a search: ended by its host, and on several devices."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from detector import objective
from detector.errors import TrainingDiverged
from tests.detector.test_objective import SMALL, Trial

SMALLER = {**SMALL, "epochs": 3, "nbs": 2}


class HostEnds(BaseException):
    """What the host's own handler raises."""


@pytest.fixture
def host() -> Iterator[None]:
    def end(number: int, frame: FrameType | None) -> None:
        raise HostEnds

    before = signal.signal(signal.SIGTERM, end)
    yield
    signal.signal(signal.SIGTERM, before)


class Terminated(Trial):
    """A trial whose process gets SIGTERM, twice, while it reports its first epoch."""

    def report(self, step: int, metrics: object) -> bool:
        self.reports.append(step)
        if len(self.reports) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        return False


def test_sigterm_saves_the_next_step_and_ends_the_host(
    host: None, tiny_set: Path, tmp_path: Path
) -> None:
    params = {**SMALLER, "data": str(tiny_set)}
    first = Terminated(tmp_path / "trial")
    with pytest.raises(HostEnds):
        objective.evaluate(params, first)
    assert first.reports == [1]
    second = Trial(tmp_path / "trial", attempt=2)
    resumed = objective.evaluate(params, second)
    whole = objective.evaluate(params, Trial(tmp_path / "whole"))
    assert second.reports == [2, 3]
    assert resumed == whole  # nothing was lost, nothing was done twice


@pytest.mark.slow  # PyTorch is loaded by eight processes
def test_trials_on_two_devices_follow_each_other_and_survive_a_killed_rank(
    tiny_set: Path, tmp_path: Path
) -> None:
    params = {**SMALLER, "data": str(tiny_set)}
    alone = objective.evaluate({**params, "lr0": 0.002}, Trial(tmp_path / "alone"))
    for name in ("first", "second"):  # the process group of the first is gone by then
        trial = Killing(tmp_path / name, devices=["cpu", "cpu"], threads=2)
        trial.kills = name == "second"
        metrics = objective.evaluate({**params, "lr0": 0.002}, trial)
        assert set(metrics) == set(alone)
        assert [step for step in trial.reports if step > 1] == [2, 3]
    with pytest.raises(TrainingDiverged, match="is not finite at step"):
        broken = {"lr0": 1.0, "box": 1000, "momentum": 0.99, "epochs": 20, "val_every": 20}
        objective.evaluate({**params, **broken}, Trial(tmp_path / "nan", devices=["cpu", "cpu"]))


class Killing(Trial):
    """A trial that kills the second of its processes, once."""

    kills = False

    def report(self, step: int, metrics: object) -> bool:
        self.reports.append(step)
        if self.kills:
            self.kills = False
            os.kill(rank_one(), signal.SIGKILL)
        return False


def rank_one() -> int:
    """Return the process of rank 1 below this one."""
    found = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    for pid in found:
        variables = Path(f"/proc/{pid}/environ").read_bytes()
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"spawn_main" in command and variables:
            last = int(pid)
    return last
