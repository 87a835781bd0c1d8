"""The errors of a search.

UserError(ValueError)      wrong input or usage; commands print it as one line and exit with code 2
├── ConfigError            evolve.yaml, a start file, an option, what an objective returns
└── StudyError             a study that is missing, owned by another process, or of another make
RunFailed(RuntimeError)    the study cannot go on, by no fault of the command line; exit code 1
"""

import difflib
import errno
from collections.abc import Iterable


class UserError(ValueError):
    """Wrong input; the message is one line meant for the person who typed the command."""


class ConfigError(UserError):
    """A wrong key or value in evolve.yaml, a start file or an option."""


class StudyError(UserError):
    """A study that is missing, owned by another process, or was started with other settings."""


class RunFailed(RuntimeError):
    """The study was stopped because going on would only repeat the same failure."""


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """Return `"; did you mean x?"` for the nearest allowed name, or the list of all of them."""
    names = sorted(allowed)
    nearest = (
        difflib.get_close_matches(name, names, n=1, cutoff=0.6)
        or ([known for known in names if len(name) > 2 and (name in known or known in name)][:1])
    )
    return (
        f"; did you mean {nearest[0]}?" if nearest else f"; allowed: {', '.join(names) or 'none'}"
    )


def disk_is_full(error: BaseException | None) -> bool:
    """Return whether an error, or what caused it, is a disk without space."""
    while error is not None:
        if getattr(error, "errno", None) == errno.ENOSPC or "disk is full" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
