"""The report of a study as one page: what it says, draws and leaves out."""

import base64
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from io import BytesIO, StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna import Study
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from evolve.__main__ import main
from evolve.config import StudyConfig, load_config, parse_config
from evolve.description import keep_description
from evolve.display import Display
from evolve.gene import Gene
from evolve.page import axes, charts, markup, scene, tables, timeline, verdict
from evolve.page.write import Begun, page_text, write_report
from evolve.printout import insight_lines
from evolve.storage import load_study
from evolve.study import run_study
from evolve.summary import summarise

sys.path.insert(0, str(Path(__file__).parent))
from page_reader import Page

SPACE = {
    "lr0": {"low": 1e-5, "high": 0.1, "log": True},
    "momentum": {"low": 0.5, "high": 1.0},
    "optimizer": {"choices": ["SGD", "AdamW"]},
    "beta": {"low": 0.0, "high": 1.0, "when": {"optimizer": "AdamW"}},
}
START = {"lr0": 0.01, "momentum": 0.9, "optimizer": "SGD", "beta": 0.5}
NOON = datetime(2026, 1, 1, 12)
ODD = "<b>&\"'</script>"


def configured(space: dict[str, Any] = SPACE, start: Any = START, **sections: Any) -> StudyConfig:
    tree = {"objective": "math:sqrt", "space": space, "start": start, "study": {"name": "toy"}}
    return parse_config({**tree, **sections}, Path("none.yaml"))


def add(
    study: Study,
    config: StudyConfig,
    value: float | Sequence[float] | None,
    params: dict[str, Any] | None = None,
    state: TrialState | None = None,
    curve: dict[int, float] | None = None,
    **attributes: Any,
) -> None:
    number = len(study.get_trials(deepcopy=False))
    first = {g.name: g.from_unit((0.37 * number + 0.21) % 1.0) for g in config.space.genes}
    if state is None:  # RUNNING is 0
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
    values = [value] if isinstance(value, float) else value
    trial = optuna.trial.create_trial(
        state=state,
        values=None if state == TrialState.PRUNED else values,
        params=params or first,
        distributions=config.space.distributions(),
        user_attrs={"kind": "search", "seed": 1000 + number, "worker": "cpu-0", **attributes},
        intermediate_values=curve or {},
    )
    trial.datetime_start = NOON + timedelta(minutes=number)
    if trial.state.is_finished():
        trial.datetime_complete = trial.datetime_start + timedelta(seconds=30)
    study.add_trial(trial)


def searched(values: Sequence[float | None], config: StudyConfig) -> Study:
    """Return a study whose first trial has the start values."""
    study = optuna.create_study(direction="maximize")
    for number, value in enumerate(values):
        start = {"params": dict(START), "kind": "start"} if number == 0 else {}
        add(study, config, value, **start, **({"reason": "diverged"} if value is None else {}))
    return study


def confirmed(gains: Sequence[float], config: StudyConfig) -> Study:
    """Return a study whose trial 1 gained so much over start values of 0.5 with other seeds."""
    study = searched([0.5, 0.9], config)
    for repeat, gain in enumerate(gains):
        for of, value in ((0, 0.5), (1, 0.5 + gain)):
            params = study.trials[of].params
            metrics = {"F1": value + 0.1}
            add(study, config, value, params, kind="confirm", of=of, repeat=repeat, metrics=metrics)
    return study


def page_of(config: StudyConfig, study: Study) -> Page:
    return Page(page_text(config, study, summarise(config, study)))


def scene_for(config: StudyConfig, study: Study) -> scene.Scene:
    return scene.scene_of(config, study, summarise(config, study))


# ---- what it says first ----------------------------------------------------------------------


def test_a_gain_is_told_with_its_interval_and_pairs() -> None:
    config = configured(confirm={"finalists": 1, "seeds": 2})
    page = page_of(config, confirmed([0.19, 0.21], config))
    # mean 0.20; sd sqrt(2 * 0.01^2) = 0.014142; t(90 %, 1) = 6.3138: half 6.3138 * 0.01 = 0.0631
    assert (
        "Trial 1 is better than the start values: +0.2000 fitness (+40.0 %)"
        in page.words["verdict"]
    )
    assert "90 % interval +0.1369 to +0.2631, 2 pairs of trainings" in page.words["verdict"]
    assert "✓" in page.words["verdict"]


def test_no_difference_is_told_as_such_with_the_repeats_that_would_show_it() -> None:
    config = configured(confirm={"finalists": 1, "seeds": 2})
    page = page_of(config, confirmed([-0.01, 0.03], config))
    assert "No difference shown between trial 1 and the start values" in page.words["verdict"]
    # mean 0.01, sd 0.028284; n = 24: t(90 %, 23) = 1.7139, 1.7139 * 0.028284 / 4.8990 = 0.00990;
    # n = 23: t(90 %, 22) = 1.7171, 1.7171 * 0.028284 / 4.7958 = 0.01013, which is too much
    assert verdict.pairs_needed(0.01, 0.028284) == 24
    assert "24 pairs of repeats" in page.words["next"]
    assert "--set confirm.seeds=24" in page.words["next"]
    assert verdict.pairs_needed(0.001, 0.1) is None


def test_worse_finalists_are_not_sold() -> None:
    config = configured(confirm={"finalists": 1, "seeds": 2})
    page = page_of(config, confirmed([-0.2, -0.21], config))
    assert "Nothing better than the start values was found" in page.words["verdict"]


def test_without_repeats_it_says_that_luck_is_possible() -> None:
    config = configured(confirm=0)
    page = page_of(config, searched([0.5, 0.9, 0.7], config))
    assert "Not confirmed, so it may be luck" in page.words["verdict"]
    assert "Trial 1 looks best" in page.words["verdict"]
    assert "No repeats with other seeds yet" in page.words["repeats"]


# ---- one valid file --------------------------------------------------------------------------


def full_study(config: StudyConfig) -> Study:
    values = [0.5, *(0.5 + 0.01 * (7 * n % 11) for n in range(1, 36)), None, None]
    study = searched(values, config)
    add(study, config, 0.4, state=TrialState.PRUNED, curve={0: 0.1, 1: 0.4})
    add(study, config, None, state=TrialState.RUNNING)
    return study


def test_the_page_is_one_file_without_requests_and_well_nested() -> None:
    config = configured(confirm=0)
    text = page_text(config, study := full_study(config), summarise(config, study))
    page = Page(text)
    assert len(page.ids) == len({*page.ids})
    outside = [address for address in page.addresses if not address.startswith(("#", "data:"))]
    assert outside == []
    for word in ("http:", "https:", "//cdn", "@import", "url(", "fetch(", "XMLHttp"):
        assert word not in text
    anchors = {address[1:] for address in page.addresses if address.startswith("#")}
    assert anchors <= {*page.ids}
    charts_ = [given for tag, given in page.elements if tag == "svg" and "role" in given]
    assert charts_ and all(given["aria-label"] for given in charts_)


def test_every_ended_trial_has_one_mark_and_one_row() -> None:
    config = configured(confirm=0)
    page = page_of(config, full_study(config))
    ended = [str(number) for number in range(39)]  # 36 complete, 2 failed, 1 stopped early
    for size in ("wide", "narrow"):
        assert sorted(page.drawn("progress", size), key=int) == ended
    assert page.rows == 39
    assert page.drawn("time", "wide") == ended


def test_names_are_escaped_everywhere() -> None:
    space = {f"lr{ODD}": SPACE["momentum"], "kind": {"choices": [ODD, "plain"]}}
    config = configured(
        space, {f"lr{ODD}": 0.7, "kind": "plain"}, confirm=0, settings={"data": ODD}
    )
    study = optuna.create_study(direction="maximize")
    add(study, config, 0.5, {f"lr{ODD}": 0.7, "kind": ODD}, kind="start", metrics={ODD: 0.5})
    add(study, config, 0.6, {f"lr{ODD}": 0.8, "kind": "plain"}, worker=ODD, metrics={ODD: 0.6})
    add(study, config, None, reason=f"{ODD} at step 7", worker=ODD)
    text = page_text(config, study, summarise(config, study))
    page = Page(text)
    assert text.count("<script>") == text.count("</script>") == 1
    assert '<b>&"' not in text
    assert f"lr{ODD}" in page.words["values"]
    assert f"{ODD} at step 7" in page.words["failures"]
    assert markup.escaped("a\x00<") == "a&lt;"


# ---- studies of every age and kind -----------------------------------------------------------


@pytest.mark.parametrize(
    "values", [[], [None], [0.5], [None, 0.5], [0.5, 0.5, 0.5], [-3.0, -2.0], [0.5, 1e12]]
)
def test_young_and_odd_studies_have_a_page(values: list[float | None]) -> None:
    config = configured()
    page = page_of(config, searched(values, config))
    ended = len(values)
    assert len(page.drawn("progress", "wide")) == ended
    assert "toy" in page.words[""]


def test_a_running_study_has_a_page() -> None:
    config = configured()
    study = searched([0.5], config)
    add(study, config, None, state=TrialState.RUNNING)
    page = page_of(config, study)
    assert "1 running" in page.words["verdict"]
    assert "The search is not over" in page.words["next"]


def test_several_objectives_are_drawn_as_trade_offs() -> None:
    config = configured(objectives=["fitness", "ms"], strategy="tpe", confirm=0)
    study = optuna.create_study(directions=["maximize", "minimize"])
    for number, values in enumerate([[0.5, 9.0], [0.6, 8.0], [0.9, 20.0], [0.4, 10.0]]):
        add(study, config, values, kind="start" if number == 0 else "search")
    page = page_of(config, study)
    # (0.6, 8) and (0.9, 20) are beaten by none; the others are worse than (0.6, 8) in both
    assert "2 best trade-offs of fitness, ms" in page.words["verdict"]
    assert page.drawn("front", "wide") == ["0", "1", "2", "3"]
    assert "progress" not in " ".join(page.marks)


def test_a_minimising_study_shows_its_smallest_value_as_best() -> None:
    config = configured(confirm=0)
    study = optuna.create_study(direction="minimize")
    for number, value in enumerate([0.5, 0.2, 0.9]):
        add(study, config, value, kind="start" if number == 0 else "search")
    found = scene_for(config, study)
    assert found.winner is not None and found.winner.number == 1
    assert charts.best_so_far(found) == [(0, 0.5), (1, 0.2), (2, 0.2)]
    assert "Trial 1 looks best" in page_of(config, study).words["verdict"]


def important(study: Study, config: StudyConfig, *others: float) -> Study:
    """Add 40 trials whose fitness follows momentum, `others` beside it; a study may minimise it."""
    sign = -1 if study.directions[0] == optuna.study.StudyDirection.MINIMIZE else 1
    for number in range(40):
        momentum = 0.5 + 0.5 * ((number * 0.618) % 1.0)
        params = {**START, "momentum": momentum, "lr0": 10 ** (-5 + 4 * ((number * 0.3247) % 1.0))}
        values = [sign * momentum, *others]
        value = values if others else values[0]
        add(study, config, value, params, kind="start" if number == 0 else "search")
    return study


def test_importance_is_told_of_studies_that_minimise_too() -> None:
    config = configured(confirm=0)
    up, down = (
        scene_for(config, important(optuna.create_study(direction=direction), config))
        for direction in ("maximize", "minimize")
    )
    assert up.importances[0].name == "momentum" and up.importances[0].word == "matters"
    assert [one.name for one in down.importances] == [one.name for one in up.importances]
    assert down.importances[0].share == pytest.approx(up.importances[0].share, abs=0.02)


def test_importance_of_several_objectives_says_which_it_is_about() -> None:
    objectives = ["fitness", {"ms": "minimize"}]
    config = configured(confirm=0, objectives=objectives, strategy="tpe")
    study = important(optuna.create_study(directions=["maximize", "minimize"]), config, 9.0)
    page = page_of(config, study)
    assert "Importance is for fitness alone: ms may depend on others" in page.words["importance"]
    assert "importance is for fitness alone: ms may depend on others" in insight_lines(
        config, study
    )


def test_the_data_is_named_by_its_digest_and_a_change_is_told() -> None:
    config = configured(confirm=0)
    study = searched([0.5, 0.6], config)
    trials = study.get_trials()
    for trial, digest in zip(trials, ("cd34", "ee55"), strict=True):
        told = {"digests": {"train": "ab12ab12ab12ab12", "val": digest}, "torch": "2.14.1"}
        keep_description(study, trial, told)
    words = page_of(config, study).words[""]
    assert "data digest train ab12ab12ab12, val cd34 · torch 2.14.1" in words
    assert "The data changed under the study: digests.val is ee55 from trial 1 on" in words


def test_inactive_values_are_not_drawn_and_their_condition_is_named() -> None:
    config = configured(confirm=0)
    study = optuna.create_study(direction="maximize")
    for number, optimizer in enumerate(["SGD", "AdamW", "SGD", "AdamW"]):
        kind = "start" if number == 0 else "search"
        add(study, config, 0.5, {**START, "optimizer": optimizer}, kind=kind)
    page = page_of(config, study)
    assert "only while optimizer is AdamW" in page.words["hyperparameters"]
    panels = [given["data-k"] for tag, given in page.elements if "data-k" in given and tag == "svg"]
    assert sorted(panels) == ["beta", "lr0", "momentum", "optimizer"]
    assert len(page.drawn("panel")) == 4 * 3 + 2  # beta acts in two of the four trials


def test_values_that_are_no_numbers_do_no_harm() -> None:
    config = configured(confirm=0)
    study = searched([0.5, 0.6], config)
    add(study, config, math.inf)
    add(study, config, 0.1, metrics={"F1": math.nan, "mAP50": 0.3})
    page = page_of(config, study)
    assert page.rows == 4
    assert "nan" not in " ".join(page.words.values()).lower().replace("finance", "")


def test_a_gene_that_the_file_no_longer_has_is_shown_still() -> None:
    config = configured(confirm=0)
    study = searched([0.5, 0.6], config)
    without = {name: keys for name, keys in SPACE.items() if name not in ("momentum",)}
    page = page_of(configured(without, confirm=0), study)
    assert "momentum" in page.words["hyperparameters"]


# ---- the parts -------------------------------------------------------------------------------


def test_a_log_gene_has_powers_of_ten_and_a_choice_its_names() -> None:
    log = axes.of_gene(Gene("lr0", 1e-5, 0.1, log=True))
    # log10 runs from -5 to -1: 1e-3 is in its middle
    assert dict((text, place) for place, text in log.ticks)["0.001"] == pytest.approx(0.5)
    assert [text for _, text in axes.of_gene(Gene("o", choices=("SGD", None))).ticks] == [
        "SGD",
        "None",
    ]
    shifted = axes.of_gene(Gene("wd", 0.0, 0.01, log=True, shift=1e-5))
    assert shifted.ticks[0] == (0.0, "0")
    places = [place for place, _ in shifted.ticks]
    assert all(b - a > axes.APART for a, b in pairwise(places))


def test_linear_marks_are_round_and_inside() -> None:
    assert axes.round_numbers(0.0, 1.0, 5) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert axes.round_numbers(3, 9, 3, whole=True) == [4.0, 6.0, 8.0]
    axis = axes.linear(2.0, 4.0)
    assert (axis.place(3.0), axis.place(99.0), axis.place(-1.0)) == (0.5, 1.0, 0.0)
    assert axes.linear(1.0, 1.0).place(1.0) == 0.5


def test_the_local_mean_of_a_line_is_the_line() -> None:
    np = pytest.importorskip("numpy")
    places = np.linspace(0, 1, 201)
    at, mean, error = charts.local_mean(places, 3 * places)
    inner = (at > 0.3) & (at < 0.7)  # away from the ends, where neighbours are on one side only
    assert mean[inner] == pytest.approx(3 * at[inner], abs=0.02)
    assert (error > 0).all()


def test_the_noise_band_pools_the_repeats() -> None:
    config = configured(confirm={"finalists": 1, "seeds": 2})
    found = charts.noise_of(scene_for(config, confirmed([0.1, 0.3], config)))
    # start 0.5, 0.5: variance 0; trial 1 0.6, 0.8: variance 0.02; pooled over 2 degrees: 0.01
    assert found == pytest.approx((0.5, 0.1))


def test_utilisation_counts_only_times_in_which_a_trial_ran() -> None:
    trials: list[FrozenTrial] = []
    # worker a: 0-10 and, after a pause, 100-110; worker b: 0-5: 25 s of 2 x 20 s
    for worker, begin, end in (("a", 0, 10), ("b", 0, 5), ("a", 100, 110)):
        trial = optuna.trial.create_trial(value=1.0, user_attrs={"worker": worker})
        trial.datetime_start = NOON + timedelta(seconds=begin)
        trial.datetime_complete = NOON + timedelta(seconds=end)
        trials.append(trial)
    blocks = timeline.blocks_of(trials)
    assert timeline.spans_of(blocks) == [(0.0, 10.0), (100.0, 110.0)]
    assert timeline.utilisation(blocks) == pytest.approx(25 / 40)
    axis, unit = timeline._time_axis(timeline.spans_of(blocks), 4)
    # 20 s in which trials ran; the pause from 10 to 100 takes no room
    seconds = (0.0, 5.0, 10.0, 50.0, 100.0, 105.0, 110.0)
    assert [axis.place(second) for second in seconds] == [0.0, 0.25, 0.5, 0.5, 0.5, 0.75, 1.0]
    assert unit == "seconds"


def test_bounds_are_named_only_where_the_winner_went_there() -> None:
    gene = Gene("m", 0.0, 1.0)
    assert [verdict.bound_of(gene, value) for value in (0.0, 0.5, 0.99)] == ["low", "", "high"]
    config = configured(confirm=0)
    study = optuna.create_study(direction="maximize")
    add(study, config, 0.5, dict(START), kind="start")
    add(study, config, 0.9, {**START, "momentum": 1.0, "lr0": 0.1})
    advice = page_of(config, study).words["next"]
    assert "At an end of their range: lr0 (highest, 0.1). A wider one" in advice
    assert "momentum (" not in advice  # 1 is where many things end


def test_repeats_are_not_proposed_while_they_are_to_come() -> None:
    study = searched([0.5, 0.9], configured())
    for confirm, proposed in (({"finalists": 1, "seeds": 2}, False), (0, True)):
        words = page_of(configured(confirm=confirm), study).words["next"]
        assert ("Find out whether it is real" in words) == proposed


def test_a_value_far_below_is_drawn_as_such_and_explained() -> None:
    config = configured(confirm=0)
    for values, far in (([0.50, 0.51, 0.52, 0.53, 0.1], 1), ([0.50, 0.51, 0.52, 0.53, 0.5], 0)):
        drawn = charts.progress(scene_for(config, searched(values, config)))
        assert drawn.count('class="m ok beyond"') == far * 2  # in the wide and the narrow plot
        assert ("worse than this axis shows" in drawn) == bool(far)


def test_the_timeline_explains_only_what_it_shows() -> None:
    config = configured(confirm=0)
    study = searched([0.5, 0.9], config)
    key = timeline.timeline_key(timeline.blocks_of(scene_for(config, study).trials))
    assert "complete" in key and "failed" not in key


def test_failures_that_differ_in_numbers_are_one() -> None:
    config = configured(confirm=0)
    study = searched([0.5, 0.6], config)
    for step in (3, 41, 5):
        add(study, config, None, reason=f"loss is nan at step {step}", seconds=2.5)
    page = Page(tables.failures_table(scene_for(config, study)))
    assert "3 loss is nan at step 3 2, 3, 4 7.5 s" in page.words[""]


def test_the_shown_metrics_are_means_over_the_repeats() -> None:
    config = configured(confirm={"finalists": 1, "seeds": 2})
    page = Page(tables.metrics_table(scene_for(config, confirmed([0.1, 0.3], config))))
    # F1 = fitness + 0.1: 0.6 at the start; (0.7 + 0.9) / 2 = 0.8 with the winner's values
    assert "F1 0.6000 0.8000 +0.2000" in page.words[""]


def test_classes_and_pictures_of_both_sides_stand_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = configured(confirm=0)
    image = pytest.importorskip("PIL.Image")
    for number, score in ((0, 0.25), (1, 0.5)):
        folder = tmp_path / "runs/evolve/toy/trials" / str(number)
        (folder / "pictures").mkdir(parents=True)
        classes = {"cat": {"AP": score, "objects": 12}, "dog": {"AP": 0.125, "objects": 3}}
        (folder / "result.json").write_text(json.dumps({"per_class": classes}))
        image.new("RGB", (1600, 900), (20, 90, 160)).save(folder / "pictures/found.png")
        image.new("RGB", (8, 8)).save(folder / "train_batch0.jpg")
    page = page_of(config, searched([0.5, 0.9], config))
    words = page.words["values"]
    assert "class objects AP: start recommended difference" in words
    assert "cat 12 0.2500 0.5000 +0.2500 dog 3 0.1250 0.1250 same Measured once." in words
    sources = [given["src"] for tag, given in page.elements if tag == "img"]
    assert len(sources) == 2
    start = "data:image/jpeg;base64,"
    assert all(source.startswith(start) for source in sources)
    content = base64.b64decode(sources[0].removeprefix(start))
    with image.open(BytesIO(content)) as found:
        assert found.size == (680, 383)  # 1600 x 900 on 680 columns


def test_the_metrics_of_classes_are_means_over_the_repeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = configured(confirm={"finalists": 1, "seeds": 2})
    scene = scene_for(config, confirmed([0.1, 0.3], config))
    assert scene.start is not None and scene.winner is not None
    for side, scores in ((scene.start, (0.25, 0.5)), (scene.winner, (0.5, 0.75))):
        for run, score in zip(scene.runs_of(side.number), scores, strict=True):
            scene.folder(run.number).mkdir(parents=True)
            text = json.dumps({"per_class": {"cat": {"AP": score}}})
            (scene.folder(run.number) / "result.json").write_text(text)
    page = Page(tables.class_table(scene))
    # (0.25 + 0.5) / 2 = 0.375; (0.5 + 0.75) / 2 = 0.625
    assert "cat 0.3750 0.6250 +0.2500 Means over 2 repeats each." in page.words[""]


def test_of_many_classes_those_that_changed_most_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = configured(confirm=0)
    scene = scene_for(config, searched([0.5, 0.9], config))
    for number in (0, 1):
        classes = {f"class{index}": index / 100 * number for index in range(30)}
        scene.folder(number).mkdir(parents=True)
        (scene.folder(number) / "result.json").write_text(json.dumps({"per_class": classes}))
    words = Page(tables.class_table(scene)).words[""]
    assert words.index("class29") < words.index("class10")
    assert "class9 " not in words
    assert "20 of 30 classes, those that changed most" in words


# ---- very many trials ------------------------------------------------------------------------


def test_ten_thousand_trials_are_thinned_out_and_said_so() -> None:
    config = configured(confirm=0)
    study = optuna.create_study(direction="maximize")
    values = [0.5 + 0.4 * ((n * 7919) % 10_000) / 10_000 for n in range(10_000)]
    genes = config.space.genes
    trials = [
        optuna.trial.create_trial(
            value=value,
            params={gene.name: gene.from_unit((0.37 * n + 0.21) % 1.0) for gene in genes},
            distributions=config.space.distributions(),
            user_attrs={"kind": "start" if n == 0 else "search"},
        )
        for n, value in enumerate(values)
    ]
    study.add_trials(trials)
    text = page_text(config, study, summarise(config, study))
    page = Page(text)
    shown = page.drawn("progress", "wide")
    assert 990 <= len(shown) <= 1000 and page.rows == len(shown)
    best = sorted(range(10_000), key=lambda number: -values[number])[:300]
    assert {str(number) for number in [0, *best]} <= {*shown}
    assert "of 10,000 trials are shown" in page.words["trials"]
    assert len(text) < 10_000_000


# ---- the command -----------------------------------------------------------------------------


def test_run_and_report_write_the_page_and_the_plots(
    write_study: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write_study()
    assert main(["run", "--generations", "3"]) == 0
    assert "written: runs/evolve/toy/report.html" in capsys.readouterr().out
    page = Path("runs/evolve/toy/report.html")
    page.unlink()
    assert main(["report", "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert files[0] == str(page) and page.is_file()
    assert all(Path(name).is_file() for name in files)
    assert {Path(name).name for name in files} >= {"trials.csv", "convergence.png", "parallel.png"}
    assert Page(page.read_text(encoding="utf-8")).rows == 3
    assert not list(page.parent.glob(".*.html.*"))


def test_a_run_names_only_the_files_that_it_wrote(
    write_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object) -> list[Path]:
        raise OSError("no space left")

    write_study()
    folder = Path("runs/evolve/toy")
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("of an earlier run")
    monkeypatch.setattr("evolve.page.write.write_report", fails)
    config = load_config("evolve.yaml", ["study.generations=1"])
    summary = run_study(config, Display(Console(file=StringIO())))
    assert summary.files == [folder / "best.yaml", Path("hyp/best.yaml")]
    assert summarise(config, load_study(config)).files == [
        folder / "best.yaml",
        folder / "report.html",
    ]


def test_the_importance_is_drawn_where_it_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = configured(confirm=0)
    study = important(optuna.create_study(direction="maximize"), config)
    files = [path.name for path in write_report(config, study, summarise(config, study))]
    assert "importance.png" in files
    page = Page((config.directory / "report.html").read_text(encoding="utf-8"))
    assert "matters most momentum" in page.words["verdict"]


@pytest.mark.parametrize("begun_before", [False, True])
def test_the_files_of_many_trials_are_made_in_a_copy_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun_before: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    config = configured(confirm=0)
    study = important(optuna.create_study(direction="maximize"), config)
    summary, folder = summarise(config, study), config.directory
    plain = write_report(config, study, summary)
    names = ("trials.csv", "parameters.png")
    contents = [(folder / name).read_bytes() for name in names]
    for name in names:
        (folder / name).unlink()
    monkeypatch.setattr("evolve.page.write.MANY", 0)
    monkeypatch.setattr("evolve.beside.threading.active_count", lambda: 1)
    monkeypatch.setattr("evolve.page.write.Begun._work", not_here(os.getpid(), Begun._work))
    begun = Begun(config, study) if begun_before else None
    assert write_report(config, study, summary, begun) == plain
    assert [(folder / name).read_bytes() for name in names] == contents


def not_here(here: int, work: Callable[[Begun], None]) -> Callable[[Begun], None]:
    """Return work that fails in this process, and is done in its copy."""

    def elsewhere(begun: Begun) -> None:
        assert os.getpid() != here
        work(begun)

    return elsewhere
