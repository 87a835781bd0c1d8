"""Test-time augmentation with a detector that looks at colours; every view must lead back."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detector import looking
from detector.backends import Backend
from detector.boxes import Detections
from detector.errors import ConfigError
from detector.finding import Settings
from detector.looking import Looker

SIDE = 96


def blob(images: torch.Tensor) -> torch.Tensor:
    """Decoded (B, 1, 6): the red part of each picture (B, 3, H, W) with score 0.9."""
    rows = []
    for image in images.permute(0, 2, 3, 1).numpy():
        red = (image[..., 2] > 180) & (image[..., 0] < 60)
        x, y, w, h = cv2.boundingRect(red.astype(np.uint8))
        rows.append([[x + w / 2, y + h / 2, w, h, 0.9, 1.0]])
    return torch.tensor(rows)


def seen_by(augment: bool = True, nms: str = "class", **more: object) -> Looker:
    backend = Backend(Path("red.pt"), ("red",), SIDE, "bgr-255", torch.device("cpu"), blob, **more)  # type: ignore[arg-type]
    return Looker(backend, Settings(augment=augment, nms=nms))


def picture() -> torch.Tensor:
    image = np.full((SIDE, SIDE, 3), 114, np.uint8)
    image[20:60, 10:40] = (0, 0, 255)
    return torch.from_numpy(image).permute(2, 0, 1)[None].float()


def test_every_view_finds_the_object_in_the_same_place() -> None:
    (found,) = seen_by().candidates(picture(), 0.1)
    assert len(found) == len(looking.VIEWS)
    for box in found.boxes.tolist():
        assert box == pytest.approx([10, 20, 40, 60], abs=1.3)  # a view at 0.8 has larger pixels


def test_views_are_joined_by_nms() -> None:
    (found,) = seen_by().detect(picture(), 0.1, 0.6, 9)
    assert len(found) == 1
    (merged,) = seen_by(nms="merge").detect(picture(), 0.1, 0.6, 9)
    assert merged.boxes[0].tolist() == pytest.approx([10, 20, 40, 60], abs=0.6)


def test_a_detector_with_its_own_nms_is_asked_for_all_it_has() -> None:
    asked = []

    def find(images: torch.Tensor, conf: float, iou: float, most: int) -> list[Detections]:
        asked.append(iou)
        boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10]])
        return [Detections(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 1]))] * len(images)

    looker = seen_by(augment=False, nms="agnostic", find=find)
    (found,) = looker.detect(picture(), 0.1, 0.5, 9)
    assert set(asked) == {1.0} and found.scores.tolist() == pytest.approx([0.9])
    plain = seen_by(augment=False, find=find)
    assert len(plain.detect(picture(), 0.1, 0.5, 9)[0]) == 2 and asked[-1] == 0.5


def test_unknown_nms_is_refused() -> None:
    with pytest.raises(ConfigError, match="nms=sotf is no kind of NMS; did you mean soft"):
        Settings(nms="sotf")
