"""The YOLOv3 family from data to detections: training, checkpoints, prediction, export, colours."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detector.backends import load_backend
from detector.checkpoint import load_model, load_weights, model_content, save_checkpoint
from detector.config import Hyp, TrainConfig, resolve
from detector.darknet_weights import save_darknet
from detector.evaluate import evaluate
from detector.export import export
from detector.export import main as export_main
from detector.families import build_family
from detector.models import build_model
from detector.models.darknet_cfg import read_cfg
from detector.objective import preflight
from detector.predict import predict
from detector.train import main as train_main
from detector.train import train

TINY = "yolov3-tiny:width=0.0625"
PLAIN = {"mosaic": 0.0, "scale": 0.1, "warmup_epochs": 1, "imgsz": 64, "batch": 4, "device": "cpu"}
NARROW = Path(__file__).with_name("narrow.cfg")  # every kind of block, two heads
SHRUNKEN = Path(__file__).with_name("shrunken.cfg")  # YOLOv3-SPP in small


def settings(data: Path, **values: Any) -> tuple[TrainConfig, Hyp]:
    return resolve({**PLAIN, "model": TINY, "data": str(data), "epochs": 1, **values})


@pytest.mark.parametrize(
    ("spp", "xywh"), [(False, 0), (True, 0), (True, 1)], ids=["plain", "spp", "spp, xywh"]
)
def test_eight_images_are_learned_by_heart(
    spp: bool, xywh: int, tiny_set: Path, tmp_path: Path
) -> None:
    text = SHRUNKEN.read_text()
    if not spp:
        text = text[: text.index("# SPP begins")] + text[text.index("# SPP ends") :]
    (tmp_path / "net.cfg").write_text(text)
    still = {"scale": 0, "translate": 0, "hsv_h": 0, "hsv_s": 0, "hsv_v": 0, "fliplr": 0}
    config, hyp = settings(
        tiny_set,
        model=str(tmp_path / "net.cfg"),
        xywh=xywh,
        epochs=40,
        bn_momentum=0.1,  # 80 steps are few: the statistics must keep up with the weights
        val_every=40,
        ema_decay=0.9,
        ema_tau=20,
        **still,
    )
    assert train(config, hyp, tmp_path / "run").metrics["mAP50"] > 0.9


@pytest.fixture(scope="module")
def run(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An epoch of a cfg network with anchors of the data: the folder of the run."""
    folder = tmp_path_factory.mktemp("run")
    config, hyp = settings(tiny_set, model=str(NARROW), anchors="auto")
    train(config, hyp, folder)
    return folder


def test_a_checkpoint_needs_no_cfg_file(run: Path, tiny_set: Path, tmp_path: Path) -> None:
    # the checkpoint is moved to where no narrow.cfg is, and the tests run in a folder of their own
    moved = tmp_path / "moved.pt"
    moved.write_bytes((run / "weights" / "best.pt").read_bytes())
    loaded = load_model(moved)
    assert loaded.model.name == "narrow.cfg"
    sides = [side for head in loaded.model.anchors for size in head for side in size]
    assert max(sides) < 30  # objects of the set have 12 to 21 px; the file's anchors go up to 60
    picture = tiny_set.parent / "images" / "000.png"
    assert predict(moved, picture)[0].names == ("square", "disc")
    (onnx,) = export(moved, "onnx", out=tmp_path)
    images = torch.rand(1, 3, 64, 64) * 255
    torch.testing.assert_close(
        load_backend(onnx.path)(images), load_backend(moved)(images), atol=1e-3, rtol=1e-4
    )


def test_a_checkpoint_goes_to_darknet_and_comes_back(run: Path, tmp_path: Path) -> None:
    best = run / "weights" / "best.pt"
    (file,) = export(best, "darknet", out=tmp_path)
    assert (file.path, file.sidecar) == (tmp_path / "best.weights", tmp_path / "best.cfg")
    loaded = load_model(best)
    again = build_model(str(file.sidecar), 2).eval()
    assert again.anchors == loaded.model.anchors
    assert read_cfg(tmp_path / "best.cfg").width == 64  # as trained
    load_weights(again, file.path)
    images = torch.rand(2, 3, 64, 64) * 255
    with torch.no_grad():
        for ours, theirs in zip(loaded.model(images), again(images), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_other_families_are_not_written_for_darknet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tmp_path / "a.pt", model_content(build_model("yolox-pico", 2), ("a", "b"), 64))
    assert export_main(["--weights", str(tmp_path / "a.pt"), "--format", "darknet"]) == 2
    assert "--format darknet: yolox-pico is no Darknet network" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_a_resumed_run_with_its_own_anchors_goes_on(tiny_set: Path, tmp_path: Path) -> None:
    config, hyp = settings(tiny_set, anchors="auto", epochs=2)
    whole = train(config, hyp, tmp_path / "whole")
    train(config, hyp, tmp_path / "parts", report=lambda epoch, metrics: epoch == 1)
    assert train(config, hyp, tmp_path / "parts", resume=True).metrics == whole.metrics


def test_the_command_starts_from_darknet_weights(
    tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_darknet(build_model(TINY, 80), tmp_path / "coco.weights")
    command = ["--data", str(tiny_set), "--model", TINY, "--imgsz", "64", "--epochs", "1"]
    command += ["--device", "cpu", "--set", "mosaic=0"]
    assert train_main([*command, "--weights", str(tmp_path / "coco.weights")]) == 0
    told = capsys.readouterr().err
    assert "re-initialised: heads.0.conv.weight, heads.0.conv.bias, heads.7.conv.weight" in told
    save_darknet(build_model(TINY, 2), tmp_path / "cut.weights")
    (tmp_path / "cut.weights").write_bytes((tmp_path / "cut.weights").read_bytes()[:-400])
    assert train_main([*command, "--weights", str(tmp_path / "cut.weights")]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "cut.weights: ends inside layer" in last


def test_weights_for_other_anchors_are_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network = build_model(TINY, 2)
    save_checkpoint(tmp_path / "a.pt", model_content(network, ("a", "b"), 64))
    load_weights(build_model(TINY, 2), tmp_path / "a.pt")
    assert "anchors" not in caplog.text
    network.set_anchors([((7, 8), (9, 10), (11, 12)), ((1, 2), (3, 4), (5, 6.5))])
    save_checkpoint(tmp_path / "b.pt", model_content(network, ("a", "b"), 64))
    load_weights(build_model(TINY, 2), tmp_path / "b.pt")
    assert "b.pt was trained with --anchors 7,8,9,10,11,12,1,2,3,4,5,6.5, here" in caplog.text


def test_the_backbone_can_be_frozen(tiny_set: Path, tmp_path: Path) -> None:
    save_darknet(build_model(TINY, 2), tmp_path / "a.weights")
    config, hyp = settings(tiny_set, weights=str(tmp_path / "a.weights"), freeze="backbone")
    trained = load_model(train(config, hyp, tmp_path / "run").best_checkpoint).model
    save_darknet(trained, tmp_path / "b.weights")
    first, second = ((tmp_path / f"{name}.weights").read_bytes() for name in "ab")
    backbone = sum(
        weight.numel()
        for name, weight in trained.backbone.state_dict().items()
        if not name.endswith("num_batches_tracked")
    )
    assert first[: 20 + 4 * backbone] == second[: 20 + 4 * backbone]
    assert first != second


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "absent.cfg"], "model=absent.cfg: no such file"),
        (["--model", "bad.cfg"], "bad.cfg:4: [reorg] is not a known section"),
        (["--model", TINY, "--anchors", "1,2,3"], "anchors=1,2,3: "),
        (["--model", "yolox-pico", "--anchors", "auto"], "yolox-pico has no anchors"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    tiny_set: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    Path("bad.cfg").write_text("[net]\nwidth=64\nheight=64\n[reorg]\nstride=2\n")
    assert train_main(["--data", str(tiny_set), "--imgsz", "64", "--epochs", "1", *options]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert not list(Path("runs/train").glob("*"))


# ---- colours


def seen_by(network: nn.Module) -> list[Tensor]:
    """A list that collects what the first layer of a Darknet network is given."""
    seen: list[Tensor] = []
    network.layers[0].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    return seen


BLUE = np.zeros((64, 64, 3), dtype=np.uint8)
BLUE[..., 0] = 255  # BGR, as OpenCV reads pictures


def test_the_network_gets_rgb_in_training_and_detection() -> None:
    network = build_model(TINY, 2).eval()
    seen = seen_by(network)
    family = build_family(network, Hyp())
    images = torch.from_numpy(BLUE).permute(2, 0, 1)[None].float()
    family.losses(images, [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}])
    family.detect(images, 0.5, 0.5, 10)
    assert [inputs[0, :, 0, 0].tolist() for inputs in seen] == [[0, 0, 1]] * 2


def test_the_network_gets_rgb_in_prediction_and_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    colours: list[list[float]] = []

    def noted(images: Tensor) -> Tensor:
        colours.append(images[0, :, 0, 0].tolist())
        return torch.zeros(len(images), 1, 7)

    network = build_model(TINY, 2)
    save_checkpoint(tmp_path / "a.pt", model_content(network, ("a", "b"), 64))
    backend = dataclasses.replace(load_backend(tmp_path / "a.pt"), run=noted)
    assert backend.input_convention == "rgb-255"
    predict(backend, BLUE)
    (tmp_path / "set" / "images").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "set" / "images" / "0.png"), BLUE)
    (tmp_path / "set" / "data.yaml").write_text("train: images\nval: images\nnames: [a, b]\n")
    monkeypatch.setattr("detector.evaluate.load_backend", lambda path, device: backend)
    evaluate("a.pt", str(tmp_path / "set" / "data.yaml"), split="val")
    assert [colour for colour in colours if any(colour)] == [[0, 0, 255]] * 2


# ---- search


def test_a_preflight_names_what_is_dead(tiny_set: Path) -> None:
    params = {**PLAIN, "model": TINY, "data": str(tiny_set)}
    wide = {"low": 0.0, "high": 10.0}
    space = {name: wide for name in ("giou", "xy", "wh", "box", "obj_pw")}
    space["obj_pw"] = {"low": 0.1, "high": 10.0}
    found = preflight(params, space)
    assert set(found) == {"xy", "wh", "box"}
    assert found["xy"] == "xywh is 0: giou acts instead"
    assert set(preflight({**params, "xywh": 1}, space)) == {"giou", "box"}
    chosen = preflight(params, {**space, "xywh": {"choices": [0, 1]}})
    assert chosen["xy"] == {"when": {"xywh": [1]}, "reason": "xywh is 0: giou acts instead"}
    assert set(preflight(params, {**space, "xywh": {"low": 0, "high": 1}})) == {"box"}
    models = {**space, "model": {"choices": [TINY, "yolox-pico"]}}
    assert preflight(params, models)["giou"]["when"] == {"model": [TINY]}


def test_a_cfg_has_the_start_values_of_the_family() -> None:
    assert Hyp.for_model("my/net.cfg") == Hyp.for_model("yolov3") != Hyp()


def test_anchors_are_part_of_the_settings_of_a_run(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    assert result["epochs"] == 1
    assert "anchors: auto" in (run / "hyp.yaml").read_text()
