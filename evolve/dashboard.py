"""optuna-dashboard on the storage of a study, on this machine only."""

import sys
from importlib.util import find_spec
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna import Study

from evolve.errors import UserError
from evolve.ui import HOST, free_port

DASHBOARD_PORT = 8080


class _Server(ThreadingMixIn, WSGIServer):
    """A page asks for several things at once, and a slow answer holds up no other."""

    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of requests."""


def check_installed() -> None:
    """Raises: UserError that says what to install."""
    if find_spec("optuna_dashboard") is None:
        raise UserError("optuna-dashboard is not installed: pip install optuna-dashboard")


def serve(study: Study, port: int) -> int:
    """Show a study's storage in optuna-dashboard until Ctrl-C; returns 130 then.

    Raises: UserError if the package is not there or no port is free.
    """
    check_installed()
    from optuna_dashboard import wsgi

    free = free_port(port)
    if free != port:
        print(f"port {port} is in use: taking {free}", file=sys.stderr)
    app = wsgi(study._storage)
    with make_server(HOST, free, app, server_class=_Server, handler_class=_Quiet) as server:
        page = f"http://{HOST}:{free}/dashboard/studies/{study._study_id}"
        print(f"{study.study_name}  {page}\n\nCtrl-C ends it", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 130
    return 0
