"""`python -m evolve`: run, status, best, report, ... Parse, call, print."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from evolve import fleet_commands
from evolve.command_line import (
    EXAMPLES,
    add_command,
    config_of,
    count,
    notice,
    opened,
    quiet_optuna,
    show,
    soon_over,
    width,
)
from evolve.interrupt import interruptible


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = _parser().parse_args(argv)
    # NumPy reads it when it is loaded: models of 400 trials gain nothing from more, and the other
    # cores belong to the trials
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from evolve.errors import RunFailed, disk_is_full

    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        code = command(arguments)
        sys.stdout.flush()
        return code
    except RunFailed as error:
        return _fail(error, 1)
    except ValueError as error:  # UserError, and what an objective says of its settings
        if arguments.verbose:
            raise
        return _fail(error, 2)
    except KeyboardInterrupt as interrupt:
        text = str(interrupt) or "interrupted: the same command goes on where it stopped"
        print(text, file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # nobody is helped by a traceback that was not asked for
        if arguments.verbose:
            raise
        if disk_is_full(error):
            return _fail("the disk is full: free some space, and the same command goes on", 1)
        return _fail(f"{type(error).__name__}: {error} (--verbose shows where)", 1)


def run(arguments: argparse.Namespace) -> int:
    """Start or resume the study."""
    from evolve.display import Display
    from evolve.printout import found_lines, result_text
    from evolve.problem import start_values
    from evolve.study import run_study

    config = config_of(arguments)
    quiet_optuna()
    with interruptible(), Display() as display:
        summary = run_study(config, display)
    start = start_values(config, lambda _: None)
    if arguments.json:
        print(json.dumps(summary.to_dict()))
    else:
        print(result_text(config, summary, start, found_lines(config, summary.found)))
    return 0


def status(arguments: argparse.Namespace) -> int:
    """Print how far the study is, on one screen; with --watch again and again."""
    if arguments.watch is not None:
        return fleet_commands.watch(lambda: _status(arguments), arguments)
    soon_over()
    return _status(arguments)


def _status(arguments: argparse.Namespace) -> int:
    from evolve.findings import begin_findings
    from evolve.overview import overview, status_text
    from evolve.printout import found_lines
    from evolve.summary import summarise

    config, study = opened(arguments)
    finish = begin_findings(config, study)
    summary, found = summarise(config, study), finish()
    if arguments.json:
        print(json.dumps({**summary.to_dict(), **overview(config, study, summary, found)}))
        return 0
    lines = [status_text(config, study, summary, found, width())]
    print("\n".join(lines + (found_lines(config, found) if arguments.all else [])))
    return 0


def best(arguments: argparse.Namespace) -> int:
    """Print the winner: one screen in a terminal, best.yaml in a pipe or with --yaml."""
    from evolve.overview import best_text
    from evolve.printout import front_text
    from evolve.summary import best_yaml, recommended_params, summarise
    from evolve.yamlfile import write_yaml

    soon_over()
    config, study = opened(arguments)
    summary = summarise(config, study)
    params = recommended_params(summary)
    if arguments.front:
        text = front_text(summary)
    elif arguments.params:
        text = write_yaml(params)
    elif sys.stdout.isatty() and not arguments.yaml:
        text = best_text(config, study, summary, width())
    else:
        text = best_yaml(config, summary)
    show(arguments, summary.to_dict(), text.rstrip())
    return 0


def report(arguments: argparse.Namespace) -> int:
    """Write the report of a study: report.html, its plots as PNG, and trials.csv."""
    from evolve.findings import begin_findings
    from evolve.page.write import Begun, write_report
    from evolve.summary import summarise

    soon_over()
    config, study = opened(arguments)
    finish, begun = begin_findings(config, study), Begun(config, study)
    summary = summarise(config, study)
    files = write_report(config, study, replace(summary, found=finish()), begun)
    show(arguments, {"files": [str(path) for path in files]}, "\n".join(map(str, files)))
    return 0


def compare(arguments: argparse.Namespace) -> int:
    """Compare two studies: which result is better, and what was different."""
    from evolve.compare import compare_studies, comparison_text
    from evolve.config import STUDIES
    from evolve.page.versus import write_comparison

    config = config_of(arguments)
    quiet_optuna()
    comparison = compare_studies(config, arguments.first, arguments.second)
    names = (side.config.study.name for side in (comparison.a, comparison.b))
    path = arguments.out or STUDIES / f"compare-{'-'.join(names)}.html"
    write_comparison(comparison, path)
    text = f"{comparison_text(comparison)}\n\nwritten: {path}"
    show(arguments, {**comparison.to_dict(), "files": [str(path)]}, text)
    return 0


def export(arguments: argparse.Namespace) -> int:
    """Turn the winner into files for others by the objective's own export, with a model card."""
    from evolve.export import ExportRequest, export_winner, parse_changes

    precision = "int8" if arguments.int8 else "fp16" if arguments.half else ""
    request = ExportRequest(
        formats=[name.strip() for name in arguments.format.split(",")]
        if arguments.format
        else None,
        out=arguments.out,
        options={"precision": precision} if precision else {},
        alias=arguments.alias or "",
        retrain=None if arguments.retrain is None else parse_changes(arguments.retrain),
    )
    config, study = opened(arguments)
    with interruptible():
        found = export_winner(config, study, request, notice)
    show(
        arguments, {"files": [str(path) for path in found.files]}, "\n".join(map(str, found.files))
    )
    return 0


def import_(arguments: argparse.Namespace) -> int:
    """Add the trials of an older search (evolve.txt, .ndjson, evolve.csv) to the study."""
    from evolve.exchange import import_file

    config = config_of(arguments)
    quiet_optuna()
    count = import_file(config, arguments.file, notice)
    text = f"{count} trials of {arguments.file} were added to study {config.study.name}"
    show(arguments, {"study": config.study.name, "trials": count}, text)
    return 0


def export_txt(arguments: argparse.Namespace) -> int:
    """Write the study as the evolve.txt of 2019."""
    from evolve.exchange import export_file

    config, study = opened(arguments)
    path = arguments.file or config.directory / "evolve.txt"
    export_file(config, study, path, notice)
    show(arguments, {"files": [str(path)]}, str(path))
    return 0


def sync(arguments: argparse.Namespace) -> int:
    """Write into MLflow what it lacks of the study: after a fault, or into a new store."""
    from evolve.errors import RunFailed, UserError
    from evolve.mlflow_store import store_uri
    from evolve.study import sync_record

    config, study = opened(arguments)
    if store_uri(config.tracking.uri) is None:
        raise UserError("tracking is off: name a store under tracking.uri")
    written, whole = sync_record(config, study)
    if not whole:
        raise RunFailed(f"study {config.study.name} is not in MLflow as a whole")
    text = f"{written} trials written: MLflow has all of study {config.study.name}"
    show(arguments, {"study": config.study.name, "written": written}, text)
    return 0


def ui(arguments: argparse.Namespace) -> int:
    """Serve the tracker's pages, or optuna-dashboard, on this machine until Ctrl-C."""
    from evolve.ui import UI_PORT, serve

    if arguments.optuna:
        from evolve import dashboard

        dashboard.check_installed()
        _, study = opened(arguments)
        with interruptible():
            return dashboard.serve(study, arguments.port or dashboard.DASHBOARD_PORT)
    tracking = config_of(arguments).tracking
    return serve(tracking.uri, arguments.port or UI_PORT, tracking.experiment)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evolve",
        description="Search for the best settings of a training.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    runner = add_command(commands, run, "start or resume the study of evolve.yaml")
    runner.add_argument("--generations", type=count, metavar="N", help="trials in total")
    runner.add_argument("--hours", type=float, metavar="H", help="end the search after H hours")
    runner.add_argument("--gpu-hours", type=float, metavar="H", help="... after H hours of GPUs")
    runner.add_argument(
        "--strategy", metavar="NAME", help="guided, genetic, tpe, random, module:Class, ..."
    )
    runner.add_argument(
        "--warm-start", metavar="STUDY|YAML", help="learn from name, storage#name, or best.yaml"
    )
    fleet_commands.add_worker_options(runner)
    runner.add_argument("--max-disk", metavar="SIZE", help="of the study's folder, such as 20GB")
    state = add_command(commands, status, "print how far the study is")
    state.add_argument("--all", action="store_true", help="the table of importance too")
    state.add_argument(
        "--watch", type=float, nargs="?", const=5.0, metavar="SECONDS", help="again and again"
    )
    winner = add_command(commands, best, "print the winner's values")
    winner.add_argument("--yaml", action="store_true", help="as best.yaml; the default in a pipe")
    winner.add_argument("--params", action="store_true", help="only the values that were searched")
    winner.add_argument("--front", action="store_true", help="the best trade-offs of a study")
    reporter = add_command(commands, report, "write the study's report.html")
    comparer = add_command(commands, compare, "compare two studies")
    comparer.add_argument("first", metavar="A", help="a study's name, or storage#name")
    comparer.add_argument("second", metavar="B")
    comparer.add_argument("--out", type=Path, metavar="FILE", help="where the page goes")
    exporter = _add_export(commands)
    for parser_of_winner in (runner, winner, reporter, exporter):
        parser_of_winner.add_argument(
            "--pick", type=count, metavar="N", help="take trial N for the winner"
        )
    importer = add_command(commands, import_, "add the trials of an older search", "import")
    importer.add_argument("file", type=Path, metavar="FILE", help="evolve.txt, .ndjson, .csv")
    writer = add_command(commands, export_txt, "write the study as evolve.txt", "export-txt")
    writer.add_argument("file", type=Path, nargs="?", metavar="FILE")
    add_command(commands, sync, "write into MLflow what it lacks of the study")
    server = add_command(commands, ui, "serve the tracker's pages on this machine")
    server.add_argument("--optuna", action="store_true", help="optuna-dashboard on the study")
    server.add_argument("--port", type=int, default=None, metavar="N", help="a free one by default")
    fleet_commands.add(commands)
    return parser


def _add_export(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> argparse.ArgumentParser:
    exporter = add_command(commands, export, "turn the winner into an engine")
    exporter.add_argument("--format", metavar="LIST", help="such as onnx,tensorrt-rtx")
    exporter.add_argument("--out", type=Path, metavar="FOLDER", help="where the files go")
    kind = exporter.add_mutually_exclusive_group()
    kind.add_argument("--half", action="store_true", help="in fp16")
    kind.add_argument("--int8", action="store_true", help="in int8, calibrated on training images")
    source = exporter.add_mutually_exclusive_group()
    source.add_argument(
        "--alias", metavar="NAME", help="the version of MLflow's model so called, e.g. champion"
    )
    source.add_argument(
        "--retrain", action="append", metavar="NAME=VALUE", help="train again first: epochs=300"
    )
    exporter.add_argument(
        "--trial", dest="pick", type=count, metavar="N", help="the same as --pick"
    )
    return exporter


def _fail(error: object, code: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
