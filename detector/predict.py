"""Find objects in pictures: `predict(weights, source)`, and `python -m detector.predict`.

A source is an image, a folder, a glob pattern, a list file, a video, a camera, an address, or a
picture in memory, or a list of them: see sources.py.
"""

import argparse
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from detector.augment import letterbox
from detector.backends import Backend, load_backend
from detector.boxes import Detections
from detector.cli import add_common, run_command
from detector.decode import MAX_CANDIDATES
from detector.distributed import choose_device
from detector.errors import ConfigError, DataError, MissingPackageError, did_you_mean
from detector.evaluate import add_settings, settings_of
from detector.finding import Settings, in_image_pixels
from detector.image_result import Result
from detector.looking import Looker
from detector.matching import Prediction
from detector.sources import (
    Picture,
    Source,
    Stream,
    Unreadable,
    find_sources,
    open_pictures,
    read_ahead,
)
from detector.tiling import Region, Tiles, cut_out, whole_objects
from detector.writers import Wanted, Writer, open_writer

log = logging.getLogger("detector")

CONF = 0.25  # least score of a detection that is shown
DEFAULTS = Settings(conf=CONF, batch=1)


@dataclass(frozen=True)
class Wish:
    """Which detections are wanted."""

    settings: Settings
    classes: tuple[int, ...] | None = None  # None: all
    tiles: Tiles = field(default_factory=Tiles)


def predict(
    weights: str | Path | Backend,
    source: Source | Sequence[Source],
    device: str = "auto",
    settings: Settings | None = None,
    classes: Sequence[str] | None = None,
    agnostic_nms: bool = False,
    tiles: Tiles | None = None,
    stride: int = 1,
) -> list[Result]:
    """Return what a checkpoint or an exported file finds in each picture of `source`.

    `weights` may also be a `Backend` that is already loaded. Pictures in memory are (H, W, 3) uint8
    BGR. `settings` are by default `Settings(conf=0.25, batch=1)`; `classes` are names; of a video
    every `stride`-th frame is looked at. What cannot be read is logged and left out. Pictures of
    files and videos are not kept: `predict_each` yields one result at a time with its picture.

    Raises: UserError for a wrong option or weight file, no images, or no readable image.
    """
    sources = find_sources(source)
    results = []
    for outcome in predict_each(
        weights, source, device, settings, classes, agnostic_nms, tiles, stride
    ):
        if isinstance(outcome, Unreadable):
            log.warning(outcome.reason)
        else:
            results.append(replace(outcome, image=None) if outcome.source else outcome)
    if not results:
        raise DataError(f"none of the {len(sources)} images could be read")
    return results


def predict_each(
    weights: str | Path | Backend,
    source: Source | Sequence[Source],
    device: str = "auto",
    settings: Settings | None = None,
    classes: Sequence[str] | None = None,
    agnostic_nms: bool = False,
    tiles: Tiles | None = None,
    stride: int = 1,
) -> Iterator[Result | Unreadable]:
    """Yield results like those of `predict` as they come, with their pictures.

    So a stream without end works. Raises: UserError, as `predict`.
    """
    backend = weights
    if not isinstance(backend, Backend):
        backend = load_backend(backend, choose_device(device))
    settings = (settings or DEFAULTS).sized(backend.imgsz)
    if agnostic_nms:
        settings = replace(settings, nms="agnostic")
    wish = Wish(settings, _class_labels(backend, classes), tiles or Tiles())
    pictures = open_pictures(find_sources(source), _checked_stride(stride))
    for _, outcome in find_in_pictures(backend, pictures, wish):
        yield outcome


def find_in_pictures(
    backend: Backend, pictures: Iterator[Picture | Unreadable], wish: Wish
) -> Iterator[tuple[Picture | None, Result | Unreadable]]:
    """Yield the outcome for each picture in order; `batch` pictures are looked at together.

    Raises: DataError for a picture in memory that is none.
    """
    looker = Looker(backend, wish.settings)
    waiting: list[Picture] = []
    for picture in read_ahead(pictures, wish.settings.batch + 1):
        if isinstance(picture, Picture):
            waiting.append(picture)
        if waiting and (isinstance(picture, Unreadable) or len(waiting) == wish.settings.batch):
            yield from zip(waiting, _find(looker, waiting, wish), strict=True)
            waiting = []
        if isinstance(picture, Unreadable):
            yield None, picture
    if waiting:
        yield from zip(waiting, _find(looker, waiting, wish), strict=True)


def _find(looker: Looker, pictures: Sequence[Picture], wish: Wish) -> list[Result]:
    started = time.perf_counter()
    sizes = [picture.image.shape[:2] for picture in pictures]
    regions = [wish.tiles.regions(size) for size in sizes]
    if all(len(parts) == 1 for parts in regions):
        inputs = _inputs([picture.image for picture in pictures], looker, wish.settings.imgsz)
        found = [
            in_image_pixels(one, size, wish.settings.imgsz)
            for one, size in zip(_wanted(looker, inputs, wish), sizes, strict=True)
        ]
    else:
        found = [
            _find_in_tiles(looker, picture.image, parts, wish)
            for picture, parts in zip(pictures, regions, strict=True)
        ]
    each = 1000 * (time.perf_counter() - started) / len(pictures)
    return [
        Result(
            path=picture.path,
            size=size,
            boxes=one.boxes,
            scores=one.scores,
            labels=one.labels,
            names=looker.backend.names,
            milliseconds=each,
            image=picture.image,
            frame=picture.frame,
            source=picture.source,
        )
        for picture, size, one in zip(pictures, sizes, found, strict=True)
    ]


def _inputs(images: Sequence[np.ndarray], looker: Looker, imgsz: int) -> torch.Tensor:
    pictures = np.stack([letterbox(image, (imgsz, imgsz))[0] for image in images])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).to(looker.backend.device).float()


def _wanted(looker: Looker, inputs: torch.Tensor, wish: Wish) -> list[Detections]:
    """Return the wanted detections of each input (B, 3, H, W), in input pixels.

    Classes are chosen before NMS and before `max_det` cuts.
    """
    settings = wish.settings
    if wish.classes is None:
        return looker.detect(inputs, settings.conf, settings.iou, settings.max_det)
    every = looker.candidates(inputs, settings.conf, max(MAX_CANDIDATES, settings.max_det))
    return [
        looker.suppress(_of_classes(one, wish), settings.conf, settings.iou, settings.max_det)
        for one in every
    ]


def _of_classes(found: Detections, wish: Wish) -> Detections:
    if wish.classes is None:
        return found
    kept = torch.isin(found.labels, torch.tensor(wish.classes, device=found.labels.device))
    return Detections(found.boxes[kept], found.scores[kept], found.labels[kept])


def _find_in_tiles(
    looker: Looker, image: np.ndarray, regions: Sequence[Region], wish: Wish
) -> Prediction:
    """Look at the whole picture and its tiles, and join what they show by NMS."""
    settings, size = wish.settings, image.shape[:2]
    parts: list[Prediction] = []
    for start in range(0, len(regions), settings.batch):
        chosen = regions[start : start + settings.batch]
        inputs = _inputs(cut_out(image, chosen), looker, settings.imgsz)
        for region, one in zip(chosen, looker.candidates(inputs, settings.conf), strict=True):
            x1, y1, x2, y2 = region
            here = in_image_pixels(_of_classes(one, wish), (y2 - y1, x2 - x1), settings.imgsz)
            boxes = here.boxes + np.array([x1, y1, x1, y1], np.float32)
            whole = whole_objects(boxes, region, size)
            parts.append(Prediction(boxes[whole], here.scores[whole], here.labels[whole]))
    scores = np.concatenate([part.scores for part in parts])
    order = np.argsort(-scores, kind="stable")
    joined = Detections(
        torch.from_numpy(np.concatenate([part.boxes for part in parts])[order]),
        torch.from_numpy(scores[order]),
        torch.from_numpy(np.concatenate([part.labels for part in parts])[order]),
    )
    kept = looker.suppress(joined, settings.conf, settings.iou, settings.max_det)
    return Prediction(kept.boxes.numpy(), kept.scores.numpy(), kept.labels.numpy())


def _class_labels(backend: Backend, classes: Sequence[str] | None) -> tuple[int, ...] | None:
    """Return the labels of class names; None stays None. Raises: ConfigError: unknown name."""
    if classes is None:
        return None
    for name in classes:
        if name not in backend.names:
            hint = did_you_mean(name, backend.names)
            raise ConfigError(f"classes: {backend.path} knows no {name}{hint}")
    return tuple(backend.names.index(name) for name in classes)


def _checked_stride(stride: int) -> int:
    if stride < 1:
        raise ConfigError(f"stride={stride} must be at least 1")
    return stride


# ---- command -------------------------------------------------------------------------------

EXAMPLES = """examples:
  python -m detector.predict --weights runs/train/bccd/weights/best.pt --source photos/
  python -m detector.predict --weights best.pt --source "photos/*.jpg" --conf 0.4 --save-txt
  python -m detector.predict --weights best.onnx --source a.png --classes RBC WBC --no-images --json
  python -m detector.predict --weights best.pt --source clip.mp4 --stride 5 --save-csv
  python -m detector.predict --weights best.pt --source rtsp://camera.local/live --no-images
  python -m detector.predict --weights best.pt --source map.tif --tile 640 --save-crops
"""
SAVES = {
    "txt": "write YOLO rows with confidence",
    "json": "write predictions.json",
    "coco": "write coco.json, COCO results",
    "csv": "write predictions.csv",
    "crops": "write the part of the picture in each box",
}


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        "python -m detector.predict",
        description="Find objects in pictures and draw them. Exit code 1: some could not be read.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_settings(parser, DEFAULTS)
    parser.add_argument(
        "--source", required=True, nargs="+", metavar="WHAT",
        help="images, videos, folders, globs, .txt lists of these, camera numbers, addresses",
    )  # fmt: skip
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="only these classes")
    parser.add_argument("--agnostic-nms", action="store_true", help="the same as --nms agnostic")
    parser.add_argument(
        "--tile", type=int, default=0, metavar="PIXELS", help="cut larger pictures into such tiles"
    )
    parser.add_argument(
        "--overlap", type=float, default=Tiles.overlap, help="of tiles, share of a side"
    )
    parser.add_argument("--stride", type=int, default=1, help="of a video, every n-th frame")
    parser.add_argument(
        "--max-frames", type=int, default=0, metavar="N", help="of each video or camera; 0: all"
    )
    parser.add_argument(
        "--upright", action="store_true", help="turn photos as their EXIF rotation says"
    )
    parser.add_argument("--out", help="new folder for the files (default runs/predict/<weights>)")
    parser.add_argument("--no-images", action="store_true", help="write no pictures")
    for name, text in SAVES.items():
        parser.add_argument(f"--save-{name}", action="store_true", help=text)
    parser.add_argument("--show", action="store_true", help="show each in a window; q ends")
    add_common(parser)
    return run_command(_predict_command, parser, argv)


def _predict_command(options: argparse.Namespace) -> dict[str, Any]:
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what is wrong is said in one line below
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    backend = load_backend(options.weights, choose_device(options.device), runtime=options.runtime)
    settings = settings_of(options).sized(backend.imgsz)
    if options.agnostic_nms:
        settings = replace(settings, nms="agnostic")
    if options.max_frames < 0:
        raise ConfigError(f"--max-frames {options.max_frames} must be 0 (all) or more")
    tiles = Tiles(options.tile, options.overlap)
    sources = find_sources(options.source)
    if any(isinstance(source, Stream) and source.live for source in sources):
        settings = replace(settings, batch=1)  # nothing waits for what has not happened yet
    wish = Wish(settings, _class_labels(backend, options.classes), tiles)
    stride = _checked_stride(options.stride)
    pictures = open_pictures(sources, stride, options.max_frames, options.upright)
    saves = {name: getattr(options, f"save_{name}") for name in SAVES}
    wanted = Wanted(pictures=not options.no_images, **saves)
    folder = Path(options.out or Path("runs/predict") / Path(options.weights).stem)
    with open_writer(folder, wanted) as writer:
        return _run(find_in_pictures(backend, pictures, wish), writer, options, stride)


def _run(
    outcomes: Iterator[tuple[Picture | None, Result | Unreadable]],
    writer: Writer | None,
    options: argparse.Namespace,
    stride: int,
) -> dict[str, Any]:
    """Log, write and show every outcome; return what `--json` prints."""
    done: list[dict[str, Any]] = []
    failed = []
    count = objects = 0
    milliseconds = 0.0
    for picture, outcome in outcomes:
        if isinstance(outcome, Unreadable):
            log.error(outcome.reason)
            failed.append({"path": outcome.path and str(outcome.path), "reason": outcome.reason})
            continue
        assert picture is not None
        log.info("%s: %s %.1f ms", outcome.title, outcome.summary(), outcome.milliseconds)
        count, objects = count + 1, objects + len(outcome.scores)
        milliseconds += outcome.milliseconds
        if options.json:
            done.append(outcome.to_dict())
        if writer:
            writer.write(outcome, picture.rate / stride)
        if options.show and _shown(outcome):
            break
    average = f", {milliseconds / count:.1f} ms an image" if count else ""
    place = f"; files are in {writer.folder}" if writer else ""
    log.info("%d images, %d objects, %d failed%s%s", count, objects, len(failed), average, place)
    return {
        "images": done,
        "failed": failed,
        "directory": str(writer.folder) if writer else None,
        "exit_code": 0 if not failed else 1 if count else 2,
    }


def _shown(result: Result) -> bool:
    """Show a result in a window; True: the person wants to end."""
    try:
        cv2.imshow("detector.predict", result.plot())
        pressed = cv2.waitKey(1 if result.frame is not None else 0)
    except cv2.error as error:
        raise MissingPackageError(
            "--show needs an OpenCV with windows: pip install opencv-python, without the headless"
        ) from error
    return pressed & 0xFF in (ord("q"), 27)


if __name__ == "__main__":
    raise SystemExit(main())
