"""What evaluation costs beside the network, and what NMS and views of a picture are worth.

    python -m benchmarks.evaluate --weights best.pt [--data data/bccd.yaml] [--rounds 5] [--peer]

One thread; seconds that the process computed, the quickest of several rounds in turns. `--peer`
also times pycocotools, if it is installed (a minute). Writes benchmarks/results/evaluate.json and
.md.
"""

import argparse
import contextlib
import io
import json
import logging
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch

from detector.boxes import Detections
from detector.checkpoint import load_model
from detector.data.description import load_data, read_split
from detector.data.images import read_image
from detector.data.sample import Sample
from detector.decode import decode, select
from detector.evaluate import measure
from detector.finding import Originals, Settings, batches_of, in_image_pixels, letterboxed_batches
from detector.looking import Looker
from detector.matching import Judged, Prediction, Truth, judge_all
from detector.metrics import evaluate_detections, measure_judged
from detector.models.channels import in_convention
from detector.predict import predict
from detector.resampling import Resampler
from detector.scorecard import truth_of
from detector.tiling import Tiles
from detector.voc_metrics import evaluate_voc

RESULTS = Path(__file__).parent / "results"
IMAGES, FOUND, CLASSES = 5000, 100, 80  # of the made-up set: as many as COCO val, 100 detections
LIMITS = {"metrics_seconds": 5.0, "share_of_forward": 0.2}
WAYS = {
    "class": {}, "agnostic": {"nms": "agnostic"}, "merge": {"nms": "merge"},
    "soft": {"nms": "soft"}, "class, augment": {"augment": True},
    "merge, augment": {"nms": "merge", "augment": True},
}  # fmt: skip


def made_up(images: int = IMAGES) -> tuple[list[Truth], list[Prediction]]:
    """Targets like COCO's in number and size, crowds among them, and 100 detections an image."""
    rng = np.random.default_rng(0)
    truths, found = [], []
    for _ in range(images):
        count = int(rng.integers(0, 15))
        corner, side = rng.uniform(0, 500, (count, 2)), np.exp(rng.uniform(2, 5.5, (count, 2)))
        boxes = np.concatenate([corner, corner + side], axis=1).astype(np.float32)
        labels = rng.integers(0, CLASSES, count)
        truths.append(Truth(boxes, labels, rng.random(count) < 0.02))
        near = rng.integers(0, count, 40) if count else np.zeros(0, int)
        moved = boxes[near] + rng.normal(0, 0.1, (len(near), 4)) * np.tile(side[near], 2)
        other = rng.uniform(0, 500, (FOUND - len(near), 2))
        others = np.concatenate([other, other + rng.uniform(4, 150, other.shape)], axis=1)
        every = np.concatenate([moved, others]).astype(np.float32)
        own = np.concatenate([labels[near], rng.integers(0, CLASSES, len(other))])
        found.append(Prediction(every, rng.random(FOUND).astype(np.float32), own))
    return truths, found


def quickest(job: Callable[[], object], rounds: int) -> float:
    """Return the seconds of the process in the quickest of several calls."""
    best = float("inf")
    for _ in range(rounds):
        started = time.process_time()
        job()
        best = min(best, time.process_time() - started)
    return best


# ---- metrics alone


def time_metrics(rounds: int, peer: bool) -> dict[str, float]:
    """Return seconds of metrics on the made-up set."""
    truths, found = made_up()
    judged: Judged = judge_all(truths, found, CLASSES)
    ones = np.ones(len(truths), int)
    resampler = Resampler(judged)
    jobs: dict[str, Callable[[], object]] = {
        "as in training": lambda: evaluate_detections(truths, found, CLASSES),
        "with the twelve numbers of COCO": lambda: evaluate_detections(
            truths, found, CLASSES, by_size=True
        ),
        "VOC, both rules": lambda: evaluate_voc(truths, found, CLASSES),
        "one resample of the bootstrap": lambda: resampler.metrics(ones),
    }
    seconds = {name: quickest(job, rounds) for name, job in jobs.items()}
    if peer:
        ours = measure_judged(judged, by_size=True)
        seconds["pycocotools"], stats = time_pycocotools(truths, found)
        gap = np.abs(np.array(list(ours.coco.values())) - stats).max()
        seconds["largest difference of the twelve numbers from pycocotools"] = float(gap)
    return seconds


def time_pycocotools(truths: list[Truth], found: list[Prediction]) -> tuple[float, np.ndarray]:
    """Return the seconds of COCOeval, from lists in memory, and its twelve numbers."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def xywh(box: np.ndarray) -> list[float]:
        x1, y1, x2, y2 = box.astype(float).tolist()
        return [x1, y1, x2 - x1, y2 - y1]

    annotations, rows = [], []
    for image, (truth, one) in enumerate(zip(truths, found, strict=True), start=1):
        crowd = truth.crowd if truth.crowd is not None else np.zeros(len(truth.labels), bool)
        for box, label, many in zip(truth.boxes, truth.labels, crowd, strict=True):
            x, y, w, h = xywh(box)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image, "category_id": int(label) + 1,
                 "bbox": [x, y, w, h], "area": w * h, "iscrowd": int(many)}
            )  # fmt: skip
        rows += [
            {"image_id": image, "category_id": int(label) + 1, "bbox": xywh(box), "score": score}
            for box, label, score in zip(one.boxes, one.labels, one.scores.tolist(), strict=True)
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth_set = COCO()
        truth_set.dataset = {
            "info": {},
            "images": [{"id": n + 1} for n in range(len(truths))],
            "annotations": annotations,
            "categories": [{"id": n + 1} for n in range(CLASSES)],
        }
        truth_set.createIndex()
        started = time.process_time()
        judge = COCOeval(truth_set, truth_set.loadRes(rows), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return time.process_time() - started, np.array(judge.stats)


# ---- beside the network


def time_stages(weights: str, samples: list[Sample], rounds: int) -> dict[str, float]:
    """Return ms an image of each stage of an evaluation; the stages of a batch take turns."""
    loaded = load_model(weights)
    model, imgsz, count = loaded.model, loaded.imgsz, len(loaded.names)
    settings = Settings(imgsz)
    groups = batches_of([sample.size for sample in samples], settings)
    batches = list(letterboxed_batches(Originals(samples), groups))
    truths = [truth_of(sample) for sample in samples]
    best = dict.fromkeys(("forward", "decode", "NMS", "metrics"), float("inf"))
    for _ in range(rounds):
        spent = dict.fromkeys(best, 0.0)
        found: list[Prediction] = []
        with torch.inference_mode():
            for (indices, _), pictures in zip(groups, batches, strict=True):
                times = [time.process_time()]
                raw = model(in_convention(pictures.float(), model.input_convention))
                times.append(time.process_time())
                decoded = decode(model, raw)
                times.append(time.process_time())
                each: list[Detections] = select(
                    decoded, settings.conf, settings.iou, settings.max_det
                )
                times.append(time.process_time())
                for name, gap in zip(spent, np.diff(times), strict=False):
                    spent[name] += float(gap)
                found += [
                    in_image_pixels(one, samples[index].size, imgsz)
                    for index, one in zip(indices, each, strict=True)
                ]
        spent["metrics"] = quickest(lambda: evaluate_detections(truths, found, count), 1)  # noqa: B023
        best = {name: min(best[name], spent[name]) for name in best}
    per_image = {name: 1000 * value / len(samples) for name, value in best.items()}
    beside = sum(value for name, value in per_image.items() if name != "forward")
    return per_image | {"share_of_forward": beside / per_image["forward"]}


def compare_ways(weights: str, data: str) -> Iterator[dict[str, Any]]:
    """Yield accuracy and cost of each kind of NMS, with and without augmented views."""
    for name, values in WAYS.items():
        # seconds of this thread: other work on the machine is not counted, nor is image decoding
        with mock.patch.object(Looker, "_now", lambda self: time.thread_time()):
            found = measure(weights, data, "val", "cpu", Settings(**values))  # type: ignore[arg-type]
        summary = found.metrics.summary()
        cost = {key: 1000 * value / len(found.samples) for key, value in found.seconds.items()}
        yield {"way": name, **summary, "network_ms": cost["network"], "nms_ms": cost["NMS"]}


def collages(samples: list[Sample], side: int = 4) -> Iterator[tuple[np.ndarray, Truth]]:
    """Yield pictures of `side` x `side` photos of one size, each as large as on disk."""
    height, width = samples[0].size
    alike = [sample for sample in samples if sample.size == (height, width)]
    for start in range(0, len(alike) - side * side + 1, side * side):
        canvas = np.zeros((side * height, side * width, 3), np.uint8)
        boxes, labels = [], []
        for place, sample in enumerate(alike[start : start + side * side]):
            y, x = place // side * height, place % side * width
            canvas[y : y + height, x : x + width] = read_image(sample.path)
            boxes.append(sample.boxes + np.array([x, y, x, y], np.float32))
            labels.append(sample.labels)
        yield canvas, Truth(np.concatenate(boxes), np.concatenate(labels))


def compare_tiles(weights: str, samples: list[Sample], num_classes: int) -> list[dict[str, Any]]:
    """Return the accuracy on collages of 16 photos, whole and in tiles of a photo's width."""
    pictures, truths = zip(*collages(samples), strict=True)
    settings = Settings(conf=0.001, max_det=3000, batch=8)
    rows = []
    for side in (0, samples[0].size[1]):
        results = predict(weights, list(pictures), "cpu", settings, tiles=Tiles(side, 0.3))
        found = [Prediction(one.boxes, one.scores, one.labels) for one in results]
        metrics = evaluate_detections(truths, found, num_classes, max_det=1000)
        rows.append({"tile": side, "pictures": len(pictures), **metrics.summary()})
    return rows


# ---- report


def as_text(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = ["# Evaluation", "", report["told"], ""]
    lines += [f"{IMAGES} made-up images x {FOUND} detections, {CLASSES} classes:", ""]
    lines += ["| metrics | seconds |", "|---|---|"]
    lines += [f"| {name} | {value:.3g} |" for name, value in report["metrics"].items()]
    stages = report["stages"]
    lines += ["", f"{report['data']}, val, {Path(report['weights']).name}, ms an image:", ""]
    lines += ["| stage | ms |", "|---|---|"]
    names = ("forward", "decode", "NMS", "metrics")
    lines += [f"| {name} | {stages[name]:.2f} |" for name in names]
    lines += ["", f"Decode, NMS and metrics: {stages['share_of_forward']:.3f} of the forward time."]
    lines += [
        "",
        "| NMS | mAP50-95 | mAP50 | F1 | network ms | NMS ms |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["ways"]:
        numbers = " | ".join(f"{row[key]:.3f}" for key in ("mAP50-95", "mAP50", "F1"))
        lines.append(
            f"| {row['way']} | {numbers} | {row['network_ms']:.0f} | {row['nms_ms']:.1f} |"
        )
    lines += ["", f"{report['tiles'][0]['pictures']} collages of 16 photos, `predict --tile`:", ""]
    lines += ["| tile | mAP50-95 | mAP50 | F1 |", "|---|---|---|---|"]
    for row in report["tiles"]:
        numbers = " | ".join(f"{row[key]:.3f}" for key in ("mAP50-95", "mAP50", "F1"))
        lines.append(f"| {row['tile'] or 'whole'} | {numbers} |")
    lines += ["", *(f"- {line}" for line in report["verdicts"])]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print the report, and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", default="data/bccd.yaml")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", action="store_true", help="time pycocotools too")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    data = load_data(options.data)
    samples = read_split(data, "val")
    stages = time_stages(options.weights, samples, options.rounds)
    metrics = time_metrics(options.rounds, options.peer)
    slowest = metrics["with the twelve numbers of COCO"]
    verdicts = [
        f"metrics of {IMAGES} x {FOUND}: {slowest:.2f} s (bar: {LIMITS['metrics_seconds']:g}): "
        + ("holds" if slowest <= LIMITS["metrics_seconds"] else "MISSED"),
        f"beside the network: {stages['share_of_forward']:.3f} of forward "
        f"(bar: {LIMITS['share_of_forward']:g}): "
        + ("holds" if stages["share_of_forward"] <= LIMITS["share_of_forward"] else "MISSED"),
    ]
    told = (
        f"`python -m benchmarks.evaluate`, {time.strftime('%Y-%m-%d')}, {platform.machine()}, one "
        f"thread, torch {torch.__version__}, numpy {np.__version__}; seconds of the process, the "
        f"quickest of {options.rounds} rounds."
    )
    report = {
        "told": told,
        "weights": Path(options.weights).name,
        "data": options.data,
        "metrics": metrics,
        "stages": stages,
        "ways": list(compare_ways(options.weights, options.data)),
        "tiles": compare_tiles(options.weights, samples, data.num_classes),
        "verdicts": verdicts,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "evaluate.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    text = as_text(report)
    (RESULTS / "evaluate.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
