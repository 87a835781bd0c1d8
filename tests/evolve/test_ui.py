"""Tests of the server of MLflow's pages."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from evolve import ui
from evolve.errors import RunFailed, UserError


def test_a_port_in_use_is_passed_over() -> None:
    with socket.socket() as busy:
        busy.bind((ui.HOST, 0))
        busy.listen()
        port = busy.getsockname()[1]
        assert port < ui.free_port(port) < port + ui.TRIED_PORTS


def test_no_free_port_is_an_error_that_names_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui, "TRIED_PORTS", 1)
    with socket.socket() as busy:
        busy.bind((ui.HOST, 0))
        busy.listen()
        with pytest.raises(UserError, match="--port"):
            ui.free_port(busy.getsockname()[1])


def test_pages_need_a_store() -> None:
    with pytest.raises(UserError, match=r"tracking\.uri"):
        ui.serve(None, 5000, "evolve")


def test_a_broken_store_is_one_line(tmp_path: Path) -> None:
    junk = tmp_path / "mlflow.db"
    junk.write_bytes(b"this is not a database " * 100)
    with pytest.raises(RunFailed, match="not a database"):
        ui.serve(f"sqlite:///{junk}", 5000, "evolve")


def test_a_server_that_does_not_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RunFailed, match="did not start: it printed nothing"):
        ui.run_server(f"sqlite:///{tmp_path}/mlflow.db", None, ui.free_port(5900), lambda: None)


@pytest.mark.slow
def test_the_pages_are_served_until_ctrl_c(tmp_path: Path) -> None:
    """Starts a server, which takes half a minute on a busy machine."""
    uri, port = f"sqlite:///{tmp_path}/mlflow.db", ui.free_port(5800)
    code = f"import sys; from evolve.ui import serve; sys.exit(serve({uri!r}, {port}, 'evolve'))"
    command = [sys.executable, "-W", "ignore", "-u", "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(Path(ui.__file__).parent.parent)}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stdout is not None
        lines = [server.stdout.readline() for _ in range(2)]
        assert lines[1] == f"no study has been recorded yet: http://127.0.0.1:{port}\n"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
            assert answer.read() == b"OK"
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 130
        server.stdout.close()
    finally:
        server.kill()
    time.sleep(0.5)
    assert ui.free_port(port) == port
