"""The loop on real images: every file ends in a table, every object is valid, the shipped manifests find their labels."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from pipeline.cohort.cases import group_images
from pipeline.cohort.labels import label_cases
from pipeline.cohort.rules import COLLISIONS
from pipeline.cohort.split import split_cases
from pipeline.config import load_config
from pipeline.identity import IdentityKey
from pipeline.indexing.index import index_source
from pipeline.indexing.sources import open_source
from pipeline.infer import infer
from pipeline.train import train
from tests.conftest import SMALL

pytestmark = [pytest.mark.real_data, pytest.mark.slow]


def _table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


@pytest.fixture(scope="module")
def single_image_run(looped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the phantoms whose cases are single images, so that inference takes every image there is."""
    folder = tmp_path_factory.mktemp("single")
    manifest = (
        (looped / "manifest.yaml")
        .read_text()
        .replace("unit: study", "unit: image")
        .replace("path: ", f"path: {looped}/")
    )
    (folder / "manifest.yaml").write_text(manifest)
    config = load_config("demo", [*SMALL, "training.epochs=1"])
    train(config.model_copy(update={"manifest": str(folder / "manifest.yaml")}), folder / "run", progress=False)
    return folder / "run"


@pytest.fixture(scope="module")
def inferred(single_image_run: Path, real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("real") / "out"
    infer(single_image_run, str(real_data / "dicom"), out, progress=False)
    return out


def test_every_real_file_is_in_one_table(inferred: Path, real_data: Path):
    tables = [
        set(_table(inferred / name)["path"]) for name in ("image_predictions.csv", "rejects.csv", "exclusions.csv")
    ]
    counted = Counter(path for table in tables for path in table)
    files = {
        path.relative_to(real_data / "dicom").as_posix() for path in (real_data / "dicom").rglob("*") if path.is_file()
    }
    assert set(counted) == files
    assert set(counted.values()) == {1}
    cases, images = _table(inferred / "predictions.csv"), _table(inferred / "image_predictions.csv")
    assert set(cases["case_id"]) == set(images["case_id"])
    assert (images.loc[images["status"] == "failed", "reason"] != "").all()
    assert (cases.loc[cases["status"] != "ok", "reason"] != "").all()


@pytest.mark.dciodvfy
def test_every_object_of_real_files_passes_dciodvfy(inferred: Path):
    paths = sorted(inferred.rglob("*.dcm"))
    assert len(paths) > 150
    wrong = {}
    for path in paths:
        checked = subprocess.run(
            ["dciodvfy", "-new", str(path)], capture_output=True, text=True, errors="replace", check=False
        )
        errors = [line for line in (checked.stdout + checked.stderr).splitlines() if line.startswith("Error")]
        if errors or checked.returncode:
            wrong[path.name] = errors
    assert not wrong


@pytest.mark.parametrize(
    ("name", "cases", "labels"),
    [("ct_slices", 959, {"COVID": 480, "non-COVID": 479}), ("chest_xray", 150, {"COVID": 93, "non-COVID": 57})],
)
def test_shipped_manifests_find_labels_and_patients(name: str, cases: int, labels: dict[str, int], real_data: Path):
    opened = open_source(name, real_data)
    assert opened.manifest is not None
    key = opened.key()
    index = opened.index(key)
    grouped = group_images(
        index, opened.manifest.unit, opened.manifest.rules, collisions=COLLISIONS, facts=opened.manifest.facts
    )
    labelled = label_cases(grouped, opened.manifest, opened, key)
    assert len(labelled.cases) == cases
    assert labelled.cases["label"].value_counts().to_dict() == labels
    split = split_cases(labelled.cases, opened.manifest.split, opened.manifest.classes)
    assert split.groupby("patient_key")["split"].nunique().eq(1).all()
    if name == "ct_slices":
        assert any("independence is not proven" in warning for warning in labelled.warnings)


def test_an_index_of_everything_reconciles(real_data: Path) -> None:
    """All that lies in the folder, found by other means, is in one of the two tables, and every breakdown adds up."""
    index = index_source(real_data, key=IdentityKey(b"a key for tests only"))
    files = {path.relative_to(real_data).as_posix() for path in real_data.rglob("*") if path.is_file()}
    assert Counter([*index.table["path"], *index.rejects["path"]]) == Counter(files)
    summary = index.summary
    assert summary["found"] == len(files)
    assert sum(summary["rejected_by_reason"].values()) == summary["rejected"] == len(index.rejects)
    for breakdown in ("formats", "modalities", "sop_classes", "transfer_syntaxes", "manufacturers"):
        assert sum(summary[breakdown].values()) == summary["indexed"] == len(index.table)
