"""Cheap objectives that tests name in their evolve.yaml; workers import them by that name."""

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any


def quadratic(params: dict[str, Any], context: Any) -> dict[str, float]:
    """A hill of height 1 at the middle of [0, 1]^n; leaves calls.txt and weights."""
    _leave_traces(context)
    genes = [value for name, value in params.items() if name.startswith("x")]
    return {"fitness": 1.0 - sum((value - 0.5) ** 2 for value in genes)}


def noisy(params: dict[str, Any], context: Any) -> dict[str, float]:
    """The hill with noise that depends on the seed alone."""
    hill = quadratic(params, context)["fitness"]
    return {"score": hill, "luck": (context.seed % 1000) / 1000.0}


def held_out(params: dict[str, Any], context: Any) -> dict[str, float]:
    """The hill; on the test split, where that is asked for, it is a tenth lower and noisy."""
    hill = quadratic(params, context)["fitness"]
    if "test/" not in context.wanted:
        return {"fitness": hill}
    return {"fitness": hill, "test/fitness": hill - 0.1 + (context.seed % 7) / 1000}


def slow(params: dict[str, Any], context: Any) -> dict[str, float]:
    """The hill, 0.2 s later."""
    time.sleep(0.2)
    return quadratic(params, context)


def stuck(params: dict[str, Any], context: Any) -> dict[str, float]:
    """The hill; trial 2 waits for ever in its first attempt."""
    if context.directory.name == "2" and context.attempt == 1:
        (context.directory / "waiting").touch()
        time.sleep(120)
    return quadratic(params, context)


def curve(params: dict[str, Any], context: Any) -> dict[str, float]:
    """The hill, approached in 9 epochs; a better place is better in all of them."""
    height = 1.0 - sum((value - 0.5) ** 2 for name, value in params.items() if name[0] == "x")
    for epoch in range(9):
        value = height * (1.0 - 0.5 ** (epoch + 1))
        if context.report(epoch, {"fitness": value}):
            return {"fitness": value}
    return {"fitness": height}


def disk_full(params: dict[str, Any], context: Any) -> dict[str, float]:
    """The hill; trial 2 finds no space in its first attempt."""
    if context.directory.name == "2" and context.attempt == 1:
        raise RuntimeError("cannot save") from OSError(errno.ENOSPC, "No space left on device")
    return quadratic(params, context)


def broken(params: dict[str, Any], context: Any) -> dict[str, float]:
    """Always the same error."""
    raise FileNotFoundError(f"data/none.yaml is missing (trial {context.directory.name})")


def not_a_number(params: dict[str, Any], context: Any) -> dict[str, float]:
    """NaN where x is small, the hill elsewhere."""
    if params["x"] < 0.5 and int(context.directory.name) > 0:
        return {"fitness": float("nan")}
    return quadratic(params, context)


class TrainingDiverged(RuntimeError):
    """The name that every trainer's divergence is known by."""


def diverging(params: dict[str, Any], context: Any) -> dict[str, float]:
    """Trial 1 diverges."""
    if context.directory.name == "1":
        raise TrainingDiverged("the loss is not finite at step 3")
    return quadratic(params, context)


def first_fails_once(params: dict[str, Any], context: Any) -> dict[str, float]:
    """Trial 0 fails."""
    if context.directory.name == "0":
        raise RuntimeError("a crash in trial 0")
    return quadratic(params, context)


def suicidal(params: dict[str, Any], context: Any) -> dict[str, float]:
    """Trial 1 kills its process in its first attempt, trial 2 in every one."""
    number = context.directory.name
    if (number == "1" and context.attempt == 1) or number == "2":
        os.kill(os.getpid(), signal.SIGKILL)
    return quadratic(params, context)


def trained(params: dict[str, Any], context: Any) -> dict[str, float]:
    """What a detector's training returns."""
    good = 0.5 - abs(params["lr0"] - 0.02)
    return {"mAP50": good, "F1": good, "precision": good, "recall": good}


def dies_late(params: dict[str, Any], context: Any) -> dict[str, float]:
    """Trial 1 kills its process after half a second of its first attempt."""
    if context.directory.name == "1" and context.attempt == 1:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    return quadratic(params, context)


def talkative(params: dict[str, Any], context: Any) -> dict[str, float]:
    """Prints what it was given."""
    print(
        f"devices={context.devices} threads={context.threads} omp={os.environ['OMP_NUM_THREADS']}"
    )
    os.system("echo from a child process")
    return {"fitness": float(context.threads)}


def _leave_traces(context: Any) -> None:
    folder = Path(context.directory)
    with (folder / "calls.txt").open("a") as file:
        file.write(f"{context.attempt} {context.seed}\n")
    (folder / "weights").mkdir(exist_ok=True)
    (folder / "weights" / "best.pt").write_text("weights")


def sized(params: dict[str, Any], context: Any) -> dict[str, float]:
    """The hill; a larger x takes longer. Latency comes only if it is wanted."""
    metrics = quadratic(params, context) | {"parameters": 1e6 * params["x"]}
    if "latency_ms" in context.wanted:
        metrics["latency_ms"] = 10.0 * params["x"]
    return metrics


def idle_gene(params: dict[str, Any], context: Any) -> dict[str, float]:
    """The hill in epochs; y does nothing. Counts its epochs in a file beside the study."""
    for epoch in range(3):
        with Path("epochs.txt").open("a") as file:
            file.write(f"{epoch}\n")
        if context.report(epoch, {"fitness": float(params["x"])}):
            break
    return {"fitness": float(params["x"])}


def hanging(params: dict[str, Any], context: Any) -> dict[str, float]:
    """The hill; trial 1 hangs in its first attempt, trial 2 in every one after a report."""
    number = context.directory.name
    if number == "1" and context.attempt == 1:
        time.sleep(60)
    while number == "2":
        context.report(0, {"fitness": 0.1})
        time.sleep(0.05)
    return quadratic(params, context)


def greedy(params: dict[str, Any], context: Any) -> dict[str, float]:
    """The hill; trial 2 has no memory as long as another trial runs; all say when they run."""
    with Path("times.txt").open("a") as file:
        file.write(f"{context.directory.name} {time.monotonic()} begin\n")
    time.sleep(0.3)
    if context.directory.name == "2" and context.attempt == 1:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
    with Path("times.txt").open("a") as file:
        file.write(f"{context.directory.name} {time.monotonic()} end\n")
    return quadratic(params, context)
