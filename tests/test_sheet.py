"""The label sheet: joined to images by any key, filling in what headers do not say, and of help where nothing matches."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cohort.labels import label_cases
from pipeline.cohort.sheet import NONE, SEVERAL, agreed, distinct, fill_facts, key_values, places_in, read_sheet, taken
from pipeline.columns import text
from pipeline.dicom.phantom import ct_slice, save
from pipeline.errors import ConfigError
from pipeline.identity import IdentityKey
from pipeline.manifest import JoinKey
from tests.images import KEY, grouped_cases, image_table, opened

ROW = {
    "study_instance_uid": "1.2.1", "series_instance_uid": "1.2.1.1", "sop_instance_uid": "1.2.1.1.1",
    "accession_key": KEY.accession("A1"), "patient_key": KEY.patient("P1"), "path": "day 1/ä.dcm",
}  # fmt: skip
OTHER = {
    "study_instance_uid": "1.2.2", "series_instance_uid": "1.2.2.1", "sop_instance_uid": "1.2.2.1.1",
    "accession_key": KEY.accession("A2"), "patient_key": KEY.patient("P2", "clinic"), "path": "day 2/b.dcm",
}  # fmt: skip


def _manifest(join: str, more: str = "", column: str = "key") -> str:
    return (
        f"sheet: {{path: labels.csv, join: {join}, column: {column}{more}}}\nlabels: {{source: sheet, column: what}}\n"
    )


def _labels(
    folder: Path, manifest: str, sheet: str, rows: list[dict[str, Any]], *, categorical: bool = True
) -> dict[str, str]:
    (folder / "labels.csv").write_text(sheet)
    source = opened(folder, manifest)
    assert source.manifest is not None
    cases = label_cases(grouped_cases(rows, categorical=categorical), source.manifest, source, KEY).cases
    return dict(zip(cases["path"], cases["label"], strict=True))


@pytest.mark.parametrize("categorical", [True, False])
@pytest.mark.parametrize(
    ("join", "key"),
    [
        ("StudyInstanceUID", "1.2.1"),
        ("SeriesInstanceUID", " 1.2.1.1 "),
        ("SOPInstanceUID", "1.2.1.1.1"),
        ("AccessionNumber", " A1"),
        ("PatientID", "P1 "),
        ("file_name", "ä.dcm"),
        ("file_name", "a\u0308.dcm"),  # as macOS spells it
        ("path", "day 1/ä.dcm"),
        ("path", r".\day 1\ä.dcm"),
        ("path", "././day 1/ä.dcm"),
    ],
)
def test_a_sheet_joins_on_any_key(tmp_path: Path, join: str, key: str, categorical: bool):
    found = _labels(tmp_path, _manifest(join), f"key,what\n{key},pos\n", [ROW, OTHER], categorical=categorical)
    assert found == {"day 1/ä.dcm": "pos"}


def test_patients_of_an_issuer_join_with_it(tmp_path: Path):
    found = _labels(tmp_path, _manifest("PatientID", ", issuer: clinic"), "key,what\nP1,neg\nP2,pos\n", [ROW, OTHER])
    assert found == {"day 2/b.dcm": "pos"}


@pytest.mark.parametrize("names", [("x/1.dcm", "y/1.dcm"), ("1.dcm", "x/1.dcm")])
def test_a_file_name_in_several_folders_needs_the_path(tmp_path: Path, names: tuple[str, str]):
    rows = [{"path": name} for name in names]
    with pytest.raises(ConfigError, match="1 file name of it stands in several folders; join by path"):
        _labels(tmp_path, _manifest("file_name"), "key,what\n1.dcm,pos\n", rows)
    assert _labels(tmp_path, _manifest("path"), f"key,what\n{names[0]},pos\n", rows) == {names[0]: "pos"}


def test_a_path_in_several_sources_is_refused(tmp_path: Path):
    rows = [{"path": "1.dcm", "source": "a"}, {"path": "1.dcm", "source": "b"}]
    with pytest.raises(ConfigError, match="1 path of it stands in several sources"):
        _labels(tmp_path, _manifest("path"), "key,what\n1.dcm,pos\n", rows)


@pytest.mark.parametrize("join", list(JoinKey))
def test_keys_of_other_tables_are_hashed_in_the_same_way(join: JoinKey):
    given = {"PatientID": " P1", "AccessionNumber": "A1 ", "path": r".\day 1\ä.dcm", "file_name": "ä.dcm"}
    column = {"PatientID": "patient_key", "AccessionNumber": "accession_key", "path": "path"}
    key = given.get(join, " 1.2 ")
    wanted = "ä.dcm" if join == "file_name" else ROW[column[join]] if join in column else "1.2"
    assert key_values(pd.Series([key, ""]), join, "", KEY).tolist() == [wanted, ""]


# Facts


def _with_facts(
    folder: Path, sheet: str, facts: str, rows: list[dict[str, Any]], *, categorical: bool = True
) -> pd.DataFrame:
    (folder / "labels.csv").write_text(sheet)
    source = opened(folder, _manifest("path", f", facts: {facts}"))
    assert source.manifest is not None
    table = image_table(rows, categorical=categorical)
    before = table.copy(deep=True)
    filled = fill_facts(table, read_sheet(source.manifest, source, KEY))
    pd.testing.assert_frame_equal(table, before)
    assert filled.dtypes.astype(str).equals(before.dtypes.astype(str))
    return filled


@pytest.mark.parametrize("categorical", [True, False])
def test_a_sheet_fills_in_what_headers_do_not_say(tmp_path: Path, categorical: bool):
    sheet = "key,what,gender,view\na.dcm,pos,F,PA\nb.dcm,neg,M,AP\nc.dcm,neg,,LL\nd.dcm,neg,F,\nd.dcm,neg,M,\n"
    rows = [{"path": "a.dcm"}, {"path": "b.dcm", "patient_sex": "O", "view_position": ""}, {"path": "c.dcm"}]
    rows += [{"path": "d.dcm"}, {"path": "e.dcm", "view_position": "LATERAL"}]
    table = _with_facts(tmp_path, sheet, "{patient_sex: gender, view_position: view}", rows, categorical=categorical)
    assert text(table["patient_sex"]).tolist() == ["F", "O", "", "", ""]
    assert text(table["view_position"]).tolist() == ["PA", "AP", "LL", "", "LATERAL"]


def test_facts_of_a_name_that_several_files_have_are_nobodys(tmp_path: Path):
    (tmp_path / "labels.csv").write_text("key,what,sex\n1.dcm,pos,F\n2.dcm,pos,M\n")
    source = opened(tmp_path, _manifest("file_name", ", facts: {patient_sex: sex}"))
    assert source.manifest is not None
    table = image_table([{"path": "a/1.dcm"}, {"path": "b/1.dcm"}, {"path": "b/2.dcm"}])
    filled = fill_facts(table, read_sheet(source.manifest, source, KEY))
    assert text(filled["patient_sex"]).tolist() == ["", "", "M"]


@pytest.mark.parametrize(
    ("fact", "message"),
    [
        ("patient_sexx", "did you mean patient_sex"),
        ("patient_key", "is no column of the index that a sheet can fill"),
        ("slice_thickness", "is no column of the index that a sheet can fill"),
        ("study_instance_uid", "is no column of the index that a sheet can fill"),
    ],
)
def test_facts_are_columns_of_text_that_tie_nothing_together(tmp_path: Path, fact: str, message: str):
    with pytest.raises(ConfigError, match=message):
        _with_facts(tmp_path, "key,what,x\na.dcm,pos,F\n", f"{{{fact}: x}}", [{"path": "a.dcm"}])


# Where nothing matches


@pytest.mark.parametrize(
    ("join", "column", "issuer", "message"),
    [
        ("AccessionNumber", "study", "", "the column `study` holds values that match StudyInstanceUID: set `join: StudyInstanceUID`"),
        ("StudyInstanceUID", "nr", "", "the column `nr` holds values that match AccessionNumber"),
        ("SOPInstanceUID", "who", "clinic", "the column `who` holds values that match PatientID"),
        ("PatientID", "who", "praxis", "values that match PatientID: set no `issuer`"),
        ("SeriesInstanceUID", "file", "", "the column `file` holds values that match path: set `join: path`, `column: file`"),
    ],
)  # fmt: skip
def test_another_column_or_key_is_suggested(tmp_path: Path, join: str, column: str, issuer: str, message: str):
    columns = {
        "study": ("1.2.1", "1.2.2"),
        "nr": ("A1", "A9"),
        "who": ("P1", "P9"),
        "file": ("day 1\\ä.dcm", "day 2\\b.dcm"),
    }
    columns = {name: values for name, values in columns.items() if name == column or column != "study"}
    heads = [name for name in columns if message.startswith(f"the column `{name}`") or name == column]
    lines = [
        ",".join([*heads, "what"]),
        *(",".join([*(columns[head][row] for head in heads), "pos"]) for row in (0, 1)),
    ]
    manifest = _manifest(join, f", issuer: {issuer}" if issuer else "", column)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        _labels(tmp_path, manifest, "\n".join(lines) + "\n", [ROW, OTHER])
    assert "labels.csv: none of its 2 rows matches an image by " + join in str(caught.value)
    assert not re.search(r"\b(A1|P1)\b", str(caught.value))


def test_an_issuer_that_the_images_have_is_asked_for(tmp_path: Path):
    opened(tmp_path, _manifest("PatientID"))
    save(ct_slice(16, patient_id="P1", IssuerOfPatientID="clinic"), tmp_path / "export/a.dcm")
    row = {"path": "a.dcm", "patient_key": KEY.patient("P1", "clinic")}
    with pytest.raises(ConfigError, match="the images have an IssuerOfPatientID") as caught:
        _labels(tmp_path, _manifest("PatientID"), "key,what\nP1,pos\n", [row])
    assert "clinic" not in str(caught.value)
    save(ct_slice(16, patient_id="P1"), tmp_path / "export/a.dcm")
    with pytest.raises(ConfigError, match="is it the sheet of these images"):
        _labels(tmp_path, _manifest("PatientID"), "key,what\nP7,pos\n", [{"path": "a.dcm"}])


def test_an_empty_key_matches_no_image_without_one(tmp_path: Path):
    sheet = "key,what\n,pos\nA9,pos\n"
    assert _labels(tmp_path, _manifest("AccessionNumber"), sheet + "A1,neg\n", [ROW, {"path": "none.dcm"}]) == {
        "day 1/ä.dcm": "neg"
    }
    with pytest.raises(ConfigError, match="none of its 2 rows matches an image"):
        _labels(tmp_path, _manifest("AccessionNumber"), sheet, [ROW, {"path": "none.dcm"}])


def test_an_empty_key_column_is_said(tmp_path: Path):
    with pytest.raises(ConfigError, match="the column is empty; of a workbook's formulas"):
        _labels(tmp_path, _manifest("path"), "key,what\n,pos\n", [ROW])


# Codes


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 4), st.integers(-2, 3)), max_size=30))
def test_agreed_is_what_all_say(pairs: list[tuple[int, int]]):
    groups, codes = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    expected = []
    for group in range(5):
        said = {code for other, code in pairs if other == group and code != NONE}
        expected.append(NONE if not said else said.pop() if len(said) == 1 else SEVERAL)
    assert agreed(groups, codes, 5).tolist() == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([None, "", "a", "b", "ä/ö"]), max_size=20), st.booleans())
def test_places_and_distinct_say_where_a_value_stands(values: list[str | None], categorical: bool):
    import pyarrow as pa

    column = pd.Series(values, dtype="str").astype("category" if categorical else "str")
    keys = ["b", "ä/ö", "", "c"]
    places = places_in(column, pa.array(keys, pa.large_string()))
    assert places.tolist() == [keys.index(value) if value and value in keys else NONE for value in values]
    codes, texts = distinct(column)
    assert [texts[code].as_py() if code != NONE else "" for code in codes] == [value or "" for value in values]
    assert taken(np.arange(10) * 2, codes).tolist() == [code * 2 if code != NONE else NONE for code in codes]


def test_hashes_depend_on_the_key(tmp_path: Path):
    (tmp_path / "labels.csv").write_text("key,what\nP1,pos\n")
    source = opened(tmp_path, _manifest("PatientID"))
    assert source.manifest is not None
    keys = [read_sheet(source.manifest, source, key).keys.to_pylist() for key in (KEY, IdentityKey(b"o" * 32))]
    assert keys[0] == [KEY.patient("P1")]
    assert keys[0] != keys[1]
