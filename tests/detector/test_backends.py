from pathlib import Path

import pytest
import torch

from detector.backends import Backend, load_backend
from detector.checkpoint import load_model, model_content, save_checkpoint
from detector.config import Hyp
from detector.decode import decode, select
from detector.errors import CheckpointError, ConfigError
from detector.export import export
from detector.families import build_family
from detector.models import build_model

NAMES = ("red", "green", "blue")
SIZE = 64


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    model = build_model("yolox-pico", num_classes=len(NAMES))
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.2, 0.5)
    path = tmp_path_factory.mktemp("weights") / "pico.pt"
    save_checkpoint(path, model_content(model, NAMES, SIZE))
    return path


@pytest.fixture(scope="module")
def fixed_file(checkpoint: Path) -> Path:
    return export(checkpoint, "onnx")[0].path


@pytest.fixture(scope="module")
def dynamic_file(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(checkpoint, "onnx", out=tmp_path_factory.mktemp("d"), dynamic=True)[0].path


@pytest.fixture(params=["checkpoint", "fixed_file", "dynamic_file"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return load_backend(request.getfixturevalue(request.param))


def pictures(count: int) -> torch.Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 255


def test_every_backend_says_what_it_takes(backend: Backend) -> None:
    assert backend.names == NAMES
    assert (backend.imgsz, backend.input_convention) == (SIZE, "bgr-255")


@pytest.mark.parametrize("count", [0, 1, 3])
def test_every_backend_returns_the_same_for_any_number_of_images(
    backend: Backend, checkpoint: Path, count: int
) -> None:
    decoded = backend(pictures(count))
    assert decoded.shape == (count, 84, 8) and decoded.dtype == torch.float32
    torch.testing.assert_close(
        decoded, load_backend(checkpoint)(pictures(count)), atol=1e-4, rtol=0
    )


def test_every_backend_detects_the_same_objects(backend: Backend, checkpoint: Path) -> None:
    found = backend.detect(pictures(2), conf=1e-4, iou=0.65, max_det=10)
    expected = load_backend(checkpoint).detect(pictures(2), conf=1e-4, iou=0.65, max_det=10)
    assert [len(image.boxes) for image in found] == [10, 10]
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got.scores, wanted.scores, atol=1e-6, rtol=0)
        torch.testing.assert_close(got.boxes, wanted.boxes, atol=1e-3, rtol=0)
        assert got.labels.tolist() == wanted.labels.tolist()


def test_integer_pixels_are_taken_too(backend: Backend) -> None:
    images = pictures(1).round()
    torch.testing.assert_close(backend(images.to(torch.uint8)), backend(images))


def test_a_fixed_file_does_one_image_at_a_time(fixed_file: Path, dynamic_file: Path) -> None:
    assert load_backend(fixed_file).max_batch == 1
    assert load_backend(dynamic_file).max_batch is None


def test_onnx_takes_a_number_of_threads(dynamic_file: Path) -> None:
    one, two = (load_backend(dynamic_file, threads=threads) for threads in (1, 2))
    torch.testing.assert_close(one(pictures(1)), two(pictures(1)))


def test_a_checkpoint_takes_other_sizes_and_an_onnx_file_refuses_them(
    checkpoint: Path, dynamic_file: Path
) -> None:
    images = torch.zeros(1, 3, 32, 96)
    assert load_backend(checkpoint)(images).shape == (1, 63, 8)  # 12 * 4 + 6 * 2 + 3 * 1
    with pytest.raises(ConfigError, match="takes images of 64x64, got 32x96"):
        load_backend(dynamic_file)(images)


def test_images_must_be_four_dimensional(backend: Backend) -> None:
    with pytest.raises(ConfigError, match=r"\(3, 64, 64\)"):
        backend(torch.zeros(3, SIZE, SIZE))


@pytest.mark.parametrize("name", ["text.onnx", "text.pt", "text.engine", "text.txt"])
def test_a_text_file_is_refused_by_name(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text("hello")
    with pytest.raises(CheckpointError, match=name) as caught:
        load_backend(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # the runtimes print nothing on their own


@pytest.mark.parametrize("suffix", [".onnx", ".pt", ".engine"])
def test_a_missing_file_is_refused(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_backend(tmp_path / f"x{suffix}")


def test_a_torn_onnx_file_is_refused(fixed_file: Path, tmp_path: Path) -> None:
    (tmp_path / "torn.onnx").write_bytes(fixed_file.read_bytes()[:20_000])
    with pytest.raises(CheckpointError, match=r"torn\.onnx: not a readable ONNX file"):
        load_backend(tmp_path / "torn.onnx")


def test_an_onnx_file_of_another_program_is_refused(fixed_file: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(fixed_file)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(CheckpointError, match=r"not written by detector\.export"):
        load_backend(tmp_path / "foreign.onnx")


def test_legacy_pixels_are_turned_and_normalised_in_every_kind_of_file(
    checkpoint: Path, tmp_path: Path
) -> None:
    usual = load_model(checkpoint).model
    with torch.no_grad():  # as if it had been trained on small numbers
        usual.backbone.backbone.stem.conv.conv.weight.mul_(200)
    legacy = build_model("yolox-pico:input=rgb-imagenet", num_classes=len(NAMES))
    legacy.load_state_dict(usual.state_dict())
    save_checkpoint(tmp_path / "legacy.pt", model_content(legacy.eval(), NAMES, SIZE))
    (file,) = export(tmp_path / "legacy.pt", "onnx")
    images = pictures(1)  # BGR, as everywhere in this program
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = (images[:, [2, 1, 0]] / 255 - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        expected = decode(usual, usual(normalised))
    for path in (tmp_path / "legacy.pt", file.path):
        backend = load_backend(path)
        assert backend.input_convention == "rgb-imagenet"
        torch.testing.assert_close(backend.decoded(images), expected, atol=1e-3, rtol=1e-4)
        # the way in, not the numbers: an image that is not turned gives others
        assert (backend(images) - expected).abs().max() > 0.01
    (found,) = build_family(legacy, Hyp()).detect(images, 0.0, 0.65, 20)
    (selected,) = select(expected, 0.0, 0.65, 20)
    torch.testing.assert_close(found.scores, selected.scores, atol=1e-4, rtol=0)
