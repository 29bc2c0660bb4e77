"""From an index to cases: rules, and which images make one case; manifests that are wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.cohort.cases import CASE_COLUMNS, IMAGE_COLUMNS, Cases, Unit, columns_needed, group_images
from pipeline.cohort.rules import COLLISIONS
from pipeline.dicom.phantom import ct_slice, phantom_uid, save
from pipeline.errors import ConfigError, SourceError
from pipeline.identity import IdentityKey
from pipeline.indexing.sources import open_manifest, open_source
from pipeline.manifest import Rules
from tests.tables import index_of, index_table

KEY = IdentityKey(b"k" * 32)
ALL = Rules(allow=["localizer", "derived", "secondary_capture"])


def _png(path: Path, value: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(path)


def _manifest(folder: Path, text: str) -> Path:
    path = folder / "manifest.yaml"
    path.write_text(text)
    return path


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """Two patients; the first has two series in one study, one of them a localizer; the second a series of two slices."""
    first, second = phantom_uid("study", 1), phantom_uid("study", 2)
    folder = tmp_path / "export"
    accession = {"AccessionNumber": "A1", "Manufacturer": "Maker"}
    series = {"study_instance_uid": first, "series_instance_uid": phantom_uid("series", 1), "patient_id": "P1"}
    for number in (1, 2):
        save(
            ct_slice(
                32, instance_number=number, sop_instance_uid=phantom_uid("image", 1, number), **series, **accession
            ),
            folder / f"a/{number}",
        )
    scout = ct_slice(
        32, study_instance_uid=first, series_instance_uid=phantom_uid("series", 2), patient_id="P1",
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], **accession,
    )  # fmt: skip
    save(scout, folder / "a/scout")
    other = {"study_instance_uid": second, "series_instance_uid": phantom_uid("series", 3), "patient_id": "P2"}
    for number in (1, 2):
        dataset = ct_slice(
            32, instance_number=number, sop_instance_uid=phantom_uid("image", 2, number), AccessionNumber="A2", **other
        )
        save(dataset, folder / f"b/{number}")
    return folder


def _grouped(export: Path, unit: str, rules: Rules = ALL, **options: object):
    index = open_source(str(export)).index(KEY, workers=0)
    return group_images(index, unit, rules, collisions=options.pop("collisions", COLLISIONS), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("unit", "cases"), [("image", 5), ("series", 3), ("study", 2)])
def test_the_unit_decides_what_a_case_is(export: Path, unit: str, cases: int):
    grouped = _grouped(export, unit)
    assert len(grouped.cases) == cases
    assert len(grouped.images) == 5
    assert set(grouped.images["case_id"]) == set(grouped.cases["case_id"])


def test_rules_leave_out_with_their_reason(export: Path):
    grouped = _grouped(export, "study", Rules(include={"modality": ["CT"]}, exclude={"image_type": ["LOCALIZER"]}))
    assert list(grouped.exclusions.itertuples(index=False, name=None)) == [
        ("export", "a/scout", "exclude image_type: LOCALIZER")
    ]
    assert not grouped.images["path"].str.contains("scout").any()


def test_marking_instead_of_leaving_out(export: Path):
    grouped = _grouped(export, "image", Rules(), mark=["dicom"])
    assert grouped.exclusions.empty
    assert grouped.images.set_index("path")["rule"].to_dict()["a/scout"] == "not in allow: localizer"


def test_radloops_own_objects_are_never_a_source(export: Path):
    save(ct_slice(32, Manufacturer="radloop", patient_id="P1"), export / "own")
    save(ct_slice(32, PresentationIntentType="FOR PROCESSING", patient_id="P1"), export / "raw")
    grouped = _grouped(export, "image", mark=["dicom"], collisions=())
    assert grouped.exclusions["rule"].tolist() == ["radloop's own object", "for processing"]


def test_collisions_are_dropped_for_training_and_kept_for_inference(export: Path):
    (export / "copy").write_bytes((export / "a/1").read_bytes())
    assert len(_grouped(export, "image").images) == 5
    kept = _grouped(export, "image", collisions=())
    assert len(kept.images) == 6
    assert kept.images["case_id"].is_unique


def _of_rows(rows: Sequence[Mapping[str, Any]], unit: Unit = "study", **options: Any) -> Cases:
    """The cases of an index of these rows, the same whatever the form of the table."""
    first, second = (
        group_images(index_of(index_table(rows, categorical=form)), unit, ALL, collisions=(), **options)
        for form in (True, False)
    )
    for name in ("cases", "images", "exclusions"):
        pd.testing.assert_frame_equal(getattr(first, name).astype("str"), getattr(second, name).astype("str"))
    assert set(first.cases.dtypes) == {pd.StringDtype(na_value=np.nan)}
    return first


def _place(z: float | None, **other: Any) -> dict[str, Any]:
    """A sagittal slice at x = z; InstanceNumber contradicts the position."""
    position = None if z is None else f"{z}\\0\\100"
    at = {"image_position_patient": position, "image_orientation_patient": "0\\1\\0\\0\\0\\-1"}
    return {"stack": 0, "instance_number": None if z is None else int(100 - z)} | at | other


def test_images_of_a_case_are_in_the_order_of_their_stacks():
    rows = [_place(3), _place(1), _place(2), _place(None, stack=None, instance_number=2)]
    rows += [_place(None, stack=None, instance_number=1), _place(0.5, stack=1), _place(9, series_instance_uid="1.1.0")]
    rows += [
        _place(2.001, instance_number=1)
    ]  # at the place of the third, within the tolerance: InstanceNumber decides
    # The normal points to -x, so positions along it ascend as x falls.
    assert _of_rows(rows).images["path"].tolist() == [f"{n:04d}" for n in (6, 0, 7, 2, 1, 5, 4, 3)]


def test_images_without_any_order_stay_as_the_index_has_them():
    rows = [{"stack": None, "image_position_patient": "0\\0\\1"}, {"stack": -1}, {}]
    assert _of_rows(rows).images["path"].tolist() == ["0000", "0001", "0002"]


def test_cases_are_in_the_order_of_their_ids():
    rows = [{"sop_instance_uid": f"1.{number}"} for number in (3, 1, 2)]
    assert _of_rows(rows, "image").images["case_id"].tolist() == ["1.1", "1.2", "1.3"]


@pytest.mark.parametrize(
    ("unit", "ids"),
    [
        ("image", ["0003", "1.1", "1.1@2", "1.1@3", "2"]),
        ("series", ["0003", "0004", "9"]),
        ("study", ["0003", "7"]),
    ],
)
def test_case_ids(unit: Unit, ids: list[str]):
    known = {"series_instance_uid": "9", "study_instance_uid": "7"}
    rows = [*[{"sop_instance_uid": "1.1", **known}] * 3, {"sop_instance_uid": None}, {"sop_instance_uid": "2"}]
    rows[3] |= {"series_instance_uid": None, "study_instance_uid": ""}
    rows[4] |= {"series_instance_uid": "", "study_instance_uid": "7"}
    grouped = _of_rows(rows, unit)
    assert grouped.cases["case_id"].tolist() == ids
    assert grouped.cases.columns.tolist() == CASE_COLUMNS
    if unit == "study":
        assert grouped.cases[["series_instance_uid", "sop_instance_uid"]].eq("").all(axis=None)


def test_files_of_several_sources_are_told_apart():
    bare = {"sop_instance_uid": None, "path": "a.png"}
    assert _of_rows([bare | {"source": "x"}, bare | {"source": "y"}], "image").cases["case_id"].tolist() == [
        "x/a.png",
        "y/a.png",
    ]


def test_frames_are_rows_after_their_files_place():
    rows = [_place(1, frames=2), _place(2, frames=None), _place(0, frames=3)]
    images = _of_rows(rows).images
    assert images["path"].tolist() == ["0001", "0000", "0000", "0002", "0002", "0002"]
    assert images["frame"].tolist() == [0, 0, 1, 0, 1, 2]


def test_no_images_are_no_cases():
    grouped = _of_rows([{"manufacturer": "RadLoop"}])
    assert grouped.cases.empty
    assert grouped.images.empty
    assert len(grouped.exclusions) == 1
    assert _of_rows([]).exclusions.columns.tolist() == ["source", "path", "rule"]


def test_facts_fill_what_is_not_known():
    rows = [{"modality": value, "patient_sex": None} for value in ("MR", None, "")]
    images = _of_rows(rows, facts={"modality": "CT", "patient_sex": "F"}).images
    assert images["modality"].tolist() == ["MR", "CT", "CT"]
    assert images["patient_sex"].tolist() == ["F"] * 3
    with pytest.raises(ConfigError, match="facts: frames, modalty: no column of text"):
        _of_rows(rows, facts={"modalty": "CT", "frames": "2"})


def test_images_keep_what_is_used_and_what_is_asked_for():
    images = _of_rows([{"kvp": 120.0}], keep=["kvp"]).images
    assert {*IMAGE_COLUMNS, "case_id", "frame", "rule", "kvp"} == set(images.columns)


def test_the_columns_that_a_manifest_needs_are_enough(tmp_path: Path):
    text = (
        "name: t\nclasses: [a, b]\nsources: [{path: .}]\nlabels: {source: attribute, attribute: PatientSex}\n"
        "facts: {station_name: X}\nrules: {include: {KVP: {min: 1}, orientation: [''], slices: 1}, series: thinnest}\n"
    )
    manifest = open_manifest(_manifest(tmp_path, text)).manifest
    assert manifest is not None
    needed = columns_needed(manifest)
    assert {"patient_sex", "station_name", "kvp", "series_number", "image_orientation_patient"} <= set(needed)
    table = index_table([{"kvp": 120.0}], categorical=True)[needed]
    grouped = group_images(
        index_of(table), "study", manifest.rules, collisions=COLLISIONS, facts=manifest.facts, keep=["patient_sex"]
    )
    assert len(grouped.images) == 1


def test_the_index_is_left_as_it_is():
    table = index_table([{"modality": None}, {}], categorical=True)
    before = table.copy(deep=True)
    images = group_images(index_of(table), "image", ALL, collisions=COLLISIONS, facts={"modality": "MR"}).images
    images.loc[:, "path"] = "changed"
    pd.testing.assert_frame_equal(table, before)


FOLDERS = """
name: t
classes: [neg, pos]
sources: [{path: images}]
labels: {source: folder, values: {NEG: neg, POS: pos}}
patients: {source: blocks, blocks: {pattern: '(\\d+)\\.png$', size: 3}}
"""


def test_overlapping_sources_are_refused(tmp_path: Path):
    _png(tmp_path / "images/a/1.png")
    text = "name: t\nclasses: [a, b]\nsources: [{path: images}, {path: images/a}]\nlabels: {source: folder}\n"
    with pytest.raises(ConfigError, match="overlap"):
        open_manifest(_manifest(tmp_path, text))


def test_what_was_trained_on_is_in_scope(export: Path):
    from pipeline.prediction.predict import scope_of, scope_reason

    save(ct_slice(32, BodyPartExamined=None, patient_id="P9"), export / "bare")
    images = _grouped(export, "image").images
    assert (scope_reason(images, scope_of(images)) == "").all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("classes: [one]", "classes"),
        ("positive: maybe", "none of the classes"),
        ("split: {train: 0.9}", "is .*, not 1"),
        ("patients: {source: blocks}", "needs `blocks"),
        ("patients: {source: column, column: x}", "`sheet` is missing"),
        ("labls: {}", "did you mean labels"),
    ],
)
def test_a_wrong_manifest_says_what_is_wrong(tmp_path: Path, change: str, message: str):
    base = {"name": "t", "classes": "[a, b]", "sources": "[{path: .}]", "labels": "{source: folder}"}
    key, _, value = change.partition(": ")
    text = "\n".join(f"{name}: {content}" for name, content in {**base, key: value}.items())
    with pytest.raises(ConfigError, match=message):
        open_manifest(_manifest(tmp_path, text))


def test_a_source_that_is_not_there_says_how_to_name_its_root(tmp_path: Path):
    with pytest.raises(SourceError, match="--root DIR or RADLOOP_DATA"):
        open_manifest(_manifest(tmp_path, FOLDERS))
    with pytest.raises(SourceError, match="no such file or folder"):
        open_source(str(tmp_path / "nowhere"))
    with pytest.raises(SourceError, match="did you mean demo"):
        open_source("demoo")


def test_frames_are_images_of_their_case(tmp_path: Path):
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (1, 2, 3)]
    (tmp_path / "images").mkdir()
    frames[0].save(tmp_path / "images/stack.tif", save_all=True, append_images=frames[1:])
    grouped = group_images(
        open_source(str(tmp_path / "images")).index(KEY, workers=0), "image", ALL, collisions=COLLISIONS
    )
    assert grouped.images["frame"].tolist() == [0, 1, 2]
    assert len(grouped.cases) == 1
    assert isinstance(grouped.images, pd.DataFrame)
