import subprocess
import sys

import pytest

from detector import memory

# The file alone: without the package, and so without torch, the process starts at once.
COUNT_FAULTS = """
import resource, runpy, sys
import numpy as np
if sys.argv[1] and not runpy.run_path(sys.argv[1])["keep_freed_memory"]():
    print("cannot")
else:
    def touch():
        np.ones(1 << 23)  # 64 MiB, written, and given back at once
    touch()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        touch()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(file: str) -> int:
    """Page faults of ten large arrays, after a first one, in a process of its own."""
    answer = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS, file], check=True, capture_output=True, text=True
    ).stdout.strip()
    if answer == "cannot":
        pytest.skip("this C library cannot be told to keep memory")
    return int(answer)


def test_the_second_array_takes_the_pages_of_the_first() -> None:
    assert (
        faults(memory.__file__) < 50
    )  # without it 16,384 pages of 4 KiB, or 32 of 2 MiB, an array
    assert faults("") > 200
