from dataclasses import replace
from pathlib import Path

import torch

from detector.backends import Backend
from detector.contender import Contender, ratio, take_turns

NAMES = ("square", "disc")
CPU = torch.device("cpu")


def contender(single: list[list[float]], imgsz: int = 64) -> Contender:
    backend = Backend(Path("a.onnx"), NAMES, imgsz, "bgr-255", CPU, run=lambda images: images)
    return Contender(Path("a.onnx"), "onnxruntime", backend, None, single=single)


def test_the_ratio_compares_within_each_round() -> None:
    # the machine was three times as slow in the second round, for both: 4 / 2, 12 / 6, 4 / 1
    reference, one = contender([[4.0], [12.0], [4.0]]), contender([[2.0, 9.0, 1.0], [6.0], [1.0]])
    assert ratio(reference, one) == 2.0
    assert ratio(None, one) is None
    assert ratio(contender([[1.0]], imgsz=96), one) is None


def test_files_take_turns_and_first_calls_do_not_count() -> None:
    order: list[tuple[str, int]] = []

    def told(name: str) -> Contender:
        one = contender([])
        run = lambda images: order.append((name, len(images))) or images  # noqa: E731
        return Contender(Path(name), "onnxruntime", replace(one.backend, run=run), None)

    a, b = told("a"), told("b")
    texts = list(take_turns([a, b], batch=3, seconds=1e-9))
    assert [text[-1] for text in texts] == ["a", "b"] * 4  # a warm-up and three rounds
    assert len(a.single) == len(b.single) == len(a.rates) == 3
    assert all(len(calls) == 1 for calls in a.single)
    # five calls of warm-up; then one that is not timed and one that is
    assert order[:20] == [("a", 1)] * 5 + [("a", 3)] * 5 + [("b", 1)] * 5 + [("b", 3)] * 5
    assert order[20:28] == [("a", 1)] * 2 + [("a", 3)] * 2 + [("b", 1)] * 2 + [("b", 3)] * 2
