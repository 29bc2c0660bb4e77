"""Training and evaluation around the split: what they refuse, what they remember, and splits by folds and by a file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from pipeline.cohort.labels import NOT_PROVEN
from pipeline.cohort.split_file import NOT_IN_FILE
from pipeline.config import Config, load_config
from pipeline.errors import RunError
from pipeline.evaluate import _brief, evaluate
from pipeline.train import train
from tests.conftest import SMALL

pytestmark = pytest.mark.slow


def _table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def _config(manifest: Path) -> Config:
    config = load_config("demo", [*SMALL, "training.epochs=1"])
    return config.model_copy(update={"manifest": str(manifest)})


@pytest.fixture
def project(looped: Path, tmp_path: Path) -> Path:
    """A folder with the demo's data and manifest, which remembers nothing yet."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("export", "labels.csv", "manifest.yaml"):
        (folder / name).symlink_to(looped / name)
    text = (looped / "manifest.yaml").read_text()
    (folder / "manifest.yaml").unlink()
    (folder / "manifest.yaml").write_text(text)
    return folder


@pytest.fixture
def edited(looped: Path, tmp_path: Path) -> Path:
    """A copy of the demo's run in whose split.csv one patient has a case more, in another split."""
    run = tmp_path / "run"
    shutil.copytree(looped / "run", run)
    split = _table(run / "split.csv")
    row = split.index[split["split"] == "test"][0]
    split.loc[row, "patient_key"] = split.loc[split["split"] == "train", "patient_key"].iloc[0]
    split.to_csv(run / "split.csv", index=False)
    return run


def test_evaluation_refuses_a_patient_in_two_splits(edited: Path, looped: Path):
    for options in ({}, {"split": "validation"}, {"data": str(looped / "manifest.yaml")}):
        with pytest.raises(RunError, match="1 patient stands in more than one split"):
            evaluate(edited, progress=False, **options)


def test_resuming_refuses_a_patient_in_two_splits(edited: Path, looped: Path):
    config = load_config("demo", SMALL).model_copy(update={"manifest": str(looped / "manifest.yaml")})
    with pytest.raises(RunError, match="1 patient stands in more than one split"):
        train(config, edited, resume=True, progress=False)


def _moved(looped: Path, run: Path) -> None:
    """One of a patient's two studies moved to another split under a key that no other case has."""
    shutil.copytree(looped / "run", run)
    split = _table(run / "split.csv")
    several = split.index[split["patient_key"].duplicated()]
    assert len(several), "the demo has no patient with two studies"
    other = "test" if split.loc[several[0], "split"] != "test" else "train"
    split.loc[several[0], ["patient_key", "split"]] = ["edited", other]
    split.to_csv(run / "split.csv", index=False)


def test_an_edited_key_does_not_hide_a_patient(looped: Path, tmp_path: Path):
    run = tmp_path / "run"
    _moved(looped, run)
    with pytest.raises(RunError, match="1 patient stands in more than one split"):
        evaluate(run, progress=False)
    config = load_config("demo", SMALL).model_copy(update={"manifest": str(looped / "manifest.yaml")})
    with pytest.raises(RunError, match="the patient of 1 case is another now"):
        train(config, run, resume=True, progress=False)


def test_the_demo_remembers_its_split(looped: Path):
    [ledger] = looped.glob(".radloop-split-*.csv")
    remembered, split = _table(ledger), _table(looped / "run/split.csv").drop_duplicates("patient_key")
    assert set(zip(remembered["patient_key"], remembered["split"], strict=True)) == set(
        zip(split["patient_key"], split["split"], strict=True)
    )


def test_a_fold_is_trained_and_evaluated(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    manifest = project / "manifest.yaml"
    manifest.write_text(manifest.read_text().replace("split: {", "split: {folds: 2, fold: 1, "))
    run = tmp_path / "run"
    train(_config(manifest), run)
    assert "fold 1 of 2 validates" in capsys.readouterr().err
    split = _table(run / "split.csv")
    assert ((split["split"] == "validation") == (split["fold"] == "1")).all()
    record = evaluate(run, split="validation", progress=False)
    assert record["cases"] == int((split["fold"] == "1").sum())


def test_a_file_of_another_run_gives_the_split(
    project: Path, looped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    before = _table(looped / "run/split.csv")
    gone = before.loc[before["split"] == "train", "patient_key"].iloc[0]
    before[before["patient_key"] != gone].to_csv(project / "given.csv", index=False)
    manifest = project / "manifest.yaml"
    manifest.write_text(manifest.read_text().replace("split: {", "split: {file: given.csv, "))
    run = tmp_path / "run"
    train(_config(manifest), run)
    assert "as given.csv says, 1 other left out" in capsys.readouterr().err
    pd.testing.assert_frame_equal(
        _table(run / "split.csv"), before[before["patient_key"] != gone].reset_index(drop=True)
    )
    out = _table(run / "exclusions.csv")
    assert (out["rule"] == NOT_IN_FILE).sum() > 0
    assert not out.duplicated(["source", "path"]).any()


def test_what_the_sheet_knows_counts_in_evaluation_without_the_sheet(project: Path, tmp_path: Path):
    """Rules went by a column that only the sheet fills; the sheet is gone when the run is evaluated."""
    labels = _table(project / "labels.csv").assign(site="x")
    labels.loc[0, "site"] = "y"
    (project / "labels.csv").unlink()
    further = pd.DataFrame([{"AccessionNumber": "of no image", "finding": "normal", "site": "x"}])
    pd.concat([labels, further]).to_csv(project / "labels.csv", index=False)
    manifest = project / "manifest.yaml"
    text = manifest.read_text().replace("include: {", "include: {protocol_name: [x], ")
    manifest.write_text(text.replace("sheet: {", "sheet: {facts: {protocol_name: site}, "))
    run = tmp_path / "run"
    train(_config(manifest), run, progress=False)
    assert (_table(run / "exclusions.csv")["rule"].str.contains("protocol_name")).any()
    problems = _table(run / "sheet_problems.csv").set_index("line")["problem"]
    assert problems[str(len(labels) + 2)] == "matches no image"
    (project / "labels.csv").unlink()
    record = evaluate(run, progress=False)
    assert record["cases"] == (_table(run / "split.csv")["split"] == "test").sum()
    assert record["failed"] == 0


def test_warnings_say_things_once():
    warnings = ["few", f"{NOT_PROVEN}: blocks", "few", f"{NOT_PROVEN}: another key", f"{NOT_PROVEN}: blocks", "a: b"]
    assert _brief(warnings) == ["few", f"{NOT_PROVEN}: blocks; another key", "a: b"]
