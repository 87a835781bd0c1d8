"""The walls of DESIGN.md, held by reading every import."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted([*(ROOT / "evolve").rglob("*.py"), *(ROOT / "detector").rglob("*.py")])
OPTIONAL = {"mlflow", "onnx", "onnxruntime", "onnxslim", "tensorrt", "tensorrt_rtx", "openvino"}
OPTIONAL |= {"ncnn", "pnnx", "nncf", "executorch", "ray", "matplotlib", "pycocotools"}
OPTIONAL |= {"optuna_dashboard", "supervision"}
BANNED_NAMES = {"utils", "misc", "common", "helpers", "core", "general"}


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def top_level_imports(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(node)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_the_packages_do_not_look_through_the_wall(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    forbidden = {"detector": {"evolve"}, "evolve": {"detector", "torch", "torchvision", "cv2"}}
    found = {name.split(".")[0] for name in imports(parsed(path))}
    assert not found & forbidden[package]


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_optional_libraries_are_imported_where_they_are_needed(path: Path) -> None:
    found = {name.split(".")[0] for name in top_level_imports(parsed(path))}
    assert not found & OPTIONAL


def test_each_optional_library_has_one_file_in_a_package() -> None:
    homes: dict[tuple[str, str], set[str]] = {}
    for path in SOURCES:
        package = path.relative_to(ROOT).parts[0]
        for name in imports(parsed(path)):
            top = name.split(".")[0]
            if top in {
                "mlflow",
                "ray",
                "openvino",
                "ncnn",
                "pnnx",
                "nncf",
                "executorch",
                "matplotlib",
                "onnx",
                "onnxslim",
                "onnxruntime",
                "supervision",
            }:
                homes.setdefault((package, top), set()).add(relative(path))
    both_onnx_libraries = {"detector/precision.py"}  # rewrites graphs, and runs them to judge
    homes = {key: files - both_onnx_libraries for key, files in homes.items()}
    crowded = {key: files for key, files in homes.items() if len(files) > 1}
    assert not crowded


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_file_has_a_name_that_says_nothing(path: Path) -> None:
    assert path.stem not in BANNED_NAMES


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_nothing_happens_at_import_time(path: Path) -> None:
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    for node in parsed(path).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        main = isinstance(node, ast.If) and ast.unparse(node.test) in (
            "__name__ == '__main__'",
            "TYPE_CHECKING",
        )
        merged = isinstance(node, ast.AugAssign)
        assert isinstance(node, allowed) or docstring or main or merged, ast.unparse(node)


def detector_row(name: str) -> int:
    """Return the row of the table in DESIGN section 1: imports only ever point upwards."""
    rows = (
        ("errors", "memory", "callbacks", "compiled", "interrupt", "files"),
        ("duration", "yamlfile", "fields"),
        ("config",),
        ("boxes",),
        ("distributed",),
        ("data", "augment", "render", "render_device"),
        ("models", "darknet_weights", "anchors"),
        ("assign",),
        ("losses",),
        ("nms", "decode", "voting"),
        ("families", "torchvision_family"),
        ("matching", "curves", "metrics", "voc_metrics", "resampling"),
        ("muon", "schedule", "optim", "cost", "device_memory"),
        (
            "checkpoint",
            "foreign",
            "result",
            "record",
            "coco_results",
            "voc_results",
            "state",
            "performance",
        ),
        ("tracking", "tensorboard", "cli", "launch", "model_list"),
        ("draw", "plots"),
        (
            "graph_nms",
            "onnx_graph",
            "runtimes",
            "engine",
            "engine_wish",
            "backends",
            "parity",
            "precision",
            "origin",
        ),
        ("finding", "looking", "scorecard", "evaluate", "compare", "doctor", "adopt"),
        ("convert", "split"),
        ("image_result", "sources", "tiling", "writers", "predict"),
        (
            "export",
            "export_job",
            "export_options",
            "contender",
            "training_speed",
            "benchmark",
            "validation",
            "pictures",
            "preview",
        ),
        ("train",),
        ("train_command", "guest"),
        ("objective",),
    )
    return next(index for index, row in enumerate(rows) if name in row)


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if "detector" in path.parts], ids=relative
)
def test_imports_of_the_detector_point_upwards(path: Path) -> None:
    parts = path.relative_to(ROOT / "detector").with_suffix("").parts
    if parts[0] == "__init__":
        return
    own = detector_row(parts[0])
    for name in top_level_imports(parsed(path)):
        if name.startswith("detector."):
            assert detector_row(name.split(".")[1]) <= own, f"{relative(path)} imports {name}"


def test_no_machine_path_or_registry_host_is_committed() -> None:
    words = ("/wor" + "k/", "/ro" + "ot/", "--index" + "-url", "--find" + "-links", "pyp" + "i.")
    files = [*SOURCES, *ROOT.glob("*.*"), *(ROOT / "docs").rglob("*.md"), ROOT / "Makefile"]
    for path in files:
        known = path.suffix in {".py", ".md", ".toml", ".txt", ".yaml", ""}
        if path.is_file() and known and path.name != ".git":  # a file in a second work tree
            text = path.read_text(encoding="utf-8")
            assert not [word for word in words if word in text], relative(path)
