"""Which hyperparameters matter, in plain words: no measure is believed above its own noise."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import yaml
from numpy.typing import NDArray
from optuna import Study
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from evolve.evidence import (
    LEAST,
    Evidence,
    Finding,
    fanova,
    model,
    normalised,
    ped_anova,
    steady_genes,
)
from evolve.gene import DEFAULT_SIGMA, Gene
from evolve.space import Space

LOCK_AFTER = 60  # trials of a gene before it is called useless
MATTERS, UNSURE, LITTLE = "matters", "unsure", "little"
NOTHING = "no effect seen"
TRIED = 0.2  # share of its range that a gene must have covered before it is called useless


@dataclass(frozen=True)
class Importance:
    """What is known about one gene's effect.

    `share` of all genes' effect, beyond what chance shows, 0 to 1; `word` says it plainly: unsure
    is a share that most measures, or one half of the trials, do not show;
    `evidence` has each measure's own importance, which sum to 1 over the genes, and `seen` the
    measures that find more than chance; `steady`: both halves of the trials find it; `trials` in
    which the gene was active, and `tried`, the share of its range that four fifths of them cover.
    """

    name: str
    share: float
    word: str
    evidence: dict[str, float]
    seen: tuple[str, ...]
    steady: bool
    trials: int
    tried: float


def importance(
    study: Study | Sequence[FrozenTrial],
    space: Space,
    *,
    length_scales: Mapping[str, float] | None = None,
    maximize: bool = True,
    seed: int = 0,
) -> list[Importance]:
    """Return the searched genes, the most important first; nothing below 30 complete trials.

    A pruned trial counts with the forecast of its final value. `maximize` is used with a list of
    trials only; of several objectives the first is judged. `length_scales` are the model's own, on
    the unit cube.
    """
    if isinstance(study, Study):
        maximize = study.directions[0] == StudyDirection.MAXIMIZE
        trials: Sequence[FrozenTrial] = study.get_trials(deepcopy=False)
    else:
        trials = study
    data = Evidence.of(trials, space.searched(), maximize)
    return [] if data is None else combined(data, measures(data, seed), length_scales)


@dataclass(frozen=True)
class Measures:
    """What Optuna's measures find, and which genes are `steady` (G,)."""

    findings: list[Finding]
    steady: NDArray[np.bool_]


def measures(data: Evidence, seed: int = 0) -> Measures:
    """Return what can be measured of trials on the cube; the part that takes long."""
    rng = np.random.default_rng([seed, len(data.values)])
    findings = [ped_anova(data, rng)]
    if find_spec("sklearn") is not None:
        findings.append(fanova(data, rng))
    return Measures(findings, steady_genes(data))


def combined(
    data: Evidence, measured: Measures, length_scales: Mapping[str, float] | None
) -> list[Importance]:
    """Return the genes, the most important first, from measures and the model's length scales."""
    findings = list(measured.findings)
    if length_scales:
        findings.append(model(data.space, length_scales))
    return _combined(data, findings, measured.steady)


def lock_proposals(importances: Sequence[Importance], space: Space) -> list[str]:
    """Return lines of yaml that lock the genes which no measure sees an effect of.

    Only where other genes matter, so that there was something to see, where a gene was tried widely
    and often enough, and where each measure gives it less than an equal share.
    """
    if not any(found.word == MATTERS for found in importances):
        return []
    genes = {gene.name: gene for gene in space.genes}
    return [
        f"{found.name}: {_locked_keys(space, genes[found.name])}"
        for found in importances
        if found.word == NOTHING
        and found.trials >= LOCK_AFTER
        and found.tried >= TRIED
        and max(found.evidence.values()) < 1.0 / len(importances)
    ]


def insight_text(importances: Sequence[Importance], space: Space) -> list[str]:
    """Return lines for a terminal: a table, the genes without effect, what could be locked."""
    if not importances:
        return [f"importance of hyperparameters is told after {LEAST} complete trials"]
    shown = [found for found in importances if found.word != NOTHING]
    silent = [found.name for found in importances if found.word == NOTHING]
    measures = ", ".join(importances[0].evidence)
    lines = [f"importance over {max(found.trials for found in importances)} trials ({measures}):"]
    width = max((len(found.name) for found in shown), default=0)
    lines += [f"  {found.name:<{width}}  {found.share:>4.0%}  {found.word}" for found in shown]
    if not shown:
        lines.append("  no hyperparameter stands out from chance")
    elif silent:
        lines.append(f"  no effect seen, within what was tried: {', '.join(sorted(silent))}")
    proposals = lock_proposals(importances, space)
    if proposals:
        lines.append("could be locked at their start values in the next study:")
        lines += [f"  {line}" for line in proposals]
    return lines


def _combined(
    data: Evidence, findings: Sequence[Finding], steady: NDArray[np.bool_]
) -> list[Importance]:
    """Average the measures; a gene matters if most of them see it and it repeats in both halves."""
    names = data.space.names
    shares = np.mean([normalised(finding.excess) for finding in findings], axis=0)
    votes = np.sum([finding.seen for finding in findings], axis=0)
    shares = normalised(np.where(votes > 0, shares, 0.0))
    enough = min(0.05, 0.5 / len(names))
    counts = data.active.sum(axis=0)
    found = []
    for place, name in enumerate(names):
        solid = 2 * votes[place] > len(findings)
        solid = solid and (steady[place] or votes[place] == len(findings))
        word = LITTLE if shares[place] < enough else MATTERS if solid else UNSURE
        tried = data.cube[data.active[:, place], place]
        low, high = np.quantile(tried, (0.1, 0.9)) if len(tried) else (0.0, 0.0)
        found.append(
            Importance(
                name=name,
                share=float(shares[place]),
                word=word if votes[place] else NOTHING,
                evidence={f.measure: float(normalised(f.scores)[place]) for f in findings},
                seen=tuple(f.measure for f in findings if f.seen[place]),
                steady=bool(steady[place]),
                trials=int(counts[place]),
                tried=float(high - low),
            )
        )
    return sorted(found, key=lambda one: (-one.share, -sum(one.evidence.values()), one.name))


def _locked_keys(space: Space, gene: Gene) -> str:
    """Return a gene's keys as one line of yaml, locked; defaults are left out."""
    keys = {**space.to_dict()[gene.name], "locked": True}
    if keys.get("log") is False:
        del keys["log"]
    if keys.get("sigma") == DEFAULT_SIGMA:
        del keys["sigma"]
    text: str = yaml.safe_dump(
        keys, sort_keys=False, default_flow_style=True, width=math.inf, allow_unicode=True
    )
    return text.strip()
