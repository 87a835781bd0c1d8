"""What the commands of `python -m evolve` share: options, the config they make, what they print."""

import argparse
import gc
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a spawned worker imports this file again, and needs none of it
    from optuna import Study

    from evolve.config import StudyConfig

EXAMPLES = """examples:
  python -m evolve run --generations 30
  python -m evolve run --study small --set settings.epochs=10 --set space.lr0.high=0.05
  python -m evolve run --strategy tpe --workers 2 --hours 8
  python -m evolve run --study next --warm-start study
  python -m evolve status
  python -m evolve best --params
  python -m evolve best --front
  python -m evolve report --study small
  python -m evolve compare small next
  python -m evolve export --format onnx,tensorrt-rtx --out engines
  python -m evolve export --format onnx --retrain epochs=300
  python -m evolve export --format onnx --alias champion --half
  python -m evolve import evolve.txt
  python -m evolve ui --port 5001
  python -m evolve ui --optuna
  python -m evolve sync
  python -m evolve run --storage postgresql://me@host/evolve --engine ray --address auto
  python -m evolve worker --study small --storage postgresql://me@host/evolve
  python -m evolve status --watch
  python -m evolve stop --after-trials
  python -m evolve retry FAILED
  python -m evolve gc --keep 3
  python -m evolve doctor

Ctrl-C stops a run; the same command goes on with it.
exit codes: 0 done, 1 the run failed, 2 wrong usage or input, 130 interrupted"""


def soon_over() -> None:
    """Leave the garbage of a command that reads a study and ends to its end.

    The collector would look at all trials again and again, a quarter of such a command's time.
    """
    gc.disable()


def opened(arguments: argparse.Namespace) -> "tuple[StudyConfig, Study]":
    """Return an existing study, and the config with what the study was run with."""
    from evolve.storage import as_run, load_study

    config = config_of(arguments)
    quiet_optuna()
    study = load_study(config)
    return as_run(config, study), study


def add_command(
    commands: Any, body: Callable[[argparse.Namespace], int], text: str, name: str = ""
) -> argparse.ArgumentParser:
    """Add a command with the options that all have, and return its parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name or body.__name__,
        help=text,
        description=body.__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=body)
    parser.add_argument("--config", type=Path, default=Path("evolve.yaml"), metavar="FILE")
    parser.add_argument("--study", metavar="NAME", help="name of the study")
    parser.add_argument("--storage", metavar="URL", help="Optuna storage, such as sqlite:///x.db")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a dotted key"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--verbose", action="store_true", help="show where an error came from")
    return parser


def config_of(arguments: argparse.Namespace) -> "StudyConfig":
    """Read evolve.yaml with all overrides of the command line; named options win over --set."""
    from evolve.config import load_config

    keys = {
        "study": "study.name",
        "storage": "study.storage",
        "generations": "study.generations",
        "hours": "study.hours",
        "gpu_hours": "study.gpu_hours",
        "pick": "study.pick",
        "strategy": "strategy",
        "warm_start": "warm_start",
        "workers": "workers.count",
        "workers_per_gpu": "workers.per_device",
        "devices_per_trial": "workers.devices_per_trial",
        "engine": "workers.engine",
        "address": "workers.address",
        "max_disk": "study.max_disk",
    }
    named = {key: getattr(arguments, option, None) for option, key in keys.items()}
    options = [f"{key}={json.dumps(value)}" for key, value in named.items() if value is not None]
    return load_config(arguments.config, [*arguments.set, *options])


def count(text: str) -> int:
    """Read a whole number of 0 or more."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} must not be negative")
    return number


def width() -> int:
    """Return how many characters a line may have."""
    return max(60, shutil.get_terminal_size((100, 24)).columns)


def quiet_optuna() -> None:
    """Keep Optuna's line about each trial off the terminal."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)


def notice(line: str) -> None:
    """Print a line for the person who watches."""
    print(line, file=sys.stderr)


def show(arguments: argparse.Namespace, data: dict[str, Any], text: str) -> None:
    """Print what a command found: as one JSON object if that was asked for, else as text."""
    print(json.dumps(data) if arguments.json else text)
