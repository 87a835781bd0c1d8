"""How trainings end, early or not, and what is left for the next one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import detector.train as module
from detector.callbacks import Callbacks
from detector.checkpoint import read_checkpoint
from detector.config import Hyp, TrainConfig, resolve
from detector.device_memory import OutOfMemory
from detector.errors import CheckpointError, ConfigError, DataError
from detector.train import main, train

SMALL = {"model": "yolox-pico", "imgsz": 64, "batch": 4, "device": "cpu", "nbs": 2}


def settings(data: Path, **values: Any) -> tuple[TrainConfig, Hyp]:
    return resolve({**SMALL, "warmup_epochs": 1, "data": str(data), "epochs": 3, **values})


def stopping_at(step: int) -> Callbacks:
    def on_step(number: int, parts: Mapping[str, torch.Tensor]) -> bool:
        return number == step

    return Callbacks(on_step=on_step)


def network_of(run: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(run / "weights" / "last.pt")["state"]["network"]


def without_times(row: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in row.items() if k not in ("seconds", "images_per_second", "memory")}


@pytest.mark.parametrize("step", [6, 8], ids=["mid-epoch", "before the evaluation"])
def test_a_run_interrupted_within_an_epoch_goes_on_bit_for_bit(
    tiny_set: Path, tmp_path: Path, step: int
) -> None:
    config, hyp = settings(tiny_set, no_aug_epochs=1)  # 4 steps an epoch
    whole = train(config, hyp, tmp_path / "whole")
    part = train(config, hyp, tmp_path / "parts", callbacks=stopping_at(step))
    assert part.ended == "interrupted"
    assert part.epochs == 1
    rest = train(config, hyp, tmp_path / "parts", resume=True)
    assert rest.metrics == whole.metrics
    first, second = network_of(tmp_path / "whole"), network_of(tmp_path / "parts")
    assert all(torch.equal(first[name], second[name]) for name in first)
    histories = [
        read_checkpoint(tmp_path / name / "weights" / "last.pt")["state"]["history"]
        for name in ("whole", "parts")
    ]
    for one, other in zip(*histories, strict=True):
        assert without_times(one) == without_times(other)


def test_a_run_killed_in_its_evaluation_repeats_the_evaluation_alone(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: Any) -> None:
        raise SystemExit

    config, hyp = settings(tiny_set, epochs=2)  # 4 steps an epoch
    whole = train(config, hyp, tmp_path / "whole")
    monkeypatch.setattr(module, "WORTH_SAVING", 0)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(module, "evaluate_family", killed)
        train(config, hyp, tmp_path / "parts")
    steps: list[int] = []
    count = Callbacks(on_step=lambda step, parts: steps.append(step))
    rest = train(config, hyp, tmp_path / "parts", resume=True, callbacks=count)
    assert steps == [5, 6, 7, 8]
    assert rest.metrics == whole.metrics
    first, second = network_of(tmp_path / "whole"), network_of(tmp_path / "parts")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_torn_last_checkpoint_is_named_and_the_one_before_is_used(
    tiny_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, hyp = settings(tiny_set)
    whole = train(config, hyp, tmp_path / "run")
    last = tmp_path / "run" / "weights" / "last.pt"
    last.write_bytes(last.read_bytes()[:5000])
    again = train(config, hyp, tmp_path / "run", resume=True)
    assert "last.pt: not a readable checkpoint" in caplog.text
    assert "going on from" in caplog.text
    assert again.metrics == whole.metrics


def test_only_torn_checkpoints_are_an_error(tiny_set: Path, tmp_path: Path) -> None:
    config, hyp = settings(tiny_set, epochs=1)
    (tmp_path / "run" / "weights").mkdir(parents=True)
    (tmp_path / "run" / "weights" / "last.pt").write_bytes(b"junk")
    with pytest.raises(CheckpointError, match=r"last\.pt: not a readable checkpoint"):
        train(config, hyp, tmp_path / "run", resume=True)


def test_odd_files_among_the_weights_do_not_matter(tiny_set: Path, tmp_path: Path) -> None:  # B-62
    config, hyp = settings(tiny_set, epochs=1)
    (tmp_path / "run" / "weights").mkdir(parents=True)
    (tmp_path / "run" / "weights" / "epoch_x.pt").write_bytes(b"junk")
    assert train(config, hyp, tmp_path / "run", resume=True).epochs == 1


def test_patience_ends_a_run_that_no_longer_improves(tiny_set: Path, tmp_path: Path) -> None:
    config, hyp = settings(tiny_set, epochs=9, patience=2, lr0=1e-7)  # learns nothing
    result = train(config, hyp, tmp_path / "run")
    assert result.ended == "early stop"
    assert result.epochs == result.best["epoch"] + 2


def test_a_time_budget_plans_the_epochs(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, hyp = settings(tiny_set, epochs=2, time="1h", no_aug_epochs=1)
    monkeypatch.setattr(module, "planned_epochs", lambda done, budget: 4)
    rates = []

    def on_epoch(epoch: int, row: Mapping[str, float]) -> None:
        rates.append(row["lr"])

    result = train(config, hyp, tmp_path / "run", callbacks=Callbacks(on_epoch=on_epoch))
    assert result.epochs == 4
    assert rates[-1] == pytest.approx(hyp.lr0 * hyp.lrf)  # the schedule ends with the time


def test_without_validation_the_last_weights_are_the_best(tiny_set: Path, tmp_path: Path) -> None:
    config, hyp = settings(tiny_set, epochs=2, validate=False)
    result = train(config, hyp, tmp_path / "run")
    assert (result.fitness, result.metrics, result.best) == (None, {}, {"epoch": 2})
    best, last = (
        read_checkpoint(tmp_path / "run" / "weights" / f"{n}.pt") for n in ("best", "last")
    )
    assert all(torch.equal(best["weights"][k], last["weights"][k]) for k in best["weights"])


def test_the_validation_loss_does_not_depend_on_the_gains(tiny_set: Path, tmp_path: Path) -> None:
    config, hyp = settings(tiny_set, epochs=1, val_loss=True, lr0=1e-7)
    rows = []
    for box in (1.0, 10.0):
        run = tmp_path / str(box)
        train(config, Hyp(**{**vars(hyp), "box": box}), run)
        rows.append(read_checkpoint(run / "weights" / "last.pt")["state"]["history"][0])
    assert rows[0]["val/total"] == pytest.approx(rows[1]["val/total"], rel=1e-3)
    assert rows[1]["train/box"] == pytest.approx(10 * rows[0]["train/box"], rel=0.05)


def test_compiling_that_fails_is_told_and_survived(
    tiny_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def refuse(self: torch.nn.Module, *_: Any, **__: Any) -> None:
        self._compiled_call_impl = refused

    def refused(*_: Any, **__: Any) -> None:
        raise RuntimeError("no compiler here")

    config, hyp = settings(tiny_set, epochs=1)
    plain = train(config, hyp, tmp_path / "plain")
    monkeypatch.setattr(torch.nn.Module, "compile", refuse)
    config, hyp = settings(tiny_set, epochs=1, compile=True)
    result = train(config, hyp, tmp_path / "compiled")
    assert "compile: not possible here, going on without: RuntimeError: no compiler" in caplog.text
    assert result.metrics == plain.metrics


def test_out_of_memory_names_the_setting_to_change(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("detector.families.DenseFamily.losses", full)
    config, hyp = settings(tiny_set)
    with pytest.raises(OutOfMemory, match=r"out of memory with 2 images of 64 px .* try --batch 1"):
        train(config, hyp, tmp_path / "run")


def test_two_trainings_in_one_process_are_two_in_two(tiny_set: Path, tmp_path: Path) -> None:
    # B-71: nothing of a run may leak into the next one, not even the tail of its schedule
    config, hyp = settings(tiny_set, epochs=2, no_aug_epochs=1, mosaic=0.5, mixup=0.5)
    other = settings(tiny_set, epochs=1, no_aug_epochs=1, lr0=0.01, seed=3)
    first = train(config, hyp, tmp_path / "first")
    train(*other, tmp_path / "other")
    again = train(config, hyp, tmp_path / "again")
    assert first.metrics == again.metrics
    code = (
        "import sys, torch; from detector.config import resolve; from detector.train import train\n"
        "torch.set_num_threads(1); config, hyp = resolve({}, sys.argv[1])\n"
        "train(config, hyp, sys.argv[2])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "first" / "hyp.yaml"), "alone"]
    root = Path(module.__file__).parents[1]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(root)})
    alone = network_of(Path("alone"))
    assert all(torch.equal(alone[k], v) for k, v in network_of(tmp_path / "again").items())


# ---- the command ---------------------------------------------------------------------------


def command(data: Path, *options: str) -> list[str]:
    small = ["--model", "yolox-pico", "--imgsz", "64", "--device", "cpu", "--set", "nbs=1"]
    return ["--data", str(data), *small, *options]


def started(data: Path, *options: str) -> subprocess.Popen:
    root = Path(module.__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-m", "detector.train", *command(data, *options)],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, process: subprocess.Popen) -> None:
    for _ in range(1200):
        if path.is_file():
            return
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.1)
    raise AssertionError(f"{path} did not come")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_is_resumed_and_ends_like_one_never_killed(
    tiny_set: Path, number: signal.Signals
) -> None:
    process = started(tiny_set, "--name", "run", "--epochs", "40")
    run = Path("runs/train/run")
    wait_for(run / "weights" / "best.pt", process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == (130 if number == signal.SIGTERM else -number)
    if number == signal.SIGTERM:
        assert "go on with: python -m detector.train --resume runs/train/run" in errors
    done = read_checkpoint(run / "weights" / "last.pt")["state"]["epoch"]
    assert 1 <= done < 40
    config, hyp = resolve({}, run / "hyp.yaml")
    resumed = train(config, hyp, run, resume=True, report=lambda epoch, row: epoch >= done + 2)
    fresh = train(config, hyp, "fresh", report=lambda epoch, row: epoch >= done + 2)
    assert resumed.metrics == fresh.metrics


def test_resume_without_a_name_takes_the_newest_run(
    tiny_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--resume"]) == 2
    assert "no run under runs/train has a weights/last.pt" in capsys.readouterr().err
    for name in ("b", "a"):
        assert main(command(tiny_set, "--epochs", "1", "--name", name, "--no-validate")) == 0
    assert main(["--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["directory"] == "runs/train/a"


def test_a_performance_run_prints_its_speed(
    tiny_set: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detector.performance.STEPS", 6)
    assert main(command(tiny_set, "--epochs", "3", "--name", "p", "--performance")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "------------------ Final result ------------------"
    assert float(lines[1].removeprefix("Final Performance images/sec : ")) > 0
    assert list(Path("runs/train/p").glob("yolox_pico_bs1_1p_perf.log"))


def test_pictures_and_curves_are_drawn(tiny_set: Path) -> None:
    assert main(command(tiny_set, "--epochs", "1", "--name", "a", "--tensorboard")) == 0
    run = Path("runs/train/a")
    for name in ("train_batch0.jpg", "pictures/detections.jpg", "results.png"):
        picture = cv2.imread(str(run / name))
        assert picture.std() > 10, name
    assert list((run / "tensorboard").glob("events.*"))


def test_batch_auto_is_decided_before_the_run_and_recorded(tiny_set: Path) -> None:
    assert main(command(tiny_set, "--epochs", "1", "--name", "a", "--batch", "auto")) == 0
    assert resolve({}, "runs/train/a/hyp.yaml")[0].batch == 1  # a step has one image


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch", "0"], "batch=0 is out of range; allowed: 1 or more, or auto"),
        (["--batch", "some"], "batch='some' must be"),
        (["--time", "2 days"], "time='2 days' must be a duration such as 2h"),
        (["--patience", "-1"], "patience=-1 is out of range"),
    ],
)
def test_wrong_options_are_one_line(
    tiny_set: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(command(tiny_set, *options)) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last


# ---- data and disks that fail --------------------------------------------------------------


def test_a_corrupt_image_is_named(tiny_set: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_set.parent, tmp_path / "set")
    data = tmp_path / "set" / "data.yaml"
    data.write_text(data.read_text().replace(str(tiny_set.parent), str(tmp_path / "set")))
    image = tmp_path / "set" / "images" / "003.png"
    image.write_bytes(image.read_bytes()[:60])
    with pytest.raises(DataError, match=r"003\.png"):
        train(*settings(data), tmp_path / "run")


def test_an_empty_label_file_is_an_image_of_background(tiny_set: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_set.parent, tmp_path / "set")
    data = tmp_path / "set" / "data.yaml"
    data.write_text(data.read_text().replace(str(tiny_set.parent), str(tmp_path / "set")))
    for label in (tmp_path / "set" / "labels").iterdir():
        label.write_text("")
    result = train(*settings(data, epochs=1), tmp_path / "run")
    assert result.metrics["mAP50-95"] == 0.0
    history = json.loads((tmp_path / "run" / "result.json").read_text())
    assert np.isfinite(history["fitness"])


def test_a_class_id_out_of_range_is_named_with_file_and_line(
    tiny_set: Path, tmp_path: Path
) -> None:  # B-24
    shutil.copytree(tiny_set.parent, tmp_path / "set")
    data = tmp_path / "set" / "data.yaml"
    data.write_text(data.read_text().replace(str(tiny_set.parent), str(tmp_path / "set")))
    (tmp_path / "set" / "labels" / "002.txt").write_text("0 .5 .5 .2 .2\n2 .5 .5 .2 .2\n")
    with pytest.raises(DataError, match=r"002\.txt:2"):
        train(*settings(data), tmp_path / "run")


def test_a_full_disk_ends_a_run_and_leaves_the_last_state_whole(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., None] = torch.save
    saves = []

    def save(content: Any, path: Path) -> None:
        saves.append(path)
        if len(saves) > 3:
            Path(path).write_bytes(b"half")
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos")
        real(content, path)

    monkeypatch.setattr(torch, "save", save)
    config, hyp = settings(tiny_set, epochs=4)
    with pytest.raises(OSError, match=r"cannot be written, \d+ MB were left on its disk"):
        train(config, hyp, tmp_path / "run")
    weights = tmp_path / "run" / "weights"
    assert not list(weights.glob("*.partial"))
    assert read_checkpoint(weights / "last.pt")["state"]["epoch"] >= 1


def test_patience_without_validation_is_refused() -> None:
    with pytest.raises(ConfigError, match="patience=3 needs evaluations"):
        TrainConfig(patience=3, validate=False)
