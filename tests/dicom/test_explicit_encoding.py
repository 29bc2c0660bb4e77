"""The encoding of objects is pydicom's, byte for byte, for whatever a dataset may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.uid import ImplicitVRLittleEndian, JPEGLSLossless

from pipeline.dicom.explicit_encoding import encoded, encoded_meta
from pipeline.dicom.phantom import ct_slice, save
from pipeline.dicom.presentation_state import presentation_state
from pipeline.dicom.secondary_capture import secondary_capture
from tests.case_results import case_result
from tests.sources import SOURCES

pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # pydicom's, about values too long for their VR, which are the point here


def by_pydicom(dataset: Dataset) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = False, True
    write_dataset(buffer, dataset)
    return buffer.getvalue()


def ours(dataset: Dataset, **options: Any) -> bytes:
    return b"".join(encoded(dataset, **options))


letters = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="\\"), max_size=12)
values = st.one_of(
    *(
        st.tuples(st.just(vr), content)
        for vr, content in (
            ("CS", st.lists(letters, max_size=3)),
            ("LO", st.one_of(st.none(), letters, st.lists(letters, max_size=3))),
            ("LT", letters),
            ("UT", letters),
            ("PN", st.one_of(letters, st.sampled_from(["Jérôme^B", "Wang=王^小东"]))),
            ("UI", st.sampled_from(["", "1.2.3", "1.2.34", ["1.2", "1.3.4"]])),
            (
                "DS",
                st.one_of(
                    st.none(), st.integers(-9999, 9999), st.lists(st.sampled_from(["1.50", "-2", "3e2"]), max_size=3)
                ),
            ),
            ("IS", st.one_of(st.none(), st.integers(-(2**31), 2**31 - 1), st.lists(st.integers(0, 99), max_size=3))),
            (
                "US",
                st.one_of(st.none(), st.integers(0, 65535), st.lists(st.integers(0, 65535), min_size=1, max_size=4)),
            ),
            ("SS", st.integers(-32768, 32767)),
            ("UL", st.integers(0, 2**32 - 1)),
            ("SL", st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=2)),
            ("FL", st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=4)),
            ("FD", st.floats(allow_nan=False)),
            ("AT", st.one_of(st.just(0x00180050), st.just([0x00180050, 0x00100010]))),
            ("OB", st.binary(max_size=7)),
            ("OW", st.binary(max_size=4).map(lambda word: word * 2)),
            ("DA", st.sampled_from(["20240102", "", None])),
            ("UN", st.binary(max_size=3).map(lambda word: word * 2)),
        )
    )
)
private = st.integers(0x1000, 0x1FFF)


@st.composite
def datasets(draw: st.DrawFn, depth: int = 1) -> Dataset:
    dataset = Dataset()
    if draw(st.booleans()):
        dataset.SpecificCharacterSet = "ISO_IR 192"
    for number, (vr, value) in draw(st.dictionaries(private, values, max_size=4)).items():
        if vr == "PN" and not str(value).isascii() and "SpecificCharacterSet" not in dataset:
            continue
        dataset.add_new((0x0011, number), vr, value)
    if depth:
        dataset.add_new((0x0013, 0x1000), "SQ", draw(st.lists(datasets(depth=depth - 1), max_size=2)))
    return dataset


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a machine that others use, too
@given(datasets())
def test_any_dataset_is_encoded_as_pydicom_does(dataset: Dataset) -> None:
    assert ours(dataset) == by_pydicom(dataset)


@pytest.mark.parametrize("kind", SOURCES)
def test_sources_and_their_objects_are_encoded_as_pydicom_does(kind: str, tmp_path: Path) -> None:
    files = SOURCES[kind](tmp_path)
    source = dcmread(files[0])
    assert ours(source) == by_pydicom(dcmread(files[0]))
    result = case_result(files)
    for dataset in (secondary_capture(result, result.images[0]), *_states(result)):
        assert ours(dataset) == by_pydicom(dataset)


def _states(result: Any) -> list[Dataset]:
    gray = result.images[0].source.SamplesPerPixel == 1
    return [presentation_state(result, result.images)] if gray else []


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, JPEGLSLossless])
def test_vrs_that_a_file_leaves_open_are_settled(syntax: str, tmp_path: Path) -> None:
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [4, 0, 16])
    table.add_new("LUTData", "OW", bytes(8))
    source = ct_slice(16, signed=True, PixelPaddingValue=-2000, SmallestImagePixelValue=-5, VOILUTSequence=[table])
    path = save(source, tmp_path / "IM0", syntax)
    read = dcmread(path)
    read.PixelPaddingValue = read.PixelPaddingValue  # parsed
    found = ours(read)
    again = dcmread(path)
    assert found == by_pydicom(again)


def test_a_value_too_long_for_its_vr_is_left_to_pydicom() -> None:
    dataset = Dataset()
    dataset.add_new("FrameLabelVector", "SH", ["label"] * 20000)
    assert ours(dataset) == by_pydicom(dataset)


def test_what_is_left_out_is_left_out_at_any_depth() -> None:
    inner, outer, bare = Dataset(), Dataset(), Dataset()
    inner.ContributionDateTime, inner.Manufacturer = "20240102", "m"
    outer.ContentDate, outer.ContributingEquipmentSequence = "20240102", [inner]
    kept = Dataset()
    kept.Manufacturer = "m"
    bare.ContributingEquipmentSequence = [kept]
    assert ours(outer, without={"ContentDate", "ContributionDateTime"}) == by_pydicom(bare)
    assert "ContentDate" in outer
    assert "ContributionDateTime" in inner


def test_file_meta_information_is_encoded_as_pydicom_does() -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    meta.TransferSyntaxUID, meta.ImplementationClassUID = JPEGLSLossless, "1.2.3.4"
    meta.ImplementationVersionName = "radloop 1"
    found, buffer = encoded_meta(meta), DicomBytesIO()
    write_file_meta_info(buffer, meta)
    assert found == buffer.getvalue()
