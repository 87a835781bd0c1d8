from types import SimpleNamespace

import pytest
import torch

from detector.distributed import (
    add_up,
    amp_dtype,
    any_rank,
    choose_device,
    first_on_machine,
    from_first,
    gathered,
    is_first,
    process_group,
    rank,
    world_size,
)
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


def test_a_bare_number_counts_the_devices_of_whatever_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "xpu", 2)
    assert choose_device("1") == torch.device("xpu:1")


def test_without_native_bfloat16_an_emulation_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert amp_dtype(torch.device("cuda"), True) == torch.float16


# ---- several processes ---------------------------------------------------------------------


def launch(monkeypatch: pytest.MonkeyPatch, rank: int, ranks: int, local_rank: int) -> None:
    values = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": local_rank}
    for name, value in (values | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}).items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize("kind", ["cuda", "xpu", "privateuseone"])
def test_each_process_of_a_machine_gets_its_own_device(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    pretend(monkeypatch, kind, 4)
    launch(monkeypatch, rank=7, ranks=8, local_rank=3)  # the second machine of two
    assert choose_device("auto") == torch.device(kind, 3)
    assert choose_device(kind) == torch.device(kind, 3)
    assert choose_device("cpu") == torch.device("cpu")


def test_one_device_for_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "cuda", 2)
    launch(monkeypatch, rank=0, ranks=2, local_rank=0)
    with pytest.raises(
        ConfigError, match=r"device='cuda:1' is one device for 2 processes: try cuda"
    ):
        choose_device("cuda:1")


def test_more_processes_than_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "cuda", 2)
    launch(monkeypatch, rank=2, ranks=3, local_rank=2)
    with pytest.raises(
        ConfigError, match=r"process 2 of this machine has none; .*: cpu, cuda:0, cuda:1"
    ):
        choose_device("auto")


def test_a_kind_of_device_that_cannot_talk_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    launch(monkeypatch, rank=0, ranks=2, local_rank=0)
    with (
        pytest.raises(
            ConfigError, match="device=privateuseone has no backend for several processes"
        ),
        process_group(torch.device("privateuseone")),
    ):
        pass


def test_half_of_a_launcher_is_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "3")
    assert (world_size(), rank(), is_first()) == (1, 0, True)


def test_one_process_needs_no_group_and_changes_nothing() -> None:
    tensor = torch.arange(3.0)
    with process_group(torch.device("cpu")):
        assert not torch.distributed.is_initialized()
        add_up([tensor])
        assert tensor.tolist() == [0.0, 1.0, 2.0]
        assert (any_rank(True), any_rank(False)) == (True, False)
        assert from_first(lambda: 5) == 5
        assert gathered([1, 2]) == [[1, 2]]
        with first_on_machine():
            pass


def test_the_device_of_a_process_is_current_while_it_trains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    current = [0]
    kind = SimpleNamespace(
        current_device=lambda: current[-1], set_device=lambda index: current.append(index)
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: kind)
    with pytest.raises(ZeroDivisionError), process_group(torch.device("cuda:3")):
        assert current[-1] == 3
        raise ZeroDivisionError
    assert current == [0, 3, 0]
