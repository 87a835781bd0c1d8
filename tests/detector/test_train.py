import csv
import json
import math
import shutil
import statistics
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from detector.checkpoint import load_model, read_checkpoint
from detector.config import Hyp, TrainConfig, resolve
from detector.data.sample import Sample
from detector.data.wrappers import image_weights
from detector.errors import CheckpointError, DataError, TrainingDiverged
from detector.families import build_family
from detector.metrics import DetectionMetrics
from detector.models import build_model
from detector.train import main, train, windows

SMALL = {"model": "yolox-pico", "imgsz": 64, "batch": 4, "device": "cpu"}
PLAIN = {"mosaic": 0.0, "scale": 0.1, "warmup_epochs": 1}


def settings(data: Path, **values: Any) -> tuple[TrainConfig, Hyp]:
    return resolve({**SMALL, **PLAIN, "data": str(data), "epochs": 2, **values})


def test_eight_images_are_learned_by_heart(tiny_set: Path, tmp_path: Path) -> None:
    still = {"scale": 0, "translate": 0, "hsv_h": 0, "hsv_s": 0, "hsv_v": 0, "fliplr": 0}
    config, hyp = settings(
        tiny_set,
        model="yolox:depth=0.33,width=0.25",
        epochs=70,
        bn_momentum=0.1,  # 140 steps are few: the statistics must keep up with the weights
        val_every=70,
        ema_decay=0.9,
        ema_tau=20,
        **still,
    )
    result = train(config, hyp, tmp_path / "run")
    assert result.metrics["mAP50"] > 0.9
    assert result.ended == "finished"


def test_a_run_leaves_all_its_files(tiny_set: Path, tmp_path: Path) -> None:
    config, hyp = settings(tiny_set)
    result = train(config, hyp, tmp_path / "run")
    with (tmp_path / "run" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[-1]["fitness"]) == result.fitness
    assert resolve({}, tmp_path / "run" / "hyp.yaml") == (config, hyp)
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert written["metrics"] == result.metrics
    assert written["per_class"] == result.per_class
    assert set(result.per_class) <= {"square", "disc"}
    mean = statistics.fmean(row["AP50-95"] for row in result.per_class.values())
    assert mean == pytest.approx(result.metrics["mAP50-95"])
    assert (tmp_path / "run" / "pictures" / "detections.jpg").is_file()
    assert load_model(result.best_checkpoint).names == ("square", "disc")
    assert "state" not in read_checkpoint(result.best_checkpoint)


def test_the_same_seed_twice_gives_the_same_weights(tiny_set: Path, tmp_path: Path) -> None:
    config, hyp = settings(tiny_set, mosaic=0.5)
    first, second = (train(config, hyp, tmp_path / name) for name in "ab")
    assert first.metrics == second.metrics
    weights = [read_checkpoint(tmp_path / name / "weights" / "last.pt")["weights"] for name in "ab"]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_another_seed_gives_another_run(tiny_set: Path, tmp_path: Path) -> None:
    rows = []
    for seed in (0, 1):
        config, hyp = settings(tiny_set, seed=seed, epochs=1)
        rows.append(train(config, hyp, tmp_path / str(seed)))
    losses = [(run.directory / "results.csv").read_text().splitlines()[1] for run in rows]
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    "values",
    [{}, {"multi_scale": 0.5, "multi_scale_every": 1, "render": "device", "cache": "ram"}],
    ids=["plain", "multi-scale, drawn by torch"],
)
def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(
    tiny_set: Path, tmp_path: Path, values: dict[str, Any]
) -> None:
    config, hyp = settings(tiny_set, epochs=4, no_aug_epochs=1, mosaic=0.5, **values)
    whole = train(config, hyp, tmp_path / "whole")

    def interrupt(epoch: int, metrics: dict[str, float]) -> bool:
        if epoch == 2:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        train(config, hyp, tmp_path / "parts", report=interrupt)
    parts = train(config, hyp, tmp_path / "parts", resume=True)
    assert parts.metrics == whole.metrics
    assert parts.epochs == 4
    weights = [
        read_checkpoint(tmp_path / name / "weights" / "last.pt")["state"]["network"]
        for name in ("whole", "parts")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_resumed_run_with_muon_equals_an_uninterrupted_one(
    tiny_set: Path, tmp_path: Path
) -> None:
    config, hyp = settings(tiny_set, optimizer="Muon", schedule="linear", warmup="burn-in")
    whole = train(config, hyp, tmp_path / "whole")
    train(config, hyp, tmp_path / "parts", report=lambda epoch, metrics: epoch == 1)
    assert train(config, hyp, tmp_path / "parts", resume=True).metrics == whole.metrics


def test_weights_of_a_longer_run_start_at_epoch_0_with_a_fresh_optimizer(
    tiny_set: Path, tmp_path: Path
) -> None:  # B-21
    config, hyp = settings(tiny_set, epochs=3, optimizer="AdamW")
    train(config, hyp, tmp_path / "source")
    source = tmp_path / "source" / "weights" / "last.pt"
    config, hyp = settings(
        tiny_set, epochs=1, optimizer="AdamW", weights=str(source), freeze="backbone"
    )
    result = train(config, hyp, tmp_path / "next")
    assert result.epochs == 1
    state = read_checkpoint(tmp_path / "next" / "weights" / "last.pt")["state"]
    assert (state["epoch"], state["step"]) == (1, 2)
    assert {int(part["step"]) for part in state["optimizer"]["state"].values()} == {2}
    before = read_checkpoint(source)["weights"]
    for name, value in state["network"].items():
        if name.startswith("backbone.backbone."):
            assert torch.equal(value, before[name]), name


def test_resuming_a_finished_run_returns_its_result(tiny_set: Path, tmp_path: Path) -> None:  # B-19
    config, hyp = settings(tiny_set)
    first = train(config, hyp, tmp_path / "run")
    again = train(config, hyp, tmp_path / "run", resume=True)
    assert (again.metrics, again.per_class) == (first.metrics, first.per_class)
    assert again.epochs == 2


def test_resuming_with_other_hyperparameters_is_refused(tiny_set: Path, tmp_path: Path) -> None:
    config, hyp = settings(tiny_set, epochs=1)
    train(config, hyp, tmp_path / "run")
    config, hyp = settings(tiny_set, epochs=1, lr0=0.5)
    with pytest.raises(CheckpointError, match=r"was trained with lr0=0\.01, not 0\.5"):
        train(config, hyp, tmp_path / "run", resume=True)


def test_a_checkpoint_without_training_state_cannot_be_resumed(
    tiny_set: Path, tmp_path: Path
) -> None:
    config, hyp = settings(tiny_set, epochs=1)
    weights = train(config, hyp, tmp_path / "run").best_checkpoint.parent
    (weights / "best.pt").replace(weights / "last.pt")
    with pytest.raises(CheckpointError, match="holds no training state"):
        train(config, hyp, tmp_path / "run", resume=True)


def test_resuming_on_other_classes_is_refused(tiny_set: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "data.yaml"
    renamed.write_text(tiny_set.read_text())
    config, hyp = settings(renamed, epochs=1)
    train(config, hyp, tmp_path / "run")
    renamed.write_text(tiny_set.read_text().replace("[square, disc]", "[disc, square]"))
    with pytest.raises(CheckpointError, match="was trained on the classes square, disc"):
        train(config, hyp, tmp_path / "run", resume=True)


def test_a_run_that_never_began_leaves_its_name_free(tiny_set: Path) -> None:
    assert run(tiny_set, "--model", "yolox-huge", "--name", "a") == 2
    assert not Path("runs/train/a").exists()


def test_a_report_can_stop_the_training(tiny_set: Path, tmp_path: Path) -> None:
    seen = []

    def stop(epoch: int, metrics: dict[str, float]) -> bool:
        seen.append((epoch, metrics["fitness"]))
        return epoch == 2

    config, hyp = settings(tiny_set, epochs=5)
    result = train(config, hyp, tmp_path / "run", report=stop)
    assert [epoch for epoch, _ in seen] == [1, 2]
    assert (result.ended, result.epochs) == ("stopped", 2)


def test_a_loss_that_is_not_finite_ends_the_training(tiny_set: Path, tmp_path: Path) -> None:
    config, hyp = settings(tiny_set, lr0=1.0, optimizer="SGD", box=1000, epochs=20, momentum=0.99)
    with pytest.raises(TrainingDiverged, match="the loss is not finite at step"):
        train(config, hyp, tmp_path / "run")


def test_training_leaves_the_global_generator_alone(tiny_set: Path, tmp_path: Path) -> None:
    config, hyp = settings(tiny_set, epochs=1)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(config, hyp, tmp_path / "run")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("sizes", [(2, 2, 2, 2), (3, 3, 2), (8,)])
def test_micro_batches_give_the_gradient_of_one_batch(sizes: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(8, 3, 64, 64, generator=generator) * 255
    boxes = torch.tensor([[5.0, 5, 30, 30], [20, 30, 60, 60]])
    targets = [
        {"boxes": boxes[: index % 3], "labels": torch.arange(2)[: index % 3]} for index in range(8)
    ]
    torch.manual_seed(0)
    model = build_model("yolox-pico", 2).eval()  # batch norm frozen
    family = build_family(model, Hyp())
    gradients = []
    for split in ((8,), sizes):
        model.zero_grad()
        count, start = torch.zeros(()), 0
        for size in split:
            part = slice(start, start + size)
            sums, positives = family.losses(images[part], targets[part])
            sums["total"].backward()
            count, start = count + positives, start + size
        gradients.append(
            torch.cat([weight.grad.flatten() / count for weight in model.parameters()])
        )
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


def test_batch_is_only_memory_when_norms_see_the_same_images(
    tiny_set: Path, tmp_path: Path
) -> None:
    # nbs decides the images of a step: a larger memory limit changes nothing at all.
    rows = []
    for batch in (4, 16):
        config, hyp = settings(tiny_set, batch=batch, nbs=4)
        rows.append(train(config, hyp, tmp_path / str(batch)).metrics)
    assert rows[0] == rows[1]


def test_steps_per_epoch_follow_the_nominal_batch(tiny_set: Path, tmp_path: Path) -> None:
    for nbs, steps in ((2, 4), (3, 3), (8, 1), (64, 1)):
        config, hyp = settings(tiny_set, epochs=1, nbs=nbs, batch=4)
        train(config, hyp, tmp_path / str(nbs))
        last = read_checkpoint(tmp_path / str(nbs) / "weights" / "last.pt")
        assert last["state"]["step"] == steps


def test_windows_group_and_keep_the_rest() -> None:
    assert list(windows(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(windows([], 2)) == []


def test_a_wrong_data_path_is_named(tmp_path: Path) -> None:
    config, hyp = resolve({**SMALL, "data": "absent.yaml"})
    with pytest.raises(DataError, match=r"absent\.yaml"):
        train(config, hyp, tmp_path / "run")


# ---- command -------------------------------------------------------------------------------


def run(data: Path, *options: str) -> int:
    small = ["--model", "yolox-pico", "--imgsz", "64", "--epochs", "1", "--device", "cpu"]
    return main(["--data", str(data), *small, *options])


def test_the_command_trains_and_prints_json(
    tiny_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_set, "--name", "first", "--json", "--set", "nbs=2") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["metrics"].keys() >= {"mAP50-95", "mAP50", "precision", "recall", "F1", "fitness"}
    assert Path("runs/train/first/results.png").stat().st_size > 1000


def test_a_hyp_file_of_a_run_repeats_it(tiny_set: Path) -> None:
    assert run(tiny_set, "--name", "a", "--set", "lr0=0.002") == 0
    assert main(["--hyp", "runs/train/a/hyp.yaml", "--name", "b"]) == 0
    first, second = (
        json.loads(Path(f"runs/train/{name}/result.json").read_text())["metrics"] for name in "ab"
    )
    assert first == second


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "0"], "epochs=0 is out of range"),
        (["--imgsz", "100"], "imgsz=100 must be a multiple"),
        (["--model", "yolox-huge"], "yolox-huge"),
        (["--set", "learning_rate=1"], "did you mean lr0?"),
        (["--hyp", "absent.yaml"], "absent.yaml: no such file"),
        (["--weights", "absent.pt"], "absent.pt: no such weight file"),
        (["--resume", "absent"], "holds no weights/last.pt"),
        (["--resume", "absent", "--hyp", "a.yaml"], "goes on with the run's own settings"),
        (["--set", "lr0=[1"], "is not a yaml value"),
        (["--device", "cuda:99"], "is not on this machine"),
        (["--device", "toaster"], "toaster"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    tiny_set: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert run(tiny_set, *options) == 2
    last_line = capsys.readouterr().err.strip().splitlines()[-1]
    assert last_line.startswith("error: ")
    assert message in last_line


def test_an_unknown_option_is_exit_code_2(tiny_set: Path) -> None:
    assert run(tiny_set, "--lr", "1") == 2


# ---- what an epoch shows


def steps_of(run: Path) -> list[int]:
    with (run / "results.csv").open() as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def test_fraction_and_repeat_change_the_steps_of_an_epoch(tiny_set: Path, tmp_path: Path) -> None:
    for name, values, steps in (
        ("half", {"fraction": 0.5}, [1]),  # 4 of 8 images, 4 a step
        ("both", {"fraction": 0.5, "repeat": 3}, [3]),
    ):
        config, hyp = settings(tiny_set, nbs=4, epochs=1, **values)
        train(config, hyp, tmp_path / name)
        assert steps_of(tmp_path / name) == steps
    assert len(list(Path("runs/cache").glob("*-64.npy"))) == 1  # one file of images for all


def test_all_classes_are_trained_as_one(tiny_set: Path, tmp_path: Path) -> None:
    config, hyp = settings(tiny_set, single_cls=True)
    result = train(config, hyp, tmp_path / "run")
    loaded = load_model(result.best_checkpoint)
    assert loaded.names == ("object",) and loaded.model.num_classes == 1


def test_two_sets_are_trained_together(tiny_set: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(tiny_set.read_text().replace("[square, disc]", "[disc, square]"))
    options = ["--model=yolox-pico", "--imgsz=64", "--epochs=1", "--device=cpu", "--no-amp"]
    assert main([f"--data={tiny_set},{other}", *options, "--set", "nbs=4"]) == 0
    assert steps_of(Path("runs/train/data+other")) == [4]  # 16 images


def test_sets_with_other_classes_stop_before_any_work(
    tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(tiny_set.read_text().replace("disc", "ring"))
    assert main([f"--data={tiny_set},{other}", "--model=yolox-pico"]) == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0 and "lacks disc and has ring besides" in error
    assert not list(Path("runs/train").glob("*"))


def test_image_weights_follow_the_last_evaluation_also_after_a_resume(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[float]] = []

    def noted(samples: list[Sample], class_map: list[float]) -> np.ndarray:
        seen.append(list(class_map))
        return image_weights(samples, class_map)

    monkeypatch.setattr("detector.train.image_weights", noted)
    monkeypatch.setattr(DetectionMetrics, "class_map", lambda self: [0.9, self.images / 80])
    config, hyp = settings(tiny_set, epochs=3, nbs=8, image_weights=True, rect=True)
    whole = train(config, hyp, tmp_path / "whole")
    assert seen == [[0, 0], [0.9, 0.1], [0.9, 0.1]]  # 8 images

    def interrupt(epoch: int, metrics: dict[str, float]) -> bool:
        raise KeyboardInterrupt

    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        train(config, hyp, tmp_path / "parts", report=interrupt)
    parts = train(config, hyp, tmp_path / "parts", resume=True)
    assert seen == [[0, 0], [0.9, 0.1], [0.9, 0.1]]
    assert parts.metrics == whole.metrics
    files = [tmp_path / name / "weights" / "last.pt" for name in ("whole", "parts")]
    weights = [read_checkpoint(file)["weights"] for file in files]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_pictures_that_are_not_square_train(tiny_set: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_set.parent, tmp_path / "set")
    for path in (tmp_path / "set" / "images").iterdir():  # 32 x 64
        cv2.imwrite(str(path), cv2.imread(str(path))[:32])
    description = tmp_path / "set" / "data.yaml"
    description.write_text("train: images\nval: images\nnames: [square, disc]\n")
    config, hyp = settings(description, rect=True, mosaic=0.5, epochs=1)
    result = train(config, hyp, tmp_path / "run")
    assert math.isfinite(result.fitness)
