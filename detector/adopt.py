"""Make a checkpoint of somebody's weights, ready to predict, evaluate and export: `detector.adopt`.

A weight file of another system says neither its network nor its class names; a checkpoint does.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detector.checkpoint import load_weights, model_content, save_checkpoint
from detector.cli import add_common, run_command
from detector.errors import CheckpointError, ConfigError
from detector.finding import Settings
from detector.models import build_model

EXAMPLES = """examples:
  python -m detector.adopt --model yolov3 --weights yolov3.weights --names coco.names --out y.pt
  python -m detector.adopt --model my.cfg --weights my.weights --names cat,dog --out my.pt
  python -m detector.adopt --model yolox-s --weights yolox_s.pth --names coco.names --out yolox-s.pt
"""


def adopt(
    model: str, weights: str | Path, names: Sequence[str], out: str | Path, imgsz: int = 0
) -> Path:
    """Write a checkpoint of the network `model` with the weights of a file; return its path.

    `imgsz` is the side of the square input in pixels; 0: what the network is meant for.

    Raises: ConfigError for a wrong model, names or size; CheckpointError for a file that does not
    fit or that leaves a part of the network random. Nothing is written then.
    """
    out = Path(out)
    if out.suffix != ".pt":
        raise ConfigError(f"--out {out}: a checkpoint is called *.pt")
    if len(set(names)) != len(names) or not all(names):
        raise ConfigError("--names: there is a name twice, or an empty one")
    network = build_model(model, len(names))
    report = load_weights(network, weights)
    if report.reinitialised:
        missing = ", ".join(report.reinitialised[:3])
        raise CheckpointError(
            f"{weights}: fills {len(report.loaded)} of {len(network.state_dict())} tensors of "
            f"{network.name} with {len(names)} classes; not {missing}: is it of this network and "
            "of these classes?"
        )
    settings = Settings(imgsz).sized(network.input_size)
    save_checkpoint(out, model_content(network, tuple(names), settings.imgsz))
    return out


def read_names(text: str) -> list[str]:
    """Return class names: those of a file, one a line, or `cat,dog`.

    Raises: ConfigError when it is a file that cannot be read.
    """
    path = Path(text)
    if "," in text or not (path.suffix or path.is_file()):
        return [name.strip() for name in text.split(",")]
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--names {text}: not a readable file of names ({error})") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise ConfigError(f"--names {text}: holds no names")
    return names


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        "python -m detector.adopt",
        description="Make a checkpoint of weights of another system: Darknet .weights, YOLOX .pth.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="the network: a name or a Darknet *.cfg")
    parser.add_argument("--weights", required=True, help="the weight file")
    parser.add_argument("--names", required=True, help="file of class names, one a line, or a,b,c")
    parser.add_argument("--out", required=True, help="the checkpoint to write (.pt)")
    parser.add_argument(
        "--imgsz", type=int, default=0, help="input side, pixels (default: its own)"
    )
    add_common(parser)
    return run_command(_body, parser, argv)


def _body(options: argparse.Namespace) -> dict[str, Any]:
    names = read_names(options.names)
    path = adopt(options.model, options.weights, names, options.out, options.imgsz)
    if not options.json:
        print(f"{path}: {options.model}, {len(names)} classes")
    return {"checkpoint": str(path), "model": options.model, "names": names}


if __name__ == "__main__":
    raise SystemExit(main())
