"""Darknet `.cfg` files: text to typed blocks; what is unknown is refused.

Source: Darknet's parser (public domain): blanks and what follows `#` or `;` do not count, and each
section has the defaults that Darknet gives it.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from detector.errors import ConfigError, did_you_mean
from detector.models.darknet_blocks import (
    ACTIVATIONS,
    Block,
    Conv,
    Layout,
    MaxPool,
    Route,
    Shortcut,
    Upsample,
    Yolo,
    shapes_of,
)

# Keys of Darknet's own training and display: they do not change what a trained network computes.
TRAINING_KEYS = {
    "net": """batch subdivisions time_steps momentum decay angle saturation exposure hue aspect
        learning_rate burn_in max_batches policy steps scales power gamma step mosaic mixup cutmix
        blur gaussian_noise flip max_crop min_crop min_ratio max_ratio letter_box adam B1 B2 eps
        optimized_memory workspace_size_limit_MB max_chart_loss mosaic_bound resize_step ema_alpha
        dynamic_minibatch loss_scale label_smooth_eps seq_scales track augment_speed notruth inputs
        sequential_subdivisions show_receptive_field learning_rate_min sgdr_cycle sgdr_mult""",
    "convolutional": "stopbackward learning_rate",
    "maxpool": "",
    "shortcut": "",
    "route": "stopbackward",
    "upsample": "",
    "yolo": """num jitter ignore_thresh truth_thresh random resize iou_thresh iou_normalizer
        cls_normalizer obj_normalizer delta_normalizer max_delta iou_loss iou_thresh_kind nms_kind
        beta_nms counters_per_class label_smooth_eps focal_loss objectness_smooth max map
        ignore_thresh_kind show_details""",
}
# Keys that change the result; only the value that changes nothing is understood.
NEUTRAL = {
    "convolutional": {
        "dilation": 1, "binary": 0, "xnor": 0, "flipped": 0, "antialiasing": 0, "share_index": -1,
        "assisted_excitation": 0, "deform": 0, "dontload": 0, "dontloadscales": 0,
    },
    "maxpool": {"maxpool_depth": 0, "antialiasing": 0},
    "shortcut": {"alpha": 1, "beta": 1},
    "upsample": {"scale": 1},
    "yolo": {"new_coords": 0},
}  # fmt: skip


ALIASES = {"network": "net", "conv": "convolutional", "max": "maxpool"}


def read_cfg(path: str | Path) -> Layout:
    """Return the network that a `.cfg` file describes.

    Raises: ConfigError naming file and line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"model={path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"model={path}: not a readable text file ({error})") from error
    return parse_cfg(text, str(path))


def parse_cfg(text: str, name: str) -> Layout:
    """Return the network that the text of a `.cfg` describes; `name` is named in messages.

    Raises: ConfigError naming file and line for what is unknown, wrong or does not fit together.
    """
    sections = _sections(text, name)
    if not sections or sections[0].name != "net":
        raise ConfigError(f"{name}: does not begin with a [net] section: not a Darknet cfg")
    first, *rest = sections
    width, height = (first.whole(key, 416, low=32) for key in ("width", "height"))
    channels = first.whole("channels", 3, low=1)
    if channels != 3:
        first.fail("channels", f"channels={channels}: images have 3")
    first.finish("net")
    blocks = []
    for index, section in enumerate(rest):
        if section.name not in READERS:
            hint = did_you_mean(section.name, READERS)
            raise ConfigError(f"{section.place}: [{section.name}] is not a known section{hint}")
        blocks.append(READERS[section.name](section, index))
        section.finish(section.name)
    layout = Layout(name, width, height, tuple(blocks))
    shapes_of(layout)
    return layout


class _Section:
    """A `[section]`: the readers take its keys, and `finish` refuses what nobody took."""

    def __init__(self, file: str, name: str, line: int) -> None:
        self.file, self.name, self.line = file, name, line
        self.values: dict[str, tuple[str, int]] = {}  # key -> value and line
        self.taken: set[str] = set()

    def add(self, key: str, value: str, line: int) -> None:
        """Note a line. Raises: ConfigError for a key that is given twice and matters."""
        known, first = self.values.setdefault(key, (value, line))
        if known != value and key not in TRAINING_KEYS.get(self.name, "").split():
            raise ConfigError(f"{self.file}:{line}: {key} is given twice (line {first})")

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"

    def fail(self, key: str, what: str) -> NoReturn:
        """Raise ConfigError at the line of `key`."""
        raise ConfigError(f"{self.file}:{self.values.get(key, ('', self.line))[1]}: {what}")

    def take(self, key: str) -> str | None:
        """Return the value of `key` as written, or None."""
        self.taken.add(key)
        return self.values[key][0] if key in self.values else None

    def numbers(self, key: str) -> list[float]:
        """Return the numbers behind `key`, separated by commas."""
        found = []
        for part in (self.take(key) or "").split(","):
            try:
                found.append(float(part))
            except ValueError:
                if part:
                    self.fail(key, f"{key}={part} is not a number")
        if not all(math.isfinite(number) for number in found):
            self.fail(key, f"{key}: every number must be finite")
        return found

    def wholes(self, key: str) -> list[int]:
        """Return the whole numbers behind `key`, separated by commas."""
        found = self.numbers(key)
        for number in found:
            if number != int(number):
                self.fail(key, f"{key}={number:g} must be a whole number")
        return [int(number) for number in found]

    def whole(self, key: str, default: int, low: int = 0) -> int:
        """Return the one whole number behind `key`, at least `low`."""
        found = self.wholes(key) or [default]
        if len(found) > 1 or found[0] < low:
            self.fail(key, f"{key}={self.take(key)} must be one whole number, {low} or more")
        return found[0]

    def activation(self, default: str) -> str:
        """Return the name of the section's activation."""
        found = self.take("activation") or default
        if found not in ACTIVATIONS:
            hint = did_you_mean(found, ACTIVATIONS)
            self.fail("activation", f"activation={found} is not a known activation{hint}")
        return found

    def finish(self, name: str) -> None:
        """Raise ConfigError for a key that nobody knows or that asks for what is not there."""
        ignored, neutral = TRAINING_KEYS[name].split(), NEUTRAL.get(name, {})
        for key, (value, _) in self.values.items():
            if key in neutral:
                if self.numbers(key) != [neutral[key]]:
                    self.fail(key, f"{key}={value} is not supported, only {neutral[key]}")
            elif key not in self.taken and key not in ignored:
                hint = did_you_mean(key, {*self.taken, *neutral})
                self.fail(key, f"{key} is not a known key of [{self.name}]{hint}")


def _sections(text: str, name: str) -> list[_Section]:
    sections: list[_Section] = []
    for number, raw in enumerate(text.splitlines(), start=1):
        line = "".join(raw.split("#", 1)[0].split(";", 1)[0].split())
        if line.startswith("[") and line.endswith("]"):
            written = line[1:-1].lower()
            sections.append(_Section(name, ALIASES.get(written, written), number))
            continue
        if not line:
            continue
        key, equals, value = line.partition("=")
        if not sections or not equals or not key or not value:
            raise ConfigError(f"{name}:{number}: {raw.strip()[:60]!r} is not `key=value`")
        sections[-1].add(key, value, number)
    return sections


# ---- the sections


def _conv(section: _Section, index: int) -> Block:
    size = section.whole("size", 1, low=1)
    padding = section.whole("padding", 0)
    if section.whole("pad", 0):
        padding = size // 2
    return Conv(
        filters=section.whole("filters", 1, low=1),
        size=size,
        stride=section.whole("stride", 1, low=1),
        padding=padding,
        groups=section.whole("groups", 1, low=1),
        batch_norm=section.whole("batch_normalize", 0) > 0,
        activation=section.activation("logistic"),
        line=section.line,
    )


def _maxpool(section: _Section, index: int) -> Block:
    stride = section.whole("stride", 1, low=1)
    size = section.whole("size", stride, low=1)
    padding = section.whole("padding", size - 1)
    if padding > 2 * (size - 1):
        section.fail("padding", f"padding={padding} must be at most {2 * (size - 1)}")
    return MaxPool(size, stride, padding, section.line)


def _absolute(reference: int, index: int) -> int:
    """Return the layer that a number in layer `index` means: negative ones count backwards."""
    return reference if reference >= 0 else index + reference


def _shortcut(section: _Section, index: int) -> Block:
    sources = section.wholes("from")
    if len(sources) != 1:
        section.fail("from", f"from={section.take('from')} must be one layer")
    for key in ("weights_type", "weights_normalization"):
        if (section.take(key) or "none") != "none":
            section.fail(key, f"{key}={section.take(key)} is not supported, only none")
    return Shortcut(_absolute(sources[0], index), section.activation("linear"), section.line)


def _route(section: _Section, index: int) -> Block:
    sources = [_absolute(source, index) for source in section.wholes("layers")]
    if not sources:
        section.fail("layers", "layers must name at least one layer")
    groups, group = section.whole("groups", 1, low=1), section.whole("group_id", 0)
    if group >= groups:
        section.fail("group_id", f"group_id={group} must be below groups={groups}")
    return Route(tuple(sources), groups, group, section.line)


def _upsample(section: _Section, index: int) -> Block:
    return Upsample(section.whole("stride", 2, low=1), section.line)


def _yolo(section: _Section, index: int) -> Block:
    numbers = section.numbers("anchors")
    if not numbers or len(numbers) % 2 or min(numbers) <= 0:
        section.fail("anchors", "anchors must be pairs `width,height` above 0")
    anchors = list(zip(numbers[0::2], numbers[1::2], strict=True))
    mask = section.wholes("mask") or list(range(len(anchors)))
    for place in mask:
        if not 0 <= place < len(anchors):
            section.fail("mask", f"mask={place} must be 0 to {len(anchors) - 1}")
    scale = section.numbers("scale_x_y") or [1.0]
    if len(scale) != 1 or not 1 <= scale[0] <= 4:
        section.fail("scale_x_y", f"scale_x_y={section.take('scale_x_y')} must lie in 1 to 4")
    chosen = tuple(anchors[place] for place in mask)
    return Yolo(chosen, section.whole("classes", 20, low=1), scale[0], section.line)


READERS: dict[str, Callable[[_Section, int], Block]] = {
    "convolutional": _conv,
    "maxpool": _maxpool,
    "shortcut": _shortcut,
    "route": _route,
    "upsample": _upsample,
    "yolo": _yolo,
}
