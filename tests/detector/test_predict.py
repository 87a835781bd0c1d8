"""Prediction with a detector whose answers are written down, on pictures drawn here."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detector.backends import Backend
from detector.checkpoint import model_content, save_checkpoint
from detector.errors import ConfigError, DataError
from detector.finding import Settings
from detector.models import build_model
from detector.predict import Result, find_sources, main, predict

NAMES = ("cat", "dog", "owl")
# cx, cy, w, h in pixels of a 64 x 64 input, objectness, class probabilities
ROWS = (
    (16, 16, 16, 16, 0.9, 1.0, 0.0, 0.0),  # cat 0.9
    (16, 16, 16, 15, 0.8, 0.0, 1.0, 0.0),  # dog 0.8 on the cat
    (48, 16, 16, 16, 0.7, 0.0, 0.0, 1.0),  # owl 0.7
    (48, 16, 16, 15, 0.6, 0.0, 0.0, 1.0),  # owl 0.6 on the owl
    (32, 28, 8, 8, 0.2, 1.0, 0.0, 0.0),  # cat 0.2
)


@pytest.fixture
def backend() -> Backend:
    decoded = torch.tensor(ROWS)[None]
    run = lambda images: decoded.repeat(len(images), 1, 1)  # noqa: E731
    return Backend(Path("told.pt"), NAMES, 64, "bgr-255", torch.device("cpu"), run, any_size=True)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, backend: Backend) -> None:
    monkeypatch.setattr("detector.predict.load_backend", lambda path, device, runtime: backend)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a.png, B.JPG (upper case), notes.txt and a folder below."""
    root = tmp_path / "photos"
    (root / "below").mkdir(parents=True)
    image = np.random.default_rng(0).integers(0, 255, (100, 200, 3)).astype(np.uint8)
    for name in ("a.png", "below/a.png"):
        cv2.imwrite(str(root / name), image)
    cv2.imencode(".jpg", image)[1].tofile(root / "B.JPG")
    (root / "notes.txt").write_text("no image")
    return root


def run(*argv: str | Path) -> int:
    return main(["--weights", "told.pt", "--device", "cpu", *map(str, argv)])


# ---- results


def test_boxes_are_pixels_of_the_image(backend: Backend, folder: Path) -> None:
    (result,) = predict(backend, folder / "a.png")
    # 200 x 100 in 64 x 32 pixels: the factor is 3.125. The second owl is suppressed.
    assert result.size == (100, 200)
    assert result.boxes.tolist() == [
        [25, 25, 75, 75],
        [25, 26.5625, 75, 73.4375],
        [125, 25, 175, 75],
    ]
    assert result.scores.tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert result.labels.tolist() == [0, 1, 2]
    assert result.normalized_cxcywh[0].tolist() == [0.25, 0.5, 0.25, 0.5]
    assert result.summary() == "1 cat, 1 dog, 1 owl"


def test_json_holds_names_scores_and_boxes(backend: Backend, folder: Path) -> None:
    (result,) = predict(backend, folder / "a.png", settings=Settings(conf=0.25, max_det=1))
    content = json.loads(result.to_json())
    assert (content["height"], content["width"]) == (100, 200)
    (row,) = content["detections"]
    assert (row["label"], row["name"], row["box"]) == (0, "cat", [25, 25, 75, 75])
    assert row["score"] == pytest.approx(0.9)


def test_plot_draws_on_the_file_or_the_picture(backend: Backend, folder: Path) -> None:
    picture = cv2.imread(str(folder / "a.png"))
    from_file, in_memory = predict(backend, [folder / "a.png", picture])
    assert (from_file.path, in_memory.path) == (folder / "a.png", None)
    assert from_file.plot().shape == picture.shape
    assert (from_file.plot() != picture).any()
    assert np.array_equal(from_file.plot(), in_memory.plot())


def test_confidence_count_and_overlap_are_options(backend: Backend, folder: Path) -> None:
    def labels(settings: Settings) -> list[int]:
        return predict(backend, folder / "a.png", settings=settings)[0].labels.tolist()

    assert labels(Settings(conf=0.75)) == [0, 1]
    assert labels(Settings(conf=0.1)) == [0, 1, 2, 0]
    assert labels(Settings(conf=0.25, max_det=1)) == [0]
    assert labels(Settings(conf=0.25, iou=1.0)) == [0, 1, 2, 2]


def test_classes_are_chosen_before_the_count_is_cut(backend: Backend, folder: Path) -> None:
    (result,) = predict(
        backend, folder / "a.png", settings=Settings(conf=0.25, max_det=1), classes=["owl", "dog"]
    )
    assert result.labels.tolist() == [1]


def test_agnostic_nms_keeps_the_best_of_all_classes(backend: Backend, folder: Path) -> None:
    (result,) = predict(backend, folder / "a.png", agnostic_nms=True)
    assert result.labels.tolist() == [0, 2]
    (result,) = predict(backend, folder / "a.png", agnostic_nms=True, classes=["dog"])
    assert result.labels.tolist() == [1]


def test_unknown_class_is_refused(backend: Backend, folder: Path) -> None:
    with pytest.raises(ConfigError, match="knows no oul; did you mean owl"):
        predict(backend, folder, classes=["oul"])


def test_nothing_found_is_a_result(backend: Backend, folder: Path) -> None:
    (result,) = predict(backend, folder / "a.png", settings=Settings(conf=0.95))
    assert result.boxes.shape == (0, 4)
    assert result.summary() == "nothing"
    assert np.array_equal(result.plot(), cv2.imread(str(folder / "a.png")))


def test_a_real_checkpoint_brings_its_names_and_size(folder: Path, tmp_path: Path) -> None:
    model = build_model("yolox-pico", 3)
    save_checkpoint(tmp_path / "x.pt", model_content(model, NAMES, 64))
    results = predict(tmp_path / "x.pt", folder, "cpu", Settings(conf=0.0, max_det=7))
    assert [len(result.scores) for result in results] == [7, 7]
    assert isinstance(results[0], Result) and results[0].names == NAMES


def test_unreadable_file_is_logged_and_left_out(
    backend: Backend, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "c.png").write_bytes(b"")
    assert len(predict(backend, folder)) == 2
    assert "c.png" in caplog.text
    with pytest.raises(DataError, match="none of the 1 images could be read"):
        predict(backend, folder / "c.png")


@pytest.mark.parametrize(
    "picture",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)],
)
def test_what_is_no_picture_is_refused(backend: Backend, picture: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"\(H, W, 3\) uint8 BGR"):
        predict(backend, picture)


# ---- sources


def test_folder_gives_its_images_in_any_case_sorted(folder: Path) -> None:
    assert find_sources(folder) == [folder / "B.JPG", folder / "a.png"]


def test_pattern_and_list_and_name_with_brackets(folder: Path) -> None:
    assert find_sources(str(folder / "**" / "a.*")) == [
        folder / "a.png",
        folder / "below" / "a.png",
    ]
    odd = (folder / "a.png").rename(folder / "a[1].png")
    assert find_sources([str(odd), folder / "B.JPG"]) == [odd, folder / "B.JPG"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("gone.png", "no such file or folder"),
        ("empty", "the folder has no images"),
        ("*.bmp", "no image matches the pattern"),
        ("clip.MP4", "video is not supported yet"),
    ],
)
def test_source_without_images_is_refused(folder: Path, name: str, text: str) -> None:
    (folder / "empty").mkdir()
    (folder / "clip.MP4").write_bytes(b"0")
    with pytest.raises(DataError, match=text):
        find_sources(folder / name)


def test_empty_list_is_refused() -> None:
    with pytest.raises(DataError, match="no images given"):
        find_sources([])


# ---- command


def test_command_draws_into_a_new_folder(
    told: None, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--source", folder) == 0
    out = Path("runs/predict/told")
    assert sorted(path.name for path in out.iterdir()) == ["B.JPG", "a.png"]
    assert cv2.imread(str(out / "a.png")).shape == (100, 200, 3)
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert lines[0].startswith("B.JPG: 1 cat, 1 dog, 1 owl ") and lines[0].endswith(" ms")
    assert lines[-1].startswith("2 images, 6 objects, 0 failed, ")


def test_command_never_touches_an_existing_folder(told: None, folder: Path) -> None:
    Path("out").mkdir()
    Path("out/precious.txt").write_text("mine")
    assert run("--source", folder / "a.png", "--out", "out") == 0
    assert [path.name for path in Path("out").iterdir()] == ["precious.txt"]
    assert [path.name for path in Path("out-2").iterdir()] == ["a.png"]


def test_command_writes_yolo_rows_and_json(told: None, folder: Path) -> None:
    argv = ["--source", folder / "a.png", "--out", "out", "--no-images"]
    assert run(*argv, "--save-txt", "--save-json") == 0
    rows = Path("out/labels/a.txt").read_text().splitlines()
    assert rows[0] == "0 0.250000 0.500000 0.250000 0.500000 0.9"
    assert len(rows) == 3
    (content,) = json.loads(Path("out/predictions.json").read_text())
    assert [row["name"] for row in content["detections"]] == ["cat", "dog", "owl"]
    assert sorted(path.name for path in Path("out").iterdir()) == ["labels", "predictions.json"]


def test_equal_names_of_two_folders_are_both_kept(told: None, folder: Path) -> None:
    (folder / "a.jpg").write_bytes((folder / "B.JPG").read_bytes())
    source = [folder / "a.png", folder / "below" / "a.png", folder / "a.jpg"]
    assert run("--source", *source, "--out", "out", "--save-txt") == 0
    assert sorted(path.name for path in Path("out").glob("a*")) == ["a-2.png", "a-3.jpg", "a.png"]
    assert len(list(Path("out/labels").iterdir())) == 3


def test_command_prints_one_json_object_and_writes_nothing(
    told: None, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--source", folder, "--no-images", "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert len(content["images"]) == 2
    assert content["directory"] is None
    assert not Path("runs").exists()


def test_some_unreadable_give_exit_code_1_and_the_rest_is_done(
    told: None, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "c.png").write_bytes(b"junk")
    assert run("--source", folder, "--out", "out", "--json") == 1
    assert len(list(Path("out").iterdir())) == 2
    captured = capsys.readouterr()
    assert captured.err.count("c.png") == 1
    assert json.loads(captured.out)["failed"][0]["path"] == str(folder / "c.png")


@pytest.mark.parametrize("name", ["junk.png", "gone.png", "clip.avi", "nothing"])
def test_nothing_readable_gives_exit_code_2(
    told: None, folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "junk.png").write_bytes(b"junk")
    (folder / "clip.avi").write_bytes(b"junk")
    (folder / "nothing").mkdir()
    assert run("--source", folder / name) == 2
    assert name in capsys.readouterr().err
