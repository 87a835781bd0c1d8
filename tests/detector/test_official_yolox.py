"""Against the official YOLOX: `tests/oracles/yolox_official.py` wrote what it computes."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detector.assign import Level, Matches, pad_targets, simota
from detector.boxes import cxcywh_to_xyxy
from detector.config import Hyp
from detector.decode import decode
from detector.losses import build_loss
from detector.models import build_model

ORACLES = Path(__file__).parents[1] / "oracles"
CASES = ("few", "tiny", "empty", "crowded", "many")
WITH_ORPHANS = ("crowded", "many")  # objects that lose all their points, which ours do not


@pytest.fixture(scope="module")
def oracle() -> ModuleType:
    spec = importlib.util.spec_from_file_location("oracle", ORACLES / "yolox_official.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def official() -> dict[str, np.ndarray]:
    with np.load(ORACLES / "yolox_official.npz") as file:
        return dict(file)


@pytest.fixture
def network(oracle: ModuleType) -> nn.Module:
    name = f"yolox:depth={oracle.DEPTH},width={oracle.WIDTH},depthwise=true"
    model = build_model(name, oracle.CLASSES)
    state = model.state_dict()
    drawn = oracle.draw_weights({k: tuple(v.shape) for k, v in state.items() if v.ndim})
    model.load_state_dict(state | {name: torch.from_numpy(v) for name, v in drawn.items()})
    return model


def objects(oracle: ModuleType, case: str) -> dict[str, Tensor]:
    labels, boxes = oracle.draw_objects(case)
    return {
        "boxes": cxcywh_to_xyxy(torch.from_numpy(boxes)),
        "labels": torch.from_numpy(labels),
    }


def test_decoded_outputs_are_the_official_ones(
    oracle: ModuleType, official: dict[str, np.ndarray], network: nn.Module
) -> None:
    network.eval()
    with torch.no_grad():
        found = decode(network, network(torch.from_numpy(oracle.draw_images()[:2])))
    expected = torch.from_numpy(official["decoded"])
    assert found.shape == expected.shape == (2, 20 * 20 + 10 * 10 + 5 * 5, 5 + 3)
    torch.testing.assert_close(found[..., 4:], expected[..., 4:], atol=1e-4, rtol=0)
    torch.testing.assert_close(found[..., :4], expected[..., :4], atol=5e-3, rtol=0)
    # and they say something: scores from sure to unsure, boxes of many sizes
    assert float(np.ptp(official["decoded"][..., 4])) > 0.3
    assert float(np.ptp(official["decoded"][..., 2])) > 50


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_the_official_ones(
    oracle: ModuleType, official: dict[str, np.ndarray], network: nn.Module, case: str
) -> None:
    image = torch.from_numpy(oracle.draw_images()[CASES.index(case)])[None]
    loss = build_loss(network, Hyp())
    loss.use_l1 = True
    if case in WITH_ORPHANS:
        points, targets = (torch.from_numpy(official[f"{case}/{what}"].astype(np.int64))
                           for what in ("points", "objects"))  # fmt: skip
        loss._assign = lambda *_: Matches(torch.zeros_like(points), points, targets)
    parts = loss(network.train()(image), [objects(oracle, case)])
    parts["total"].backward()
    found = [parts[name].item() for name in ("box", "obj", "cls", "l1")]
    assert found == pytest.approx(official[f"{case}/losses"].tolist(), rel=1e-3, abs=1e-3)
    norms = [float(value.grad.norm()) for _, value in sorted(network.named_parameters())]
    expected = official[f"{case}/gradients"].tolist()
    assert norms == pytest.approx(expected, rel=1e-2, abs=1e-3 * max(expected))


@pytest.mark.parametrize("case", ["few", "tiny", *WITH_ORPHANS])
def test_simota_assigns_the_official_points(
    oracle: ModuleType, official: dict[str, np.ndarray], network: nn.Module, case: str
) -> None:
    image = torch.from_numpy(oracle.draw_images()[CASES.index(case)])[None]
    with torch.no_grad():
        raw = network.train()(image)
        table = decode(network, raw)
    logits = torch.cat([level.flatten(2) for level in raw], dim=2).transpose(1, 2)[..., 4:]
    levels = [Level(side, side, 160 // side) for side in (20, 10, 5)]
    padded = pad_targets([objects(oracle, case)], torch.device("cpu"))
    matches = simota(
        cxcywh_to_xyxy(table[..., :4]), logits, padded, levels,
        center_radius=1.5, topk=10, iou_cost=3.0, cls_cost=1.0,
    )  # fmt: skip
    found = dict(zip(matches.point.tolist(), matches.target.tolist(), strict=True))
    points, targets = official[f"{case}/points"].tolist(), official[f"{case}/objects"].tolist()
    expected = dict(zip(points, targets, strict=True))
    orphans = set(range(oracle.CASES[case])) - set(targets)
    assert bool(orphans) == (case in WITH_ORPHANS)
    # Ours differ where they give an orphan its point, and nowhere else.
    given = {point: target for point, target in found.items() if target in orphans}
    assert set(given.values()) == orphans
    assert {k: v for k, v in found.items() if k not in given} == {
        k: v for k, v in expected.items() if k not in given
    }
