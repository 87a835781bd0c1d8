"""A study's storage behind gRPC: many processes, few connections to the database.

`serve` stands in front of a database; `grpc://host:port` is the storage of everybody else. Beside
Optuna's own service it hands out turns: a stream that says when the turn has come, and that gives
it back when it ends, also with the death of the process that had it.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import optuna
from optuna.storages import BaseStorage, GrpcStorageProxy

from evolve.errors import StudyError
from evolve.patience import Away, Patience, Turn, patient, shared_storage

GRPC = "grpc://"
PORT = 13000
THREADS = 256  # each process that waits for its turn holds one
TURNS = "evolve.Turns"
READY_SECONDS = 20.0


class ProxyStorage(Patience, GrpcStorageProxy):
    """Optuna's client of a storage proxy; it waits while the proxy is away."""

    create_new_study = patient(GrpcStorageProxy.create_new_study)
    delete_study = patient(GrpcStorageProxy.delete_study)
    set_study_user_attr = patient(GrpcStorageProxy.set_study_user_attr)
    set_study_system_attr = patient(GrpcStorageProxy.set_study_system_attr)
    get_study_id_from_name = patient(GrpcStorageProxy.get_study_id_from_name)
    get_study_name_from_id = patient(GrpcStorageProxy.get_study_name_from_id)
    get_study_directions = patient(GrpcStorageProxy.get_study_directions)
    get_study_user_attrs = patient(GrpcStorageProxy.get_study_user_attrs)
    get_study_system_attrs = patient(GrpcStorageProxy.get_study_system_attrs)
    get_all_studies = patient(GrpcStorageProxy.get_all_studies)
    create_new_trial = patient(GrpcStorageProxy.create_new_trial)
    set_trial_param = patient(GrpcStorageProxy.set_trial_param)
    set_trial_state_values = patient(GrpcStorageProxy.set_trial_state_values)
    set_trial_intermediate_value = patient(GrpcStorageProxy.set_trial_intermediate_value)
    set_trial_user_attr = patient(GrpcStorageProxy.set_trial_user_attr)
    set_trial_system_attr = patient(GrpcStorageProxy.set_trial_system_attr)
    get_trial = patient(GrpcStorageProxy.get_trial)
    get_all_trials = patient(GrpcStorageProxy.get_all_trials)

    @contextmanager
    def turn(self, study_id: int) -> Iterator[Turn]:
        """Wait until nobody else has a turn at this study; `check` raises Away if it is lost."""
        call = self._channel.unary_stream(f"/{TURNS}/Take")(str(study_id).encode())
        try:
            with self._held(call) as turn:
                yield turn
        finally:
            call.cancel()

    @contextmanager
    def _held(self, call: Any) -> Iterator[Turn]:
        try:
            next(call)
        except Exception as error:
            self.waited(self.get_all_studies)  # until the proxy answers again
            raise Away(str(error)) from error

        def check() -> None:
            if not call.is_active():
                raise Away("the proxy ended the turn")

        with self._in_turn():
            yield Turn(check)


def open_proxy(url: str) -> BaseStorage:
    """Connect to a storage proxy at grpc://host:port. Raises: StudyError if nobody answers."""
    _check_installed()
    parts = urlsplit(url)
    if not parts.hostname:
        raise StudyError(f"storage {url} must be grpc://HOST:PORT")
    storage = ProxyStorage(host=parts.hostname, port=parts.port or PORT)
    try:
        storage.wait_server_ready(READY_SECONDS)
    except ConnectionError as error:
        raise StudyError(
            f"storage {url}: nobody answers; `python -m evolve proxy` serves a database there"
        ) from error
    return storage


def serve(storage: BaseStorage, host: str, port: int) -> Any:
    """Start a proxy in front of a server's database and return gRPC's server."""
    _check_installed()
    from optuna.storages._grpc.server import make_server

    shared = shared_storage(storage)
    if shared is None:
        raise StudyError("a proxy stands in front of a database server, not of SQLite")
    server = make_server(storage, host, port, ThreadPoolExecutor(THREADS))
    server.add_generic_rpc_handlers((_turns(shared),))
    server.start()
    return server


def _turns(storage: Patience) -> Any:
    """Return the service that hands out turns."""
    import threading

    import grpc

    def take(request: bytes, context: Any) -> Iterator[bytes]:
        over = threading.Event()
        if not context.add_callback(over.set):
            return
        with storage.turn(int(request)) as turn:
            storage._turn = None  # this thread does nothing else, others serve the one who has it
            if not over.is_set():
                yield b"yours"
            while not over.wait(1.0):
                turn.check()

    handler = grpc.unary_stream_rpc_method_handler(take)
    return grpc.method_handlers_generic_handler(TURNS, {"Take": handler})


def _check_installed() -> None:
    from importlib.util import find_spec

    if find_spec("grpc") is None or find_spec("google.protobuf") is None:
        raise StudyError("a storage proxy needs gRPC: pip install 'evolve-detector[grpc]'")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
