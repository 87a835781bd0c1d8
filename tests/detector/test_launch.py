"""Restarts: children here are small scripts that count their attempts and end as told."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from detector import launch
from detector.errors import ConfigError
from detector.launch import Ending, forget, noted, run_directory, supervise

# Each attempt takes the next line of plan.txt: "<exit code or signal name> <last step> <error>".
SCRIPT = """
import json, os, pathlib, signal, struct, sys
plan = pathlib.Path("plan.txt").read_text().splitlines()
done = pathlib.Path("done.txt")
number = len(done.read_text().splitlines()) if done.exists() else 0
with done.open("a") as file:
    file.write(os.environ["DETECTOR_LAUNCH"] + "\\n")
how, step, error = plan[number].split(" ", 2)
notes = pathlib.Path(os.environ["DETECTOR_NOTES"])
(notes / "step").write_bytes(struct.pack("q", int(step)))
if how.isdigit():
    if int(how):
        (notes / "error").write_text(json.dumps({"exit_code": int(how), "error": error}))
    sys.exit(int(how))
os.kill(os.getpid(), getattr(signal, how))
"""


def attempts(*plan: str, restarts: int = 3) -> tuple[int, int]:
    """Return the exit code and the number of attempts of a run whose attempts end as planned."""
    Path("plan.txt").write_text("\n".join(plan))
    code = supervise([sys.executable, "-c", SCRIPT], 1, restarts, pause=0.0)
    return code, len(Path("done.txt").read_text().splitlines())


def test_a_run_that_ends_well_is_not_repeated() -> None:
    assert attempts("0 10 -") == (0, 1)


def test_a_crash_is_repeated_until_the_run_ends_well() -> None:
    assert attempts("1 3 boom", "SIGKILL 7 -", "0 10 -") == (0, 3)


@pytest.mark.parametrize("code", [2, 130])
def test_wrong_input_and_interruptions_are_never_repeated(code: int) -> None:
    assert attempts(f"{code} 3 no such file") == (code, 1)


def test_the_same_error_at_the_same_step_is_not_tried_a_third_time(  # B-64
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR, "detector"):
        assert attempts("1 8 loss is nan", "1 8 loss is nan", "0 10 -") == (1, 2)
    assert "the same error at the same step as before: not started again" in caplog.text


def test_numbers_do_not_make_another_error() -> None:
    assert attempts("1 8 20 MB at 0x7f", "1 8 22.5 MB at 0x8e", "0 10 -") == (1, 2)


def test_the_same_error_later_is_progress() -> None:
    assert attempts("1 8 boom", "1 9 boom", "1 10 boom", "0 20 -") == (0, 4)


def test_another_error_at_the_same_step_is_tried_again() -> None:
    assert attempts("1 -1 no port", "1 -1 no memory", "0 10 -") == (0, 3)


def test_restarts_are_bounded_and_the_last_exit_code_is_returned() -> None:
    # SIGKILL is 9; a shell says 128 + 9 = 137.
    assert attempts("1 1 a", "1 2 a", "SIGKILL 3 -", "0 4 -", restarts=2) == (137, 3)


def test_without_restarts_a_crash_is_final() -> None:
    assert attempts("1 1 a", "0 4 -", restarts=0) == (1, 1)


def test_all_attempts_of_a_launch_know_it() -> None:
    attempts("1 1 a", "0 4 -")
    assert len(set(Path("done.txt").read_text().splitlines())) == 1


def test_the_end_of_one_process_ends_the_others() -> None:
    script = "import os, sys, time; time.sleep(600 * (os.environ['RANK'] == '0')); sys.exit(3)"
    started = time.monotonic()
    assert supervise([sys.executable, "-c", script], 2, 0) == 3
    assert time.monotonic() - started < 300  # not the 600 s that rank 0 would sleep


def test_processes_meet_at_a_free_port() -> None:  # B-22
    ports = [launch._environments(2, "a", Path("."))[0]["MASTER_PORT"] for _ in range(2)]
    for port in ports:
        assert 1024 <= int(port) <= 65535
    ranks = [one["RANK"] for one in launch._environments(3, "a", Path("."))]
    assert ranks == ["0", "1", "2"]


def test_a_request_to_end_is_passed_on_and_nothing_is_started_again() -> None:
    script = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))\n"
        "pathlib.Path('up').touch()\n"
        "time.sleep(600)\n"
    )

    def ask() -> None:
        while not Path("up").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask).start()
    before = signal.getsignal(signal.SIGTERM)
    assert supervise([sys.executable, "-c", script], 1, 5) == 130
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_to_the_whole_job_reaches_a_child_once() -> None:
    Path("child.py").write_text(
        "import pathlib, signal, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: pathlib.Path('got').open('a').write('x'))\n"
        "pathlib.Path('up').touch()\n"
        "time.sleep(3)\n"
    )
    script = (
        "import sys\n"
        "from detector.launch import supervise\n"
        "sys.exit(supervise([sys.executable, 'child.py'], 1, 0))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    parent = subprocess.Popen([sys.executable, "-c", script], env=environment, process_group=0)
    while not Path("up").exists():
        assert parent.poll() is None
        time.sleep(0.02)
    os.killpg(parent.pid, signal.SIGTERM)
    assert parent.wait() == 0  # the child ended well, and so did the run
    assert Path("got").read_text() == "x"


# ---- notes of a child ----------------------------------------------------------------------


def test_a_child_notes_its_steps_and_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(launch.NOTES, str(tmp_path))
    (tmp_path / "step").write_bytes(launch.STEP.pack(-1))
    monkeypatch.setattr(os, "getppid", lambda: 7)  # in a container it may be 1 from the start
    with pytest.raises(ConfigError), noted() as note_step:
        assert not note_step(41)
        assert not note_step(42)
        monkeypatch.setattr(os, "getppid", lambda: 1)  # the parent was killed
        assert note_step(42)
        raise ConfigError("batch=0")
    assert launch.STEP.unpack((tmp_path / "step").read_bytes()) == (42,)
    note = json.loads((tmp_path / "error").read_text())
    assert note == {"exit_code": 2, "error": "ConfigError: batch=0"}
    with pytest.raises(KeyboardInterrupt), noted():  # a later error of another process
        raise KeyboardInterrupt
    assert json.loads((tmp_path / "error").read_text()) == note


def test_without_a_parent_nothing_is_noted(tmp_path: Path) -> None:
    with noted() as note_step:
        note_step(1)
    assert list(tmp_path.iterdir()) == []


def test_endings_are_equal_up_to_numbers() -> None:
    ending = Ending(1, "RuntimeError: tried 3.5e-2 GB", 4)
    assert ending.repeats(Ending(1, "RuntimeError: tried 17 GB", 4))
    assert not ending.repeats(Ending(1, "RuntimeError: tried 17 GB", 5))
    assert not ending.repeats(Ending(137, "RuntimeError: tried 17 GB", 4))
    assert not ending.repeats(Ending(1, "RuntimeError: took 17 GB", 4))
    assert not ending.repeats(None)


# ---- the run's folder ----------------------------------------------------------------------


def test_attempts_of_one_launch_share_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = tmp_path / "run"
    assert run_directory(wanted) == (wanted, False)
    monkeypatch.setenv(launch.LAUNCH, "first")
    assert run_directory(wanted) == (tmp_path / "run-2", False)
    assert run_directory(wanted) == (tmp_path / "run-2", True)
    monkeypatch.setenv(launch.LAUNCH, "second")
    assert run_directory(wanted) == (tmp_path / "run-3", False)


def test_a_folder_is_forgotten_only_if_the_run_left_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(launch.LAUNCH, "first")
    directory, _ = run_directory(tmp_path / "run")
    forget(directory)
    assert not directory.exists()
    directory, _ = run_directory(tmp_path / "run")
    (directory / "hyp.yaml").touch()
    forget(directory)
    assert run_directory(tmp_path / "run") == (directory, True)


@pytest.mark.parametrize("run_id", ["none", "3f6c"])
def test_restarts_of_torchrun_share_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_id: str
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", run_id)
    assert run_directory(tmp_path / "run") == (tmp_path / "run", False)
    assert run_directory(tmp_path / "run") == (tmp_path / "run", True)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
    assert run_directory(tmp_path / "run") == (tmp_path / "run-2", False)
