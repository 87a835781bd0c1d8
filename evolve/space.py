"""The search space: what each gene may be, and its place on the unit cube.

Samplers work on the unit cube and never see names or units: logarithms, steps, integers and choices
are undone here. A gene is found by its name, never by its position, and mutation adds on the cube,
so that a value of 0 can leave 0 and a negative range keeps its sign.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from evolve.errors import ConfigError, did_you_mean

Value = bool | int | float | str | None
Params = dict[str, Any]
Cube = NDArray[np.float64]  # (genes,) in [0, 1], in the order of Space.names

GENE_KEYS = ("low", "high", "log", "step", "int", "choices", "sigma", "locked")
DEFAULT_SIGMA = 0.15


@dataclass(frozen=True)
class Gene:
    """One searched value: a range `low` to `high`, or `choices`.

    `sigma` is the standard deviation of a mutation as a share of the range (after the logarithm);
    `integer` comes with a whole `step`; a `locked` gene stays at its start value.
    """

    name: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    step: float | None = None
    integer: bool = False
    choices: tuple[Value, ...] = ()
    sigma: float = DEFAULT_SIGMA
    locked: bool = False

    @property
    def cells(self) -> int:
        """Number of different values; 0 for a continuous gene."""
        if self.choices:
            return len(self.choices)
        return 0 if self.step is None else round((self.high - self.low) / self.step) + 1

    def distribution(self) -> BaseDistribution:
        """Return the Optuna distribution with the same values."""
        if self.choices:
            return CategoricalDistribution(self.choices)
        if self.integer:
            low, high, step = (round(number) for number in (self.low, self.high, self.step or 1))
            return IntDistribution(low, high, log=self.log, step=step)
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def to_unit(self, value: Any) -> float:
        """Return the place of a value on [0, 1]; a grid value is in the middle of its cell."""
        if self.choices:
            return (self._index(value) + 0.5) / len(self.choices)
        low, high = self._edges()
        place = math.log(value) if self.log else float(value)
        return min(max((place - low) / (high - low), 0.0), 1.0)

    def from_unit(self, place: float) -> Value:
        """Return the value at a place on [0, 1]; every grid value owns an equal share."""
        if self.choices:
            return self.choices[min(int(place * len(self.choices)), len(self.choices) - 1)]
        low, high = self._edges()
        value = low + place * (high - low)
        return self._on_grid(math.exp(value) if self.log else value)

    def nearest(self, value: Any, source: str) -> Value:
        """Return the allowed value next to `value`.

        Raises: ConfigError if it is not one of the choices, or not a finite number.
        """
        if self.choices:
            return self.choices[self._index(value, source)]
        return self._on_grid(finite_number(value, f"{source}: {self.name}"))

    def middle(self) -> Value:
        """Return the middle of the range, or the first choice."""
        return self.choices[0] if self.choices else self.from_unit(0.5)

    def _index(self, value: Any, source: str = "space") -> int:
        for index, choice in enumerate(self.choices):
            if choice == value and isinstance(choice, bool) == isinstance(value, bool):
                return index
        allowed = ", ".join(str(choice) for choice in self.choices)
        raise ConfigError(f"{source}: {self.name}={value} is not a choice; allowed: {allowed}")

    def _edges(self) -> tuple[float, float]:
        half = 0.5 * (self.step or 0.0)
        low, high = self.low - half, self.high + half
        return (math.log(low), math.log(high)) if self.log else (low, high)

    def _on_grid(self, value: float) -> Value:
        if self.step is not None:  # 12 digits: 0.1 + 2 * 0.1 is meant to be 0.3
            steps = round((value - self.low) / self.step)
            value = float(f"{self.low + steps * self.step:.12g}")
        else:  # a gene that was not moved comes back from a logarithm as it was
            value = float(f"{value:.9g}")
        value = min(max(value, self.low), self.high)
        return round(value) if self.integer else value


@dataclass(frozen=True)
class Space:
    """The genes of a search, sorted by name, so that the order of a file decides nothing."""

    genes: tuple[Gene, ...]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str = "") -> "Space":
        """Build a space from `{name: {low, high, log, step, int, choices, sigma, locked}}`.

        `source` is the file to name in messages. Raises: ConfigError.
        """
        prefix = f"{source}: space" if source else "space"
        if not isinstance(data, Mapping):
            raise ConfigError(f"{prefix} must map names to ranges, got {data!r}")
        genes = [_gene(str(name), keys, f"{prefix}.{name}") for name, keys in data.items()]
        return cls(tuple(sorted(genes, key=lambda gene: gene.name)))

    @classmethod
    def from_distributions(cls, distributions: Mapping[str, BaseDistribution]) -> "Space":
        """Build a space from Optuna distributions; those of a single value are left out."""
        genes = [_gene_of(name, kind) for name, kind in sorted(distributions.items())]
        return cls(tuple(gene for gene in genes if gene is not None))

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return the mapping that `from_dict` reads; it can be written as JSON."""
        return {gene.name: _keys_of(gene) for gene in self.genes}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all genes in the order of the cube."""
        return tuple(gene.name for gene in self.genes)

    def searched(self) -> "Space":
        """Return the space without its locked genes."""
        return Space(tuple(gene for gene in self.genes if not gene.locked))

    def lock(self, names: Iterable[str]) -> "Space":
        """Return the space with these genes locked."""
        chosen = set(names)
        genes = (replace(gene, locked=gene.locked or gene.name in chosen) for gene in self.genes)
        return Space(tuple(genes))

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return the Optuna distributions of the genes that are searched."""
        return {gene.name: gene.distribution() for gene in self.genes if not gene.locked}

    def to_unit(self, params: Mapping[str, Any]) -> Cube:
        """Return the place of the values on the cube, (genes,); names outside are left out."""
        return np.array([gene.to_unit(params[gene.name]) for gene in self.genes], dtype=np.float64)

    def from_unit(self, cube: Cube) -> Params:
        """Return the values at a place on the cube."""
        return {
            gene.name: gene.from_unit(float(place))
            for gene, place in zip(self.genes, cube, strict=True)
        }

    def middle(self) -> Params:
        """Return the middle of every range and the first of all choices."""
        return {gene.name: gene.middle() for gene in self.genes}


def finite_number(value: Any, where: str) -> float:
    """Return a finite float. Raises: ConfigError naming `where` and the value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{where} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ConfigError(f"{where} must be finite, got {value}")
    return float(value)


def _gene(name: str, keys: Any, where: str) -> Gene:
    if not isinstance(keys, Mapping):
        raise ConfigError(
            f"{where} must be {{low: ..., high: ...}} or {{choices: [...]}}, got {keys!r}"
        )
    for key in keys:
        if key not in GENE_KEYS:
            raise ConfigError(
                f"{where}.{key} is not a key of a gene{did_you_mean(str(key), GENE_KEYS)}"
            )
    sigma = finite_number(keys.get("sigma", DEFAULT_SIGMA), f"{where}.sigma")
    if sigma < 0:
        raise ConfigError(f"{where}.sigma={sigma:g} must not be negative")
    locked = _boolean(keys, "locked", where)
    if "choices" in keys:
        return Gene(name, choices=_choices(keys, where), sigma=sigma, locked=locked)
    gene = _range(name, keys, where)
    return replace(gene, sigma=sigma, locked=locked)


def _range(name: str, keys: Mapping[str, Any], where: str) -> Gene:
    for key in ("low", "high"):
        if key not in keys:
            raise ConfigError(f"{where}: {key} is missing; a gene has low and high, or choices")
    low, high = (finite_number(keys[key], f"{where}.{key}") for key in ("low", "high"))
    if low >= high:
        raise ConfigError(f"{where}: low={low:g} must be below high={high:g}")
    log = _boolean(keys, "log", where)
    step = None if keys.get("step") is None else finite_number(keys["step"], f"{where}.step")
    whole = all(isinstance(keys[key], int) for key in ("low", "high"))
    integer = _boolean(keys, "int", where) or (whole and isinstance(keys.get("step"), int))
    if integer and not (low.is_integer() and high.is_integer()):
        raise ConfigError(f"{where}: int: true needs whole bounds, got {low:g} and {high:g}")
    if log and low <= 0:
        raise ConfigError(f"{where}: log: true needs low above 0, got {low:g}")
    _check_step(low, high, step, log=log, integer=integer, where=where)
    step = 1.0 if integer and step is None else step
    return Gene(name, low, high, log=log, step=step, integer=integer)


def _check_step(
    low: float, high: float, step: float | None, *, log: bool, integer: bool, where: str
) -> None:
    if step is None:
        return
    if step <= 0:
        raise ConfigError(f"{where}.step={step:g} must be above 0")
    if integer and not step.is_integer():
        raise ConfigError(f"{where}.step={step:g} must be a whole number, as int: true")
    if log and not (integer and step == 1):
        raise ConfigError(f"{where}: step cannot stand beside log: true; leave one of them out")
    count = (high - low) / step
    if abs(count - round(count)) > 1e-9 * max(1.0, count) or count < 1:
        reached = low + max(1, math.floor(count)) * step
        raise ConfigError(
            f"{where}: high={high:g} is not low plus whole steps of {step:g}: try high: {reached:g}"
        )


def _choices(keys: Mapping[str, Any], where: str) -> tuple[Value, ...]:
    for key in ("low", "high", "log", "step", "int"):
        if key in keys:
            raise ConfigError(f"{where}.{key} cannot stand beside choices")
    choices = keys["choices"]
    if not isinstance(choices, list | tuple) or len(choices) < 2:
        raise ConfigError(f"{where}.choices must be a list of two or more values, got {choices!r}")
    for choice in choices:
        if not (choice is None or isinstance(choice, bool | int | float | str)):
            raise ConfigError(f"{where}.choices: {choice!r} must be a number, text, true or false")
    if len({(type(choice), choice) for choice in choices}) < len(choices):
        raise ConfigError(f"{where}.choices holds a value twice: {choices}")
    return tuple(choices)


def _boolean(keys: Mapping[str, Any], key: str, where: str) -> bool:
    value = keys.get(key, False)
    if not isinstance(value, bool):
        raise ConfigError(f"{where}.{key} must be true or false, got {value!r}")
    return value


def _keys_of(gene: Gene) -> dict[str, Any]:
    if gene.choices:
        keys: dict[str, Any] = {"choices": list(gene.choices)}
    elif gene.integer:
        keys = {"low": round(gene.low), "high": round(gene.high), "log": gene.log, "int": True}
        keys |= {} if gene.log else {"step": round(gene.step or 1)}
    else:
        keys = {key: value for key, value in asdict(gene).items() if key in ("low", "high", "log")}
        keys |= {} if gene.step is None else {"step": gene.step}
    return keys | {"sigma": gene.sigma, "locked": gene.locked}


def _gene_of(name: str, kind: BaseDistribution) -> Gene | None:
    if kind.single():
        return None
    if isinstance(kind, CategoricalDistribution):
        return Gene(name, choices=tuple(kind.choices))
    if isinstance(kind, IntDistribution):
        step = float(kind.step)
        return Gene(name, kind.low, kind.high, log=kind.log, step=step, integer=True)
    assert isinstance(kind, FloatDistribution)
    return Gene(name, kind.low, kind.high, log=kind.log, step=kind.step)
