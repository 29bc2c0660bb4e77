"""`check` finds what is wrong with an object, all of it, and says so without a value."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.config import disable_value_validation
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from pipeline.dicom.conformance import check, element_finding, is_encodable, is_uid
from pipeline.errors import ObjectError

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def small_object() -> Dataset:
    """The least that a Secondary Capture may be (PS3.3 A.8.1)."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = SECONDARY_CAPTURE, "1.2.3.4"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.5"
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "ReferringPhysicianName", "StudyID"):
        setattr(dataset, keyword, "")
    for keyword in ("StudyDate", "StudyTime", "AccessionNumber", "Manufacturer", "SeriesNumber", "InstanceNumber"):
        setattr(dataset, keyword, "")
    dataset.Modality, dataset.ConversionType = "OT", "WSD"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.Rows, dataset.Columns = 3, 5
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.add_new("PixelData", "OB", bytes(16))
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def source_image(**attributes: object) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = SECONDARY_CAPTURE, "1.2.3.9"
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    return item


def test_a_valid_object_passes() -> None:
    check(small_object())


def _delete(keyword: str) -> Callable[[Dataset], None]:
    return lambda dataset: dataset.__delattr__(keyword)


def _set(keyword: str, value: object) -> Callable[[Dataset], None]:
    return lambda dataset: dataset.__setattr__(keyword, value)


def _other_instance(dataset: Dataset) -> None:
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.6"


def _half_reference(dataset: Dataset) -> None:
    item = source_image()
    del item.ReferencedSOPClassUID
    dataset.SourceImageSequence = [item]


WRONG: dict[str, tuple[Callable[[Dataset], None], str]] = {
    "no Type 1": (_delete("Modality"), r"Modality is missing \(Type 1\)"),
    "empty Type 1": (_set("ConversionType", ""), r"ConversionType is empty \(Type 1\)"),
    "no Type 2": (_delete("PatientID"), r"PatientID is missing \(Type 2\)"),
    "unknown class": (_set("SOPClassUID", "1.2.3"), "SOPClassUID is none"),
    "hostile uid": (_set("StudyInstanceUID", "../.."), "StudyInstanceUID holds a value that UI"),
    "zero in uid": (_set("StudyInstanceUID", "1.02.3"), "StudyInstanceUID holds a value that UI"),
    "no such day": (_set("StudyDate", "20230230"), "StudyDate holds a value that DA"),
    "old date": (_set("StudyDate", "1997.04.24"), "StudyDate holds a value that DA"),
    "long": (_set("AccessionNumber", "A" * 17), "AccessionNumber holds a value that SH"),
    "lower case": (_set("PatientSex", "m"), "PatientSex holds a value that CS"),
    "several": (_set("StudyID", ["1", "2"]), "StudyID holds 2 values, expected 1"),
    "control": (_set("StudyDescription", "a\x07b"), "StudyDescription has control characters"),
    "letters": (_set("PatientName", "Müller"), "PatientName has letters that SpecificCharacterSet"),
    "pixels short": (_set("PixelData", bytes(14)), "PixelData has 14 bytes, expected 16"),
    "pixels odd": (_set("PixelData", bytes(15)), "PixelData has 15 bytes, expected 16"),
    "half a reference": (_half_reference, "SourceImageSequence has a reference with only one"),
    "frame 0": (_set("SourceImageSequence", [source_image(ReferencedFrameNumber=0)]), "a frame below 1"),
    "itself": (_set("SourceImageSequence", [source_image(ReferencedSOPInstanceUID="1.2.3.4")]), "the object itself"),
    "nested": (
        _set("SourceImageSequence", [source_image(PurposeOfReferenceCodeSequence=[Dataset()])]),
        r"SourceImageSequence.PurposeOfReferenceCodeSequence.CodeMeaning is missing \(Type 1\)",
    ),
    "meta": (_other_instance, "MediaStorageSOPInstanceUID differs"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", WRONG)
def test_each_flaw_is_found(case: str) -> None:
    spoil, message = WRONG[case]
    dataset = small_object()
    with disable_value_validation():
        spoil(dataset)
    with pytest.raises(ObjectError, match=message):
        check(dataset)


@pytest.mark.filterwarnings("ignore")
def test_all_flaws_are_listed_and_no_value_is_told() -> None:
    dataset = small_object()
    del dataset.Modality
    dataset.AccessionNumber = "SECRET-ACCESSION-NUMBER"
    dataset.PatientBirthDate = "SECRET"
    with pytest.raises(ObjectError) as caught:
        check(dataset)
    message = str(caught.value)
    assert all(word in message for word in ("Modality", "AccessionNumber", "PatientBirthDate", "1.2.3.4"))
    assert "SECRET" not in message


def test_what_functional_groups_hold_is_conditional_but_not_what_their_macros_hold() -> None:
    def missing(group: Dataset) -> str:
        dataset = small_object()
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
        dataset.SharedFunctionalGroupsSequence = [group]
        with pytest.raises(ObjectError) as caught:
            check(dataset)
        return str(caught.value)

    assert "SharedFunctionalGroupsSequence.PixelMeasuresSequence" not in missing(Dataset())
    empty = Dataset()
    empty.PlaneOrientationSequence = [Dataset()]
    empty.FrameContentSequence = [Dataset()]
    empty.SegmentIdentificationSequence = [Dataset()]
    assert "SegmentIdentificationSequence.ReferencedSegmentNumber is missing" in missing(empty)


@given(st.integers(0, 2**128 - 1))
def test_uuid_derived_uids_are_uids(number: int) -> None:
    assert is_uid(f"2.25.{number}")


def test_generated_uids_are_uids() -> None:
    assert is_uid(generate_uid())


@pytest.mark.parametrize(
    "value",
    ["", ".", "..", "../..", "1.", ".1", "1..2", "1.2/3", "1.2\\3", "1.2 ", "01.2", "1." * 32 + "1", "1\n", "１"],
)
def test_what_is_no_uid(value: str) -> None:
    assert not is_uid(value)


@pytest.mark.parametrize(
    ("keyword", "vr", "value", "right"),
    [
        ("PixelSpacing", "DS", ["0.5", "0.5"], True),
        ("PixelSpacing", "DS", ["0.5"], False),
        ("ImageOrientationPatient", "DS", ["1", "0", "0", "0", "1", "0"], True),
        ("ImageType", "CS", ["DERIVED", "SECONDARY"], True),
        ("ImageType", "CS", ["DERIVED"], False),
        ("SoftwareVersions", "LO", ["1", "2", "3"], True),
        ("Rows", "US", 5, True),
        ("ImageComments", "LT", "two\nlines\\and a backslash", True),
        ("PatientName", "PN", "", True),
        ("PatientAge", "AS", "062Y", True),
        ("PatientAge", "AS", "62", False),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_values_and_multiplicity(keyword: str, vr: str, value: object, right: bool) -> None:
    assert (element_finding(DataElement(keyword, vr, value)) is None) is right


@pytest.mark.parametrize(
    ("text", "terms", "right"),
    [
        ("Yamada^Tarou", None, True),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", None, False),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", ["", "ISO 2022 IR 87"], True),
        ("Yamada^Tarou=山田^太郎", "ISO_IR 100", False),
        ("Buc^Jérôme", "ISO_IR 100", True),
        ("Διονυσιος", "ISO_IR 126", True),
        ("Διονυσιος", "ISO_IR 100", False),
        ("Διονυσιος", "ISO_IR 192", True),
        ("Διονυσιος", "NO SUCH SET", False),
    ],
)
def test_text_against_its_character_set(text: str, terms: str | list[str] | None, right: bool) -> None:
    assert is_encodable(DataElement("PatientName", "PN", text), terms) is right
