"""The C++ runner: it is built, run, and must find what Python finds.

Needed besides a compiler: cmake, OpenCV and nlohmann/json with their headers, and the headers of
ONNX Runtime (found by themselves or below $ONNXRUNTIME_ROOT); its library is that of the wheel.
"""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from detector.backends import load_backend
from detector.checkpoint import model_content, save_checkpoint
from detector.export import export
from detector.finding import Settings
from detector.models import build_model
from detector.predict import predict
from detector.sources import find_sources

pytestmark = pytest.mark.slow  # the build takes a minute

SOURCE = Path(__file__).resolve().parents[2] / "deploy" / "cpp"
NAMES = ("RBC", "WBC", "Plättchen")
SIZE = 256
IMAGES = 50
PROBE = """cmake_minimum_required(VERSION 3.18)
project(probe LANGUAGES CXX)
find_package(OpenCV QUIET COMPONENTS core imgproc imgcodecs videoio)
find_package(nlohmann_json QUIET)
list(APPEND CMAKE_MODULE_PATH "{source}/cmake")
find_package(OnnxRuntime QUIET)
if(NOT OpenCV_FOUND)
  message(STATUS "MISSING: OpenCV with headers (libopencv-dev)")
elseif(NOT nlohmann_json_FOUND)
  message(STATUS "MISSING: nlohmann/json (nlohmann-json3-dev)")
elseif(NOT ONNXRUNTIME_INCLUDE_DIR)
  message(STATUS "MISSING: headers of ONNX Runtime (libonnxruntime-dev or $ONNXRUNTIME_ROOT)")
endif()
"""


# ---- build


def wheel_library(folder: Path) -> Path:
    """Link the library of the onnxruntime wheel by the names that linker and loader look for."""
    onnxruntime = pytest.importorskip("onnxruntime")
    found = sorted(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    if not found:
        pytest.skip("the onnxruntime wheel has no libonnxruntime.so")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / name).symlink_to(found[-1])
    return folder / "libonnxruntime.so"


def cmake(*arguments: str | Path) -> str:
    done = subprocess.run(["cmake", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def skip_unless_buildable(folder: Path) -> None:
    if shutil.which("cmake") is None or not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("cmake or a C++ compiler is missing")
    (folder / "CMakeLists.txt").write_text(PROBE.format(source=SOURCE.as_posix()))
    for line in cmake("-S", folder, "-B", folder / "build").splitlines():
        if "MISSING: " in line:
            pytest.skip(line.partition("MISSING: ")[2])


def build(folder: Path, *options: str) -> Path:
    """Build the runner in `folder`; return the program."""
    cmake("-S", SOURCE, "-B", folder, *options)
    cmake("--build", folder, "--config", "Release", "--parallel", str(os.cpu_count() or 1))
    return folder / "detect"


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cpp")
    for name in ("probe", "lib"):
        (folder / name).mkdir()
    skip_unless_buildable(folder / "probe")
    library = wheel_library(folder / "lib")
    return build(folder / "build", f"-DONNXRUNTIME_LIBRARY={library}")


def run(runner: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(runner), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300)


def found(runner: Path, *arguments: object) -> list[dict[str, Any]]:
    """Return the images of `--json` of a run that must succeed."""
    done = run(runner, *arguments, "--json", "--no-images", "--threads", 1)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["images"]


# ---- models and images


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A yolox-pico with random weights that sees objects of all classes all over a picture."""
    torch.manual_seed(1)
    model = build_model("yolox-pico", num_classes=len(NAMES))
    for name, values in (*model.named_buffers(), *model.named_parameters()):
        if name.endswith("running_mean"):
            values.normal_(0, 0.5)
        elif name.endswith("running_var"):
            values.uniform_(0.2, 0.5)
        elif "_preds" in name and name.endswith("bias"):
            values.data.zero_()
        elif "_preds" in name:
            values.data *= 5 if "reg" in name else 10
    path = tmp_path_factory.mktemp("weights") / "pico.pt"
    save_checkpoint(path, model_content(model, NAMES, SIZE))
    return path


@pytest.fixture(scope="module")
def fixed_file(checkpoint: Path) -> Path:
    return export(checkpoint, "onnx")[0].path


@pytest.fixture(scope="module")
def dynamic_file(checkpoint: Path) -> Path:
    return export(checkpoint, "onnx", out=checkpoint.parent / "dynamic", dynamic=True)[0].path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Fifty images of BCCD where the data set is at hand, else drawn ones of many shapes."""
    home = Path(os.environ.get("DETECTOR_DATA", "absent")) / "bccd" / "JPEGImages"
    if home.is_dir():
        return sorted(home.glob("*.jpg"))[:IMAGES]
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(IMAGES):
        height, width = (int(side) for side in rng.integers(20, 700, 2))
        image = np.full((height, width, 3), rng.integers(0, 256, 3), np.uint8)
        for _ in range(6):
            x, y = int(rng.integers(width)), int(rng.integers(height))
            colour = [int(value) for value in rng.integers(0, 256, 3)]
            cv2.circle(image, (x, y), int(rng.integers(5, 80)), colour, -1)
        cv2.imwrite(str(folder / f"{index:02}.png"), image)
    return sorted(folder.iterdir())


def write_graph(path: Path, nodes: Sequence[Any], columns: int, **metadata: str) -> Path:
    """Write an ONNX file by hand: (B, 3, 256, 256) in, (B, N, columns) out."""
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("images", ["b", 3, SIZE, SIZE]), ("output", ["b", "n", columns]))
    ]
    graph = helper.make_graph(list(nodes), "by_hand", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    texts = {"names": '["a", "b"]', "imgsz": str(SIZE), "input_convention": "bgr-255"}
    helper.set_model_props(model, {**texts, **metadata})
    path.write_bytes(model.SerializeToString())
    return path


def constant_file(path: Path, rows: Sequence[Sequence[float]]) -> Path:
    """Write an ONNX file that answers one image with `rows`, whatever is on it."""
    helper = pytest.importorskip("onnx").helper
    table = np.array([rows], dtype=np.float32)
    value = helper.make_tensor("value", 1, table.shape, table.ravel().tolist())
    nodes = [helper.make_node("Constant", [], ["output"], value=value)]
    return write_graph(path, nodes, table.shape[2])


def mean_file(path: Path, convention: str) -> Path:
    """Write an ONNX file that answers one box: cx, cy, w are the means of the three channels."""
    helper = pytest.importorskip("onnx").helper
    rest = helper.make_tensor("value", 1, (1, 4), [10.0, 1.0, 0.9, 0.2])  # h, objectness, classes
    zero = helper.make_tensor("value", 1, (1, 1), [0.0])
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("Constant", [], ["rest"], value=rest),
        helper.make_node("Constant", [], ["zero"], value=zero),
        helper.make_node("ReduceMax", ["means"], ["most"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["most", "zero"], ["zeros"]),
        helper.make_node("Add", ["zeros", "rest"], ["rests"]),
        helper.make_node("Concat", ["means", "rests"], ["row"], axis=1),
        helper.make_node("Constant", [], ["at"], value=helper.make_tensor("at", 7, (1,), [1])),
        helper.make_node("Unsqueeze", ["row", "at"], ["output"]),
    ]
    return write_graph(path, nodes, 7, input_convention=convention)


def plain_picture(path: Path, width: int, height: int, bgr: tuple[int, int, int]) -> Path:
    cv2.imwrite(str(path), np.full((height, width, 3), bgr, np.uint8))
    return path


# ---- the same as Python


def table(rows: Sequence[Any]) -> np.ndarray:
    """Return detections (n, 6): corners, score, label."""
    return np.array(rows, dtype=np.float64).reshape(-1, 6)


def paired(some: np.ndarray, others: np.ndarray) -> bool:
    """Whether each detection (n, 6) has one among `others` within 1 px, 0.01 and of its class.

    The order may differ: where the input is plain gray, many boxes have exactly the same score.
    """
    apart = np.abs(some[:, None] - others[None])  # (n, m, 6)
    return bool((apart <= [1, 1, 1, 1, 0.01, 0]).all(axis=2).any(axis=1).all())


@pytest.mark.parametrize(("file", "batch"), [("fixed_file", 1), ("dynamic_file", 8)])
def test_the_runner_finds_what_python_finds(
    runner: Path, photos: list[Path], file: str, batch: int, request: pytest.FixtureRequest
) -> None:
    path, settings = request.getfixturevalue(file), Settings(conf=0.45)
    expected = predict(load_backend(path, threads=1), photos, settings=settings)
    images = found(runner, path, "-i", *photos, "--conf", 0.45, "--batch", batch)
    assert [image["path"] for image in images] == [str(photo) for photo in photos]
    names = set(enumerate(NAMES))
    labels = np.concatenate([result.labels for result in expected])
    assert len(labels) > 5 * len(photos) and len(set(labels)) > 1  # there is much to find
    for image, result in zip(images, expected, strict=True):
        assert (image["height"], image["width"]) == result.size
        ours = table(
            [(*row["box"], row["score"], row["label"]) for row in image["detections"]],
        )
        theirs = table(np.column_stack([result.boxes, result.scores, result.labels]))
        assert len(ours) == len(theirs) and (np.diff(ours[:, 4]) <= 0).all()
        assert paired(ours, theirs) and paired(theirs, ours), image["path"]
        assert {(row["label"], row["name"]) for row in image["detections"]} <= names


@pytest.mark.parametrize(
    ("convention", "box"),
    [("bgr-255", [28.5, 67, 105.5, 77]), ("rgb-imagenet", [43.5, 67, 110.5, 77])],
)
def test_channels_come_in_the_order_of_the_file(
    runner: Path, tmp_path: Path, convention: str, box: list[float]
) -> None:
    # half of the input is gray: means (20 + 114) / 2 = 67, (30 + 114) / 2 = 72, 77 of b, g, r
    path = mean_file(tmp_path / "mean.onnx", convention)
    picture = plain_picture(tmp_path / "a.png", 256, 128, (20, 30, 40))
    ((row,),) = [image["detections"] for image in found(runner, path, "-i", picture)]
    assert row["label"] == 0 and row["score"] == pytest.approx(0.9)
    np.testing.assert_allclose(row["box"], box, atol=1e-3)


def test_each_image_of_a_batch_has_its_own_answer(runner: Path, tmp_path: Path) -> None:
    path = mean_file(tmp_path / "mean.onnx", "bgr-255")
    colours = [(value, 114, 60) for value in (70, 80, 90)]
    for index, colour in enumerate(colours):
        plain_picture(tmp_path / f"{index}.png", 256, 256, colour)
    images = found(runner, path, "-i", *sorted(tmp_path.glob("*.png")), "--batch", 2)
    centres = [np.mean(image["detections"][0]["box"][::2]) for image in images]
    np.testing.assert_allclose(centres, [70, 80, 90], atol=1e-3)


# ---- selection, worked by hand; rows are cx, cy, w, h, objectness, a, b


def selected(runner: Path, folder: Path, rows: Sequence[Sequence[float]], *more: object) -> Any:
    path = constant_file(folder / "constant.onnx", rows)
    picture = plain_picture(folder / "a.png", 512, 256, (0, 0, 0))  # twice the input: r = 0.5
    (image,) = found(runner, path, "-i", picture, *more)
    return [(row["name"], round(row["score"], 3), row["box"]) for row in image["detections"]]


def test_boxes_are_suppressed_within_their_class_only(runner: Path, tmp_path: Path) -> None:
    rows = [
        (50, 50, 20, 20, 0.5, 0.8, 0.1),  # a 0.4, IoU 0.667 with the next: 16 * 20 / 480
        (54, 50, 20, 20, 1.0, 0.9, 0.1),  # a 0.9
        (50, 50, 20, 20, 1.0, 0.1, 0.7),  # b 0.7
        (90, 90, 20, 20, 0.5, 0.4, 0.1),  # a 0.2: below --conf
    ]
    best, other = ("a", 0.9, [88, 80, 128, 120]), ("b", 0.7, [80, 80, 120, 120])
    assert selected(runner, tmp_path, rows) == [best, other]
    third = ("a", 0.4, [80, 80, 120, 120])
    assert selected(runner, tmp_path, rows, "--iou=0.67") == [best, other, third]
    assert selected(runner, tmp_path, rows, "--max-det", 1) == [best]
    assert selected(runner, tmp_path, rows, "--conf", 0.75) == [best]


def test_equal_scores_keep_their_order_and_boxes_end_at_the_image(
    runner: Path, tmp_path: Path
) -> None:
    rows = [(0, 10, 20, 20, 1, 0.5, 0), (250, 120, 40, 40, 1, 0.5, 0), (0, 10, 20, 21, 1, 0.5, 0)]
    expected = [("a", 0.5, [0, 0, 20, 40]), ("a", 0.5, [460, 200, 512, 256])]
    assert selected(runner, tmp_path, rows) == expected


def test_infinite_boxes_are_suppressed_as_in_python(runner: Path, tmp_path: Path) -> None:
    rows = [(100, 100, np.inf, np.inf, 1, 0.9, 0), (90, 90, np.inf, np.inf, 1, 0.8, 0)]
    assert selected(runner, tmp_path, rows) == [("a", 0.9, [0, 0, 512, 256])]


# ---- output


def test_lines_drawings_and_summary(runner: Path, tmp_path: Path) -> None:
    path = constant_file(tmp_path / "c.onnx", [(50, 50, 20, 20, 1, 0.9, 0)])
    plain_picture(tmp_path / "a.png", 512, 256, (0, 0, 0))
    (tmp_path / "b").mkdir()
    plain_picture(tmp_path / "b" / "a.png", 512, 256, (0, 0, 0))
    done = run(runner, path, "-i", tmp_path / "a.png", tmp_path / "b", "--out", "drawn")
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[:2] == ["a.png: 1 a", "blob image"] and lines[2].endswith("ms")
    assert lines[3:7] == [
        "num of boxes before nms: 1",
        "num of boxes: 1",
        "0 = 0.90000 at 80.00 80.00 40.00 x 40.00",
        "save vis file",
    ]
    assert lines[-1].startswith("2 images, 2 objects, 0 failed, ")
    assert sorted(file.name for file in Path("drawn").iterdir()) == ["a-2.png", "a.png"]
    drawing = cv2.imread("drawn/a.png")
    assert drawing.shape == (256, 512, 3) and drawing[100, 80].any() and not drawing[100, 100].any()
    assert run(runner, path, "-i", tmp_path / "a.png", "--out", "drawn").returncode == 0
    assert [file.name for file in Path("drawn-2").iterdir()] == ["a.png"]


def test_a_video_is_read_frame_by_frame_and_drawn(runner: Path, tmp_path: Path) -> None:
    path = mean_file(tmp_path / "mean.onnx", "bgr-255")
    clip = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"MJPG"), 10, (256, 256))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no MJPG video")
    for value in (60, 80, 100):
        writer.write(np.full((256, 256, 3), value, np.uint8))
    writer.release()
    done = run(runner, path, "-i", clip, "--batch", 2, "--out", "drawn", "--json")
    assert done.returncode == 0, done.stderr
    images = json.loads(done.stdout)["images"]
    assert [image["frame"] for image in images] == [1, 2, 3]
    centres = [np.mean(image["detections"][0]["box"][::2]) for image in images]
    np.testing.assert_allclose(centres, [60, 80, 100], atol=3)
    drawing = cv2.VideoCapture("drawn/clip.mp4")
    assert [drawing.read()[0] for _ in range(4)] == [True, True, True, False]


def test_unreadable_files_are_named_and_the_rest_is_done(runner: Path, tmp_path: Path) -> None:
    path = constant_file(tmp_path / "c.onnx", [(50, 50, 20, 20, 1, 0.9, 0)])
    good = plain_picture(tmp_path / "good.png", 64, 64, (0, 0, 0))
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    (tmp_path / "empty.jpg").touch()
    done = run(runner, path, "-i", tmp_path, "--json", "--no-images")
    answer = json.loads(done.stdout)
    assert done.returncode == 1
    assert [image["path"] for image in answer["images"]] == [str(good)]
    assert [Path(row["path"]).name for row in answer["failed"]] == ["bad.jpg", "empty.jpg"]
    assert "bad.jpg: not a readable image" in done.stderr
    assert run(runner, path, "-i", tmp_path / "bad.jpg", "--no-images").returncode == 2


def test_a_folder_gives_what_it_gives_python(runner: Path, tmp_path: Path) -> None:
    path = constant_file(tmp_path / "c.onnx", [(50, 50, 20, 20, 1, 0.9, 0)])
    folder = tmp_path / "Bilder ü"
    folder.mkdir()
    for name in ("b.PNG", "a.jpg", "C.bmp"):
        cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tofile(folder / name)
    (folder / "notes.txt").write_text("no image")
    paths = [image["path"] for image in found(runner, path, "-i", folder)]
    assert paths == [str(source) for source in find_sources(folder)]


# ---- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("{fixed} -i {photo} --conf 1.5", "--conf=1.5 must be 0 to 1"),
        ("{fixed} -i {photo} --iou=x", "--iou=x must be 0 to 1"),
        ("{fixed} -i {photo} --max-det 0", "--max-det=0 must be 1 to 1000000"),
        ("{fixed} -i {photo} --batch 2.5", "--batch=2.5 must be 1 to 1000000"),
        ("{fixed} -i {photo} --batch 4", "--batch=4 must be 1: {fixed} takes no more at once"),
        ("{fixed} -i {photo} --treads 2", "--treads is not an option; there are: --batch, --conf"),
        ("{fixed} -i", "-i needs a value"),
        ("{fixed} -i --conf 0.3", "-i needs a value"),
        ("{fixed}", "--source is missing"),
        ("-i {photo}", "--weights is missing"),
        ("{fixed} -i nowhere", "--source nowhere: no such file or folder"),
        ("{fixed} -i .", ".: the folder has no images or videos"),
        ("nothing.onnx -i {photo}", "nothing.onnx: no such file"),
        ("{photo} -i {photo}", "{photo}: unknown kind of model file; known: .onnx, .engine"),
        ("{fixed} -i {photo} --out /dev/null/x", "--out /dev/null/x: cannot be created"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    runner: Path, fixed_file: Path, photos: list[Path], arguments: str, message: str
) -> None:
    words = {"fixed": str(fixed_file), "photo": str(photos[0])}
    done = run(runner, *(word.format(**words) for word in arguments.split()))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {message.format(**words)}")
    assert done.stderr.count("\n") == 1


def test_foreign_onnx_files_are_refused(runner: Path, photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    done = run(runner, tmp_path / "text.onnx", "-i", photos[0])
    assert done.returncode == 2 and "text.onnx: not a readable ONNX file" in done.stderr
    helper = pytest.importorskip("onnx").helper
    value = helper.make_tensor("value", 1, (1, 1, 7), [0.0] * 7)
    node = helper.make_node("Constant", [], ["output"], value=value)
    for metadata, message in (
        ({"names": ""}, "not written by detector.export"),
        ({"imgsz": "0"}, "imgsz=0 must be 1 to"),
        ({"input_convention": "gray"}, "input_convention 'gray' must begin with bgr or rgb"),
        ({"names": '["a"]'}, "its output has the shape (1, 1, 7), not (1, predictions, 6)"),
    ):
        path = write_graph(tmp_path / "foreign.onnx", [node], 7, **metadata)
        done = run(runner, path, "-i", photos[0], "--no-images")
        assert done.returncode == 2 and message in done.stderr, done.stderr


@pytest.mark.parametrize("length", [0, 55, 56, 1000])  # SHA-256: ends before or in the next block
def test_an_engine_must_be_the_one_its_sidecar_describes(
    runner: Path, photos: list[Path], tmp_path: Path, length: int
) -> None:
    tensor = {"name": "x", "shape": [1, 3, SIZE, SIZE], "dtype": "float32"}
    path, plan = tmp_path / "a.engine", bytes(range(250)) * 4
    path.write_bytes(plan[:length])
    done = run(runner, path, "-i", photos[0])
    assert done.returncode == 2 and "a.engine: its sidecar is missing" in done.stderr
    sidecar = {
        "format": "tensorrt-rtx",
        "library_version": "1.0.0.0",
        "engine_sha256": hashlib.sha256(plan[:length]).hexdigest(),
        "gpu": {"name": None, "compute_capability": None, "minimum": "8.0"},
        "inputs": [tensor],
        "outputs": [tensor],
        "names": ["a"],
        "imgsz": SIZE,
        "input_convention": "bgr-255",
        "batch": {"min": 1, "opt": 1, "max": 1},
        "rebuild": "python -m detector.export --weights a.pt",
    }
    Path(f"{path}.json").write_text(json.dumps(sidecar))
    done = run(runner, path, "-i", photos[0])
    assert done.returncode == 2 and "built without TensorRT" in done.stderr
    path.write_bytes(plan[:length] + b"x")
    done = run(runner, path, "-i", photos[0])
    assert done.returncode == 2 and "SHA-256 differs" in done.stderr
    assert "rebuild it by: python -m detector.export --weights a.pt" in done.stderr


# ---- TensorRT


def test_the_tensorrt_back_end_compiles(tmp_path: Path) -> None:
    roots = [os.environ.get(name) for name in ("TENSORRT_ROOT", "CUDA_ROOT")]
    if not all(roots):
        pytest.skip("needs $TENSORRT_ROOT and $CUDA_ROOT, folders with include/ and lib/")
    (tmp_path / "probe").mkdir()
    skip_unless_buildable(tmp_path / "probe")
    options = ("-DWITH_TENSORRT=ON", f"-DTENSORRT_ROOT={roots[0]}", f"-DCUDA_ROOT={roots[1]}")
    program = build(tmp_path / "build", "-DWITH_ONNXRUNTIME=OFF", *options)
    done = run(program, "x.onnx", "-i", __file__)
    assert done.returncode == 2 and "x.onnx: no such file" in done.stderr
