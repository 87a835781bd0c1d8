from pathlib import Path

import pytest
import torch

import detector.performance as performance
from detector.config import Hyp, TrainConfig
from detector.performance import Stopwatch, final_lines, images_per_second, write_log
from detector.result import Result

CPU = torch.device("cpu")


def watched(steps: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Stopwatch, bool]:
    """Let a watch see steps of half a second each."""
    clock = {"now": 100.0}
    monkeypatch.setattr(performance.time, "monotonic", lambda: clock["now"])
    watch, ended = Stopwatch(CPU), False
    for step in range(1, steps + 1):
        clock["now"] += 0.5
        ended = watch.on_step(step, {"total": torch.tensor(float(step))})
    return watch, ended


def test_the_first_five_steps_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, ended = watched(15, monkeypatch)
    # ten steps of 4 images in 5 seconds
    assert (watch.steps_timed, watch.seconds, ended) == (10, 5.0, False)
    assert images_per_second(watch, Hyp(nbs=4)) == 8.0
    assert watch.loss == 15.0


def test_a_hundred_timed_steps_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not watched(104, monkeypatch)[1]
    assert watched(105, monkeypatch)[1]


def test_too_few_steps_have_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, _ = watched(5, monkeypatch)
    assert images_per_second(watch, Hyp()) is None
    assert watch.loss is None


def test_the_log_has_a_value_or_says_that_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, _ = watched(15, monkeypatch)
    result = Result(None, {}, {"epoch": 0}, tmp_path / "best.pt", tmp_path, 0, 12.4, "interrupted")
    config = TrainConfig(model="yolox:depth=0.33,width=0.25")
    path = write_log(tmp_path, config, Hyp(nbs=4), 1, watch, result)
    assert path.name == "yolox_depth_0_33_width_0_25_bs4_1p_perf.log"
    rows = dict(line.split(" = ") for line in path.read_text().splitlines())
    assert rows["ActualFPS"] == "8"
    assert rows["TrainingTime"] == "500"  # ms of a step: 4 images at 8 a second
    assert rows["TrainAccuracy"] == "not measured"
    assert rows["ActualLoss"] == "15"
    assert all(rows.values())


def test_the_final_lines_are_those_that_scripts_read() -> None:
    assert final_lines(175.04, None, 60.4) == [
        "------------------ Final result ------------------",
        "Final Performance images/sec : 175",
        "Final Train Accuracy : not measured",
        "E2E Training Duration sec : 60",
    ]
