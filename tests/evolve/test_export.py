"""The winner as files for others: trained again, taken by its alias, described by a card."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from evolve.__main__ import main
from evolve.mlflow_store import Store

SHOP = """
import json

def evaluate(params, context):
    weights = context.directory / "weights"
    weights.mkdir(parents=True, exist_ok=True)
    for epoch in range(params["epochs"]):
        context.report(epoch, {"fitness": params["x"]})
    (weights / "best.pt").write_text(f"x {params['x']} epochs {params['epochs']}")
    classes = {"cat": {"AP": 0.5, "objects": 12}, "dog": {"AP": 0.7, "objects": 400}}
    (context.directory / "result.json").write_text(json.dumps({"per_class": classes}))
    fitness = params["x"] * params["epochs"] + context.seed % 10 / 1000
    held_out = {"test/mAP50": 0.4321} if "test/" in context.wanted else {}
    return {"fitness": fitness, "mAP50": fitness / 2, **held_out}

def preflight(params, space):
    if not isinstance(params["epochs"], int) or params["epochs"] < 1:
        raise ValueError(f"epochs={params['epochs']} must be a whole number, at least 1")
    if "epoch" in params:
        raise ValueError("epoch is not known; did you mean epochs?")
    return {}

def describe(params):
    return {"data": "cells.yaml", "classes": ["cat", "dog"], "digests": {"val": "d" * 40}}

def export(checkpoint, formats, out, precision="fp32"):
    file = out / f"best.{precision}.onnx"
    file.write_text(checkpoint.read_text())
    return [file]

def measure_speed(checkpoint, files):
    return [{"file": path.name, "median ms": 2.5} for path in (checkpoint, *files)]
"""


@pytest.fixture
def shop(write_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Write an evolve.yaml whose objective exports, into the working folder."""
    Path("corner").mkdir()
    Path("corner/shop.py").write_text(SHOP)
    monkeypatch.syspath_prepend(Path.cwd())
    return write_study(
        "corner.shop",
        generations=4,
        settings={"epochs": 2},
        confirm={"finalists": 1, "seeds": 2},
        tracking={"uri": "sqlite:///runs/mlflow.db", "experiment": "shops"},
    )


def test_the_winner_is_trained_again_found_by_its_alias_and_described(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run"]) == 0
    capsys.readouterr()

    assert main(["export", "--half", "--out", "half"]) == 0
    assert capsys.readouterr().out == "half/best.fp16.onnx\nhalf/model_card.md\n"
    assert Path("half/best.fp16.onnx").read_text().endswith("epochs 2")
    card = Path("half/model_card.md").read_text()
    for text in (
        "| mAP50 | ",  # a mean of two seeds, with its interval
        " ± ",
        "start values: 2)",
        "| data | cells.yaml |",
        f"val `{'d' * 12}`",
        "| dog | 0.7000 | 400 |",
        "these classes by: cat (12).",
        "| best.fp16.onnx | 2.5 |",
        "| test/mAP50 | 0.4321 ± 0.0000 |",
    ):
        assert text in card

    assert main(["export", "--retrain", "epochs=5", "--json"]) == 0
    captured = capsys.readouterr()
    files = json.loads(captured.out)["files"]
    assert Path(files[0]).read_text().endswith("epochs 5")
    assert "epoch 4: fitness" in captured.err
    assert "in MLflow: shops-toy version 2" in captured.err
    card = Path(files[-1]).read_text()
    assert "these weights (epochs=5)" in card
    assert "| test/mAP50 | 0.4321 | 0.4321 ± 0.0000 |" in card

    store = Store(f"sqlite:///{Path('runs/mlflow.db').resolve()}", "shops")
    newest, first = store.versions("shops-toy")
    assert store.aliases("shops-toy") == {"champion": str(newest.version)}
    assert newest.tags["trained_by"] == "retrain epochs=5"
    assert float(newest.tags["fitness"]) > 2 * float(first.tags["fitness"])

    assert main(["export", "--alias", "champion", "--out", "again"]) == 0
    assert Path("again/best.fp32.onnx").read_text().endswith("epochs 5")
    assert f"version {newest.version}" in capsys.readouterr().err
    assert main(["export", "--alias", "prod"]) == 2
    assert capsys.readouterr().err == (
        "error: --alias prod: MLflow's model shops-toy has no such alias; it has champion\n"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--retrain", "epochs"], "--retrain epochs: write it as name=value"),
        (["--retrain", "epochs=0"], "epochs=0 must be a whole number, at least 1"),
        (["--retrain", "epoch=9"], "epoch is not known; did you mean epochs?"),
        (["--alias", "champion"], "--alias champion: there is no MLflow store"),
        (["--trial", "77"], "study toy has no complete trial 77"),
    ],
)
def test_wrong_requests_are_one_line(
    shop: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    off = ["--set", "tracking=none", "--set", "confirm=0"]
    assert main(["run", "--generations", "1", *off]) == 0
    capsys.readouterr()
    assert main(["export", *off, *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err and captured.err.count("\n") == 1
    assert not Path("runs/evolve/toy/retrain").exists()
