"""Several findings at once: from cells with separators, a column or a row a finding, headers and folders; and nothing is guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.cohort.cases import Cases
from pipeline.cohort.labels import check_labels, label_cases
from pipeline.errors import ConfigError
from pipeline.indexing.sources import OpenedSource, open_manifest
from pipeline.label_arrays import NO_FINDING, label_array, label_texts
from pipeline.manifest import Manifest
from tests.images import KEY, grouped_cases

CLASSES = ["effusion", "edema", "mass"]
CELLS = """
sheet: {path: labels.csv, join: path, column: key}
labels:
  {source: sheet, several: true, column: what, values: {Effusion: effusion, Edema: edema, Mass: mass} MORE}
"""
COLUMNS = """
sheet: {path: labels.csv, join: path, column: key}
labels:
  {source: sheet, several: true, columns: {effusion: Pleural Effusion, edema: Edema, mass: Mass} MORE}
"""


def _opened(folder: Path, manifest: str, sheet: str) -> tuple[OpenedSource, Manifest]:
    (folder / "export").mkdir(exist_ok=True)
    (folder / "labels.csv").write_text(sheet)
    path = folder / "manifest.yaml"
    path.write_text(f"name: t\nclasses: [{', '.join(CLASSES)}]\nsources: [{{path: export}}]\n{manifest}")
    source = open_manifest(path)
    assert source.manifest is not None
    return source, source.manifest


def _labelled(
    folder: Path, manifest: str, sheet: str, rows: list[dict[str, Any]] | None = None, *, unit: str = ""
) -> Cases:
    """Of a case for each key of the sheet, or of the images that `rows` say."""
    source, read = _opened(folder, manifest, sheet)
    keys = dict.fromkeys(line.split(",")[0] for line in sheet.splitlines()[1:])
    return label_cases(grouped_cases(rows or [{"path": key} for key in keys], unit=unit), read, source, KEY)


def _found(cases: Cases) -> dict[str, str]:
    return dict(zip(cases.cases["case_id"], cases.cases["label"], strict=True))


def _left_out(cases: Cases) -> dict[str, str]:
    return dict(zip(cases.exclusions["path"], cases.exclusions["rule"], strict=True))


def _problems(cases: Cases) -> list[tuple[int, str]]:
    return list(cases.sheet_problems[["line", "problem"]].itertuples(index=False, name=None))


# Text and numbers


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=20))
def test_texts_and_numbers_are_the_same_findings(rows: list[list[bool]]):
    texts = label_texts(np.array(rows), CLASSES)
    array = label_array(texts, CLASSES, several=True)
    assert array.dtype == np.float32
    assert (array == np.array(rows)).all()
    assert all((text == NO_FINDING) == (not any(row)) for text, row in zip(texts, rows, strict=True))


def test_one_class_a_case_is_a_number():
    array = label_array(["mass", "effusion", "edema"], CLASSES, several=False)
    assert array.dtype == np.int64
    assert array.tolist() == [2, 0, 1]
    with pytest.raises(ConfigError, match="expected one class a case"):
        label_array(["mass", "edema|mass"], CLASSES, several=False)
    with pytest.raises(ConfigError, match="none of the classes effusion, edema, mass") as caught:
        label_array(["DOE"], CLASSES, several=True)
    assert "DOE" not in str(caught.value)
    assert label_array(["a|b"], ["a|b", "c"], several=False).tolist() == [0]


# A cell with several findings


def test_a_cell_names_several_findings(tmp_path: Path):
    sheet = "key,what\n1,Effusion|Mass\n2, Mass | Effusion|\n3,No Finding\n4,Edema\n5,Edema|Edema\n"
    labelled = _labelled(tmp_path, CELLS.replace("MORE", ""), sheet)
    assert _found(labelled) == {
        "1": "effusion|mass", "2": "effusion|mass", "3": NO_FINDING, "4": "edema", "5": "edema",
    }  # fmt: skip
    assert labelled.images["label"].tolist() == labelled.cases["label"].tolist()
    assert _problems(labelled) == []
    assert len(labelled.warnings) == 1  # of the unknown patients


def test_what_a_cell_leaves_open_leaves_the_case_out(tmp_path: Path):
    sheet = "key,what\n1,Effusion|Hernia\n2,\n3,No Finding|Mass\n4,Mass\n5,Hernia\n"
    labelled = _labelled(tmp_path, CELLS.replace("MORE", ""), sheet)
    assert _found(labelled) == {"4": "mass"}
    assert _left_out(labelled) == {
        "1": "unclear label", "2": "no label", "3": "contradicting labels", "5": "unclear label",
    }  # fmt: skip
    assert _problems(labelled) == [
        (2, "its label is mapped to no class"),
        (3, "empty label"),
        (4, "names a finding and says that there is none"),
        (6, "its label is mapped to no class"),
    ]
    assert "2 of 5 rows of the label sheet have labels that are mapped to no class" in labelled.warnings
    assert "2 cases left out: unclear label" in labelled.warnings
    assert "Hernia" not in labelled.sheet_problems.to_csv() + "".join(labelled.warnings)


def test_what_is_taken_for_absent_is_counted(tmp_path: Path):
    sheet = "key,what\n1,Effusion;Hernia\n2,\n3,normal\n4,Hernia\n"
    more = ", separator: ';', unknown_means: absent, empty_means: absent, no_finding: [normal]"
    labelled = _labelled(tmp_path, CELLS.replace("MORE", more), sheet)
    assert _found(labelled) == {"1": "effusion", "2": NO_FINDING, "3": NO_FINDING, "4": NO_FINDING}
    assert labelled.warnings[:2] == (
        "labels: 1 row without a label, taken for no finding at all",
        "labels: 2 rows with a word that is mapped to no class, taken for none of these findings",
    )
    assert _problems(labelled) == []


def test_rows_of_one_key_must_agree(tmp_path: Path):
    sheet = "key,what\n1,Effusion|Mass\n1,Mass|Effusion\n2,Mass\n2,Mass|Edema\n3,Mass\n3,Hernia\n"
    labelled = _labelled(tmp_path, CELLS.replace("MORE", ""), sheet)
    assert _found(labelled) == {"1": "effusion|mass"}
    assert _left_out(labelled) == {"2": "contradicting labels", "3": "unclear label"}
    assert _problems(labelled) == [
        (4, "contradicts line 5"),
        (5, "contradicts line 4"),
        (7, "its label is mapped to no class"),
    ]


# A row a finding


def test_rows_a_finding_are_added_up(tmp_path: Path):
    sheet = "key,what\n1,Effusion\n2,No Finding\n1,Mass\n3,Mass\n3,No Finding\n4,Edema\n4,Hernia\n1,Mass\n5,\n"
    labelled = _labelled(tmp_path, CELLS.replace("MORE", ", rows: add"), sheet)
    assert _found(labelled) == {"1": "effusion|mass", "2": NO_FINDING}
    assert _left_out(labelled) == {"3": "contradicting labels", "4": "unclear label", "5": "no label"}
    assert (5, "contradicts line 6") in _problems(labelled)
    assert (6, "contradicts line 5") in _problems(labelled)
    absent = _labelled(tmp_path, CELLS.replace("MORE", ", rows: add, unknown_means: absent"), sheet)
    assert _found(absent) == {"1": "effusion|mass", "2": NO_FINDING, "4": "edema"}


def test_findings_of_a_cases_images_are_added_up_where_that_is_asked_for(tmp_path: Path):
    rows = [{"path": path, "study_instance_uid": f"1.2.{path[0]}"} for path in ("1a", "1b", "2a", "2b")]
    sheet = "key,what\n1a,Effusion\n1b,No Finding\n2a,Mass\n2b,Mass|Edema\n"
    added = _labelled(tmp_path, CELLS.replace("MORE", ", rows: add"), sheet, rows, unit="study_instance_uid")
    assert _found(added) == {"1.2.1": "effusion", "1.2.2": "edema|mass"}
    with pytest.raises(ConfigError, match="2 cases left out: contradicting labels"):
        _labelled(tmp_path, CELLS.replace("MORE", ""), sheet, rows, unit="study_instance_uid")


# A column a finding

HEAD = "key,Pleural Effusion,Edema,Mass\n"


def test_a_column_a_finding(tmp_path: Path):
    labelled = _labelled(tmp_path, COLUMNS.replace("MORE", ""), HEAD + "1,1,0,1.0\n2,0,0.0,0\n3,0,1,0\n")
    assert _found(labelled) == {"1": "effusion|mass", "2": NO_FINDING, "3": "edema"}


def test_what_columns_leave_open_leaves_the_case_out(tmp_path: Path):
    sheet = HEAD + "1,1,0,0\n2,-1,0,1\n3,1,,0\n4,,,\n5,yes,0,0\n"
    labelled = _labelled(tmp_path, COLUMNS.replace("MORE", ""), sheet)
    assert _found(labelled) == {"1": "effusion"}
    assert _left_out(labelled) == {"2": "unclear label", "3": "unclear label", "4": "no label", "5": "unclear label"}
    assert _problems(labelled) == [
        (3, "uncertain finding"),
        (4, "empty finding"),
        (5, "empty label"),
        (6, "a finding's cell says nothing known"),
    ]
    assert "1 of 5 rows of the label sheet has a finding without a value" in labelled.warnings


def test_what_columns_leave_open_is_counted_where_a_rule_settles_it(tmp_path: Path):
    sheet = HEAD + "1,1,,\n2,-1,0,-1\n3,x,,0\n4,,,\n"
    more = ", uncertain_means: present, empty_means: absent, unknown_means: absent"
    labelled = _labelled(tmp_path, COLUMNS.replace("MORE", more), sheet)
    assert _found(labelled) == {"1": "effusion", "2": "effusion|mass", "3": NO_FINDING, "4": NO_FINDING}
    assert labelled.warnings[:3] == (
        "labels: uncertain cells are taken for present (effusion 1, mass 1)",
        "labels: empty cells are taken for absent (effusion 1, edema 3, mass 2)",
        "labels: unknown cells are taken for absent (effusion 1)",
    )
    absent = _labelled(tmp_path, COLUMNS.replace("MORE", more.replace("present", "absent", 1)), sheet)
    assert _found(absent)["2"] == NO_FINDING


def test_a_missing_column_is_named_before_anything_runs(tmp_path: Path):
    source, manifest = _opened(tmp_path, COLUMNS.replace("MORE", ""), "key,Pleural Effusion,Edema\n1,1,0\n")
    with pytest.raises(ConfigError, match="no column Mass"):
        check_labels(source, manifest, KEY)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(
        st.tuples(st.sampled_from("123"), *[st.sampled_from(["1", "0", "-1", ""])] * 3), min_size=1, max_size=8
    ),
    seed=st.randoms(use_true_random=False),
)
def test_the_order_of_rows_decides_nothing_and_cells_and_columns_say_the_same(
    tmp_path: Path, lines: list[tuple[str, ...]], seed: Any
):
    def outcome(rows: list[tuple[str, ...]]) -> object:
        try:
            labelled = _labelled(
                tmp_path, COLUMNS.replace("MORE", ""), HEAD + "".join(",".join(row) + "\n" for row in rows)
            )
        except ConfigError:
            return None
        return _found(labelled), _left_out(labelled), sorted(labelled.warnings)

    first = outcome(lines)
    assert outcome(seed.sample(lines, len(lines))) == first
    if first is None:
        return
    clear = {line for line in lines if set(line[1:]) <= {"0", "1"}}
    for key, label in first[0].items():
        said = {tuple(cell == "1" for cell in line[1:]) for line in clear if line[0] == key}
        assert [label] == label_texts(np.array(list(said)), CLASSES)


# Headers and folders


def test_findings_of_an_attribute(tmp_path: Path):
    values = ["CHEST\\NECK", "NECK ", None, "CHEST\\LEG", "NORMAL"]
    rows = [{"body_part_examined": value, "path": f"{place}.dcm"} for place, value in enumerate(values)]
    manifest = (
        "labels: {source: attribute, attribute: BodyPartExamined, several: true, "
        "values: {CHEST: effusion, NECK: mass}, no_finding: [NORMAL] MORE}\n"
    )
    labelled = _labelled(tmp_path, manifest.replace("MORE", ""), "key\n", rows)
    assert _found(labelled) == {"0.dcm": "effusion|mass", "1.dcm": "mass", "4.dcm": NO_FINDING}
    assert _left_out(labelled) == {"2.dcm": "no label", "3.dcm": "unclear label"}
    more = ", unknown_means: absent, empty_means: absent"
    settled = _labelled(tmp_path, manifest.replace("MORE", more), "key\n", rows)
    assert _found(settled)["2.dcm"] == NO_FINDING
    assert _found(settled)["3.dcm"] == "effusion"
    assert (
        "labels: 1 image with a word that is mapped to no class, taken for none of these findings" in settled.warnings
    )


def test_findings_of_folders(tmp_path: Path):
    rows = [{"path": path} for path in ("set/mass/1.png", "mass/edema/2.png", "normal/3.png", "set/4.png")]
    manifest = "labels: {source: folder, several: true, no_finding: [normal]}\n"
    labelled = _labelled(tmp_path, manifest, "key\n", rows)
    assert _found(labelled) == {"set/mass/1.png": "mass", "mass/edema/2.png": "edema|mass", "normal/3.png": NO_FINDING}
    assert _left_out(labelled) == {"set/4.png": "no label"}


# The manifest


@pytest.mark.parametrize(
    ("labels", "classes", "told"),
    [
        ({"columns": {"a": "A", "b": "B"}}, ["a", "b"], "`columns` needs `several: true`"),
        ({"column": "x", "rows": "add"}, ["a", "b"], "`rows` needs `several: true`"),
        ({"column": "x", "columns": {"a": "A", "b": "B"}, "several": True}, ["a", "b"], "give one of"),
        ({"several": True}, ["a", "b"], "`labels.column` is missing"),
        ({"columns": {"a": "A", "b": "B"}, "several": True, "rows": "add"}, ["a", "b"], "rows: agree"),
        ({"columns": {"a": "A"}, "several": True}, ["a", "b"], "each of the classes and no other; look at b"),
        ({"column": "x", "several": True}, ["a|b", "c"], r"no name may hold \|"),
        ({"column": "x", "several": True}, ["(none)", "c"], r"or be \(none\)"),
        ({"column": "x", "several": True, "separator": " "}, ["a", "b"], "found blanks"),
        ({"columns": {"a": "A", "b": "B"}, "several": True, "present": [0]}, ["a", "b"], "stands twice"),
        ({"columns": {"a": "A", "b": "B"}, "several": True, "present": [True]}, ["a", "b"], "truth values in YAML"),
    ],
)
def test_what_cannot_be_is_refused(labels: dict[str, Any], classes: list[str], told: str):
    with pytest.raises(ValueError, match=told):
        Manifest.model_validate({
            "name": "t", "classes": classes, "sources": [{"path": "."}], "labels": {"source": "sheet", **labels},
            "sheet": {"path": "labels.csv", "join": "path", "column": "key"},
        })  # fmt: skip


def test_of_several_findings_none_is_the_positive_one():
    with pytest.raises(ValueError, match="each of the classes is a finding"):
        Manifest.model_validate({
            "name": "t", "classes": CLASSES, "sources": [{"path": "."}], "labels": {"source": "folder", "several": True},
            "positive": "mass",
        })  # fmt: skip
