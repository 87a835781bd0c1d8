"""How fast networks train: `python -m detector.benchmark --training yolox-nano`.

The step is that of train.py (forward, loss, backward, optimizer, average) on pictures and objects
that lie in the device's memory: no data set is read. For a training with its data see
`python -m detector.train --performance`.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from detector.config import Hyp, TrainConfig
from detector.device_memory import OutOfMemory
from detector.distributed import amp_dtype, choose_device
from detector.families import build_family
from detector.models import build_model
from detector.optim import WeightAverage, build_optimizer, set_step

CLASSES = 80  # of COCO
OBJECTS = 8  # in an image; COCO has 7.3 on average
WARM_UP = 2  # steps that are not timed: memory is being laid out
STRETCH = 1.0  # seconds that one way of training runs before the next has its turn
LEAST_ROUNDS = 3
FORMATS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


@dataclass(frozen=True)
class TrainingRow:
    """How fast a network trains in one way."""

    model: str
    device: str
    precision: str  # of the forward pass: fp32, bf16 or fp16 (mixed precision)
    layout: str  # of its tensors: a key of FORMATS
    imgsz: int
    batch: int  # images of a step
    optimizer: str
    images_per_second: float  # median of the rounds
    step_ms: float  # median
    step_p90_ms: float
    ratio: float  # how many times as fast as the first way of the same network


@dataclass(eq=False)
class Trainee:
    """A network that is trained on the same pictures again and again."""

    config: TrainConfig
    device: torch.device
    dtype: torch.dtype  # float32: no mixed precision
    layout: str
    seconds: list[list[float]] = field(default_factory=list)  # of steps, by round

    def __post_init__(self) -> None:
        hyp = Hyp.for_model(self.config.model)
        memory_format = FORMATS[self.layout]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            network = build_model(self.config.model, CLASSES)
        self.network = network.to(self.device, memory_format=memory_format).train()
        self.family = build_family(self.network, hyp)
        self.optimizer = build_optimizer(self.config.optimizer, self.network, hyp)
        self.average = WeightAverage(self.network, hyp.ema_decay, hyp.ema_tau)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        set_step(self.optimizer, 1e-5, hyp.momentum)  # small: noise cannot be learned
        images, self.targets = _batch(self.config.imgsz, int(self.config.batch), self.device)
        self.images = images.contiguous(memory_format=memory_format)

    def step(self) -> None:
        """Make one optimizer step, and wait for its end. Raises: OutOfMemory."""
        mixed = self.dtype != torch.float32
        try:
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=mixed):
                parts, positives = self.family.losses(self.images, self.targets)
            self.scaler.scale(parts["total"] / positives.clamp(min=1)).backward()
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(self.config.imgsz, int(self.config.batch)) from error
        self.scaler.unscale_(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update()
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def run_for(self, seconds: float) -> None:
        """Make steps for a while; note the seconds of each."""
        took: list[float] = []
        began = time.perf_counter()
        while not took or time.perf_counter() - began < seconds:
            start = time.perf_counter()
            self.step()
            took.append(time.perf_counter() - start)
        self.seconds.append(took)


def _batch(imgsz: int, count: int, device: torch.device) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Return noise (B, 3, H, W) and objects of all sizes in it, the same each time."""
    random = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, imgsz, imgsz, generator=random) * 255
    targets = []
    for _ in range(count):
        sides = (torch.rand(OBJECTS, 2, generator=random) * 0.5 + 0.05) * imgsz
        corners = torch.rand(OBJECTS, 2, generator=random) * (imgsz - sides)
        labels = torch.randint(CLASSES, (OBJECTS,), generator=random)
        boxes = torch.cat((corners, corners + sides), dim=1)
        targets.append({"boxes": boxes.to(device), "labels": labels.to(device)})
    return images.to(device), targets


def trainees(models: Sequence[str], imgsz: int, batch: int, device: str) -> list[Trainee]:
    """Return each network in each way that the device has. Raises: UserError."""
    chosen = choose_device(device)
    dtypes = dict.fromkeys((torch.float32, amp_dtype(chosen, True)))
    return [
        Trainee(TrainConfig(model=model, imgsz=imgsz, batch=batch), chosen, dtype, layout)
        for model in models
        for dtype in dtypes
        for layout in FORMATS
    ]


def take_turns(group: Sequence[Trainee], seconds: float) -> Iterator[str]:
    """Train all in turns, `seconds` each; yield who is on."""
    rounds = max(LEAST_ROUNDS, round(seconds / STRETCH))
    for one in group:
        yield f"warm-up: {one.config.model}"
        for _ in range(WARM_UP):
            one.step()
    for number in range(rounds):
        for one in group:
            yield f"round {number + 1}/{rounds}: {one.config.model}"
            one.run_for(seconds / rounds)


def rows(group: Sequence[Trainee]) -> list[TrainingRow]:
    """Return what was measured."""
    firsts: dict[str, Trainee] = {}
    found = []
    for one in group:
        first = firsts.setdefault(one.config.model, one)
        rounds = [float(np.median(part)) for part in one.seconds]
        pairs = zip((float(np.median(part)) for part in first.seconds), rounds, strict=True)
        median, p90 = np.percentile(np.concatenate(one.seconds), (50, 90))
        found.append(
            TrainingRow(
                model=one.config.model,
                device=str(one.device),
                precision={torch.float16: "fp16", torch.bfloat16: "bf16"}.get(one.dtype, "fp32"),
                layout=one.layout,
                imgsz=one.config.imgsz,
                batch=int(one.config.batch),
                optimizer=one.config.optimizer,
                images_per_second=int(one.config.batch) / float(np.median(rounds)),
                step_ms=1000 * float(median),
                step_p90_ms=1000 * float(p90),
                ratio=float(np.median([theirs / own for theirs, own in pairs])),
            )
        )
    return found
