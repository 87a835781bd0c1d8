"""Which of two detectors is better on the same images, and is it more than noise?

    python -m detector.compare a.pt b.pt --data data/bccd.yaml

Both are evaluated alike; resamples of the images, the same for both, say how far chance in the
choice of images moves the difference. They say nothing about the chance in two trainings: another
seed may turn the result around (`confirm` in evolve.yaml measures that).
"""

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detector.cli import add_common, run_command
from detector.errors import ConfigError, did_you_mean
from detector.evaluate import add_finding, add_measures, fitness_weights, measure, settings_of
from detector.finding import Settings
from detector.metrics import METRIC_NAMES
from detector.resampling import RESAMPLES, Difference, paired_differences
from detector.scorecard import Measures

SEED = 0
EXAMPLES = """examples:
  python -m detector.compare old.pt new.pt --data data/bccd.yaml
  python -m detector.compare best.pt best.onnx --data data/bccd.yaml --split test --json
  python -m detector.compare a.pt b.pt --data data/bccd.yaml --metric mAP50 --bootstrap 5000
"""


@dataclass(frozen=True)
class Comparison:
    """Two detectors on the same images; differences are second - first."""

    first: str
    second: str
    data: str
    split: str
    images: int
    metric: str  # that the verdict is about
    resamples: int
    differences: Mapping[str, Difference]
    classes: Mapping[str, tuple[float, float]]  # mAP50-95 of each class, by name

    @property
    def verdict(self) -> str:
        """`better` or `worse`, which the second one is, or `no difference shown`."""
        one = self.differences[self.metric]
        if one.low <= 0 <= one.high:
            return "no difference shown"
        return "better" if one.value > 0 else "worse"

    def sentence(self) -> str:
        """Return the verdict as a sentence."""
        one = self.differences[self.metric]
        interval = f"{one.value:+.4f}, 95 % interval {one.low:+.4f} to {one.high:+.4f}"
        if self.verdict == "no difference shown":
            return f"no difference shown: {self.metric} of the second is {interval}"
        return f"the second is {self.verdict}: {self.metric} {interval}, p = {one.p:.3g}"

    def report(self) -> dict[str, Any]:
        """Return plain values."""
        rows = {
            name: {"difference": one.value, **asdict(one)} for name, one in self.differences.items()
        }
        plain = {name: value for name, value in vars(self).items() if name != "differences"}
        return {**plain, "differences": rows, "verdict": self.verdict, "sentence": self.sentence()}


def compare(
    first: str | Path,
    second: str | Path,
    data: str | Path,
    split: str = "val",
    device: str = "auto",
    settings: Settings | None = None,
    fitness: Mapping[str, float] | None = None,
    metric: str = "fitness",
    resamples: int = RESAMPLES,
) -> Comparison:
    """Evaluate two checkpoints or exported files on one split and compare them pairwise.

    Raises: UserError for a wrong option, data set or file.
    """
    allowed = ("fitness", *METRIC_NAMES)
    if metric not in allowed:
        raise ConfigError(f"--metric {metric}: is no metric{did_you_mean(metric, allowed)}")
    weights = fitness or Measures().fitness
    settings, measures = settings or Settings(), Measures(weights)
    both = [measure(path, data, split, device, settings, measures) for path in (first, second)]
    judged = [one.judged() for one in both]
    names = both[0].dataset.names
    ap = [one.metrics.class_map() for one in both]
    return Comparison(
        first=str(first),
        second=str(second),
        data=str(data),
        split=split,
        images=len(both[0].samples),
        metric=metric,
        resamples=resamples,
        differences=paired_differences(judged[0], judged[1], weights, resamples, SEED),
        classes={
            names[row.label]: (ap[0][row.label], ap[1][row.label])
            for row in both[0].metrics.classes
        },
    )


def table(found: Comparison) -> str:
    """Return the comparison as lines of fixed columns and the verdict."""
    lines = [
        f"first   {found.first}",
        f"second  {found.second}",
        f"on {found.images} images of {found.data}, {found.split}",
        "",
        f"{'':<12}{'first':>8}{'second':>8}{'gain':>9}   95 % interval           p",
    ]
    for name, one in found.differences.items():
        ends = f"{one.low:+.4f} to {one.high:+.4f}"
        values = f"{one.first:>8.4f}{one.second:>8.4f}{one.value:>+9.4f}"
        lines.append(f"{name:<12}{values}   {ends:<20}{one.p:>6.3f}")
    lines += ["", "mAP50-95 of each class"]
    width = max([12, *(len(name) + 2 for name in found.classes)])
    for name, (first, second) in found.classes.items():
        lines.append(f"{name:<{width}}{first:>8.4f}{second:>8.4f}{second - first:>+9.4f}")
    note = f"{found.resamples} resamples of the images; trainings with other seeds differ too"
    return "\n".join([*lines, "", found.sentence(), f"({note})"])


# ---- command -------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        "python -m detector.compare",
        description="Say which of two detectors is better on the same images, and how surely.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("first", metavar="FIRST", help="checkpoint (.pt) or exported file")
    parser.add_argument("second", metavar="SECOND", help="what is compared with it")
    add_finding(parser, Settings())
    add_measures(parser, resamples=RESAMPLES)
    parser.add_argument(
        "--metric", default="fitness", help="what the verdict is about (default fitness)"
    )
    add_common(parser)
    return run_command(_compare_command, parser, argv)


def _compare_command(options: argparse.Namespace) -> dict[str, Any]:
    found = compare(
        options.first,
        options.second,
        options.data,
        options.split,
        options.device,
        settings_of(options),
        fitness_weights(options.fitness),
        options.metric,
        options.bootstrap,
    )
    if not options.json:
        print(table(found))
    return found.report()


if __name__ == "__main__":
    raise SystemExit(main())
