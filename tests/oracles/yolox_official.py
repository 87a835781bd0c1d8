"""Writes tests/oracles/yolox_official.npz: outputs, losses and assignments of the official YOLOX.

It runs the official code, not ours: a checkout of github.com/Megvii-BaseDetection/YOLOX
(Apache-2.0; commit 6ddff48 of June 2025) with torch, loguru, tabulate and psutil.

    PYTHONPATH=<checkout> python tests/oracles/yolox_official.py tests/oracles/yolox_official.npz

Weights, images and objects are drawn by numpy from fixed seeds, so the file holds results alone and
the test draws the same ones.
"""

import sys
from collections.abc import Mapping

import numpy as np

CLASSES, SIDE, SEED = 3, 160, 20260731
DEPTH, WIDTH = 0.33, 0.125
# Objects of each image; the 120 that YOLOX's loader keeps at most are its loader's business alone.
CASES = {"few": 4, "tiny": 12, "empty": 0, "crowded": 40, "many": 130}


def draw_weights(shapes: Mapping[str, tuple[int, ...]], seed: int = SEED) -> dict[str, np.ndarray]:
    """Draw a state dict, tensor by tensor in the order of their names."""
    rng = np.random.default_rng(seed)
    drawn = {}
    for name in sorted(shapes):
        shape = shapes[name]
        if name.endswith("running_var"):
            values = rng.uniform(0.5, 1.5, shape)
        elif name.endswith("bn.weight"):
            values = rng.uniform(0.8, 1.2, shape)
        elif len(shape) == 4:
            first, last = "stem.conv.conv" in name, "_preds" in name
            gain = 1.1 / 128 if first else 0.5 if last else 1.4  # pixels of 0 to 255; no extremes
            values = rng.normal(0, gain / np.sqrt(np.prod(shape[1:])), shape)
        else:
            values = rng.normal(0, 0.2, shape)
        drawn[name] = values.astype(np.float32)
    return drawn


def draw_images() -> np.ndarray:
    """Draw one image (3, SIDE, SIDE) of 0 to 255 for each case: (5, 3, SIDE, SIDE) float32."""
    coarse = np.random.default_rng(SEED + 1).uniform(0, 255, (len(CASES), 3, 10, 10))
    return np.kron(coarse, np.ones((SIDE // 10, SIDE // 10))).astype(np.float32)


def draw_objects(case: str) -> tuple[np.ndarray, np.ndarray]:
    """Draw labels (n,) and boxes (n, 4) cxcywh pixels of a case."""
    rng = np.random.default_rng([SEED, sorted(CASES).index(case)])
    count = CASES[case]
    small, large = {"tiny": (2, 5), "many": (4, 24)}.get(case, (12, 70))
    size = rng.uniform(small, large, (count, 2))
    spread = {"crowded": 30, "few": 8}.get(case, SIDE / 2 - 15)
    centre = SIDE / 2 + rng.uniform(-spread, spread, (count, 2))
    if case == "few":  # one in each quarter: none takes another's points
        centre += 40 * np.array([[-1, -1], [1, -1], [-1, 1], [1, 1]])
    boxes = np.concatenate([centre, size], axis=1).astype(np.float32)
    return rng.integers(0, CLASSES, count), boxes


def main(path: str) -> None:
    """Run the official code and write its results."""
    import torch
    from yolox.models import YOLOPAFPN, YOLOX, YOLOXHead

    model = YOLOX(
        YOLOPAFPN(DEPTH, WIDTH, depthwise=True), YOLOXHead(CLASSES, WIDTH, depthwise=True)
    )
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps, module.momentum = 1e-3, 0.03  # as its experiment files set them
    state = model.state_dict()
    drawn = draw_weights({k: tuple(v.shape) for k, v in state.items() if v.ndim})
    state |= {name: torch.from_numpy(value) for name, value in drawn.items()}
    model.load_state_dict(state)
    images = torch.from_numpy(draw_images())
    results: dict[str, np.ndarray] = {}
    with torch.no_grad():
        results["decoded"] = model.eval()(images[:2]).numpy()

    head = model.head
    original = head.get_assignments

    def noted(*arguments: object, **options: object) -> object:
        found = original(*arguments, **options)
        noted.last = found
        return found

    head.get_assignments = noted
    head.use_l1 = True
    model.train()
    for index, case in enumerate(CASES):
        labels, boxes = draw_objects(case)
        rows = np.concatenate([labels[:, None], boxes], axis=1).astype(np.float32)
        padded = np.zeros((1, max(len(rows), 1), 5), np.float32)
        padded[0, : len(rows)] = rows
        model.zero_grad()
        model.load_state_dict(state)
        parts = model(images[index : index + 1], torch.from_numpy(padded))
        parts["total_loss"].backward()
        names = ("iou_loss", "conf_loss", "cls_loss", "l1_loss")
        results[f"{case}/losses"] = np.array([parts[name].item() for name in names])
        gradients = [float(p.grad.norm()) for _, p in sorted(model.named_parameters())]
        results[f"{case}/gradients"] = np.array(gradients, np.float32)
        if len(rows):
            _, positive, _, matched, _ = noted.last
            results[f"{case}/points"] = torch.where(positive)[0].numpy().astype(np.uint16)
            results[f"{case}/objects"] = matched.numpy().astype(np.uint16)
    np.savez_compressed(path, **results)


if __name__ == "__main__":
    main(sys.argv[1])
