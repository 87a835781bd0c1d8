import pytest
import torch

from detector.distributed import amp_dtype, choose_device
from detector.errors import ConfigError


def pretend(monkeypatch: pytest.MonkeyPatch, device: str | None, count: int = 0) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: device is not None)
    found = torch.device(device) if device else None
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: found)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)


def test_auto_is_the_cpu_without_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, None)
    assert choose_device("auto") == torch.device("cpu")


def test_auto_is_the_accelerator_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "mps", 1)
    assert choose_device("auto") == torch.device("mps")


def test_a_bare_number_is_a_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "cuda", 2)
    assert choose_device("1") == torch.device("cuda:1")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda:2", "it has: cpu, cuda:0, cuda:1"),
        ("mps", "it has: cpu, cuda:0, cuda:1"),
        ("toaster", "device='toaster' is unknown"),
    ],
)
def test_a_device_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    pretend(monkeypatch, "cuda", 2)
    with pytest.raises(ConfigError) as caught:
        choose_device(name)
    assert message in str(caught.value)


def test_mixed_precision_is_off_on_a_cpu_and_when_not_wanted() -> None:
    assert amp_dtype(torch.device("cpu"), True) == torch.float32
    assert amp_dtype(torch.device("cuda"), False) == torch.float32


@pytest.mark.parametrize(("bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_mixed_precision_takes_bfloat16_where_the_gpu_has_it(
    monkeypatch: pytest.MonkeyPatch, bf16: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    assert amp_dtype(torch.device("cuda"), True) == dtype
