"""Rules: what they say, how they are written, and what they leave out of an index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cohort.rules import COLLISIONS, broken_rules, collisions_inferred_without, is_never_in, rule_columns
from pipeline.config import dump_yaml, parse_settings
from pipeline.errors import ConfigError
from pipeline.manifest import Condition, Rules
from tests.tables import index_table

ALLOWED = ["localizer", "derived", "secondary_capture"]
SC, SC_MULTI_FRAME = "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.7.2"
AXIAL, CORONAL, SAGITTAL = "1\\0\\0\\0\\1\\0", "1\\0\\0\\0\\0\\-1", "0\\1\\0\\0\\0\\-1"
PRINTED = st.characters(min_codepoint=32, max_codepoint=126)


def _rules(text: str) -> Rules:
    return parse_settings(Rules, yaml.safe_load(text) or {}, "manifest")


def _broken(rows: Sequence[Mapping[str, Any]], text: str = "", *, collisions: Sequence[str] = COLLISIONS) -> list[str]:
    """The rule that each row breaks, the same whatever the form of the table, and with the columns alone that the rules need."""
    rules = _rules(text)
    plain = broken_rules(index_table(rows, categorical=False), rules, collisions).tolist()
    few = index_table(rows, categorical=True)[rule_columns(rules)]
    assert broken_rules(few, rules, collisions).tolist() == plain
    return plain


def _left(column: str, condition: str, values: Sequence[Any], mode: str = "include") -> list[Any]:
    """Of rows with these values of a column, the values that stay in."""
    broken = _broken([{column: value} for value in values], f"{mode}: {{{column}: {condition}}}\nallow: {ALLOWED}")
    return [value for value, rule in zip(values, broken, strict=True) if not rule]


@pytest.mark.parametrize(
    ("column", "condition", "values", "left"),
    [
        ("modality", "[CT, mr]", ["CT", "MR", "DX", None], ["CT", "MR"]),
        ("modality", "CT", ["CT", "MR"], ["CT"]),
        ("modality", "['', CT]", ["CT", "MR", None, ""], ["CT", None, ""]),
        ("image_type", "[AXIAL]", ["ORIGINAL\\PRIMARY\\AXIAL", "ORIGINAL\\PRIMARY"], ["ORIGINAL\\PRIMARY\\AXIAL"]),
        ("series_description", "{pattern: '^lung|thorax$'}", ["Lung 1 mm", "CT Thorax", "Head", None], ["Lung 1 mm", "CT Thorax"]),
        ("burned_in_annotation", "NO", ["NO", "YES", None], ["NO"]),  # which YAML reads as false
        ("lossy_image_compression", "00", ["00", "01", None], ["00"]),  # which YAML reads as 0
        ("path_holds_identity", "false", [True, False, None], [False]),
        ("series_number", "[2, 3]", [1, 2, 3, 30, None], [2, 3]),
        ("series_number", "[2.0]", [1, 2, None], [2]),
        ("series_number", "['', 2]", [1, 2, None], [2, None]),
        ("series_number", "{pattern: '^2'}", [2, 20, 32, None], [2, 20]),
        ("slice_thickness", "{max: 2.5}", [1.25, 2.5, 2.6, None], [1.25, 2.5]),
        ("slice_thickness", "{min: 1, max: 2.5}", [0.5, 1.0, 3.0], [1.0]),
        ("slice_thickness", "1.25", [1.25, 2.5, None], [1.25]),
        ("study_date", "{min: 20200101}", ["20191231", "20200101", "20210101", None, ""], ["20200101", "20210101"]),
        ("study_date", "{min: 2020-01-01, max: '2020-12-31'}", ["20191231", "20200101", "20210101"], ["20200101"]),
        ("study_date", "[2020-01-01]", ["20191231", "20200101"], ["20200101"]),
        ("patient_age", "{min: 18}", ["017Y", "018Y", "900M", "006W", "x", None], ["018Y", "900M"]),
        ("patient_age", "{max: 024M}", ["001Y", "002Y", "003Y", "100D"], ["001Y", "002Y", "100D"]),
        ("pixel_spacing", "{max: 0.5}", ["0.5\\0.5", "0.4\\0.6", "odd", None], ["0.5\\0.5"]),
        ("image_orientation_patient", "{pattern: '^1'}", [AXIAL, SAGITTAL], [AXIAL]),
    ],
)  # fmt: skip
def test_conditions(column: str, condition: str, values: list[Any], left: list[Any]):
    assert _left(column, condition, values) == left
    assert _left(column, condition, values, "exclude") == [value for value in values if value not in left]


def test_orientation_and_slices():
    rows = [{"image_orientation_patient": value} for value in (AXIAL, CORONAL, SAGITTAL, None)]
    assert (
        _broken(rows, "include: {orientation: [axial, sagittal]}")[1::2] == ["include orientation: axial, sagittal"] * 2
    )
    assert _broken(rows, "include: {orientation: ['']}")[3] == ""
    short = [{"series_instance_uid": "2"}, {"series_instance_uid": "2", "collision": "duplicate"}]
    rows = [*[{"series_instance_uid": "1"}] * 3, *short, {"series_instance_uid": "3", "frames": 4}]
    rows += [{"series_instance_uid": None, "format": "png"}]
    broken = _broken(rows, "include: {slices: {min: 3}}", collisions=())
    assert [bool(rule) for rule in broken] == [False] * 3 + [True] * 2 + [False, True]
    assert broken[-1] == "include slices: from 3"


def test_columns_may_be_named_by_their_keyword():
    rules = _rules("{include: {SeriesDescription: {pattern: lung}, KVP: {max: 120}}, exclude: {Modality: MR}}")
    assert list(rules.include) == ["series_description", "kvp"]
    assert list(rules.exclude) == ["modality"]


def test_a_rule_is_told_as_it_was_written():
    rows = [{"slice_thickness": 9.0, "modality": "MR", "study_date": "20200101"}]
    assert _broken(rows, "include: {slice_thickness: {min: 1, max: 5.0}}") == ["include slice_thickness: from 1 to 5"]
    assert _broken(rows, "exclude: {study_date: {min: 2019-01-01}}") == ["exclude study_date: from 20190101"]
    assert _broken(rows, "exclude: {modality: {pattern: M}}") == ["exclude modality: like M"]
    assert _broken(rows, "include: {modality: [CT, '']}") == ["include modality: CT, (none)"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("include: {modalty: CT}", "modalty is no column of the index; did you mean modality"),
        ("include: {SliceThicknes: {max: 1}}", "did you mean slice_thickness"),
        ("include: {zzzzzz: 1}", "it has source, path"),
        ("include: {modality: {patern: CT}}", "unknown key patern; did you mean pattern"),
        ("include: {modality: {zzzzzz: CT}}", "known here: values, pattern, min, max"),
        ("include: {modality: }", "expected a value, a list of values"),
        ("include: {modality: []}", "expected a value, a list of values"),
        ("include: {modality: {values: [CT], pattern: C}}", "expected a value, a list of values"),
        ("include: {modality: {pattern: '('}}", "not a regular expression"),
        ("include: {modality: {min: 5}}", "modality: holds no numbers or dates"),
        ("include: {slice_thickness: {min: 5, max: 1}}", "min 5 is more than max 1"),
        ("include: {slice_thickness: {min: thin}}", "expected a number, a date .* found 'thin'"),
        ("include: {slice_thickness: {min: true}}", "expected a number, a date"),
        ("include: {slice_thickness: {min: .inf}}", "expected a number, a date"),
        ("include: {study_date: {min: 2020}}", r"study_date: expected a date \(20200131 or 2020-01-31\), found 2020"),
        ("include: {modality: CT, Modality: MR}", "modality: stands there twice"),
        ("allow: [scouts]", "localizer"),
        ("series: thickest", "most_slices"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        _rules(text)


@settings(deadline=None)
@given(
    low=st.one_of(st.none(), st.integers(0, 10), st.floats(0, 10, allow_nan=False)),
    high=st.one_of(st.integers(10, 20), st.floats(10, 20, allow_nan=False)),
    words=st.lists(st.one_of(st.text(PRINTED), st.integers(), st.booleans(), st.dates()), min_size=1),
)
def test_conditions_survive_being_written(low: float | None, high: float, words: list[Any]):
    for given_ in ({"min": low, "max": high}, {"values": words}, words):
        condition = Condition.model_validate(given_)
        rules = Rules(include={"slice_thickness" if condition.max is not None else "modality": condition})
        assert parse_settings(Rules, yaml.safe_load(dump_yaml(rules)), "again") == rules
        assert Rules.model_validate_json(rules.model_dump_json()) == rules


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        ({"manufacturer": "radloop"}, "radloop's own object"),
        ({"sop_class_uid": "1.2.840.10008.5.1.4.1.1.66.4"}, "no image: a segmentation"),
        ({"sop_class_uid": "1.2.840.10008.5.1.4.1.1.66.7"}, "no image: a label map"),
        ({"sop_class_uid": "1.2.840.10008.5.1.4.1.1.30"}, "no image: a parametric map"),
        ({"sop_class_uid": "1.2.840.10008.5.1.4.1.1.481.2"}, "no image: a dose distribution"),
        ({"presentation_intent_type": "FOR PROCESSING", "modality": "DX"}, "for processing"),
        ({"sop_class_uid": "1.2.840.10008.5.1.4.1.1.1.1.1", "modality": "DX"}, "for processing"),
        ({"sop_class_uid": "1.2.840.10008.5.1.4.1.1.1.2.1", "modality": "MG"}, "for processing"),
        ({"sop_class_uid": "1.2.840.10008.5.1.4.1.1.1.3.1", "modality": "IO"}, "for processing"),
    ],
)
def test_what_is_never_in(row: dict[str, Any], rule: str):
    assert _broken([row], f"allow: {ALLOWED}") == [rule]
    assert is_never_in(pd.Series([rule, "", "not in allow: localizer", "collision: conflict"])).tolist() == [
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"image_type": "ORIGINAL\\PRIMARY\\LOCALIZER"}, "localizer"),
        ({"image_type": "DERIVED\\SECONDARY\\LOCALIZER\\CT_SOM5 TOP"}, "localizer"),
        ({"image_type": "DERIVED\\SECONDARY\\REFORMATTED\\AVERAGE"}, "derived"),
        ({"image_type": "DERIVED\\SECONDARY\\AXIAL\\CT_SOM5 MIP"}, "derived"),
        ({"image_type": "DERIVED\\SECONDARY\\PROJECTION IMAGE", "modality": "MR"}, "derived"),
        ({"image_type": "DERIVED\\SECONDARY\\AXIAL"}, ""),
        ({"image_type": "DERIVED\\SECONDARY\\OTHER", "modality": "MR"}, ""),
        ({"image_type": "DERIVED\\SECONDARY\\MPR", "modality": "DX"}, ""),
        ({"image_type": "DERIVED\\PRIMARY\\AXIAL"}, ""),
        ({"image_type": None}, ""),
        ({"sop_class_uid": SC, "modality": "OT", "image_type": None}, "secondary_capture"),
        ({"sop_class_uid": SC_MULTI_FRAME, "modality": None}, "secondary_capture"),
        ({"sop_class_uid": SC, "modality": "CR", "image_type": None}, ""),
        ({"sop_class_uid": SC, "modality": "DX"}, ""),
        ({"format": "png", "sop_class_uid": None, "modality": None, "image_type": None}, ""),
        ({"presentation_intent_type": "FOR PRESENTATION", "modality": "DX"}, ""),
    ],
)
def test_what_is_out_unless_it_is_allowed(row: dict[str, Any], kind: str):
    assert _broken([row]) == [f"not in allow: {kind}" if kind else ""]
    assert _broken([row], f"allow: [{kind}]") == [""]


def test_a_rule_of_the_manifest_is_named_before_a_default():
    row = {"image_type": "ORIGINAL\\PRIMARY\\LOCALIZER"}
    assert _broken([row], "exclude: {image_type: LOCALIZER}") == ["exclude image_type: LOCALIZER"]


def test_collisions():
    rows = [{"collision": value} for value in ("", "duplicate", "conflict")]
    assert _broken(rows) == ["", "collision: duplicate", "collision: conflict"]
    assert _broken(rows, collisions=()) == ["", "", ""]
    assert _broken(rows, collisions=collisions_inferred_without("study")) == ["", "collision: duplicate", ""]
    assert _broken(rows, collisions=collisions_inferred_without("image")) == ["", "", ""]


def _series(
    name: str, count: int, thickness: float | None, number: int | None, study: str = "1"
) -> list[dict[str, Any]]:
    row = {"study_instance_uid": study, "series_instance_uid": f"{study}.{name}"}
    return [row | {"slice_thickness": thickness, "series_number": number}] * count


@pytest.mark.parametrize(
    ("rule", "chosen"), [("most_slices", "b"), ("thinnest", "c"), ("first", "a"), ("last", "c"), ("all", "abc")]
)
def test_one_series_of_a_study(rule: str, chosen: str):
    rows = [*_series("c", 2, 1.0, 9), *_series("a", 2, 5.0, 1), *_series("b", 3, 1.0, 5)]
    rows += [*_series("x", 1, None, None, study="2"), {"study_instance_uid": None, "series_instance_uid": None}]
    rows += [{"study_instance_uid": None, "series_instance_uid": None, "format": "png"}]
    rows[0] = rows[0] | {"frames": 1}
    thinner = [row | {"slice_thickness": 0.5} if row["series_instance_uid"] == "1.c" else row for row in rows]
    broken = _broken(thinner, f"series: {rule}")
    left = {row["series_instance_uid"] for row, text in zip(rows, broken, strict=True) if not text}
    assert left == {*(f"1.{name}" for name in chosen), "2.x", None}
    assert {text for text in broken if text} <= {
        f"series: not the {'one with most slices' if rule == 'most_slices' else rule}"
    }


def test_the_chosen_series_is_one_of_those_that_are_left():
    rows = [*_series("a", 5, 1.0, 1), *_series("b", 2, 1.0, 2)]
    rows[:5] = [row | {"convolution_kernel": "SOFT"} for row in rows[:5]]
    assert _broken(rows, "{series: most_slices, exclude: {convolution_kernel: SOFT}}")[5:] == ["", ""]


@settings(deadline=None)
@given(
    series=st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.sampled_from([1.0, 2.0, None]), st.sampled_from([1, 2, None])),
        max_size=20,
    ),
    rule=st.sampled_from(["most_slices", "thinnest", "first", "last"]),
)  # fmt: skip
def test_each_study_keeps_exactly_one_series_whatever_the_order(series: list[tuple[Any, ...]], rule: str):
    rows = [row for study, name, thickness, number in series for row in _series(name, 1, thickness, number, study)]
    rules = Rules(series=rule)  # type: ignore[arg-type]
    table = index_table(rows, categorical=True)
    left = table[(broken_rules(table, rules, COLLISIONS) == "").to_numpy()]
    kept = left.groupby("study_instance_uid", observed=True)["series_instance_uid"].nunique()
    assert set(kept) <= {1}
    assert len(kept) == table["study_instance_uid"].nunique()
    backwards = table[::-1].reset_index(drop=True)
    again = backwards[(broken_rules(backwards, rules, COLLISIONS) == "").to_numpy()]
    assert set(again["series_instance_uid"]) == set(left["series_instance_uid"])


@pytest.mark.real_data
def test_the_defaults_leave_real_primary_images_in(real_data: Path):
    from pipeline.identity import ephemeral_key
    from pipeline.indexing.index import index_source

    table = index_source(real_data / "dicom", key=ephemeral_key(), workers=0).table
    rule = broken_rules(table, Rules(), collisions=())
    folders = table["path"].str.split("/").str[0]
    for folder in ("cxr_rsna", "cr_mono1", "wg04", "ct_series_ge_tilt", "cornerstone_ct_syntaxes"):
        assert set(rule[(folders == folder).to_numpy()]) == {""}
    counted = rule.value_counts().to_dict()
    assert counted["not in allow: localizer"] == 2
    assert counted["not in allow: derived"] == 8
    assert counted["no image: a segmentation"] + counted["no image: a label map"] >= 15
    assert counted["not in allow: secondary_capture"] > 20
