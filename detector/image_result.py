"""What was found in one image or frame, in every form that people ask for."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detector.data.images import read_image
from detector.draw import draw_detections
from detector.errors import DataError, MissingPackageError


@dataclass(frozen=True, eq=False)
class Result:
    """What was found in one image, best score first."""

    path: Path | None  # of the image or video; None: the picture came from memory or a stream
    size: tuple[int, int]  # (height, width) in pixels
    boxes: np.ndarray  # (n, 4) float32 xyxy pixels
    scores: np.ndarray  # (n,) float32
    labels: np.ndarray  # (n,) int64
    names: tuple[str, ...]  # of all classes
    milliseconds: float  # letterbox, network and NMS
    image: np.ndarray | None = None  # (H, W, 3) uint8 BGR; None: `plot` reads the file
    frame: int | None = None  # number of the frame in its video, from 0; None: not a video
    source: str = ""  # what people call it: the file's name, the camera, the stream

    @property
    def normalized_cxcywh(self) -> np.ndarray:
        """Boxes (n, 4) as centre, width, height in fractions of the image's sides."""
        low, high = self.boxes[:, :2].astype(float), self.boxes[:, 2:].astype(float)
        return np.asarray(np.concatenate([(low + high) / 2, high - low], axis=1) / self._sides)

    @property
    def normalized_xyxy(self) -> np.ndarray:
        """Boxes (n, 4) as corners in fractions of the image's sides."""
        return np.asarray(self.boxes.astype(float) / self._sides)

    @property
    def title(self) -> str:
        """The source, with the frame of a video: `clip.mp4 frame 12`."""
        name = self.source or (self.path.name if self.path else "picture")
        return name if self.frame is None else f"{name} frame {self.frame}"

    @property
    def stem(self) -> str:
        """A name for files: `a` for a.jpg, `clip_000012` for a frame."""
        name = self.path.stem if self.path else Path(self.source or "picture").stem
        return name if self.frame is None else f"{name}_{self.frame:06}"

    def picture(self) -> np.ndarray:
        """Return the image (H, W, 3) uint8 BGR. Raises: DataError: it is not kept any more."""
        if self.image is not None:
            return self.image
        if self.path is None or self.frame is not None:
            raise DataError(f"{self.title}: its picture was not kept; predict_each keeps it")
        return read_image(self.path)

    def plot(self) -> np.ndarray:
        """Return the picture (H, W, 3) uint8 BGR with the detections drawn on it."""
        return draw_detections(self.picture(), self.boxes, self.labels, self.scores, self.names)

    def crops(self) -> list[np.ndarray]:
        """Return the part of the picture in each box, whole pixels, at least one."""
        picture = self.picture()
        height, width = self.size
        found = []
        for x1, y1, x2, y2 in self.boxes.astype(float):
            left, top = min(int(x1), width - 1), min(int(y1), height - 1)
            right, bottom = max(left + 1, int(np.ceil(x2))), max(top + 1, int(np.ceil(y2)))
            found.append(picture[top:bottom, left:right])
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python values; boxes are xyxy pixels."""
        found = zip(self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True)
        return {
            "path": None if self.path is None else str(self.path),
            **({} if self.frame is None else {"frame": self.frame}),
            "height": self.size[0],
            "width": self.size[1],
            "detections": [
                {"label": label, "name": self.names[label], "score": score, "box": box}
                for label, score, box in found
            ],
        }

    def to_json(self) -> str:
        """Return `to_dict` as one line of JSON."""
        return json.dumps(self.to_dict())

    def to_coco(self, image_id: int | str | None = None) -> list[dict[str, Any]]:
        """Return COCO results: bbox x, y, width, height in pixels, category_id the label.

        The image's id is by default its name without extension, with the frame of a video.
        """
        corners = self.boxes.astype(float)
        bboxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        image = self.stem if image_id is None else image_id
        rows = zip(self.labels.tolist(), bboxes.tolist(), self.scores.tolist(), strict=True)
        return [
            {"image_id": image, "category_id": label, "bbox": bbox, "score": score}
            for label, bbox, score in rows
        ]

    def to_supervision(self) -> Any:
        """Return `supervision.Detections`, names in its data["class_name"].

        Raises: MissingPackageError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise MissingPackageError(
                f"to_supervision needs supervision ({error}): pip install supervision"
            ) from error
        names = np.array([self.names[label] for label in self.labels], dtype=str)
        return supervision.Detections(
            xyxy=self.boxes.astype(np.float32),
            confidence=self.scores.astype(np.float32),
            class_id=self.labels.astype(int),
            data={"class_name": names},
        )

    def summary(self) -> str:
        """Return e.g. `3 RBC, 1 WBC`, by class."""
        counts = sorted(Counter(self.labels.tolist()).items())
        return ", ".join(f"{count} {self.names[label]}" for label, count in counts) or "nothing"

    @property
    def _sides(self) -> np.ndarray:
        return np.array([self.size[1], self.size[0]] * 2)
