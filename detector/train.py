"""Train a detector: `train(config, hyp, directory) -> Result`, and `python -m detector.train`.

Letters: B images of a micro-batch. `step` counts optimizer steps; a step takes `hyp.nbs` images, in
as many micro-batches of at most `config.batch` images as it needs.
"""

import dataclasses
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from detector.anchors import set_anchors
from detector.callbacks import Callbacks
from detector.checkpoint import load_weights, save_checkpoint
from detector.compiled import compiled
from detector.config import Hyp, TrainConfig, check_schedule
from detector.data.cache import ImageCache
from detector.data.description import load_data, read_split, single_class
from detector.data.loader import TrainingLoader, TrainingPictures, side_range, training_side
from detector.data.wrappers import chosen_samples, image_weights
from detector.device_memory import (
    OutOfMemory,
    automatic_batch,
    free_memory,
    peak_memory,
    rehearse,
    release,
)
from detector.distributed import (
    add_up,
    amp_dtype,
    any_rank,
    choose_device,
    copy_from_first,
    first_on_machine,
    from_first,
    in_process_group,
    is_first,
    pins_memory,
    processes_here,
    smallest,
    world_size,
)
from detector.duration import planned_epochs, seconds_of
from detector.errors import ConfigError, TrainingDiverged
from detector.evaluate import evaluate_family
from detector.families import build_family
from detector.fields import AUTO
from detector.finding import Settings
from detector.metrics import METRIC_NAMES, fitness
from detector.models import build_model
from detector.models.sync_norm import synchronise_norms
from detector.optim import (
    WeightAverage,
    build_optimizer,
    freeze,
    hold,
    rate_scale,
    set_norm_momentum,
    set_step,
)
from detector.pictures import FOUND, draw_batch, draw_found
from detector.record import (
    Row,
    epoch_line,
    headline,
    progress_text,
    write_result,
    write_results,
    write_settings,
)
from detector.render_device import device_sources
from detector.result import Result
from detector.schedule import Schedule
from detector.state import TrainingState, read_state
from detector.tracking import NullTracker, Tracker
from detector.validation import reference_losses

log = logging.getLogger("detector")

METRICS = ("fitness", *METRIC_NAMES)
CHECK_EVERY = 20  # steps between looks at the loss; each look waits for the device
SAVE_SECONDS = 600  # between two saves within a long epoch
WORTH_SAVING = 30  # seconds of training that an evaluation which is broken off must not cost
Report = Callable[[int, dict[str, float]], bool]
Item = TypeVar("Item")


@in_process_group
def train(
    config: TrainConfig,
    hyp: Hyp,
    directory: str | Path,
    *,
    report: Report | None = None,
    tracker: Tracker | None = None,
    callbacks: Callbacks | None = None,
    resume: bool = False,
) -> Result:
    """Train one detector and leave its files in `directory` (see DESIGN: results, weights, yaml).

    After each evaluated epoch `report(epoch, metrics)` is called; True ends the training. With
    `resume`, goes on from the newest whole state in `weights/`: the result equals an uninterrupted
    run. `callbacks` are called after each step and each epoch.

    Raises: `UserError` for wrong input, `TrainingDiverged` when the loss is not finite,
    `OutOfMemory`.

    With several processes (see distributed.py) all call this alike and get the same result; rank 0
    alone writes, logs to `tracker` and calls `report`.
    """
    started = time.monotonic()
    directory = Path(directory)
    tracker = tracker if tracker and is_first() else NullTracker()
    callbacks = callbacks or Callbacks()
    weights = directory / "weights"
    fitness(dict.fromkeys(METRIC_NAMES, 0.0), config.fitness)  # its weights, before any work
    check_schedule(config.schedule, hyp, config.epochs)
    _check_ranks(config)
    budget = seconds_of(config.time)

    # ---- device and precision
    device = choose_device(config.device)
    amp = amp_dtype(device, config.amp)
    autocast: dict[str, Any] = {
        "device_type": device.type,
        "dtype": amp,
        "enabled": amp != torch.float32,
    }
    scaler = torch.amp.GradScaler(device.type, enabled=amp == torch.float16)

    # ---- data
    with first_on_machine():  # it draws, downloads and decodes for all
        data = load_data(config.data)
        data = single_class(data) if config.single_cls else data
        all_samples = read_split(data, "train")
        train_samples = chosen_samples(all_samples, config)
        val_samples = read_split(data, "val") if config.validate else []
        train_cache = ImageCache(train_samples, config.imgsz, among=all_samples, where=config.cache)
        val_cache = ImageCache(val_samples, config.imgsz, where=config.cache)
    sources = device_sources(config.render, train_cache, device, free_memory(device))
    share = -(-hyp.nbs // world_size())  # images of a step on this rank, at most
    steps_per_epoch = -(-len(train_samples) // hyp.nbs)

    # ---- network, loss, optimizer, average
    previous = from_first(read_state, weights, config, hyp, data.names) if resume else None
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)  # of the CPU: weights are drawn there
        network = build_model(config.model, data.num_classes)
    set_anchors(network, config.anchors, train_samples, config.imgsz)
    if config.weights and not previous:
        loaded = load_weights(network, config.weights)
        log.info("%s: %d tensors loaded", config.weights, len(loaded.loaded))
        if loaded.reinitialised:
            log.info("re-initialised: %s", ", ".join(loaded.reinitialised))
    network = network.to(device, memory_format=torch.channels_last)
    if config.sync_bn and world_size() > 1:
        synchronise_norms(network, device)
    set_norm_momentum(network, hyp.bn_momentum)
    frozen = freeze(network, config.freeze)
    family = build_family(network, hyp)
    if config.batch == AUTO:
        fitting = automatic_batch(family, side_range(config)[1], share, device, amp)
        config = dataclasses.replace(config, batch=smallest(fitting))
        log.info("batch: %d images at once, of %d in a step", config.batch, hyp.nbs)
    optimizer = build_optimizer(config.optimizer, network, hyp)
    average = WeightAverage(network, hyp.ema_decay, hyp.ema_tau)
    averaged = build_family(average.module, hyp)
    rates = config.warmup, rate_scale(config, hyp)
    parameters = [weight for weight in network.parameters() if weight.requires_grad]
    loader = TrainingLoader(
        TrainingPictures(train_samples, train_cache, config.imgsz, hyp, config.seed),
        hyp.nbs,
        config.batch,
        workers=_worker_count(config.workers, device),
        pin_memory=pins_memory(device),
        rect=config.rect,
        sources=sources,
    )
    if config.compile:
        images = min(config.batch, share)
        compiled(network, lambda: rehearse(family, config.imgsz, images, device, amp))

    # ---- resume
    state = TrainingState(
        network, optimizer, scaler, average, config.epochs, class_map=[0.0] * data.num_classes
    )
    if previous:
        state.load(previous, device)
        what = "nothing is left to do" if state.epoch >= state.epochs else "going on"
        log.info("%s: %d of %d epochs are done, %s", weights, state.epoch, state.epochs, what)
    first_epoch, saved = state.epoch, time.monotonic()
    copy_from_first(network, average.module)
    if is_first():
        write_settings(directory, config, hyp)
    tracker.start(dataclasses.asdict(config), dataclasses.asdict(hyp), directory)
    log.info(headline(config, hyp, network))
    counts = f"{len(train_samples)} training and {len(val_samples)} validation images"
    log.info("%s, on %s in %s", counts, device, str(amp).removeprefix("torch."))

    # ---- loop
    ended, asked = "finished", False
    every = 1 if world_size() == 1 or device.type == "cpu" else CHECK_EVERY  # to agree on a stop
    while state.epoch < state.epochs and ended == "finished":
        epoch, epoch_started = state.epoch + 1, time.monotonic()
        schedule = Schedule(config.schedule, hyp, state.epochs, steps_per_epoch, *rates)
        tail = epoch > state.epochs - hyp.no_aug_epochs
        if tail:
            family.enter_tail()
        network.train()
        hold(frozen)
        if config.image_weights:
            loader.order.weights = image_weights(train_samples, state.class_map)
        skipped = state.epoch_step
        batches = tqdm(
            loader.epoch(epoch, tail, skipped), f"epoch {epoch}", len(loader), leave=False,
            disable=None if is_first() else True,
        )  # fmt: skip
        # Every step has equally many micro-batches, except perhaps the last one of an epoch.
        for window in windows(batches, loader.per_step):
            if state.step == 0 and is_first():
                draw_batch(window[0].to(device), data.names, directory / "train_batch0.jpg")
            set_step(optimizer, schedule.learning_rate(state.step), schedule.momentum(state.step))
            side = training_side(config, state.step)
            sums: dict[str, torch.Tensor] = {}
            try:
                for batch in window:
                    batch = batch.to(device).resized(side)
                    with torch.autocast(**autocast):
                        parts, positives = family.losses(batch.images, batch.targets)
                    alone = len(window) == 1 and world_size() == 1
                    divisor = positives.clamp(min=1) if alone else 1.0
                    scaler.scale(parts["total"] / divisor).backward()
                    add_to(sums, parts | {"positives": positives})
            except torch.OutOfMemoryError as error:
                raise OutOfMemory(side, min(config.batch, share)) from error
            gradients = [w.grad for w in parameters if w.grad is not None]
            add_up([*gradients, *sums.values()])  # over all ranks
            scaler.unscale_(optimizer)
            # One division for the whole step: k micro-batches on r ranks give one batch's gradient.
            # Of a batch that is the step alone the loss was divided: one number, not all weights.
            positives = sums.pop("positives").clamp(min=1)
            if not alone:
                torch._foreach_div_(gradients, positives)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            average.update()
            parts = {name: value / positives for name, value in sums.items()}
            add_to(state.totals, parts)
            state.step, state.epoch_step = state.step + 1, state.epoch_step + 1
            if state.step % CHECK_EVERY == 0:
                _stop_if_diverged(state.totals, state.step)
                rate = schedule.learning_rate(state.step - 1)
                text = progress_text(parts, rate, side, device)
                batches.set_postfix_str(text, refresh=False)
            asked |= bool(callbacks.on_step(state.step, parts))
            if state.step % every == 0 and any_rank(asked):
                ended = "interrupted"
                break
            if is_first() and time.monotonic() - saved > SAVE_SECONDS:
                state.save(weights, config, hyp, data.names)
                saved = time.monotonic()
        _stop_if_diverged(state.totals, state.step)
        if ended == "interrupted":
            if is_first():
                state.save(weights, config, hyp, data.names)
            break
        copy_from_first(network, average.module)  # each rank has its own batch-norm statistics
        trained = len(train_samples) - min(len(train_samples), skipped * hyp.nbs)
        speed = trained / (time.monotonic() - epoch_started)
        if is_first() and time.monotonic() - saved > WORTH_SAVING:
            state.save(weights, config, hyp, data.names)

        # ---- evaluate, record, save
        row: Row = {
            "epoch": epoch,
            "step": state.step,
            "lr": schedule.learning_rate(state.step - 1),
        }
        row |= {f"train/{name}": float(v) / steps_per_epoch for name, v in state.totals.items()}
        due = epoch % config.val_every == 0 or epoch == state.epochs or budget > 0
        if config.validate and due:
            settings = Settings(config.imgsz, rect=config.rect)
            found = evaluate_family(
                averaged, val_samples, val_cache, settings, data.num_classes, device
            )
            metrics = found.summary()
            state.evaluated(found, data.names)
            row |= metrics | {"fitness": fitness(metrics, config.fitness)}
        if config.val_loss and val_samples:
            row |= reference_losses(average.module, val_samples, val_cache, config, device)
        row |= {"images_per_second": speed, "seconds": time.monotonic() - epoch_started}
        row |= {"memory": peak_memory(device)}
        state.finish_epoch(row)
        if is_first():
            content = state.save(weights, config, hyp, data.names)
            if state.best["epoch"] == epoch:
                save_checkpoint(weights / "best.pt", content)
            write_results(directory / "results.csv", state.history)
        saved = time.monotonic()
        tracker.log(epoch, {name: value for name, value in row.items() if name != "epoch"})
        log.info(epoch_line(row, state.epochs, state.history[first_epoch:]))
        told = report and "fitness" in row and from_first(report, epoch, {**row})
        if any_rank(bool(callbacks.on_epoch(epoch, {**row}))) or told:
            ended = "stopped"
        elif config.patience and epoch - state.best["epoch"] >= config.patience:
            ended = "early stop"
            log.info("no better fitness for %d epochs: stopping", config.patience)
        if budget and not tail:
            done = [one["seconds"] for one in state.history]
            state.epochs = from_first(planned_epochs, done, budget)

    # ---- result
    last = state.history[-1] if state.history else {}
    metrics = {name: last[name] for name in METRICS if name in last}
    result = Result(
        fitness=metrics.get("fitness"),
        metrics=metrics,
        best=state.best,
        best_checkpoint=weights / "best.pt",
        directory=directory,
        epochs=state.epoch,
        seconds=time.monotonic() - started,
        ended=ended,
        per_class=state.per_class,
    )
    if is_first():
        write_result(directory / "result.json", result)
        if state.per_class and ended != "interrupted":
            own, path = Settings(config.imgsz, conf=state.confidence), directory / FOUND
            draw_found(averaged, val_samples, data.names, path, own, device)
    release(device)
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


def _check_ranks(config: TrainConfig) -> None:
    """Raise `ConfigError` for settings that several processes cannot use together."""
    if world_size() > 1 and config.sync_bn and config.batch == AUTO:
        raise ConfigError(
            "batch=auto is tried by each process alone, sync_bn needs all: name a batch"
        )


def _worker_count(wanted: int, device: torch.device) -> int:
    """On a CPU the network uses every core itself, so images are loaded in the same process."""
    if wanted >= 0:
        return wanted
    if device.type == "cpu":
        return 0
    return max(2, min(8, (os.cpu_count() or 8) // processes_here()))


def _stop_if_diverged(totals: dict[str, torch.Tensor], step: int) -> None:
    if not torch.isfinite(totals["total"]):
        raise TrainingDiverged(step, {name: float(value) for name, value in totals.items()})


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    from detector.train_command import main as command  # which imports this module

    return command(argv)


if __name__ == "__main__":
    raise SystemExit(main())
