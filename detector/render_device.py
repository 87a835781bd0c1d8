"""The torch renderer: draws a whole batch of plans on a device that holds the source images.

Letters: B pictures of a batch, S scenes (B and one more for each mixup), L layers, G layers of one
group, P pasted layers, H x W the output. Pictures are BGR, as in `render`, which draws the same.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from detector.augment import GRAY, NEAREST, Layer, Plan
from detector.data.cache import ImageCache
from detector.data.outlines import fill_rings
from detector.errors import ConfigError

log = logging.getLogger(__name__)

AT_ONCE = 64  # layers sampled in one call, for the memory that they take
SHARE = 0.4  # of the device's free memory that images may take; the rest is the network's


@dataclass(frozen=True, eq=False)
class DeviceImages:
    """All source images on one device, each in the upper left corner of a plane of zeros."""

    pixels: Tensor  # (N, 3, tallest, widest) uint8 BGR
    sides: Tensor  # (N, 2) float32 width, height
    slots: Tensor  # (samples,) int64: which of the N images a sample is; one may be several

    @classmethod
    def load(cls, cache: ImageCache, device: torch.device) -> "DeviceImages":
        """Copy the images of a cache to `device`."""
        kept, firsts, slots = np.unique(cache.slots, return_index=True, return_inverse=True)
        pixels = torch.zeros(stack_shape(cache), dtype=torch.uint8, device=device)
        sides = torch.zeros(len(kept), 2)
        for slot, first in enumerate(firsts):
            image = torch.from_numpy(np.ascontiguousarray(cache[int(first)].transpose(2, 0, 1)))
            height, width = image.shape[1:]
            pixels[slot, :, :height, :width] = image.to(device)
            sides[slot] = torch.tensor([width, height])
        return cls(pixels, sides.to(device), torch.from_numpy(slots).to(device))

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.pixels.device


def stack_shape(cache: ImageCache) -> tuple[int, int, int, int]:
    """Return the shape of the uint8 array that holds the images of a cache."""
    shapes = [cache.shape(slot) for slot in set(cache.slots)]
    tallest, widest = np.array(shapes).max(axis=0)
    return len(shapes), 3, int(tallest), int(widest)


def device_sources(
    where: str, cache: ImageCache, device: torch.device, free: int | None
) -> DeviceImages | None:
    """Put all images on `device` if it is to draw the pictures, else return None.

    `where` is the setting `render`. With `auto` an accelerator draws if the images fit into `SHARE`
    of its `free` bytes; if those are not known, the CPU draws.

    Raises:
        ConfigError: `where` is `device` and they do not fit.
    """
    if where == "cpu" or (where == "auto" and (device.type == "cpu" or free is None)):
        return None
    needed = math.prod(stack_shape(cache))
    if free is not None and needed > SHARE * free:
        sizes = f"{needed / 1e9:.1f} GB of images, {free / 1e9:.1f} GB free on {device}"
        rule = f"they may take {SHARE:.0%} of it"
        if where == "device":
            raise ConfigError(f"render=device: {sizes}, and {rule}; use render=cpu")
        log.info("training pictures are drawn on the CPU: %s, and %s", sizes, rule)
        return None
    return DeviceImages.load(cache, device)


@dataclass(frozen=True, eq=False)
class PackedPlans:
    """The plans of a batch as a few arrays: what has to travel to the device.

    Layers are sorted into groups that hold at most one layer of each scene and are drawn at once,
    one group over the other. `groups` are (first layer, end, whether pasted).
    """

    size: tuple[int, int]  # (height, width)
    groups: tuple[tuple[int, int, bool], ...]
    index: Tensor  # (L,) int64 source image
    scene: Tensor  # (L,) int64; scene i < B is picture i's first
    to_source: Tensor  # (L, 3, 3) float32, output pixels to source pixels
    masks: Tensor  # (P, H, W) bool: where pasted layers are drawn, in the order of the layers
    mixed: Tensor  # (S - B,) int64: the picture that each further scene is blended into
    hsv: Tensor  # (B, 3) float32 hue shift in steps of 2 degrees, saturation gain, value gain

    def to(self, device: torch.device, non_blocking: bool = False) -> "PackedPlans":
        """Return the plans on `device`."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "PackedPlans":
        """Return the plans in page-locked memory."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> "PackedPlans":
        values = self.__dict__.items()
        tensors = {name: change(value) for name, value in values if isinstance(value, Tensor)}
        return replace(self, **tensors)


def pack(plans: Sequence[Plan], size: tuple[int, int]) -> PackedPlans:
    """Turn plans of pictures of `size`, perhaps none, into arrays."""
    scenes = [(number, plan.scenes[0]) for number, plan in enumerate(plans)]
    scenes += [(number, more) for number, plan in enumerate(plans) for more in plan.scenes[1:]]
    keyed: list[tuple[tuple[int, bool], int, Layer]] = [
        ((place, layer.objects is not None), scene, layer)
        for scene, (_, layers) in enumerate(scenes)
        for place, layer in enumerate(layers)
    ]
    keyed.sort(key=lambda entry: entry[0])
    groups, end = [], 0
    for (_, is_pasted), members in groupby(keyed, key=lambda entry: entry[0]):
        start, end = end, end + len(list(members))
        groups.append((start, end, is_pasted))
    pasted = [layer for (_, is_pasted), _, layer in keyed if is_pasted]
    masks = np.array([fill_rings(layer.rings, size) for layer in pasted], dtype=bool)
    matrices = np.array([layer.matrix for _, _, layer in keyed]).reshape(-1, 3, 3)
    hsv = [(round(plan.hsv[0] * 180) % 180, *plan.hsv[1:]) for plan in plans]
    return PackedPlans(
        size=size,
        groups=tuple(groups),
        index=torch.tensor([layer.index for _, _, layer in keyed], dtype=torch.int64),
        scene=torch.tensor([scene for _, scene, _ in keyed], dtype=torch.int64),
        to_source=torch.from_numpy(np.linalg.inv(matrices).astype(np.float32)),
        masks=torch.from_numpy(masks.reshape(-1, *size)),
        mixed=torch.tensor([number for number, _ in scenes[len(plans) :]], dtype=torch.int64),
        hsv=torch.tensor(hsv, dtype=torch.float32).view(-1, 3),
    )


def render_batch(plans: PackedPlans, images: DeviceImages) -> Tensor:
    """Draw plans that are where `images` are: (B, 3, H, W) float32 BGR, whole numbers 0 to 255.

    Nothing here waits for the device: no constant is copied to it, no size depends on a value.
    """
    count, num_pasted = len(plans.hsv), 0
    canvas = torch.full(
        (count + len(plans.mixed), 3, *plans.size), float(GRAY), device=images.device
    )
    for first, end, pasted in plans.groups:
        for start in range(first, end, AT_ONCE):
            layers = slice(start, min(start + AT_ONCE, end))
            drawn, inside = _sample(
                images, plans.index[layers], plans.to_source[layers], plans.size
            )
            if pasted:
                inside = inside & plans.masks[num_pasted : num_pasted + len(drawn), None]
                num_pasted += len(drawn)
            if len(drawn) == len(canvas):  # one layer of each scene, in their order
                canvas = torch.where(inside, drawn, canvas)
            else:
                scene = plans.scene[layers]
                canvas[scene] = torch.where(inside, drawn, canvas[scene])
    pictures = canvas[:count]
    pictures[plans.mixed] = (0.5 * (pictures[plans.mixed] + canvas[count:])).round_()
    return _recolour(pictures, plans.hsv)


def _sample(
    images: DeviceImages, index: Tensor, to_source: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return layers' colours at all output pixels (G, 3, H, W), and whether they have one there.

    Between the centres of the outermost source pixels and the edge the outermost are repeated.
    """
    # The matrix times (x, y, 1) as a sum of a part for the row and one for the column: exact where
    # a matrix product might be computed in fewer bits.
    y = torch.arange(size[0], dtype=torch.float32, device=index.device)[:, None] + 0.5
    x = torch.arange(size[1], dtype=torch.float32, device=index.device)[:, None] + 0.5
    by_row = to_source[:, None, :, 1] * y + to_source[:, None, :, 2]  # (G, H, 3)
    by_column = to_source[:, None, :, 0] * x  # (G, W, 3)
    found = by_row[:, :, None] + by_column[:, None]  # (G, H, W, 3): source x, y and 1, over w
    xy, inverse = found[..., :2] / found[..., 2:], found[..., 2]
    slots = images.slots[index]
    sides = images.sides[slots, None, None]  # (G, 1, 1, 2)
    inside = ((xy >= 0) & (xy < sides)).all(dim=-1) & (inverse > 0) & (inverse < 1 / NEAREST)
    xy = xy.clamp(min=0.5).minimum(sides - 0.5)
    source = images.pixels[slots].float()  # (G, 3, tallest, widest)
    tallest, widest = source.shape[2:]
    grid = torch.stack((xy[..., 0] * (2 / widest), xy[..., 1] * (2 / tallest)), dim=-1) - 1
    drawn = grid_sample(source, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return drawn.round_(), inside[:, None]


def _recolour(pictures: Tensor, hsv: Tensor) -> Tensor:
    """Shift hue and multiply saturation and value of (B, 3, H, W) BGR, in steps as OpenCV's.

    Hue counts 0 to 180, saturation and value 0 to 255, all whole numbers.
    """
    blue, green, red = pictures.unbind(dim=1)  # (B, H, W) each
    shift, saturation_gain, value_gain = hsv[:, :, None, None].unbind(dim=1)  # (B, 1, 1) each
    value = pictures.amax(dim=1)
    spread = value - pictures.amin(dim=1)
    saturation = (255 * spread / value.clamp(min=1)).round_()
    sixth = torch.where(
        value == red,
        green - blue,
        torch.where(value == green, blue - red + 2 * spread, red - green + 4 * spread),
    )
    hue = ((30 * sixth / spread.clamp(min=1)).round_() + shift) % 180
    saturation = (saturation * saturation_gain).clamp_(0, 255).floor_()
    value = (value * value_gain).clamp_(0, 255).floor_()
    # A channel is the value less a share of the saturation: Smith 1978, in its closed form.
    corner = torch.arange(1, 6, 2, device=hue.device).view(3, 1, 1)  # 1, 3, 5 for B, G, R
    place = (hue[:, None] / 30 + corner) % 6  # (B, 3, H, W)
    share = torch.minimum(place, 4 - place).clamp_(0, 1)
    changed = (value[:, None] * (1 - saturation[:, None] / 255 * share)).round_()
    still = (hsv[:, 0] == 0) & (hsv[:, 1] == 1) & (hsv[:, 2] == 1)  # (B,)
    return torch.where(still[:, None, None, None], pictures, changed)
