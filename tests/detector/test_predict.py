"""Prediction with a detector whose answers are written down, on pictures drawn here."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from detector.backends import Backend
from detector.checkpoint import model_content, save_checkpoint
from detector.errors import ConfigError, DataError, MissingPackageError
from detector.finding import Settings
from detector.image_result import Result
from detector.models import build_model
from detector.predict import main, predict, predict_each
from detector.sources import find_sources
from detector.tiling import Tiles

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
        ("empty", "the folder has no images or videos"),
        ("*.bmp", "no image or video matches the pattern"),
        ("bad.txt", r"bad.txt:2: gone.jpg: no such file or folder"),
        ("none.txt", "the list names no images"),
    ],
)
def test_source_without_images_is_refused(folder: Path, name: str, text: str) -> None:
    (folder / "empty").mkdir()
    (folder / "bad.txt").write_text("a.png\ngone.jpg\n")
    (folder / "none.txt").write_text("\n")
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


# ---- videos


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Five frames of 128 x 64 pixels, 10 a second, of noise that a network takes for objects."""
    path = tmp_path / "clip.avi"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (128, 64))
    rng = np.random.default_rng(0)
    for _ in range(5):
        video.write(rng.integers(0, 255, (64, 128, 3)).astype(np.uint8))
    video.release()
    return path


@pytest.mark.parametrize("batch", [1, 2])
def test_a_video_is_predicted_like_its_frames_as_images(
    clip: Path, tmp_path: Path, batch: int
) -> None:
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "x.pt", model_content(build_model("yolox-pico", 3), NAMES, 64))
    capture, files = cv2.VideoCapture(str(clip)), []
    while (grabbed := capture.read())[0]:
        files.append(tmp_path / f"{len(files)}.png")
        cv2.imwrite(str(files[-1]), grabbed[1])
    settings = Settings(conf=0.0, max_det=20, batch=batch)
    of_video = predict(tmp_path / "x.pt", clip, "cpu", settings)
    of_images = predict(tmp_path / "x.pt", list(files), "cpu", settings)
    assert len(of_video) == len(of_images) == 5
    for frame, image in zip(of_video, of_images, strict=True):
        assert len(frame.scores) == 20
        for name in ("boxes", "scores", "labels"):
            assert np.array_equal(getattr(frame, name), getattr(image, name))


def test_command_writes_a_video_rows_of_each_frame_csv_coco_and_crops(
    told: None, clip: Path
) -> None:
    argv = ["--save-txt", "--save-csv", "--save-coco", "--save-crops", "--save-json"]
    assert run("--source", clip, "--stride", "2", "--out", "out", *argv) == 0
    video = cv2.VideoCapture("out/clip.mp4")
    assert (video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)) == (3, 5)
    rows = sorted(path.name for path in Path("out/labels").iterdir())
    assert rows == ["clip_000000.txt", "clip_000002.txt", "clip_000004.txt"]
    table = Path("out/predictions.csv").read_text().splitlines()
    assert table[0] == "image,frame,label,name,score,x1,y1,x2,y2"
    assert table[1] == f"{clip},0,0,cat,0.9,16.0,16.0,48.0,48.0"
    assert len(table) == 1 + 3 * 3
    coco = json.loads(Path("out/coco.json").read_text())
    assert coco[0] == {
        "image_id": "clip_000000", "category_id": 0, "bbox": [16, 16, 32, 32],
        "score": pytest.approx(0.9),
    }  # fmt: skip
    assert len(json.loads(Path("out/predictions.json").read_text())) == 3
    crop = cv2.imread("out/crops/cat/clip_000000-1.png")
    assert crop.shape == (32, 32, 3)


def test_json_files_without_results_are_json(told: None, folder: Path) -> None:
    argv = ["--conf", "0.95", "--out", "out", "--no-images", "--save-coco", "--save-json"]
    assert run("--source", folder / "a.png", *argv) == 0
    assert json.loads(Path("out/coco.json").read_text()) == []
    assert json.loads(Path("out/predictions.json").read_text())[0]["detections"] == []


def test_frames_come_one_by_one_with_their_picture(backend: Backend, clip: Path) -> None:
    each = predict_each(backend, clip)
    first = next(each)
    assert isinstance(first, Result) and first.title == "clip.avi frame 0"
    assert first.plot().shape == (64, 128, 3)
    each.close()  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="frame 0: its picture was not kept"):
        predict(backend, clip)[0].plot()


def test_batches_change_neither_order_nor_results(backend: Backend, folder: Path) -> None:
    (folder / "b.png").write_bytes(b"junk")
    source = [folder / "a.png", folder / "b.png", folder / "B.JPG", folder / "below" / "a.png"]
    outcomes = [
        list(predict_each(backend, source, settings=Settings(conf=0.25, batch=batch)))
        for batch in (1, 2, 16)
    ]
    for found in outcomes:
        assert [one.path for one in found] == source
        assert [isinstance(one, Result) for one in found] == [True, False, True, True]


# ---- tiles


def test_tiles_find_what_is_too_small_for_the_whole_picture() -> None:
    """A detector that sees red spots of 6 pixels and more in its 64 x 64 input."""

    def run(images: torch.Tensor) -> torch.Tensor:
        decoded = torch.zeros(len(images), 9, 6)
        for b, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
            red = ((image[..., 2] > 180) & (image[..., 0] < 60)).astype(np.uint8)
            _, _, stats, _ = cv2.connectedComponentsWithStats(red)
            spots = [row for row in stats[1:] if min(row[2], row[3]) >= 6]
            for n, (x, y, w, h, _) in enumerate(spots):
                decoded[b, n] = torch.tensor([x + w / 2, y + h / 2, w, h, 0.9, 1.0])
        return decoded

    backend = Backend(Path("red.pt"), ("red",), 64, "bgr-255", torch.device("cpu"), run)
    image = np.full((256, 256, 3), 114, np.uint8)
    spots = [(20, 20, 10), (59, 100, 10), (200, 61, 10), (132, 152, 60)]  # two on edges of tiles
    for x, y, side in spots:
        image[y : y + side, x : x + side] = (0, 0, 255)
    (plain,) = predict(backend, image)
    assert plain.boxes.tolist() == [[132, 152, 192, 212]]
    (tiled,) = predict(backend, image, tiles=Tiles(64, 0.25))
    boxes = sorted(map(tuple, np.round(tiled.boxes).tolist()))
    assert boxes == sorted((x, y, x + side, y + side) for x, y, side in spots)


# ---- forms


def test_result_in_every_form(backend: Backend, folder: Path) -> None:
    (result,) = predict(backend, folder / "a.png")
    assert result.to_coco(7)[0] == {
        "image_id": 7, "category_id": 0, "bbox": [25, 25, 50, 50], "score": pytest.approx(0.9)
    }  # fmt: skip
    assert result.to_coco()[0]["image_id"] == "a"
    assert result.normalized_xyxy[0].tolist() == [0.125, 0.25, 0.375, 0.75]
    assert [crop.shape[:2] for crop in result.crops()] == [(50, 50), (48, 50), (50, 50)]


def test_supervision_gets_its_own_kind(
    backend: Backend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (result,) = predict(backend, folder / "a.png")
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingPackageError, match="pip install supervision"):
        result.to_supervision()
    monkeypatch.setitem(
        sys.modules, "supervision", SimpleNamespace(Detections=lambda **parts: parts)
    )
    parts = result.to_supervision()
    assert parts["xyxy"].shape == (3, 4) and parts["class_id"].tolist() == [0, 1, 2]
    assert parts["data"]["class_name"].tolist() == ["cat", "dog", "owl"]


def test_a_window_is_never_opened_unless_asked_and_its_lack_is_one_line(
    told: None, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def imshow(*args: object) -> None:
        raise cv2.error("The function is not implemented")

    monkeypatch.setattr(cv2, "imshow", imshow)
    assert run("--source", folder, "--no-images") == 0
    assert run("--source", folder, "--no-images", "--show") == 2
    assert "pip install opencv-python" in capsys.readouterr().err.splitlines()[-1]
