"""Checkpoints of other systems' weights."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from detector.adopt import adopt, main
from detector.backends import load_backend
from detector.checkpoint import load_model
from detector.darknet_weights import save_darknet
from detector.decode import decode
from detector.models import build_model

CFG = Path(__file__).with_name("narrow.cfg")


def darknet_file(path: Path) -> nn.Module:
    """Write the weights of a Darknet network with statistics of its own; return the network."""
    torch.manual_seed(0)
    model = build_model(str(CFG), 2)
    with torch.no_grad():
        model(torch.rand(4, 3, 64, 64) * 255)  # in train mode: the norms' statistics move
    save_darknet(model, path)
    return model.eval()


def test_a_darknet_network_becomes_a_checkpoint_with_the_same_answers(tmp_path: Path) -> None:
    model = darknet_file(tmp_path / "a.weights")
    adopt(str(CFG), tmp_path / "a.weights", ("cat", "dog"), tmp_path / "a.pt")
    backend = load_backend(tmp_path / "a.pt")
    assert (backend.names, backend.imgsz) == (("cat", "dog"), 64)  # 64: of the cfg
    images = torch.rand(2, 3, 64, 64) * 255
    with torch.no_grad():
        torch.testing.assert_close(backend(images), decode(model, model(images)))


def test_an_official_yolox_file_becomes_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": build_model("yolox-pico", 3).state_dict()}, tmp_path / "a.pth")
    (tmp_path / "a.names").write_text("cat\ndog\n\nbird\n")
    options = ["--model", "yolox-pico", "--weights", str(tmp_path / "a.pth")]
    options += ["--names", str(tmp_path / "a.names"), "--out", str(tmp_path / "a.pt")]
    assert main([*options, "--imgsz", "96", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["names"] == ["cat", "dog", "bird"]
    loaded = load_model(tmp_path / "a.pt")
    assert (loaded.names, loaded.imgsz) == (("cat", "dog", "bird"), 96)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--names": "cat"}, "a.weights: fills 30 of 34 tensors"),  # all but 2 heads
        ({"--names": "cat"}, "with 1 classes; not heads.6.conv.weight, heads.6.conv.bias"),
        ({"--names": "cat,cat"}, "--names: there is a name twice, or an empty one"),
        ({"--names": "cat,"}, "--names: there is a name twice, or an empty one"),
        ({"--names": "absent.names"}, "--names absent.names: not a readable file of names"),
        ({"--names": "empty.names"}, "--names empty.names: holds no names"),
        ({"--out": "a.onnx"}, "--out a.onnx: a checkpoint is called *.pt"),
        ({"--model": "absent.cfg"}, "model=absent.cfg: no such file"),
        ({"--weights": "absent.weights"}, "absent.weights: no such weight file"),
        ({"--imgsz": "50"}, "imgsz=50 must be a multiple of 32"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], changed: dict[str, str], message: str
) -> None:
    darknet_file(Path("a.weights"))
    Path("empty.names").write_text("\n")
    options = {"--model": str(CFG), "--weights": "a.weights", "--names": "a,b", "--out": "a.pt"}
    assert main([part for pair in (options | changed).items() for part in pair]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error.splitlines()[-1]
    assert not Path("a.pt").exists() and not Path("a.onnx").exists()
