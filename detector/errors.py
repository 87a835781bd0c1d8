"""The errors that a caller may want to react to.

    UserError(ValueError)      wrong input: one line naming file or option, value, what is allowed
    ├── ConfigError            a configuration file, option or hyperparameter
    ├── DataError              a data set, image or label file
    ├── CheckpointError        a weight file
    └── MissingPackageError    an optional package that the task needs
    TrainingDiverged(RuntimeError)   the loss stopped being a finite number

Commands print a `UserError` as one line and exit with code 2.
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Wrong input; the message is one line meant for the person who typed the command."""


class ConfigError(UserError):
    """A wrong configuration file, option or hyperparameter."""


class DataError(UserError):
    """A wrong or missing data set, image or label file."""


class CheckpointError(UserError):
    """A missing, damaged or unsuitable weight file."""


class MissingPackageError(UserError):
    """An optional package is needed; the message says how to install it."""


class TrainingDiverged(RuntimeError):
    """The loss became NaN or infinite at optimizer step `step`; `parts` holds the loss parts."""

    def __init__(self, step: int, parts: dict[str, float]) -> None:
        self.step = step
        self.parts = parts
        values = ", ".join(f"{name}={value:.4g}" for name, value in parts.items())
        super().__init__(f"the loss is not finite at step {step}: {values}; try a lower lr0")


# What other trainers call the same thing.
SYNONYMS = {
    "lr": "lr0",
    "learning_rate": "lr0",
    "base_lr": "lr0",
    "basic_lr_per_img": "lr0",
    "min_lr_ratio": "lrf",
    "wd": "weight_decay",
    "decay": "weight_decay",
    "close_mosaic": "no_aug_epochs",
    "max_epoch": "epochs",
    "max_epochs": "epochs",
    "num_epochs": "epochs",
    "batch_size": "batch",
    "img_size": "imgsz",
    "image_size": "imgsz",
    "input_size": "imgsz",
    "num_workers": "workers",
    "cfg": "model",
}


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """Return `"; did you mean x?"` for the nearest allowed name, or the list of all of them."""
    names = sorted(allowed)
    if SYNONYMS.get(name) in names:
        return f"; did you mean {SYNONYMS[name]}?"
    nearest = (
        difflib.get_close_matches(name, names, n=1, cutoff=0.6)
        or ([known for known in names if len(name) > 2 and (name in known or known in name)][:1])
    )
    return f"; did you mean {nearest[0]}?" if nearest else f"; allowed: {', '.join(names)}"
