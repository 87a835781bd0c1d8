"""Evaluation with a detector that really looks: it finds red squares and cyan discs by colour."""

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detector.backends import Backend
from detector.boxes import Detections
from detector.checkpoint import model_content, save_checkpoint
from detector.config import Hyp
from detector.data.cache import ImageCache
from detector.data.description import load_data, read_split
from detector.data.sample import Sample
from detector.errors import ConfigError, DataError
from detector.evaluate import evaluate, evaluate_family, main
from detector.families import build_family
from detector.finding import Originals, Settings, batches_of, find_objects, in_image_pixels
from detector.models import build_model
from detector.scorecard import Measures, truth_of, worst

COLOURS = {"square": (40, 40, 230), "disc": (230, 200, 40)}  # BGR
CPU = torch.device("cpu")


def look(images: torch.Tensor, order: tuple[str, ...]) -> torch.Tensor:
    """Decoded predictions (B, 8, 5 + C) from colours in images (B, 3, H, W); no equal scores."""
    decoded = torch.zeros(len(images), 8, 5 + len(order))
    for b, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        rows = []
        for label, name in enumerate(order):
            near = np.abs(image - np.array(COLOURS[name])).max(axis=2) < 60
            _, _, stats, _ = cv2.connectedComponentsWithStats(near.astype(np.uint8))
            for x, y, w, h, area in stats[1:]:
                if area > 8:
                    sure = 0.9 - (x + y / 100) / 1000 - b / 1e6
                    rows.append([x + w / 2, y + h / 2, w, h, sure, *np.eye(len(order))[label]])
        if rows:
            decoded[b, : len(rows)] = torch.tensor(np.array(rows))
    return decoded


def colour_backend(order: tuple[str, ...] = ("square", "disc")) -> Backend:
    run = lambda images: look(images, order)  # noqa: E731
    return Backend(Path("colour.pt"), order, 96, "bgr-255", CPU, run, any_size=True)


@pytest.fixture
def wide_set(tmp_path: Path) -> Path:
    """Five pictures of 80 x 120 to 84 x 120 pixels, the last one empty: the yaml of a data set."""
    root = tmp_path / "wide"
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(5):
        image = rng.integers(90, 130, (80 + index, 120, 3)).astype(np.uint8)
        rows = []
        for n in range(0 if index == 4 else 3):
            x, y, w, h = 4 + 38 * n, int(rng.integers(2, 30)), 30, int(rng.integers(24, 48))
            label = (index + n) % 2
            image[y : y + h, x : x + w] = list(COLOURS.values())[label]
            height, width = image.shape[:2]
            rows.append(
                f"{label} {(x + w / 2) / width} {(y + h / 2) / height} {w / width} {h / height}\n"
            )
        cv2.imwrite(str(root / "images" / f"{index}.png"), image)
        (root / "labels" / f"{index}.txt").write_text("".join(rows))
    path = root / "data.yaml"
    path.write_text(f"path: {root}\ntrain: images\nval: images\nnames: [square, disc]\n")
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An untrained network that is sure of itself, so that some of its boxes hit."""
    torch.manual_seed(0)
    model = build_model("yolox-pico", 2)
    for name, parameter in model.named_parameters():
        if name.startswith(("head.obj_preds", "head.cls_preds")) and name.endswith("bias"):
            torch.nn.init.constant_(parameter, 0.0)
    save_checkpoint(tmp_path / "sure.pt", model_content(model, ("square", "disc"), 64))
    return tmp_path / "sure.pt"


@pytest.fixture
def looking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detector.evaluate.load_backend", lambda path, device: colour_backend())


# ---- geometry


def test_letterbox_is_undone_by_hand() -> None:
    boxes = torch.tensor(
        [[0.0, 0.0, 64.0, 32.0], [16.0, 8.0, 32.0, 16.0], [-9.0, -9.0, 99.0, 99.0]]
    )
    found = Detections(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 0]))
    # 100 x 200 (height x width) fits 64 x 64 as 32 x 64: 1 input pixel = 3.125 image pixels.
    result = in_image_pixels(found, (100, 200), 64)
    assert result.boxes.tolist() == [[0, 0, 200, 100], [50, 25, 100, 50], [0, 0, 200, 100]]
    assert result.labels.tolist() == [0, 1, 0]


def test_rounded_side_has_its_own_scale() -> None:
    # 1371 x 2048 in 320: the height 214.22 is drawn as 214 pixels, which are all 1371 rows.
    whole = Detections(torch.tensor([[0.0, 0, 320, 214]]), torch.ones(1), torch.zeros(1).long())
    assert in_image_pixels(whole, (1371, 2048), 320).boxes.tolist() == [[0, 0, 2048, 1371]]


@pytest.mark.parametrize("imgsz", [64, 96, 160])
@pytest.mark.parametrize("batch", [1, 2, 16])
def test_a_detector_that_sees_everything_scores_one(
    wide_set: Path, looking: None, imgsz: int, batch: int
) -> None:
    report = evaluate("any.pt", wide_set, settings=Settings(imgsz, batch))
    assert report["mAP50"] == report["F1"] == 1.0
    assert report["mAP75"] > 0.9  # edges are blurred by a pixel of the input
    assert (report["images"], report["targets"]) == (5, 12)
    assert report["classes"]["square"]["images"] == 4
    assert report["confusion"] == [[6, 0, 0], [0, 6, 0], [0, 0, 0]]


def test_no_image_finds_no_objects() -> None:
    assert find_objects(colour_backend(), [], Originals([]), Settings(64), CPU) == []


def test_crowd_and_difficult_targets_are_ignored() -> None:
    boxes = np.array([[0, 0, 5, 5], [5, 5, 9, 9], [2, 2, 4, 4]], np.float32)
    sample = Sample(
        Path("a.png"), (10, 10), boxes, np.array([0, 1, 1]),
        difficult=np.array([True, False, False]), crowd=np.array([False, True, False]),
    )  # fmt: skip
    truth = truth_of(sample)
    assert truth.difficult is not None and truth.difficult.tolist() == [True, False, False]
    assert truth.crowd is not None and truth.crowd.tolist() == [False, True, False]


def test_missing_image_is_named(tmp_path: Path) -> None:
    none = np.zeros(0, bool)
    gone = Sample(tmp_path / "gone.png", (9, 9), np.zeros((0, 4)), none.astype(int), none, none)
    with pytest.raises(DataError, match=r"gone\.png"):
        find_objects(colour_backend(), [gone], Originals([gone]), Settings(64), CPU)


# ---- one way, one number


def test_training_and_stand_alone_give_the_same_numbers(tiny_set: Path, checkpoint: Path) -> None:
    samples = read_split(load_data(tiny_set), "val")
    network = build_model("yolox-pico", 2)
    network.load_state_dict(torch.load(checkpoint, weights_only=True)["weights"])
    network.train()
    family = build_family(network, Hyp())
    in_training = evaluate_family(family, samples, ImageCache(samples, 64), Settings(64, 3), 2, CPU)
    assert network.training
    report = evaluate(checkpoint, tiny_set)
    assert 0 < report["F1"] < 1
    assert {name: report[name] for name in in_training.summary()} == pytest.approx(
        in_training.summary(), abs=1e-6
    )


def test_labels_follow_the_names_whatever_their_order(
    wide_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = colour_backend(("disc", "square"))
    monkeypatch.setattr("detector.evaluate.load_backend", lambda path, device: backend)
    assert evaluate("any.pt", wide_set)["mAP50"] == 1.0


def test_other_classes_are_refused(wide_set: Path, looking: None) -> None:
    text = wide_set.read_text().replace("disc", "circle")
    wide_set.write_text(text)
    with pytest.raises(ConfigError, match=r"finds square, disc; .*other classes: square, circle"):
        evaluate("any.pt", wide_set)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"imgsz": 100}, "imgsz=100 must be a multiple of 32: try 96"),
        ({"imgsz": -64}, "imgsz=-64 must be a multiple of 32: try 32"),
        ({"imgsz": 64, "batch": 0}, "batch=0 must be at least 1"),
        ({"imgsz": 64, "max_det": -1}, "max_det=-1"),
        ({"imgsz": 64, "conf": 1.5}, "conf=1.5 must be 0 to 1"),
        ({"imgsz": 64, "iou": float("nan")}, "iou=nan must be 0 to 1"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Settings(**values)


# ---- COCO results


def write_coco(root: Path, wide_set: Path) -> Path:
    """Write the wide set as COCO json with ids that are not in order; return its yaml."""
    samples = read_split(load_data(wide_set), "val")
    images, annotations = [], []
    for number, sample in enumerate(samples):
        height, width = sample.size
        identity = 900 - 7 * number
        images.append(
            {"id": identity, "file_name": sample.path.name, "height": height, "width": width}
        )
        for box, label in zip(sample.boxes.astype(float), sample.labels, strict=True):
            x1, y1, x2, y2 = box.tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": identity,
                    "category_id": (44, 3)[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": 44, "name": "square"}, {"id": 3, "name": "disc"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    folder = root / "wide" / "images"
    (folder / "_annotations.coco.json").write_text(json.dumps(content))
    path = root / "coco.yaml"
    path.write_text(
        f"path: {root / 'wide'}\nformat: coco\ntrain: images\nval: images\nnames: [square, disc]\n"
    )
    return path


def test_pycocotools_reads_the_results_and_agrees(
    wide_set: Path, tmp_path: Path, looking: None
) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    description = write_coco(tmp_path, wide_set)
    report = evaluate("any.pt", description)
    place = str(tmp_path / "out" / "results.json")
    assert main(["--weights", "any.pt", "--data", str(description), "--save-json", place]) == 0
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "wide" / "images" / "_annotations.coco.json"))
        found = truth.loadRes(str(tmp_path / "out" / "results.json"))
        judge = COCOeval(truth, found, "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    assert list(report["coco"].values()) == pytest.approx(list(judge.stats), abs=1e-6)
    assert report["mAP50-95"] == pytest.approx(judge.stats[0], abs=1e-6)


def test_results_of_another_format_are_in_image_pixels_with_stems(
    wide_set: Path, tmp_path: Path, looking: None
) -> None:
    main(["--weights=any.pt", f"--data={wide_set}", "--imgsz=160", "--save-json=results.json"])
    rows = json.loads(Path("results.json").read_text())
    assert {row["image_id"] for row in rows} == {"0", "1", "2", "3"}
    first = next(row for row in rows if row["image_id"] == "0" and row["bbox"][0] < 10)
    truth = read_split(load_data(wide_set), "val")[0].boxes[0]
    expected = [truth[0], truth[1], truth[2] - truth[0], truth[3] - truth[1]]
    assert first["bbox"] == pytest.approx(expected, abs=1.5)
    assert first["score"] == pytest.approx(0.9, abs=0.05)


# ---- command


def test_command_prints_a_table_and_writes_nothing(
    wide_set: Path, looking: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert main(["--weights", "any.pt", "--data", str(wide_set), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["Class", "Images", "Targets", "P", "R", "F1", "mAP50", "mAP50-95"]
    assert lines[1].split()[:7] == ["all", "5", "12", "1.000", "1.000", "1.000", "1.000"]
    assert lines[2].split()[:3] == ["square", "4", "6"]
    assert {len(line) for line in lines[:4]} == {len(lines[0])}
    assert lines[-1].startswith("per image: network ")
    assert sorted(tmp_path.rglob("*")) == before


def test_command_prints_one_json_object(
    wide_set: Path, looking: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--weights", "any.pt", "--data", str(wide_set), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["mAP50"] == 1.0
    assert set(report["speed"]) == {"network", "NMS", "metrics"}
    assert all(value > 0 for value in report["speed"].values())


def test_command_draws_plots_when_asked(wide_set: Path, looking: None) -> None:
    assert main(["--weights", "any.pt", "--data", str(wide_set), "--plots", "pictures"]) == 0
    names = {"curves.png", "confusion.png", "calibration.png", "worst.jpg"}
    assert {path.name for path in Path("pictures").iterdir()} == names


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (["--weights", "missing.pt"], "missing.pt"),
        (["--data", "missing.yaml"], "missing.yaml"),
        (["--split", "test"], "test"),
        (["--imgsz", "65"], "try 64"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    tiny_set: Path, checkpoint: Path, change: list[str], text: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    argv = ["--weights", str(checkpoint), "--data", str(tiny_set), "--device", "cpu", *change]
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.splitlines()[-1]
    assert last.startswith("error: ") and text in last


# ---- several sets, one class


def second_set(wide_set: Path) -> Path:
    """Write a set of the first two pictures, its classes named the other way round."""
    root = wide_set.parent.parent / "second"
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
        for file in sorted((wide_set.parent / folder).iterdir())[:2]:
            (root / folder / file.name).write_bytes(file.read_bytes())
    path = root / "data.yaml"
    path.write_text(f"path: {root}\nval: images\ntrain: images\nnames: [disc, square]\n")
    return path


def test_sets_are_measured_together_and_each_alone(looking: None, wide_set: Path) -> None:
    other = second_set(wide_set)
    report = evaluate("any.pt", f"{wide_set},{other}")
    assert report["images"] == 7
    for name, path in (("wide", wide_set), ("second", other)):
        alone = evaluate("any.pt", path)
        assert "second/mAP50" not in alone
        for metric in ("mAP50", "mAP50-95", "F1"):
            assert report[f"{name}/{metric}"] == alone[metric]
    # numbers 0 and 1 mean the other class in the second set: it is wrong on all of its own
    assert report["wide/mAP50"] > 0.9 and report["second/mAP50"] == 0


def test_set_metrics_stand_in_the_table(
    looking: None, wide_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--weights=any.pt", f"--data={wide_set},{second_set(wide_set)}"]) == 0
    assert "\nsecond alone: precision 0.000" in capsys.readouterr().out


def test_one_class_detector_is_measured_with_all_classes_as_one(
    wide_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(images: torch.Tensor) -> torch.Tensor:
        decoded = look(images, ("square", "disc"))
        return torch.cat([decoded[..., :5], decoded[..., 5:].amax(-1, keepdim=True)], dim=-1)

    backend = Backend(Path("one.pt"), ("object",), 96, "bgr-255", CPU, run, any_size=True)
    monkeypatch.setattr("detector.evaluate.load_backend", lambda path, device: backend)
    report = evaluate("one.pt", wide_set)
    assert list(report["classes"]) == ["object"] and report["mAP50"] > 0.9


def test_coco_results_need_a_single_set(
    looking: None, wide_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = f"--data={wide_set},{second_set(wide_set)}"
    assert main(["--weights=any.pt", data, "--save-json=results.json"]) == 2
    assert "COCO results need one data set" in capsys.readouterr().err
    assert not Path("results.json").exists()


# ---- rectangular batches


def test_batches_of_like_shape_by_hand() -> None:
    # at 64 px: 64 x 48, 32 x 64, 64 x 64, 30 x 64, 64 x 40 (height x width); by width / height
    sizes = [(128, 96), (50, 100), (10, 10), (60, 128), (64, 40)]
    assert batches_of(sizes, Settings(64, batch=2)) == [
        ([0, 1], (64, 64)), ([2, 3], (64, 64)), ([4], (64, 64))
    ]  # fmt: skip
    assert batches_of(sizes, Settings(64, batch=2, rect=True)) == [
        ([4, 0], (64, 64)), ([2, 1], (64, 64)), ([3], (32, 64))
    ]  # fmt: skip
    assert batches_of([], Settings(64, rect=True)) == []


def test_rectangles_change_no_detection_of_what_is_in_the_picture(
    looking: None, wide_set: Path
) -> None:
    # a detector that looks at colours alone finds the same with and without padding
    square, rect = (
        evaluate("any.pt", wide_set, settings=Settings(imgsz=96, batch=2, rect=rect))
        for rect in (False, True)
    )
    assert rect["mAP50"] == pytest.approx(square["mAP50"]) and rect["mAP50"] > 0.9
    assert square["rect"] is False and rect["rect"] is True


def test_network_sees_no_more_padding_than_the_stride_needs(
    wide_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def run(images: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(images.shape[2:]))
        return look(images, ("square", "disc"))

    backend = Backend(Path("c.pt"), ("square", "disc"), 160, "bgr-255", CPU, run, any_size=True)
    monkeypatch.setattr("detector.evaluate.load_backend", lambda path, device: backend)
    evaluate("c.pt", wide_set, settings=Settings(imgsz=160, rect=True))
    # 80 to 84 x 120 at 160 px: 107 to 112 high, padded to 128; the first call is the warm-up
    assert seen == [(160, 160), (128, 160)]


def test_engines_of_one_size_take_no_rectangles(
    wide_set: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = replace(colour_backend(), any_size=False, path=Path("a.onnx"))
    monkeypatch.setattr("detector.evaluate.load_backend", lambda path, device: fixed)
    assert main(["--weights=a.onnx", f"--data={wide_set}", "--rect"]) == 2
    assert "a.onnx: takes images of 96x96 only, not --rect" in capsys.readouterr().err


def test_a_detector_that_is_loaded_already_is_evaluated_too(wide_set: Path) -> None:
    report = evaluate(colour_backend(), wide_set, settings=Settings(imgsz=96))
    assert report["mAP50"] > 0.9 and report["weights"] == str(colour_backend().path)


def test_a_runtime_that_does_not_read_the_file_is_refused(
    wide_set: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"--weights={checkpoint}", f"--data={wide_set}", "--runtime=opencv"]) == 2
    assert "--runtime opencv: reads .onnx files only" in capsys.readouterr().err


# ---- beside the metrics


def test_changed_labels_are_seen_and_each_split_has_its_own(looking: None, wide_set: Path) -> None:
    # B-58: a cache of annotations that forgets split and time keeps the old ones
    root = wide_set.parent
    wide_set.write_text(wide_set.read_text() + "test: one.txt\n")
    (root / "one.txt").write_text("images/0.png\n")
    assert evaluate("any.pt", wide_set)["targets"] == 12
    assert evaluate("any.pt", wide_set, "test")["targets"] == 3
    rows = (root / "labels" / "0.txt").read_text().splitlines()
    (root / "labels" / "0.txt").write_text(rows[0] + "\n")
    assert evaluate("any.pt", wide_set)["targets"] == 10
    assert evaluate("any.pt", wide_set, "test")["targets"] == 1


def test_command_measures_by_the_rules_of_voc_and_writes_its_files(
    looking: None, wide_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--weights=any.pt", f"--data={wide_set}", "--voc", "--save-voc=out", "--json"]
    assert main(argv) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["voc"]["2007"]["mAP50"] == report["voc"]["2012"]["mAP50"] == 1.0
    rows = Path("out/comp4_det_test_square.txt").read_text().splitlines()
    assert len(rows) == 6 and rows[0].split()[0] == "0"


def test_intervals_and_fitness_stand_in_report_and_table(
    looking: None, wide_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--weights=any.pt", f"--data={wide_set}", "--fitness", "mAP50=0.25, F1=0.75"]
    assert main([*argv, "--bootstrap", "100"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(
        line.startswith("95 % over images: fitness 1.000 (1.000 to 1.000)") for line in lines
    )
    assert any(line.startswith("fitness 1.0000, calibration error") for line in lines)
    report = evaluate("any.pt", wide_set, measures=Measures({"mAP50-95": 1.0}, 100))
    assert report["fitness"] == report["mAP50-95"] < 1
    low, high = report["intervals"]["mAP50-95"]
    assert low <= report["mAP50-95"] <= high
    assert "intervals" not in evaluate("any.pt", wide_set)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (["--fitness", "mAP50"], "'mAP50' is not like mAP50=0.4"),
        (["--fitness", "mAP50=0.4"], "the weights sum to 0.4; they must sum to 1"),
        (["--bootstrap", "-1"], "bootstrap=-1 must be 0 (off) or more"),
        (["--bootstrap", "7"], "7 resamples are too few"),
        (["--nms", "soft-nms"], "nms=soft-nms is no kind of NMS; did you mean soft?"),
    ],
)
def test_wrong_measures_are_one_line(
    looking: None, wide_set: Path, change: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--weights=any.pt", f"--data={wide_set}", *change]) == 2
    assert text in capsys.readouterr().err.splitlines()[-1]


def test_size_of_each_class_is_in_its_row(looking: None, wide_set: Path) -> None:
    report = evaluate("any.pt", wide_set)
    square = report["classes"]["square"]
    sizes = [name for name in ("mAP_small", "mAP_medium", "mAP_large") if name in square]
    assert sizes == ["mAP_small", "mAP_medium"]
    both = [report["classes"][name]["mAP_medium"] for name in ("square", "disc")]
    assert sum(both) / 2 == pytest.approx(report["coco"]["AP_medium"])


def test_worst_images_have_the_least_f1_then_the_most_errors() -> None:
    counts = np.array([[9, 0, 0], [0, 1, 0], [0, 3, 2], [4, 2, 2], [9, 1, 0]])
    assert worst(counts) == [2, 1, 3, 4]  # the first one has no error
    assert worst(counts, 2) == [2, 1]
