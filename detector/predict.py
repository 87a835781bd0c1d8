"""Find objects in images: `predict(weights, source)`, and `python -m detector.predict`.

A source is an image file, a folder, a glob pattern, or a picture in memory, or a list of them.
"""

import argparse
import glob
import itertools
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from detector.augment import letterbox
from detector.backends import Backend, load_backend
from detector.boxes import Detections, batched_nms
from detector.cli import add_common, new_directory, run_command
from detector.data.images import is_image, read_image
from detector.decode import MAX_CANDIDATES
from detector.distributed import choose_device
from detector.draw import draw_detections
from detector.errors import ConfigError, DataError, did_you_mean
from detector.evaluate import add_settings
from detector.finding import Settings, in_image_pixels

log = logging.getLogger("detector")

CONF = 0.25  # least score of a detection that is shown
VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm"})

Source = str | Path | np.ndarray


@dataclass(frozen=True, eq=False)
class Result:
    """What was found in one image, best score first."""

    path: Path | None  # None: the picture came from memory
    size: tuple[int, int]  # (height, width) in pixels
    boxes: np.ndarray  # (n, 4) float32 xyxy pixels
    scores: np.ndarray  # (n,) float32
    labels: np.ndarray  # (n,) int64
    names: tuple[str, ...]  # of all classes
    milliseconds: float  # letterbox, network and NMS
    image: np.ndarray | None = None  # (H, W, 3) uint8 BGR; None: `plot` reads the file

    @property
    def normalized_cxcywh(self) -> np.ndarray:
        """Boxes (n, 4) as centre, width, height in fractions of the image's sides."""
        low, high = self.boxes[:, :2].astype(float), self.boxes[:, 2:].astype(float)
        sides = np.array([self.size[1], self.size[0]] * 2)
        return np.asarray(np.concatenate([(low + high) / 2, high - low], axis=1) / sides)

    def plot(self) -> np.ndarray:
        """Return the picture (H, W, 3) uint8 BGR with the detections drawn on it."""
        image = self.image
        if image is None:
            assert self.path is not None
            image = read_image(self.path)
        return draw_detections(image, self.boxes, self.labels, self.scores, self.names)

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python values; boxes are xyxy pixels."""
        found = zip(self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True)
        return {
            "path": None if self.path is None else str(self.path),
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

    def summary(self) -> str:
        """Return e.g. `3 RBC, 1 WBC`, by class."""
        counts = sorted(Counter(self.labels.tolist()).items())
        return ", ".join(f"{count} {self.names[label]}" for label, count in counts) or "nothing"


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be read, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Wish:
    """Which detections are wanted."""

    settings: Settings
    classes: tuple[int, ...] | None = None  # None: all
    agnostic_nms: bool = False  # NMS across classes


def predict(
    weights: str | Path | Backend,
    source: Source | Sequence[Source],
    device: str = "auto",
    settings: Settings | None = None,
    classes: Sequence[str] | None = None,
    agnostic_nms: bool = False,
) -> list[Result]:
    """Return what a checkpoint or an exported file finds in each image of `source`.

    `weights` may also be a `Backend` that is already loaded. Pictures in memory are (H, W, 3) uint8
    BGR. `settings` are by default `Settings(conf=0.25)`; `classes` are names. Files that cannot be
    read are logged and left out.

    Raises: UserError for a wrong option or weight file, no images, or no readable image.
    """
    backend = weights
    if not isinstance(backend, Backend):
        backend = load_backend(backend, choose_device(device))
    settings = (settings or Settings(conf=CONF)).sized(backend.imgsz)
    wish = Wish(settings, _class_labels(backend, classes), agnostic_nms)
    sources = find_sources(source)
    results = []
    for outcome in find_in_images(backend, sources, wish):
        if isinstance(outcome, Unreadable):
            log.warning(outcome.reason)
        else:
            results.append(replace(outcome, image=None) if outcome.path else outcome)
    if not results:
        raise DataError(f"none of the {len(sources)} images could be read")
    return results


def find_in_images(
    backend: Backend, sources: Sequence[Path | np.ndarray], wish: Wish
) -> Iterator[Result | Unreadable]:
    """Yield the outcome for each image in order, one at a time; results hold their picture.

    Raises: DataError for a picture in memory that is none.
    """
    imgsz = wish.settings.imgsz
    blank = torch.zeros(1, 3, imgsz, imgsz)
    backend.detect(blank, 1.0, 1.0, 1)  # the first call of a process is slow
    for source in sources:
        if isinstance(source, np.ndarray):
            yield _find(backend, None, _checked_picture(source), wish)
            continue
        try:
            image = read_image(source)
        except DataError as error:
            yield Unreadable(source, str(error))
            continue
        yield _find(backend, source, image, wish)


def _find(backend: Backend, path: Path | None, image: np.ndarray, wish: Wish) -> Result:
    height, width = image.shape[:2]
    imgsz = wish.settings.imgsz
    started = time.perf_counter()
    picture, _ = letterbox(image, (imgsz, imgsz))
    inputs = torch.from_numpy(picture)[None].permute(0, 3, 1, 2).to(backend.device).float()
    found = in_image_pixels(_wanted(backend, inputs, wish), (height, width), imgsz)
    return Result(
        path=path,
        size=(height, width),
        boxes=found.boxes,
        scores=found.scores,
        labels=found.labels,
        names=backend.names,
        milliseconds=1000 * (time.perf_counter() - started),
        image=image,
    )


def _wanted(backend: Backend, inputs: torch.Tensor, wish: Wish) -> Detections:
    """Return the wanted detections of one image (1, 3, H, W), in input pixels.

    Classes are chosen before `max_det` cuts, and NMS across classes sees every candidate.
    """
    settings = wish.settings
    every = max(MAX_CANDIDATES, settings.max_det)
    limit = settings.max_det if wish.classes is None else every
    iou = settings.iou
    if wish.agnostic_nms:
        iou, limit = 1.0, every  # IoU is never above 1: nothing is suppressed yet
    (found,) = backend.detect(inputs, settings.conf, iou, limit)
    boxes, scores, labels = found.boxes, found.scores, found.labels
    if wish.classes is not None:
        kept = torch.isin(labels, torch.tensor(wish.classes, device=labels.device))
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
    if wish.agnostic_nms:
        kept = batched_nms(boxes, scores, torch.zeros_like(labels), settings.iou)
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
    most = settings.max_det
    return Detections(boxes[:most], scores[:most], labels[:most])


def _checked_picture(picture: np.ndarray) -> np.ndarray:
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
        shape = f"{picture.shape} {picture.dtype}"
        raise DataError(f"a picture must be (H, W, 3) uint8 BGR with pixels, got {shape}")
    return picture


def _class_labels(backend: Backend, classes: Sequence[str] | None) -> tuple[int, ...] | None:
    """Return the labels of class names; None stays None. Raises: ConfigError: unknown name."""
    if classes is None:
        return None
    for name in classes:
        if name not in backend.names:
            hint = did_you_mean(name, backend.names)
            raise ConfigError(f"classes: {backend.path} knows no {name}{hint}")
    return tuple(backend.names.index(name) for name in classes)


# ---- sources -------------------------------------------------------------------------------


def find_sources(source: Source | Sequence[Source]) -> list[Path | np.ndarray]:
    """Return the images that a source names, sorted within a folder or pattern.

    Raises: DataError: nothing there, no image there, or a video.
    """
    if isinstance(source, np.ndarray):
        return [source]
    if isinstance(source, str | Path):
        return list(_find_files(Path(source)))
    found = [item for part in source for item in find_sources(part)]
    if not found:
        raise DataError("source: no images given")
    return found


def _find_files(source: Path) -> list[Path]:
    if source.is_dir():
        found = sorted(source.iterdir())
        where = f"{source}: the folder has no images"
    elif source.exists():
        if source.suffix.lower() in VIDEO_SUFFIXES:
            raise DataError(f"{source}: video is not supported yet")
        return [source]
    elif glob.has_magic(str(source)):
        found = sorted(map(Path, glob.glob(str(source), recursive=True)))
        where = f"{source}: no image matches the pattern"
    else:
        raise DataError(f"{source}: no such file or folder")
    for path in found:
        if path.suffix.lower() in VIDEO_SUFFIXES:
            log.warning("%s: video is not supported yet, left out", path)
    images = [path for path in found if is_image(path) and path.is_file()]
    if not images:
        raise DataError(where)
    return images


# ---- command -------------------------------------------------------------------------------

EXAMPLES = """examples:
  python -m detector.predict --weights runs/train/bccd/weights/best.pt --source photos/
  python -m detector.predict --weights best.pt --source "photos/*.jpg" --conf 0.4 --save-txt
  python -m detector.predict --weights best.onnx --source a.png --classes RBC WBC --no-images --json
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        "python -m detector.predict",
        description="Find objects in images and draw them. Exit code 1: some could not be read.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_settings(parser, Settings(conf=CONF))
    parser.add_argument(
        "--source", required=True, nargs="+", metavar="IMAGE|FOLDER|GLOB", help="what to look at"
    )
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="only these classes")
    parser.add_argument("--agnostic-nms", action="store_true", help="NMS across classes")
    parser.add_argument("--out", help="new folder for the files (default runs/predict/<weights>)")
    parser.add_argument("--no-images", action="store_true", help="write no pictures")
    parser.add_argument("--save-txt", action="store_true", help="write YOLO rows with confidence")
    parser.add_argument("--save-json", action="store_true", help="write predictions.json")
    add_common(parser)
    return run_command(_predict_command, parser, argv)


def _predict_command(options: argparse.Namespace) -> dict[str, Any]:
    device = choose_device(options.device)
    backend = load_backend(options.weights, device, runtime=options.runtime)
    settings = Settings(options.imgsz, 1, options.conf, options.iou, options.max_det)
    settings = settings.sized(backend.imgsz)
    wish = Wish(settings, _class_labels(backend, options.classes), options.agnostic_nms)
    sources = find_sources(options.source)
    directory = None
    if not options.no_images or options.save_txt or options.save_json:
        wanted = options.out or Path("runs/predict") / Path(options.weights).stem
        directory = new_directory(Path(wanted))
    done, failed = [], []
    milliseconds = 0.0
    taken: set[str] = set()
    for outcome in find_in_images(backend, sources, wish):
        if isinstance(outcome, Unreadable):
            log.error(outcome.reason)
            failed.append({"path": str(outcome.path), "reason": outcome.reason})
            continue
        assert outcome.path is not None
        log.info("%s: %s %.1f ms", outcome.path.name, outcome.summary(), outcome.milliseconds)
        milliseconds += outcome.milliseconds
        done.append(outcome.to_dict())
        name = _free_name(outcome.path, taken)
        if directory and not options.no_images:
            _write_picture(outcome, directory / name)
        if directory and options.save_txt:
            _write_rows(outcome, directory / "labels" / f"{Path(name).stem}.txt")
    if directory and options.save_json:
        (directory / "predictions.json").write_text(json.dumps(done) + "\n", encoding="utf-8")
    objects = sum(len(row["detections"]) for row in done)
    average = f", {milliseconds / len(done):.1f} ms an image" if done else ""
    place = f"; files are in {directory}" if directory else ""
    log.info(
        "%d images, %d objects, %d failed%s%s", len(done), objects, len(failed), average, place
    )
    return {
        "images": done,
        "failed": failed,
        "directory": directory and str(directory),
        "exit_code": 0 if not failed else 1 if done else 2,
    }


def _free_name(path: Path, taken: set[str]) -> str:
    """Return the name of the output for `path`, and add its stem to `taken`.

    Images of several folders may have equal names, and `a.jpg` and `a.png` share `a.txt`.
    """
    suffix = path.suffix if is_image(path) else ".png"
    for number in itertools.count(1):
        stem = path.stem if number == 1 else f"{path.stem}-{number}"
        if stem.lower() not in taken:
            taken.add(stem.lower())
            return stem + suffix
    raise AssertionError


def _write_picture(result: Result, path: Path) -> None:
    encoded = cv2.imencode(path.suffix.lower(), result.plot())[1]
    encoded.tofile(path)


def _write_rows(result: Result, path: Path) -> None:
    """Write YOLO rows `class cx cy w h score`, in fractions of the image's sides."""
    path.parent.mkdir(exist_ok=True)
    rows = zip(result.labels, result.normalized_cxcywh, result.scores, strict=True)
    lines = [
        f"{label} {' '.join(f'{value:.6f}' for value in box)} {score:.6g}\n"
        for label, box, score in rows
    ]
    path.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
