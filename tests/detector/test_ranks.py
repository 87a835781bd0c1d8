"""Laws of two processes that train together, on a CPU.

The test process trains alone; this file, run as a script, is each of the two ranks. They are
started once, go through all scenarios and leave what the tests compare.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import detector.train
from detector.callbacks import Callbacks
from detector.checkpoint import read_checkpoint
from detector.config import Hyp, TrainConfig, resolve
from detector.data.cache import ImageCache
from detector.data.description import load_data, read_split
from detector.evaluate import evaluate_family
from detector.families import build_family
from detector.finding import Settings
from detector.models import build_model
from detector.train import train

# SGD: a float's noise stays noise. 8 images in steps of 7 and 1: rank 1 has 3 images in two
# micro-batches, and then none at all.
SETTINGS: dict[str, Any] = {
    "model": "yolox-pico", "imgsz": 64, "batch": 2, "device": "cpu", "optimizer": "SGD",
    "lr0": 0.003, "nbs": 7, "epochs": 2, "no_aug_epochs": 1, "mosaic": 0.5, "warmup_epochs": 0,
}  # fmt: skip
SYNC = {"batch": 16, "nbs": 8, "epochs": 1, "sync_bn": True}  # one step
SEED = 0
DIVERGING = {"lr0": 1.0, "box": 1000, "momentum": 0.99, "epochs": 20, "nbs": 2, "val_every": 20}


def settings(data: Path, **values: Any) -> tuple[TrainConfig, Hyp]:
    return resolve({**SETTINGS, "data": str(data), **values})


def with_frozen_norms(name: str, num_classes: int) -> nn.Module:
    """Build a network whose batch norms stay in eval mode: their statistics never change."""
    network = build_model(name, num_classes)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.train = lambda mode=True: None  # type: ignore[method-assign,assignment]
    return network


def stop_after(last: int) -> Callable[[int, dict[str, float]], bool]:
    return lambda epoch, metrics: epoch == last


def evaluated(data: Path) -> dict[str, float]:
    """Return the metrics of an untrained network, in batches of 3 of the 8 images."""
    samples = read_split(load_data(data), "val")
    torch.manual_seed(1)
    family = build_family(build_model("yolox-pico", 2), Hyp())
    cache = ImageCache(samples, 64)
    found = evaluate_family(family, samples, cache, Settings(64, batch=3), 2, torch.device("cpu"))
    return found.summary() | {f"targets {row.label}": row.targets for row in found.classes}


# ---- a rank --------------------------------------------------------------------------------


def be_a_rank(rank: int, data: Path, shared: Path) -> None:
    """Go through the scenarios as one of two ranks; `shared` is the folder of both."""
    torch.set_num_threads(1)
    group = {"init_method": f"file://{shared}/store", "rank": rank, "world_size": 2}
    torch.distributed.init_process_group("gloo", **group)
    own = shared if rank == 0 else shared / "second"  # what rank 1 wrote would be seen
    said: dict[str, Any] = {"evaluated": evaluated(data)}
    detector.train.build_model = with_frozen_norms
    said["frozen"] = train(*settings(data), own / "frozen")
    reports = []

    def stop(epoch: int, metrics: dict[str, float]) -> bool:
        reports.append(epoch)
        return epoch == 1

    said["stopped"] = train(*settings(data), own / "two-one", report=stop).ended
    said["reports"] = reports
    said["resumed"] = train(*settings(data), shared / "one-two", resume=True).metrics
    detector.train.build_model = build_model
    said["sync"] = train(*settings(data, **SYNC), own / "sync").metrics
    for name, values, report in (
        ("diverged", DIVERGING, None),
        ("failed", {"epochs": 1}, lambda epoch, metrics: 1 / 0),
    ):
        try:
            train(*settings(data, **values), own / name, report=report)
        except Exception as error:
            said[name] = f"{type(error).__name__}: {error}"
    said["group is left"] = torch.distributed.is_initialized()
    said["second exists"] = (shared / "second").exists()
    if rank == 1:
        torch.save(said, shared / "rank1.pt")
        die = Callbacks(on_step=lambda step, parts: os._exit(9) if step == 2 else False)
        train(*settings(data, nbs=2), own / "killed", callbacks=die)
    try:
        train(*settings(data, nbs=2), own / "killed")
    except RuntimeError as error:
        said["left alone"] = str(error)
    torch.save(said, shared / "rank0.pt")
    torch.distributed.destroy_process_group()


# ---- the tests -----------------------------------------------------------------------------


def start(*arguments: object, **environment: str) -> subprocess.Popen:
    root = str(Path(__file__).resolve().parents[2])
    env = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-W", "error", __file__, *map(str, arguments)]
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def runs(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what one process and what both ranks of two found."""
    alone, shared = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(alone)
        found: dict[str, Any] = {"evaluated": evaluated(tiny_set), "alone": alone, "two": shared}
        patch.setattr(detector.train, "build_model", with_frozen_norms)
        train(*settings(tiny_set), shared / "one-two", report=stop_after(1))
        patch.chdir(shared)
        ranks = [start(rank, tiny_set, shared) for rank in range(2)]
        patch.chdir(alone)
        found["frozen"] = train(*settings(tiny_set), alone / "frozen")
        patch.setattr(detector.train, "build_model", build_model)
        found["sync"] = train(*settings(tiny_set, **SYNC), alone / "sync").metrics
        errors = [process.communicate(timeout=300)[1] for process in ranks]
        assert [process.returncode for process in ranks] == [0, 9], errors  # rank 1 is killed
        patch.setattr(detector.train, "build_model", with_frozen_norms)
        found["resumed"] = train(*settings(tiny_set), shared / "two-one", resume=True).metrics
    found["ranks"] = [torch.load(shared / f"rank{n}.pt", weights_only=False) for n in range(2)]
    return found


@cache
def weights(folder: Path, part: str = "network") -> dict[str, torch.Tensor]:
    return read_checkpoint(folder / "weights" / "last.pt")["state"][part]


def assert_same_way(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """Hold that two trainings moved the weights from their start to the same place."""
    torch.manual_seed(SEED)
    begin = build_model("yolox-pico", 2).state_dict()
    assert begin.keys() == first.keys() == second.keys()
    names = [name for name, value in begin.items() if value.is_floating_point()]
    one, two, zero = (
        torch.cat([s[name].flatten() for name in names]) for s in (first, second, begin)
    )
    assert (one - zero).norm() > 0.01
    assert (one - two).norm() < 1e-3 * (one - zero).norm()


def test_two_ranks_are_one_rank(runs: dict[str, Any]) -> None:
    for part in ("network", "average"):
        alone, two = (weights(runs[name] / "frozen", part) for name in ("alone", "two"))
        assert_same_way(alone, two)
    history = [
        read_checkpoint(runs[name] / "frozen" / "weights" / "last.pt")["state"]["history"]
        for name in ("alone", "two")
    ]
    for alone, two in zip(*history, strict=True):
        assert (alone["step"], alone["lr"]) == (two["step"], two["lr"])
        for name in ("train/total", "train/box", "train/obj", "train/cls"):
            assert two[name] == pytest.approx(alone[name], rel=1e-3)
    assert "train/l1" in history[1][-1]  # the tail came in both


def test_shared_batch_norm_of_two_ranks_is_that_of_one(runs: dict[str, Any]) -> None:
    for part in ("network", "average"):  # running statistics included
        assert_same_way(weights(runs["alone"] / "sync", part), weights(runs["two"] / "sync", part))
    assert runs["ranks"][0]["sync"] == pytest.approx(runs["sync"], abs=1e-3)


def test_a_sharded_evaluation_gives_the_numbers_of_one_process(runs: dict[str, Any]) -> None:
    assert runs["evaluated"]["targets 0"] > 0
    for said in runs["ranks"]:
        assert said["evaluated"] == runs["evaluated"]


def test_both_ranks_return_the_same_result(runs: dict[str, Any]) -> None:
    first, second = (said["frozen"] for said in runs["ranks"])
    assert first.metrics == second.metrics
    assert first.best == second.best
    assert (first.epochs, first.ended) == (2, "finished") == (second.epochs, second.ended)


def test_rank_0_alone_writes_and_reports_and_both_stop(runs: dict[str, Any]) -> None:
    first, second = runs["ranks"]
    assert not first["second exists"] and not second["second exists"]
    assert (first["reports"], second["reports"]) == ([1], [])
    assert first["stopped"] == second["stopped"] == "stopped"


def test_a_run_of_two_ranks_goes_on_with_one(runs: dict[str, Any]) -> None:
    assert_same_way(weights(runs["alone"] / "frozen"), weights(runs["two"] / "two-one"))


def test_a_run_of_one_rank_goes_on_with_two(runs: dict[str, Any]) -> None:
    assert_same_way(weights(runs["alone"] / "frozen"), weights(runs["two"] / "one-two"))


def test_both_ranks_see_that_the_loss_diverged(runs: dict[str, Any]) -> None:
    first, second = (said["diverged"] for said in runs["ranks"])
    assert first == second
    assert first.startswith("TrainingDiverged: the loss is not finite at step")


def test_an_error_of_the_report_ends_both_ranks(runs: dict[str, Any]) -> None:
    assert [said["failed"] for said in runs["ranks"]] == ["ZeroDivisionError: division by zero"] * 2


def test_a_rank_that_is_killed_does_not_leave_the_other_waiting(runs: dict[str, Any]) -> None:
    assert "left alone" in runs["ranks"][0]  # it raised, here gloo's "connection closed by peer"


def test_a_group_of_the_caller_is_left_as_it_was(runs: dict[str, Any]) -> None:
    assert all(said["group is left"] for said in runs["ranks"])


if __name__ == "__main__":
    be_a_rank(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
