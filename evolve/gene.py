"""One searched value: its range or choices, its place on [0, 1], and how evolve.yaml writes it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from evolve.errors import ConfigError, did_you_mean

Value = bool | int | float | str | None
When = tuple[tuple[str, tuple[Value, ...]], ...]  # all must hold: (name, one of these values)

GENE_KEYS = ("low", "high", "log", "shift", "step", "int", "choices", "sigma", "locked", "when")
DEFAULT_SIGMA = 0.15


@dataclass(frozen=True)
class Gene:
    """One searched value: a range `low` to `high`, or `choices`.

    `sigma` is the standard deviation of a mutation as a share of the range (after the logarithm);
    `log` searches the logarithm of value + `shift`, so that a shift lets `low` be 0 or negative;
    `integer` comes with a whole `step`; a `locked` gene stays at its start value, and so does one
    whose conditions `when` do not hold.
    """

    name: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    shift: float = 0.0
    step: float | None = None
    integer: bool = False
    choices: tuple[Value, ...] = ()
    sigma: float = DEFAULT_SIGMA
    locked: bool = False
    when: When = ()

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
            return IntDistribution(low, high, log=self.log and not self.shift, step=step)
        # Optuna has no shifted logarithm: its own samplers search such a gene evenly
        log = self.log and not self.shift
        return FloatDistribution(self.low, self.high, log=log, step=self.step)

    def to_unit(self, value: Any) -> float:
        """Return the place of a value on [0, 1]; a grid value is in the middle of its cell."""
        if self.choices:
            return (self._index(value) + 0.5) / len(self.choices)
        low, high = self._edges
        value = min(max(float(value), self.low), self.high)
        place = math.log(value + self.shift) if self.log else value
        return min(max((place - low) / (high - low), 0.0), 1.0)

    def from_unit(self, place: float) -> Value:
        """Return the value at a place on [0, 1]; every grid value owns an equal share."""
        if self.choices:
            return self.choices[min(int(place * len(self.choices)), len(self.choices) - 1)]
        low, high = self._edges
        value = low + place * (high - low)
        return self._on_grid(math.exp(value) - self.shift if self.log else value)

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

    def listed(self, value: Any, where: str) -> Value:
        """Return `value` as this gene has it, if it is one of a choice or of a grid's values.

        Raises: ConfigError naming `where`, for a gene with a continuous range too.
        """
        if self.choices:
            return self.choices[self._index(value, where)]
        if self.step is None:
            raise ConfigError(f"{where}: {self.name} has a range; name one with choices or steps")
        number = finite_number(value, where)
        nearest = self._on_grid(number)
        if not math.isclose(float(nearest or 0), number, rel_tol=1e-9, abs_tol=1e-12):
            raise ConfigError(f"{where}: {self.name} is never {value}; next to it is {nearest}")
        return nearest

    def _index(self, value: Any, source: str = "space") -> int:
        for index, choice in enumerate(self.choices):
            if same_value(choice, value):
                return index
        allowed = ", ".join(str(choice) for choice in self.choices)
        raise ConfigError(f"{source}: {self.name}={value} is not a choice; allowed: {allowed}")

    @cached_property
    def _edges(self) -> tuple[float, float]:
        """The ends of [0, 1] on the searched scale: half a step beyond the range of a grid."""
        half = 0.5 * (self.step or 0.0)
        low, high = self.low - half, self.high + half
        if not self.log:
            return low, high
        return math.log(low + self.shift), math.log(high + self.shift)

    def _on_grid(self, value: float) -> Value:
        if self.step is not None:  # 12 digits: 0.1 + 2 * 0.1 is meant to be 0.3
            steps = round((value - self.low) / self.step)
            value = float(f"{self.low + steps * self.step:.12g}")
        else:  # a gene that was not moved comes back from a logarithm as it was
            if self.shift:  # what is far below the shift is rounding dust: zero stays exactly zero
                value = round(value, 9 - math.floor(math.log10(abs(self.shift))))
            value = float(f"{value:.9g}")
        value = min(max(value, self.low), self.high) + 0.0  # -0.0 is 0.0
        return round(value) if self.integer else value


def finite_number(value: Any, where: str) -> float:
    """Return a finite float. Raises: ConfigError naming `where` and the value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{where} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ConfigError(f"{where} must be finite, got {value}")
    return float(value)


def same_value(value: Any, other: Any) -> bool:
    """Return whether two values are equal; true is not 1."""
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)


def read_gene(name: str, keys: Any, where: str) -> Gene:
    """Build a gene from its keys in evolve.yaml, but for `when`. Raises: ConfigError."""
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
    shift = finite_number(keys.get("shift", 0), f"{where}.shift")
    step = None if keys.get("step") is None else finite_number(keys["step"], f"{where}.step")
    whole = all(isinstance(keys[key], int) for key in ("low", "high"))
    integer = _boolean(keys, "int", where) or (whole and isinstance(keys.get("step"), int))
    if integer and not (low.is_integer() and high.is_integer()):
        raise ConfigError(f"{where}: int: true needs whole bounds, got {low:g} and {high:g}")
    # the first cell of a whole gene begins half below its low
    _check_log(low, shift, 0.5 * integer if shift else 0.0, log=log, where=where)
    _check_step(low, high, step, log=log, integer=integer, where=where)
    step = 1.0 if integer and step is None else step
    return Gene(name, low, high, log=log, shift=shift, step=step, integer=integer)


def _check_log(low: float, shift: float, half: float, *, log: bool, where: str) -> None:
    if shift and not log:
        raise ConfigError(f"{where}.shift={shift:g} needs log: true beside it")
    if log and not shift and low <= 0:
        raise ConfigError(f"{where}: log: true needs low above 0, got {low:g}; or give a shift")
    if log and low - half + shift <= 0:
        raise ConfigError(f"{where}.shift={shift:g} must be above {half - low:g}")


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
    for key in ("low", "high", "log", "shift", "step", "int"):
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


def keys_of(gene: Gene) -> dict[str, Any]:
    """Return what `read_gene` reads, and `when`; a new key appears only where it is used."""
    if gene.choices:
        keys: dict[str, Any] = {"choices": list(gene.choices)}
    elif gene.integer:
        keys = {"low": round(gene.low), "high": round(gene.high), "log": gene.log, "int": True}
        keys |= {} if gene.log else {"step": round(gene.step or 1)}
    else:
        keys = {key: value for key, value in asdict(gene).items() if key in ("low", "high", "log")}
        keys |= {} if gene.step is None else {"step": gene.step}
    keys |= {"shift": gene.shift} if gene.shift else {}
    keys |= {"sigma": gene.sigma, "locked": gene.locked}
    return keys | ({"when": {n: list(values) for n, values in gene.when}} if gene.when else {})


def gene_of(name: str, kind: BaseDistribution) -> Gene | None:
    """Return the gene of an Optuna distribution; None for a single value."""
    if kind.single():
        return None
    if isinstance(kind, CategoricalDistribution):
        return Gene(name, choices=tuple(kind.choices))
    if isinstance(kind, IntDistribution):
        step = float(kind.step)
        return Gene(name, kind.low, kind.high, log=kind.log, step=step, integer=True)
    assert isinstance(kind, FloatDistribution)
    return Gene(name, kind.low, kind.high, log=kind.log, step=kind.step)
