"""What the objective says of a study (data digests, versions): kept with its first trial.

User attributes of the study:
    description          what the first trial described, without its own values; strategy, workers
    description_changes  [{trial, name, was, now}]: digests that were others from that trial on
"""

from collections.abc import Mapping
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial

from evolve.tracked import flat

DESCRIPTION, CHANGES = "description", "description_changes"
OF_ONE_TRIAL = ("hyp", "config")  # keys of a description that hold a trial's own values
DIGEST = "digest"  # part of the name of what must stay the same from trial to trial


def keep_description(
    study: Study, trial: FrozenTrial, description: Mapping[str, Any], **facts: Any
) -> str:
    """Store what the first trial of a study describes, and `facts` that the study itself knows.

    Returns a warning when a digest is another than before, unless a searched value is why.
    """
    told = {name: value for name, value in description.items() if name not in OF_ONE_TRIAL}
    kept = description_of(study)
    if not kept or (told and not kept.keys() - facts.keys()):  # no trial has told anything yet
        study.set_user_attr(DESCRIPTION, {**facts, **told})
        return ""
    if told.keys() & trial.params.keys():  # such as `data`: the digests follow it
        return ""
    earlier, found = changes_of(study), digests_of(told)
    known = digests_of(kept) | {one["name"]: one["now"] for one in earlier}
    news = [
        {"trial": trial.number, "name": name, "was": known[name], "now": digest}
        for name, digest in found.items()
        if name in known and known[name] != digest
    ]
    if not news:
        return ""
    study.set_user_attr(CHANGES, [*earlier, *news])
    return "; ".join(map(change_text, news)) + ": earlier trials are not comparable"


def description_of(study: Study) -> dict[str, Any]:
    """Return what the first trial described; empty if none did."""
    found: dict[str, Any] = study.user_attrs.get(DESCRIPTION, {})
    return found


def digests_of(description: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests of a description by their dotted names, such as `digests.train`."""
    leaves = flat(description)
    return {name: str(value) for name, value in leaves.items() if DIGEST in name and value}


def changes_of(study: Study) -> list[dict[str, Any]]:
    """Return which digests changed under the study, and from which trial on."""
    found: list[dict[str, Any]] = study.user_attrs.get(CHANGES, [])
    return found


def change_text(change: Mapping[str, Any]) -> str:
    """Return a change in words."""
    was, now = (str(change[key])[:12] for key in ("was", "now"))
    return f"{change['name']} is {now} from trial {change['trial']} on, was {was}"
