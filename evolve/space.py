"""The search space: what each gene may be, and its place on the unit cube.

Samplers work on the unit cube and never see names or units: logarithms, steps, integers and choices
are undone here. A gene is found by its name, never by its position, and mutation adds on the cube,
so that a value of 0 can leave 0 and a negative range keeps its sign.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution

from evolve.errors import ConfigError, did_you_mean
from evolve.gene import Gene, Value, When, finite_number, gene_of, keys_of, read_gene, same_value

__all__ = ["Cube", "Gene", "Params", "Space", "Value", "When", "finite_number"]

Params = dict[str, Any]
Cube = NDArray[np.float64]  # (genes,) in [0, 1], in the order of Space.names


@dataclass(frozen=True)
class Space:
    """The genes of a search, sorted by name, so that the order of a file decides nothing."""

    genes: tuple[Gene, ...]

    @classmethod
    def from_dict(
        cls, data: Mapping[str, Any], source: str = "", constants: Iterable[str] = ()
    ) -> "Space":
        """Build a space from `{name: {low, high, log, shift, step, int, choices, ...}}`.

        A gene's `when: {optimizer: SGD}` or `{optimizer: [SGD, AdamW]}` names other genes, or
        `constants` (see `decided`). `source` is the file to name in messages. Raises: ConfigError.
        """
        prefix = f"{source}: space" if source else "space"
        if not isinstance(data, Mapping):
            raise ConfigError(f"{prefix} must map names to ranges, got {data!r}")
        genes = {str(name): read_gene(str(name), data[name], f"{prefix}.{name}") for name in data}
        known = set(constants)
        for name, keys in data.items():
            if keys.get("when") is not None:
                when = _conditions(keys["when"], genes, known, f"{prefix}.{name}.when")
                genes[str(name)] = replace(genes[str(name)], when=when)
        _check_circles(genes, prefix)
        return cls(tuple(sorted(genes.values(), key=lambda gene: gene.name)))

    @classmethod
    def from_distributions(cls, distributions: Mapping[str, BaseDistribution]) -> "Space":
        """Build a space from Optuna distributions; those of a single value are left out."""
        genes = [gene_of(name, kind) for name, kind in sorted(distributions.items())]
        return cls(tuple(gene for gene in genes if gene is not None))

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return the mapping that `from_dict` reads; it can be written as JSON."""
        return {gene.name: keys_of(gene) for gene in self.genes}

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

    # ---- conditions

    def active(self, params: Mapping[str, Any]) -> tuple[bool, ...]:
        """Return for every gene, in the order of names, whether its conditions hold.

        A gene that depends on an inactive one is inactive. A condition on a name that `params`
        lacks holds: it was decided elsewhere.
        """
        if not self._conditional:
            return (True,) * len(self.genes)
        found: dict[str, bool] = {}
        return tuple(self._acts(gene, params, found) for gene in self.genes)

    def settled(self, params: Mapping[str, Any], start: Mapping[str, Any]) -> Params:
        """Return the values with every inactive gene at its start value."""
        acting = zip(self.names, self.active(params), strict=True)
        return {**params, **{name: start[name] for name, acts in acting if not acts}}

    def conditional(self, name: str, when: Mapping[str, Any], source: str = "") -> "Space":
        """Return the space with more conditions on a gene; no value left over locks it.

        Raises: ConfigError as `from_dict` does.
        """
        prefix = f"{source}: space" if source else "space"
        more = _conditions(when, self._by_name, set(), f"{prefix}.{name}.when")
        gene = self._by_name[name]
        both = dict(gene.when)
        for other, values in more:
            kept = both.get(other, values)
            both[other] = tuple(v for v in kept if any(same_value(v, w) for w in values))
        locked = gene.locked or not all(both.values())
        changed = replace(gene, when=tuple(sorted(both.items())), locked=locked)
        genes = {**self._by_name, name: changed}
        _check_circles(genes, prefix)
        return Space(tuple(genes.values()))

    def decided(self, values: Mapping[str, Any]) -> "Space":
        """Return the space with the conditions on values that are not searched decided for good.

        `values` are constants and those of locked genes. A condition that holds goes; a gene with
        one that does not is locked.
        """
        space, off = self, set[str]()
        while True:
            searched = set(space.searched().names)
            genes = []
            for gene in space.genes:
                closed = [(name, ones) for name, ones in gene.when if name not in searched]
                if any(name in off or not _holds(name, ones, values) for name, ones in closed):
                    off.add(gene.name)
                    gene = replace(gene, locked=True)
                rest = tuple((name, ones) for name, ones in gene.when if name in searched)
                genes.append(replace(gene, when=rest))
            if tuple(genes) == space.genes:
                return space
            space = Space(tuple(genes))

    @cached_property
    def _by_name(self) -> dict[str, Gene]:
        return {gene.name: gene for gene in self.genes}

    @cached_property
    def _conditional(self) -> bool:
        return any(gene.when for gene in self.genes)

    def _acts(self, gene: Gene, params: Mapping[str, Any], found: dict[str, bool]) -> bool:
        """Return whether a gene's conditions hold; `found` keeps the answers."""
        if gene.name not in found:
            found[gene.name] = all(
                _holds(name, values, params)
                and (name not in self._by_name or self._acts(self._by_name[name], params, found))
                for name, values in gene.when
            )
        return found[gene.name]


def _holds(name: str, values: tuple[Value, ...], params: Mapping[str, Any]) -> bool:
    return name not in params or any(same_value(params[name], value) for value in values)


def _conditions(when: Any, genes: Mapping[str, Gene], constants: set[str], where: str) -> When:
    """Return the checked conditions of a gene, sorted by name. Raises: ConfigError."""
    if not isinstance(when, Mapping) or not when:
        raise ConfigError(f"{where} must be {{gene: value}} or {{gene: [values]}}, got {when!r}")
    checked: dict[str, tuple[Value, ...]] = {}
    for name, given in when.items():
        values = tuple(given) if isinstance(given, list | tuple) else (given,)
        if not values:
            raise ConfigError(f"{where}.{name} names no value")
        if name in genes:
            values = tuple(genes[name].listed(value, f"{where}.{name}") for value in values)
        elif name not in constants:
            hint = did_you_mean(str(name), {*genes, *constants})
            raise ConfigError(f"{where}.{name} is neither a gene nor a setting{hint}")
        checked[str(name)] = values
    return tuple(sorted(checked.items()))


def _check_circles(genes: Mapping[str, Gene], prefix: str) -> None:
    """Check that no gene depends on itself. Raises: ConfigError with the way round."""

    def follow(name: str, way: tuple[str, ...]) -> None:
        if name in way:
            circle = " -> ".join((*way[way.index(name) :], name))
            raise ConfigError(f"{prefix}.{name}.when is a circle: {circle}")
        for other, _ in genes[name].when if name in genes else ():
            follow(other, (*way, name))

    for name in sorted(genes):
        follow(name, ())
