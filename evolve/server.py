"""Addresses of database servers: their driver, and what a connection to one must promise.

A process that is cut off must not hold up the others: the server ends a transaction that stands
idle, and a client finds out within half a minute that nobody answers.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from evolve.errors import StudyError, did_you_mean

IDLE_SECONDS = 30  # that a transaction may stand still before the server ends it
LOST_SECONDS = 30  # after which a silent connection counts as cut
CONNECT_SECONDS = 10
# Python's modules that speak to a server, the preferred one first, by SQLAlchemy's name for it.
DRIVERS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "postgresql": (("psycopg", "psycopg"), ("psycopg2", "psycopg2")),
    "mysql": (("pymysql", "pymysql"), ("mysqldb", "MySQLdb")),
    "mariadb": (("pymysql", "pymysql"), ("mysqldb", "MySQLdb")),
}
ALIASES = {"postgres": "postgresql"}


def server_url(url: str) -> tuple[str, dict[str, Any]]:
    """Return the URL with its driver, and the options of SQLAlchemy's engine for it.

    Raises: StudyError for a kind of storage that is unknown, or whose driver is not installed.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise StudyError(
            f"storage {url} is no address; allowed: sqlite:///FILE, postgresql://, mysql://, grpc://"
        ) from error
    kind, _, driver = parsed.drivername.partition("+")
    kind = ALIASES.get(kind, kind)
    if kind not in DRIVERS:
        known = ("sqlite", "grpc", *DRIVERS)
        raise StudyError(
            f"storage {hidden(url)} cannot be opened: {kind} is not known"
            f"{did_you_mean(kind, known)}"
        )
    if not driver:
        driver = next((name for name, module in DRIVERS[kind] if find_spec(module)), "")
    if not driver:
        extra = "postgresql" if kind == "postgresql" else "mysql"
        raise StudyError(
            f"storage {hidden(url)} needs a driver: pip install 'evolve-detector[{extra}]'"
        )
    named = parsed.set(drivername=f"{kind}+{driver}")
    return named.render_as_string(hide_password=False), _options(driver)


def hidden(url: str) -> str:
    """Return a storage's address without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url


def _options(driver: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    if driver.startswith("psycopg"):  # Source: PostgreSQL's libpq, connection parameters
        arguments = {
            "connect_timeout": CONNECT_SECONDS,
            "keepalives": 1,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": LOST_SECONDS * 1000,
            "options": f"-c idle_in_transaction_session_timeout={IDLE_SECONDS * 1000}"
            " -c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3",
        }
    if driver == "pymysql":
        arguments = {"connect_timeout": CONNECT_SECONDS, "read_timeout": 4 * LOST_SECONDS}
    return {
        "pool_pre_ping": True,
        "pool_size": 1,  # a server of 100 connections serves 50 processes
        "max_overflow": 10,
        "connect_args": arguments,
    }
