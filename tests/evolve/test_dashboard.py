"""`evolve ui --optuna`: optuna-dashboard, or a stand-in of it, on the storage of a study."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

import evolve
from evolve.__main__ import main
from evolve.config import load_config
from evolve.storage import open_study

WriteStudy = Callable[..., Path]
STAND_IN = """
def wsgi(storage):
    names = ",".join(study.study_name for study in storage.get_all_studies())

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [f"{environ['PATH_INFO']} {names}".encode()]

    return app
"""


def test_what_is_missing_is_said_in_one_line(
    write_study: WriteStudy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_study()
    monkeypatch.setattr("evolve.dashboard.find_spec", lambda _: None)
    assert main(["ui", "--optuna"]) == 2
    said = capsys.readouterr().err
    assert said == "error: optuna-dashboard is not installed: pip install optuna-dashboard\n"


def test_a_study_that_is_not_there_is_said_so(
    write_study: WriteStudy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_study()
    monkeypatch.setattr("evolve.dashboard.find_spec", lambda _: True)
    assert main(["ui", "--optuna"]) == 2
    assert "there is no study yet" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_study_is_served_on_a_free_port_until_it_is_ended(
    write_study: WriteStudy, number: signal.Signals
) -> None:
    write_study()
    open_study(load_config("evolve.yaml"))
    folder = Path("stand-in")
    folder.mkdir()
    (folder / "optuna_dashboard.py").write_text(STAND_IN)
    root = Path(evolve.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{root}"}
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        command = [sys.executable, "-m", "evolve", "ui", "--optuna", "--port", str(port)]
        server = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            found = re.fullmatch(r"toy  (http://127\.0\.0\.1:(\d+)/dashboard/studies/1)\n", line)
            assert found is not None
            assert int(found[2]) != port
            straight = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with straight.open(found[1], timeout=10) as answer:
                assert answer.read() == b"/dashboard/studies/1 toy"
            server.send_signal(number)
            _, err = server.communicate(timeout=20)
        finally:
            server.kill()
    assert server.returncode == 130
    assert err == f"port {port} is in use: taking {found[2]}\n"
