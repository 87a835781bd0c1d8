"""A PostgreSQL server of our own for tests and measurements: in a folder, on a port, no password.

The programs are those of Debian's package `postgresql`. A server refuses to run as root: then it is
started as the user `postgres`.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

USER, DATABASE = "postgres", "evolve"


def programs() -> Path | None:
    """Return the folder of initdb, pg_ctl and postgres; None if they are not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    path = found[-1] if found else shutil.which("pg_ctl")
    return Path(path).parent if path else None


class Postgres:
    """A server; use it as a context manager. `host` is the one address that it listens on."""

    def __init__(
        self, host: str = "127.0.0.1", port: int | None = None, prefix: Sequence[str] = ()
    ):
        where = programs()
        if where is None:
            raise RuntimeError("PostgreSQL is not installed: apt-get install postgresql")
        self._programs, self._prefix = where, list(prefix)  # prefix: such as `ip netns exec a`
        self.host, self.port = host, port or _free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="evolve-postgres-"))

    @property
    def url(self) -> str:
        """Address of the database as a study's storage."""
        return f"postgresql://{USER}@{self.host}:{self.port}/{DATABASE}"

    def __enter__(self) -> "Postgres":
        if os.geteuid() == 0:
            shutil.chown(self.folder, USER, USER)
        data = str(self.folder / "data")
        self._run("initdb", "-D", data, "-U", USER, "-A", "trust", "-E", "UTF8", "--no-sync")
        with (self.folder / "data" / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 0.0.0.0/0 trust\n")
        self.start()
        self._run("createdb", "-h", self.host, "-p", str(self.port), "-U", USER, DATABASE)
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop("immediate", check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = f"-c listen_addresses={self.host} -p {self.port} -c max_connections=200"
        options += f" -c unix_socket_directories={self.folder}"
        log = str(self.folder / "log")
        data = str(self.folder / "data")
        self._run("pg_ctl", "-D", data, "-w", "-l", log, "-o", options, "start")

    def stop(self, mode: str = "fast", check: bool = True) -> None:
        """Stop the server: `fast` ends all sessions, `immediate` is a crash."""
        data = str(self.folder / "data")
        self._run("pg_ctl", "-D", data, "-w", "-m", mode, "stop", check=check)

    def restart(self, mode: str = "immediate", pause: float = 0.0) -> None:
        """Stop the server, let it lie for `pause` seconds, and start it again."""
        self.stop(mode)
        time.sleep(pause)
        self.start()

    def complete(self) -> int | None:
        """Return how many trials of all studies are complete; None while the server is away."""
        query = "select count(*) from trials where state = 'COMPLETE'"
        connect = ["-h", self.host, "-p", str(self.port), "-U", USER, "-At", DATABASE]
        command = [*self._prefix, str(self._programs / "psql"), *connect, "-c", query]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
        return int(done.stdout) if done.returncode == 0 and done.stdout.strip() else None

    def _run(self, program: str, *arguments: str, check: bool = True) -> None:
        command = [*self._prefix, str(self._programs / program), *arguments]
        if os.geteuid() == 0:
            command = [*self._prefix, "runuser", "-u", USER, "--", *command[len(self._prefix) :]]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise RuntimeError(f"{program}: {done.stderr.strip() or done.stdout.strip()}")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
