"""The evolution of the 2019 YOLOv3 trainer: the best trial so far, all its values multiplied.

The rule (SPEC.md 1.1): one parent, the best of all recorded trials, of equals the first; every
value is multiplied by (1 + sigma z)^2 with a z ~ N(0, 1) of its own, then clipped. What was wrong
with it, and is not any more:

- A value of 0 could never leave 0 (B-05), nor a value change its sign: near 0, and in a range with
  0 inside, sigma times the range is added instead; a shifted logarithm multiplies value + shift.
- Limits were lists by position, made for positive values (B-06): each gene is clipped to its own
  range, and a negative one keeps its sign.
- The clock was the seed (B-07): it is the study's seed and the trial's number.
- A diverged trial could become the parent (B-08): only complete trials can, and those that keep all
  limits go first.
- Parents were read back from a text file with 4 digits (B-10): they are as they were tried.
- Whole numbers, steps and choices did not exist: a child is rounded to its grid, and moves by one
  cell where rounding would hold it; a choice changes with probability sigma.
- The same values could come again: those that were tried, or lie among failed trials, are drawn
  anew, in the end uniformly.

The sigmas of 2019 hold for its 12 names (lrf: 0, it never moves), unless the space says otherwise.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evolve.gene import DEFAULT_SIGMA, Gene, Value
from evolve.samplers.genetic import GeneticOptions, GeneticSampler
from evolve.space import Params, Space

SIGMAS = {  # of 2019, by name; any other gene has its own sigma
    **dict.fromkeys(("giou", "xy", "wh", "cls", "cls_pw", "obj", "obj_pw", "iou_t", "lr0"), 0.15),
    "lrf": 0.0,
    "momentum": 0.05,
    "weight_decay": 0.10,
}
NEAR_ZERO = 1e-3  # share of the range below which multiplying would hold a value at 0


class ClassicSampler(GeneticSampler):
    """Proposes the start values, then mutations of the best trial, in any Optuna study.

    Args:
        space: the genes; None takes what the study's trials have in common.
        start: values of trial 0; None starts uniformly.
        budget: taken as every sampler takes it, and not needed: steps have one size.
    """

    def __init__(
        self,
        *,
        space: Space | None = None,
        start: Mapping[str, Any] | None = None,
        seed: int = 0,
        budget: int | None = None,
    ) -> None:
        single = GeneticOptions(elites=1, crossover=0.0, global_share=0.0)
        super().__init__(space=space, start=start, seed=seed, budget=budget, options=single)

    def _bred(
        self, space: Space, parents: NDArray[Any], rng: np.random.Generator, longest: float
    ) -> Params:
        parent = space.from_unit(parents[0])
        return {gene.name: child_value(gene, parent[gene.name], rng) for gene in space.genes}


def sigma_of(gene: Gene) -> float:
    """Return the sigma that the space says, else that of 2019 for one of its names."""
    return gene.sigma if gene.sigma != DEFAULT_SIGMA else SIGMAS.get(gene.name, gene.sigma)


def child_value(gene: Gene, value: Any, rng: np.random.Generator) -> Value:
    """Return `value * (1 + sigma z)^2` as the gene can have it."""
    sigma = sigma_of(gene)
    draw, z = rng.random(), float(rng.standard_normal())  # both always: no gene disturbs the next
    if gene.choices:
        return gene.choices[int(draw / sigma * len(gene.choices))] if draw < sigma else value
    size = gene.high - gene.low
    if not gene.log and (gene.low < 0 < gene.high or abs(value) < NEAR_ZERO * size):
        moved = value + sigma * z * size
    else:
        moved = (value + gene.shift) * (1.0 + sigma * z) ** 2 - gene.shift
    child = gene.nearest(moved, "mutation")
    if gene.step is not None and child == value and sigma > 0:
        child = gene.nearest(value + np.sign(z) * gene.step, "mutation")
    return child
