import sys

import pytest
import torch
from torch import Tensor, nn

from detector import runtimes
from detector.errors import MissingPackageError
from detector.models import build_model
from detector.models.blocks import Focus
from detector.runtimes.ncnn import folded


def test_folding_the_stem_changes_no_output(network: nn.Module, images: Tensor) -> None:
    plain = folded(network)
    assert not [part for part in plain.modules() if isinstance(part, Focus)]
    assert [part for part in network.modules() if isinstance(part, Focus)]  # the original is whole
    with torch.no_grad():
        for got, wanted in zip(plain(images), network(images), strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def test_a_network_without_such_a_stem_stays_as_it_is() -> None:
    model = build_model("yolov3-tiny", num_classes=2).eval()
    same = folded(model)
    assert [type(part) for part in same.modules()] == [type(part) for part in model.modules()]


def test_the_converter_is_asked_for_before_anything_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("ncnn")
    monkeypatch.setitem(sys.modules, "pnnx", None)
    with pytest.raises(MissingPackageError, match="pnnx, which writes ncnn's files"):
        runtimes.REQUIRE["ncnn"]()
