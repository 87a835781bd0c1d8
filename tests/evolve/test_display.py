"""Progress for people: a live table in a terminal, lines elsewhere."""

import io

from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from rich.console import Console

from evolve.display import Display, Progress, duration, ending, label


def trial(number: int, value: float | None, **attributes: object) -> FrozenTrial:
    made = create_trial(
        value=value,
        state=TrialState.FAIL if value is None else TrialState.COMPLETE,
        params={"x": 0.5},
        distributions={"x": FloatDistribution(0.0, 1.0)},
        user_attrs={"kind": "search", "seconds": 10.0, **attributes},
    )
    made.number = number
    return made


def test_progress_counts_best_running_failed_and_time_left() -> None:
    progress = Progress(total=10, workers=2)
    progress.load([trial(0, 0.4), trial(1, None, reason="x")])
    progress.running[2] = "started"
    progress.finish(trial(2, 0.6))
    progress.running[3] = "step 1"
    # 8 trials of 10 s left on 2 workers
    assert progress.line() == "2/10, best 0.6000 (trial 2), running 1, failed 1, ETA 40 s"
    progress.seconds_left = lambda: 25.0  # a limit of time comes first
    assert progress.line().endswith("ETA 25 s")
    progress.seconds_left = lambda: 3600.0
    progress.finish(trial(3, None, reason="y"))
    progress.finish(trial(4, 0.9, kind="confirm"))
    assert progress.line() == "2/10, best 0.6000 (trial 2), running 0, failed 2, ETA 40 s"


def test_endings_are_words() -> None:
    assert ending(trial(0, 0.25)) == "fitness 0.2500"
    assert ending(trial(0, None, reason="diverged: NaN")) == "failed: diverged: NaN"
    stopped = create_trial(state=TrialState.PRUNED, value=0.1)
    assert ending(stopped) == "stopped early at 0.1000"
    repeat = trial(9, 0.5, kind="confirm", of=4, repeat=1)
    assert label(repeat) == "trial 9 (trial 4 again, seed 2)"
    assert [duration(s) for s in (5, 300, 9000)] == ["5 s", "5 min", "2.5 h"]


def show(terminal: bool) -> str:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=terminal, width=100, highlight=False)
    with Display(console) as display:
        display.begin([], 2, 1)
        display.trial_started(trial(0, 0.5))
        display.trial_epoch(0, 7)
        display.notice("a [bold] notice")
        display.trial_finished(trial(0, 0.5))
    return shown.getvalue()


def test_lines_outside_a_terminal() -> None:
    assert show(terminal=False).splitlines() == [
        "a [bold] notice",
        "trial 0: fitness 0.5000; 1/2, best 0.5000 (trial 0), running 0, failed 0, ETA 10 s",
    ]


def test_a_live_table_in_a_terminal() -> None:
    shown = show(terminal=True)
    assert "a [bold] notice" in shown
    assert "trial 0  fitness 0.5000" in "\n".join(shown.splitlines()[-4:])
    assert "\x1b[" in shown
