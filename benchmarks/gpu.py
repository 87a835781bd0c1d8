"""Everything that has to be measured on a GPU, in one call of a few minutes.

python -m benchmarks.gpu             YOLOX-s and -m at 640 px on the accelerator of this machine
python -m benchmarks.gpu --tiny      the same code with a toy network, here and now, on a CPU

The pictures are generated, nothing is fetched. Results are written after each part, so that what
was measured stays when the time is over.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.train import machine
from detector.checkpoint import load_model
from detector.config import TRAIN_NAMES, Hyp, TrainConfig, resolve
from detector.data.cache import ImageCache
from detector.data.description import load_data, read_split
from detector.data.loader import Batch, TrainingLoader, TrainingPictures
from detector.distributed import amp_dtype, choose_device
from detector.evaluate import evaluate_family
from detector.families import Family, build_family
from detector.finding import Settings
from detector.models import build_model
from detector.optim import build_optimizer
from detector.train import train

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results" / "gpu"
GOALS = {"yolox-m end to end, images/s, one H200": 1000, "share of time waiting for data": 0.02}
# Training end to end: settings over the defaults; a name that this version lacks is left out.
FEEDS = {
    "drawn on the device": {"render": "device", "workers": 0},
    "drawn by workers": {"render": "cpu", "workers": -1},
}


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    models: tuple[str, ...] = ("yolox-s", "yolox-m")
    imgsz: int = 640
    batch: int = 64
    images: int = 256  # of the training split; validation has a quarter
    repeat: int = 8  # times an epoch shows each of them
    epochs: int = 3
    warm_up: int = 5  # steps
    steps: int = 20
    backend: str = "inductor"  # of torch.compile
    tests: str = "tests/detector"


TINY = Plan(("yolox-pico",), 64, 4, 8, 1, 2, 1, 2, "eager", "tests/detector/test_gpu.py")


@dataclass(frozen=True)
class Variant:
    """One way to run a training step."""

    name: str
    amp: bool = True
    channels_last: bool = True
    autotune: bool = False  # cudnn.benchmark
    compiled: bool = False


VARIANTS = (
    Variant("as shipped"),
    Variant("full precision", amp=False),
    Variant("not channels-last", channels_last=False),
    Variant("autotuned", autotune=True),
    Variant("compiled", compiled=True),
)


@dataclass
class Run:
    """What the parts share."""

    plan: Plan
    device: torch.device
    work: Path
    out: Path
    deadline: float  # of time.monotonic()
    record: dict[str, Any] = field(default_factory=dict)
    batches: list[Batch] = field(default_factory=list)  # on the device, for the bare steps

    def part(self, name: str, measure: Callable[[], Any], seconds: float = 0.0) -> None:
        """Measure a part that takes about `seconds`; its failure is written down, not raised."""
        began = time.monotonic()
        if began + seconds > self.deadline:
            self.record[name] = {"skipped": "no time left"}
        else:
            try:
                self.record[name] = measure()
            except Exception as error:  # the next parts are still worth their minutes
                self.record[name] = {"error": f"{type(error).__name__}: {error}"}
            finally:
                self.release()
        took = time.monotonic() - began
        print(
            f"{name} ({took:.0f} s): {json.dumps(self.record[name])}", file=sys.stderr, flush=True
        )
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "gpu.json").write_text(json.dumps(self.record, indent=1) + "\n")

    def release(self) -> None:
        """Give cached device memory back."""
        if self.device.type != "cpu":
            torch.accelerator.empty_cache()

    def wait(self) -> None:
        """Wait until the device has done what it was told."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def settings(self, model: str) -> tuple[TrainConfig, Hyp]:
        """Return the settings of a training of `model` at the plan's size."""
        plan = self.plan
        values = {
            "model": model,
            "data": str(self.work / "shapes.yaml"),
            "imgsz": plan.imgsz,
            "epochs": plan.epochs,
            "batch": plan.batch,
            "nbs": plan.batch,
            "repeat": plan.repeat,
            "no_aug_epochs": 0,
            "mosaic": 1.0,
            "device": str(self.device),
            "val_every": plan.epochs,
        }
        return resolve(values)


def write_description(plan: Plan, work: Path) -> None:
    """Write the description of the generated pictures."""
    content = {
        "format": "shapes",
        "path": str(work / "shapes"),
        "names": ["circle", "triangle", "square"],
        "train": plan.images,
        "val": max(1, plan.images // 4),
        "test": 0,
        "size": plan.imgsz,
        "seed": 0,
    }
    work.mkdir(parents=True, exist_ok=True)
    (work / "shapes.yaml").write_text(json.dumps(content), encoding="utf-8")  # JSON is yaml


# ---- one step ------------------------------------------------------------------------------


def load_batches(run: Run) -> dict[str, Any]:
    """Put an epoch's whole batches into the device's memory, as any of the networks takes them."""
    config, hyp = run.settings(run.plan.models[0])
    samples = read_split(load_data(config.data), "train")
    pictures = TrainingPictures(
        samples, ImageCache(samples, config.imgsz), config.imgsz, hyp, config.seed
    )
    loader = TrainingLoader(pictures, hyp.nbs, config.batch, workers=0, pin_memory=False)
    batches = [batch.to(run.device) for batch in loader.epoch(1, tail=False)]
    run.batches = [batch for batch in batches if len(batch.images) == config.batch]
    return {"batches": len(run.batches), "images": len(samples)}


class Step:
    """Forward, loss, backward and optimizer step of one variant."""

    def __init__(self, run: Run, model: str, variant: Variant) -> None:
        config, hyp = run.settings(model)
        network = build_model(model, 3)
        layout = torch.channels_last if variant.channels_last else torch.contiguous_format
        network = network.to(run.device, memory_format=layout)
        if variant.compiled:
            network.compile(backend=run.plan.backend)
        self.family: Family = build_family(network, hyp)
        self.optimizer = build_optimizer(config.optimizer, network, hyp)
        self.amp = amp_dtype(run.device, variant.amp)
        self.layout, self.device = layout, run.device
        network.train()

    def __call__(self, batch: Batch) -> None:
        """Train on one batch."""
        images = batch.images.contiguous(memory_format=self.layout)
        with torch.autocast(self.device.type, dtype=self.amp, enabled=self.amp != torch.float32):
            sums, count = self.family.losses(images, batch.targets)
        (sums["total"] / count.clamp(min=1)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


@contextlib.contextmanager
def autotuning(wanted: bool) -> Iterator[None]:
    """Let cuDNN try its algorithms, or not."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = wanted
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def measure_step(run: Run, model: str, variant: Variant) -> dict[str, Any]:
    """Return images/s, peak memory and waits for the device of a bare training step."""
    plan, batches = run.plan, run.batches
    with autotuning(variant.autotune):
        step = Step(run, model, variant)
        if run.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(run.device)
        began = time.monotonic()
        for index in range(plan.warm_up):
            step(batches[index % len(batches)])
        run.wait()
        warm = time.monotonic()
        for index in range(plan.steps):
            step(batches[index % len(batches)])
        run.wait()
        seconds = time.monotonic() - warm
    return {
        "images_per_second": plan.steps * plan.batch / seconds,
        "ms_per_step": 1000 * seconds / plan.steps,
        "seconds_to_warm_up": warm - began,
        "peak_gb": peak_gb(run.device),
        "host_waits_per_step": host_waits(run, step, batches[0]),
        "dtype": str(step.amp).removeprefix("torch."),
    }


def peak_gb(device: torch.device) -> float | None:
    """Return the most memory that tensors took, in 10^9 bytes."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


def host_waits(run: Run, step: Step, batch: Batch) -> int | None:
    """Return how often a step makes the host wait for the device."""
    if run.device.type != "cuda":
        return None
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step(batch)
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum("synchroniz" in str(warning.message) for warning in told)


# ---- the whole training --------------------------------------------------------------------


def measure_training(run: Run, model: str, feed: str, bare: float | None) -> dict[str, Any]:
    """Return images/s of `train()` after its first epoch, and what is lost against the bare step.

    What is lost is all that is not the step: waiting for data, moving, averaging, recording. So
    the share of time waiting for data is at most that.
    """
    config, hyp = run.settings(model)
    known = {name: value for name, value in FEEDS[feed].items() if name in TRAIN_NAMES}
    config, hyp = resolve({**asdict(config), **asdict(hyp), **known, "val_every": 1})
    folder = run.work / f"{model}-{feed}".replace(" ", "-")
    rows: list[dict[str, float]] = []

    def report(epoch: int, metrics: dict[str, float]) -> bool:
        rows.append(metrics)
        return False

    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(run.device)
    train(config, hyp, folder, report=report)
    settled = [row["images_per_second"] for row in rows[1:]]
    rate = statistics.median(settled)
    return {
        "images_per_second": rate,
        "epochs": [row["images_per_second"] for row in rows],
        "lost_against_bare_step": 1 - rate / bare if bare else None,
        "peak_gb": peak_gb(run.device),
        "settings": known,
    }


def measure_evaluation(run: Run, model: str, batch: int) -> dict[str, Any]:
    """Return images/s of an evaluation with the weights that were trained here."""
    config, hyp = run.settings(model)
    data = load_data(config.data)
    samples = read_split(data, "val")
    trained = sorted(run.work.glob(f"{model}-*/weights/last.pt"))
    network = load_model(trained[0], run.device).model if trained else build_model(model, 3)
    network = network.to(run.device, memory_format=torch.channels_last)
    family, cache = build_family(network, hyp), ImageCache(samples, config.imgsz)
    settings = Settings(config.imgsz, batch)
    rates = []
    for _ in range(3):
        began = time.monotonic()
        evaluate_family(family, samples, cache, settings, 3, run.device)
        rates.append(len(samples) / (time.monotonic() - began))
    return {"images_per_second": statistics.median(rates[1:]), "images": len(samples)}


def run_tests(run: Run) -> dict[str, Any]:
    """Run the tests that are marked `gpu`."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", run.plan.tests]
    left = max(30.0, run.deadline - time.monotonic())
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=left)
    lines = done.stdout.strip().splitlines()
    found = {"exit_code": done.returncode, "last_line": lines[-1] if lines else done.stderr}
    if done.returncode:
        found["error"] = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return found


# ---- command -------------------------------------------------------------------------------


def measure_all(run: Run) -> None:
    """Measure every part, the most wanted ones first."""
    plan = run.plan
    write_description(plan, run.work)
    about = machine() | {"device": str(run.device), "date": time.strftime("%Y-%m-%d")}
    if run.device.type == "cuda":
        about |= {"gpu": torch.cuda.get_device_name(run.device), "cuda": torch.version.cuda}
    run.part("machine", lambda: about | {"plan": asdict(plan), "goals": GOALS})
    run.part("data", lambda: load_batches(run))
    for model in plan.models:
        measure_variant(run, model, VARIANTS[0])
        bare = run.record[f"{model}: step, as shipped"].get("images_per_second")
        for feed in FEEDS:
            run.part(
                f"{model}: training, {feed}",
                lambda model=model, feed=feed, bare=bare: measure_training(run, model, feed, bare),
                20,
            )
        for batch in (16, plan.batch):
            run.part(
                f"{model}: evaluation, batch {batch}",
                lambda model=model, batch=batch: measure_evaluation(run, model, batch),
                5,
            )
    run.part("tests", lambda: run_tests(run), 30)
    for variant in VARIANTS[1:]:
        for model in plan.models:
            measure_variant(run, model, variant)


def measure_variant(run: Run, model: str, variant: Variant) -> None:
    """Measure one variant of the bare step."""
    seconds = 120 if variant.compiled and run.plan.backend == "inductor" else 15
    run.part(
        f"{model}: step, {variant.name}",
        lambda: measure_step(run, model, variant),
        seconds,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print one line a part, write `gpu.json`; exit code 1 if a part failed."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tiny", action="store_true", help="a toy network on the CPU")
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:1, ...")
    parser.add_argument("--batch", type=int, default=Plan.batch, help="images of a step")
    parser.add_argument("--minutes", type=float, default=8.0, help="begin no part after this time")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/gpu"))
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", RESULTS)))
    given = parser.parse_args(argv)
    device = torch.device("cpu") if given.tiny else choose_device(given.device)
    if device.type == "cpu" and not given.tiny:
        print("no accelerator on this machine; --tiny tries the script on a CPU", file=sys.stderr)
        return 2
    shutil.rmtree(given.work, ignore_errors=True)
    plan = TINY if given.tiny else Plan(batch=given.batch)
    deadline = time.monotonic() + 60 * given.minutes
    run = Run(plan, device, given.work.resolve(), given.out, deadline)
    measure_all(run)
    return int(any("error" in part for part in run.record.values()))


if __name__ == "__main__":
    raise SystemExit(main())
