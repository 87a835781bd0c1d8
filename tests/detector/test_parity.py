from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detector.backends import Backend
from detector.boxes import Detections
from detector.checkpoint import LoadedModel
from detector.data import description
from detector.graph_nms import GraphNms
from detector.parity import (
    TOLERANCES,
    Difference,
    comparison_images,
    measure,
    measure_detections,
    object_harm,
    pictures_of,
    textured_picture,
)


def backend_of(prediction: list[float], sizes: list[int] | None = None) -> Backend:
    """A backend that answers every 32 px image with one prediction; notes the batches it got."""

    def run(images: Tensor) -> Tensor:
        if sizes is not None:
            sizes.append(len(images))
        return torch.tensor([[prediction]]).expand(len(images), 1, -1)

    return Backend(Path("x"), ("a",), 32, "bgr-255", torch.device("cpu"), run)


def loaded_with(data: str | None) -> LoadedModel:
    meta = {} if data is None else {"config": {"data": data}}
    return LoadedModel(nn.Identity(), ("a",), 64, meta, Path("x.pt"))


IMAGES = torch.zeros(8, 3, 32, 32)


def test_differences_are_the_largest_of_boxes_and_scores() -> None:
    reference = backend_of([10.0, 10.0, 8.0, 8.0, 0.5, 0.5])
    exported = backend_of([10.0, 10.25, 7.875, 8.0, 0.5, 0.75])
    assert measure(reference, exported, IMAGES, "s") == Difference(
        0.25, 0.25, 8, "s", pytest.approx(1 - 7.75 / 8.0 / 1.0 + 0.125, abs=0.05)
    )


def test_boxes_larger_than_the_input_are_measured_at_its_scale() -> None:
    # 128 px wide in an input of 32 px: 4 times too large, so 1 px off counts as 0.25 px
    reference = backend_of([16.0, 16.0, 128.0, 8.0, 0.5, 0.5])
    exported = backend_of([16.0, 16.0, 129.0, 8.0, 0.5, 0.5])
    assert measure(reference, exported, IMAGES, "s").box_px == 0.25


def test_images_are_given_one_two_and_five_at_once() -> None:
    sizes: list[int] = []
    exported = backend_of([1.0, 1.0, 1.0, 1.0, 0.5, 0.5], sizes)
    measure(exported, exported, IMAGES, "s")
    assert sizes == [1, 1, 2, 2, 5, 5]


def test_nan_is_beyond_every_tolerance() -> None:
    reference = backend_of([1.0, 1.0, 1.0, 1.0, 1.0, 0.5])
    exported = backend_of([1.0, 1.0, 1.0, 1.0, float("nan"), 0.5])
    found = measure(reference, exported, IMAGES, "s")
    assert all(found.beyond(tolerance) for tolerance in TOLERANCES.values())


@pytest.mark.parametrize(
    ("precision", "difference", "reason"),
    [
        ("fp32", Difference(0.05, 1e-3, 8, "s", 1e-3), ""),
        ("fp32", Difference(0.06, 0.0, 8, "s"), "boxes differ by up to 0.06 px (allowed 0.05)"),
        ("fp32", Difference(0.0, 0.002, 8, "s"), "scores differ by up to 0.002 (allowed 0.001)"),
        ("fp16", Difference(6.0, 0.01, 8, "s", 0.01), ""),
        ("fp16", Difference(0.0, 0.0, 8, "s", 0.03), "objects change by 0.03"),
        ("int8", Difference(6.0, 0.9, 8, "s", 0.2), ""),
        ("int8", Difference(0.0, 0.0, 8, "s", 0.4), "objects change by 0.4"),
    ],
)
def test_each_precision_has_its_tolerance(
    precision: str, difference: Difference, reason: str
) -> None:
    found = difference.beyond(TOLERANCES[precision])
    assert found.startswith(reason) and bool(found) == bool(reason)


def test_harm_is_that_of_the_objects_alone() -> None:
    expected = torch.zeros(1, 900, 6)
    expected[..., :4] = torch.tensor([8.0, 8.0, 4.0, 4.0])
    expected[0, 7, 4:] = torch.tensor([1.0, 0.9])
    got = expected.clone()
    got[0, 8:, :4] *= 3
    assert object_harm(expected, got) == pytest.approx(0.0, abs=1e-6)
    got[0, 7, 5] = 0.7  # the score falls by 0.2
    got[0, 7, 0] += 2  # half of the box is left: IoU 8 / 24
    assert object_harm(expected, got) == pytest.approx(0.2 + 2 / 3, abs=1e-6)


def test_outputs_of_another_shape_are_a_failure() -> None:
    with pytest.raises(RuntimeError, match="returns"):
        measure(backend_of([1.0] * 6), backend_of([1.0] * 7), IMAGES, "s")


def test_drawn_pictures_are_the_same_each_time_and_fill_the_range() -> None:
    images, source = comparison_images(loaded_with(None), 64)
    assert source == "drawn" and images.shape == (8, 3, 64, 64)
    assert images.dtype == torch.float32 and images.min() < 20 and images.max() > 235
    assert torch.equal(images, comparison_images(loaded_with("nowhere/data.yaml"), 64)[0])
    assert not np.array_equal(textured_picture(0, 64), textured_picture(1, 64))


def test_validation_images_are_used_when_they_are_there(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
        (tmp_path / "labels" / split).mkdir(parents=True)
        picture = np.full((40, 20, 3), (10, 20, 30), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "images" / split / "one.png"), picture)
        (tmp_path / "labels" / split / "one.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    yaml = tmp_path / "set.yaml"
    yaml.write_text("path: .\ntrain: images/train\nval: images/val\nnames: [a]\n")
    images, source = comparison_images(loaded_with(str(yaml)), 64)
    assert source == str(yaml) and len(images) == 8
    assert images[0, :, 63, 31].tolist() == [10.0, 20.0, 30.0]  # 40x20 grows to 64x32, top-left
    assert images[7, :, 0, 32].tolist() == [114.0, 114.0, 114.0]


def test_a_generated_data_set_is_here(tmp_path: Path) -> None:
    yaml = tmp_path / "shapes.yaml"
    yaml.write_text("format: shapes\ntrain: 3\nval: 2\nsize: 64\n")
    assert comparison_images(loaded_with(str(yaml)), 64)[1] == str(yaml)
    assert len(pictures_of(str(yaml), "train", 64)) == 3


def test_a_data_set_that_is_not_here_is_not_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("tried to download")

    monkeypatch.setattr(description, "fetch", fail)
    monkeypatch.delenv("DETECTOR_DATA", raising=False)
    yaml = tmp_path / "set.yaml"
    yaml.write_text(
        "path: elsewhere\nnames: [a]\n"
        "download: {url: 'http://x', folder: x, include: [x], digest: x}\n"
    )
    assert comparison_images(loaded_with(str(yaml)), 64)[1] == "drawn"


def detecting(boxes: list[list[float]], scores: list[float]) -> Backend:
    """A backend that detects the same objects of one class in every image."""
    found = Detections(torch.tensor(boxes), torch.tensor(scores), torch.zeros(len(scores)).long())

    def find(images: Tensor, conf: float, iou: float, max_det: int) -> list[Detections]:
        return [found] * len(images)

    return Backend(Path("x"), ("a",), 32, "bgr-255", torch.device("cpu"), None, find=find)


def test_detections_are_compared_with_the_same_object_of_the_other_file() -> None:
    boxes = [[0.0, 0.0, 20.0, 20.0], [20.0, 20.0, 30.0, 30.0], [1.0, 1.0, 9.0, 9.0]]
    moved = [[20.0, 20.0, 30.0, 30.25], [0.0, 0.0, 20.0, 20.0]]  # in another order, one is lost
    reference, exported = detecting(boxes, [0.9, 0.8, 0.5]), detecting(moved, [0.9, 0.8])
    found = measure_detections(reference, exported, IMAGES, "s", GraphNms())
    assert (found.box_px, found.images) == (0.25, 8)
    assert found.score == pytest.approx(0.1)
    # of 3 + 2 objects: two pairs, each counted twice, and the one that is lost
    pair, other = 0.1, 0.1 + 1 - 100 / 102.5
    assert found.harm == pytest.approx((2 * pair + 2 * other + 1) / 5, abs=1e-5)
    assert measure_detections(reference, reference, IMAGES, "s", GraphNms()).harm < 1e-6
    nothing = Backend(
        Path("x"), ("a",), 32, "bgr-255", torch.device("cpu"), None,
        find=lambda images, *_: [Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0))]
        * len(images),
    )  # fmt: skip
    assert measure_detections(reference, nothing, IMAGES, "s", GraphNms()).harm == 1.0
    assert measure_detections(nothing, nothing, IMAGES, "s", GraphNms()).harm == 0.0
