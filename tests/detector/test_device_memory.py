import pytest
import torch

from detector.config import Hyp
from detector.device_memory import automatic_batch, largest_batch, occupy, peak_memory
from detector.families import build_family
from detector.models import build_model


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, 13, 63, 64])
def test_the_largest_batch_that_fits_is_found(limit: int) -> None:
    tried = []

    def fits(images: int) -> bool:
        tried.append(images)
        return images <= limit

    assert largest_batch(fits, 64) == limit
    assert max(tried) <= 64
    assert len(tried) == len(set(tried)) <= 12


def test_no_batch_is_larger_than_a_step() -> None:
    assert largest_batch(lambda images: True, 48) == 48


def test_nothing_fits_is_zero() -> None:
    assert largest_batch(lambda images: False, 64) == 0


def test_on_a_cpu_a_step_of_up_to_sixteen_images_is_taken_whole() -> None:
    family = build_family(build_model("yolox-pico", 2), Hyp())
    cpu = torch.device("cpu")
    assert automatic_batch(family, 64, 4, cpu, torch.float32) == 4
    assert automatic_batch(family, 64, 64, cpu, torch.float32) == 16


def test_memory_of_a_cpu_is_that_of_the_process() -> None:
    assert peak_memory(torch.device("cpu")) > 50e6  # torch alone takes more


def test_a_cpu_has_nothing_to_occupy(caplog: pytest.LogCaptureFixture) -> None:
    assert occupy(torch.device("cpu")) == 0
    assert "has no memory to reserve" in caplog.text
