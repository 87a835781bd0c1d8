"""A network with at most one hidden layer, trained in numpy with a trainer's hyperparameters."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evolve.space import Params

Array = NDArray[Any]
EPOCHS = 12
NEUTRAL: Params = {  # a hyperparameter that a problem does not have stands here
    "hidden": 0,
    "dropout": 0.0,
    "input_noise": 0.0,
    "label_smoothing": 0.0,
    "init_scale": 1.0,
    "shift": 0.0,
    "mixup": 0.0,
    "optimizer": "SGD",
}


@dataclass(frozen=True)
class NetworkTask:
    """Rows to learn from and rows to judge; `image` rows are 8 x 8 pixels that can be shifted."""

    features: Array  # (N, F)
    labels: Array  # (N,)
    check: Array  # (M, F)
    classes: int
    image: bool


def trained(task: NetworkTask, params: Params, rng: np.random.Generator) -> Iterator[Array]:
    """Train for EPOCHS and yield the logits of the rows to judge after each, (M, classes)."""
    settings = {**NEUTRAL, **params}
    weights = _initial(task, settings, rng)
    moments = [(np.zeros_like(weight), np.zeros_like(weight)) for weight in weights]
    count, batch = len(task.features), settings["batch"]
    steps = math.ceil(count / batch)
    step = 0
    with np.errstate(all="ignore"):  # a learning rate that blows up is a result, not a fault
        for _ in range(EPOCHS):
            order = rng.permutation(count)
            for first in range(0, count, batch):
                rows = order[first : first + batch]
                inputs, targets = _augmented(task, rows, settings, rng)
                slopes = _slopes(weights, inputs, targets, settings, rng)
                rate = _rate(settings, step / steps)
                step += 1
                weights, moments = _stepped(weights, slopes, moments, settings, rate, step)
            yield _logits(weights, task.check)


def _initial(task: NetworkTask, settings: Params, rng: np.random.Generator) -> list[Array]:
    """Return weight and bias of each layer in turn."""
    sizes = [task.features.shape[1], settings["hidden"], task.classes]
    sizes = [size for size in sizes if size]
    weights: list[Array] = []
    for inner, outer in itertools.pairwise(sizes):
        scale = settings["init_scale"] * math.sqrt(2.0 / inner)
        weights += [scale * rng.standard_normal((inner, outer)), np.zeros(outer)]
    return weights


def _augmented(
    task: NetworkTask, rows: Array, settings: Params, rng: np.random.Generator
) -> tuple[Array, Array]:
    inputs = task.features[rows]
    targets = np.full((len(rows), task.classes), settings["label_smoothing"] / task.classes)
    targets[np.arange(len(rows)), task.labels[rows]] += 1.0 - settings["label_smoothing"]
    if settings["shift"]:
        moved = rng.random(len(rows)) < settings["shift"]
        inputs = inputs.copy()
        inputs[moved] = _shifted(inputs[moved], task.image, rng)
    if settings["input_noise"]:
        scale = 0.5 if task.image else 1.0
        inputs = inputs + scale * settings["input_noise"] * rng.standard_normal(inputs.shape)
    if settings["mixup"]:
        share = 0.5 * settings["mixup"] * rng.random((len(rows), 1))
        other = rng.permutation(len(rows))
        inputs = (1 - share) * inputs + share * inputs[other]
        targets = (1 - share) * targets + share * targets[other]
    return inputs, targets


def _shifted(inputs: Array, image: bool, rng: np.random.Generator) -> Array:
    """Move pictures by a pixel, or all features of a row by one common amount."""
    if not image:
        return inputs + rng.standard_normal((len(inputs), 1))
    down, right = rng.integers(-1, 2, 2)
    pictures = np.roll(inputs.reshape(-1, 8, 8), (int(down), int(right)), axis=(1, 2))
    return pictures.reshape(inputs.shape)


def _slopes(
    weights: list[Array], inputs: Array, targets: Array, settings: Params, rng: np.random.Generator
) -> list[Array]:
    """Return the gradient of the cross-entropy for every weight."""
    if len(weights) == 2:
        delta = (_softmax(inputs @ weights[0] + weights[1]) - targets) / len(inputs)
        return [inputs.T @ delta, delta.sum(0)]
    hidden = np.maximum(inputs @ weights[0] + weights[1], 0.0)
    keep = (rng.random(hidden.shape) >= settings["dropout"]) / (1.0 - settings["dropout"])
    hidden = hidden * keep
    delta = (_softmax(hidden @ weights[2] + weights[3]) - targets) / len(inputs)
    back = (delta @ weights[2].T) * (hidden > 0) * keep
    return [inputs.T @ back, back.sum(0), hidden.T @ delta, delta.sum(0)]


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def _rate(settings: Params, epoch: float) -> float:
    """Return the learning rate: a linear warm-up, and a cosine from lr0 to lr0 * lrf."""
    cosine = 0.5 * (1.0 + math.cos(math.pi * epoch / EPOCHS))
    share = settings["lrf"] + (1.0 - settings["lrf"]) * cosine
    warm = min(1.0, (epoch + 0.05) / settings["warmup"]) if settings["warmup"] > 0.05 else 1.0
    return float(settings["lr0"] * share * warm)


def _stepped(
    weights: list[Array],
    slopes: list[Array],
    moments: list[tuple[Array, Array]],
    settings: Params,
    rate: float,
    step: int,
) -> tuple[list[Array], list[tuple[Array, Array]]]:
    """Return the weights after one step of SGD with momentum, or of Adam with decoupled decay."""
    momentum, decay = settings["momentum"], settings["weight_decay"]
    adam = settings["optimizer"] == "Adam"
    moved, kept = [], []
    for weight, slope, (first, second) in zip(weights, slopes, moments, strict=True):
        shrink = decay if weight.ndim > 1 else 0.0
        if adam:
            first = momentum * first + (1 - momentum) * slope
            second = 0.99 * second + 0.01 * slope**2
            mean = first / (1 - momentum**step)
            size = np.sqrt(second / (1 - 0.99**step)) + 1e-8
            moved.append(weight - rate * (mean / size + 10.0 * shrink * weight))
        else:
            first = momentum * first + slope + shrink * weight
            moved.append(weight - rate * first)
        kept.append((first, second))
    return moved, kept


def _logits(weights: list[Array], inputs: Array) -> Array:
    for layer in range(0, len(weights) - 2, 2):
        inputs = np.maximum(inputs @ weights[layer] + weights[layer + 1], 0.0)
    return np.asarray(inputs @ weights[-2] + weights[-1])
