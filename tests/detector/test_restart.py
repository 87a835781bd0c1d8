"""A training whose processes are killed and started again, from the command line."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def children(parent: int) -> dict[str, int]:
    """Return the running child processes of `parent` by their rank."""
    found = {}
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        found |= {one[5:].decode(): int(pid) for one in variables if one.startswith(b"RANK=")}
    return found


@pytest.mark.slow  # PyTorch is loaded by five processes
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the ranks in /proc")
def test_a_rank_that_is_killed_is_followed_by_an_attempt_from_the_checkpoint(
    tiny_set: Path,
) -> None:
    small = ["--model", "yolox-pico", "--imgsz", "64", "--epochs", "12", "--set", "nbs=2"]
    again = ["--processes", "2", "--max-restarts", "2", "--name", "run", "--device", "cpu"]
    command = [sys.executable, "-m", "detector.train", "--data", str(tiny_set), *small, *again]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    parent = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        while not Path("runs/train/run/weights/last.pt").exists():
            assert parent.poll() is None, parent.communicate()[1]
            time.sleep(0.05)
        os.kill(children(parent.pid)["1"], signal.SIGKILL)
        errors = parent.communicate(timeout=500)[1]
    finally:
        parent.kill()
    assert parent.returncode == 0, errors
    assert "killed by SIGKILL\nstarting again, restart 1 of 2" in errors
    assert "epochs are done, going on" in errors
    with Path("runs/train/run/results.csv").open() as file:
        assert [int(row["epoch"]) for row in csv.DictReader(file)] == list(range(1, 13))
    assert not Path("runs/train/run-2").exists()
