"""One training of the peer, run by `benchmarks.train` in the peer's own environment.

Only the peer's public interface is used: `YOLO`, `train`, `add_callback`. Nothing of ours is
imported here, because that environment does not hold our packages.
"""

import argparse
import json
from pathlib import Path
from typing import Any

PEER_MODEL = "yolov8n.yaml"  # a description without weights: training starts from scratch


def main() -> None:
    """Train once, with the peer's defaults in all that is not named here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--versions", action="store_true", help="print versions as JSON and end")
    parser.add_argument("--data", help="the peer's data description")
    parser.add_argument("--project", help="folder for the run")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="0: what the peer sets itself")
    given = parser.parse_args()
    if given.versions:
        print(json.dumps(versions()))
        return
    from ultralytics import YOLO

    model = YOLO(PEER_MODEL)
    model.add_callback("on_train_start", lambda trainer: set_threads(given.threads))
    model.add_callback("on_train_epoch_end", lambda trainer: note_threads(given.project))
    model.train(
        data=given.data,
        epochs=given.epochs,
        imgsz=given.imgsz,
        seed=given.seed,
        project=given.project,
        name="run",
        exist_ok=True,
        pretrained=False,
        plots=False,
        device="cpu",
    )


def set_threads(threads: int) -> None:
    """Overrule the peer's number of threads, if one is wanted."""
    import torch

    if threads:
        torch.set_num_threads(threads)


def note_threads(project: str) -> None:
    """Write down how many threads the network really had."""
    import torch

    Path(project, "threads").write_text(str(torch.get_num_threads()), encoding="utf-8")


def versions() -> dict[str, Any]:
    """Return the versions of this environment and the threads that the peer chooses."""
    import torch
    import torchvision
    import ultralytics

    return {
        "ultralytics": ultralytics.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    main()
