"""Anchors from a data set."""

import json
from pathlib import Path

import numpy as np
import pytest

from detector.anchors import (
    box_sizes,
    fit,
    kmeans,
    main,
    set_anchors,
    shape_ious,
    spread_over_heads,
)
from detector.data.sample import Sample
from detector.errors import ConfigError, DataError
from detector.models import build_model


def sample(size: tuple[int, int], *boxes: tuple[float, ...], crowd: int = -1) -> Sample:
    count = len(boxes)
    flags = np.zeros(count, dtype=bool)
    crowds = np.arange(count) == crowd
    table = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return Sample(Path("a.png"), size, table, np.zeros(count, dtype=np.int64), flags, crowds)


def clusters(seed: int = 0) -> np.ndarray:
    """Box sizes around 10 x 20, 60 x 40 and 200 x 150."""
    rng = np.random.default_rng(seed)
    centres = np.array([[10, 20], [60, 40], [200, 150]], dtype=float)
    return np.concatenate([centre * rng.uniform(0.9, 1.1, (50, 2)) for centre in centres])


def test_sizes_are_those_of_the_letterboxed_image() -> None:
    # 100 x 200 px (height x width) into 320: times 1.6; a crowd is not trained on
    found = box_sizes([sample((100, 200), (0, 0, 50, 20), (0, 0, 9, 9), crowd=1)], 320)
    assert found.tolist() == [[80, 32]]
    assert box_sizes([], 320).shape == (0, 2)


def test_shape_iou_gives_the_hand_worked_numbers() -> None:
    sizes, anchors = np.array([[10.0, 20.0]]), np.array([[20.0, 10.0], [10.0, 20.0]])
    assert shape_ious(sizes, anchors) == pytest.approx(np.array([[100 / 300, 1.0]]))


def test_fit_is_recall_and_mean_best_iou() -> None:
    sizes = np.array([[10.0, 10.0], [10.0, 20.0], [40.0, 10.0]])
    # best IoUs with 10 x 10: 1, 0.5, 0.25
    assert fit(sizes, np.array([[10.0, 10.0]]), 0.3) == pytest.approx((2 / 3, 1.75 / 3))
    assert fit(sizes, np.array([[10.0, 10.0]]), 0.5) == pytest.approx((1 / 3, 1.75 / 3))


@pytest.mark.parametrize("metric", ["iou", "euclidean"])
def test_kmeans_finds_the_clusters_smallest_first(metric: str) -> None:
    found = kmeans(clusters(), 3, metric)
    assert found == pytest.approx(np.array([[10, 20], [60, 40], [200, 150]]), rel=0.05)
    assert np.array_equal(found, kmeans(clusters(), 3, metric))  # a function of the seed


def test_iou_spends_anchors_on_small_boxes_and_the_euclidean_distance_on_large_ones() -> None:
    large = np.random.default_rng(0).uniform(200, 400, (60, 2))
    sizes = np.concatenate(([[4.0, 4.0]] * 20, [[8.0, 8.0]] * 20, large))
    small = {metric: kmeans(sizes, 3, metric)[:2] for metric in ("iou", "euclidean")}
    assert small["iou"] == pytest.approx(np.array([[4, 4], [8, 8]]))
    assert small["euclidean"][0] == pytest.approx([6, 6])


def test_more_anchors_fit_better() -> None:
    sizes = np.random.default_rng(1).uniform(5, 100, (300, 2))
    means = [fit(sizes, kmeans(sizes, k), 0.3)[1] for k in (1, 3, 9)]
    assert means == sorted(means) and means[2] > 0.7


def test_fewer_boxes_than_anchors_are_named() -> None:
    with pytest.raises(DataError, match="2 boxes of different size are too few for 3 anchors"):
        kmeans(np.array([[1.0, 2], [1, 2], [3, 4]]), 3)
    with pytest.raises(DataError, match="0 boxes"):
        kmeans(np.zeros((0, 2)), 1)


def test_the_smallest_anchors_go_to_the_finest_map() -> None:
    network = build_model("yolov3-tiny:width=0.0625", 2)  # strides 32 and 16
    anchors = np.array([[side, side] for side in (60, 10, 20, 50, 30, 40)], dtype=float)
    coarse, fine = spread_over_heads(anchors, network)
    assert fine == ((10, 10), (20, 20), (30, 30))
    assert coarse == ((40, 40), (50, 50), (60, 60))


def test_anchors_are_set_as_asked() -> None:
    network = build_model("yolov3-tiny:width=0.0625", 2)
    before = network.anchors
    set_anchors(network, "", [], 320)
    assert network.anchors == before
    set_anchors(network, "1,2, 3,4, 5,6, 7,8, 9,10, 11,12", [], 320)
    assert network.anchors == (((7, 8), (9, 10), (11, 12)), ((1, 2), (3, 4), (5, 6)))
    boxes = [(0, 0, 10 + 3 * index, 20 + index) for index in range(12)]
    set_anchors(network, "auto", [sample((320, 320), *boxes)], 320)
    assert all(
        10 <= width <= 43 and 20 <= height <= 31
        for head in network.anchors
        for width, height in head
    )


@pytest.mark.parametrize(
    ("model", "wanted", "message"),
    [
        ("yolox-pico", "auto", "anchors=auto: yolox-pico has no anchors"),
        ("yolov3-tiny:width=0.0625", "1,2,3", "needs auto, or 6 pairs w,h,..."),
        ("yolov3-tiny:width=0.0625", "many", "anchors=many: "),
        ("yolov3-tiny:width=0.0625", ",".join(["0"] * 12), "of pixels above 0"),
    ],
)
def test_wrong_anchors_are_one_line(model: str, wanted: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        set_anchors(build_model(model, 2), wanted, [], 320)
    assert message in str(caught.value)


def test_the_command_prints_anchors_and_how_well_they_fit(
    tiny_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", str(tiny_set), "--imgsz", "64", "--k", "3"]
    assert main(options) == 0
    first, ours, published = capsys.readouterr().out.strip().splitlines()
    assert len(first.split(", ")) == 3
    assert ours.startswith("k-means") and published.startswith("yolov3-tiny")
    assert main([*options, "--json", "--metric", "euclidean"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["anchors"]) == 3
    # objects of 12 to 21 px: the published anchors begin at 23 x 27
    assert answer["fit"]["k-means"]["mean_best_iou"] > answer["fit"]["yolov3-tiny"]["mean_best_iou"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--k", "500"], "are too few for 500 anchors"),
        (["--k", "-1"], "k=-1 must be at least 1"),
        (["--imgsz", "0"], "--imgsz 0 must be at least 1"),
        (["--model", "yolox-nano"], "--model yolox-nano: has no anchors"),
    ],
)
def test_a_wrong_option_is_one_line(
    tiny_set: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["--data", str(tiny_set), *options]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
