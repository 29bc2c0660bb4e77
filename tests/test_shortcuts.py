"""The shortcut audit finds what was planted, finds nothing where there is nothing, and never looks across patients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from sklearn.metrics import roc_auc_score

from pipeline.auditing.features import (
    BORDER_FEATURES,
    MOST_CHARACTERS,
    ages,
    border_features,
    case_facts,
    case_features,
    describe_border,
    printable,
    sexes,
    words,
    years,
)  # fmt: skip
from pipeline.auditing.shortcut_scores import (
    Subjects,
    areas_for,
    areas_of,
    encode,
    folds_by_patient,
    held_out_scores,
    reached_by_chance,
)  # fmt: skip
from pipeline.auditing.shortcuts import QUICK, Effort, audit_shortcuts, draw_cases
from pipeline.cohort.cases import Cases
from pipeline.label_arrays import label_texts
from pipeline.manifest import Manifest

CASES, PATIENTS = 80, 40


SMALL = Effort(trees=20, resamples=100)


def _manifest(**more: Any) -> Manifest:
    settings_ = {"name": "t", "classes": ["a", "b"], "sources": [{"path": "x"}], "labels": {"source": "folder"}}
    return Manifest(**(settings_ | more))


def _facts(folder: Path, **columns: Any) -> pd.DataFrame:
    """Cases of two classes and 40 patients, two cases each, that differ in nothing but in `columns`; their images are one file."""
    image = folder / "one.png"
    Image.fromarray(np.tile(np.arange(32, dtype=np.uint8), (32, 1))).save(image)
    status = image.stat()
    number = np.arange(CASES)
    facts = pd.DataFrame(
        {
            "case_id": [f"c{one:03d}" for one in number],
            "patient_key": [f"p{one // 2:03d}" for one in number],
            "label": np.where(number // 2 % 2 == 0, "a", "b"),
            "source": "s",
            "path": image.name,
            "format": "png",
            "frame": 0,
            "rows": 32,
            "columns": 32,
            "frames": 1,
            "bytes": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "files": 1,
            "images": 1,
            "series": 1,
            "color_mode": "L",
            "patient_age": "050Y",
            "study_date": "20200101",
            **columns,
        }
    )
    return facts.set_index("case_id", drop=False).rename_axis(None)


def _audit(facts: pd.DataFrame, folder: Path, effort: Effort = SMALL, **manifest: Any) -> dict[str, Any]:
    return audit_shortcuts(facts, _manifest(**manifest), {"s": folder}, effort=effort, workers=0, progress=False)


def _group(result: dict[str, Any], name: str) -> dict[str, Any]:
    return next(group for group in result["groups"] if group["name"] == name)


def test_a_planted_trap_is_found_and_told_in_words(tmp_path: Path):
    facts = _facts(tmp_path)
    facts["color_mode"] = np.where((facts["label"] == "a") | (np.arange(CASES) < 8), "RGBA", "RGB")
    result = _audit(facts, tmp_path)
    colour = _group(result, "colour")
    assert colour["warned"]
    assert colour["auroc"]["value"] > 0.85
    assert colour["auroc"]["low"] <= colour["auroc"]["value"] <= colour["auroc"]["high"]
    assert colour["trap"] == "color_mode RGB: 0 of 40 a, 36 of 40 b"
    assert [one["name"] for one in result["features"]] == ["color_mode"]
    assert _group(result, "together")["warned"]
    untested = [group for group in result["groups"] if group["name"] not in ("colour", "together")]
    assert {group["reason"] for group in untested} <= {"the same for every case", "not known for any case"}
    assert not any(group["warned"] or group["auroc"] for group in untested)


def test_that_a_value_is_missing_may_tell_the_class(tmp_path: Path):
    facts = _facts(tmp_path)
    facts["patient_age"] = np.where(facts["label"] == "a", "", "050Y")
    facts["kvp"] = pd.array(np.where(facts["label"] == "a", 120.0, np.nan), dtype="Float64")
    facts["kvp"] = facts["kvp"].mask(facts["kvp"].isna() | (facts["label"] == "b"), pd.NA)
    result = _audit(facts, tmp_path)
    assert _group(result, "demographics")["auroc"]["value"] == 1.0
    assert _group(result, "scanner")["trap"] == "kvp (none): 0 of 40 a, 40 of 40 b"
    assert "patient_age_years" not in _group(result, "together")["features"]


def test_noise_is_no_shortcut_and_a_patients_likeness_is_none_either(tmp_path: Path):
    generator = np.random.default_rng(1)
    patients, each = 10, 8
    facts = _facts(tmp_path, slice_thickness=generator.random(CASES))
    facts["patient_key"] = np.repeat([f"p{number}" for number in range(patients)], each)
    facts["bytes"] = np.repeat(
        100 * np.arange(patients), each
    )  # the same for all cases of a patient, and in no order of class
    facts["label"] = np.repeat(["a", "b"] * (patients // 2), each)
    result = _audit(facts, tmp_path)
    assert not _group(result, "scanner")["warned"]
    assert not _group(result, "bytes")["warned"]
    assert _group(result, "bytes")["auroc_by_case"] > 0.85  # what a split by case would have shown
    assert result["not_decoded"] == {"changed": CASES}  # no file has these bytes


@pytest.mark.parametrize(("patients", "folds"), [(20, 2), (60, 3), (60, 5)])
def test_what_chance_reaches_is_what_noise_reaches_once_in_forty_times(patients: int, folds: int):
    generator = np.random.default_rng(0)
    label, patient = np.repeat(np.arange(patients) % 2, 3), np.repeat(np.arange(patients), 3)
    subjects = Subjects(label, patient, (patient // 2) % folds, ("a", "b"))
    limit = reached_by_chance(subjects)
    noise = [np.repeat(generator.random((patients, 2)), 3, axis=0) for _ in range(2000)]  # a patient's cases are alike
    reached = [areas_for(one, subjects, np.ones((1, len(label))))[0, 0] for one in noise]
    assert 0.01 < np.mean(np.array(reached) >= limit) < 0.04


def test_what_the_label_is_read_from_is_no_shortcut(tmp_path: Path):
    facts = _facts(tmp_path, body_part_examined=[["CHEST", "HEAD"][one // 2 % 2] for one in range(CASES)])
    assert _group(_audit(facts, tmp_path), "acquisition")["warned"]
    labels = {"source": "attribute", "attribute": "BodyPartExamined", "values": {"CHEST": "a", "HEAD": "b"}}
    result = _audit(facts, tmp_path, labels=labels)
    assert not any(group["warned"] for group in result["groups"])
    assert result["features_left_out"] == ["body_part_examined"]


def test_too_few_patients_are_said_and_not_judged(tmp_path: Path):
    facts = _facts(tmp_path)
    facts.loc[facts["label"] == "b", "patient_key"] = "p1"
    result = _audit(facts, tmp_path)
    assert result["folds"] is None
    assert result["cases_to_decode"] == 0
    assert {group["reason"] for group in result["groups"]} == {
        "too few patients: at least 2 in each of two classes are needed"
    }
    assert result["classes_left_out"] == {"b": 1}


def test_of_several_classes_one_that_is_given_away_is_warned_about(tmp_path: Path):
    generator = np.random.default_rng(0)
    names = [f"c{number}" for number in range(8)]
    facts = _facts(tmp_path)
    facts["label"] = np.repeat(np.resize(names, PATIENTS), 2)
    facts["color_mode"] = np.where(
        facts["label"] == "c3", "RGB", np.array(["L", "P", "LA"])[generator.integers(0, 3, CASES)]
    )
    colour = _group(_audit(facts, tmp_path, classes=names), "colour")
    assert colour["auroc"]["value"] < 0.65
    assert colour["auroc_of_class"]["c3"]["value"] > 0.95
    assert colour["warned"]


NAMES = [f"f{number}" for number in range(6)]


def _findings(folder: Path, seed: int = 0, **columns: Any) -> tuple[pd.DataFrame, np.ndarray]:
    """`_facts` with six findings at once, of which a patient has each by chance, and the findings (cases, 6) themselves."""
    present = np.repeat(np.random.default_rng(seed).random((PATIENTS, len(NAMES))) < 0.3, 2, axis=0)
    return _facts(folder, label=label_texts(present, NAMES), **columns), present


def _audit_findings(facts: pd.DataFrame, folder: Path) -> dict[str, Any]:
    labels = {"source": "folder", "several": True}
    return _audit(facts, folder, classes=NAMES, labels=labels)


def test_of_several_findings_the_one_that_is_given_away_is_named(tmp_path: Path):
    facts, present = _findings(tmp_path)
    facts["color_mode"] = np.where(present[:, 4], "RGB", "L")
    result = _audit_findings(facts, tmp_path)
    colour = _group(result, "colour")
    assert colour["warned"]
    assert colour["told_best"] == "f4"
    assert set(colour["auroc_of_class"]) == set(NAMES)
    assert colour["auroc_of_class"]["f4"]["value"] > 0.95
    others = [colour["auroc_of_class"][name]["value"] for name in NAMES if name != "f4"]
    assert np.mean(others) < 0.6
    count = int(present[:, 4].sum())
    assert colour["trap"] in {
        f"color_mode RGB: {count} of {count} f4, 0 of {CASES - count} not f4",
        f"color_mode L: 0 of {count} f4, {CASES - count} of {CASES - count} not f4",
    }


def test_of_several_findings_noise_is_no_shortcut(tmp_path: Path):
    facts, _ = _findings(tmp_path, slice_thickness=np.random.default_rng(7).random(CASES))
    scanner = _group(_audit_findings(facts, tmp_path), "scanner")
    assert not scanner["warned"]
    assert 0.3 < scanner["auroc"]["value"] < 0.65


def test_a_finding_that_one_patient_has_or_lacks_is_left_out(tmp_path: Path):
    facts, present = _findings(tmp_path)
    present[:, 0], present[:, 1] = False, True
    present[:2, 0], present[:2, 1] = True, False
    facts["label"] = label_texts(present, NAMES)
    result = _audit_findings(facts, tmp_path)
    assert result["classes"] == NAMES[2:]
    assert result["classes_left_out"] == {"f0": 1, "f1": PATIENTS - 1}
    assert result["cases"] == CASES


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.integers(2, 5))
def test_folds_of_findings_keep_patients_and_have_each_finding(seed: int, most: int):
    generator = np.random.default_rng(seed)
    patient = generator.integers(0, 30, 80)
    present = generator.random((80, 3)) < 0.3
    patient = np.unique(patient, return_inverse=True)[1]
    fold = folds_by_patient(present.astype(np.int64), patient, 3, most)
    assert len(np.unique(np.stack([patient, fold]), axis=1).T) == patient.max() + 1
    assert fold.max() + 1 == most
    for number in range(most):
        assert (present[fold == number].any(axis=0)).all()


def test_a_quick_look_finds_the_same_traps_and_judges_only_their_features(tmp_path: Path):
    facts = _facts(tmp_path, slice_thickness=np.random.default_rng(1).random(CASES))
    facts["color_mode"] = np.where(facts["label"] == "a", "RGBA", "RGB")
    quick = replace(QUICK, decoded=4)
    result = _audit(facts, tmp_path, quick)
    assert _group(result, "colour")["trap"] == "color_mode RGB: 0 of 40 a, 40 of 40 b"
    assert [one["name"] for one in result["features"]] == ["color_mode"]
    assert result["cases_to_decode"] == 4
    assert _audit(facts, tmp_path, quick) == result


def test_the_border_is_decoded_of_some_cases_only_and_said(tmp_path: Path):
    facts = _facts(tmp_path)
    for name in ("dark", "light"):
        Image.fromarray(np.full((32, 32), 0 if name == "dark" else 200, np.uint8)).save(tmp_path / f"{name}.png")
    facts["path"] = np.where(facts["label"] == "a", "dark.png", "light.png")
    for name in ("dark.png", "light.png"):
        status = (tmp_path / name).stat()
        facts.loc[facts["path"] == name, ["bytes", "mtime_ns"]] = [status.st_size, status.st_mtime_ns]
    result = _audit(facts, tmp_path, replace(SMALL, decoded=20))
    assert (result["cases"], result["cases_decoded"], result["not_decoded"]) == (CASES, 20, {})
    border = _group(result, "border")
    assert (border["cases"], border["auroc"]["value"]) == (20, 1.0)
    assert "border_black_share 0: 0 of 10 a, 10 of 10 b" in [one["trap"] for one in result["features"]]


def test_a_file_that_cannot_be_decoded_costs_its_own_border(tmp_path: Path):
    facts = _facts(tmp_path).iloc[:4].copy()
    facts.loc["c001", "path"] = "gone.png"
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    status = (tmp_path / "bad.png").stat()
    facts.loc["c002", ["path", "bytes", "mtime_ns"]] = ["bad.png", status.st_size, status.st_mtime_ns]
    table, failures = border_features(facts, {"s": tmp_path}, workers=0)
    assert sum(failures.values()) == 2
    assert failures["changed"] == 1
    assert list(table.index) == list(facts.index)
    assert table.isna().all(axis=1).tolist() == [False, True, True, False]


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.floats(0, 1, width=32)),
    st.integers(0, 6),
    st.integers(0, 6),
)
def test_borders_are_shares_and_padding_is_what_was_added(image: np.ndarray, top: int, left: int):
    values = describe_border(image)
    assert tuple(values) == BORDER_FEATURES
    assert all(0.0 <= value <= 1.0 + 1e-6 for value in values.values())
    mirrored = describe_border(image[::-1, ::-1])
    assert mirrored["border_top_mean"] == pytest.approx(values["border_bottom_mean"], abs=1e-5)
    assert mirrored["padding_share"] == values["padding_share"]
    inner = image.copy()
    inner[0, 0], inner[-1, -1] = 0.25, 0.75
    if inner.shape[0] > 1 and inner.shape[1] > 1:
        inner[0, -1], inner[-1, 0] = 0.5, 0.5
        padded = np.pad(inner, ((top, 0), (left, 0)), constant_values=1.0)
        assert describe_border(padded)["padding_share"] == pytest.approx(1 - inner.size / padded.size)


@settings(deadline=None)
@given(st.text())
def test_what_is_shown_is_on_one_line_and_short(value: str):
    shown = printable(value)
    assert shown.isprintable()
    assert len(shown) <= MOST_CHARACTERS


def test_escape_sequences_of_a_header_reach_no_terminal():
    facts = pd.DataFrame({"manufacturer": ["\x1b[31mGE\x07\u202eX", None, "GE"]}, dtype="category")
    assert words(facts, "manufacturer").tolist() == ["[31mGE X", "", "GE"]


def test_ages_years_and_sexes():
    facts = pd.DataFrame(
        {
            "patient_age": ["045Y", "018M", "010W", "365D", "54.0", "61", "", "old", "٤٥", None],
            "study_date": ["20191231", "2020", "00000000", "1899", "", "20200230", "x", None, "20201", "19500101"],
            "patient_sex": ["M", "f", "male", "Female", "O", "", None, " m ", "?", "F"],
        }
    )
    expected = [45, 1.5, 10 * 7 / 365.25, 365 / 365.25, 54, 61]
    assert ages(facts).tolist()[:6] == pytest.approx(expected)
    assert ages(facts).isna().tolist()[6:] == [True] * 4
    assert years(facts).fillna(0).tolist() == [2019, 2020, 0, 0, 0, 2020, 0, 0, 2020, 1950]
    assert sexes(facts).tolist() == ["M", "F", "M", "F", "O", "", "", "M", "?", "F"]


def test_hostile_numbers_do_not_stop_the_audit(tmp_path: Path):
    facts = _facts(tmp_path, slice_thickness=[1e300, np.inf] * (CASES // 2), pixel_spacing="1e400\\x", rows=0)
    features = case_features(facts)
    assert np.isfinite(features.select_dtypes("number").to_numpy()[~features.select_dtypes("number").isna()]).all()
    assert _group(_audit(facts, tmp_path), "scanner")["reason"] == "not known for any case"


@pytest.mark.parametrize("dtype", ["str", "category"])
def test_case_facts_are_those_of_the_middle_image(dtype: str):
    table = pd.DataFrame(
        {
            "source": "s",
            "path": [f"{number}.dcm" for number in range(6)],
            "manufacturer": ["A", "B", "C", "D", None, "F"],
            "modality": "CT",
            "rows": pd.array([10, 20, 30, 40, 50, 60], dtype="Int64"),
        }
    ).astype({"source": dtype, "manufacturer": dtype, "modality": dtype})
    places = [5, 0, 1, 2, 2]  # the last file has two frames
    images = table.iloc[places][["source", "path", "modality"]].reset_index(drop=True)
    images = images.assign(
        case_id=["y", "x", "x", "x", "x"], frame=[0, 0, 0, 0, 1], series_instance_uid=["1", "2", "2", "3", "3"]
    )
    cases = pd.DataFrame({"case_id": ["y", "x"], "label": ["a", "b"], "patient_key": ["p", "q"]})
    facts = case_facts(Cases(cases, images, pd.DataFrame()), table.iloc[::-1])
    assert facts.index.tolist() == ["x", "y"]
    assert words(facts, "manufacturer").tolist() == ["B", "F"]
    assert facts[["rows", "images", "files", "series"]].astype(int).to_numpy().tolist() == [
        [20, 4, 3, 2],
        [60, 1, 1, 1],
    ]
    assert facts["label"].tolist() == ["b", "a"]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.sampled_from("abc")), min_size=1, max_size=60), st.integers(1, 40))
def test_drawn_cases_are_whole_patients_and_none_is_drawn_twice(pairs: list[tuple[int, str]], most: int):
    facts = pd.DataFrame(pairs, columns=["patient_key", "label"]).astype({"patient_key": str})
    drawn = draw_cases(facts, most)
    assert len(drawn) == min(most, len(facts))
    assert drawn.index.is_unique
    assert drawn.index.is_monotonic_increasing
    partly = [key for key, group in drawn.groupby("patient_key") if len(group) < (facts["patient_key"] == key).sum()]
    assert len(partly) <= 1


def test_a_rare_class_is_drawn_in_full():
    facts = pd.DataFrame({"patient_key": [f"p{number}" for number in range(1000)], "label": ["a"] * 980 + ["b"] * 20})
    assert draw_cases(facts, 100)["label"].value_counts().to_dict() == {"a": 80, "b": 20}


def _subjects(size: int, classes: int, folds: int, seed: int) -> tuple[Subjects, np.ndarray]:
    generator = np.random.default_rng(seed)
    label, fold = generator.integers(0, classes, size), generator.integers(0, folds, size)
    scores = np.round(generator.random((size, classes)), 1)
    return Subjects(label, np.arange(size), fold, tuple(f"k{number}" for number in range(classes))), scores


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000))
def test_areas_are_scikit_learns_within_folds(seed: int):
    subjects, scores = _subjects(60, 2, 1, seed)
    assert areas_of(scores, subjects, 50).mean["value"] == pytest.approx(roc_auc_score(subjects.label, scores[:, 1]))
    several, scores = _subjects(60, 3, 1, seed)
    each = [roc_auc_score(several.label == number, scores[:, number]) for number in range(3)]
    assert areas_of(scores, several, 50).mean["value"] == pytest.approx(np.mean(each))
    shifted = Subjects(subjects.label, subjects.patient, subjects.label % 2, subjects.classes)
    assert areas_of(scores, shifted, 50).mean is None  # each fold has one class: nothing can be compared


def test_scores_come_from_forests_that_saw_none_of_the_patient():
    label = np.array([0, 1] * 20)
    subjects = Subjects(label, np.arange(40), np.arange(40) // 8, ("a", "b"))
    learned = held_out_scores(label[:, None].astype(float), subjects, 20)
    assert areas_of(learned, subjects, 50).mean["value"] == 1.0
    own = held_out_scores(np.arange(40)[:, None].astype(float), subjects, 20)
    assert np.isfinite(own).all()
    assert (held_out_scores(label[:, None].astype(float), subjects, 20) == learned).all()


def test_rare_words_are_pooled():
    features = pd.DataFrame({"n": [1.0, np.nan, 3.0, 4.0], "w": ["x", "x", "lonely", "alone"]})
    encoded = encode(features, np.array([0, 1, 2, 3]))
    assert encoded[:, 1:].tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]
    assert np.isnan(encoded[1, 0])
