"""All networks with their parameters and operations: `python -m detector.models`.

A name is looked at more closely: its parts, its input, and the operations at any size.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from detector.cli import add_common, run_command
from detector.cost import gflops, parameters
from detector.errors import ConfigError
from detector.models import MODELS, build_model

META = torch.device("meta")  # shapes without memory: the largest network takes a moment
CLASSES = 80
STRIDE = 32  # sides are multiples of it

EXAMPLES = """examples:
  python -m detector.models                                  all networks, 80 classes
  python -m detector.models --classes 3 --imgsz 320          for a data set and a size of your own
  python -m detector.models yolox:depth=0.33,width=0.3       one network, and its parts
"""
RULE = (
    "GFLOPs: convolutions and linear layers (a multiply-add is two operations) and norms (four "
    "for each number) of one square image of imgsz pixels"
)


@dataclass(frozen=True)
class ModelFacts:
    """What a network is and costs."""

    name: str
    family: str
    num_classes: int
    parameters: int
    tensors: int  # that are learned
    gflops: float
    imgsz: int  # side of the square input that gflops is for, pixels
    input_convention: str


def look_at(name: str, num_classes: int = CLASSES, imgsz: int = 0) -> ModelFacts:
    """Return the facts of a network; imgsz 0 means the size that it is meant for.

    Raises: `ConfigError` for an unknown name or a wrong size.
    """
    return _facts(_built(name, num_classes), imgsz)


def _built(name: str, num_classes: int) -> nn.Module:
    with META:
        return build_model(name, num_classes).eval()


def _facts(network: nn.Module, imgsz: int) -> ModelFacts:
    side = imgsz or network.input_size
    return ModelFacts(
        name=network.name,
        family=network.family,
        num_classes=network.num_classes,
        parameters=parameters(network),
        tensors=len(list(network.parameters())),
        gflops=gflops(network, side, META),
        imgsz=side,
        input_convention=network.input_convention,
    )


def _parts(network: nn.Module, depth: int = 2) -> dict[str, int]:
    """Return the parameters of the parts of a network, by their paths."""
    parts = {}
    for path, module in network.named_modules():
        count = parameters(module)
        if path and path.count(".") < depth and count:
            parts[path] = count
    return parts


# ---- command -------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        "python -m detector.models",
        description=f"List the networks with their parameters and operations. {RULE}.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="networks to look at; all if none")
    parser.add_argument("--classes", type=int, default=CLASSES, help=f"default {CLASSES}")
    parser.add_argument(
        "--imgsz", type=int, default=0, help="input side, pixels; default: what each is meant for"
    )
    add_common(parser)
    return run_command(_body, parser, argv)


def _body(options: argparse.Namespace) -> dict[str, Any]:
    if options.imgsz < 0 or options.imgsz % STRIDE:
        nearest = max(STRIDE, round(options.imgsz / STRIDE) * STRIDE)
        raise ConfigError(f"imgsz={options.imgsz} must be a multiple of {STRIDE}: try {nearest}")
    names = options.names or list(MODELS)
    networks = [_built(name, options.classes) for name in names]
    rows = [_facts(network, options.imgsz) for network in networks]
    models = [asdict(row) for row in rows]
    if options.names:
        for row, network in zip(models, networks, strict=True):
            row["parts"] = _parts(network)
    if not options.json:
        print(table(rows))
        for row in models:
            if "parts" in row:
                print(f"\n{row['name']} ({row['family']}): {row['tensors']} tensors")
                print("\n".join(f"  {path:<32} {n:>11,}" for path, n in row["parts"].items()))
        print(f"\n{RULE}.")
    return {"models": models, "rule": RULE}


def table(rows: Sequence[ModelFacts]) -> str:
    """Return networks as lines of fixed columns."""
    width = max(len("model"), *(len(row.name) for row in rows))
    lines = [f"{'model':<{width}}  imgsz   parameters    GFLOPs  input"]
    for row in rows:
        lines.append(
            f"{row.name:<{width}}  {row.imgsz:>5}  {row.parameters:>11,}  {row.gflops:>8.2f}  "
            f"{row.input_convention}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
