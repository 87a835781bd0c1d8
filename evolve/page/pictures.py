"""Pictures and per-class metrics that trials left in their folders."""

import base64
import io
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evolve.page.markup import Markup, tag
from evolve.page.scene import Scene

# detections first; what shows the training data says nothing of the result
PATTERNS = ("pictures/*.jpg", "pictures/*.png", "val_batch*.jpg", "plots/*.png", "*.jpg", "*.png")
NOT_RESULTS = ("train_",)
SIZE = (680, 1360)  # width and height of an embedded picture, pixels, at most
QUALITY = 72  # of its JPEG
BYTES = 300_000  # of one embedded picture, at most
EACH = 2  # pictures of a configuration


def picture_pair(scene: Scene) -> Markup:
    """Return pictures of the winner beside those of the start values with the same file name."""
    if scene.winner is None or scene.start is None:
        return Markup("")
    sides = [_named(scene, scene.start.number), _named(scene, scene.winner.number)]
    shared = [name for name in sides[1] if name in sides[0]] or list(sides[1])
    titles = ("start values", f"recommended: trial {scene.winner.number}")
    figures = []
    for name in shared[:EACH]:
        for title, found in zip(titles, sides, strict=True):
            source = data_uri(found[name]) if name in found else None
            if source is not None:
                image = tag("img", src=source, alt=f"{title}: {name}", loading="lazy")
                caption = tag("figcaption", tag("b", title), f" · {found[name].name}")
                figures.append(tag("figure", caption, image))
    return tag("div", *figures, class_="pictures") if figures else Markup("")


def data_uri(path: Path) -> str | None:
    """Return a picture as a data URI, smaller where Pillow is there; None if it is too large."""
    try:
        content, kind = _small_jpeg(path), "jpeg"
    except ImportError:  # Pillow is there with matplotlib only
        content, kind = path.read_bytes(), path.suffix.lower().strip(".").replace("jpg", "jpeg")
    except Exception:  # a picture that cannot be read costs no page
        return None
    if len(content) > BYTES:
        return None
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def class_metrics(scene: Scene, number: int) -> tuple[dict[str, dict[str, float]], int]:
    """Return metrics by class name from result.json, means over the repeats, and of how many runs.

    `{"per_class": {"cat": {"AP": 0.5, "objects": 12}}}` and `{"per_class": {"cat": 0.5}}` are
    understood. Without repeats that have some, the trial's own; empty if it has none.
    """
    *repeats, own = (classes_of(scene.folder(run) / "result.json") for run in _runs(scene, number))
    runs = [classes for classes in repeats if classes] or [own]
    means = {
        name: {
            metric: statistics.fmean(run.get(name, {}).get(metric, 0.0) for run in runs)
            for metric in runs[0][name]
        }
        for name in runs[0]
    }
    return means, len(runs)


def classes_of(path: Path) -> dict[str, dict[str, float]]:
    """Return the metrics by class of one run; empty if it left none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    classes = data.get("per_class") if isinstance(data, dict) else None
    if not isinstance(classes, dict):
        return {}
    found = {str(name): _numbers(value) for name, value in classes.items()}
    return {name: value for name, value in found.items() if value}


def _numbers(value: Any) -> dict[str, float]:
    named = value if isinstance(value, dict) else {"AP": value}
    return {
        str(name): float(number)
        for name, number in named.items()
        if isinstance(number, int | float) and math.isfinite(number)
    }


def _runs(scene: Scene, number: int) -> Sequence[int]:
    """Return the trials with the values of one: its repeats in the order of their seeds, itself."""
    repeats = sorted(scene.runs_of(number), key=lambda one: one.user_attrs.get("repeat", 0))
    return [*(trial.number for trial in repeats), number]


def _named(scene: Scene, number: int) -> dict[str, Path]:
    """Return the pictures of the first run that has some, by name."""
    for run in _runs(scene, number):
        folder = scene.folder(run)
        found: dict[str, Path] = {}
        for pattern in PATTERNS:
            for path in sorted(folder.glob(pattern)):
                if not path.name.startswith(NOT_RESULTS):
                    found.setdefault(path.relative_to(folder).as_posix(), path)
        if found:
            return found
    return {}


def _small_jpeg(path: Path) -> bytes:
    from PIL import Image

    with Image.open(path) as image:
        small = image.convert("RGB")
        small.thumbnail(SIZE)
        memory = io.BytesIO()
        small.save(memory, "JPEG", quality=QUALITY, optimize=True)
    return memory.getvalue()
