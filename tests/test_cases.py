"""From an index to cases: rules, units, labels from folders and sheets, patients from headers, columns and blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.cases import Cases, Unit, group_images
from pipeline.dicom.phantom import ct_slice, phantom_uid, save
from pipeline.errors import ConfigError, SourceError
from pipeline.identity import IdentityKey
from pipeline.labels import label_cases
from pipeline.manifest import Rules, open_manifest, open_source

KEY = IdentityKey(b"k" * 32)
ALL = Rules(exclude={})


def _png(path: Path, value: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(path)


def _manifest(folder: Path, text: str) -> Path:
    path = folder / "manifest.yaml"
    path.write_text(text)
    return path


def _labelled(folder: Path, text: str, unit: Unit = "image") -> Cases:
    """The labelled cases of a manifest with this text in `folder`."""
    opened = open_manifest(_manifest(folder, text))
    assert opened.manifest is not None
    grouped = group_images(opened.index(KEY, workers=0), unit, ALL, drop_collisions=True)
    return label_cases(grouped, opened.manifest, opened, KEY)


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
    return group_images(index, unit, rules, drop_collisions=options.pop("drop_collisions", True), **options)  # type: ignore[arg-type]


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
    assert grouped.images.set_index("path")["rule"].to_dict()["a/scout"] == "exclude image_type: LOCALIZER"


def test_radloops_own_objects_are_never_a_source(export: Path):
    save(ct_slice(32, Manufacturer="radloop", patient_id="P1"), export / "own")
    grouped = _grouped(export, "image", mark=["dicom"], drop_collisions=False)
    assert grouped.exclusions["rule"].tolist() == ["radloop's own object"]


def test_collisions_are_dropped_for_training_and_kept_for_inference(export: Path):
    (export / "copy").write_bytes((export / "a/1").read_bytes())
    assert len(_grouped(export, "image").images) == 5
    kept = _grouped(export, "image", drop_collisions=False)
    assert len(kept.images) == 6
    assert kept.images["case_id"].is_unique


def test_a_rule_on_no_column_is_refused(export: Path):
    with pytest.raises(ConfigError, match="modalty is no column"):
        _grouped(export, "image", Rules(include={"modalty": ["CT"]}))


SHEET = """
name: t
classes: [neg, pos]
sources: [{{path: export}}]
sheet: {{path: labels.csv, join: {join}, column: key}}
labels: {{source: sheet, column: finding, values: {{n: neg, y: pos}}}}
unit: study
"""


@pytest.mark.parametrize(
    ("join", "keys"),
    [
        ("AccessionNumber", ("A1", "A2")),
        ("PatientID", ("P1", "P2")),
        ("StudyInstanceUID", (phantom_uid("study", 1), phantom_uid("study", 2))),
    ],
)
def test_a_sheet_joins_on_identifiers(export: Path, join: str, keys: tuple[str, str]):
    folder = export.parent
    (folder / "labels.csv").write_text(f"key,finding\n{keys[0]},y\n{keys[1]},n\nnobody,n\n")
    opened = open_manifest(_manifest(folder, SHEET.format(join=join)))
    assert opened.manifest is not None
    index = opened.index(KEY, workers=0)
    labelled = label_cases(
        group_images(index, "study", opened.manifest.rules, drop_collisions=True), opened.manifest, opened, KEY
    )
    assert dict(zip(labelled.cases["study_instance_uid"], labelled.cases["label"], strict=True)) == {
        phantom_uid("study", 1): "pos",
        phantom_uid("study", 2): "neg",
    }
    assert "1 of 3 rows of the label sheet match no image that the rules let in" in labelled.warnings
    text = labelled.cases.to_csv() + labelled.images.to_csv()
    assert not any(identifier in text for identifier in ("P1", "P2", "A1", "A2"))


def test_cases_without_label_and_unknown_values_are_exclusions(export: Path):
    folder = export.parent
    (folder / "labels.csv").write_text("key,finding\nA1,maybe\nA2,n\n")
    opened = open_manifest(_manifest(folder, SHEET.format(join="AccessionNumber")))
    assert opened.manifest is not None
    index = opened.index(KEY, workers=0)
    labelled = label_cases(
        group_images(index, "study", opened.manifest.rules, drop_collisions=True), opened.manifest, opened, KEY
    )
    assert labelled.cases["label"].tolist() == ["neg"]
    assert set(labelled.exclusions["rule"]) == {"no label", "exclude image_type: LOCALIZER"}


def test_contradicting_rows_of_a_sheet_are_an_error(export: Path):
    folder = export.parent
    (folder / "labels.csv").write_text("key,finding\nA1,y\nA1,n\n")
    with pytest.raises(ConfigError, match="several different rows") as caught:
        _labelled(folder, SHEET.format(join="AccessionNumber"), unit="study")
    assert "A1" not in str(caught.value)


FOLDERS = """
name: t
classes: [neg, pos]
sources: [{path: images}]
labels: {source: folder, values: {NEG: neg, POS: pos}}
patients: {source: blocks, blocks: {pattern: '(\\d+)\\.png$', size: 3}}
"""


def test_labels_from_folders_and_patients_from_blocks(tmp_path: Path):
    for number in range(1, 8):
        _png(tmp_path / f"images/POS/{number}.png")
        _png(tmp_path / f"images/NEG/{number}.png")
    _png(tmp_path / "images/9.png")
    opened = open_manifest(_manifest(tmp_path, FOLDERS))
    assert opened.manifest is not None
    index = opened.index(KEY, workers=0)
    labelled = label_cases(group_images(index, "image", ALL, drop_collisions=True), opened.manifest, opened, KEY)
    assert labelled.cases["label"].value_counts().to_dict() == {"neg": 7, "pos": 7}
    blocks = (
        labelled.cases.groupby("patient_key")["path"]
        .apply(lambda paths: sorted(Path(path).stem for path in paths))
        .to_dict()
    )
    assert blocks["POS#0000"] == ["1", "2", "3"]
    assert blocks["POS#0002"] == ["7"]
    assert any("independence is not proven" in warning for warning in labelled.warnings)


def test_a_path_without_number_is_named_for_blocks(tmp_path: Path):
    _png(tmp_path / "images/POS/one.png")
    with pytest.raises(ConfigError, match="finds no number"):
        _labelled(tmp_path, FOLDERS)


def test_patients_from_a_column_are_hashed(tmp_path: Path):
    for name in ("a.png", "b.png", "c.png"):
        _png(tmp_path / "images" / name)
    (tmp_path / "labels.csv").write_text("file,who,what\na.png,4711,yes\nb.png,4711,yes\nc.png,4712,no\n")
    text = """
name: t
classes: ["no", "yes"]
sources: [{path: images}]
sheet: {path: labels.csv, join: file_name, column: file}
labels: {source: sheet, column: what}
patients: {source: column, column: who}
"""
    labelled = _labelled(tmp_path, text)
    assert labelled.cases["patient_key"].nunique() == 2
    assert "4711" not in labelled.cases["patient_key"].str.cat()


def test_a_file_name_in_two_folders_needs_the_path(tmp_path: Path):
    for name in ("x/1.png", "y/1.png"):
        _png(tmp_path / "images" / name)
    (tmp_path / "labels.csv").write_text("file,what,\n1.png,yes,\n")
    text = """
name: t
classes: ["no", "yes"]
sources: [{path: images}]
sheet: {path: labels.csv, join: file_name, column: file}
labels: {source: sheet, column: what}
"""
    with pytest.raises(ConfigError, match="join by path"):
        _labelled(tmp_path, text)


def test_a_sheet_without_header_line_quotes_nobody(tmp_path: Path):
    _png(tmp_path / "images/1.png")
    (tmp_path / "labels.csv").write_text("DOE^JOHN,4711\n")
    text = "name: t\nclasses: [a, b]\nsources: [{path: images}]\nsheet: {path: labels.csv, join: path, column: file}\n"
    with pytest.raises(ConfigError, match="no column file, what among its 2") as caught:
        _labelled(tmp_path, text + "labels: {source: sheet, column: what}\n")
    assert "DOE" not in str(caught.value)


def test_overlapping_sources_are_refused(tmp_path: Path):
    _png(tmp_path / "images/a/1.png")
    text = "name: t\nclasses: [a, b]\nsources: [{path: images}, {path: images/a}]\nlabels: {source: folder}\n"
    with pytest.raises(ConfigError, match="overlap"):
        open_manifest(_manifest(tmp_path, text))


def test_what_was_trained_on_is_in_scope(export: Path):
    from pipeline.predict import scope_of, scope_reason

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
    with pytest.raises(ConfigError, match="Did you mean demo"):
        open_source("demoo")


def test_frames_are_images_of_their_case(tmp_path: Path):
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (1, 2, 3)]
    (tmp_path / "images").mkdir()
    frames[0].save(tmp_path / "images/stack.tif", save_all=True, append_images=frames[1:])
    grouped = group_images(
        open_source(str(tmp_path / "images")).index(KEY, workers=0), "image", ALL, drop_collisions=True
    )
    assert grouped.images["frame"].tolist() == [0, 1, 2]
    assert len(grouped.cases) == 1
    assert isinstance(grouped.images, pd.DataFrame)
