"""The options of `python -m detector.export`, and what they ask for."""

import argparse
from typing import Any

from detector import engine, onnx_graph
from detector.cli import add_common
from detector.engine_wish import EngineWish
from detector.errors import ConfigError
from detector.export_job import DEFAULT_OPSET, FORMATS
from detector.graph_nms import GraphNms


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `python -m detector.export`."""
    parser = argparse.ArgumentParser(
        prog="python -m detector.export",
        description="Write a checkpoint as ONNX and as TensorRT engines; compare the outputs.",
        epilog="examples:\n"
        "  python -m detector.export --weights runs/train/exp/weights/best.pt --format onnx\n"
        "  python -m detector.export --weights best.pt --format onnx,tensorrt-rtx --dynamic\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--weights", required=True, help="checkpoint (.pt)")
    parser.add_argument(
        "--format",
        help=f"one or more of {', '.join(FORMATS)}, separated by commas "
        "(default: tensorrt if it can be imported, else tensorrt-rtx)",
    )
    parser.add_argument("--out", help="folder for the files (default: the checkpoint's)")
    parser.add_argument("--imgsz", type=int, help="input side in pixels (default: as trained)")
    parser.add_argument("--dynamic", action="store_true", help="leave the batch size open")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--half", action="store_true", help="fp16 weights and activations")
    kind.add_argument("--int8", action="store_true", help="int8 convolutions, calibrated on images")
    parser.add_argument("--nms", action="store_true", help="NMS in the graph: detections come out")
    usual = GraphNms()
    parser.add_argument("--conf", type=float, help=f"least score ({usual.conf:g}); with --nms")
    parser.add_argument("--iou", type=float, help=f"overlap for NMS ({usual.iou:g}); with --nms")
    parser.add_argument("--max-det", type=int, help=f"rows ({usual.max_det}); with --nms")
    parser.add_argument(
        "--batch",
        metavar="MIN,OPT,MAX",
        help="images at once that a dynamic engine takes: least, tuned for, most (default: "
        f"{','.join(map(str, engine.BATCHES))})",
    )
    parser.add_argument("--workspace", type=float, metavar="GIB", help="GPU memory for an engine")
    parser.add_argument(
        "--capability",
        metavar="X.Y[,X.Y]",
        help="compute capabilities that a TensorRT-RTX engine is for "
        f"(default: {engine.RTX_CAPABILITY} and later)",
    )
    parser.add_argument("--data", help="images to calibrate int8 on (default: as trained)")
    parser.add_argument(
        "--opset",
        type=int,
        default=DEFAULT_OPSET,
        help=f"ONNX operator set, {onnx_graph.OPSETS[0]} to {onnx_graph.OPSETS[-1]} "
        f"(default: {DEFAULT_OPSET})",
    )
    add_common(parser)
    return parser


def request_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `export`. Raises: ConfigError."""
    return {
        "weights": options.weights,
        "formats": options.format,
        "out": options.out,
        "imgsz": options.imgsz,
        "dynamic": options.dynamic,
        "opset": options.opset,
        "precision": "int8" if options.int8 else "fp16" if options.half else "fp32",
        "data": options.data,
        "nms": _nms(options),
        "engines": EngineWish(
            capabilities=_parts(options.capability),
            workspace=options.workspace,
            batches=_batches(options.batch),
        ),
    }


def _nms(options: argparse.Namespace) -> GraphNms | bool:
    given = {"conf": options.conf, "iou": options.iou, "max_det": options.max_det}
    given = {name: value for name, value in given.items() if value is not None}
    if given and not options.nms:
        option = f"--{next(iter(given)).replace('_', '-')}"
        raise ConfigError(f"{option} is about NMS in the graph: add --nms")
    return GraphNms(**given) if options.nms else False


def _parts(text: str | None) -> tuple[str, ...]:
    """Return the parts between commas, each once."""
    return tuple(dict.fromkeys(map(str.strip, text.split(",")))) if text is not None else ()


def _batches(text: str | None) -> tuple[int, int, int] | None:
    if text is None:
        return None
    try:
        low, usual, high = map(int, text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"--batch {text} must be three whole numbers, least, usual and most images: 1,8,32"
        ) from error
    return low, usual, high
