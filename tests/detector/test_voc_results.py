"""VOC result files: what stands in them, and that nothing is lost on the way."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detector.data.sample import Sample
from detector.errors import DataError
from detector.matching import Prediction, Truth
from detector.voc_metrics import evaluate_voc
from detector.voc_results import read_voc_results, write_voc_results

NAMES = ("cat", "dog")


def sample(name: str) -> Sample:
    none = np.zeros(0, bool)
    boxes = np.array([[0, 0, 10, 10]], np.float32)
    return Sample(Path(name), (100, 200), boxes, np.array([0]), none, none)


def found(score: float, *box: float, label: int = 0) -> Prediction:
    return Prediction(np.array([box], np.float32), np.array([score]), np.array([label]))


def test_rows_count_pixels_from_one_and_every_class_has_a_file(tmp_path: Path) -> None:
    paths = write_voc_results(tmp_path, [sample("a.jpg")], [found(0.75, 0, 2, 10, 20.5)], NAMES)
    assert [path.name for path in paths] == [
        "comp4_det_test_cat.txt", "comp4_det_test_dog.txt",
    ]  # fmt: skip
    assert paths[0].read_text() == "a 0.75 1 3 10 20.5\n"
    assert paths[1].read_text() == ""


def test_scores_that_differ_in_the_sixth_digit_keep_their_ranks(tmp_path: Path) -> None:
    # B-56: with three decimals both are 0.900 and the order of the file decides.
    samples = [sample("a.jpg"), sample("b.jpg")]
    truths = [Truth(np.zeros((0, 4)), np.zeros(0, int)), Truth(samples[1].boxes, np.array([0]))]
    guesses = [found(0.900001, 50, 50, 60, 60), found(0.900002, 0, 0, 10, 10)]
    write_voc_results(tmp_path, samples, guesses, NAMES)
    back = read_voc_results(tmp_path, samples, NAMES)
    assert evaluate_voc(truths, back, 2).mean("2012")["mAP50"] == 1.0


@pytest.mark.parametrize("name", ["BloodImage_00007.jpg", "2007_000027.jpg", "a.b.png"])
def test_the_whole_name_is_the_image(name: str, tmp_path: Path) -> None:
    # B-57: the second character of a plain name was taken for its id
    samples = [sample("other.jpg"), sample(name)]
    nothing = Prediction(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    write_voc_results(tmp_path, samples, [nothing, found(0.5, 1, 2, 3, 4)], NAMES)
    first, second = read_voc_results(tmp_path, samples, NAMES)
    assert len(first.scores) == 0
    assert second.boxes.tolist() == [[1, 2, 3, 4]]


def test_what_cannot_be_told_apart_is_refused(tmp_path: Path) -> None:
    guess = found(0.5, 1, 2, 3, 4)
    with pytest.raises(DataError, match=r"two/a\.jpg: VOC results would mix it with one/a\.jpg"):
        write_voc_results(tmp_path, [sample("one/a.jpg"), sample("two/a.jpg")], [guess] * 2, NAMES)
    with pytest.raises(DataError, match="split at spaces"):
        write_voc_results(tmp_path, [sample("a b.jpg")], [guess], NAMES)
    with pytest.raises(DataError, match="'a/b' cannot be part of a file name"):
        write_voc_results(tmp_path, [sample("a.jpg")], [guess], ("a/b",))


@pytest.mark.parametrize(
    ("row", "text"),
    [("a 0.5 1 2 3", "a row is"), ("a x 1 2 3 4", "a row is"), ("z 0.5 1 2 3 4", "z is no image")],
)
def test_bad_rows_are_named_with_their_line(row: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "comp4_det_test_dog.txt").write_text(f"a 0.5 1 2 3 4\n{row}\n")
    with pytest.raises(DataError, match=rf"comp4_det_test_dog\.txt:2: {text}"):
        read_voc_results(tmp_path, [sample("a.jpg")], NAMES)
    with pytest.raises(DataError, match="holds no comp4_det_test_fox"):
        read_voc_results(tmp_path, [replace(sample("a.jpg"))], ("fox",))
