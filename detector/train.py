"""Train a detector: `train(config, hyp, directory) -> Result`, and `python -m detector.train`.

Letters: B images of a micro-batch. `step` counts optimizer steps; a step takes `hyp.nbs` images, in
as many micro-batches of at most `config.batch` images as it needs.
"""

import argparse
import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from detector.checkpoint import (
    load_weights,
    model_content,
    read_checkpoint,
    save_checkpoint,
)
from detector.cli import add_common, new_directory, run_command
from detector.config import TRAIN_NAMES, Hyp, TrainConfig, parse_assignments, resolve
from detector.data.cache import ImageCache
from detector.data.description import load_data, read_split, short_name, single_class
from detector.data.loader import TrainingLoader, TrainingPictures
from detector.data.wrappers import chosen_samples, image_weights
from detector.distributed import amp_dtype, choose_device
from detector.errors import CheckpointError, ConfigError, TrainingDiverged
from detector.evaluate import evaluate_family
from detector.families import build_family
from detector.metrics import METRIC_NAMES, fitness
from detector.models import build_model
from detector.optim import Schedule, WeightAverage, build_optimizer, set_step
from detector.plots import plot_training
from detector.record import epoch_line, headline, write_result, write_results, write_settings
from detector.result import Result
from detector.tracking import NullTracker, Tracker, open_tracker

log = logging.getLogger("detector")

METRICS = ("fitness", *METRIC_NAMES)
CHECK_EVERY = 20  # steps between looks at the loss; each look waits for the device
Report = Callable[[int, dict[str, float]], bool]
Item = TypeVar("Item")


def train(
    config: TrainConfig,
    hyp: Hyp,
    directory: str | Path,
    *,
    report: Report | None = None,
    tracker: Tracker | None = None,
    resume: bool = False,
) -> Result:
    """Train one detector and leave its files in `directory` (see DESIGN: results, weights, yaml).

    After each evaluated epoch `report(epoch, metrics)` is called; True ends the training. With
    `resume`, goes on from `weights/last.pt` if it is there: the result equals an uninterrupted run.

    Raises: `UserError` for wrong input, `TrainingDiverged` when the loss is not finite.
    """
    started = time.monotonic()
    directory = Path(directory)
    tracker = tracker or NullTracker()
    last, best_path = directory / "weights" / "last.pt", directory / "weights" / "best.pt"
    resuming = resume and last.is_file()
    fitness(dict.fromkeys(METRIC_NAMES, 0.0), config.fitness)  # its weights, before any work

    # ---- device and precision
    device = choose_device(config.device)
    amp = amp_dtype(device, config.amp)
    scaler = torch.amp.GradScaler(device.type, enabled=amp == torch.float16)

    # ---- data
    data = load_data(config.data)
    data = single_class(data) if config.single_cls else data
    all_samples, val_samples = read_split(data, "train"), read_split(data, "val")
    train_samples = chosen_samples(all_samples, config)
    train_cache = ImageCache(train_samples, config.imgsz, among=all_samples)
    val_cache = ImageCache(val_samples, config.imgsz)
    loader = TrainingLoader(
        TrainingPictures(train_samples, train_cache, config.imgsz, hyp, config.seed),
        hyp.nbs,
        config.batch,
        workers=_worker_count(config.workers, device),
        pin_memory=device.type == "cuda",
        rect=config.rect,
    )

    # ---- network, loss, optimizer, average
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = build_model(config.model, data.num_classes)
    if config.weights and not resuming:
        loaded = load_weights(network, config.weights)
        log.info("%s: %d tensors loaded", config.weights, len(loaded.loaded))
        if loaded.reinitialised:
            log.info("re-initialised: %s", ", ".join(loaded.reinitialised))
    network = network.to(device, memory_format=torch.channels_last)
    family = build_family(network, hyp)
    optimizer = build_optimizer(config.optimizer, network, hyp)
    average = WeightAverage(network, hyp.ema_decay, hyp.ema_tau)
    averaged = build_family(average.module, hyp)
    schedule = Schedule(config.schedule, hyp, config.epochs, -(-len(train_samples) // hyp.nbs))
    parameters = [weight for weight in network.parameters() if weight.requires_grad]

    # ---- resume
    epoch, history, best = 0, [], {"fitness": -1.0, "epoch": 0}
    class_map = [0.0] * data.num_classes  # of the last evaluation
    if resuming:
        state = _read_state(last, config, hyp, data.names)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        average.module.load_state_dict(state["average"])
        average.updates = state["step"]
        epoch, history, best = state["epoch"], state["history"], state["best"]
        class_map = state.get("class_map", class_map)
        what = "nothing is left to do" if epoch >= config.epochs else "going on"
        log.info("%s: %d of %d epochs are done, %s", last, epoch, config.epochs, what)
    first_epoch, step = epoch, average.updates
    write_settings(directory, config, hyp)
    tracker.start(dataclasses.asdict(config), dataclasses.asdict(hyp), directory)
    log.info(headline(config, hyp, network))
    images = f"{len(train_samples)} training and {len(val_samples)} validation images"
    log.info("%s, on %s in %s", images, device, str(amp).removeprefix("torch."))

    # ---- loop
    ended = "finished"
    for epoch in range(first_epoch + 1, config.epochs + 1):
        epoch_started = time.monotonic()
        tail = epoch > config.epochs - hyp.no_aug_epochs
        if tail:
            family.enter_tail()
        network.train()
        if config.image_weights:
            loader.order.weights = image_weights(train_samples, class_map)
        totals: dict[str, torch.Tensor] = {}
        pictures = tqdm(
            loader.epoch(epoch, tail), f"epoch {epoch}", len(loader), leave=False, disable=None
        )
        # Every step has equally many micro-batches, except perhaps the last one of an epoch.
        for window in windows(pictures, -(-hyp.nbs // config.batch)):
            set_step(optimizer, schedule.learning_rate(step), schedule.momentum(step))
            sums: dict[str, torch.Tensor] = {}
            for batch in window:
                batch = batch.to(device)
                with torch.autocast(device.type, dtype=amp, enabled=amp != torch.float32):
                    parts, positives = family.losses(batch.images, batch.targets)
                scaler.scale(parts["total"]).backward()
                add_to(sums, parts | {"positives": positives})
            scaler.unscale_(optimizer)
            # One division for the whole window: k micro-batches give the gradient of one batch.
            positives = sums.pop("positives").clamp(min=1)
            torch._foreach_div_([w.grad for w in parameters if w.grad is not None], positives)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            average.update()
            add_to(totals, {name: value / positives for name, value in sums.items()})
            step += 1
            if step % CHECK_EVERY == 0:
                _stop_if_diverged(totals, step)
        _stop_if_diverged(totals, step)
        train_seconds = time.monotonic() - epoch_started

        # ---- evaluate, record, save
        row = {"epoch": epoch, "step": step, "lr": schedule.learning_rate(step - 1)}
        row |= {f"train/{name}": float(v) / schedule.steps_per_epoch for name, v in totals.items()}
        if epoch % config.val_every == 0 or epoch == config.epochs:
            found = evaluate_family(
                averaged, val_samples, val_cache, config.imgsz, data.num_classes, device
            )
            metrics, class_map = found.summary(), found.class_map()
            row |= metrics | {"fitness": fitness(metrics, config.fitness)}
        row |= {"images_per_second": len(train_samples) / train_seconds}
        row |= {"seconds": time.monotonic() - epoch_started}
        history.append(row)
        content = model_content(
            average.module,
            data.names,
            config.imgsz,
            config=dataclasses.asdict(config),
            hyp=dataclasses.asdict(hyp),
            metrics={name: row[name] for name in METRICS if name in row},
            epoch=epoch,
        )
        if row.get("fitness", -1.0) > best["fitness"]:
            best = {name: row[name] for name in ("epoch", *METRICS)}
            save_checkpoint(best_path, content)
        state = {
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
            "average": average.module.state_dict(),
            "step": step,
            "epoch": epoch,
            "history": history,
            "best": best,
            "class_map": class_map,
        }
        save_checkpoint(last, content | {"state": state})
        write_results(directory / "results.csv", history)
        tracker.log(epoch, {name: value for name, value in row.items() if name != "epoch"})
        log.info(epoch_line(row, config.epochs, history[first_epoch:]))
        if report is not None and "fitness" in row and report(epoch, {**row}):
            ended = "stopped"
            break

    # ---- result
    result = Result(
        fitness=history[-1]["fitness"],
        metrics={name: history[-1][name] for name in METRICS},
        best=best,
        best_checkpoint=best_path,
        directory=directory,
        epochs=len(history),
        seconds=time.monotonic() - started,
        ended=ended,
    )
    write_result(directory / "result.json", result)
    return result


def windows(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Group `items` into lists of `size`; the last may be shorter."""
    iterator = iter(items)
    while window := list(itertools.islice(iterator, size)):
        yield window


def add_to(totals: dict[str, torch.Tensor], parts: dict[str, torch.Tensor]) -> None:
    """Add `parts` to `totals` in place, without their graph."""
    for name, value in parts.items():
        totals[name] = totals[name] + value.detach() if name in totals else value.detach()


def _worker_count(wanted: int, device: torch.device) -> int:
    """On a CPU the network uses every core itself, so images are loaded in the same process."""
    if wanted >= 0:
        return wanted
    return 0 if device.type == "cpu" else 8


def _stop_if_diverged(totals: dict[str, torch.Tensor], step: int) -> None:
    if not torch.isfinite(totals["total"]):
        raise TrainingDiverged(step, {name: float(value) for name, value in totals.items()})


def _read_state(
    path: Path, config: TrainConfig, hyp: Hyp, names: tuple[str, ...]
) -> dict[str, Any]:
    """Return the training state of last.pt. Raises `CheckpointError` if it is another run's."""
    content = read_checkpoint(path)
    if "state" not in content:
        raise CheckpointError(f"{path}: holds no training state; only last.pt of a run does")
    if content["names"] != list(names):
        raise CheckpointError(
            f"{path}: was trained on the classes {', '.join(content['names'])},"
            f" not {', '.join(names)}"
        )
    free = ("device", "workers", "val_every", "batch")  # may differ between the two parts of a run
    for old, new in ((content["config"], config), (content["hyp"], hyp)):
        for name, value in dataclasses.asdict(new).items():
            if name not in free and old.get(name) != value:
                raise CheckpointError(
                    f"{path}: was trained with {name}={old.get(name)}, not {value}; "
                    "resume with the same settings or choose another --name"
                )
    return content["state"]


# ---- command -------------------------------------------------------------------------------

EXAMPLES = """examples:
  python -m detector.train --data data/bccd.yaml --model yolox-nano --imgsz 320 --epochs 30
  python -m detector.train --hyp hyp/best.yaml                 repeat the winner of a study
  python -m detector.train --data my.yaml --weights yolox_s.pth --model yolox-s --set lr0=0.001
  python -m detector.train --resume runs/train/bccd            go on after an interruption
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
        if item.name not in ("fitness", "amp"):
            default = f" (default {item.default})" if item.default != "" else ""
            parser.add_argument(
                f"--{item.name.replace('_', '-')}", help=item.metadata["help"] + default
            )
    parser.add_argument("--no-amp", action="store_true", help="full precision")
    parser.add_argument("--name", help="name of the run's folder under --project")
    parser.add_argument("--project", default="runs/train", help="folder of all runs")
    parser.add_argument(
        "--resume", metavar="RUN", help="folder of an interrupted run to go on with"
    )
    parser.add_argument(
        "--mlflow", metavar="URI", help="log to this MLflow tracking server or file"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any hyperparameter or setting",
    )
    add_common(parser)
    return run_command(_train_command, parser, argv)


def _train_command(options: argparse.Namespace) -> dict[str, Any]:
    values = {
        name: getattr(options, name)
        for name in TRAIN_NAMES
        if getattr(options, name, None) is not None
    }
    values |= {"amp": False} if options.no_amp else {}
    values |= parse_assignments(options.set)
    if options.resume:
        if options.hyp or options.name:
            raise ConfigError("--resume goes on with the run's own settings: no --hyp, no --name")
        directory = Path(options.resume)
        if not (directory / "weights" / "last.pt").is_file():
            raise CheckpointError(f"--resume {directory}: holds no weights/last.pt to go on from")
        config, hyp = resolve(values, directory / "hyp.yaml")
    else:
        config, hyp = resolve(values, options.hyp)
        directory = new_directory(Path(options.project) / (options.name or short_name(config.data)))
    tracker = open_tracker(options.mlflow, None, directory.name)
    try:
        result = train(config, hyp, directory, tracker=tracker, resume=bool(options.resume))
    except KeyboardInterrupt:
        tracker.finish("KILLED", [])
        if (directory / "weights" / "last.pt").is_file():
            log.info("interrupted; go on with: python -m detector.train --resume %s", directory)
        raise
    except BaseException:
        tracker.finish("FAILED", [])
        if not any(directory.iterdir()):  # nothing was begun: the name stays free
            directory.rmdir()
        raise
    plot_training(directory / "results.csv", directory / "results.png")
    tracker.finish("FINISHED", [directory / "results.png", directory / "hyp.yaml"])
    scores = "  ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
    log.info("last epoch: %s", scores)
    log.info(
        "best epoch: %s", "  ".join(f"{name} {value:.4g}" for name, value in result.best.items())
    )
    log.info("%d epochs in %.0f s; files are in %s", result.epochs, result.seconds, directory)
    return dataclasses.asdict(result)


if __name__ == "__main__":
    raise SystemExit(main())
