"""What every command of the detector shares: `--json`, logging, errors as one line, exit codes.

Exit codes: 0 done, 1 the run failed, 2 wrong usage or input, 130 interrupted.
"""

import argparse
import itertools
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detector.distributed import is_first, rank
from detector.errors import ConfigError, UserError
from detector.memory import keep_freed_memory

log = logging.getLogger("detector")


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the options that every command has."""
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--verbose", action="store_true", help="log details, show tracebacks")


def run_command(
    body: Callable[[argparse.Namespace], dict[str, Any] | None],
    parser: argparse.ArgumentParser,
    argv: list[str] | None,
) -> int:
    """Parse `argv`, run `body`, and turn its result or its error into output and an exit code.

    The dict that `body` returns is printed with `--json`; its key `exit_code` is the exit code.
    """
    try:
        options = parser.parse_args(argv)
    except SystemExit as stop:  # argparse: 0 for --help, 2 for wrong usage
        return int(stop.code or 0)
    keep_freed_memory()
    handler = _log_to_stderr(options.verbose)
    try:
        answer = body(options)
    except KeyboardInterrupt as error:
        print("interrupted", file=sys.stderr)
        return exit_code(error)
    except (UserError, RuntimeError, OSError, ArithmeticError) as error:
        return _fail(error, exit_code(error), options.verbose)
    finally:
        log.removeHandler(handler)
    code = int((answer or {}).pop("exit_code", 0))
    if options.json and is_first():
        print(json.dumps(answer or {}, default=str))
    return code


def exit_code(error: BaseException) -> int:
    """Return the exit code of a command that ended with this error; it may bring its own."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    return int(getattr(error, "exit_code", 2 if isinstance(error, UserError) else 1))


def new_directory(wanted: Path) -> Path:
    """Create and return `wanted`, or `wanted-2`, `wanted-3`, ... if it exists already."""
    for number in itertools.count(1):
        directory = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(f"{directory}: cannot be created: {error.strerror}") from error
        return directory
    raise AssertionError


def _log_to_stderr(verbose: bool) -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"{_who()}%(message)s"))
    handler.setLevel(logging.NOTSET if is_first() else logging.ERROR)
    log.addHandler(handler)
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    return handler


def _fail(error: BaseException, code: int, verbose: bool) -> int:
    if verbose:
        log.exception("traceback")
    text = " ".join(str(error).split()) or type(error).__name__
    print(f"{_who()}error: {text}", file=sys.stderr)
    return code


def _who() -> str:
    """Return which of several processes speaks; rank 0 speaks for all."""
    return "" if is_first() else f"rank {rank()}: "
