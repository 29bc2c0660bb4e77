"""Evaluation on tiny runs: what it leaves on disk, for every kind of label, for folds, units, subgroups and other data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.errors import ConfigError, RunError
from pipeline.evaluate import evaluate, summary_lines
from pipeline.evaluation.case_units import by_unit
from pipeline.evaluation.subject import own_split
from pipeline.metrics.measures import score
from pipeline.run import read_model
from tests.tiny_runs import FINDINGS, IMAGES_EACH, PATIENTS, make_pictures

pytest_plugins = ["tests.tiny_fixtures"]
pytestmark = pytest.mark.slow

TESTED = PATIENTS // 5
"""Patients in the test split."""


def _table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


@pytest.fixture(scope="module")
def record(two_classes: Path) -> dict:
    return evaluate(two_classes, progress=False)


def test_all_files_are_there_and_say_the_same(record: dict, two_classes: Path) -> None:
    folder = two_classes / "evaluation"
    written = json.loads((folder / "metrics.json").read_text())
    assert written == {name: value for name, value in record.items() if name != "folder"}
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "metrics.json",
        "curves.json",
        "predictions.csv",
        "image_predictions.csv",
        "report.html",
        "MODEL_CARD.md",
    }
    assert "stress.csv" not in names
    drawn = json.loads((folder / "curves.json").read_text())
    assert [one["class"] for one in drawn["roc"]] == ["opacity"]
    predictions = _table(folder / "predictions.csv")
    assert record["metrics"]["accuracy"]["value"] == (predictions["label"] == predictions["predicted"]).mean()
    assert record["model_digest"] == read_model(two_classes).digest


def test_calibration_says_what_the_temperature_did(record: dict, two_classes: Path) -> None:
    facts, told = read_model(two_classes), record["calibration"]
    assert told["temperature"] == facts.temperature != 1
    assert (told["threshold"], told["threshold_rule"]) == (0.5, "0.5, as configured")
    assert told["ece_after"] == record["metrics"]["ece"]["value"]
    predictions = _table(two_classes / "evaluation/predictions.csv")
    calibrated = predictions["p_opacity"].astype(float).to_numpy()
    odds = np.log(calibrated / (1 - calibrated)) * facts.temperature  # one image a case: the mean is the image's
    raw = 1 / (1 + np.exp(-odds))
    plain = score(
        (predictions["label"] == "opacity").astype(int),
        np.column_stack([1 - raw, raw]),
        predictions.index,
        classes="ab",
    )
    bins = np.digitize(raw, np.arange(1, 10) / 10, right=True)
    gaps = [abs((plain.label - raw)[bins == one].sum()) for one in range(10)]
    assert told["ece_before"] == pytest.approx(sum(gaps) / len(raw))


def test_patients_are_scored_by_the_mean_of_their_images(record: dict, two_classes: Path) -> None:
    predictions = _table(two_classes / "evaluation/predictions.csv")
    patient = predictions["path"].str[:4]
    mean = predictions["p_opacity"].astype(float).groupby(patient).mean()
    truth = predictions.groupby(patient)["label"].first() == "opacity"
    assert record["by"]["patient"]["accuracy"]["value"] == pytest.approx(((mean >= 0.5) == truth).mean())
    assert record["by_left_out"] == {"series": "not all images have a series"}
    assert (record["patients"], record["cases"]) == (TESTED, TESTED * IMAGES_EACH)


def test_subgroups_are_those_of_the_sheet(record: dict, two_classes: Path) -> None:
    assert {row["column"] for row in record["subgroups"]} == {"patient_sex", "patient_age", "institution_name"}
    sheet = pd.read_csv(two_classes.parent / "data/sheet.csv").set_index("file")
    tested = sheet.loc[_table(two_classes / "evaluation/predictions.csv")["path"]]
    sexes = {row["value"]: row["cases"] for row in record["subgroups"] if row["column"] == "patient_sex"}
    assert sexes == tested["sex"].value_counts().to_dict()
    assert {row["warning"][:20] for row in record["subgroups"]} == {"too few patients to "}


def test_other_resamples_other_intervals_same_values(record: dict, two_classes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(two_classes, run)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(
        config.replace("resamples: 100", "resamples: 300").replace("patient_sex", "no_such")
    )
    again = evaluate(run, progress=False)
    assert again["metrics"]["brier"]["value"] == record["metrics"]["brier"]["value"]
    assert again["metrics"]["brier"]["low"] != record["metrics"]["brier"]["low"]
    assert any("no_such: no column of the index" in warning for warning in again["warnings"])


def test_several_findings(several_findings: Path) -> None:
    found = evaluate(several_findings, progress=False)
    assert found["several"]
    assert {"exact_match", "auroc", *(f"auroc_{name}" for name in FINDINGS)} <= set(found["metrics"])
    predictions = _table(several_findings / "evaluation/predictions.csv")
    assert found["metrics"]["exact_match"]["value"] == (predictions["label"] == predictions["predicted"]).mean()
    assert set(found["thresholds"]) == set(FINDINGS)
    assert [np.sum(table) for table in found["confusion"]] == [len(predictions)] * 3
    lines = json.loads((several_findings / "evaluation/curves.json").read_text())
    assert {one["class"] for one in lines["roc"]} == {
        name for name in FINDINGS if predictions["label"].str.contains(name).any()
    }
    assert (several_findings / "evaluation/report.html").is_file()
    assert not (several_findings / "evaluation/confusion_matrix.png").exists()


def test_folds_are_cross_validated_by_the_network_that_has_not_seen_them(two_folds: Path) -> None:
    folder = two_folds / "evaluation"
    told = json.loads((folder / "metrics.json").read_text())["cross_validation"]
    table, split = _table(folder / "cross_validation.csv").set_index("case_id"), _table(two_folds / "split.csv")
    fold = split[split["fold"] != ""].set_index("case_id")["fold"]
    assert told["cases"] == len(table) == len(fold)
    assert (table["fold"] == "fold-" + fold.reindex(table.index)).all()
    for number in ("0", "1"):
        own = two_folds / f"fold-{number}"
        trained = _table(own / "split.csv").query("split == 'train'")["case_id"]
        assert not table.index[table["fold"] == own.name].isin(trained).any()
    one = evaluate(two_folds / "fold-1", split="validation", progress=False)
    [same] = [part for part in told["folds"] if part["fold"] == "fold-1"]
    assert same["metrics"]["brier"] == pytest.approx(one["metrics"]["brier"]["value"])
    assert same["metrics"]["accuracy"] == pytest.approx(one["metrics"]["accuracy"]["value"])
    each = [part["metrics"]["auroc"] for part in told["folds"]]
    assert told["within_folds"]["auroc"]["value"] == pytest.approx(np.mean(each))
    assert "also chose which epoch's weights were kept and the temperature and the thresholds" in told["warnings"][0]


def test_the_ensemble_is_evaluated_on_the_test_split(two_folds: Path) -> None:
    content = json.loads((two_folds / "evaluation/metrics.json").read_text())
    assert (content["split"], content["patients"]) == ("test", TESTED)
    lines = summary_lines(content)
    assert any(line.startswith("cross-validation: 96 cases") for line in lines)
    with pytest.raises(ConfigError, match="its folds are validated by one another"):
        evaluate(two_folds, split="validation", progress=False)


def test_other_data_of_the_same_kind(two_classes: Path, several_findings: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(two_classes, run)
    other = make_pictures(tmp_path / "elsewhere", seed=5, first=100)
    found = evaluate(run, data=str(other / "manifest.yaml"), progress=False)
    assert (found["split"], found["cases"]) == ("elsewhere", PATIENTS * IMAGES_EACH)
    assert (run / "evaluation/data-elsewhere/report.html").is_file()
    assert {row["column"] for row in found["subgroups"]} >= {"patient_sex", "institution_name"}
    findings = several_findings.parent / "data/manifest.yaml"
    with pytest.raises(ConfigError, match="its classes is"):
        evaluate(run, data=str(findings), progress=False)
    with pytest.raises(RunError, match="were trained or validated on"):
        evaluate(several_findings, data=str(findings), progress=False)


def test_several_findings_of_other_data(several_findings: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(several_findings, run)
    other = make_pictures(tmp_path / "elsewhere", several=True, seed=5, first=100)
    found = evaluate(run, data=str(other / "manifest.yaml"), progress=False)
    assert set(found["by"]) == {"patient"}
    assert found["cases"] == PATIENTS * IMAGES_EACH


def test_images_that_cannot_be_read_are_no_figures(two_classes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "two"
    shutil.copytree(two_classes.parent, folder)
    run = folder / "run"
    summary = run / "index/summary.json"
    summary.write_text(summary.read_text().replace(str(two_classes.parent), str(folder)))
    if not (run / "evaluation").is_dir():
        evaluate(run, progress=False)
    before = _table(run / "evaluation/predictions.csv")
    victim = folder / "data/images" / before["path"].iloc[0]
    Image.new("L", (8, 8)).save(victim)
    found = evaluate(run, progress=False)
    assert found["failed"] == 1
    assert found["cases"] == TESTED * IMAGES_EACH - 1
    assert any("1 of 24 cases could not be predicted" in warning for warning in found["warnings"])


@pytest.mark.parametrize("unit", ["series", "study"])
def test_units_of_cases_with_several_series(unit: str, two_classes: Path) -> None:
    """Two studies of a patient, two series each; probabilities as they come."""
    facts = read_model(two_classes).model_copy(update={"unit": unit})
    random = np.random.default_rng(0)
    series = np.repeat([f"{study}.{number}" for study in range(20) for number in "12"], 3)
    study = np.array([name.partition(".")[0] for name in series])
    probability = random.random(len(series))
    images = pd.DataFrame({"case_id": series if unit == "series" else study, "series_instance_uid": series})
    images["p_normal"], images["p_opacity"] = 1 - probability, probability
    images.loc[0, ["p_normal", "p_opacity"]] = np.nan  # this one could not be predicted
    ids = pd.Series(pd.unique(images["case_id"]))
    means = images.groupby("case_id", sort=False)[["p_normal", "p_opacity"]].mean().to_numpy()
    number = ids.str.partition(".")[0].astype(int)
    cases = score(number // 2 % 2, means, (number // 2).astype(str), classes=facts.classes)
    found, without = by_unit(cases, ids, images, facts)
    assert set(found) == {"image", "patient"} | ({"series"} if unit == "study" else set())
    assert without == {}
    assert len(found["image"]) == len(series) - 1
    assert len(found["patient"]) == 10
    first = images.loc[study == "0", "p_opacity"].to_numpy()
    second = images.loc[study == "1", "p_opacity"].to_numpy()
    assert found["patient"].probabilities[0, 1] == pytest.approx(np.nanmean(np.concatenate([first, second])))
    if unit == "study":
        assert len(found["series"]) == 40
        assert found["series"].probabilities[1, 1] == pytest.approx(probability[3:6].mean())


def test_units_that_cannot_be_are_said(two_classes: Path) -> None:
    facts = read_model(two_classes).model_copy(update={"unit": "study"})
    cases = score([0, 1, 0], [[0.5, 0.5]] * 3, ["a", "a", "b"], classes=facts.classes)
    ids = pd.Series(["0", "1", "2"])
    images = pd.DataFrame({"case_id": ids, "series_instance_uid": ids, "p_normal": 0.5, "p_opacity": 0.5})
    _, without = by_unit(cases, ids, images, facts)
    assert without["patient"] == "1 of 2 patients has cases with different labels"
    assert without["series"] == "each case is one series: the figures are the same"
    attention = facts.model_copy(update={"network": facts.network.model_copy(update={"pooling": "attention"})})
    found, without = by_unit(cases, ids, images, attention, patients_known=False)
    assert found == {}
    assert "attention pooling" in without["image"]
    assert without["patient"] == "patients are not known"


def test_a_split_that_is_none(two_classes: Path) -> None:
    with pytest.raises(ConfigError, match="expected one of train, validation, test"):
        own_split(two_classes, "holdout", read_model(two_classes))


def _beside(run: Path, folder: Path) -> Path:
    """A copy of the run and of its data in `folder`, whose files have the time of now; the copied run."""
    shutil.copytree(run, folder / "run")
    shutil.copytree(run.parent / "data", folder / "data", copy_function=shutil.copyfile)
    return folder / "run"


def test_data_that_were_copied_elsewhere_are_evaluated_where_they_lie(
    record: dict, two_classes: Path, tmp_path: Path
) -> None:
    run = _beside(two_classes, tmp_path)
    moved = evaluate(run, root=tmp_path / "data", progress=False)
    assert moved["metrics"] == record["metrics"]
    said = [warning for warning in moved["warnings"] if warning not in record["warnings"]]
    assert len(said) == 1
    assert f"{TESTED * IMAGES_EACH} files of {TESTED * IMAGES_EACH} written again" in said[0]


def test_a_file_of_another_size_is_not_the_one_that_was_indexed(two_classes: Path, tmp_path: Path) -> None:
    run = _beside(two_classes, tmp_path)
    path = _table(two_classes / "evaluation" / "predictions.csv")["path"][0]
    with (tmp_path / "data" / "images" / path).open("ab") as file:
        file.write(b"more")
    assert evaluate(run, root=tmp_path / "data", progress=False)["failed"] == 1
    table = _table(run / "evaluation" / "predictions.csv")
    assert table.loc[table["status"] == "failed", "reason"].str.startswith("changed").tolist() == [True]


def test_data_that_are_gone_are_asked_for(two_classes: Path, tmp_path: Path) -> None:
    run = _beside(two_classes, tmp_path)
    summary = run / "index" / "summary.json"
    summary.write_text(summary.read_text().replace(str(two_classes.parent), str(tmp_path / "gone")))
    with pytest.raises(RunError, match=r"gone.*--root DIR says where they lie now"):
        evaluate(run, progress=False)
