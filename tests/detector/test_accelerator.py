"""Training on a device that nothing in the detector has heard of.

The stand-in calls itself `privateuseone`, as out-of-tree devices do before they take their name.
What is asked of it is done by the CPU; a line that names another accelerator fails on the spot.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from detector.config import resolve
from detector.device_memory import release
from detector.distributed import amp_dtype, choose_device, pins_memory
from detector.evaluate import evaluate
from detector.train import train

KIND = "privateuseone"
CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]


class OnTheCpu(TorchFunctionMode):
    """Does on the CPU what is asked of the stand-in; `moved` counts the requests."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = 0

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        return function(
            *(self._device(value) for value in args),
            **{name: self._device(value) for name, value in given.items()},
        )

    def _device(self, value: Any) -> Any:
        if isinstance(value, torch.device) and value.type == KIND:
            self.moved += 1
            return CPU
        return value


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[OnTheCpu]:
    module = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 1,
        current_device=lambda: 0,
        get_amp_supported_dtype=lambda: [torch.float16, torch.bfloat16],
        is_bf16_supported=lambda: True,
    )
    monkeypatch.setattr(torch, KIND, module, raising=False)
    accelerator = {
        "is_available": lambda: True,
        "current_accelerator": lambda *_, **__: torch.device(KIND),
        "device_count": lambda: 1,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
    }
    for name, function in accelerator.items():
        monkeypatch.setattr(torch.accelerator, name, function)
    with OnTheCpu() as mode:
        yield mode


def test_a_training_runs_on_a_device_that_nothing_names(
    stand_in: OnTheCpu, tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without bfloat16: float16, and with it the loss scaler.
    monkeypatch.setattr(getattr(torch, KIND), "is_bf16_supported", lambda: False)
    values = {"model": "yolox-pico", "imgsz": 64, "epochs": 1, "batch": -1, "nbs": 4}
    config, hyp = resolve({**values, "data": str(tiny_set), "workers": 0})
    assert choose_device(config.device) == torch.device(KIND)
    result = train(config, hyp, tmp_path / "run")
    assert result.epochs == 1
    assert stand_in.moved > 10  # requests for the device
    metrics = evaluate(result.best_checkpoint, tiny_set)
    assert metrics["mAP50"] == pytest.approx(result.best["mAP50"], abs=1e-3)


def test_what_a_device_does_not_have_is_not_used(stand_in: OnTheCpu) -> None:
    device = torch.device(KIND)
    assert amp_dtype(device, True) == torch.bfloat16
    assert not pins_memory(device)
    release(device)


# ---- the code ------------------------------------------------------------------------------

# Who may name a kind of accelerator: TensorRT runs on CUDA alone; one file chooses the device.
NAMES = {
    "detector/distributed.py",
    "detector/engine.py",
    "detector/backends.py",
    "detector/cost.py",
    "detector/optim.py",  # torch's list of devices with fused optimizers; others go without
}


@pytest.mark.parametrize(
    "path",
    [path for path in sorted((ROOT / "detector").rglob("*.py"))],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_no_other_file_names_a_kind_of_accelerator(path: Path) -> None:
    if path.relative_to(ROOT).as_posix() in NAMES:
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("cuda", "mps", "xpu", "npu"), ast.unparse(node)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert node.value not in ("cuda", "mps", "xpu", "npu"), f"line {node.lineno}"
