"""What only a GPU can show; `python -m pytest -m gpu`, or benchmarks/gpu.py."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from detector.checkpoint import load_model
from detector.config import Hyp, resolve
from detector.data.cache import ImageCache
from detector.data.description import load_data, read_split
from detector.evaluate import evaluate_family
from detector.families import build_family
from detector.finding import Settings
from detector.losses import build_loss
from detector.models import build_model
from detector.train import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
GPU, CPU = torch.device("cuda"), torch.device("cpu")


def some_targets() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    targets = []
    for count in (0, 1, 9):
        low = torch.rand(count, 2, generator=generator) * 80
        sides = 8 + torch.rand(count, 2, generator=generator) * 40
        labels = torch.randint(2, (count,), generator=generator)
        targets.append({"boxes": torch.cat((low, low + sides), dim=1), "labels": labels})
    return targets


def moved(targets: list[dict[str, Any]], device: torch.device) -> list[dict[str, Any]]:
    return [{name: value.to(device) for name, value in target.items()} for target in targets]


def test_the_loss_on_a_gpu_is_the_loss_on_a_cpu() -> None:
    torch.manual_seed(0)
    network = build_model("yolox-pico", 2)
    criterion = build_loss(network, Hyp.for_model("yolox-pico"))
    criterion.use_l1 = True
    generator = torch.Generator().manual_seed(1)
    raw = [torch.randn(3, 7, side, side, generator=generator) for side in (16, 8, 4)]
    on_cpu, count = criterion.sums(raw, some_targets())
    on_gpu, gpu_count = criterion.sums([m.to(GPU) for m in raw], moved(some_targets(), GPU))
    assert int(count) == int(gpu_count) > 0
    for name, value in on_cpu.items():
        assert float(on_gpu[name]) == pytest.approx(float(value), rel=1e-4)


@pytest.mark.parametrize("amp", [False, True])
def test_a_training_on_a_gpu_gives_weights_for_a_cpu(
    tiny_set: Path, tmp_path: Path, amp: bool
) -> None:
    small = {"model": "yolox-pico", "imgsz": 64, "batch": 4, "epochs": 3, "workers": 2}
    config, hyp = resolve({**small, "data": str(tiny_set), "device": "cuda", "amp": amp})
    result = train(config, hyp, tmp_path / "run")
    assert all(math.isfinite(value) for value in result.metrics.values())
    assert result.metrics["mAP50"] >= 0.0
    data = load_data(tiny_set)
    samples = read_split(data, "val")
    summaries = []
    for device in (CPU, GPU):
        network = load_model(tmp_path / "run" / "weights" / "last.pt", device).model
        family, cache = build_family(network, hyp), ImageCache(samples, 64)
        summaries.append(evaluate_family(family, samples, cache, Settings(64), 2, device).summary())
    assert summaries[0] == pytest.approx(summaries[1], abs=0.02)


def test_half_precision_changes_the_loss_by_little() -> None:
    torch.manual_seed(0)
    family = build_family(build_model("yolox-pico", 2).to(GPU), Hyp.for_model("yolox-pico"))
    images = 255 * torch.rand(3, 3, 128, 128, device=GPU)
    totals = []
    for enabled in (False, True):
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=enabled):
            sums, count = family.losses(images, moved(some_targets(), GPU))
        totals.append(float(sums["total"] / count))
    assert totals[1] == pytest.approx(totals[0], rel=0.05)
