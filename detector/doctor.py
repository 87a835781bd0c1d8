"""Look a data set over before it is trained on: `python -m detector.doctor data.yaml`.

Where training stops at the first problem, this reports all of them, by the same rules. The exit
code is 1 when there are errors (training would stop, or its numbers would be wrong), else 0.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from detector.cli import add_common, run_command
from detector.config import TrainConfig
from detector.data.checks import (
    RULES,
    SEVERITIES,
    Collector,
    Issue,
    Seen,
    Tally,
    box_issues,
    class_issues,
    collect,
    file_issues,
    grouped,
    label_file_issues,
)
from detector.data.description import DataConfig, join, load_leniently, split_list
from detector.data.image_checks import image_issues
from detector.data.layout import SPLITS
from detector.data.likeness import MAX_BITS, MIN_LIKENESS, look_at_all
from detector.errors import ConfigError, DataError

COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}
WIDTH = 110  # columns of the tables where there is no terminal


@dataclass(frozen=True)
class Finding:
    """One broken rule in one split ("" for the whole set), with all its places."""

    rule: str
    split: str
    places: tuple[str, ...]

    @property
    def severity(self) -> str:
        return RULES[self.rule][0]

    @property
    def what(self) -> str:
        return RULES[self.rule][1]


@dataclass
class Examination:
    """All that is known of a data set: what it holds, and what is wrong with it."""

    path: str
    imgsz: int
    sets: list[DataConfig] = field(default_factory=list)
    tallies: dict[str, Tally] = field(default_factory=dict)
    images: dict[str, dict[Path, Seen]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """All classes, in the order of the first set."""
        return list(dict.fromkeys(name for data in self.sets for name in data.names))

    def count(self, severity: str) -> int:
        """Return the number of places with findings of this severity."""
        return sum(len(found.places) for found in self.findings if found.severity == severity)

    def report(self) -> dict[str, Any]:
        """Return plain values for json."""
        return {
            "data": self.path,
            "imgsz": self.imgsz,
            "sets": [
                {"data": str(data.path), "format": data.format, "root": str(data.root)}
                for data in self.sets
            ],
            "names": self.names,
            "splits": {split: _split_report(self, split) for split in self.tallies},
            "findings": [
                {
                    "rule": found.rule,
                    "severity": found.severity,
                    "split": found.split,
                    "count": len(found.places),
                    "what": found.what,
                    "places": list(found.places),
                }
                for found in self.findings
            ],
            **{f"{severity}s": self.count(severity) for severity in SEVERITIES},
        }


def examine(path: str | Path, imgsz: int = TrainConfig.imgsz, quick: bool = False) -> Examination:
    """Look a data set over for training at `imgsz` pixels; `quick` does not decode the images.

    Raises: DataError: there is no such description.
    """
    found, issues = Examination(str(path), imgsz), []
    for word in split_list(path):
        data, errors = load_leniently(word)
        issues += [Issue("config", "", error) for error in errors]
        found.sets += [data] if data else []
    issues += _join_issues(found.sets)
    used: dict[Path, set[Path]] = {data.path: set() for data in found.sets}
    for split in SPLITS:
        for data in (data for data in found.sets if split in data.splits):
            collector = collect(data, split)
            issues += collector.issues + _label_issues(data, collector, imgsz)
            tally = found.tallies.setdefault(split, Tally())
            for seen in collector.images.values():
                tally.add(seen, data.names)
            found.images.setdefault(split, {}).update(collector.images)
            used[data.path] |= set(collector.files)
    if found.sets and "val" not in found.tallies:
        issues.append(Issue("split", "val", f"{path}: no val split; training needs one"))
    issues += class_issues(str(path), found.names, found.tallies)
    issues += [issue for data in found.sets for issue in file_issues(data, used[data.path])]
    if not quick:
        issues += _picture_issues(found.images)
    found.findings = [
        Finding(rule, split, tuple(places)) for (rule, split), places in grouped(issues).items()
    ]
    return found


def _join_issues(sets: Sequence[DataConfig]) -> list[Issue]:
    try:
        if len(sets) > 1:
            join(sets)
    except DataError as error:
        return [Issue("config", "", str(error))]
    return []


def _label_issues(data: DataConfig, collector: Collector, imgsz: int) -> list[Issue]:
    issues: list[Issue] = []
    for seen in collector.images.values():
        issues += box_issues(seen, collector.split, imgsz)
        issues += label_file_issues(data, seen, collector.split)
    return issues


def _picture_issues(images: dict[str, dict[Path, Seen]]) -> list[Issue]:
    paths = list(dict.fromkeys(path for seen in images.values() for path in seen))
    with tqdm(total=len(paths), desc="images", leave=False, disable=None) as bar:
        looks = dict(look_at_all(paths, bar.update))
    return list(image_issues({split: seen.values() for split, seen in images.items()}, looks))


def _split_report(found: Examination, split: str) -> dict[str, Any]:
    tally = found.tallies[split]
    sizes = sorted((seen.size for seen in found.images[split].values()), key=lambda s: s[0] * s[1])
    names = ("smallest", "median", "largest")
    places = (0, len(sizes) // 2, len(sizes) - 1)
    return {
        "images": tally.images,
        "boxes": sum(tally.boxes.values()),
        "background": tally.background,
        "image_sizes": {
            name: f"{sizes[place][1]}x{sizes[place][0]}"
            for name, place in zip(names, places, strict=True)
            if sizes
        },
        "classes": {
            name: {"boxes": tally.boxes[name], "images": tally.holders[name]}
            for name in found.names
        },
    }


# ---- tables --------------------------------------------------------------------------------


def show(found: Examination, console: Console, limit: int) -> None:
    """Print what the set holds, each finding with `limit` places (0: all), and a summary."""
    for data in found.sets:
        console.print(
            f"[bold]{escape(str(data.path))}[/]: {data.format} in {escape(str(data.root))}, "
            f"{data.num_classes} classes, for training at {found.imgsz} px",
            soft_wrap=True,
        )
    if found.tallies:
        console.print(_split_table(found))
        console.print(_class_table(found))
    for one in found.findings:
        _show_finding(one, console, limit, [f"{data.root}/" for data in found.sets])
    if found.findings:
        console.print(_summary_table(found))
    counts = Counter({severity: found.count(severity) for severity in SEVERITIES})
    told = ", ".join(
        f"{counts[severity]} {severity}{'' if counts[severity] == 1 else 's'}"
        for severity in SEVERITIES
    )
    verdict = "not ready for training" if counts["error"] else "ready for training"
    colour = "red" if counts["error"] else "green"
    console.print(f"[bold {colour}]{verdict}[/]: {told}")


def _split_table(found: Examination) -> Table:
    table = Table("split", title="Splits", title_justify="left")
    for column in ("images", "background", "boxes", "boxes an image"):
        table.add_column(column, justify="right")
    table.add_column("image sizes")
    for split in found.tallies:
        row = _split_report(found, split)
        sizes = row["image_sizes"]
        shown = " to ".join(dict.fromkeys((sizes["smallest"], sizes["largest"]))) if sizes else ""
        numbers = (row["images"], row["background"], row["boxes"])
        each = f"{row['boxes'] / max(1, row['images']):.1f}"
        table.add_row(split, *map(str, numbers), each, shown)
    return table


def _class_table(found: Examination) -> Table:
    table = Table("class", title="Boxes (in images)", title_justify="left")
    for split in found.tallies:
        table.add_column(split, justify="right")
    table.add_column("share of train", justify="right")
    train = found.tallies.get("train", Tally())
    total = max(1, sum(train.boxes.values()))
    for name in found.names:
        cells = [f"{t.boxes[name]} ({t.holders[name]})" for t in found.tallies.values()]
        table.add_row(escape(name), *cells, f"{train.boxes[name] / total:.1%}")
    return table


def _show_finding(found: Finding, console: Console, limit: int, roots: Sequence[str]) -> None:
    """Print a finding; places are told relative to the folder of their set."""
    where = f" in {found.split}" if found.split else ""
    colour = COLOURS[found.severity]
    head = f"[bold {colour}]{found.severity}[/] [bold]{found.rule}[/]{where}"
    console.print(f"{head}: {len(found.places)} {found.what}", soft_wrap=True)
    shown = found.places[: limit or None]
    for place in shown:
        for root in roots:
            place = place.replace(root, "")
        console.print(f"    {place}", markup=False, highlight=False, soft_wrap=True)
    if len(shown) < len(found.places):
        console.print(f"    ... and {len(found.places) - len(shown)} more (--limit 0 shows all)")


def _summary_table(found: Examination) -> Table:
    splits = [split for split in (*SPLITS, "") if any(f.split == split for f in found.findings)]
    table = Table("rule", "severity", title="Summary", title_justify="left")
    for split in splits:
        table.add_column(split or "set", justify="right")
    for rule in dict.fromkeys(one.rule for one in found.findings):
        counts = {one.split: len(one.places) for one in found.findings if one.rule == rule}
        severity = RULES[rule][0]
        cells = [str(counts.get(split, "")) for split in splits]
        table.add_row(rule, f"[{COLOURS[severity]}]{severity}[/]", *cells)
    return table


# ---- command -------------------------------------------------------------------------------

EXAMPLES = f"""examples:
  python -m detector.doctor data/bccd.yaml
  python -m detector.doctor data/a.yaml,data/b.yaml --imgsz 640      leakage between sets too
  python -m detector.doctor data/bccd.yaml --json > report.json

Images are alike when at most {MAX_BITS} of the 64 bits of their difference hashes differ and their
thumbnails correlate by {MIN_LIKENESS} at least. Exit code: 0 ready (also with warnings), 1 errors,
2 wrong usage.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        "python -m detector.doctor",
        description="Look a data set over: files, images, labels, classes, leakage between splits.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", help="description (yaml), folder or *.data file; a.yaml,b.yaml")
    parser.add_argument(
        "--imgsz",
        type=int,
        default=TrainConfig.imgsz,
        help=f"training size in pixels, for boxes too small to learn (default {TrainConfig.imgsz})",
    )
    parser.add_argument("--quick", action="store_true", help="do not decode and compare images")
    parser.add_argument(
        "--limit", type=int, default=5, help="places shown of each finding (default 5; 0: all)"
    )
    add_common(parser)
    return run_command(_doctor_command, parser, argv)


def _doctor_command(options: argparse.Namespace) -> dict[str, Any]:
    if options.imgsz < 1:
        raise ConfigError(f"--imgsz {options.imgsz} must be at least 1")
    if options.limit < 0:
        raise ConfigError(f"--limit {options.limit} must be 0 (all) or more")
    found = examine(options.data, options.imgsz, options.quick)
    if not options.json:
        console = Console(highlight=False)
        show(found, console if console.is_terminal else Console(width=WIDTH), options.limit)
    return found.report() | {"exit_code": int(found.count("error") > 0)}


if __name__ == "__main__":
    raise SystemExit(main())
