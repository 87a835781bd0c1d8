"""A Gaussian process on the unit cube: what a study's trials say of places nobody has tried.

Letters of array shapes: N observations, M places to predict, G genes, D columns of the features (a
categorical gene has one for each choice). Higher is better; values are in standard units.

Sources: Rasmussen and Williams 2006, chapters 2 and 5 (the process, its likelihood, its gradient);
Hvarfner et al. 2024, arXiv 2402.02746 (length scales that grow with the root of the dimension).
"""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize

Array = NDArray[np.float64]

SQRT5 = math.sqrt(5.0)
ITERATIONS = 60  # of the likelihood's optimizer
JITTER = 1e-8  # of the signal variance, so that equal places can be told apart by the solver
IMPOSSIBLE = 1e10  # loss of hyperparameters whose covariance cannot be factorised


@dataclass(frozen=True)
class Beliefs:
    """What is expected of hyperparameters before any trial: normal in the logarithm (mean, sd).

    `length` is the common length scale for one gene; it grows with the root of their number.
    `spread` is the sd of single genes around it: the smaller, the less a young study believes
    that some genes matter and others do not.
    """

    length: tuple[float, float] = (math.log(0.5), 0.6)
    spread: float = 0.4
    signal: tuple[float, float] = (1.0, 1.5)
    noise: tuple[float, float] = (-1.5, 1.5)
    least_noise: float = 1e-6


@dataclass(frozen=True)
class Hyper:
    """Kernel hyperparameters: `lengths` (G,) on the cube, `signal` and `noise` variances."""

    lengths: Array
    signal: float
    noise: float

    @staticmethod
    def of(vector: Array) -> "Hyper":
        """Return the hyperparameters of their logarithms (G + 2,)."""
        return Hyper(np.exp(vector[:-2]), math.exp(vector[-2]), math.exp(vector[-1]))


@dataclass(frozen=True)
class Shape:
    """How genes become features: `choices` (G,) is their number, 0 for a gene with an order."""

    choices: tuple[int, ...]
    columns: NDArray[np.intp] = field(init=False)  # (D,) the gene of each column
    ordered: NDArray[np.bool_] = field(init=False)  # (G,)

    def __post_init__(self) -> None:
        repeats = [max(1, count) for count in self.choices]
        object.__setattr__(self, "columns", np.repeat(np.arange(len(repeats)), repeats))
        object.__setattr__(self, "ordered", np.array([count == 0 for count in self.choices]))

    def features(self, cubes: Array) -> Array:
        """Return (N, D) of places (N, G): two different choices are 1 apart."""
        if not any(self.choices):
            return cubes
        columns = []
        for gene, count in enumerate(self.choices):
            place = cubes[:, gene]
            if count:
                chosen = np.minimum((place * count).astype(int), count - 1)
                columns.append((chosen[:, None] == np.arange(count)) / math.sqrt(2.0))
            else:
                columns.append(place[:, None])
        return np.hstack(columns)

    def by_gene(self, columns: Array) -> Array:
        """Return sums over the columns of each gene, (G,)."""
        return np.bincount(self.columns, columns, minlength=len(self.choices)).astype(np.float64)


class Surrogate:
    """The process conditioned on values (N,) at places (N, G); `extra` (N,) is known variance."""

    def __init__(
        self, shape: Shape, cubes: Array, values: Array, hyper: Hyper, extra: Array | float = 0.0
    ) -> None:
        self.shape = shape
        self.hyper = hyper
        self._scale = 1.0 / hyper.lengths[shape.columns]  # (D,)
        self._features = shape.features(cubes) * self._scale
        covariance, _ = _matern(_distances(self._features, self._features), hyper.signal)
        covariance[np.diag_indices_from(covariance)] += hyper.noise + extra + JITTER * hyper.signal
        self._factor = cho_factor(covariance, lower=True, check_finite=False)
        ones = cho_solve(self._factor, np.ones(len(values)), check_finite=False)
        self.level = float(ones @ values / ones.sum())
        self._alpha = cho_solve(self._factor, values - self.level, check_finite=False)

    def predict(self, cubes: Array) -> tuple[Array, Array]:
        """Return mean and standard deviation of the noise-free value at places (M, G)."""
        places = self.shape.features(cubes) * self._scale
        across, _ = _matern(_distances(places, self._features), self.hyper.signal)  # (M, N)
        half = solve_triangular(self._factor[0], across.T, lower=True, check_finite=False)
        variance = self.hyper.signal - np.einsum("nm,nm->m", half, half)
        return self.level + across @ self._alpha, np.sqrt(np.maximum(variance, 1e-12))

    def difference(self, cubes: Array, origin: Array) -> tuple[Array, Array]:
        """Return mean and sd of what places (M, G) are better than one place (G,), each (M,)."""
        mean, sd = self.predict(cubes)
        mean_origin, sd_origin = self.predict(origin[None, :])
        both = [self.shape.features(places) * self._scale for places in (cubes, origin[None, :])]
        across, at_origin = (
            _matern(_distances(places, self._features), self.hyper.signal)[0] for places in both
        )
        shared, _ = _matern(_distances(both[0], both[1]), self.hyper.signal)  # (M, 1)
        weighted = cho_solve(self._factor, at_origin.T, check_finite=False)  # (N, 1)
        covariance = (shared - across @ weighted)[:, 0]
        variance = sd**2 + sd_origin**2 - 2.0 * covariance
        return mean - mean_origin, np.sqrt(np.maximum(variance, 1e-12))

    def slope(self, cube: Array) -> tuple[float, float, Array, Array]:
        """Return mean and sd at one place (G,), and their gradients (G,), 0 for choices."""
        place = self.shape.features(cube[None, :]) * self._scale  # (1, D)
        difference = place - self._features  # (N, D)
        distance = np.sqrt(np.einsum("nd,nd->n", difference, difference))
        across, rate = _matern(distance, self.hyper.signal)  # (N,)
        weighted = cho_solve(self._factor, across, check_finite=False)
        sd = math.sqrt(max(self.hyper.signal - float(across @ weighted), 1e-12))
        mean_slope = -(self._alpha * rate) @ difference * self._scale  # (D,)
        sd_slope = (weighted * rate) @ difference * self._scale / sd
        return (
            self.level + float(across @ self._alpha),
            sd,
            np.where(self.shape.ordered, self.shape.by_gene(mean_slope), 0.0),
            np.where(self.shape.ordered, self.shape.by_gene(sd_slope), 0.0),
        )


def fit(
    shape: Shape,
    cubes: Array,
    values: Array,
    extra: Array | float = 0.0,
    beliefs: Beliefs | None = None,
) -> Hyper:
    """Return the most probable hyperparameters for values (N,) at places (N, G)."""
    beliefs = beliefs or Beliefs()
    genes = len(shape.choices)
    features = shape.features(cubes)
    length = beliefs.length[0] + 0.5 * math.log(genes)
    first = np.array([*[length] * genes, beliefs.signal[0], beliefs.noise[0]])
    low = np.log([*[0.02] * genes, 0.05, beliefs.least_noise])
    high = np.log([*[1e3] * genes, 50.0, 2.0])

    def loss(vector: Array) -> tuple[float, Array]:
        value, slope = _likelihood(vector, shape, features, values, extra)
        surprise, rise = _surprise(vector, length, beliefs)
        return value + surprise, slope + rise

    found = minimize(
        loss,
        first,
        jac=True,
        method="L-BFGS-B",
        bounds=list(zip(low, high, strict=True)),
        options={"maxiter": ITERATIONS},
    )
    return Hyper.of(found.x if found.fun < IMPOSSIBLE else first)


def _surprise(vector: Array, length: float, beliefs: Beliefs) -> tuple[float, Array]:
    """Return the negative log prior density of the hyperparameters, and its gradient."""
    genes = len(vector) - 2
    slope = np.empty_like(vector)
    common = vector[:-2].mean() - length
    single = vector[:-2] - vector[:-2].mean()
    common_variance = beliefs.length[1] ** 2 + beliefs.spread**2 / genes
    value = common**2 / (2 * common_variance) + float(single @ single) / (2 * beliefs.spread**2)
    slope[:-2] = common / common_variance / genes + single / beliefs.spread**2
    for index, (mean, sd) in ((-2, beliefs.signal), (-1, beliefs.noise)):
        value += (vector[index] - mean) ** 2 / (2 * sd**2)
        slope[index] = (vector[index] - mean) / sd**2
    return value, slope


def _likelihood(
    vector: Array, shape: Shape, features: Array, values: Array, extra: Array | float
) -> tuple[float, Array]:
    """Return the negative log likelihood and its gradient. Source: Rasmussen, 2.30 and 5.9."""
    signal, noise = math.exp(vector[-2]), math.exp(vector[-1])
    scaled = features * np.exp(-vector[:-2])[shape.columns]
    kernel, rate = _matern(_distances(scaled, scaled), signal)
    covariance = kernel.copy()
    covariance[np.diag_indices_from(covariance)] += noise + extra + JITTER * signal
    try:
        factor = cho_factor(covariance, lower=True, check_finite=False)
    except np.linalg.LinAlgError:
        return IMPOSSIBLE, np.zeros_like(vector)
    inverse = cho_solve(factor, np.eye(len(values)), check_finite=False)
    row_sums = inverse.sum(axis=1)
    centred = values - float(row_sums @ values / row_sums.sum())
    alpha = inverse @ centred
    value = 0.5 * float(centred @ alpha) + float(np.log(np.diag(factor[0])).sum())
    weight = 0.5 * (inverse - np.outer(alpha, alpha))  # d value / d covariance
    pull = weight * rate
    # for each column the sum over pairs of pull * (a - b)^2, without an array of (N, N, D)
    by_column = 2.0 * (pull.sum(axis=1) @ scaled**2 - np.einsum("nd,nd->d", scaled, pull @ scaled))
    slope = np.empty_like(vector)
    slope[:-2] = shape.by_gene(by_column)
    slope[-2] = float(np.sum(weight * kernel)) + JITTER * signal * float(np.trace(weight))
    slope[-1] = noise * float(np.trace(weight))
    return value, slope


def _matern(distance: Array, signal: float) -> tuple[Array, Array]:
    """Return the Matérn 5/2 covariance k of scaled distances, and the rate r: dk/dx = -r (x - x').

    Source: Rasmussen, 4.17.
    """
    decay = signal * np.exp(-SQRT5 * distance)
    line = 1.0 + SQRT5 * distance
    return decay * (line + 5.0 / 3.0 * distance**2), 5.0 / 3.0 * decay * line


def _distances(first: Array, second: Array) -> Array:
    squared = -2.0 * first @ second.T
    squared += np.einsum("md,md->m", first, first)[:, None]
    squared += np.einsum("nd,nd->n", second, second)[None, :]
    return np.sqrt(np.maximum(squared, 0.0))
