"""A mark in every attribute of an export: what of it stands in what the commands write and say, and what must not.

Allowed are the columns that the index names, where they are, and the patient and study modules of objects, which go back to the patient.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from pipeline.cli import main
from pipeline.columns import ATTRIBUTES, snake_case
from pipeline.dicom.deidentification_attributes import TECHNICAL
from pipeline.dicom.source import EQUIPMENT, PATIENT_AND_STUDY
from pipeline.profile_settings import KINDS
from tests.marked_export import (
    header_marks,
    keywords_of,
    make_export,
    marked_dataset,
    marks_by_file,
    marks_in,
    marks_in_columns,
    numbers_in,
    write_marked,
)
from tests.tiny_runs import TINY

pytestmark = pytest.mark.slow
PATIENTS = 24
COPY = "overlay"
"""The kind of object that is a copy of its source, all that its IOD has: not of a source as broken as this."""
UIDS = frozenset({"StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"})
"""By which tables, folders and files name what they speak of."""
COUNTED = frozenset({"Manufacturer", "ManufacturerModelName", "InstitutionName", "StationName", "PatientSex"})
"""Columns of the index by whose values audits and reports count cases: scanner, site and sex."""
ALLOWED = {
    "audit.html": COUNTED,
    "audit.json": COUNTED,
    "report.html": COUNTED,
    "metrics.json": COUNTED,
    "summary.json": COUNTED | {"Modality", "SOPClassUID"},
    "check.csv": {"SOPClassUID"},
}
KINDS_MADE = ",".join(kind for kind in KINDS if kind != COPY)
ISSUERS = ("IssuerOfPatientIDQualifiersSequence", "IssuerOfAccessionNumberSequence")
REFERENCES = (
    *("SourceImageSequence", "ReferencedSeriesSequence", "ReferencedImageSequence", "SourceInstanceSequence"),
    *("CurrentRequestedProcedureEvidenceSequence", "GraphicAnnotationSequence", "DisplayedAreaSelectionSequence"),
    *("SoftcopyVOILUTSequence", "PerFrameFunctionalGroupsSequence", "ContentSequence"),
)
"""In which objects name the images that they are about."""


@dataclass
class Trail:
    """A folder with all that the commands wrote, and what each said."""

    folder: Path
    said: dict[str, str] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)

    def call(self, name: str, *arguments: Any) -> None:
        told, handler = io.StringIO(), None
        handler = logging.StreamHandler(told)
        logging.getLogger().addHandler(handler)
        try:
            with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
                self.codes[name] = main([str(one) for one in arguments])
        finally:
            logging.getLogger().removeHandler(handler)
        self.said[name] = told.getvalue()


def _set(settings: Sequence[str]) -> Iterator[str]:
    for one in settings:
        yield from ("--set", one)


@pytest.fixture(scope="module")
def trail(tmp_path_factory: pytest.TempPathFactory) -> Trail:
    folder = make_export(tmp_path_factory.mktemp("marks") / "project", PATIENTS)
    made = Trail(folder)
    config, export = folder / "config.yaml", folder / "export"
    made.call("index", "index", export, "--out", folder / "index")
    made.call("audit", "audit", folder / "manifest.yaml", "--out", folder / "audit")
    made.call("train", "train", config, *_set(TINY), "--out", folder / "run")
    made.call("other", "train", config, *_set([*TINY, "seed=1"]), "--out", folder / "other")
    for run in ("run", "other"):
        made.call(f"evaluate {run}", "evaluate", folder / run)
    made.call("compare", "compare", folder / "run", folder / "other", "--out", folder / "compare")
    made.call("explain", "explain", folder / "run", "--images", 4)
    made.call("infer", "infer", folder / "run", export, "--out", folder / "results", "--write", KINDS_MADE)
    made.call("check", "check", folder / "results", "--out", folder / "check")
    made.call("check sources", "check", export, "--out", folder / "check_sources")
    made.call("volume", "volume", export, "--out", folder / "volumes")
    _call_on_bad_files(made)
    return made


def _call_on_bad_files(made: Trail) -> None:
    bad, folder = _bad_files(made.folder / "bad"), made.folder
    made.call("index bad", "index", bad, "--out", folder / "bad_index")
    made.call("check bad", "check", bad, "--out", folder / "bad_check")
    made.call("deidentify bad", "deidentify", bad, "--out", folder / "bad_clean")


def _bad_files(folder: Path) -> Path:
    """Headers that lie or break, with marks all around."""
    whole = write_marked(marked_dataset(90), folder / "whole").read_bytes()
    (folder / "cut in its pixels").write_bytes(whole[:-500])
    (folder / "cut in its header").write_bytes(whole[:20000])
    (folder / "noise").write_bytes(whole[:400] + bytes(range(256)) * 30)
    uid = b"1.2.77777.524312.90"
    assert uid in whole
    (folder / "without its SOPInstanceUID").write_bytes(whole.replace(uid, bytes(len(uid))))
    for number, (keyword, vr, value) in enumerate(
        (
            ("SOPClassUID", "UI", "1.2.77777.524310"),
            ("Rows", "LO", "QX00280010Z"),
            ("NumberOfFrames", "IS", "QX00280008Z"),
            ("PhotometricInterpretation", "CS", "QX00280004Z"),
            ("RescaleSlope", "DS", "QX00281053Z"),
            ("WindowCenter", "DS", "QX00281050Z"),
            ("PixelSpacing", "DS", "QX00280030Z"),
            ("ImagePositionPatient", "DS", "QX00200032Z"),
            ("ImageType", "CS", "QX00080008Z"),
            ("BitsStored", "US", b"\x28\x00"),
            ("Modality", "CS", "QX00080060Z"),
            ("PatientID", "LO", "QX00100020Z\x07\x1b"),
            ("StudyInstanceUID", "UI", "QX0020000DZ"),
            ("PixelData", "OB", b"QX7FE00010Z" * 300),
        )
    ):
        dataset = marked_dataset(100 + number)
        raw = value if isinstance(value, bytes) else value.encode()
        raw += b" " * (len(raw) % 2)
        dataset[Tag(keyword)] = RawDataElement(Tag(keyword), vr, len(raw), raw, 0, False, True)
        write_marked(dataset, folder / f"wrong {keyword}")
    return folder


def test_the_commands_did_their_work(trail: Trail):
    """Where one failed early, there would be nothing to look at."""
    assert set(trail.codes.values()) <= {0, 1}
    for name in (
        *(
            "run/model.safetensors",
            "run/evaluation/report.html",
            "run/explanation/explanation.html",
            "audit/audit.html",
        ),
        *("compare/compare.json", "volumes/volumes.csv", "check/check.csv", "bad_check/check.csv"),
    ):
        assert (trail.folder / name).is_file(), name
    kinds = {line.split(",")[0] for line in (trail.folder / "results" / "objects.csv").read_text().splitlines()[1:]}
    assert kinds == set(KINDS_MADE.split(","))


def test_files_hold_marks_of_the_allow_list_alone(trail: Trail):
    wrong = {}
    for path, marks in marks_by_file(trail.folder).items():
        place = path.relative_to(trail.folder)
        if place.parts[0] in ("export", "bad", "sheet.csv", "bad_clean") or path.suffix in (".dcm", ".parquet"):
            continue
        found = keywords_of(marks) - UIDS - ALLOWED.get(path.name, set())
        if found:
            wrong[str(place)] = sorted(found)
    assert wrong == {}


def test_the_index_holds_each_mark_in_its_own_column(trail: Trail):
    indexes = sorted(trail.folder.rglob("*.parquet"))
    assert len(indexes) >= 4
    columns = {snake_case(keyword): keyword for keyword in ATTRIBUTES}
    for path in indexes:
        for column, marks in marks_in_columns(path).items():
            broken = {"bad"} & set(path.relative_to(trail.folder).parts[0].split("_"))
            assert keywords_of(marks) == {columns[column]} or (broken and column in columns), (path, column)


def test_objects_hold_marks_in_patient_study_scanner_and_references(trail: Trail):
    allowed = {*PATIENT_AND_STUDY, *ISSUERS}
    paths = sorted(trail.folder.glob("*results/**/*.dcm"))
    assert paths
    for path in paths:
        for keyword, marks in header_marks(path).items():
            found = keywords_of(marks)
            if keyword == "ContributingEquipmentSequence":
                assert found <= set(EQUIPMENT), path
            elif keyword in REFERENCES:
                assert found <= UIDS | {"FrameOfReferenceUID"}, (path, keyword)
            elif keyword in ISSUERS:
                continue
            else:
                assert keyword in allowed or keyword in ("FrameOfReferenceUID", "PositionReferenceIndicator"), (
                    path,
                    keyword,
                )
                assert found <= {keyword}, (path, keyword)


def test_nothing_of_it_is_in_what_is_said(trail: Trail):
    for name, told in trail.said.items():
        found = keywords_of(marks_in(told.encode()) | numbers_in(told)) - UIDS
        assert found <= COUNTED | {"Modality", "SOPClassUID"}, (name, found)
        assert "Traceback" not in told, name


def test_what_was_deidentified_holds_what_devices_say_of_themselves(trail: Trail):
    """Marks that are nobody's name: of them technical text and code strings stay (docs/deidentify.md)."""
    for path, marks in marks_by_file(trail.folder / "bad_clean").items():
        for keyword in keywords_of(marks):
            assert keyword in TECHNICAL or dictionary_VR(keyword) == "CS", (path.name, keyword)
