"""Earlier searches as finished trials: evolve.txt (2019), evolve.csv (YOLOv5), tune_results.ndjson.

Each reader returns the good rows and one line for every row that it skipped; a file without a
single good row is an error. Metrics get our names (mAP50, mAP50-95, precision, recall, F1).
"""

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from evolve.config import DEFAULT_METRIC
from evolve.errors import ConfigError
from evolve.objective import fitness_of
from evolve.problem import Problem
from evolve.record import CONFIRM, SEARCH, kind_of
from evolve.space import Params

CLASSIC_METRICS = ("precision", "recall", "mAP50", "F1", "test_loss")
CLASSIC_HYPS = (
    "giou", "xy", "wh", "cls", "cls_pw", "obj", "obj_pw", "iou_t",
    "lr0", "lrf", "momentum", "weight_decay",
)  # fmt: skip
COLUMNS = len(CLASSIC_METRICS) + len(CLASSIC_HYPS)
WIDTH = 11  # characters of a column of evolve.txt
LEAST_LRF = 1e-9  # the exponent of an lrf of 0

METRIC_NAMES = {  # of YOLOv5 and later trainers: ours
    "mAP_0.5": "mAP50",
    "mAP_0.5:0.95": "mAP50-95",
}
HYP_KEYS = ("hyperparameters", "hyp", "params", "hyperparams")
FITNESS_KEYS = ("fitness", "score")


@dataclass(frozen=True)
class Imported:
    """A finished trial of another system; `fitness` is the file's own, None if it has none."""

    params: Params
    metrics: dict[str, float]
    fitness: float | None
    line: int


Reading = tuple[list[Imported], list[str]]  # the good rows, a line for every other one


class _BadRow(ValueError):
    """A row that is skipped; the message is the reason."""


def read_trials(path: str | Path) -> Reading:
    """Read a file by the ending of its name: .txt, .csv, .ndjson, .jsonl. Raises: ConfigError."""
    readers: dict[str, Callable[[str | Path], Reading]] = {
        ".txt": read_evolve_txt,
        ".csv": read_evolve_csv,
        ".ndjson": read_ndjson,
        ".jsonl": read_ndjson,
    }
    suffix = Path(path).suffix.lower()
    if suffix not in readers:
        raise ConfigError(f"{path}: {suffix or 'no ending'} is not one of {', '.join(readers)}")
    return readers[suffix](path)


def read_evolve_txt(path: str | Path) -> Reading:
    """Read the 17 columns of 2019: P, R, mAP, F1, test loss, then 12 hyperparameters.

    Its `lrf` is an exponent: -4 becomes 1e-4. Raises: ConfigError.
    """
    text = _text(path)
    lines = text.splitlines()
    wide = [line for line in lines if len(line) >= COLUMNS * WIDTH]
    cut = bool(lines) and not text.endswith("\n") and len(lines[-1]) < COLUMNS * WIDTH

    def row(number: int) -> Imported:
        line = lines[number - 1]
        if cut and wide and number == len(lines):
            raise _BadRow("half-written, without an end of line")
        return _classic_row(line, number)

    return _collected(path, row, range(1, len(lines) + 1))


def read_ndjson(path: str | Path) -> Reading:
    """Read one JSON object a line: hyperparameters, fitness, and metrics nested anywhere.

    Of several data sets, the metrics are averaged. Raises: ConfigError.
    """
    lines = _text(path).splitlines()

    def row(number: int) -> Imported:
        return _json_row(lines[number - 1], number)

    return _collected(path, row, range(1, len(lines) + 1))


def read_evolve_csv(path: str | Path) -> Reading:
    """Read a table: metrics/..., val/... and fitness are metrics, all others hyperparameters.

    Without a column of fitness it is YOLOv5's: 0.1 mAP50 + 0.9 mAP50-95. Raises: ConfigError.
    """
    try:
        rows = list(csv.reader(_text(path).splitlines()))
    except csv.Error as error:
        raise ConfigError(f"{path}: it is not a table: {error}") from error
    header = [name.strip() for name in rows[0]] if rows else []
    if not any(_is_metric(name) for name in header):
        raise ConfigError(f"{path}: line 1 names no column metrics/... or fitness")

    def row(number: int) -> Imported:
        return _csv_row(header, rows[number - 1], number)

    return _collected(path, row, range(2, len(rows) + 1))


def add_trials(
    study: Study,
    imported: Sequence[Imported],
    problem: Problem,
    weights: Mapping[str, float],
    source: str,
) -> list[str]:
    """Add rows to a study as finished trials, and return a line for whatever was not as it was.

    Fitness is the weighted sum of the metrics. A study of the plain metric `fitness` takes the
    file's own; to any other a row without its metrics is not added, for the two would not compare.
    Values outside the space move to its edge, genes that a row lacks stand at their start value.
    Rows that an earlier import of `source` brought are not added again.
    """
    adapter = _Adapter(problem, dict(weights))
    there = {
        (trial.user_attrs.get("imported"), trial.user_attrs.get("line"))
        for trial in study.get_trials(deepcopy=False)
    }
    trials = []
    for row in imported:
        value = adapter.fitness(row)
        if (source, row.line) in there:
            adapter.note("already in the study, and not added again", row.line)
        elif not math.isfinite(value):
            missing = ", ".join(name for name in weights if name not in row.metrics)
            adapter.note(f"not added: the study's fitness needs {missing}", row.line)
        else:
            trials.append(adapter.trial(row, value, source))
    study.add_trials(trials)
    return [f"{source}: {text}" for text in adapter.lines()]


class _Adapter:
    """Makes rows of a file fit a study, and remembers what had to be changed in which lines."""

    def __init__(self, problem: Problem, weights: dict[str, float]) -> None:
        self._problem = problem
        self._weights = weights
        self._notes: dict[str, list[int]] = {}

    def note(self, text: str, line: int) -> None:
        """Remember a line of the file for a text."""
        self._notes.setdefault(text, []).append(line)

    def lines(self) -> list[str]:
        """Return each text once, with the lines that it is about."""
        return [f"{text} ({_lines(numbers)})" for text, numbers in self._notes.items()]

    def fitness(self, row: Imported) -> float:
        """Return the study's fitness of a row; NaN if it cannot be told."""
        known = dict(row.metrics)
        if row.fitness is not None and DEFAULT_METRIC not in known:
            known[DEFAULT_METRIC] = row.fitness
        if all(name in known for name in self._weights):
            return fitness_of(known, self._weights)
        return math.nan

    def trial(self, row: Imported, value: float, source: str) -> FrozenTrial:
        """Return a row as a finished trial of the study."""
        attributes = {"imported": source, "line": row.line, "metrics": row.metrics}
        return create_trial(
            params=self.params(row),
            distributions=self._problem.space.distributions(),
            value=value,
            user_attrs={"kind": SEARCH, **attributes},
        )

    def params(self, row: Imported) -> Params:
        """Return a value for every gene of the space."""
        space, start = self._problem.space, self._problem.start
        params: Params = {}
        for name in row.params:
            if name not in space.names:
                self.note(f"{name} is not searched here", row.line)
        for gene in space.genes:
            params[gene.name] = start[gene.name]
            if gene.name not in row.params:
                self.note(f"no {gene.name}: it stands at its start {start[gene.name]}", row.line)
                continue
            value = row.params[gene.name]
            try:
                params[gene.name] = gene.nearest(value, "import")
            except ConfigError as error:
                text = f"{str(error).removeprefix('import: ')}; it stands at its start"
                self.note(f"{text} {start[gene.name]}", row.line)
                continue
            if not gene.choices and not gene.low <= value <= gene.high:
                edge = params[gene.name]
                self.note(f"{gene.name} is out of its space: it is moved to {edge}", row.line)
        return space.settled(params, start)


def _lines(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
    return f"line {shown}" if len(numbers) == 1 else f"{len(numbers)} lines: {shown}"


def write_evolve_txt(
    path: str | Path, trials: Iterable[FrozenTrial], constants: Mapping[str, Any]
) -> list[str]:
    """Write complete trials of the search as rows of 2019; return a line for each left out.

    `constants` are the values beside a trial's own. A hyperparameter that a study does not have is
    `nan`, and is read back as not there. Raises: ConfigError if no trial can be written.
    """
    rows: list[str] = []
    skipped: list[str] = []
    for trial in trials:
        if trial.state != TrialState.COMPLETE or kind_of(trial) == CONFIRM:
            continue
        metrics = with_f1(trial.user_attrs.get("metrics", {}))
        missing = [name for name in CLASSIC_METRICS[:-1] if name not in metrics]
        if missing:
            skipped.append(f"trial {trial.number}: it has no {', '.join(missing)}")
        else:
            rows.append(classic_line(metrics, {**constants, **trial.params}))
    if not rows:
        reason = f": {skipped[0]}" if skipped else ""
        raise ConfigError(f"{path}: there is no complete trial to write{reason}")
    Path(path).write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return skipped


def classic_line(metrics: Mapping[str, float], params: Mapping[str, Any]) -> str:
    """Return a row of evolve.txt, without its end of line; lrf becomes its exponent."""
    results = [metrics.get(name, math.nan) for name in CLASSIC_METRICS]
    values = {name: _number(params.get(name)) for name in CLASSIC_HYPS}
    if values["lrf"] >= 0:
        values["lrf"] = math.log10(max(values["lrf"], LEAST_LRF))
    columns = [f"{value:{WIDTH}.3g}" for value in results]
    return "".join([*columns, *(f"{value:{WIDTH}.4g}" for value in values.values())])


def with_f1(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics with F1; where it is missing, that of the mean precision and recall."""
    if "F1" in metrics or not {"precision", "recall"} <= metrics.keys():
        return dict(metrics)
    precision, recall = metrics["precision"], metrics["recall"]
    return {**metrics, "F1": 2 * precision * recall / (precision + recall + 1e-16)}


# ---- rows


def _classic_row(line: str, number: int) -> Imported:
    words = line.split()
    if not words:
        raise _BadRow("blank")
    if words[0].startswith("#"):
        raise _BadRow("a comment")
    if len(words) != COLUMNS:
        raise _BadRow(f"{len(words)} columns, not {COLUMNS}")
    numbers = [_number(word) for word in words]
    names = CLASSIC_METRICS + CLASSIC_HYPS
    for name, word, value in zip(names, words, numbers, strict=True):
        absent = word.lower() == "nan" and name not in CLASSIC_METRICS[:-1]
        if not math.isfinite(value) and not absent:
            raise _BadRow(f"{name} is {word}")
    values = {name: value for name, value in zip(names, numbers, strict=True) if value == value}
    metrics = {name: values[name] for name in CLASSIC_METRICS if name in values}
    params = {name: values[name] for name in CLASSIC_HYPS if name in values}
    if "lrf" in params:
        if params["lrf"] > 100:
            raise _BadRow(f"lrf is {params['lrf']:g}, too large for an exponent")
        params["lrf"] = 10.0 ** params["lrf"]
    return Imported(params, metrics, 0.5 * metrics["mAP50"] + 0.5 * metrics["F1"], number)


def _json_row(line: str, number: int) -> Imported:
    if not line.strip():
        raise _BadRow("blank")
    try:
        record = json.loads(line)
    except ValueError as error:
        raise _BadRow(f"not JSON: {error}") from error
    if not isinstance(record, Mapping):
        raise _BadRow("not a JSON object")
    key = next((key for key in HYP_KEYS if isinstance(record.get(key), Mapping)), None)
    if key is None:
        raise _BadRow(f"it has none of {', '.join(HYP_KEYS)}")
    params = {str(name): value for name, value in record[key].items()}
    own = next((_number(record[name]) for name in FITNESS_KEYS if name in record), math.nan)
    found: dict[str, list[float]] = {}
    _gather({name: value for name, value in record.items() if name != key}, found)
    metrics = {name: math.fsum(values) / len(values) for name, values in found.items()}
    for name in ("iteration", "epoch", *FITNESS_KEYS):
        metrics.pop(name, None)
    fitness = own if math.isfinite(own) else None
    if fitness is None and not metrics:
        raise _BadRow("it has neither fitness nor metrics")
    return Imported(params, with_f1(metrics), fitness, number)


def _csv_row(header: Sequence[str], cells: Sequence[str], number: int) -> Imported:
    if not any(cell.strip() for cell in cells):
        raise _BadRow("blank")
    if len(cells) != len(header):
        raise _BadRow(f"{len(cells)} columns, not {len(header)}")
    params: Params = {}
    metrics: dict[str, float] = {}
    for name, cell in zip(header, cells, strict=True):
        value = _number(cell)
        if not math.isfinite(value):
            raise _BadRow(f"{name} is {cell.strip() or 'empty'}")
        if _is_metric(name):
            metrics[_our_name(name)] = value
        elif name not in ("epoch", "iteration"):
            params[name] = value
    fitness = metrics.pop("fitness", None)
    if fitness is None and {"mAP50", "mAP50-95"} <= metrics.keys():
        fitness = 0.1 * metrics["mAP50"] + 0.9 * metrics["mAP50-95"]
    return Imported(params, with_f1(metrics), fitness, number)


# ---- words and numbers


def _collected(path: str | Path, row: Callable[[int], Imported], numbers: Iterable[int]) -> Reading:
    """Return what `row` reads of the numbered lines. Raises: ConfigError if nothing is left."""
    good: list[Imported] = []
    skipped: list[str] = []
    for number in numbers:
        try:
            good.append(row(number))
        except _BadRow as error:
            skipped.append(f"{path}: line {number} is skipped: {error}")
    if not good:
        reason = f"; {skipped[-1].removeprefix(f'{path}: ')}" if skipped else ""
        raise ConfigError(f"{path}: no trial can be read from it{reason}")
    return good, skipped


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: it is not text ({error.reason})") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error


def _number(value: Any) -> float:
    """Return a number, NaN for what is none."""
    if isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _gather(tree: Mapping[str, Any], found: dict[str, list[float]]) -> None:
    """Add all finite numbers of a tree to `found` by our names."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            _gather(value, found)
        elif math.isfinite(_number(value)) and not isinstance(value, str):
            found.setdefault(_our_name(str(name)), []).append(float(value))


def _is_metric(name: str) -> bool:
    return name.startswith(("metrics/", "val/", "train/")) or name in FITNESS_KEYS


def _our_name(name: str) -> str:
    """Return `mAP50` for `metrics/mAP50(B)`, `fitness` for `score`; losses keep their prefix."""
    bare = name.removeprefix("metrics/").partition("(")[0]
    return "fitness" if bare in FITNESS_KEYS else METRIC_NAMES.get(bare, bare)
