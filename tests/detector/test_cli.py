import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from detector.cli import add_common, new_directory, run_command
from detector.errors import DataError, TrainingDiverged


def run(body: Any, *argv: str) -> int:
    parser = argparse.ArgumentParser("demo")
    add_common(parser)
    return run_command(body, parser, list(argv))


def test_json_is_the_only_thing_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda options: {"answer": 42}, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"answer": 42}


def test_without_json_standard_output_stays_empty(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda options: {"answer": 42}) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("a.txt:3: class 7 is out of range"), 2),
        (TrainingDiverged(5, {"box": 1.0}), 1),
        (OSError(28, "No space left on device"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_is_one_line_and_its_own_exit_code(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int
) -> None:
    def body(options: argparse.Namespace) -> None:
        raise error

    assert run(body) == code
    output = capsys.readouterr()
    assert output.out == ""
    assert len(output.err.strip().splitlines()) == 1


def test_the_body_can_choose_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda options: {"exit_code": 2, "kept": "a.onnx"}, "--json") == 2
    assert json.loads(capsys.readouterr().out) == {"kept": "a.onnx"}


def test_help_is_exit_code_0_and_an_unknown_option_2() -> None:
    assert run(lambda options: None, "--help") == 0
    assert run(lambda options: None, "--wrong") == 2


def test_an_existing_name_gets_a_number(tmp_path: Path) -> None:
    names = [new_directory(tmp_path / "run").name for _ in range(3)]
    assert names == ["run", "run-2", "run-3"]
