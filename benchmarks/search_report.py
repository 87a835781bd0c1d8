"""What the cells of the search benchmark say: ranks, regrets, harm, honesty and time."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.search_peers import OPTUNA, WIRED
from benchmarks.search_problems import GROUPS

COUNTS = (25, 50, 100, 200, 300)
SUBJECT = "guided"
FINAL_SEEDS = 10  # seeds below are for development and stand in no final table
LEAST = 1e-9  # relative: a smaller difference is rounding
ENOUGH = 10  # runs that a comparison with the strongest needs

Record = dict[str, Any]
Row = dict[str, Any]
Place = tuple[str, int]  # problem, seed


@dataclass(frozen=True)
class Score:
    """A strategy at one checkpoint of one run."""

    strategy: str
    problem: str
    group: str
    seed: int
    regret: float  # 0 at the best that is known, 1 at the start values
    harm: bool
    error: float | None  # (reported - true) in noise standard deviations
    covered: bool | None
    epochs: int

    @property
    def place(self) -> Place:
        """Return what the strategies are compared on."""
        return self.problem, self.seed


def best_known(records: Iterable[Record]) -> dict[Place, float]:
    """Return the best true value of each problem and seed: the optimum, or the best ever seen."""
    best: dict[Place, float] = {}
    for record in records:
        place = record["problem"], record["seed"]
        seen = [record["start"]]
        seen += [point[key] for point in record["checkpoints"] for key in ("true", "observed_true")]
        found = record["best"] if record["best"] is not None else max(seen)
        best[place] = max(best.get(place, found), found)
    return best


def label(record: Record) -> str:
    """Return the name of a strategy in the tables."""
    return str(record["strategy"]) + (" (told the budget)" if record["hint"] else "")


def scores(
    records: Iterable[Record], count: int, best: dict[Place, float], *, thrifty: bool = False
) -> list[Score]:
    """Return all runs at a trial count; of several lengths the shortest that reaches it.

    `thrifty`: when they had spent 0.6 x the epochs of so many whole trials.
    """
    chosen: dict[tuple[str, Place], Record] = {}
    for record in sorted(records, key=lambda one: -one["trials"]):
        if record["trials"] >= count:
            chosen[label(record), (record["problem"], record["seed"])] = record
    return [
        score(record, point, best[place])
        for (_, place), record in sorted(chosen.items())
        for point in record["checkpoints"]
        if point.get("thrifty") == (count if thrifty else None)
        and (thrifty or point["trials"] == count)
    ]


def score(record: Record, point: Record, best: float) -> Score:
    """Return what one checkpoint is worth."""
    start, noise, true = record["start"], record["noise_sd"], point["true"]
    gap = max(best - start, 0.1 * noise, 1e-12)  # where nothing beats the start values by much
    interval = point["interval"]
    return Score(
        strategy=label(record),
        problem=record["problem"],
        group=record["group"],
        seed=record["seed"],
        regret=max(0.0, best - true) / gap,
        harm=true < start - LEAST * max(1.0, abs(start)),
        error=(point["reported"] - true) / noise if noise else None,
        covered=interval[0] <= true <= interval[1] if interval and noise else None,
        epochs=point["epochs"],
    )


def ranks(found: Sequence[Score]) -> dict[str, list[float]]:
    """Return each strategy's ranks, one per problem and seed; equals share their mean rank."""
    places: dict[Place, list[Score]] = defaultdict(list)
    for one in found:
        places[one.place].append(one)
    result: dict[str, list[float]] = defaultdict(list)
    for rivals in places.values():
        for one in rivals:
            below = sum(other.regret < one.regret for other in rivals)
            equal = sum(other.regret == one.regret for other in rivals)
            result[one.strategy].append(below + (equal + 1) / 2)
    return result


def common(found: Sequence[Score], subject: str = SUBJECT) -> list[Score]:
    """Return the runs on problems and seeds that all strategies have, so that ranks compare.

    A strategy that has less than half of the subject's places is left out; the duels have it.
    """
    places: dict[str, set[Place]] = defaultdict(set)
    for one in found:
        places[one.strategy].add(one.place)
    own = places[subject] or set().union(*places.values())
    field = {name for name, its in places.items() if 2 * len(its & own) >= len(own)}
    shared = own.intersection(*(places[name] for name in field))
    return [one for one in found if one.strategy in field and one.place in shared]


def standing(found: Sequence[Score]) -> list[Row]:
    """Return one row per strategy, the best mean rank first."""
    rows = [
        summary(name, [one for one in found if one.strategy == name]) | {"rank": fmean(places)}
        for name, places in ranks(found).items()
    ]
    return sorted(rows, key=lambda row: row["rank"])


def summary(name: str, own: Sequence[Score]) -> Row:
    """Return what a strategy's runs show without a comparison."""
    errors = [one.error for one in own if one.error is not None]
    covered = [one.covered for one in own if one.covered is not None]
    return {
        "strategy": name,
        "runs": len(own),
        "rank": None,
        "regret": median(one.regret for one in own),
        "harm": fmean(one.harm for one in own),
        "error": median(errors) if errors else None,
        "coverage": fmean(covered) if covered else None,
    }


def duel(found: Sequence[Score], subject: str, rival: str) -> Row | None:
    """Compare two strategies on the problems and seeds that both have; None without any."""
    mine = {one.place: one.regret for one in found if one.strategy == subject}
    other = {one.place: one.regret for one in found if one.strategy == rival}
    common = sorted(mine.keys() & other.keys())
    if not common:
        return None
    wins = [(mine[place] < other[place]) + 0.5 * (mine[place] == other[place]) for place in common]
    own, its = median(mine[place] for place in common), median(other[place] for place in common)
    return {
        "rival": rival,
        "runs": len(common),
        "regret": own,
        "rival_regret": its,
        "ratio": own / its if its else (1.0 if own == its else float("inf")),
        "wins": fmean(wins),
    }


def duels(found: Sequence[Score], subject: str) -> list[Row]:
    """Return the comparisons with every other strategy, the hardest first."""
    rivals = sorted({one.strategy for one in found} - {subject})
    rows = [row for rival in rivals if (row := duel(found, subject, rival))]
    return sorted(rows, key=lambda row: -row["ratio"])


def hardest(rows: Sequence[Row], names: Sequence[str]) -> Row | None:
    """Return the comparison with the strongest of some strategies that have enough runs."""
    known = (row for row in rows if row["rival"] in names and row["runs"] >= ENOUGH)
    return max(known, key=lambda row: row["ratio"], default=None)


def thinking(records: Iterable[Record]) -> list[Row]:
    """Return seconds of an ask per strategy and length: the mean, and of the last trials."""
    found: dict[tuple[str, int], list[Record]] = defaultdict(list)
    for record in records:
        found[label(record), record["trials"]].append(record)
    return [
        {
            "strategy": name,
            "trials": trials,
            "runs": len(runs),
            "mean": fmean(run["think_mean"] for run in runs),
            "end": fmean(run["think_end"] for run in runs),
            "slowest": max(run["think_end"] for run in runs),
            "repeats": fmean(run["repeats"] for run in runs),
        }
        for (name, trials), runs in sorted(found.items())
    ]


def against_plain(
    plain: Sequence[Record],
    other: Sequence[Record],
    best: dict[Place, float],
    *,
    by_problem: bool = False,
    thrifty: bool = False,
) -> list[Row]:
    """Compare runs with workers or pruning with those without, at the same trial counts.

    `thrifty`: the others when they had spent 0.6 x the epochs of so many whole trials.
    """
    rows = []
    for count in COUNTS:
        base = {(one.strategy, one.place): one for one in scores(plain, count, best)}
        pairs: dict[tuple[str, str], list[tuple[Score, Score]]] = defaultdict(list)
        for one in scores(other, count, best, thrifty=thrifty):
            if (one.strategy, one.place) in base:
                key = one.strategy, one.problem if by_problem else "all"
                pairs[key].append((one, base[one.strategy, one.place]))
        for (strategy, problem), found in sorted(pairs.items()):
            own = median(first.regret for first, _ in found)
            its = median(second.regret for _, second in found)
            shares = [first.epochs / second.epochs for first, second in found]
            rows.append(
                {
                    "strategy": strategy,
                    "problem": problem,
                    "trials": count,
                    "runs": len(found),
                    "regret": own,
                    "plain_regret": its,
                    "ratio": own / its if its else None,
                    "epochs": fmean(shares),
                }
            )
    return rows


def stopping(
    plain: Sequence[Record],
    found: Sequence[Record],
    rule: str,
    best: dict[Place, float],
    *,
    thrifty: bool,
) -> list[Row]:
    """Compare the runs of a pruning rule with those that train each trial whole."""
    stopped = [one for one in found if one["pruning"] == rule]
    return against_plain(plain, stopped, best, by_problem=True, thrifty=thrifty)


def shown(records: Iterable[Record], seeds: Sequence[int], extra: Sequence[str]) -> list[Record]:
    """Return the records of these seeds; strategies with options only if they are asked for."""
    return [
        record
        for record in records
        if record["seed"] in seeds
        and ("+" not in record["strategy"] or record["strategy"] in extra)
    ]


def report_of(records: Sequence[Record], seeds: Sequence[int], extra: Sequence[str] = ()) -> Row:
    """Return the whole report as data."""
    best = best_known(records)
    found = shown(records, seeds, extra)
    plain = [one for one in found if one["workers"] == 1 and one["pruning"] == "none"]
    tables = []
    for count in COUNTS:
        every = scores(plain, count, best)
        for group in (*GROUPS, "all"):
            part = [one for one in every if group in (one.group, "all")]
            if part:
                rivals = duels(part, SUBJECT)
                own = [one for one in part if one.strategy == SUBJECT]
                tables.append(
                    {
                        "trials": count,
                        "group": group,
                        "standing": standing(common(part)),
                        "subject": summary(f"{SUBJECT}, all its runs", own) if own else None,
                        "duels": rivals,
                        "optuna": hardest(rivals, OPTUNA),
                        "wired": hardest(rivals, WIRED),
                    }
                )
    pruned = sorted({one["pruning"] for one in found} - {"none"})
    crowds = sorted({one["workers"] for one in found} - {1})
    return {
        "seeds": sorted({one["seed"] for one in found}),
        "tables": tables,
        "thinking": thinking(plain),
        "workers": {
            str(number): against_plain(
                plain, [one for one in found if one["workers"] == number], best
            )
            for number in crowds
        },
        "pruning": {rule: stopping(plain, found, rule, best, thrifty=False) for rule in pruned},
        "thrifty": {rule: stopping(plain, found, rule, best, thrifty=True) for rule in pruned},
    }


def write_report(
    records: Sequence[Record], seeds: Sequence[int], folder: Path, extra: Sequence[str] = ()
) -> Path:
    """Write report.md and report.json; those of development seeds have a name that says so."""
    name = "report" if min(seeds) >= FINAL_SEEDS else "report-development"
    report = report_of(records, seeds, extra)
    (folder / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    path = folder / f"{name}.md"
    path.write_text(markdown(report), encoding="utf-8")
    return path


STANDING = {
    "strategy": "strategy",
    "runs": "runs",
    "rank": "mean rank",
    "regret": "median regret",
    "harm": "harm",
    "error": "(reported - true) / noise",
    "coverage": "90 % interval covers",
}
DUEL = {
    "rival": f"{SUBJECT} against",
    "runs": "runs",
    "regret": "its median regret",
    "rival_regret": "the other's",
    "ratio": "ratio",
    "wins": "wins",
}
THINKING = {
    "strategy": "strategy",
    "trials": "trials",
    "runs": "runs",
    "mean": "s an ask",
    "end": "s at the end",
    "slowest": "s at the end, slowest run",
    "repeats": "repeats",
}
PLAIN = {
    "strategy": "strategy",
    "problem": "problem",
    "trials": "trials",
    "runs": "runs",
    "regret": "median regret",
    "plain_regret": "without",
    "ratio": "ratio",
    "epochs": "share of the epochs",
}
FORMATS: dict[str, Callable[[Any], str]] = {
    "harm": "{:.1%}".format,
    "coverage": "{:.0%}".format,
    "wins": "{:.0%}".format,
    "epochs": "{:.0%}".format,
    "rank": "{:.2f}".format,
    "error": "{:+.2f}".format,
}


def markdown(report: Row) -> str:
    """Return the report as text."""
    seeds = ", ".join(str(seed) for seed in report["seeds"]) or "none"
    lines = [
        "# Search benchmark",
        "",
        f"Seeds: {seeds}. Regret is that of the recommended values on the true objective:",
        "0 at the best known, 1 at the start values. Ranks are within a problem and seed, on those",
        "that all listed strategies were run on; the paired comparisons have all strategies.",
        "Harm: the share of runs that recommend values truly worse than the start values.",
    ]
    for part in report["tables"]:
        lines += ["", f"## {part['trials']} trials, {part['group']}", ""]
        lines += table(STANDING, [*part["standing"], *filter(None, [part["subject"]])])
        if part["duels"]:
            lines += ["", *table(DUEL, part["duels"]), ""]
            lines += [
                f"- strongest of {whose}: {row['rival']}, ratio {row['ratio']:.2f}"
                f" ({row['runs']} runs)"
                for whose, row in (("Optuna's", part["optuna"]), ("the wired-up", part["wired"]))
                if row
            ]
            few = [row for row in part["duels"] if row["runs"] < ENOUGH]
            lines += [
                f"- too few runs to say: {row['rival']}, ratio {row['ratio']:.2f}"
                f" ({row['runs']} runs)"
                for row in few
            ]
    lines += ["", "## Thinking", "", *table(THINKING, report["thinking"])]
    for number, rows in report["workers"].items():
        lines += ["", f"## {number} asynchronous workers against one", "", *table(PLAIN, rows)]
    for rule, rows in report["pruning"].items():
        lines += ["", f"## {rule} against no pruning, trial for trial", "", *table(PLAIN, rows)]
    for rule, rows in report["thrifty"].items():
        lines += ["", f"## {rule} with 0.6 x the epochs of no pruning", "", *table(PLAIN, rows)]
    return "\n".join(lines) + "\n"


def table(columns: dict[str, str], rows: Iterable[Row]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = ["| " + " | ".join(columns.values()) + " |", "|---" * len(columns) + "|"]
    return lines + [
        "| " + " | ".join(_cell(key, row[key]) for key in columns) + " |" for row in rows
    ]


def _cell(key: str, value: Any) -> str:
    if value is None:
        return ""
    if key in FORMATS:
        return FORMATS[key](value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)
