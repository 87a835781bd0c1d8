"""The command `python -m detector.train`: options in, a run's folder and a summary out."""

import argparse
import dataclasses
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from detector.callbacks import Callbacks
from detector.checkpoint import LAST, PREVIOUS, newest_state
from detector.cli import add_common, run_command
from detector.config import TRAIN_NAMES, Hyp, TrainConfig, parse_assignments, resolve
from detector.data.description import short_name
from detector.device_memory import occupy
from detector.distributed import (
    any_rank,
    choose_device,
    from_first,
    is_first,
    process_group,
    world_size,
)
from detector.errors import CheckpointError, ConfigError
from detector.fields import AUTO
from detector.interrupt import StopOnSignal
from detector.launch import forget, noted, python_command, run_directory, supervise
from detector.performance import Stopwatch, final_lines, images_per_second, write_log
from detector.pictures import FOUND
from detector.plots import plot_training
from detector.record import summary_lines
from detector.result import Result
from detector.tensorboard import TensorBoardTracker, Trackers
from detector.tracking import NullTracker, Tracker, open_tracker
from detector.train import train

log = logging.getLogger("detector")

EXAMPLES = """examples:
  python -m detector.train --data data/bccd.yaml --model yolox-nano --imgsz 320 --epochs 30
  python -m detector.train --hyp hyp/best.yaml                 repeat the winner of a study
  python -m detector.train --data my.yaml --weights yolox_s.pth --model yolox-s --set lr0=0.001
  python -m detector.train --data my.yaml --model yolox-s --time 2h --batch auto --patience 20
  python -m detector.train --data my.yaml --model yolox-s --processes 8 --max-restarts 3
  python -m detector.train --resume                            go on with the newest run
  python -m detector.train --resume runs/train/bccd            go on with this one
  python -m detector.train --data data/shapes.yaml --performance       images/s only
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        "python -m detector.train",
        description="Train a detector.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--hyp", metavar="FILE", help="hyperparameters (yaml), e.g. hyp/best.yaml")
    for item in dataclasses.fields(TrainConfig):
        if item.name != "fitness":
            _add_setting(parser, item)
    parser.add_argument("--name", help="name of the run's folder under --project")
    parser.add_argument("--project", default="runs/train", help="folder of all runs")
    parser.add_argument(
        "--resume",
        metavar="RUN",
        nargs="?",
        const="",
        help="go on with an interrupted run: its folder, or the newest one under --project",
    )
    parser.add_argument(
        "--mlflow", metavar="URI", help="log to this MLflow tracking server or file"
    )
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard event files")
    parser.add_argument(
        "--performance", action="store_true", help="only time some steps: images/s, no evaluation"
    )
    parser.add_argument(
        "--occupy", action="store_true", help="reserve 90 %% of the GPU's memory beforehand"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any hyperparameter or setting",
    )
    parser.add_argument(
        "--processes", type=_count(1), default=1, metavar="N", help="train with N processes here"
    )
    parser.add_argument(
        "--max-restarts", type=_count(0), default=0, metavar="N",
        help="start again up to N times after a crash, from the newest checkpoint",
    )  # fmt: skip
    add_common(parser)
    parser.set_defaults(arguments=sys.argv[1:] if argv is None else argv)
    return run_command(_train_command, parser, argv)


def _count(least: int) -> Callable[[str], int]:
    """Return a reader of whole numbers from `least` on."""

    def count(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, {least} or more")
        return int(text)

    return count


def _add_setting(parser: argparse.ArgumentParser, item: dataclasses.Field) -> None:
    """Add the option of a field of TrainConfig; `--no-x` for what is on by default."""
    option, text = item.name.replace("_", "-"), item.metadata["help"]
    if item.type is bool:
        name = f"--no-{option}" if item.default else f"--{option}"
        text = f"turn off: {text}" if item.default else text
        value = not item.default
        parser.add_argument(name, dest=item.name, action="store_const", const=value, help=text)
    else:
        shown = "auto" if item.default == AUTO else item.default
        default = f" (default {shown})" if shown != "" else ""
        parser.add_argument(f"--{option}", help=text + default)


def _train_command(options: argparse.Namespace) -> dict[str, Any]:
    resumed = _resumed(options)
    config, hyp = _settings(options, resumed)
    if options.processes > 1 or options.max_restarts:
        return _in_children(options, resumed)
    device = choose_device(config.device)
    with process_group(device), noted() as note_step:
        directory, begun = from_first(_directory, options, config, resumed)
        return _run(options, config, hyp, device, directory, begun, note_step)


def _run(
    options: argparse.Namespace,
    config: TrainConfig,
    hyp: Hyp,
    device: torch.device,
    directory: Path,
    begun: bool,
    note_step: Callable[[int], bool],
) -> dict[str, Any]:
    """Train in `directory`, going on there if it is `begun`, and sum the result up."""
    if options.occupy:
        occupy(device)
    tracker = _tracker(options, directory)
    watch = Stopwatch(device)
    try:
        with StopOnSignal() as stop:

            def on_step(step: int, parts: Mapping[str, torch.Tensor]) -> bool:
                stop.asked |= note_step(step)
                return stop.asked or (options.performance and watch.on_step(step, parts))

            result = train(
                config,
                hyp,
                directory,
                tracker=tracker,
                callbacks=Callbacks(on_step=on_step),
                resume=begun,
            )
        if any_rank(stop.asked) and result.ended == "interrupted":
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        tracker.finish("KILLED", [])
        if (directory / "weights" / "last.pt").is_file():
            log.info("interrupted; go on with: python -m detector.train --resume %s", directory)
        raise
    except BaseException:
        tracker.finish("FAILED", [])
        if is_first():
            forget(directory)
        raise
    if not is_first():
        return {}
    if options.performance:
        return _timed(config, hyp, watch, result, tracker, options.json)
    plot_training(directory / "results.csv", directory / "results.png")
    files = ("results.png", "hyp.yaml", FOUND)
    tracker.finish("FINISHED", [directory / name for name in files])
    for line in summary_lines(result):
        log.info(line)
    return dataclasses.asdict(result)


def _tracker(options: argparse.Namespace, directory: Path) -> Tracker:
    if not is_first():
        return NullTracker()
    tracker: Tracker = open_tracker(options.mlflow, None, directory.name)
    return Trackers([tracker, TensorBoardTracker()]) if options.tensorboard else tracker


def _in_children(options: argparse.Namespace, resumed: Path | None) -> dict[str, Any]:
    """Run the same command in child processes; they print the result."""
    if world_size() > 1:
        raise ConfigError("--processes and --max-restarts start processes: leave torchrun out")
    arguments = [*options.arguments, "--processes", "1", "--max-restarts", "0"]
    arguments += ["--resume", str(resumed)] if resumed else []
    command = python_command("detector.train", arguments)
    options.json = False
    return {"exit_code": supervise(command, options.processes, options.max_restarts)}


def _settings(options: argparse.Namespace, resumed: Path | None) -> tuple[TrainConfig, Hyp]:
    """Return what the options and their files say."""
    values = {
        name: getattr(options, name)
        for name in TRAIN_NAMES
        if getattr(options, name, None) is not None
    }
    values |= {"validate": False} if options.performance else {}
    values |= parse_assignments(options.set)
    if resumed is None:
        return resolve(values, options.hyp)
    if options.hyp or options.name:
        raise ConfigError("--resume goes on with the run's own settings: no --hyp, no --name")
    if newest_state(resumed / "weights") is None:
        raise CheckpointError(f"--resume {resumed}: holds no weights/last.pt to go on from")
    return resolve(values, resumed / "hyp.yaml")


def _directory(
    options: argparse.Namespace, config: TrainConfig, resumed: Path | None
) -> tuple[Path, bool]:
    """Return the folder of the run, and whether it was begun before."""
    if resumed is not None:
        return resumed, True
    return run_directory(Path(options.project) / (options.name or short_name(config.data)))


def _resumed(options: argparse.Namespace) -> Path | None:
    """Return the run to go on with: the one that --resume names, or the newest."""
    if options.resume is None:
        return None
    return Path(options.resume or newest_run(Path(options.project)))


def newest_run(project: Path) -> Path:
    """Return the run under `project` with the newest training state. Raises: CheckpointError."""
    states = [*project.glob(f"*/weights/{LAST}"), *project.glob(f"*/weights/{PREVIOUS}")]
    if not states:
        raise CheckpointError(
            f"--resume: no run under {project} has a weights/{LAST} to go on from"
        )
    return max(states, key=lambda path: path.stat().st_mtime_ns).parents[1]


def _timed(
    config: TrainConfig,
    hyp: Hyp,
    watch: Stopwatch,
    result: Result,
    tracker: Tracker,
    quiet: bool,
) -> dict[str, Any]:
    """Report a `--performance` run: its lines, its log file, and the same as data."""
    tracker.finish("FINISHED", [])
    speed = images_per_second(watch, hyp)
    path = write_log(result.directory, config, hyp, world_size(), watch, result)
    if speed is None:
        log.warning("too few steps to time: more images, more --epochs or a smaller nbs are needed")
    if not quiet:
        print("\n".join(final_lines(speed, result.metrics.get("mAP50-95"), result.seconds)))
    return {"images_per_second": speed, "steps": watch.steps_timed, "log": str(path)}
