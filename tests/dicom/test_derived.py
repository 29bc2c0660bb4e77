"""UIDs, digests, paths and writing: same input, same file, and nothing hostile reaches the disk."""

from __future__ import annotations

import datetime
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset

from pipeline.dicom.conformance import is_uid
from pipeline.dicom.derived import (
    Algorithm,
    SourceFrame,
    ascii_text,
    content_digest,
    instance_uid,
    object_path,
    series_uid,
    shared_attributes,
    source_item,
    uid_from,
    write_object,
)
from pipeline.dicom.phantom import ct_slice
from pipeline.dicom.secondary_capture import secondary_capture
from pipeline.dicom.source import as_source
from pipeline.errors import ObjectError
from pipeline.files import file_digest
from tests.case_results import case_result

ALGORITHM = Algorithm("radloop", "0.1.0", "ct_slices", "ab" * 32)
MORNING = datetime.datetime(2026, 3, 1, 8, 30, 15, 250)
EVENING = datetime.datetime(2026, 3, 1, 20, 15)


def made(created: datetime.datetime = MORNING, **changes: object) -> Dataset:
    result = case_result([ct_slice(16)], created=created, algorithm=ALGORITHM)
    dataset = secondary_capture(result, result.images[0])
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    return dataset


@given(st.lists(st.text(max_size=8), max_size=5))
def test_uids_are_legal_uuids_and_stay_the_same(parts: list[str]) -> None:
    uid = uid_from(*parts)
    assert is_uid(uid)
    number = uuid.UUID(int=int(uid.removeprefix("2.25.")))
    assert (number.version, number.variant) == (8, uuid.RFC_4122)
    assert uid == uid_from(*parts)


@given(st.lists(st.text(max_size=4), max_size=4), st.lists(st.text(max_size=4), max_size=4))
def test_other_parts_give_another_uid(one: list[str], other: list[str]) -> None:
    assert (uid_from(*one) == uid_from(*other)) is (one == other)


def test_uids_do_not_change_from_release_to_release() -> None:
    assert uid_from("a", "bc") == "2.25.84653297567445782896943492490882286583"


def test_every_part_of_an_instance_counts_and_the_order_too() -> None:
    one, two = SourceFrame("1.2.1", 0, "d1"), SourceFrame("1.2.2", 0, "d2")
    other = Algorithm("radloop", "0.1.1", "ct_slices", "ab" * 32)
    uids = {
        instance_uid("1.2", [one, two], ALGORITHM, "c", "sc"),
        instance_uid("1.2", [two, one], ALGORITHM, "c", "sc"),
        instance_uid("1.2", [one], ALGORITHM, "c", "sc"),
        instance_uid("1.2", [SourceFrame("1.2.1", 1, "d1"), two], ALGORITHM, "c", "sc"),
        instance_uid("1.2", [SourceFrame("1.2.1", 0, "d3"), two], ALGORITHM, "c", "sc"),
        instance_uid("1.2", [one, two], other, "c", "sc"),
        instance_uid("1.2", [one, two], ALGORITHM, "c2", "sc"),
        instance_uid("1.2", [one, two], ALGORITHM, "c", "sr"),
        instance_uid("1.3", [one, two], ALGORITHM, "c", "sc"),
        series_uid("1.2", ALGORITHM, "c", "sc"),
        series_uid("1.2", other, "c", "sc"),
        series_uid("1.3", ALGORITHM, "c", "sc"),
    }
    assert len(uids) == 12


def test_file_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_content_leaves_out_when_but_not_what() -> None:
    assert content_digest(made(MORNING)) == content_digest(made(EVENING))
    assert content_digest(made()) != content_digest(made(ImageComments="other"))
    assert content_digest(made()) != content_digest(made(PixelData=bytes(56 * 160 * 3)))


def test_reading_again_gives_the_same_digest(tmp_path: Path) -> None:
    dataset = made()
    assert content_digest(dcmread(write_object(dataset, tmp_path))) == content_digest(dataset)


def test_writing_again_leaves_the_file_with_its_times(tmp_path: Path) -> None:
    path = write_object(made(MORNING), tmp_path)
    before, modified = path.read_bytes(), path.stat().st_mtime_ns
    assert write_object(made(EVENING), tmp_path) == path
    assert path.read_bytes() == before
    assert path.stat().st_mtime_ns == modified


def test_other_content_or_a_broken_file_is_replaced(tmp_path: Path) -> None:
    path = write_object(made(), tmp_path)
    write_object(made(ImageComments="other"), tmp_path)
    assert dcmread(path).ImageComments == "other"
    path.write_bytes(path.read_bytes()[:500])
    write_object(made(), tmp_path)
    assert dcmread(path).pixel_array.shape == (56, 160, 3)
    path.write_bytes(b"")
    write_object(made(), tmp_path)
    assert dcmread(path).pixel_array.shape == (56, 160, 3)


def test_only_the_object_is_left_on_the_disk(tmp_path: Path) -> None:
    dataset = made()
    path = write_object(dataset, tmp_path)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]
    parts = (dataset.StudyInstanceUID, dataset.SeriesInstanceUID, f"{dataset.SOPInstanceUID}.dcm")
    assert path == tmp_path.joinpath(*parts)


def test_the_file_says_that_radloop_wrote_it(tmp_path: Path) -> None:
    meta = dcmread(write_object(made(), tmp_path)).file_meta
    assert meta.ImplementationVersionName.startswith("radloop")
    assert is_uid(meta.ImplementationClassUID)


def test_an_invalid_object_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ObjectError, match="Modality is empty"):
        write_object(made(Modality=""), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("uid", ["../..", "..", "", "/etc", "1.2/../..", "1.2\\3"])
def test_a_hostile_uid_never_becomes_a_path(tmp_path: Path, uid: str) -> None:
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        dataset = made(**{keyword: uid})
        with pytest.raises(ObjectError):
            object_path(tmp_path, dataset)
        with pytest.raises(ObjectError):
            write_object(dataset, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_patient_and_study_are_carried() -> None:
    source = as_source(
        ct_slice(16, StudyDescription="Chest", PatientAge="062Y", IssuerOfPatientID="HOSPITAL", AccessionNumber="A1")
    )
    shared = shared_attributes(source, ALGORITHM, MORNING)
    for keyword in (
        "PatientID",
        "PatientName",
        "StudyInstanceUID",
        "StudyDescription",
        "PatientAge",
        "AccessionNumber",
    ):
        assert shared[keyword].value == source[keyword].value
    assert shared.IssuerOfPatientID == "HOSPITAL"
    assert (shared.Manufacturer, shared.SoftwareVersions) == ("radloop", "0.1.0")
    assert (shared.ContentDate, shared.ContentTime) == ("20260301", "083015.000250")


@pytest.mark.filterwarnings("ignore")
def test_the_scanner_contributed() -> None:
    source = as_source(ct_slice(16, Manufacturer="ACME", ManufacturerModelName="CT 1", StationName="S" * 17))
    scanner, model = shared_attributes(source, ALGORITHM, MORNING).ContributingEquipmentSequence
    assert (scanner.Manufacturer, scanner.ManufacturerModelName) == ("ACME", "CT 1")
    assert "StationName" not in scanner
    assert scanner.PurposeOfReferenceCodeSequence[0].CodeValue == "109101"
    assert (model.ManufacturerModelName, model.PurposeOfReferenceCodeSequence[0].CodeValue) == ("ct_slices", "109102")
    unknown = as_source(ct_slice(16, Manufacturer=""))
    (only,) = shared_attributes(unknown, ALGORITHM, MORNING).ContributingEquipmentSequence
    assert only == model


def test_the_model_is_a_device_by_its_digest() -> None:
    def device(digest: str) -> str:
        algorithm = Algorithm("radloop", "0.1.0", "ct_slices", digest)
        return str(
            shared_attributes(as_source(ct_slice(16)), algorithm, MORNING).ContributingEquipmentSequence[1].DeviceUID
        )

    assert is_uid(device("ab" * 32))
    assert device("ab" * 32) == device("ab" * 32) != device("cd" * 32)


def test_times_are_in_the_zone_of_the_source() -> None:
    aware = datetime.datetime(2026, 3, 1, 23, 30, tzinfo=datetime.UTC)
    shared = shared_attributes(as_source(ct_slice(16, TimezoneOffsetFromUTC="+0100")), ALGORITHM, aware)
    assert (shared.ContentDate, shared.ContentTime) == ("20260302", "003000.000000")
    assert shared.TimezoneOffsetFromUTC == "+0100"
    plain = shared_attributes(as_source(ct_slice(16)), ALGORITHM, aware)
    assert plain.ContentDate == "20260301"
    assert "TimezoneOffsetFromUTC" not in plain
    given = shared_attributes(as_source(ct_slice(16)), ALGORITHM, aware, timezone="+0100")
    assert (given.ContentDate, given.TimezoneOffsetFromUTC) == ("20260302", "+0100")
    declared = shared_attributes(
        as_source(ct_slice(16, TimezoneOffsetFromUTC="-0500")), ALGORITHM, aware, timezone="+0100"
    )
    assert (declared.ContentDate, declared.TimezoneOffsetFromUTC) == ("20260301", "-0500")


def test_the_issuer_is_carried_as_far_as_it_is_valid() -> None:
    local, half = Dataset(), Dataset()
    local.LocalNamespaceEntityID = "HOSPITAL"
    half.UniversalEntityID = "1.2.3"
    source = as_source(
        ct_slice(16, IssuerOfAccessionNumberSequence=[local], IssuerOfPatientIDQualifiersSequence=[half])
    )
    shared = shared_attributes(source, ALGORITHM, MORNING)
    assert shared.IssuerOfAccessionNumberSequence[0].LocalNamespaceEntityID == "HOSPITAL"
    assert "IssuerOfPatientIDQualifiersSequence" not in shared


def test_references_name_a_frame_only_where_the_class_has_frames() -> None:
    single = source_item(as_source(ct_slice(16)), 0)
    assert "ReferencedFrameNumber" not in single
    assert single.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
    lying = source_item(as_source(ct_slice(16, NumberOfFrames=3)), 1)
    assert "ReferencedFrameNumber" not in lying
    enhanced = source_item(as_source(ct_slice(16, SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1", NumberOfFrames=3)), 1)
    assert enhanced.ReferencedFrameNumber == 2


def test_text_becomes_ascii_of_a_length() -> None:
    assert ascii_text("a\n b\tc\\d é für 肺", 64) == "a b c/d e fur ?"
    assert ascii_text("x" * 70, 64) == "x" * 61 + "..."
