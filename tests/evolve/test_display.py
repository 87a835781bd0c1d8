"""Progress for people: a live screen in a terminal, lines elsewhere."""

import io

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from rich.console import Console

from evolve.display import Display
from evolve.progress import Progress, Running, duration, ending, label
from evolve.screen import screen

KINDS = {
    "lr0": FloatDistribution(1e-4, 1.0, log=True),
    "x": FloatDistribution(0.0, 1.0),
    "optimizer": CategoricalDistribution(["SGD", "AdamW"]),
}


def trial(number: int, value: float | None, x: float = 0.5, **attributes: object) -> FrozenTrial:
    made = create_trial(
        value=value,
        state=TrialState.FAIL if value is None else TrialState.COMPLETE,
        params={"x": x, "lr0": 0.01, "optimizer": "SGD"},
        distributions=KINDS,
        user_attrs={"kind": "search", "seconds": 10.0, **attributes},
    )
    made.number = number
    return made


def test_progress_counts_best_running_failed_and_time_left() -> None:
    progress = Progress(total=10, workers=2)
    progress.load([trial(0, 0.4), trial(1, None, reason="x")])
    progress.running[2] = Running(0.0)
    progress.finish(trial(2, 0.6))
    progress.running[3] = Running(0.0)
    # 8 trials of 10 s left on 2 workers
    assert progress.line() == "2/10, best 0.6000 (trial 2), running 1, failed 1, ETA 40 s"
    progress.seconds_left = lambda: 25.0  # a limit of time comes first
    assert progress.line().endswith("ETA 25 s")
    progress.seconds_left = lambda: 3600.0
    progress.finish(trial(3, None, reason="y"))
    progress.finish(trial(4, 0.9, kind="confirm"))
    assert progress.line() == "2/10, best 0.6000 (trial 2), running 0, failed 2, ETA 40 s"
    assert progress.curve == [0.4, 0.6]  # a repeat is no progress
    assert [one.number for one in progress.top] == [2, 0]


def test_an_epoch_counts_from_one_whatever_the_trainer_counts_from() -> None:
    progress = Progress()
    progress.running = {4: Running(0.0), 5: Running(0.0)}
    progress.reported(4, 3, 0.25)
    assert (progress.running[4].epoch, progress.running[4].fitness) == (3, 0.25)
    progress.reported(5, 0, None)
    assert progress.running[5].epoch == 1
    progress.reported(4, 3, 0.5)
    assert progress.running[4].epoch == 4
    progress.reported(9, 1, 0.5)  # of a trial that ended just then


def test_endings_are_words() -> None:
    assert ending(trial(0, 0.25)) == "fitness 0.2500"
    assert ending(trial(0, None, reason="diverged: NaN")) == "failed: diverged: NaN"
    stopped = create_trial(state=TrialState.PRUNED, value=0.1)
    assert ending(stopped) == "stopped early at 0.1000"
    repeat = trial(9, 0.5, kind="confirm", of=4, repeat=1)
    assert label(repeat) == "trial 9 (trial 4 again, seed 2)"
    assert [duration(s) for s in (5, 300, 9000)] == ["5 s", "5 min", "2.5 h"]


# ---- the screen


def busy_study() -> Progress:
    """Return what 40 trials came to, 12 more of which are running."""
    progress = Progress("a-name-that-is-rather-long", 300, workers=12, epochs=30, began=40.0)
    progress.load([trial(0, 0.4, kind="start")])
    reason = "RuntimeError: " + "a reason that goes on and on " * 20
    for number in range(1, 40):
        value = None if number == 38 else 0.3 + 0.01 * number
        progress.finish(trial(number, value, x=0.5 + 0.01 * number, reason=reason))
    progress.finish(trial(40, 0.1, kind="confirm", of=39, repeat=2))
    progress.running = {number: Running(95.0, epochs=30) for number in range(41, 53)}
    progress.reported(41, 4, 0.61)
    return progress


def drawn(progress: Progress, width: int, height: int, load: str = "CPU 97 %") -> list[str]:
    """Return the lines of a screen; a console of this size wraps what does not fit."""
    file = io.StringIO()
    console = Console(file=file, width=width, height=height, force_terminal=True, no_color=True)
    console.print(screen(progress, load, width, height, 100.0))
    text = file.getvalue().replace("\x1b[1m", "").replace("\x1b[2m", "").replace("\x1b[0m", "")
    return text.splitlines()


def test_the_screen_shows_where_the_study_stands() -> None:
    text = "\n".join(drawn(busy_study(), 80, 24))
    assert "39 of 300 generations" in text
    assert " 13%" in text
    assert "12 of 12 workers busy, 1 failed" in text
    assert "CPU 97 %" in text
    assert "best 0.6900 in trial 39, start 0.4000 (+0.2900)" in text
    assert "▁" in text and "█" in text
    assert "x 0.5 → 0.89" in text
    assert "lr0" not in text  # did not change
    assert "running, epoch 4 of 30" in text and "0.6100" in text
    assert "more" in text  # not all that run have a row
    assert "complete (trial 39 again, seed 3)" in text
    assert "failed: RuntimeError: a reason" in text


@pytest.mark.parametrize("size", [(80, 24), (100, 30), (160, 50), (60, 16), (40, 12)])
def test_the_screen_fits(size: tuple[int, int]) -> None:
    lines = drawn(busy_study(), *size)
    assert len(lines) < size[1]
    assert max(map(len, lines)) <= size[0]


def test_a_wide_screen_has_the_best_beside_the_others() -> None:
    lines = drawn(busy_study(), 160, 50)
    (heads,) = [line for line in lines if line.startswith("trial ")]
    assert "changed from the start values" in heads
    assert len(lines) > 20


def test_what_nobody_knows_is_left_out() -> None:
    text = "\n".join(drawn(Progress(study="new", total=5), 80, 24, load=""))
    assert "no trial is complete yet" in text
    assert "ETA" not in text and "best" not in text and "CPU" not in text


# ---- in a terminal, and elsewhere


def show(terminal: bool) -> str:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=terminal, width=100, height=30, highlight=False)
    with Display(console) as display:
        display.begin([], 2, 1, "toy", 9)
        display.trial_started(trial(0, 0.5))
        display.trial_epoch(0, 7, 0.25)
        display.notice("a [bold] notice")
        display.trial_finished(trial(0, 0.5))
    return shown.getvalue()


def test_lines_outside_a_terminal() -> None:
    assert show(terminal=False).splitlines() == [
        "a [bold] notice",
        "trial 0: fitness 0.5000; 1/2, best 0.5000 (trial 0), running 0, failed 0, ETA 10 s",
    ]


def test_a_live_screen_in_a_terminal() -> None:
    shown = show(terminal=True)
    assert "a [bold] notice" in shown
    last = shown[shown.rindex("study toy") :]  # the picture that stays
    assert "1 of 2 generations" in last
    assert "best 0.5000 in trial 0" in last
    assert "\x1b[" in shown


def test_the_screen_is_drawn_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = []
    monkeypatch.setattr("evolve.display.screen", lambda *_: pictures.append(1) or "")
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with Display(console) as display:
        display.begin([], 1000, 1)
        for number in range(200):
            display.trial_started(trial(number, 0.5))
            display.trial_finished(trial(number, 0.5))
    assert len(pictures) < 10
