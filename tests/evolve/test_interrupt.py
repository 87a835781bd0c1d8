"""Ctrl-C and SIGTERM within a storage's work."""

import os
import signal

import pytest

from evolve.interrupt import INTERRUPTS, interruptible
from evolve.patience import PatientStorage


def test_an_interrupt_waits_for_the_end_of_a_query_and_a_second_one_does_not() -> None:
    storage, done = PatientStorage("sqlite:///:memory:"), []

    def query() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("whole")

    with interruptible():
        with pytest.raises(KeyboardInterrupt):
            storage.waited(query)
        assert done == ["whole"]
        with pytest.raises(KeyboardInterrupt), INTERRUPTS.kept():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            done.append("never")
        with INTERRUPTS.kept():  # nothing is left over
            done.append("free")
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("never")
    assert done == ["whole", "free"]
