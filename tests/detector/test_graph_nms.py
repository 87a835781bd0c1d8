import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from detector import onnx_graph
from detector.backends import load_backend
from detector.benchmark import benchmark
from detector.boxes import Detections
from detector.checkpoint import model_content, save_checkpoint
from detector.decode import select
from detector.errors import CheckpointError, ConfigError
from detector.export import export, main
from detector.finding import Settings
from detector.graph_nms import GraphNms, detections_of, fixed_rows
from detector.models import build_model
from detector.parity import textured_picture
from detector.predict import Result, predict

NAMES = ("red", "green", "blue")
SIZE = 96
POINTS = 12 * 12 + 6 * 6 + 3 * 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    model = build_model("yolox-pico:input=rgb-imagenet", num_classes=len(NAMES))
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.2, 0.5)
    with torch.no_grad():  # scores that differ: equal ones may come in any order
        model.backbone.backbone.stem.conv.conv.weight.mul_(200)
    path = tmp_path_factory.mktemp("weights") / "pico.pt"
    save_checkpoint(path, model_content(model, NAMES, SIZE))
    return path


@pytest.fixture(scope="module", autouse=True)
def traced_once() -> Iterator[None]:
    """Trace each graph once in this file: there is one checkpoint, and tracing takes seconds."""
    trace = onnx_graph.trace
    graphs: dict[bool, bytes] = {}

    def remember(model: nn.Module, imgsz: int, opset: int, dynamic: bool) -> bytes:
        if dynamic not in graphs:
            graphs[dynamic] = trace(model, imgsz, opset, dynamic)
        return graphs[dynamic]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_graph, "trace", remember)
        yield


@pytest.fixture(scope="module")
def plain(checkpoint: Path) -> Path:
    """The same without NMS."""
    (written,) = export(checkpoint, "onnx", dynamic=True)
    return written.path


@pytest.fixture(scope="module")
def file(checkpoint: Path) -> Path:
    (written,) = export(checkpoint, "onnx", dynamic=True, nms=True)
    return written.path


def pictures(count: int) -> torch.Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 255


def assert_same(found: list[Detections], expected: list[Detections]) -> None:
    """The same objects; of equal scores any may come first."""
    assert [len(one) for one in found] == [len(one) for one in expected]
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got.scores, wanted.scores, atol=1e-6, rtol=0)
        table, other = (
            torch.cat((one.boxes, 100 * one.scores[:, None], 100 * one.labels[:, None]), dim=1)
            for one in (got, wanted)
        )
        gap = torch.cdist(table.double(), other.double())
        assert not len(gap) or max(gap.amin(dim=0).max(), gap.amin(dim=1).max()) < 1e-3


def as_tensors(result: Result) -> Detections:
    return Detections(*map(torch.from_numpy, (result.boxes, result.scores, result.labels)))


def crowd(seed: int, count: int = 400) -> torch.Tensor:
    """Decoded predictions (2, count, 8) that overlap; those of the second image score nothing."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randint(1, 6, (2, count, 2), generator=random) * 16.0
    sides = torch.rand(2, count, 2, generator=random) * 24 + 4
    scores = torch.rand(2, count, 4, generator=random)
    scores[1, :, 0] = 0.0
    return torch.cat((centres + torch.rand(2, count, 2, generator=random), sides, scores), dim=-1)


@pytest.mark.parametrize("opset", [11, 20])
@pytest.mark.parametrize(
    ("conf", "iou", "max_det"),
    [(0.001, 0.65, 300), (0.3, 0.4, 7), (0.0, 1.0, 1200), (0.999, 0.5, 300)],
)
def test_the_graph_selects_what_select_does(
    opset: int, conf: float, iou: float, max_det: int
) -> None:
    import onnx.parser
    import onnxruntime

    decoded = crowd(seed=opset, count=1300)
    header = f'<ir_version: 8, opset_import: ["": {opset}]>'
    shape = f"float[batch,{decoded.shape[1]},8]"
    identity = onnx.parser.parse_model(
        f"{header} g ({shape} x) => ({shape} output) {{ output = Identity(x) }}"
    )
    graph = onnx_graph.with_nms(identity.SerializeToString(), GraphNms(conf, iou, max_det))
    session = onnxruntime.InferenceSession(graph)
    (rows,) = session.run(None, {"x": decoded.numpy()})
    assert rows.shape == (2, min(max_det, 1300), 6)
    expected = select(decoded, conf, iou, max_det)
    found = detections_of(torch.from_numpy(rows), conf, max_det)
    if conf:  # without a least score, all those of the second image are equal: any may be found
        assert len(expected[1]) == 0 and (rows[1, :, 5] == -1).all() and not rows[1, :, :5].any()
    else:
        found, expected = found[:1], expected[:1]
    assert_same(found, expected)


def test_a_file_with_nms_says_so_and_has_a_name_of_its_own(file: Path) -> None:
    backend = load_backend(file)
    assert file.name == "pico.nms.onnx"
    assert backend.metadata["nms"] == {
        "conf": 0.001, "iou": 0.65, "max_det": 300, "candidates": 1000, "kind": "class"
    }  # fmt: skip
    assert backend.metadata["output_layout"]["columns"][4] == "score"
    with pytest.raises(ConfigError, match="selects its detections itself"):
        backend(pictures(1))


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize(("conf", "iou", "max_det"), [(1e-5, 0.65, 300), (1e-4, 0.3, 5)])
def test_it_detects_what_a_file_without_nms_detects(
    file: Path, plain: Path, count: int, conf: float, iou: float, max_det: int
) -> None:
    found = load_backend(file).detect(pictures(count), conf, iou, max_det)
    expected = load_backend(plain).detect(pictures(count), conf, iou, max_det)
    assert len(found) == count and all(len(one) for one in found)
    assert_same(found, expected)


def test_a_file_for_one_image_takes_many_in_turn(checkpoint: Path, tmp_path: Path) -> None:
    (written,) = export(checkpoint, "onnx", out=tmp_path, nms=GraphNms(conf=0.1))
    backend = load_backend(written.path)
    assert backend.max_batch == 1 and backend.metadata["nms"]["conf"] == 0.1
    images = pictures(3)
    expected = [backend.detect(image[None], 1e-5, 0.5, 300)[0] for image in images]
    assert len(expected[2]) and not torch.equal(expected[0].boxes, expected[2].boxes)
    assert_same(backend.detect(images, 1e-5, 0.5, 300), expected)


def test_predict_finds_the_same_with_every_option(file: Path, plain: Path) -> None:
    source = [textured_picture(seed, SIZE) for seed in range(2)]
    for options in ({}, {"classes": ["green"]}, {"agnostic_nms": True}):
        found, expected = (
            predict(path, source, "cpu", Settings(conf=1e-5), **options) for path in (file, plain)
        )
        assert_same(*([as_tensors(one) for one in results] for results in (found, expected)))
        assert all(len(one.labels) for one in expected)


def test_benchmark_compares_and_times_it(file: Path) -> None:
    eager, row = benchmark([file], data="none", device="cpu", seconds=0.01)
    assert (eager.format, row.format, eager.nms, row.nms) == ("pytorch", "onnxruntime", False, True)
    assert row.box_px is not None and row.box_px < 0.01 and row.median_ms > 0


def test_opencv_refuses_it(file: Path) -> None:
    with pytest.raises(CheckpointError, match="NMS in its graph, which OpenCV does not run"):
        load_backend(file, runtime="opencv")


def test_fixed_thresholds_allow_what_only_drops_rows() -> None:
    rows = torch.tensor([[[0.0, 0, 4, 4, 0.9, 1], [0, 0, 4, 4, 0.3, 0], [0, 0, 0, 0, 0, -1]]])
    fixed = fixed_rows(Path("x.engine"), GraphNms(0.2, 0.5, 10), lambda images: rows)
    images = torch.zeros(1, 3, 32, 32)
    (found,) = detections_of(fixed(images, GraphNms(0.5, 0.5, 10)), 0.5, 10)
    assert found.labels.tolist() == [1]
    assert fixed(images, GraphNms(1.0, 1.0, 1)) is rows  # the best one stays at any iou
    for wrong in (GraphNms(0.1, 0.5, 10), GraphNms(0.2, 0.6, 10), GraphNms(0.2, 0.5, 11)):
        with pytest.raises(ConfigError, match=r"x\.engine: .* conf 0\.2, iou 0\.5, max_det 10"):
            fixed(images, wrong)


def test_tensorrt_is_given_the_graph_with_one_input(checkpoint: Path, tmp_path: Path) -> None:
    rtx = pytest.importorskip("tensorrt_rtx")
    (written,) = export(checkpoint, "onnx", out=tmp_path, nms=True)
    logger = rtx.Logger(rtx.Logger.ERROR)
    network = rtx.Builder(logger).create_network(0)
    assert rtx.OnnxParser(network, logger).parse(written.path.read_bytes())
    assert [network.get_input(i).name for i in range(network.num_inputs)] == ["images"]
    assert network.get_output(0).name == "detections"


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        (["--nms", "--format", "tensorrt-rtx"], "TensorRT-RTX has no runner for the node"),
        (["--nms", "--format", "onnx,openvino"], "not for --format openvino; for onnx, tensorrt"),
        (["--nms", "--format", "onnx", "--iou", "2"], "--iou 2.0 must be 0 to 1"),
        (["--nms", "--format", "onnx", "--max-det", "0"], "--max-det 0 must be at least 1"),
        (["--format", "onnx", "--max-det", "9"], "--max-det is about NMS in the graph: add --nms"),
    ],
)
def test_what_cannot_be_had_is_one_line(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], options: list[str], answer: str
) -> None:
    assert main(["--weights", str(checkpoint), *options]) == 2
    error = capsys.readouterr().err
    assert answer in error and error.count("\n") == 1


def test_without_tensorrt_the_onnx_file_with_nms_is_kept(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert main(["--weights", str(checkpoint), "--nms", "--out", str(tmp_path)]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["pico.nms.onnx"]


def test_the_command_that_asks_for_it() -> None:
    assert GraphNms().words() == ["--nms"]
    assert GraphNms(0.25, 0.65, 100).words() == ["--nms", "--conf", "0.25", "--max-det", "100"]


def test_unusable_thresholds_are_refused(file: Path, tmp_path: Path) -> None:
    content = onnx_graph.with_metadata(file.read_bytes(), {"nms": {"conf": 2}})
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.onnx: "):
        load_backend(tmp_path / "x.onnx")
