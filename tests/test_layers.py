"""Imports point one way: from the command line down to errors, never up, and within a row in no circle (docs: the house)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

ROWS = [
    {"cli", "__main__"},
    {"commands"},
    {
        "demo",
        "train",
        "evaluate",
        "compare",
        "explain",
        "infer",
        "audit",
        "bundle",
        "volumes",
        "check",
        "deidentify",
        "reidentify",
        "doctor",
        "send",
        "receive",
        "fetch",
    },
    {"prediction", "training", "evaluation", "explaining", "deidentifying", "pages", "exchange"},
    {"cohort", "auditing", "prepared", "networks", "metrics", "run"},
    {"indexing"},
    {"dicom"},
    {"cluster", "work", "overlap", "render", "lettering", "raster", "nifti", "transforms", "progress"},
    {
        *("config", "settings", "image_settings", "training_settings", "profile_settings", "manifest", "rule_settings"),
        *("deidentify_settings", "crosswalk"),
        *("label_arrays", "identity", "columns", "csv_text", "arrow", "wording", "errors", "files", "archive", "peers"),
    },
]
"""From the top. `__init__` holds the version and may be imported by all."""

DICOM_LIBRARIES = {"pydicom", "highdicom", "pynetdicom"}
HEAVY = {"matplotlib", "SimpleITK", "nibabel", "highdicom"}


def _modules() -> dict[Path, str]:
    """Every source file with the name of its place in `ROWS`."""
    places = {}
    for path in sorted([*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "transforms").rglob("*.py")]):
        parts = path.relative_to(ROOT).with_suffix("").parts
        places[path] = "transforms" if parts[0] == "transforms" else parts[1]
    return places


def _imports(path: Path, *, only_at_import: bool = False) -> set[str]:
    """Dotted names imported in a file; with `only_at_import` those that importing the file itself brings."""
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree)) if not only_at_import else list(_executed_at_import(tree))
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _executed_at_import(node: ast.AST):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _executed_at_import(child)


def _target(name: str) -> str | None:
    parts = name.split(".")
    if parts[0] == "transforms":
        return "transforms"
    return parts[1] if parts[0] == "pipeline" and len(parts) > 1 else None


def _row(place: str) -> int:
    return next(number for number, row in enumerate(ROWS) if place in row)


def test_every_module_has_its_row():
    known = set().union(*ROWS) | {"__init__"}
    assert set(_modules().values()) <= known


def test_no_arrow_points_up():
    upward = []
    for path, place in _modules().items():
        if place == "__init__":
            continue
        for name in _imports(path):
            target = _target(name)
            if target in (None, "__init__", "__version__") or target not in set().union(*ROWS):
                continue
            if _row(target) < _row(place):
                upward.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not upward


def test_no_circles():
    graph: dict[str, set[str]] = {}
    own = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in _modules()}
    for name, path in own.items():
        graph[name] = {target for target in _imports(path, only_at_import=True) if target in own and target != name}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " → ".join([*above, name])
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*above, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_only_dicom_imports_dicom_libraries():
    outside = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, place in _modules().items()
        if place != "dicom"
        for name in _imports(path)
        if name.split(".")[0] in DICOM_LIBRARIES
    ]
    assert not outside


def test_transforms_know_nothing_of_the_pipeline():
    sources = [path for path, place in _modules().items() if place == "transforms"]
    assert not [name for path in sources for name in _imports(path) if name.startswith("pipeline")]


def test_heavy_packages_are_imported_where_used():
    eager = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in _modules()
        for name in _imports(path, only_at_import=True)
        if name.split(".")[0] in HEAVY
    ]
    assert not eager


@pytest.mark.parametrize("module", ["pipeline.cli", "pipeline.manifest", "pipeline.indexing.index"])
def test_indexing_needs_no_torch(module: str):
    code = f"import {module}, sys; print([name for name in ('torch', 'monai', 'matplotlib', 'sklearn') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
