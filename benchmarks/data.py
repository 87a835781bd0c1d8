"""Pictures per second of the data path: both renderers, and the loader from end to end.

    python -m benchmarks.data [--data data/bccd.yaml] [--imgsz 320] [--device cpu] [--rounds 5]

One thread, pictures of a real data set. Jobs take turns within a round and count by their quickest
one. On a CPU the seconds are those that the process computed, on another device those of the clock.

Peers on one thread of a 2-core machine (FACTS.md of the project, November 2026; mosaic and mixup
from the image files): YOLOX 60 to 87 pictures/s in one process, Ultralytics 126 to 209.
"""

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from detector.config import Hyp
from detector.data.cache import ImageCache
from detector.data.description import load_data, read_split
from detector.data.loader import TrainingLoader, TrainingPictures
from detector.render import render
from detector.render_device import DeviceImages, pack, render_batch

COUNT = 48  # pictures a measurement
BATCH = 16
AUGMENTATIONS = {
    "letterbox, flips, colour (the tail)": {"mosaic": 0.0, "scale": 0.0, "translate": 0.0},
    "defaults": {},
    "mosaic": {"mosaic": 1.0},
    "mosaic and mixup": {"mosaic": 1.0, "mixup": 1.0},
    "mosaic, mixup, rotation, perspective": {
        "mosaic": 1.0, "mixup": 1.0, "degrees": 10.0, "perspective": 0.0005,
    },
}  # fmt: skip


def measure(
    jobs: dict[str, Callable[[], int]], rounds: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Return pictures/s of each job, which returns how many it made, in its quickest round."""
    best = dict.fromkeys(jobs, 0.0)
    for _ in range(rounds):
        for name, job in jobs.items():
            started = clock()
            made = job()
            best[name] = max(best[name], made / (clock() - started))
    return best


def renderer_jobs(
    pictures: TrainingPictures, sources: DeviceImages
) -> dict[str, Callable[[], int]]:
    """Return planning and each renderer on the same plans."""
    items = [(1, n % len(pictures), False, pictures.size) for n in range(COUNT)]
    plans = [pictures.plan(item)[0] for item in items]
    packed = [pack(plans[start : start + BATCH], pictures.size) for start in range(0, COUNT, BATCH)]

    def on_device() -> int:
        for part in packed:
            render_batch(part.to(sources.device), sources)
        torch.zeros(1, device=sources.device).item()  # waits for the device
        return COUNT

    return {
        "plans and boxes": lambda: len([pictures.plan(item) for item in items]),
        "OpenCV": lambda: len([render(plan, pictures.cache) for plan in plans]),
        f"torch on {sources.device}": on_device,
    }


def loader_job(
    pictures: TrainingPictures, sources: DeviceImages | None, device: torch.device
) -> Callable[[], int]:
    """Return an epoch of the loader in this process, up to the batch that the network gets."""
    loader = TrainingLoader(pictures, BATCH, BATCH, 0, False, sources=sources)

    def epoch() -> int:
        made = sum(len(batch.to(device).counts) for batch in loader.epoch(1, False))
        torch.zeros(1, device=device).item()
        return made

    return epoch


def main() -> None:
    """Print one JSON object: pictures/s by augmentation and job."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data/bccd.yaml")
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    device = torch.device(options.device)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    samples = read_split(load_data(options.data), "train")[:COUNT]
    with tempfile.TemporaryDirectory() as folder:
        kept = ImageCache(samples, options.imgsz, Path(folder))
        on_demand = ImageCache(samples, options.imgsz, where="none")
        sources = DeviceImages.load(kept, device)
        report = {}
        for name, values in AUGMENTATIONS.items():
            pictures, from_files = (
                TrainingPictures(samples, cache, options.imgsz, Hyp(**values), 0)
                for cache in (kept, on_demand)
            )
            jobs = renderer_jobs(pictures, sources)
            jobs["loader, OpenCV, cached"] = loader_job(pictures, None, device)
            jobs["loader, OpenCV, from files"] = loader_job(from_files, None, device)
            jobs[f"loader, torch on {device}"] = loader_job(pictures, sources, device)
            found = measure(jobs, options.rounds, clock)
            report[name] = {job: round(speed, 1) for job, speed in found.items()}
    where = {"imgsz": options.imgsz, "data": options.data, "pictures": COUNT}
    versions = {"torch": torch.__version__, "opencv": cv2.__version__, "numpy": np.__version__}
    print(json.dumps({**where, "pictures_per_second": report, **versions}, indent=1))


if __name__ == "__main__":
    main()
