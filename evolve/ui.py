"""MLflow's pages on this machine only: a server that ends with the command that started it."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, Any

from evolve.errors import RunFailed, UserError
from evolve.mlflow_store import Store, artifact_folder, fault_line, is_server, limits, store_uri

HOST = "127.0.0.1"
UI_PORT = 5000
TRIED_PORTS = 20
SHOWN_STUDIES = 3
START_SECONDS = 120.0
STOP_SECONDS = 10.0


def serve(uri: str | None, port: int, experiment: str) -> int:
    """Show the MLflow pages of a store on this machine until Ctrl-C; returns an exit code.

    Prints the links of the newest three studies once the pages are there. Raises: UserError if no
    port is free, RunFailed if the server does not come up.
    """
    address = store_uri(uri)
    if address is None:
        raise UserError("tracking is off: name a store under tracking.uri to have pages of it")
    try:
        with limits():
            store = Store(address, experiment)
    except Exception as error:  # of MLflow, the database, the network: it is not usable
        raise RunFailed(fault_line(address, error)) from error
    if is_server(address):
        _print_links(store, address.rstrip("/"))
        return 0
    free = free_port(port)
    if free != port:
        print(f"port {port} is in use: taking {free}", file=sys.stderr)
    base = f"http://{HOST}:{free}"
    return run_server(address, artifact_folder(address), free, lambda: _print_links(store, base))


def free_port(wanted: int) -> int:
    """Return the first free port from `wanted` on. Raises: UserError if twenty are in use."""
    for port in range(wanted, wanted + TRIED_PORTS):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except (OSError, OverflowError):
                continue
            return port
    raise UserError(
        f"ports {wanted} to {wanted + TRIED_PORTS - 1} are all in use; take another --port"
    )


def run_server(uri: str, artifacts: Path | None, port: int, announce: Callable[[], None]) -> int:
    """Serve the store at `uri` until Ctrl-C; `announce` is called once the pages are there.

    Returns 130 after Ctrl-C or SIGTERM. Raises: RunFailed if the server does not come up or dies.
    """
    with tempfile.TemporaryFile("w+") as output, _ended_by_sigterm():
        server = _start(uri, artifacts, port, output)
        try:
            _wait_until_up(server, port, output)
            announce()
            server.wait()
        except KeyboardInterrupt:
            return 130
        finally:
            _stop(server)
        raise RunFailed(f"the MLflow server ended by itself: {_last_line(output)}")


def _start(uri: str, artifacts: Path | None, port: int, output: IO[str]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port)]
    command += ["--workers", "1"]
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # else eight more processes, 0.5 GB
        "MLFLOW_BACKEND_STORE_URI": uri,  # not an argument: it may hold a password
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONWARNINGS": "ignore",
    }
    if artifacts:
        environment["MLFLOW_ARTIFACTS_DESTINATION"] = str(artifacts)
    # In a session of its own: Ctrl-C reaches us alone, and we end the server and its children.
    return subprocess.Popen(
        command, env=environment, stdout=output, stderr=output, text=True, start_new_session=True
    )


def _wait_until_up(server: "subprocess.Popen[str]", port: int, output: IO[str]) -> None:
    straight = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RunFailed(f"the MLflow server did not start: {_last_line(output)}")
        with suppress(urllib.error.URLError, OSError):
            straight.open(f"http://{HOST}:{port}/health", timeout=2).close()
            return
        time.sleep(0.2)
    raise RunFailed(
        f"the MLflow server was not up after {START_SECONDS:.0f} s: {_last_line(output)}"
    )


def _stop(server: "subprocess.Popen[str]") -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            server.wait(STOP_SECONDS)
            return


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the server like Ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> Any:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _last_line(output: IO[str]) -> str:
    output.seek(0)
    lines = [line.strip() for line in output.read().splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"


def _print_links(store: Store, base: str) -> None:
    with limits():
        studies = store.find({"evolve.kind": "study"})[:SHOWN_STUDIES]
        for study in studies:
            print(f"\n{study.info.run_name}")
            for label, address in store.links(base, study.info.run_id):
                print(f"  {label:22} {address}")
    if not studies:
        print(f"\nno study has been recorded yet: {base}")
    print("\nCtrl-C ends it", flush=True)
