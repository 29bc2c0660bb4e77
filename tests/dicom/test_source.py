"""What a source may look like, and what is carried from it: valid values, names as they are, nobody's data in a log."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset, FileMetaDataset

from pipeline.dicom.phantom import ct_slice, save
from pipeline.dicom.source import (
    TYPE_2,
    as_source,
    carried,
    declared_character_set,
    frame_count,
    inherited_marks,
    read_source,
)
from pipeline.errors import Rejected, RejectReason

pytestmark = pytest.mark.filterwarnings("ignore")  # pydicom's, about the invalid values that are the point here


def spoiled(**attributes: object) -> Dataset:
    with disable_value_validation():
        return ct_slice(16, **attributes)


def name_file(path: Path, name: bytes, declared: str | None) -> Path:
    """A CT whose PatientName has these bytes, whatever the declared character set allows."""
    dataset = ct_slice(16, PatientName="@" * len(name))
    if "SpecificCharacterSet" in dataset:
        del dataset.SpecificCharacterSet
    if declared is not None:
        with disable_value_validation():
            dataset.SpecificCharacterSet = declared
    save(dataset, path)
    path.write_bytes(path.read_bytes().replace(b"@" * len(name), name, 1))
    return path


def test_the_copy_has_no_pixels_and_no_private_tags_and_the_argument_stays() -> None:
    dataset = ct_slice(16)
    dataset.add_new(0x00091001, "LO", "private")
    before = set(dataset.keys())
    source = as_source(dataset)
    assert set(dataset.keys()) == before
    assert not any(tag.is_private or tag.group == 0x7FE0 for tag in source.keys())  # noqa: SIM118
    assert source.ImageOrientationPatient == dataset.ImageOrientationPatient


def test_missing_type_2_attributes_are_filled_in() -> None:
    dataset = ct_slice(16)
    for keyword in TYPE_2:
        if keyword in dataset:
            delattr(dataset, keyword)
    source = as_source(dataset)
    assert all(source[keyword].is_empty for keyword in TYPE_2)


@pytest.mark.parametrize(
    ("keyword", "value", "expected"),
    [
        ("PatientSex", "X", ""),
        ("PatientSex", "F", "F"),
        ("PatientSex", ["M", "F"], ""),
        ("StudyDate", "1997.04.24", "19970424"),
        ("StudyTime", "14:04:38", "140438"),
        ("StudyDate", "20230230", ""),
        ("PatientBirthDate", "yesterday", ""),
        ("AccessionNumber", "A" * 17, ""),
        ("StudyID", "A" * 16, "A" * 16),
        ("StudyID", ["a", "b"], ""),
        ("PatientName", "N" * 65, ""),
        ("PatientName", "a\x07b", ""),
    ],
)
def test_invalid_type_2_values_are_emptied_or_rewritten(keyword: str, value: object, expected: str) -> None:
    assert as_source(spoiled(**{keyword: value}))[keyword].value == expected


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientAge", "62"),
        ("PatientWeight", "70.12345678901234567"),
        ("StudyDescription", "D" * 65),
        ("PatientIdentityRemoved", "MAYBE"),
        ("TimezoneOffsetFromUTC", "CET"),
        ("IssuerOfPatientID", "I" * 65),
    ],
)
def test_invalid_optional_values_are_dropped(keyword: str, value: object) -> None:
    assert keyword not in as_source(spoiled(**{keyword: value}))


def test_ids_that_file_an_object_stay_as_they_are() -> None:
    source = as_source(spoiled(PatientID="P" * 80, StudyInstanceUID="1.02.3"))
    assert (source.PatientID, source.StudyInstanceUID) == ("P" * 80, "1.02.3")


def test_it_is_idempotent() -> None:
    once = as_source(spoiled(PatientSex="X", StudyDate="1997.04.24"))
    assert as_source(once) == once


def test_warnings_name_attributes_and_no_values(
    caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    dataset = spoiled(AccessionNumber="SECRET-ACCESSION-NUMBER", PatientBirthDate="SECRET", PatientAge="SECRET")
    recwarn.clear()
    caplog.clear()
    with caplog.at_level("DEBUG"):
        as_source(dataset)
    assert "AccessionNumber" in caplog.text
    assert "SECRET" not in caplog.text
    assert not any("SECRET" in str(warning.message) for warning in recwarn)


@pytest.mark.parametrize(
    ("name", "declared", "expected"),
    [
        ("Müller^Jürgen".encode("latin-1"), None, "Müller^Jürgen"),
        ("Müller^Jürgen".encode(), None, "Müller^Jürgen"),
        ("Müller^Jürgen".encode("latin-1"), "ISO_IR 192", "Müller^Jürgen"),
        ("Müller^Jürgen".encode("latin-1"), "ISO_IR 100", "Müller^Jürgen"),
        ("Διονυσιος".encode("iso8859-7"), "ISO_IR 126", "Διονυσιος"),
        ("Διονυσιος".encode("iso8859-7"), "ISO-IR 126", "Διονυσιος"),
        ("Люксембург".encode("iso8859-5"), "iso_ir 144", "Люксембург"),
        ("Müller^Jürgen".encode(), "NONSENSE", "Müller^Jürgen"),
        ("Wang^XiaoDong=王^小东".encode("gb18030"), "GB18030", "Wang^XiaoDong=王^小东"),
        (b"Smith^\x92x", None, ""),
    ],
)
def test_names_are_read_by_the_set_that_fits(tmp_path: Path, name: bytes, declared: str | None, expected: str) -> None:
    source = read_source(name_file(tmp_path / "a", name, declared))
    assert source.PatientName == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, []),
        ("", []),
        ("ISO_IR 6", []),
        ("ISO_IR 100", ["ISO_IR 100"]),
        ("ISO IR 100", ["ISO_IR 100"]),
        ("ISO-2022-IR-87", ["ISO 2022 IR 87"]),
        (["", "ISO 2022 IR 87"], ["", "ISO 2022 IR 87"]),
        ("NONSENSE", []),
    ],
)
def test_declared_character_sets(given: object, expected: list[str]) -> None:
    dataset = Dataset()
    if given is not None:
        dataset.SpecificCharacterSet = given
    assert declared_character_set(dataset) == expected


def test_carried_gives_a_valid_element_or_none() -> None:
    dataset = spoiled(PatientSize=None, KVP="120")
    assert carried(dataset, "PatientSize") is None
    assert carried(dataset, "PatientWeight") is None
    element = carried(dataset, "KVP")
    assert element is not None
    assert element.value == 120


@pytest.mark.parametrize(("frames", "expected"), [(None, 1), ("", 1), (0, 1), (1, 1), (7, 7)])
def test_frame_count(frames: object, expected: int) -> None:
    dataset = Dataset()
    if frames is not None:
        dataset.NumberOfFrames = frames
    assert frame_count(dataset) == expected


@pytest.mark.parametrize(("given", "expected"), [(None, "NO"), ("NO", "NO"), ("YES", "YES"), ("PERHAPS", "NO")])
def test_burned_in_annotation(given: str | None, expected: str) -> None:
    dataset = Dataset()
    if given is not None:
        dataset.BurnedInAnnotation = given
    assert inherited_marks(dataset).BurnedInAnnotation == expected


def test_once_lossy_always_lossy() -> None:
    dataset = Dataset()
    dataset.LossyImageCompression = "01"
    dataset.LossyImageCompressionRatio = ["10", "3.5"]
    dataset.LossyImageCompressionMethod = ["ISO_10918_1", "ISO_15444_1"]
    marks = inherited_marks(dataset)
    assert marks.LossyImageCompression == "01"
    assert list(marks.LossyImageCompressionRatio) == [10, 3.5]
    assert list(marks.LossyImageCompressionMethod) == ["ISO_10918_1", "ISO_15444_1"]


def test_a_lossy_transfer_syntax_tells_what_the_header_does_not() -> None:
    dataset = Dataset()
    dataset.LossyImageCompression = "00"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.50"
    marks = inherited_marks(dataset)
    assert (marks.LossyImageCompression, marks.LossyImageCompressionMethod) == ("01", "ISO_10918_1")


def test_lossless_sources_claim_nothing() -> None:
    assert "LossyImageCompression" not in inherited_marks(ct_slice(16))


def test_a_file_that_is_gone_or_broken_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(Rejected) as gone:
        read_source(tmp_path / "none")
    assert gone.value.reason is RejectReason.CHANGED
    path = save(ct_slice(16), tmp_path / "a")
    explicit, deflated = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"
    content = path.read_bytes().replace(b"UI\x14\0" + explicit, b"UI\x16\0" + deflated, 1)
    length = int.from_bytes(content[140:144], "little") + len(deflated) - len(explicit)
    path.write_bytes(content[:140] + length.to_bytes(4, "little") + content[144:])  # says deflated, and is not
    with pytest.raises(Rejected) as broken:
        read_source(path)
    assert broken.value.reason is RejectReason.MALFORMED
