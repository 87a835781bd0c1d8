"""Real trainings of milliseconds on the data sets that scikit-learn brings along.

The benchmark seed draws which rows a problem has; a trial's seed draws the split into training and
validation, the initialisation and the order, as in real tuning. Higher is better everywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.search_network import EPOCHS, NetworkTask, trained
from evolve.space import Params

Array = NDArray[Any]
Measure = Callable[[Params, int], list[float]]
Keys = dict[str, dict[str, Any]]

LOSS_WEIGHT = 0.2  # of the log-loss beside the accuracy, so that the value is smooth
LOSS_LIMIT = 4.0  # the most that one row can lose


@dataclass(frozen=True)
class Training:
    """A space with what a sensible person would ship, and `prepare(benchmark seed)`."""

    space: Keys
    start: Params
    prepare: Callable[[int], Measure]
    epochs: int = 1


@cache
def table(name: str) -> tuple[Array, Array]:
    """Return the features and targets of a bundled data set."""
    from sklearn import datasets

    features, target = getattr(datasets, f"load_{name}")(return_X_y=True)
    return np.asarray(features, dtype=np.float64), np.asarray(target)


def rows_of(name: str, count: int, seed: int) -> tuple[Array, Array]:
    """Return the rows of a problem, features standardised (digits: 0 to 1)."""
    features, target = table(name)
    chosen = np.random.default_rng([seed, len(features)]).permutation(len(features))[:count]
    features, target = features[chosen], target[chosen]
    if name == "digits":
        return features / 16.0, target
    return (features - features.mean(0)) / (features.std(0) + 1e-9), target


def split(count: int, held_out: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return the rows to train on and those to validate on."""
    order = rng.permutation(count)
    return order[held_out:], order[:held_out]


def classified(logits: Array, labels: Array) -> float:
    """Return accuracy minus a share of the log-loss; a training that blew up gets the least."""
    if not np.isfinite(logits).all():
        return -LOSS_WEIGHT * LOSS_LIMIT
    shifted = logits - logits.max(1, keepdims=True)
    chance = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))  # (rows, classes), log
    loss = np.minimum(-chance[np.arange(len(labels)), labels], LOSS_LIMIT)
    return float((logits.argmax(1) == labels).mean() - LOSS_WEIGHT * loss.mean())


def explained(predicted: Array, target: Array, scale: float) -> float:
    """Return the share of the variance that is explained, at least -1."""
    return max(-1.0, 1.0 - float(((predicted - target) ** 2).mean()) / scale**2)


def network(name: str, count: int, held_out: int, *, image: bool = False) -> Callable[..., Measure]:
    """Return the preparation of a network training."""

    def prepare(seed: int) -> Measure:
        features, target = rows_of(name, count, seed)
        classes = int(target.max()) + 1

        def measure(params: Params, trial_seed: int) -> list[float]:
            rng = np.random.default_rng(trial_seed)
            learn, check = split(len(features), held_out, rng)
            task = NetworkTask(features[learn], target[learn], features[check], classes, image)
            return [classified(logits, target[check]) for logits in trained(task, params, rng)]

        return measure

    return prepare


def svc_digits(seed: int) -> Measure:
    """Return a support-vector training on ten principal components with a scale each."""
    from sklearn.svm import SVC

    features, target = rows_of("digits", 600, seed)
    features = features - features.mean(0)
    axes = np.linalg.svd(features, full_matrices=False)[2][:10]
    features = features @ axes.T
    features /= features.std(0)

    def measure(params: Params, trial_seed: int) -> list[float]:
        learn, check = split(len(features), 350, np.random.default_rng(trial_seed))
        scaled = features * np.array([params[f"scale{index}"] for index in range(10)])
        model = SVC(C=params["cost"], gamma=params["gamma"], decision_function_shape="ovr")
        model.fit(scaled[learn], target[learn])
        logits = np.full((len(check), 10), -3.0)
        logits[:, model.classes_] = model.decision_function(scaled[check])
        return [classified(logits * params["sharpness"], target[check])]

    return measure


def kernel_diabetes(seed: int) -> Measure:
    """Return a kernel ridge regression with a scale for every feature."""
    features, target = rows_of("diabetes", 420, seed)
    target = (target - target.mean()) / target.std()
    names = [f"scale{index}" for index in range(features.shape[1])]

    def measure(params: Params, trial_seed: int) -> list[float]:
        learn, check = split(len(features), 180, np.random.default_rng(trial_seed))
        scaled = features * np.sqrt(params["gamma"]) * np.array([params[name] for name in names])
        squares = (scaled**2).sum(1)
        apart = np.maximum(squares[:, None] + squares[learn] - 2 * scaled @ scaled[learn].T, 0.0)
        kernel = np.exp(-apart if params["kernel"] == "gauss" else -np.sqrt(apart))
        ridge = kernel[learn] + params["alpha"] * np.eye(len(learn))
        middle = target[learn].mean()
        weights = np.linalg.solve(ridge, target[learn] - middle)
        return [explained(kernel[check] @ weights + middle, target[check], 1.0)]

    return measure


def knn_wine(seed: int) -> Measure:
    """Return a vote of neighbours with a weight for every feature."""
    features, target = rows_of("wine", 168, seed)
    names = [f"weight{index:02}" for index in range(features.shape[1])]

    def measure(params: Params, trial_seed: int) -> list[float]:
        learn, check = split(len(features), 90, np.random.default_rng(trial_seed))
        scaled = features * np.array([params[name] for name in names])
        gaps = np.abs(scaled[check][:, None] - scaled[learn][None])  # (check, learn, features)
        apart = gaps.sum(2) if params["metric"] == "city" else np.sqrt((gaps**2).sum(2))
        near = np.argsort(apart, axis=1, kind="stable")[:, : params["k"]]
        weight = (np.take_along_axis(apart, near, 1) + 1e-3) ** -params["power"]
        votes = np.zeros((len(check), 3))
        for label in range(3):
            votes[:, label] = (weight * (target[learn][near] == label)).sum(1)
        share = votes / votes.sum(1, keepdims=True)
        return [classified(np.log(share + params["prior"]), target[check])]

    return measure


def trees_diabetes(seed: int) -> Measure:
    """Return a small forest."""
    from sklearn.ensemble import ExtraTreesRegressor

    features, target = rows_of("diabetes", 420, seed)

    def measure(params: Params, trial_seed: int) -> list[float]:
        learn, check = split(len(features), 180, np.random.default_rng(trial_seed))
        model = ExtraTreesRegressor(**params, random_state=trial_seed % 2**31)
        predicted = model.fit(features[learn], target[learn]).predict(features[check])
        return [explained(predicted, target[check], float(target.std()))]

    return measure


STAGES = (2, 4, 6, 8, 10, 12, 14, 16, 18, 20)  # trees after which boosting reports


def boost_diabetes(seed: int) -> Measure:
    """Return gradient boosting with 20 trees; two trees count as an epoch."""
    from sklearn.ensemble import GradientBoostingRegressor

    features, target = rows_of("diabetes", 360, seed)
    scale = float(target.std())

    def measure(params: Params, trial_seed: int) -> list[float]:
        learn, check = split(len(features), 180, np.random.default_rng(trial_seed))
        model = GradientBoostingRegressor(
            **params, n_estimators=STAGES[-1], random_state=trial_seed % 2**31
        )
        model.fit(features[learn], target[learn])
        stages = list(model.staged_predict(features[check]))
        return [explained(stages[trees - 1], target[check], scale) for trees in STAGES]

    return measure


NETWORK_SPACE: Keys = {
    "lr0": {"low": 1e-3, "high": 1.0, "log": True},
    "lrf": {"low": 1e-3, "high": 1.0, "log": True},
    "momentum": {"low": 0.0, "high": 0.98},
    "weight_decay": {"low": 1e-6, "high": 1e-1, "log": True},
    "warmup": {"low": 0.0, "high": 4.0},
    "batch": {"low": 8, "high": 128, "log": True, "int": True},
    "hidden": {"low": 8, "high": 64, "log": True, "int": True},
    "dropout": {"low": 0.0, "high": 0.6},
    "input_noise": {"low": 0.0, "high": 1.0},
    "label_smoothing": {"low": 0.0, "high": 0.3},
    "init_scale": {"low": 0.1, "high": 4.0, "log": True},
    "shift": {"low": 0.0, "high": 1.0},
    "mixup": {"low": 0.0, "high": 1.0},
    "optimizer": {"choices": ["SGD", "Adam"]},
}
NETWORK_START: Params = {
    "lr0": 0.01,
    "lrf": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "warmup": 1.0,
    "batch": 32,
    "hidden": 32,
    "dropout": 0.1,
    "input_noise": 0.0,
    "label_smoothing": 0.0,
    "init_scale": 1.0,
    "shift": 0.0,
    "mixup": 0.0,
    "optimizer": "SGD",
}


def network_training(prepare: Callable[[int], Measure], without: tuple[str, ...] = ()) -> Training:
    """Return a network training in which some hyperparameters are not searched."""
    space = {name: keys for name, keys in NETWORK_SPACE.items() if name not in without}
    start = {name: NETWORK_START[name] for name in space}
    return Training(space, start, prepare, EPOCHS)


SCALE = {"low": 0.1, "high": 10.0, "log": True}
TRAININGS: dict[str, Training] = {
    "mlp-digits": network_training(network("digits", 700, 300, image=True)),
    "mlp-cancer": network_training(network("breast_cancer", 500, 350), ("shift", "optimizer")),
    "mlp-wine": network_training(network("wine", 168, 90)),
    "softmax-digits": network_training(
        network("digits", 600, 300, image=True), ("hidden", "dropout", "init_scale")
    ),
    "svc-digits": Training(
        {f"scale{index}": dict(SCALE) for index in range(10)}
        | {
            "cost": {"low": 1e-2, "high": 1e3, "log": True},
            "gamma": {"low": 1e-3, "high": 1.0, "log": True},
            "sharpness": {"low": 0.1, "high": 10.0, "log": True},
        },
        {f"scale{index}": 1.0 for index in range(10)}
        | {"cost": 1.0, "gamma": 0.1, "sharpness": 1.0},
        svc_digits,
    ),
    "kernel-diabetes": Training(
        {f"scale{index}": dict(SCALE) for index in range(10)}
        | {
            "alpha": {"low": 1e-3, "high": 1e2, "log": True},
            "gamma": {"low": 1e-3, "high": 1.0, "log": True},
            "kernel": {"choices": ["gauss", "laplace"]},
        },
        {f"scale{index}": 1.0 for index in range(10)}
        | {"alpha": 1.0, "gamma": 0.1, "kernel": "gauss"},
        kernel_diabetes,
    ),
    "knn-wine": Training(
        {f"weight{index:02}": {"low": 0.0, "high": 3.0} for index in range(13)}
        | {
            "k": {"low": 1, "high": 40, "log": True, "int": True},
            "power": {"low": 0.0, "high": 4.0},
            "prior": {"low": 1e-3, "high": 1.0, "log": True},
            "metric": {"choices": ["euclid", "city"]},
        },
        {f"weight{index:02}": 1.0 for index in range(13)}
        | {"k": 5, "power": 0.0, "prior": 0.1, "metric": "euclid"},
        knn_wine,
    ),
    "trees-diabetes": Training(
        {
            "n_estimators": {"low": 4, "high": 20, "log": True, "int": True},
            "max_depth": {"low": 2, "high": 16, "int": True},
            "min_samples_leaf": {"low": 1, "high": 40, "log": True, "int": True},
            "min_samples_split": {"low": 2, "high": 40, "log": True, "int": True},
            "max_features": {"low": 0.1, "high": 1.0},
            "max_leaf_nodes": {"low": 4, "high": 200, "log": True, "int": True},
            "ccp_alpha": {"low": 0.1, "high": 200.0, "log": True},
            "bootstrap": {"choices": [False, True]},
        },
        {
            "n_estimators": 12,
            "max_depth": 16,
            "min_samples_leaf": 1,
            "min_samples_split": 2,
            "max_features": 1.0,
            "max_leaf_nodes": 200,
            "ccp_alpha": 0.1,
            "bootstrap": False,
        },
        trees_diabetes,
    ),
    "boost-diabetes": Training(
        {
            "learning_rate": {"low": 0.01, "high": 1.0, "log": True},
            "max_depth": {"low": 1, "high": 6, "int": True},
            "min_samples_leaf": {"low": 1, "high": 60, "log": True, "int": True},
            "min_samples_split": {"low": 2, "high": 40, "log": True, "int": True},
            "max_features": {"low": 0.1, "high": 1.0},
            "subsample": {"low": 0.2, "high": 1.0},
            "min_impurity_decrease": {"low": 1e-2, "high": 1e3, "log": True},
            "loss": {"choices": ["squared_error", "absolute_error", "huber"]},
        },
        {
            "learning_rate": 0.1,
            "max_depth": 3,
            "min_samples_leaf": 1,
            "min_samples_split": 2,
            "max_features": 1.0,
            "subsample": 1.0,
            "min_impurity_decrease": 1e-2,
            "loss": "squared_error",
        },
        boost_diabetes,
        len(STAGES),
    ),
}
