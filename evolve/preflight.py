"""Which genes of a foreign objective have no effect: found by trying, before a study.

An objective that knows its own rules offers `preflight` (see DESIGN section 4) and is not tried.
"""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from evolve.gene import Gene, Value, same_value
from evolve.space import Params, Space

log = logging.getLogger(__name__)

Evaluate = Callable[[Params], Mapping[str, float]]


def probe(space: Space, start: Params, evaluate: Evaluate) -> dict[str, str]:
    """Return the searched genes that change no metric, with reasons.

    `evaluate` maps values of all genes to metrics, with the same seed each time: a short training
    will do. Around the start values every gene is put at its low and high, or at every choice; one
    that changes nothing gets a second try in the middle of the space, where others may switch it
    on. Metrics that differ between two runs of the start values (seconds) are left out.
    """
    first, second = evaluate(dict(start)), evaluate(dict(start))
    steady = [name for name in first if _equal(first[name], second.get(name, math.nan))]
    if not steady:
        log.warning("preflight: two runs of the start values share no metric: nothing is found out")
        return {}
    known = {_key(start): first}

    def measured(params: Params) -> list[float]:
        if _key(params) not in known:
            known[_key(params)] = evaluate(dict(params))
        return [known[_key(params)].get(name, math.nan) for name in steady]

    bases = (start, {**start, **space.searched().middle()})
    return {
        gene.name: "its extreme values gave the same metrics"
        for gene in space.searched().genes
        if not any(_acts(space, gene, base, measured) for base in bases)
    }


def _acts(
    space: Space, gene: Gene, base: Params, measured: Callable[[Params], list[float]]
) -> bool:
    """Return whether a gene changes a metric around `base`; a run that breaks is a change too."""
    enabled = _enabled(space, gene.name, base)
    extremes = gene.choices or (gene.from_unit(0.0), gene.from_unit(1.0))
    others = [value for value in extremes if not same_value(value, enabled[gene.name])]
    try:
        reference = measured(enabled)
        return not all(
            all(map(_equal, measured({**enabled, gene.name: value}), reference)) for value in others
        )
    except Exception as error:  # whatever a foreign trainer raises
        log.info("preflight: %s: %s", gene.name, error)
        return True


def _enabled(space: Space, name: str, base: Params) -> Params:
    """Return `base` with the genes that `name` depends on at values at which it acts."""
    genes = {gene.name: gene for gene in space.genes}
    changed: dict[str, Value] = {}
    waiting = [name]
    while waiting:
        for other, values in genes[waiting.pop()].when:
            if other in genes:
                waiting.append(other)
                if not any(same_value(base[other], value) for value in values):
                    changed[other] = values[0]
    return {**base, **changed}


def _equal(value: float, other: float) -> bool:
    return value == other or (math.isnan(value) and math.isnan(other))


def _key(params: Mapping[str, Any]) -> str:
    return repr(sorted(params.items()))
