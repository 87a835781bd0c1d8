import json

import pytest
import torch

from detector import training_speed
from detector.benchmark import main
from detector.config import TrainConfig
from detector.training_speed import Trainee, rows, trainees

CPU = torch.device("cpu")


def trainee(dtype: torch.dtype = torch.float32, layout: str = "contiguous") -> Trainee:
    return Trainee(TrainConfig(model="yolox-pico", imgsz=64, batch=2), CPU, dtype, layout)


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_trains_the_network_and_its_average(dtype: torch.dtype, layout: str) -> None:
    one = trainee(dtype, layout)
    before = {name: value.clone() for name, value in one.network.named_parameters()}
    averaged = [value.clone() for value in one.average.module.parameters()]
    one.step()
    changed = [
        not torch.equal(before[name], value) for name, value in one.network.named_parameters()
    ]
    assert all(changed)
    moved = zip(averaged, one.average.module.parameters(), strict=True)
    assert any(not torch.equal(old, new) for old, new in moved)
    full = [w for w in one.network.parameters() if w.ndim == 4 and min(w.shape[1:]) > 1]
    wanted = training_speed.FORMATS[layout]
    assert full and all(weight.is_contiguous(memory_format=wanted) for weight in full)


def test_mixed_precision_is_a_row_where_the_device_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def ways() -> list[tuple[torch.dtype, str]]:
        return [(one.dtype, one.layout) for one in trainees(["yolox-pico"], 64, 2, "cpu")]

    plain = [(torch.float32, "contiguous"), (torch.float32, "channels-last")]
    assert ways() == plain
    monkeypatch.setattr(training_speed, "amp_dtype", lambda *_: torch.bfloat16)
    assert ways() == [*plain, (torch.bfloat16, "contiguous"), (torch.bfloat16, "channels-last")]


def test_speeds_are_medians_of_rounds_compared_with_the_first_way() -> None:
    slow, fast = trainee(), trainee(layout="channels-last")
    slow.seconds = [[0.4, 0.4], [0.8, 0.8, 0.8], [0.4]]  # medians 0.4, 0.8, 0.4
    fast.seconds = [[0.2, 0.2], [0.4, 0.4, 0.4], [0.1]]  # medians 0.2, 0.4, 0.1: ratios 2, 2, 4
    first, second = rows([slow, fast])
    assert (first.images_per_second, first.ratio) == (2 / 0.4, 1.0)
    assert (second.images_per_second, second.ratio) == (2 / 0.2, 2.0)
    assert (second.precision, second.layout, second.batch) == ("fp32", "channels-last", 2)
    assert second.step_ms == pytest.approx(1000 * 0.3)  # between 0.2 and 0.4, of six steps


def test_the_command_gives_a_row_for_each_way(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--training", "yolox-pico", "--imgsz", "64", "--batch", "2", "--device", "cpu"]
    assert main([*argv, "--seconds", "0.01", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [row["layout"] for row in answer["training"]] == ["contiguous", "channels-last"]
    assert all(row["images_per_second"] > 0 and row["batch"] == 2 for row in answer["training"])
    assert main([*argv, "--seconds", "0.01"]) == 0
    assert "| yolox-pico | cpu    | fp32      | channels-last |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "answer"),
    [
        (["--training", "yolox-nan"], "did you mean yolox-nano?"),
        (["--training", "yolox-pico", "--imgsz", "600"], "try 608"),
        (["--training", "yolox-pico", "--batch", "0"], "--batch 0 must be above 0"),
        (["--training", "yolox-pico", "--data", "x"], "--training reads no data set"),
        (["best.pt", "--imgsz", "64"], "--imgsz is for --training"),
    ],
)
def test_wrong_options_are_one_line(
    argv: list[str], answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert answer in error and error.count("\n") == 1
