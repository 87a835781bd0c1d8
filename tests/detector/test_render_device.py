from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from detector.augment import (
    GRAY,
    Donors,
    Layer,
    Plan,
    place_boxes,
    plain_plan,
    sample_plan,
)
from detector.config import Hyp
from detector.data.cache import ImageCache
from detector.data.outlines import pack_outlines
from detector.data.sample import Sample
from detector.errors import ConfigError
from detector.render import render
from detector.render_device import DeviceImages, device_sources, pack, render_batch

CPU = torch.device("cpu")
SIZE = (96, 128)
EVERYTHING = {
    "mosaic": 0.7, "mixup": 0.5, "copy_paste": 0.7, "degrees": 30, "shear": 10,
    "perspective": 0.001, "hsv_h": 0.5, "hsv_s": 1.0, "hsv_v": 1.0,
}  # fmt: skip
STILL = {
    "mosaic": 0, "scale": 0, "translate": 0, "hsv_h": 0, "hsv_s": 0, "hsv_v": 0, "fliplr": 0,
    "flipud": 0,
}  # fmt: skip


def scene(height: int, width: int, rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return a shaded picture with two triangles, and the triangles."""
    shades = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
    image = cv2.resize(shades, (width, height), interpolation=cv2.INTER_CUBIC)
    corners = rng.uniform(0, 1, (2, 3, 2)) * (width, height)
    for corner in corners:
        colour = tuple(int(level) for level in rng.integers(0, 256, 3))
        cv2.fillPoly(image, [corner.astype(np.int32)], colour)
    return image, list(corners)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageCache, Donors]:
    """Six drawn pictures: usual ones, one that is a pixel high, and one a pixel wide."""
    root, rng = tmp_path_factory.mktemp("drawn"), np.random.default_rng(0)
    sizes = [(96, 128), (60, 128), (96, 40), (96, 128), (1, 128), (96, 1)]
    samples, boxes, outlines = [], [], []
    for number, size in enumerate(sizes):
        image, triangles = scene(*size, rng)
        cv2.imwrite(str(root / f"{number}.png"), image)
        none = np.zeros(0, bool)
        path = root / f"{number}.png"
        samples.append(Sample(path, size, np.zeros((0, 4)), none.astype(int), none, none))
        boxes.append(np.array([[*ring.min(axis=0), *ring.max(axis=0)] for ring in triangles]))
        outlines.append(pack_outlines([[ring] for ring in triangles]))
    donors = Donors(boxes, outlines, np.arange(4))
    return ImageCache(samples, 128, root / "cache"), donors


def plans(cache: ImageCache, donors: Donors, hyp: Hyp, count: int = 40) -> list[Plan]:
    shapes = [cache[index].shape[:2] for index in range(len(cache))]
    return [
        sample_plan(n % 6, shapes, SIZE, hyp, np.random.default_rng([3, n]), donors=donors)
        for n in range(count)
    ]


@pytest.mark.parametrize(
    "values",
    [STILL, {**STILL, "hsv_h": 0.5, "hsv_s": 1.0, "hsv_v": 1.0}, {}, EVERYTHING],
    ids=["letterbox", "colour", "defaults", "everything"],
)
def test_both_renderers_draw_the_same_pictures(
    sources: tuple[ImageCache, Donors], values: dict[str, float]
) -> None:
    cache, donors = sources
    drawn = plans(cache, donors, Hyp(**values))
    if values is EVERYTHING:
        assert any(len(plan.scenes) == 2 for plan in drawn)
        assert any(layer.rings for plan in drawn for layer in plan.scenes[0])
    batch = render_batch(pack(drawn, SIZE), DeviceImages.load(cache, CPU))
    for plan, picture in zip(drawn, batch, strict=True):
        expected = render(plan, cache).astype(np.float32)
        error = np.abs(picture.permute(1, 2, 0).numpy() - expected)
        assert error.mean() < 1  # grey levels; the goal is 2
        assert (error > 16).mean() < 0.005  # no edge is elsewhere


def test_colours_agree_for_every_hue(sources: tuple[ImageCache, Donors]) -> None:
    # One pixel of each colour of a cube of 16 x 16 x 16 levels, through the strongest changes.
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(64, 64, 3)
    store = DeviceImages(
        torch.from_numpy(cube.transpose(2, 0, 1).copy())[None], torch.tensor([[64.0, 64.0]]),
        torch.zeros(1, dtype=torch.int64),
    )  # fmt: skip
    still = plain_plan(0, (64, 64), (64, 64))
    for hsv in ((0.0, 1.0, 1.0), (0.3, 1.0, 1.0), (-0.2, 1.7, 0.4), (0.0, 0.0, 1.9)):
        plan = Plan(still.size, still.scenes, hsv)
        picture = render_batch(pack([plan], (64, 64)), store)[0].permute(1, 2, 0).numpy()
        error = np.abs(picture - render(plan, [cube]))
        assert error.mean() < 0.5 and error.max() <= 12


def test_a_batch_is_its_pictures_one_by_one(sources: tuple[ImageCache, Donors]) -> None:
    cache, donors = sources
    store = DeviceImages.load(cache, CPU)
    drawn = plans(cache, donors, Hyp(**EVERYTHING), count=12)
    together = render_batch(pack(drawn, SIZE), store)
    alone = torch.cat([render_batch(pack([plan], SIZE), store) for plan in drawn])
    assert torch.equal(together, alone)


def test_flips_twice_are_the_identity(sources: tuple[ImageCache, Donors]) -> None:
    flip = {**STILL, "fliplr": 1, "flipud": 1}
    plan = sample_plan(0, [(96, 128)], SIZE, Hyp(**flip), np.random.default_rng(0))
    image = torch.from_numpy(sources[0][0].transpose(2, 0, 1).copy())[None]
    once, twice = image, image
    for _ in range(2):
        store = DeviceImages(twice, torch.tensor([[128.0, 96.0]]), torch.zeros(1).long())
        once, twice = twice, render_batch(pack([plan], SIZE), store).to(torch.uint8)
    assert torch.equal(once, image.flip(2, 3))
    assert torch.equal(twice, image)


class Operations(TorchDispatchMode):
    """Collects the names of torch operations, and what they copy between devices."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_drawing_never_waits_for_the_device(sources: tuple[ImageCache, Donors]) -> None:
    # On the meta device nothing has a value; a constant would be lifted from the host.
    cache, donors = sources
    store = DeviceImages.load(cache, CPU)
    packed = pack(plans(cache, donors, Hyp(**EVERYTHING), count=12), SIZE)
    with Operations() as operations:
        render_batch(packed, store)
    waits = {"lift_fresh", "_local_scalar_dense", "nonzero", "masked_select", "item", "unique"}
    assert "grid_sampler_2d" in operations.names
    assert not operations.names & waits
    meta = torch.device("meta")
    gone = DeviceImages(store.pixels.to(meta), store.sides.to(meta), store.slots.to(meta))
    assert render_batch(packed.to(meta), gone).shape == (12, 3, *SIZE)


def test_many_layers_are_sampled_in_parts(
    sources: tuple[ImageCache, Donors], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, donors = sources
    store, drawn = DeviceImages.load(cache, CPU), plans(cache, donors, Hyp(**EVERYTHING), count=12)
    whole = render_batch(pack(drawn, SIZE), store)
    monkeypatch.setattr("detector.render_device.AT_ONCE", 5)
    assert torch.equal(render_batch(pack(drawn, SIZE), store), whole)


def test_both_renderers_leave_out_what_is_behind_a_steep_perspective() -> None:
    # w = 1 - 0.02 x: what lies right of x = 47.5 (w = NEAREST) is behind; the rest is stretched.
    tilt = np.array([[1, 0, 0], [0, 1, 0], [-0.02, 0, 1]])
    image = np.full((64, 64, 3), 200, np.uint8)
    plan = Plan((64, 64), ((Layer(0, tilt),),))
    store = DeviceImages(
        torch.full((1, 3, 64, 64), 200, dtype=torch.uint8), torch.tensor([[64.0, 64.0]]),
        torch.zeros(1, dtype=torch.int64),
    )  # fmt: skip
    shown = render(plan, [image])
    assert np.array_equal(render_batch(pack([plan], (64, 64)), store)[0, 0].numpy(), shown[..., 0])
    away = Plan((64, 64), ((Layer(0, np.diag([1.0, 1, -1])),),))
    assert (render(away, [image]) == GRAY).all()
    assert (render_batch(pack([away], (64, 64)), store) == GRAY).all()


def test_an_image_that_occurs_twice_is_on_the_device_once(
    sources: tuple[ImageCache, Donors], tmp_path: Path
) -> None:
    samples = [sources[0]._samples[number] for number in (3, 0, 3)]
    cache = ImageCache(samples, 128, tmp_path, among=sources[0]._samples)
    store = DeviceImages.load(cache, CPU)
    assert store.pixels.shape == (2, 3, 96, 128)
    shown = render_batch(pack([plain_plan(n, (96, 128), SIZE) for n in range(3)], SIZE), store)
    for number in range(3):
        assert np.array_equal(shown[number].permute(1, 2, 0).numpy(), cache[number])


def test_the_device_draws_when_it_is_asked_to_and_has_the_room(
    sources: tuple[ImageCache, Donors], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, gpu = sources[0], torch.device("cuda")
    assert device_sources("auto", cache, CPU, None) is None
    assert device_sources("cpu", cache, gpu, 1 << 40) is None
    assert device_sources("device", cache, CPU, None) is not None
    needed = 6 * 3 * 128 * 128  # images; the tallest is 128, as 96 x 40 became 128 x 53
    least = int(needed / 0.4) + 1
    loaded = []
    monkeypatch.setattr(DeviceImages, "load", lambda cache, device: loaded.append(device))
    device_sources("auto", cache, gpu, least)
    assert loaded == [gpu]
    assert device_sources("auto", cache, gpu, least - 2) is None
    assert device_sources("auto", cache, gpu, None) is None  # it does not say
    with pytest.raises(ConfigError, match=r"render=device: 0\.0 GB of images.*use render=cpu"):
        device_sources("device", cache, gpu, least - 2)


def test_a_box_lies_around_what_the_device_draws() -> None:
    store = DeviceImages(
        torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.tensor([[64.0, 64.0]]),
        torch.zeros(1, dtype=torch.int64),
    )  # fmt: skip
    store.pixels[0, :, 20:40, 10:40] = 255
    hyp = Hyp(**{**STILL, "degrees": 20, "shear": 5, "scale": 0.3, "translate": 0.1})
    for seed in range(6):
        plan = sample_plan(0, [(64, 64)], (64, 64), hyp, np.random.default_rng(seed))
        picture = render_batch(pack([plan], (64, 64)), store)[0, 0]
        rows, columns = torch.nonzero(picture > 160, as_tuple=True)
        boxes, _ = place_boxes(plan, [np.array([[10.0, 20, 40, 40]])], [np.array([0])])
        bound = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert boxes[0] == pytest.approx([float(edge) for edge in bound], abs=1.6)
