"""The live screen of a running study: all of it on 80 x 24 characters, more where there is room."""

from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evolve.glance import moves_text, sparkline
from evolve.progress import Progress, Running, duration, ending, label
from evolve.record import CONFIRM, fitness, kind_of, seconds_of

HEAD_LINES = 7  # above the tables, an empty one included
SPARE = 2  # lines that stay free: the prompt, and what a terminal may count otherwise
WIDE = 118  # characters from which the best trials stand beside the others
MOST_BEST = 10
MOST_RUNNING = 8
MOST_ROWS = 24  # of the trials: drawing more takes time and says little
LEAST_BEST = 3
OTHER_COLUMNS = 26  # characters of a table beside its second column, at most
STYLES = {
    TrialState.COMPLETE: "",
    TrialState.PRUNED: "yellow",
    TrialState.FAIL: "red",
}


def screen(progress: Progress, load: str, width: int, height: int, now: float) -> Group:
    """Return the screen for a terminal of this many characters; `now` is time.monotonic()."""
    room = max(3, height - HEAD_LINES - SPARE)
    if width >= WIDE:
        half = (width - 3) // 2
        trials = _trials(progress, min(room - 1, MOST_ROWS), now)
        best_trials = _best(progress, min(MOST_BEST, room - 1), half)
        tables: Sequence[RenderableType] = [_beside(trials, best_trials)]
    else:
        shown = min(len(progress.top), LEAST_BEST) if room >= 10 else 0
        rest = room - 1 - (shown + 2 if shown else 0)
        tables = [_trials(progress, rest, now)]
        tables = [*tables, Text(""), _best(progress, shown, width)] if shown else tables
    return Group(*_head(progress, load, width, now), Text(""), *tables)


def _head(progress: Progress, load: str, width: int, now: float) -> list[RenderableType]:
    done = f"{progress.counted} of {progress.total} generations"
    parts = [f"study {progress.study}", done]
    if not progress.searching:
        parts.append("repeats with other seeds")
    parts += [progress.eta()] if progress.eta() else []
    parts.append(f"{duration(now - progress.began)} so far")
    busy = f"{len(progress.running)} of {progress.workers} workers busy"
    counts = f"{progress.pruned} stopped early, " * bool(progress.pruned)
    share = min(1.0, progress.counted / max(1, progress.total))
    percent = f" {share:4.0%}"
    filled = round(share * (width - len(percent)))
    bar = Text("━" * filled, style="green")
    bar.append("━" * (width - len(percent) - filled), style="bright_black").append(percent)
    lines: list[RenderableType] = [
        _line(" · ".join(parts), width, "bold"),
        bar,
        _line(f"{busy}, {counts}{progress.failed} failed", width),
        _line(load, width, "dim"),
    ]
    if progress.best is None:
        return [*lines, _line("no trial is complete yet", width), Text("")]
    return [*lines, *_best_lines(progress, progress.best, width)]


def _best_lines(progress: Progress, best: FrozenTrial, width: int) -> list[RenderableType]:
    """Return the best fitness with its curve, and the values that went the longest way."""
    text = f"best {fitness(best):.4f} in trial {best.number}"
    changes = ""
    if progress.start is not None:
        gain = fitness(best) - fitness(progress.start)
        text += f", start {fitness(progress.start):.4f} ({gain:+.4f})"
        changes = moves_text(progress.moves_of(best), width)
    first = Text(f"{text}  ", style="bold green")
    first.append(sparkline(progress.curve, width - first.cell_len), style="green")
    return [first, _line(changes, width)]


def _trials(progress: Progress, rows: int, now: float) -> Table:
    """Return the trials that run, those that ended last below them."""
    running = sorted(progress.running.items())
    shown = running[: max(1, min(MOST_RUNNING, rows // 2))]
    table = _table("trial", "state", "fitness", "time")
    for number, trial in shown:
        value = "" if trial.fitness is None else f"{trial.fitness:.4f}"
        cells = (str(number), _way(trial), value, duration(now - trial.began))
        table.add_row(*cells, style="cyan")
    if len(running) > len(shown):
        table.add_row("", f"and {len(running) - len(shown)} more", "", "", style="cyan")
    left = max(0, rows - table.row_count)
    for ended in list(progress.last)[::-1][:left]:
        _add_ended(table, ended)
    return table


def _add_ended(table: Table, trial: FrozenTrial) -> None:
    value = "" if trial.state == TrialState.FAIL or not trial.values else f"{fitness(trial):.4f}"
    state = ending(trial)
    if value and " " in state:
        state = {TrialState.PRUNED: "stopped early"}.get(trial.state, "complete")
        state += ", beyond a limit" if "beyond" in ending(trial) else ""
    if kind_of(trial) == CONFIRM:
        state += label(trial).removeprefix(f"trial {trial.number}")
    cells = (str(trial.number), Text(state), value, duration(seconds_of(trial)))
    table.add_row(*cells, style=STYLES.get(trial.state, ""))


def _way(trial: Running) -> str:
    if not trial.epoch:
        return f"running{_where(trial)}"
    of = f" of {trial.epochs}" if trial.epochs else ""
    return f"running, epoch {trial.epoch}{of}{_where(trial)}"


def _where(trial: Running) -> str:
    """Return the worker of a trial and the memory that it holds, as far as they are known."""
    memory = f" {trial.memory / 2**30:.1f} GiB" if trial.memory else ""
    return f" · {trial.worker}{memory}" if trial.worker else ""


def _best(progress: Progress, rows: int, width: int) -> Table:
    """Return the best trials with what they changed, the longest way first."""
    table = _table("best", "changed from the start values", "fitness", "time")
    for place, trial in enumerate(progress.top[:rows]):
        changes = moves_text(progress.moves_of(trial), width - OTHER_COLUMNS)
        time = duration(seconds_of(trial))
        cells = (str(trial.number), Text(changes), f"{fitness(trial):.4f}", time)
        table.add_row(*cells, style="green" if place == 0 else "")
    return table


def _table(*heads: str) -> Table:
    """Return a table without lines; its second column takes the room, the others are short."""
    table = Table(box=None, pad_edge=False, expand=True, header_style="dim")
    for place, head in enumerate(heads):
        table.add_column(
            head,
            justify="left" if place == 1 else "right",
            ratio=1 if place == 1 else None,
            no_wrap=True,
            overflow="ellipsis",
        )
    return table


def _beside(left: Table, right: Table) -> Table:
    grid = Table.grid(expand=True, padding=(0, 3))
    grid.add_column(ratio=1)
    grid.add_column(ratio=1)
    grid.add_row(left, right)
    return grid


def _line(text: str, width: int, style: str = "") -> Text:
    line = Text(text, style=style, no_wrap=True, overflow="ellipsis")
    line.truncate(width, overflow="ellipsis")
    return line
