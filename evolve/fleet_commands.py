"""The commands that run and look after many workers: worker, proxy, stop, retry, gc, doctor."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evolve.command_line import (
    add_command,
    config_of,
    count,
    opened,
    quiet_optuna,
    show,
)
from evolve.interrupt import interruptible

if TYPE_CHECKING:  # a spawned worker imports this file again, and needs none of it
    from evolve.config import StudyConfig

STOP_SECONDS = 60.0  # that `evolve stop` waits
CLEAR = "\033[2J\033[H"  # a terminal's screen


def worker(arguments: argparse.Namespace) -> int:
    """Join a study that `evolve run` leads, from another terminal or machine.

    Takes trials until the study is done; a file evolve.yaml is not needed.
    """
    from evolve.display import Display
    from evolve.join import join_study

    config = _without_file(arguments)
    quiet_optuna()
    with interruptible(), Display() as display:
        trials = join_study(config, config.workers, display)
    text = f"{trials} trials of study {config.study.name} were run here"
    show(arguments, {"study": config.study.name, "trials": trials}, text)
    return 0


def proxy(arguments: argparse.Namespace) -> int:
    """Serve a database as grpc://HOST:PORT, so that many workers share a few connections."""
    from evolve.proxy import serve
    from evolve.storage import storage_of

    config = _without_file(arguments)
    with interruptible():
        server = serve(storage_of(config.study.storage), arguments.host, arguments.port)
        print(f"serving grpc://{arguments.host}:{arguments.port}", file=sys.stderr)
        try:
            server.wait_for_termination()
        finally:
            server.stop(2.0).wait()
    return 0


def stop(arguments: argparse.Namespace) -> int:
    """Ask all processes of the study to end; running trials are saved, or waited for."""
    from evolve.operate import stop_study

    config, study = opened(arguments)
    text = stop_study(config, study, arguments.after_trials, arguments.wait, time.monotonic)
    show(arguments, {"study": config.study.name, "said": text}, text)
    return 0


def retry(arguments: argparse.Namespace) -> int:
    """Queue failed trials once more with their values: FAILED for all, or their numbers."""
    from evolve.operate import retry_trials

    config, study = opened(arguments)
    numbers = retry_trials(study, arguments.trials)
    listed = f": {', '.join(map(str, numbers))}" if numbers else ""
    text = f"{len(numbers)} failed trials are queued again{listed}"
    text += "\npython -m evolve run goes on with them" if numbers else ""
    show(arguments, {"study": config.study.name, "trials": numbers}, text)
    return 0


def gc(arguments: argparse.Namespace) -> int:
    """Remove the weights that nobody will ask for; those of the best trials stay."""
    from evolve.keep import size_text
    from evolve.operate import collect

    config, study = opened(arguments)
    freed = collect(config, study, arguments.keep, arguments.dry_run)
    verb = "would free" if arguments.dry_run else "freed"
    text = f"{verb} {size_text(freed.bytes)}: weights of {len(freed.trials)} trials"
    text += f", {len(freed.folders)} folders of studies that are gone" * bool(freed.folders)
    data = {"bytes": freed.bytes, "trials": freed.trials, "folders": [*map(str, freed.folders)]}
    show(arguments, data, text)
    return 0


def doctor(arguments: argparse.Namespace) -> int:
    """Check the set-up: storage, MLflow, devices, objective and data, disk, versions."""
    from evolve.doctor import BAD, checks_text, examine

    config = config_of(arguments)
    quiet_optuna()
    checks = examine(config)
    data = {check.name: {"state": check.state, "text": check.text} for check in checks}
    show(arguments, data, checks_text(checks))
    return 1 if any(check.state == BAD for check in checks) else 0


def watch(print_once: Callable[[], int], arguments: argparse.Namespace) -> int:
    """Print again and again, until Ctrl-C; in a terminal each time on a clear screen."""
    seconds = max(0.1, arguments.watch)
    with interruptible():
        while True:
            if sys.stdout.isatty() and not arguments.json:
                print(CLEAR, end="")
            code = print_once()
            sys.stdout.flush()
            if code:
                return code
            time.sleep(seconds)


def add(commands: Any) -> None:
    """Add the commands of this file."""
    joining = add_command(commands, worker, "join a running study, here or on another machine")
    add_worker_options(joining)
    serving = add_command(commands, proxy, "serve a database to many workers by gRPC")
    serving.add_argument("--host", default="localhost", help="address to listen on")
    serving.add_argument("--port", type=count, default=13000, metavar="N")
    stopping = add_command(commands, stop, "end all processes of a study")
    stopping.add_argument("--after-trials", action="store_true", help="let running trials end")
    stopping.add_argument("--wait", type=float, default=STOP_SECONDS, metavar="SECONDS")
    again = add_command(commands, retry, "queue failed trials once more")
    again.add_argument("trials", nargs="+", metavar="FAILED|NUMBER")
    collecting = add_command(commands, gc, "free the disk of weights that nobody needs")
    collecting.add_argument("--keep", type=count, default=3, metavar="K", help="best trials' stay")
    collecting.add_argument("--dry-run", action="store_true", help="only say what would go")
    add_command(commands, doctor, "check storage, MLflow, devices, data, disk and versions")


def add_worker_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say who runs trials."""
    parser.add_argument("--workers", type=_workers, metavar="N|auto", help="trials at once")
    parser.add_argument("--workers-per-gpu", type=count, metavar="K", help="trials on one GPU")
    parser.add_argument("--devices-per-trial", type=count, metavar="N", help="GPUs of one trial")
    parser.add_argument("--engine", metavar="NAME", help="local, or ray: trials as tasks of Ray")
    parser.add_argument("--address", metavar="HOST:PORT", help="of the Ray cluster, or auto")


def _workers(text: str) -> int | str:
    return text if text == "auto" else count(text)


def _without_file(arguments: argparse.Namespace) -> "StudyConfig":
    """Return the config of the file, or without one of the options alone. Raises: ConfigError."""
    from evolve.config import parse_config
    from evolve.errors import ConfigError

    if arguments.config.is_file():
        return config_of(arguments)
    if arguments.config != Path("evolve.yaml"):
        raise ConfigError(f"{arguments.config}: no such file")
    if not arguments.storage:
        raise ConfigError("there is no evolve.yaml here: name --storage, and --study")
    names = {
        "count": "workers",
        "per_device": "workers_per_gpu",
        "devices_per_trial": "devices_per_trial",
        "engine": "engine",
        "address": "address",
    }
    given = {key: getattr(arguments, option, None) for key, option in names.items()}
    study = {"name": arguments.study, "storage": arguments.storage}
    tree = {
        "objective": "told.by.the.study",
        "space": {"told_by_the_study": {"low": 0.0, "high": 1.0}},
        "study": {key: value for key, value in study.items() if value is not None},
        "workers": {key: value for key, value in given.items() if value is not None},
    }
    return parse_config(json.loads(json.dumps(tree)), Path("command line"))
