"""What the trainer costs and how soon it is good, on a CPU, side by side with what it is held to.

python -m benchmarks.train --setup            once: the peer, in an environment of its own
python -m benchmarks.train                    all parts; DETECTOR_DATA or data/ holds BCCD
python -m benchmarks.train --parts loop       our loop against a bare step, a few minutes
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import torch

from benchmarks.alternate import Side, alternate, together
from benchmarks.train_loop import STRETCH_STEPS, Setting, measure_loop
from detector.data.description import DataConfig, load_data, read_split

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results" / "train"
PEER_SCRIPT = Path(__file__).parent / "train_peer.py"
PEER_PACKAGES = ("ultralytics", "ultralytics-thop", "ultralytics-platform")
# The packages that the peer names itself, without the OpenCV that needs a display.
PEER_NEEDS = ("matplotlib", "nvidia-ml-py", "pillow", "polars", "psutil", "pyyaml", "requests")
SHARED = ("torch", "torchvision", "opencv-python-headless", "numpy")  # same versions as ours
PARTS = ("loop", "target")
MISSED = {
    "reached": "",
    "finished": " (not reached in the whole run)",
    "long enough": " (not reached, ended then)",
}
CLOCKS = {
    "wall": "One runs at a time, a few seconds each in turn; its clock counts only these.",
    "processor time": "Both run at once; the clock is the processor time that each one takes.",
}
BARS = {"loop": 0.95, "two threads each": 0.4, "as it ships": 0.3}


# ---- time to a target, against the peer ----------------------------------------------------


def time_to_target(
    setting: Setting,
    target: float,
    peer: Path,
    folder: Path,
    also: Sequence[str],
    pace: tuple[float, float],
    by_processor_time: bool,
) -> dict[str, Any]:
    """Run our training and the peer's, alternately, until each reaches `target` or its end.

    Both are run with two threads, and with the threads that they choose themselves; on two
    cores our own choice is two, so that run stands for both. `also` are further runs of ours,
    each with one setting changed (name=value); they stand in the table, not in the ratios.
    `pace` is seconds of a stretch, and the ratio that is low enough to end a side. By processor
    time, ours and the peer run at once, with one thread each.
    """
    data = load_data(setting.data)
    peer_data = write_yolo_copy(data, folder / "data")
    shipped = os.cpu_count() != 2 and not by_processor_time
    threads = 1 if by_processor_time else 2
    sides = [our_side("ours", setting, target, threads, folder)]
    if shipped:
        sides.append(our_side("ours as it ships", setting, target, 0, folder))
    for change in also:
        sides.append(our_side(f"ours {change}", setting, target, threads, folder, change))
    sides.append(peer_side("peer", setting, target, threads, peer, peer_data, folder))
    if by_processor_time:
        together(sides, pace[1])
    else:
        sides.append(peer_side("peer as it ships", setting, target, 0, peer, peer_data, folder))
        alternate(sides, *pace)
    times = {side.name: side.reached or side.seconds for side in sides}
    name = "processor time, one thread each" if by_processor_time else "two threads each"
    ratios = {name: times["ours"] / times["peer"]}
    if not by_processor_time:
        own = times["ours as it ships" if shipped else "ours"]
        ratios["as it ships"] = own / times["peer as it ships"]
    return {
        "target": target,
        "clock": "processor time" if by_processor_time else "wall",
        "sides": [side_record(side) for side in sides],
        "ratios": ratios,
    }


def side_record(side: Side) -> dict[str, Any]:
    """Return what is written about a side."""
    found = side.folder / "threads"  # what the peer had in truth
    wanted = int(side.environment.get("OMP_NUM_THREADS", "0"))
    return {
        "name": side.name,
        "command": ["python", *(part.replace(f"{ROOT}/", "") for part in side.command[1:])],
        "ended": side.ended,
        "reached": side.reached,
        "seconds": side.seconds,
        "threads": int(found.read_text()) if found.is_file() else wanted,
        "epochs": [{"seconds": when, "mAP50-95": metric} for when, metric in side.rows],
    }


def environment(threads: int, **more: str) -> dict[str, str]:
    """Return this process's environment with so many threads; 0 leaves the choice to torch."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    return kept | ({"OMP_NUM_THREADS": str(threads)} if threads else {}) | more


def our_side(
    name: str,
    setting: Setting,
    target: float,
    threads: int,
    folder: Path,
    change: str = "",
) -> Side:
    """Return our training as it ships, in an empty folder: its image cache is made anew."""
    place = folder / name.replace(" ", "-")
    options = asdict(setting) | {"data": str(Path(setting.data).resolve()), "device": "cpu"}
    command = [sys.executable, "-m", "detector.train", "--project", str(place), "--name", "run"]
    for key, value in options.items():
        command += [f"--{key}", str(value)]
    command += ["--set", change] if change else []
    known = environment(threads, PYTHONPATH=str(ROOT))
    return Side(name, command, place, place / "run" / "results.csv", "mAP50-95", target, known)


def peer_side(
    name: str,
    setting: Setting,
    target: float,
    threads: int,
    peer: Path,
    data: Path,
    folder: Path,
) -> Side:
    """Return the peer's training with its own defaults."""
    place = folder / name.replace(" ", "-")
    options = {"epochs": setting.epochs, "imgsz": setting.imgsz, "seed": setting.seed}
    options |= {"data": data, "project": place, "threads": threads}
    command = [str(peer / "bin" / "python"), str(PEER_SCRIPT)]
    for key, value in options.items():
        command += [f"--{key}", str(value)]
    known = environment(threads, YOLO_CONFIG_DIR=str(folder))
    table = place / "run" / "results.csv"
    return Side(name, command, place, table, "metrics/mAP50-95(B)", target, known)


def write_yolo_copy(data: DataConfig, folder: Path) -> Path:
    """Write images, labels and description for the peer; returns the description's path."""
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for sample in read_split(data, split):
            shutil.copy(sample.path, folder / "images" / split / sample.path.name)
            height, width = sample.size
            boxes = sample.boxes[~sample.crowd] / (width, height, width, height)
            centre, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
            rows = zip(sample.labels[~sample.crowd], centre, sides, strict=True)
            lines = [f"{label} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for label, (x, y), (w, h) in rows]
            text = folder / "labels" / split / f"{sample.path.stem}.txt"
            text.write_text("".join(lines), encoding="utf-8")
    content = {"path": str(folder.resolve()), "train": "images/train", "val": "images/val"}
    content["names"] = list(data.names)
    path = folder / "data.yaml"
    path.write_text(json.dumps(content), encoding="utf-8")  # JSON is yaml
    return path


def set_up_peer(folder: Path) -> None:
    """Make an environment with the peer and the versions of torch and OpenCV that we run on."""
    from importlib.metadata import version

    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet"]
    shared = [f"{name}=={version(name)}" for name in SHARED]
    subprocess.run([*install, *shared, *PEER_NEEDS], check=True)
    subprocess.run([*install, "--no-deps", *PEER_PACKAGES], check=True)
    subprocess.run([str(python), "-m", "compileall", "-q", str(folder / "lib")], check=False)


# ---- results -------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "opencv": cv2.__version__,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def peer_versions(peer: Path) -> dict[str, Any]:
    """Return the peer's versions. Raises: SystemExit when it is not there."""
    python = peer / "bin" / "python"
    if not python.is_file():
        raise SystemExit(f"--peer {peer}: no environment there; make it with --setup")
    answer = subprocess.run(
        [str(python), str(PEER_SCRIPT), "--versions"], check=True, capture_output=True, text=True
    )
    found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return found


def report(record: Mapping[str, Any]) -> str:
    """Return the record as markdown."""
    place = record["machine"]
    lines = [
        "# Training on a CPU",
        "",
        f"`python -m benchmarks.train`, {record['date']}. {place['cpu']}, {place['cores']} cores, "
        f"torch {place['torch']}; load average {place['load'][0]:.1f} at the start, "
        f"{record['load_after'][0]:.1f} at the end.",
        "Setting: " + ", ".join(f"{key} {value}" for key, value in record["setting"].items()) + ".",
        "",
    ]
    if "loop" in record:
        lines += _loop_lines(record["loop"])
    if "target" in record:
        lines += _target_lines(record["target"], record["peer"])
    return "\n".join(lines)


def _loop_lines(loop: Mapping[str, Any]) -> list[str]:
    ratios = [row["ratio"] for row in loop["epochs"]]
    return [
        f"## Our loop against a bare step: {loop['ratio']:.3f} (bar: at least {BARS['loop']})",
        "",
        f"Images/s of `train()` over those of forward, loss, backward and step on the same batches "
        f"in memory, {STRETCH_STEPS} steps of each in turn; {loop['threads']} thread(s). Median of "
        f"{len(ratios)} epochs, {min(ratios):.3f} to {max(ratios):.3f}.",
        "",
        "| epoch | train | train with evaluation | bare | ratio |",
        "|---|---|---|---|---|",
        *(
            f"| {row['epoch']} | {row['train']:.1f} | {row['with_evaluation']:.1f} "
            f"| {row['bare']:.1f} | {row['ratio']:.3f} |"
            for row in loop["epochs"]
        ),
        "",
    ]


def _target_lines(found: Mapping[str, Any], peer: Mapping[str, Any]) -> list[str]:
    lines = [
        f"## Seconds to mAP50-95 of {found['target']}",
        "",
        f"From the start of the process, evaluations included. Peer: yolov8n from scratch, "
        f"ultralytics {peer['ultralytics']}, torch {peer['torch']}, its own defaults. "
        + CLOCKS[found["clock"]],
        "",
        "| side | threads | seconds | epochs | best mAP50-95 |",
        "|---|---|---|---|---|",
    ]
    for side in found["sides"]:
        missed = MISSED[side["ended"]]
        best = max((row["mAP50-95"] for row in side["epochs"]), default=0.0)
        lines.append(
            f"| {side['name']} | {side['threads'] or 'its own'} | {side['seconds']:.0f}{missed} "
            f"| {len(side['epochs'])} | {best:.3f} |"
        )
    lines.append("")
    for name, ratio in found["ratios"].items():
        bar = f" (bar: at most {BARS[name]})" if name in BARS else ""
        lines.append(f"- {name}: **{ratio:.2f}**{bar}")
    if any(side["ended"] != "reached" for side in found["sides"]):
        lines.append("- Where the peer did not reach the target, its ratio is an upper bound.")
    return [*lines, ""]


# ---- command -------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    known = argparse.ArgumentParser(
        "python -m benchmarks.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known.add_argument("--setup", action="store_true", help="make the peer's environment, and end")
    known.add_argument("--peer", type=Path, default=Path("runs/peers/ultralytics"))
    known.add_argument("--parts", default=",".join(PARTS), help="loop, target or both (default)")
    for name, value in asdict(Setting()).items():
        known.add_argument(f"--{name}", type=type(value), default=value)
    known.add_argument("--target", type=float, default=0.35, help="mAP50-95 to reach")
    known.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one more training of ours with this setting",
    )
    known.add_argument("--threads", type=int, default=2, help="of the loop part")
    known.add_argument("--loop-epochs", type=int, default=5, help="epochs of the loop part")
    known.add_argument("--stretch", type=float, default=5.0, help="seconds until the next one runs")
    known.add_argument(
        "--enough",
        type=float,
        default=0.0,
        help="end the peer when the ratio has fallen below this; 0: never",
    )
    known.add_argument(
        "--processor-time",
        action="store_true",
        help="for a machine that is not quiet: processor time, one thread each",
    )
    known.add_argument("--work", type=Path, default=Path("runs/benchmarks/train"))
    known.add_argument("--results", type=Path, default=RESULTS)
    return known


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the chosen parts and write `results.json` and `results.md`."""
    given = parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no side is left stopped
    if given.setup:
        set_up_peer(given.peer)
        return 0
    parts = given.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        print(f"--parts {unknown.pop()}: allowed are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    setting = Setting(**{name: getattr(given, name) for name in asdict(Setting())})
    record: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "setting": asdict(setting)}
    record["machine"] = machine()
    shutil.rmtree(given.work, ignore_errors=True)
    work = given.work.resolve()
    if "target" in parts:
        record["peer"] = peer_versions(given.peer)
    if "loop" in parts:
        record["loop"] = measure_loop(setting, given.loop_epochs, given.threads, work / "loop")
    if "target" in parts:
        record["target"] = time_to_target(
            setting,
            given.target,
            given.peer.resolve(),
            work,
            given.also,
            (given.stretch, given.enough),
            given.processor_time,
        )
    record["load_after"] = os.getloadavg()
    given.results.mkdir(parents=True, exist_ok=True)
    text = report(record)
    name = "-".join(parts)
    (given.results / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (given.results / f"{name}.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
