"""Copies with an overlay plane: pixels byte for byte, the outline where the region is, by pydicom and by dcmtk."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.config import disable_value_validation
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.tag import Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from pipeline.dicom.case_result import CaseResult
from pipeline.dicom.derived import content_digest, write_object
from pipeline.dicom.outline import rim
from pipeline.dicom.overlay_plane import overlay_plane, why_not
from pipeline.dicom.phantom import ct_slice, radiograph, save
from pipeline.dicom.phantom_objects import coded
from pipeline.dicom.source import as_source, read_source
from pipeline.errors import ObjectError, Rejected
from tests.case_results import case_result
from tests.sources import SOURCES
from tests.validators import dciodvfy_errors

WITHOUT = {"enhanced_ct", "enhanced_mr"}
SYNTAXES = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    JPEGLSLossless,
    JPEG2000Lossless,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # pydicom's, about the invalid values that are the point here


def result_of(dataset: Dataset, folder: Path, syntax: str = ExplicitVRLittleEndian, **changes: Any) -> CaseResult:
    return case_result([save(dataset, folder / "IM0", syntax)], **changes)


def made(dataset: Dataset, folder: Path, syntax: str = ExplicitVRLittleEndian, **changes: Any) -> Dataset:
    result = result_of(dataset, folder, syntax, **changes)
    return overlay_plane(result, result.images[0])


@pytest.mark.dciodvfy
@pytest.mark.parametrize("kind", [kind for kind in SOURCES if kind not in WITHOUT])
def test_sources_of_every_kind(kind: str, tmp_path: Path) -> None:
    (first, *_) = SOURCES[kind](tmp_path / "source")
    result = case_result([first])
    image = result.images[0]
    assert why_not(image.source) == ""
    dataset = overlay_plane(result, image)
    path = write_object(dataset, tmp_path)
    source, written = dcmread(first), dcmread(path)
    assert content_digest(written) == content_digest(dataset)
    assert written.file_meta.TransferSyntaxUID == source.file_meta.TransferSyntaxUID
    assert written.PixelData == source.PixelData
    assert np.array_equal(written.overlay_array(0x6000), rim(result.region(image)))
    assert written.overlay_array(0x6000).any()
    assert dciodvfy_errors(path) == []


@pytest.mark.parametrize("kind", sorted(WITHOUT))
def test_multi_frame_sources_have_none_and_say_why(kind: str, tmp_path: Path) -> None:
    result = case_result(SOURCES[kind](tmp_path))
    assert "no overlay planes" in why_not(result.images[0].source)
    with pytest.raises(ObjectError, match="no overlay planes"):
        overlay_plane(result, result.images[0])


def test_a_source_that_was_not_read_from_a_file_says_so() -> None:
    assert "file" in why_not(as_source(ct_slice(16)))


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_transfer_syntax_and_pixels_are_the_files(syntax: str, tmp_path: Path) -> None:
    dataset = made(ct_slice(33), tmp_path / "source", syntax)
    path = write_object(dataset, tmp_path)
    source, written = dcmread(tmp_path / "source" / "IM0"), dcmread(path)
    assert written.file_meta.TransferSyntaxUID == syntax
    assert written.PixelData == source.PixelData
    assert content_digest(written) == content_digest(dataset)
    if source.file_meta.TransferSyntaxUID.is_encapsulated:
        assert next(generate_frames(written.PixelData)) == next(generate_frames(source.PixelData))
    else:
        assert np.array_equal(written.pixel_array, source.pixel_array)
    assert dciodvfy_errors(_inflated(path) if syntax == DeflatedExplicitVRLittleEndian else path) == []


def _inflated(path: Path) -> Path:
    """By dcmtk: Debian's dciodvfy does not read the deflated syntax."""
    if shutil.which("dcmconv") is None:
        pytest.skip("dcmconv (dcmtk) is not installed")
    subprocess.run(["dcmconv", "+te", str(path), str(path.with_suffix(".plain"))], check=True, capture_output=True)
    return path.with_suffix(".plain")


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_dcmtk_draws_the_outline_at_the_regions_rim(photometric: str, syntax: str, tmp_path: Path) -> None:
    if shutil.which("dcm2pnm") is None:
        pytest.skip("dcm2pnm (dcmtk) is not installed")
    result = result_of(radiograph(45, photometric=photometric), tmp_path / "source", syntax)
    path = write_object(overlay_plane(result, result.images[0]), tmp_path)
    for name, overlays in (("plain", ["-O"]), ("drawn", ["+O", "1"])):
        command = ["dcm2pnm", *overlays, "+Wm", "+on", str(path), str(tmp_path / f"{name}.png")]
        subprocess.run(command, check=True, capture_output=True)
    before, after = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("L")) for name in ("plain", "drawn"))
    expected = rim(result.region(result.images[0]))
    assert np.array_equal(after[~expected], before[~expected])
    assert (after[expected] == 255).all()


def test_everything_else_of_the_image_is_the_sources(tmp_path: Path) -> None:
    extra: dict[str, Any] = {
        "DerivationCodeSequence": [coded("113040", "DCM", "Lossy Compression")],
        "DerivationDescription": "cropped",
        "ProtocolName": "thorax",
        "PixelPaddingValue": 63536,
    }
    dataset = made(ct_slice(33, **extra), tmp_path)
    source = dcmread(tmp_path / "IM0")
    changed = {element.keyword for element in source if dataset.get(element.keyword) != element.value}
    assert changed == {
        "InstanceCreationDate",
        "InstanceCreationTime",
        "SOPInstanceUID",
        "SeriesInstanceUID",
        "SeriesNumber",
        "SeriesDescription",
        "SeriesDate",
        "SeriesTime",
        "ImageType",
        "ImageComments",
        "DerivationDescription",
        "Manufacturer",
        "ManufacturerModelName",
        "SoftwareVersions",
        "StationName",
        "DeviceSerialNumber",
    } & {element.keyword for element in source}
    assert dataset.DerivationDescription.endswith("Of the source: cropped")
    assert list(dataset.ImageType) == ["DERIVED", "SECONDARY", "AXIAL"]
    assert dataset.InstanceNumber == source.InstanceNumber
    assert dataset.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert dataset.ContributingEquipmentSequence[0].StationName == source.StationName


def test_what_the_object_says(tmp_path: Path) -> None:
    dataset = made(ct_slice(33), tmp_path)
    assert (dataset.Modality, dataset.SeriesNumber) == ("CT", 9002)
    assert dataset.SeriesDescription == "radloop ct_slices outline (research use only)"
    assert dataset.ImageComments.startswith("Research use only - not for diagnosis. COVID, probability 0.932.")
    assert dataset[0x60000022].value == "COVID, probability 0.932"
    assert dataset[0x60000040].value == "G"
    assert dataset[0x60000045].value == "AUTOMATED"
    assert list(dataset[0x60000050].value) == [1, 1]
    assert dataset[0x60001500].value == "radloop, research use only"
    (reference,) = dataset.SourceImageSequence
    assert reference.ReferencedSOPInstanceUID == dcmread(tmp_path / "IM0").SOPInstanceUID


def test_the_copies_of_a_series_are_a_series(tmp_path: Path) -> None:
    one, two, other = (
        made(ct_slice(16, instance_number=number, series_number=series), tmp_path / f"{series}.{number}")
        for number, series in ((1, 1), (2, 1), (1, 2))
    )
    assert one.SeriesInstanceUID == two.SeriesInstanceUID != other.SeriesInstanceUID
    assert len({one.SOPInstanceUID, two.SOPInstanceUID, other.SOPInstanceUID}) == 3


def test_the_first_free_plane_is_taken(tmp_path: Path) -> None:
    dataset = ct_slice(33)
    _plane(dataset, 0x6000)
    taken = made(dataset, tmp_path)
    assert taken[0x60003000].value == bytes(138)
    assert taken[0x60023000].value != bytes(138)
    for group in range(0x6002, 0x6020, 2):
        _plane(dataset, group)
    full = result_of(dataset, tmp_path)
    assert "all 16 overlay planes" in why_not(full.images[0].source)


def _plane(dataset: Dataset, group: int) -> None:
    for element, vr, value in (
        (0x0010, "US", 33),
        (0x0011, "US", 33),
        (0x0040, "CS", "G"),
        (0x0050, "SS", [1, 1]),
        (0x0100, "US", 1),
        (0x0102, "US", 0),
        (0x3000, "OW", bytes(138)),
    ):
        dataset.add_new((group << 16) | element, vr, value)


def test_no_region_is_an_empty_plane(tmp_path: Path) -> None:
    dataset = made(ct_slice(33), tmp_path, peak=0.0)
    assert not any(dataset[0x60003000].value)


def test_the_outline_of_a_large_image_is_thicker(tmp_path: Path) -> None:
    result = result_of(radiograph(1500), tmp_path)
    dataset = overlay_plane(result, result.images[0])
    path = write_object(dataset, tmp_path)
    assert np.array_equal(dcmread(path).overlay_array(0x6000), rim(result.region(result.images[0]), 3))


def test_private_attributes_signatures_and_the_procedure_step_stay_with_the_source(tmp_path: Path) -> None:
    dataset = ct_slice(33, PerformedProcedureStepID="1", InstanceCreatorUID="1.2.3")
    dataset.private_block(0x0009, "SOMEBODY", create=True).add_new(1, "LO", "a secret")
    copied = made(dataset, tmp_path)
    assert not any(element.tag.is_private for element in copied)
    assert "PerformedProcedureStepID" not in copied
    assert "InstanceCreatorUID" not in copied


def test_values_that_are_not_valid_are_left_out_unless_pixels_need_them(tmp_path: Path) -> None:
    with disable_value_validation():
        copied = made(
            ct_slice(33, ConvolutionKernel="K" * 40, PatientAge="62", RescaleSlope="1.00000000000000000000"),
            tmp_path / "out",
        )
    assert "ConvolutionKernel" not in copied
    assert copied.RescaleSlope == 1
    assert write_object(copied, tmp_path).exists()
    steep = ct_slice(33)
    steep.add(RawDataElement(Tag("RescaleSlope"), "DS", 6, b"steep ", 0, False, True))
    with pytest.raises(ObjectError, match="would show something else"):
        made(steep, tmp_path)


def test_a_member_of_an_archive_is_read_there(tmp_path: Path) -> None:
    plain = save(ct_slice(33), tmp_path / "IM0")
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        archive.write(plain, "DICOM/IM0")
    plain.unlink()
    result = case_result([tmp_path / "export.zip" / "DICOM" / "IM0"])
    assert overlay_plane(result, result.images[0]).PixelData == ct_slice(33).PixelData


def test_a_file_that_was_exchanged_meanwhile_is_rejected(tmp_path: Path) -> None:
    result = result_of(ct_slice(33), tmp_path)
    save(ct_slice(33, instance_number=2), tmp_path / "IM0")
    with pytest.raises(Rejected, match="another image"):
        overlay_plane(result, result.images[0])
    (tmp_path / "IM0").unlink()
    with pytest.raises(Rejected):
        overlay_plane(result, result.images[0])


def test_burned_in_text_is_told_where_the_source_tells(tmp_path: Path) -> None:
    assert made(ct_slice(33, BurnedInAnnotation="YES"), tmp_path).BurnedInAnnotation == "YES"
    assert "BurnedInAnnotation" not in made(ct_slice(33, BurnedInAnnotation=None), tmp_path)


def test_the_source_is_not_changed(tmp_path: Path) -> None:
    path = save(ct_slice(33), tmp_path / "IM0")
    before = path.read_bytes()
    result = case_result([path])
    held = read_source(path).to_json()
    overlay_plane(result, result.images[0])
    assert path.read_bytes() == before
    assert result.images[0].source.to_json() == held
