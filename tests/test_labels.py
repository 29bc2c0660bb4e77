"""Each case's label and patient: from folders, sheets, headers, paths and blocks; whoever contradicts himself is left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.cohort.cases import Cases
from pipeline.cohort.labels import label_cases, labelled_cases
from pipeline.cohort.patients import UNKNOWN_PATIENT
from pipeline.dicom.phantom import ct_slice, phantom_uid, save
from pipeline.errors import ConfigError
from pipeline.indexing.sources import open_manifest
from tests.images import KEY, grouped_cases, opened

SHEET = """
sheet: {path: labels.csv, join: StudyInstanceUID, column: key}
labels: {source: sheet, column: what, values: {y: pos, 'yes': pos, n: neg}}
"""


def _labelled(
    folder: Path,
    manifest: str,
    rows: list[dict[str, Any]],
    sheet: str = "",
    *,
    unit: str = "",
    categorical: bool = True,
) -> Cases:
    (folder / "labels.csv").write_text(sheet)
    source = opened(folder, manifest)
    assert source.manifest is not None
    return label_cases(grouped_cases(rows, unit=unit, categorical=categorical), source.manifest, source, KEY)


def _study(number: int, images: int = 1, **more: Any) -> list[dict[str, Any]]:
    """Images of study 1.2.<number>, of patient P<number>."""
    patient = {"study_instance_uid": f"1.2.{number}", "patient_key": KEY.patient(f"P{number}")}
    return [{**patient, "path": f"s{number}/{image}.dcm", **more} for image in range(images)]


def _found(cases: Cases, column: str = "label") -> dict[str, str]:
    return dict(zip(cases.cases["case_id"], cases.cases[column], strict=True))


def _left_out(cases: Cases) -> dict[str, str]:
    return dict(zip(cases.exclusions["path"], cases.exclusions["rule"], strict=True))


def _problems(cases: Cases) -> list[tuple[int, str]]:
    return list(cases.sheet_problems[["line", "problem"]].itertuples(index=False, name=None))


# Labels


@pytest.mark.parametrize("categorical", [True, False])
def test_labels_from_folders(tmp_path: Path, categorical: bool):
    paths = ["NEG/1.png", "deep/POS/er/2.png", "3.png", "POS.png", "NEG/POS/4.png", "POS/POS/5.png"]
    manifest = "labels: {source: folder, values: {NEG: neg, POS: pos}}\n"
    labelled = _labelled(tmp_path, manifest, [{"path": path} for path in paths], categorical=categorical)
    assert _found(labelled) == {"NEG/1.png": "neg", "deep/POS/er/2.png": "pos", "POS/POS/5.png": "pos"}
    assert _left_out(labelled) == {"3.png": "no label", "POS.png": "no label", "NEG/POS/4.png": "contradicting labels"}
    assert "2 cases left out: no label" in labelled.warnings
    assert "1 case left out: contradicting labels" in labelled.warnings


def test_a_sheet_labels_the_case_of_any_image_that_it_names(tmp_path: Path):
    manifest = SHEET.replace("StudyInstanceUID", "path")
    labelled = _labelled(
        tmp_path,
        manifest,
        [*_study(1, 3), *_study(2)],
        "key,what\ns1/1.dcm,yes\ns2/0.dcm,n\n",
        unit="study_instance_uid",
    )
    assert _found(labelled) == {"1.2.1": "pos", "1.2.2": "neg"}
    assert labelled.images["label"].tolist() == ["pos", "pos", "pos", "neg"]


@pytest.mark.parametrize("categorical", [True, False])
def test_rows_that_agree_are_one_and_rows_that_contradict_leave_the_case_out(tmp_path: Path, categorical: bool):
    sheet = "key,what\n1.2.1,y\n1.2.2,y\n1.2.1,yes\n1.2.2,n\n1.2.2,yes\n1.2.3,n\n1.2.3,\n1.2.3,who knows\n"
    labelled = _labelled(
        tmp_path,
        SHEET,
        [*_study(1), *_study(2, 2), *_study(3)],
        sheet,
        unit="study_instance_uid",
        categorical=categorical,
    )
    assert _found(labelled) == {"1.2.1": "pos", "1.2.3": "neg"}
    assert _left_out(labelled) == dict.fromkeys(("s2/0.dcm", "s2/1.dcm"), "contradicting labels")
    assert _problems(labelled) == [
        (3, "contradicts line 5"),
        (5, "contradicts line 3"),
        (6, "contradicts line 5"),
        (8, "empty label"),
        (9, "its label is mapped to no class"),
    ]
    assert "3 of 8 rows of the label sheet contradict another of the same key" in labelled.warnings
    assert "1 case left out: contradicting labels" in labelled.warnings


def test_images_of_one_case_with_several_labels_leave_it_out(tmp_path: Path):
    sheet = "key,what\ns1/0.dcm,y\ns1/1.dcm,n\ns2/0.dcm,y\ns2/1.dcm,yes\n"
    labelled = _labelled(
        tmp_path,
        SHEET.replace("StudyInstanceUID", "path"),
        [*_study(1, 2), *_study(2, 2)],
        sheet,
        unit="study_instance_uid",
    )
    assert _found(labelled) == {"1.2.2": "pos"}
    assert set(_left_out(labelled).values()) == {"contradicting labels"}
    assert _problems(labelled) == []


def test_what_is_wrong_with_a_sheet_is_told_by_its_lines(tmp_path: Path):
    sheet = "key,what\n1.2.1,y\nDOE,n\n,n\n1.2.2,maybe DOE\n1.2.9,n\n"
    labelled = _labelled(tmp_path, SHEET, [*_study(1), *_study(2), *_study(3)], sheet)
    assert _problems(labelled) == [
        (3, "matches no image that the rules let in"),
        (4, "empty key"),
        (5, "its label is mapped to no class"),
        (6, "matches no image that the rules let in"),
    ]
    assert labelled.warnings[:3] == (
        "1 of 5 rows of the label sheet has an empty key",
        "2 of 5 rows of the label sheet match no image that the rules let in",
        "1 of 5 rows of the label sheet has a label that is mapped to no class",
    )
    assert "2 cases left out: no label" in labelled.warnings
    assert "DOE" not in labelled.sheet_problems.to_csv() + "".join(labelled.warnings)


def test_no_labelled_case_is_one_error_with_the_reasons(tmp_path: Path):
    with pytest.raises(
        ConfigError, match=r"no labelled case is left: 1 image left out \(1 by 'no label'\).*mapped to no class"
    ) as caught:
        _labelled(tmp_path, SHEET, _study(1), "key,what\n1.2.1,DOE\n")
    assert "DOE" not in str(caught.value)


def test_many_classes(tmp_path: Path):
    manifest = SHEET.replace("values: {y: pos, 'yes': pos, n: neg}", "values: {}")
    (tmp_path / "labels.csv").write_text(
        "key,what\n" + "".join(f"1.2.{number},c{number % 5}\n" for number in range(40))
    )
    source = opened(tmp_path, manifest)
    assert source.manifest is not None
    five = source.manifest.model_copy(update={"classes": [f"c{number}" for number in range(5)]})
    rows = [row for number in range(40) for row in _study(number)]
    labelled = label_cases(grouped_cases(rows), five, source, KEY)
    assert _found(labelled) == {f"s{number}/0.dcm": f"c{number % 5}" for number in range(40)}


# Attributes


@pytest.mark.parametrize("categorical", [True, False])
def test_labels_from_an_attribute_of_which_any_value_may_be_a_class(tmp_path: Path, categorical: bool):
    values = ["ORIGINAL\\PRIMARY", "DERIVED \\SECONDARY", "ORIGINAL\\DERIVED", "OTHER", None, "A\\B"]
    rows = [{"image_type": value, "path": f"{place}.dcm"} for place, value in enumerate(values)]
    for attribute in ("ImageType", "image_type"):
        manifest = f"labels: {{source: attribute, attribute: {attribute}, values: {{ORIGINAL: neg, DERIVED: pos, 'A\\B': pos}}}}\n"
        labelled = _labelled(tmp_path, manifest, rows, categorical=categorical)
        assert _found(labelled) == {"0.dcm": "neg", "1.dcm": "pos", "5.dcm": "pos"}
        assert _left_out(labelled) == {"2.dcm": "contradicting labels", "3.dcm": "no label", "4.dcm": "no label"}


def test_labels_from_a_number(tmp_path: Path):
    rows = [{"slice_thickness": value, "path": f"{value}.dcm"} for value in (1.0, 2.5)]
    manifest = "labels: {source: attribute, attribute: SliceThickness, values: {'1': neg, '2.5': pos}}\n"
    assert _found(_labelled(tmp_path, manifest, rows)) == {"1.0.dcm": "neg", "2.5.dcm": "pos"}


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("PatientName", "says who the patient is"),
        ("PatientID", "says who the patient is"),
        ("patient_id", "says who the patient is"),
        ("patient_key", "says who the patient is"),
        ("PatientBirthDate", "says who the patient is"),
        ("AccessionNumber", "says who the patient is"),
        ("OtherPatientIDs", "says who the patient is"),
        ("BodyPartExamned", "did you mean BodyPartExamined"),
        ("StudyTime", "is none that the index keeps; did you mean StudyDate"),
        ("Zzz", "it keeps SOPClassUID"),
    ],
)
def test_attributes_that_are_no_label_are_refused(tmp_path: Path, attribute: str, message: str):
    with pytest.raises(ConfigError, match=message):
        _labelled(tmp_path, f"labels: {{source: attribute, attribute: {attribute}}}\n", _study(1))


# Patients

FOLDERS = "labels: {source: folder, values: {NEG: neg, POS: pos}}\n"


@pytest.mark.parametrize("categorical", [True, False])
def test_patients_of_headers_and_of_their_study(tmp_path: Path, categorical: bool):
    rows = [{**row, "path": f"POS/{row['path']}"} for row in (*_study(1, 2), *_study(2, 2))]
    rows[1]["patient_key"] = None  # in one study with an image of P1
    rows += [{"path": "POS/x.dcm", "study_instance_uid": "1.2.8"}, {"path": "POS/y.dcm", "study_instance_uid": "1.2.8"}]
    rows += [{"path": "POS/z.dcm"}]
    labelled = _labelled(tmp_path, FOLDERS, rows, categorical=categorical)
    patients = _found(labelled, "patient_key")
    assert patients["POS/s1/1.dcm"] == patients["POS/s1/0.dcm"] == KEY.patient("P1")
    assert patients["POS/s2/0.dcm"] == KEY.patient("P2")
    assert patients["POS/x.dcm"] == patients["POS/y.dcm"] == f"{UNKNOWN_PATIENT}{KEY.patient('1.2.8')}"
    assert patients["POS/z.dcm"].startswith(UNKNOWN_PATIENT)
    assert labelled.cases["patient_key"].nunique() == 4
    assert any("3 cases without a known patient" in warning for warning in labelled.warnings)


def test_a_case_of_several_patients_is_left_out(tmp_path: Path):
    rows = [{**row, "path": f"POS/{row['path']}"} for row in (*_study(1, 2), *_study(2, 2))]
    rows[1]["patient_key"] = KEY.patient("somebody else")
    labelled = _labelled(tmp_path, FOLDERS, rows, unit="study_instance_uid")
    assert _found(labelled) == {"1.2.2": "pos"}
    assert set(_left_out(labelled).values()) == {"several patients in one case"}
    assert "1 case left out: several patients in one case" in labelled.warnings


def test_patients_from_a_column_are_hashed_and_may_contradict(tmp_path: Path):
    manifest = SHEET + "patients: {source: column, column: who}\n"
    sheet = "key,what,who\n1.2.1,y,4711\n1.2.2,y,4711\n1.2.3,n,4712\n1.2.3,n,4713\n1.2.4,n,\n1.2.4,n,4714\n"
    labelled = _labelled(tmp_path, manifest, [row for number in (1, 2, 3, 4) for row in _study(number)], sheet)
    patients = _found(labelled, "patient_key")
    assert patients == {
        "s1/0.dcm": KEY.patient("4711"), "s2/0.dcm": KEY.patient("4711"), "s4/0.dcm": KEY.patient("4714"),
    }  # fmt: skip
    assert _left_out(labelled) == {"s3/0.dcm": "several patients in one case"}
    assert _problems(labelled) == [(4, "has another patient than line 5"), (5, "has another patient than line 4")]
    everything = labelled.images.to_csv() + labelled.cases.to_csv() + "".join(labelled.warnings)
    assert "471" not in everything.replace(str(KEY.patient("4711")), "")


@pytest.mark.parametrize("categorical", [True, False])
def test_patients_from_the_path(tmp_path: Path, categorical: bool):
    manifest = FOLDERS + "patients: {source: path, pattern: '/(p\\d+)_'}\n"
    names = ["p1_a", "p1_b", "p22_a", "other"]
    rows = [{"path": f"POS/{name}.png"} for name in names]
    labelled = _labelled(tmp_path, manifest, rows, categorical=categorical)
    patients = list(_found(labelled, "patient_key").values())
    by_name = dict(zip(labelled.cases["path"], patients, strict=True))
    assert by_name["POS/p1_a.png"] == by_name["POS/p1_b.png"] == KEY.patient("p1")
    assert by_name["POS/p22_a.png"] == KEY.patient("p22")
    assert by_name["POS/other.png"].startswith(UNKNOWN_PATIENT)
    assert any("1 case without a known patient" in warning for warning in labelled.warnings)


BLOCKS = FOLDERS + "patients: {source: blocks, blocks: {pattern: '(\\d+)\\.png$', size: 3}}\n"


@pytest.mark.parametrize("categorical", [True, False])
def test_patients_from_blocks(tmp_path: Path, categorical: bool):
    rows = [{"path": f"{folder}/{number}.png"} for folder in ("POS", "NEG") for number in range(1, 8)]
    labelled = _labelled(tmp_path, BLOCKS, rows, categorical=categorical)
    blocks = labelled.cases.groupby("patient_key")["path"].apply(
        lambda paths: sorted(Path(path).stem for path in paths)
    )
    assert blocks["POS#0000"] == ["1", "2", "3"]
    assert blocks["POS#0002"] == ["7"]
    assert len(blocks) == 6
    assert any("independence is not proven" in warning for warning in labelled.warnings)


def test_blocks_of_two_sources_are_apart(tmp_path: Path):
    rows = [{"path": "POS/1.png", "source": source} for source in ("a", "b")]
    grouped = grouped_cases(rows)
    grouped.images["case_id"] = ["a/POS/1.png", "b/POS/1.png"]
    cases = Cases(grouped.images.drop(columns="frame"), grouped.images, grouped.exclusions)
    source = opened(tmp_path, BLOCKS)
    assert source.manifest is not None
    assert label_cases(cases, source.manifest, source, KEY).cases["patient_key"].tolist() == [
        "a/POS#0000",
        "b/POS#0000",
    ]


def test_a_path_without_number_is_shown_unless_it_holds_a_name(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"finds no number in the path of a file \(POS/one.png\)"):
        _labelled(tmp_path, BLOCKS, [{"path": "POS/one.png"}])
    with pytest.raises(ConfigError, match="finds no number") as caught:
        _labelled(tmp_path, BLOCKS, [{"path": "POS/DOE/one.png", "path_holds_identity": True}])
    assert "DOE" not in str(caught.value)


def test_a_folder_that_holds_a_name_is_hashed_in_its_blocks(tmp_path: Path):
    rows = [{"path": "POS/DOE/1.png", "path_holds_identity": True}, {"path": "POS/DOE/2.png"}, {"path": "POS/1.png"}]
    patients = _found(_labelled(tmp_path, BLOCKS, rows), "patient_key")
    assert patients["POS/DOE/1.png"] == patients["POS/DOE/2.png"] == f"{KEY.patient('POS/DOE')}#0000"
    assert patients["POS/1.png"] == "POS#0000"


# Whatever the order


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    images=st.lists(st.tuples(st.sampled_from("123"), st.sampled_from(["P1", "P2", None])), min_size=1, max_size=8),
    lines=st.lists(st.tuples(st.sampled_from("1234"), st.sampled_from(["y", "yes", "n", "", "?"])), max_size=8),
    seed=st.randoms(use_true_random=False),
)
def test_order_decides_nothing(
    tmp_path: Path, images: list[tuple[str, str | None]], lines: list[tuple[str, str]], seed: Any
):
    def outcome(rows: Sequence[tuple[int, str, str | None]], sheet: Sequence[tuple[str, str]]) -> object:
        table = [
            {"path": f"{place}.dcm", "study_instance_uid": f"1.2.{study}", "patient_key": who and KEY.patient(who)}
            for place, study, who in rows
        ]
        content = "key,what\n" + "".join(f"1.2.{study},{what}\n" for study, what in sheet)
        try:
            labelled = _labelled(tmp_path, SHEET, table, content, unit="study_instance_uid")
        except ConfigError as error:
            return str(error).split(" left out")[0]
        return _found(labelled), _found(labelled, "patient_key"), _left_out(labelled), sorted(labelled.warnings)

    rows = [(place, *image) for place, image in enumerate(images)]
    first = outcome(rows, lines)
    assert outcome(seed.sample(rows, len(rows)), seed.sample(lines, len(lines))) == first
    if isinstance(first, tuple):
        said = {
            study: {"y": "pos", "yes": "pos", "n": "neg"}[what] for study, what in lines if what in ("y", "yes", "n")
        }
        assert all(said[case.removeprefix("1.2.")] == label for case, label in first[0].items())


# The whole way


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """Two patients' studies of two CT slices, the first with a scout."""
    for number in (1, 2):
        study = {"study_instance_uid": phantom_uid("study", number), "patient_id": f"P{number}"}
        for image in (1, 2):
            dataset = ct_slice(
                32, series_instance_uid=phantom_uid("series", number), instance_number=image,
                sop_instance_uid=phantom_uid("image", number, image), AccessionNumber=f"A{number}", **study,
            )  # fmt: skip
            save(dataset, tmp_path / f"export/{number}/{image}")
    scout = ct_slice(
        32, study_instance_uid=phantom_uid("study", 1), series_instance_uid=phantom_uid("series", 9), patient_id="P1",
        sop_instance_uid=phantom_uid("scout"), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], AccessionNumber="A1",
    )  # fmt: skip
    save(scout, tmp_path / "export/1/scout")
    return tmp_path


def _dataset(folder: Path, manifest: str, sheet: str) -> Cases:
    (folder / "labels.csv").write_text(sheet)
    source = opened(folder, manifest)
    assert source.manifest is not None
    return labelled_cases(source.index(KEY, workers=0), source, source.manifest, KEY)


@pytest.mark.parametrize(
    ("join", "keys"), [("AccessionNumber", ("A1", "A2")), ("PatientID", ("P1", "P2")),
                       ("StudyInstanceUID", (phantom_uid("study", 1), phantom_uid("study", 2)))],
)  # fmt: skip
def test_an_export_and_its_sheet(export: Path, join: str, keys: tuple[str, str]):
    manifest = SHEET.replace("StudyInstanceUID", join) + "unit: study\nrules: {include: {modality: [CT]}}\n"
    labelled = _dataset(export, manifest, f"key,what\n{keys[0]},y\n{keys[1]},n\nnobody,n\n")
    assert _found(labelled) == {phantom_uid("study", 1): "pos", phantom_uid("study", 2): "neg"}
    assert _problems(labelled) == [(4, "matches no image")]
    assert "1 of 3 rows of the label sheet matches no image" in labelled.warnings
    everything = labelled.cases.to_csv() + labelled.images.to_csv()
    assert not any(identifier in everything for identifier in ("P1", "P2", "A1", "A2"))


def test_rows_of_images_that_the_rules_leave_out_are_told_apart(export: Path):
    manifest = SHEET.replace("StudyInstanceUID", "path")
    sheet = "key,what\n1/1,y\n2/1,n\n1/scout,n\n"
    labelled = _dataset(export, manifest, sheet)
    assert _problems(labelled) == [(4, "matches only images that the rules leave out")]
    with pytest.raises(
        ConfigError, match=r"no labelled case is left: .* 3 of 3 rows .* match only images that the rules leave out"
    ):
        _dataset(export, manifest + "rules: {include: {modality: [MR]}}\n", sheet)
    with pytest.raises(ConfigError, match="`rules` leave out every image that its rows match by path"):
        _dataset(export, manifest, "key,what\n1/scout,n\n")


def test_an_attribute_labels_an_export(export: Path):
    manifest = "labels: {source: attribute, attribute: ImageType, values: {LOCALIZER: pos, AXIAL: neg}}\nrules: {allow: [localizer]}\n"
    labelled = _dataset(export, manifest, "")
    assert dict(zip(labelled.cases["path"], labelled.cases["label"], strict=True)) == {
        "1/scout": "pos", **dict.fromkeys(("1/1", "1/2", "2/1", "2/2"), "neg"),
    }  # fmt: skip
    assert labelled.cases["patient_key"].nunique() == 2


def test_near_duplicates_are_joined_where_the_manifest_asks_for_it(export: Path):
    (export / "export/2/1").unlink()
    (export / "export/2/2").unlink()
    copy = ct_slice(
        32, study_instance_uid=phantom_uid("study", 2), series_instance_uid=phantom_uid("series", 2), patient_id="P2",
        sop_instance_uid=phantom_uid("image", 2, 1), instance_number=1,
    )  # fmt: skip
    save(copy, export / "export/2/1")  # the same pixels as the other patient's
    manifest = SHEET.replace("StudyInstanceUID", "path") + "patients: {near_duplicates: {distance: 0}}\n"
    sheet = "key,what\n1/1,y\n2/1,n\n"
    apart = _dataset(export, manifest.replace("{near_duplicates: {distance: 0}}", "{}"), sheet)
    joined = _dataset(export, manifest, sheet)
    assert sorted(apart.cases["patient_key"]) == sorted([KEY.patient("P1"), KEY.patient("P2")])
    assert set(joined.cases["patient_key"]) == {min(apart.cases["patient_key"])}
    assert any("2 patients joined into 1 group" in warning for warning in joined.warnings)


def test_rules_see_the_facts_of_the_sheet(export: Path):
    manifest = SHEET.replace("StudyInstanceUID", "path").replace(
        "column: key}", "column: key, facts: {view_position: view}}"
    )
    manifest += "rules: {include: {view_position: [PA]}}\n"
    labelled = _dataset(export, manifest, "key,what,view\n1/1,y,PA\n1/2,y,LL\n2/1,n,PA\n2/2,n,\n")
    assert sorted(labelled.cases["path"]) == ["1/1", "2/1"]
    assert labelled.images["view_position"].tolist() == ["PA", "PA"]


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "labels", "patients"),
    [("ct_slices", {"COVID": 480, "non-COVID": 479}, 20), ("chest_xray", {"COVID": 93, "non-COVID": 57}, None)],
)
def test_shipped_manifests(name: str, labels: dict[str, int], patients: int | None, real_data: Path):
    from pipeline.indexing.sources import open_dataset

    source = open_dataset(name, real_data)
    assert source.manifest is not None
    labelled = labelled_cases(source.index(KEY), source, source.manifest, KEY)
    assert labelled.cases["label"].value_counts().to_dict() == labels
    assert patients is None or labelled.cases["patient_key"].nunique() == patients
    assert isinstance(labelled.sheet_problems, pd.DataFrame)


def test_a_study_of_several_patients_is_told(tmp_path: Path) -> None:
    """The issuer is part of who a patient is: where only some images have one, a person is two, perhaps in two splits."""
    for number in range(4):
        issuer = {"IssuerOfPatientID": "HOSPITAL"} if number == 3 else {}
        study = phantom_uid("study", number // 2)
        image = ct_slice(
            16, patient_id=f"P{number // 2}", study_instance_uid=study, instance_number=number + 1, **issuer
        )
        save(image, tmp_path / "export" / "ab"[number % 2] / str(number))
    path = tmp_path / "manifest.yaml"
    path.write_text("name: issuers\nclasses: [a, b]\nsources: [{path: export}]\nlabels: {source: folder}\n")
    dataset = open_manifest(path)
    assert dataset.manifest is not None
    cases = labelled_cases(dataset.index(KEY, workers=0), dataset, dataset.manifest, KEY)
    assert cases.cases["patient_key"].nunique() == 3
    assert any("1 study has images under several patients" in warning for warning in cases.warnings)
