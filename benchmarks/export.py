"""Every exported format of one checkpoint, side by side: size, speed, accuracy, differences.

python -m benchmarks.export --weights runs/train/bccd/weights/best.pt

Formats whose packages are not installed are named in the result. It writes
benchmarks/results/export.md and .json.
"""

import argparse
import json
import logging
import os
import platform
import shutil
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from detector import runtimes
from detector.backends import RUNTIMES
from detector.benchmark import Row, benchmark, table
from detector.checkpoint import load_model
from detector.errors import UserError
from detector.export import export

RESULTS = Path(__file__).parent / "results"
ALLOWED = {"fp32": 0.001, "fp16": 0.005, "int8": 0.02}  # of mAP50-95, by precision
FASTER = 2.5  # ONNX Runtime in fp32, times as fast as eager PyTorch

log = logging.getLogger("detector")


def export_all(weights: Path, folder: Path, left_out: tuple[str, ...]) -> dict[str, str]:
    """Write every format in every precision that it has; return what was not, and why."""
    refused = {name: "left out by --without" for name in left_out if name}
    for precision in ("fp32", "fp16", "int8"):
        names = [name for name, has in runtimes.PRECISIONS.items() if precision in has]
        names = ["onnx", *(name for name in names if name not in left_out)]
        for formats in (names, *([name] for name in names)):  # one by one if one of them fails
            log.info("exporting %s %s", ",".join(formats), precision)
            try:
                export(weights, formats, out=folder, dynamic=True, precision=precision)
            except (UserError, RuntimeError) as error:
                if len(formats) == 1:
                    refused[f"{formats[0]} {precision}"] = " ".join(str(error).split())
                log.warning("%s: %s", precision, error)
            else:
                if formats is names:
                    break
    return refused


def verdicts(rows: list[Row]) -> list[str]:
    """Return a line for each bar: what was reached, and whether that is enough."""
    eager = next(row for row in rows if row.format == "pytorch")
    lines = []
    for row in rows:
        if row is eager or row.map50_95 is None or eager.map50_95 is None:
            continue
        loss, most = eager.map50_95 - row.map50_95, ALLOWED[row.precision]
        verdict = "holds" if abs(loss) <= most else "MISSED"
        lines.append(
            f"{row.format} {row.precision}: mAP50-95 {-loss:+.4f} (bar: {most}): {verdict}"
        )
        if (row.format, row.precision) == ("onnxruntime", "fp32") and row.ratio:
            verdict = "holds" if row.ratio >= FASTER else "MISSED"
            lines.append(f"onnxruntime fp32: {row.ratio:.2f} x eager (bar: {FASTER}): {verdict}")
    return lines


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser("python -m benchmarks.export", description=__doc__)
    parser.add_argument("--weights", required=True, type=Path, help="a trained checkpoint")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-export"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--without", default="", help="formats to leave out, with commas")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    weights = options.folder / options.weights.name
    shutil.copy(options.weights, weights)
    load = [os.getloadavg()[0]]
    refused = export_all(weights, options.folder, tuple(options.without.split(",")))
    files = sorted(options.folder.glob(f"{weights.stem}.*"))
    rows = benchmark(
        [path for path in files if path.suffix in (".pt", ".onnx", *runtimes.LOADERS)],
        device="cpu",
        threads=options.threads,
        batch=options.batch,
        seconds=options.seconds,
        runtimes=RUNTIMES,
    )
    load.append(os.getloadavg()[0])
    facts = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "torch": str(torch.__version__),
        "network": str(load_model(weights).model.name),
        "threads": options.threads,
        "batch": options.batch,
        "load": load,
        "files": [asdict(row) | {"file": Path(row.file).name} for row in rows],
        "not_exported": refused,
        "bars": verdicts(rows),
    }
    (RESULTS / "export.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "export.md").write_text(report(facts, rows), encoding="utf-8")
    print(report(facts, rows))


def report(facts: dict[str, Any], rows: list[Row]) -> str:
    """Return the results as a page of Markdown."""
    before, after = facts["load"]
    return "\n".join(
        [
            "# Exported formats side by side",
            "",
            f"`python -m benchmarks.export`, {facts['date']}, {facts['machine']}, torch "
            f"{facts['torch']}; load average {before:.1f} before, {after:.1f} after.",
            f"{facts['network']}, {rows[0].imgsz} px, {facts['threads']} thread(s); latency of one "
            f"image, images/s in batches of {facts['batch']}; network and decoding, without NMS.",
            "",
            table(rows),
            "",
            "`box px` and `score`: largest difference from the checkpoint on 8 validation images, "
            "all predictions counted, also those of background.",
            "",
            *(f"- {line}" for line in facts["bars"]),
            *(f"- not exported: {name}: {why}" for name, why in facts["not_exported"].items()),
            "",
        ]
    )


if __name__ == "__main__":
    main()
