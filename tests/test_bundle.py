"""A run as a MONAI bundle: MONAI runs it and says what radloop says, radloop takes it in place of the run, and weights are data only."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pydicom import dcmread

from pipeline.bundle import TOLERANCE, bundle
from pipeline.cli import main
from pipeline.errors import ConfigError, RunError
from pipeline.infer import infer
from pipeline.prediction import exported
from pipeline.prediction.bundled import WholeModel
from pipeline.prediction.predict import load_model
from pipeline.run import MODEL_FILE, read_model, run_folder
from transforms.levels import from_levels

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def bundled(looped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "demo_bundle"
    assert main(["bundle", str(looped / "run"), str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def from_run(looped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What radloop says of the export."""
    out = tmp_path_factory.mktemp("from_run")
    infer(looped / "run", str(looped / "export"), out, write=["sc"], workers=0, progress=False)
    return out


def test_monai_runs_it_and_says_what_radloop_says(bundled: Path, from_run: Path, looped: Path, tmp_path: Path):
    pytest.importorskip("fire")
    arguments = ["--config_file", bundled / "configs/inference.json", "--bundle_root", bundled]
    arguments += ["--dataset_dir", looped / "export", "--output_dir", tmp_path]
    command = [sys.executable, "-m", "monai.bundle", "run", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with (tmp_path / "predictions.csv").open(newline="") as file:
        said = {row[0]: [float(cell) for cell in row[1:]] for row in csv.reader(file)}
    table = pd.read_csv(from_run / "image_predictions.csv")
    table = table[table["status"] == "ok"]
    classes = [f"p_{name}" for name in read_model(looped / "run").classes]
    assert set(said) == set(table["path"])
    found = np.array([said[path] for path in table["path"]])
    assert np.abs(found - table[classes].to_numpy()).max() <= TOLERANCE


def test_radloop_infers_from_it_what_it_infers_from_the_run(
    bundled: Path, from_run: Path, looped: Path, tmp_path: Path
):
    infer(bundled, str(looped / "export"), tmp_path, write=["sc"], workers=0, progress=False)
    for name in ("predictions.csv", "image_predictions.csv", "objects.csv"):
        assert (tmp_path / name).read_bytes() == (from_run / name).read_bytes()


def test_its_digest_is_that_of_the_objects(bundled: Path, from_run: Path):
    digest = json.loads((bundled / "configs/metadata.json").read_text())["radloop"]["model_digest"]
    path = pd.read_csv(from_run / "objects.csv")["path"].iloc[0]
    assert digest in dcmread(from_run / path).DerivationDescription


def test_metadata_has_what_monais_schema_demands(bundled: Path):
    found = json.loads((bundled / "configs/metadata.json").read_text())
    due = {
        "schema",
        "version",
        "changelog",
        "monai_version",
        "pytorch_version",
        "numpy_version",
        "required_packages_version",
    }
    assert due | {"task", "description", "authors", "copyright", "network_data_format"} <= set(found)
    of_each = {"type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data"}
    for part in ("inputs", "outputs"):
        assert all(of_each <= set(one) for one in found["network_data_format"][part].values())


def test_weights_load_without_code(bundled: Path, looped: Path):
    state = torch.load(bundled / "models/model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert read_model(run_folder(bundled)).digest == read_model(looped / "run").digest
    inference = (bundled / "configs/inference.json").read_text()
    assert inference.count("$") == 1
    assert '"$@evaluator.run()"' in inference


def test_onnx_says_what_radloop_says(looped: Path, tmp_path: Path):
    """Of prepared images, in a batch of any size, by ONNX Runtime from the file alone."""
    runtime = pytest.importorskip("onnxruntime")
    assert main(["bundle", str(looped / "run"), str(tmp_path / "out"), "--onnx"]) == 0
    assert "model.onnx" in (tmp_path / "out/docs/README.md").read_text()
    model = load_model(looped / "run")
    session = runtime.InferenceSession(tmp_path / "out/models/model.onnx", providers=["CPUExecutionProvider"])
    side = model.facts.preprocessing.size
    for count in (1, 5):
        levels = np.random.default_rng(count).integers(0, 65536, (count, 1, side, side), dtype=np.uint16)
        [found] = session.run(["probabilities"], {"images": from_levels(levels)})
        assert np.abs(found - model.predict(levels).probabilities).max() <= TOLERANCE


def test_without_its_packages_onnx_is_one_message(looped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(exported, "ONNX_PACKAGES", ("onnx", "onnx_that_is_not_there"))
    with pytest.raises(ConfigError, match=r"onnx_that_is_not_there: pip install 'radloop\[onnx\]'"):
        bundle(looped / "run", tmp_path / "out", onnx=True)
    assert not (tmp_path / "out").exists()


def test_what_differs_from_the_network_is_not_written(looped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def off(model: WholeModel, images: torch.Tensor) -> exported.Exported:
        made = exported.as_torchscript(model, images)
        return exported.Exported(made.content, made.probabilities + np.float32(1e-4))

    monkeypatch.setattr("pipeline.bundle.as_torchscript", off)
    with pytest.raises(RunError, match=r"model\.ts of .* differs"):
        bundle(looped / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_left_alone(looped: Path, tmp_path: Path):
    (tmp_path / "mine").touch()
    with pytest.raises(ConfigError, match="empty"):
        bundle(looped / "run", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pooling": "attention"}, "pooling attention"),
        ({"classes": "$print(1)"}, "for code"),
    ],
)
def test_what_no_bundle_can_hold_is_refused(looped: Path, tmp_path: Path, change: dict[str, str], message: str):
    run = tmp_path / "run"
    shutil.copytree(looped / "run", run)
    facts = json.loads((run / MODEL_FILE).read_text())
    if "pooling" in change:
        facts["network"]["pooling"] = change["pooling"]
    else:
        facts["classes"][1] = facts["positive"] = change["classes"]
        facts["thresholds"] = {change["classes"]: 0.5}
    (run / MODEL_FILE).write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match=message):
        bundle(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
