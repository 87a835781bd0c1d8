"""The commands: what they print where, and their exit codes."""

import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evolve.__main__ import main
from evolve.mlflow_store import Store

WriteStudy = Callable[..., Path]
EXPORTING = """
from toy_objectives import quadratic as evaluate

def export(checkpoint, formats, out):
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{checkpoint.stem}.{'+'.join(formats or ['best'])}"
    file.write_text(checkpoint.read_text())
    if formats == ["broken"]:
        raise OSError("no space left")
    if formats == ["absent"]:
        error = RuntimeError("TensorRT is not installed: pip install tensorrt")
        error.exit_code = 2
        raise error
    if formats == ["none"]:
        raise ValueError("there is no format none;\\n did you mean onnx?")
    return [file]

def preflight(params, space):
    if params["x"] > 0.9:
        raise ValueError(f"x={params['x']} is too much")
    return {}
"""


def run_main(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Return exit code, standard output and standard error of a command."""
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_run_status_best_and_export(
    write_study: WriteStudy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("shop").mkdir()
    Path("shop/window.py").write_text(EXPORTING)
    Path("shop/train.py").write_text("")
    monkeypatch.syspath_prepend(Path.cwd())
    write_study("shop.window", settings={"epochs": 4})
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    code, out, err = run_main(capsys, "run", "--generations", "3", "--hours", "2", "--json")
    assert code == 0
    summary = json.loads(out)  # one object and nothing else
    assert (summary["generations"], summary["study"], summary["verdict"]) == (
        3,
        "toy",
        "not confirmed",
    )
    assert summary["ended"] == "3 of 3 generations"
    assert 0.0 < summary["hours"] < 0.1
    assert "trial 2: fitness" in err
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before

    code, out, err = run_main(capsys, "run", "--generations", "4", "--strategy", "random")
    assert code == 0
    assert "study toy: 4 of 4 generations" in out
    assert "start 0.1" in out
    assert "not confirmed: every value was measured once (confirm is off)" in out
    assert "python -m shop.train --hyp hyp/best.yaml  # train with these values" in out
    assert "python -m evolve export --format onnx" in out

    code, out, _ = run_main(capsys, "status")
    assert code == 0
    assert "python -m evolve best" in out
    code, whole, _ = run_main(capsys, "status", "--all")
    assert whole.startswith(out.rstrip()) and "importance" in whole[len(out) - 1 :]
    code, out, _ = run_main(capsys, "status", "--json")
    assert json.loads(out)["trials"]["complete"] == 4
    assert json.loads(out)["total"] == 4  # what the last run was to reach

    code, out, _ = run_main(capsys, "best")
    assert yaml.safe_load(out) == yaml.safe_load(Path("hyp/best.yaml").read_text())
    assert yaml.safe_load(out)["train"] == {"epochs": 4}
    code, out, _ = run_main(capsys, "best", "--params")
    assert yaml.safe_load(out).keys() == {"x", "y"}

    code, out, _ = run_main(capsys, "export", "--format", "onnx, engine", "--out", "engines")
    assert (code, out) == (0, "engines/best.onnx+engine\nengines/model_card.md\n")
    assert Path("engines/best.onnx+engine").read_text() == "weights"
    code, out, _ = run_main(capsys, "export", "--json")
    exported = ["runs/evolve/toy/export/best.best", "runs/evolve/toy/export/model_card.md"]
    assert json.loads(out) == {"files": exported}
    code, out, err = run_main(capsys, "export", "--format", "none")
    assert (code, out) == (2, "")
    assert err == "error: there is no format none; did you mean onnx?\n"
    code, out, err = run_main(capsys, "export", "--half")
    assert (code, out) == (2, "")
    assert err == "error: the export of objective shop.window takes no precision=fp16\n"
    code, _, err = run_main(capsys, "export", "--format", "absent")
    assert (code, err) == (2, "error: TensorRT is not installed: pip install tensorrt\n")
    code, _, err = run_main(capsys, "export", "--format", "broken")
    assert (code, err) == (1, "error: export failed: OSError: no space left\n")

    code, out, err = run_main(capsys, "run", "--study", "next", "--set", "start.x=0.95")
    assert (code, out, err) == (2, "", "error: x=0.95 is too much\n")
    assert not Path("runs/evolve/next").exists()  # nothing half-written
    assert Path("runs/evolve/toy/trials.csv").is_file()
    assert Path("runs/evolve/toy/convergence.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--config", "no.yaml"], "no.yaml: no such file"),
        (["run", "--set", "studdy.name=a"], "studdy is not a section; did you mean study?"),
        (
            ["run", "--strategy", "genetics"],
            "strategy genetics is not known; did you mean genetic?",
        ),
        (["run", "--set", "objective=no_such_module"], "there is no module no_such_module"),
        (["run", "--set", "objective=toy_objectives:quadratics"], "did you mean quadratic?"),
        (["run", "--set", "pruning=halving"], "did you mean successive-halving"),
        (["run", "--storage", "nosuchdb://x"], "storage nosuchdb://x cannot be opened"),
        (["run", "--study", "a/b"], "names a folder"),
        (["run", "--hours", "0"], "study.hours=0 must be above 0"),
        (["run", "--gpu-hours", "-1"], "study.gpu_hours=-1 must be above 0"),
        (["run", "--warm-start", "none.yaml"], "warm_start: there is no file none.yaml"),
        (["status"], "there is no study yet: runs/evolve.db does not exist"),
        (["best", "--study", "gone"], "there is no study yet"),
        (["export"], "there is no study yet"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(
    write_study: WriteStudy,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    write_study("broken", generations=0)
    code, out, err = run_main(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_an_earlier_search_is_imported_and_written_again(
    write_study: WriteStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(
        "trained",
        generations=4,
        fitness={"mAP50": 0.5, "F1": 0.5},
        space={"lr0": {"low": 0.001, "high": 0.1, "log": True}},
        start={"lr0": 0.01},
    )
    csv = (
        "metrics/mAP_0.5,metrics/precision,metrics/recall,lr0\n0.9,0.8,0.8,0.02\n0.7,0.5,0.5,0.03\n"
    )
    Path("evolve.csv").write_text(csv)
    code, out, _ = run_main(capsys, "import", "evolve.csv", "--json")
    assert (code, json.loads(out)) == (0, {"study": "toy", "trials": 2})
    code, out, err = run_main(capsys, "import", "evolve.csv")
    assert (code, out) == (0, "0 trials of evolve.csv were added to study toy\n")
    assert "already in the study" in err
    code, out, _ = run_main(capsys, "run", "--json")
    summary = json.loads(out)
    assert (code, summary["generations"]) == (0, 4)
    assert summary["start"]["params"] == {"lr0": 0.01}  # they are measured all the same
    assert summary["best"]["params"] == {"lr0": 0.02}
    code, out, _ = run_main(capsys, "export-txt")
    assert (code, out) == (0, "runs/evolve/toy/evolve.txt\n")
    assert len(Path("runs/evolve/toy/evolve.txt").read_text().splitlines()) == 4
    code, _, err = run_main(capsys, "import", "none.txt")
    assert code == 2
    assert err.startswith("error: none.txt")
    code, _, err = run_main(capsys, "import", "evolve.csv", "--set", "limits.F1=1")
    assert (code, "cannot be held against limits" in err) == (2, True)


def test_sync_writes_what_mlflow_lacks(
    write_study: WriteStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(generations=3)
    assert run_main(capsys, "run")[0] == 0  # without tracking
    code, out, err = run_main(capsys, "sync")
    assert (code, out) == (2, "")
    assert "tracking is off" in err

    write_study(generations=3, tracking={"uri": "sqlite:///runs/mlflow.db"})
    code, out, _ = run_main(capsys, "sync", "--json")
    assert (code, json.loads(out)) == (0, {"study": "toy", "written": 3})
    store = Store(f"sqlite:///{Path('runs/mlflow.db').resolve()}", "evolve")
    runs = store.find({"evolve.kind": "trial"})
    assert sorted(run.data.tags["evolve.generation"] for run in runs) == ["0", "1", "2"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert [version.tags["study"] for version in store.versions("evolve-toy")] == ["toy"]

    code, out, _ = run_main(capsys, "sync")
    assert (code, out) == (0, "0 trials written: MLflow has all of study toy\n")


def test_a_study_without_a_result_has_no_winner(
    write_study: WriteStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study("broken")
    code, out, err = run_main(capsys, "run")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("error: 5 trials in a row failed alike")
    code, _, err = run_main(capsys, "best")
    assert (code, err) == (2, "error: study toy has no complete trial yet\n")
    code, _, err = run_main(capsys, "status", "--study", "tox")
    assert code == 2
    assert "did you mean toy?" in err


def test_zero_generations_measure_the_start_values_alone(
    write_study: WriteStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(confirm={"finalists": 1, "seeds": 1})
    code, out, _ = run_main(capsys, "run", "--generations", "0", "--json")
    assert code == 0
    assert json.loads(out)["start"]["params"] == {"x": 0.1, "y": 0.9}
    assert json.loads(out)["generations"] == 1


@pytest.mark.parametrize("arguments", [[], ["runn"], ["run", "--generations", "-1"], ["ui", "-x"]])
def test_wrong_usage_is_code_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    "command", ["", "run", "status", "best", "export", "import", "export-txt", "ui"]
)
def test_help_shows_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--help"])
    assert stopped.value.code == 0
    assert "python -m evolve run --generations 30" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_exits_with_130_and_goes_on(
    write_study: WriteStudy, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study("stuck", generations=4)
    command = [sys.executable, "-m", "evolve", "run"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(Path("runs/evolve/toy/trials/2/waiting").exists)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert "the same command goes on" in err
    assert "Traceback" not in err
    code, out, _ = run_main(capsys, "run", "--json")
    assert (code, json.loads(out)["generations"]) == (0, 4)


def wait_until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_a_full_disk_is_called_that(
    write_study: WriteStudy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_study()

    def full(*_: object) -> None:
        try:
            raise sqlite3.OperationalError("database or disk is full")
        except sqlite3.OperationalError as error:
            raise RuntimeError("invalid data in the commit") from error

    monkeypatch.setattr("evolve.study.run_study", full)
    code, _, err = run_main(capsys, "run")
    assert code == 1
    assert "error: the disk is full: free some space, and the same command goes on" in err
