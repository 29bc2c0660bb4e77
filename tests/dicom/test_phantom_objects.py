"""The factories: valid objects, right values back, anything overridable."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from pipeline.dicom.phantom import ct_slice, phantom_uid, radiograph, save, simple_chest, structured_report
from pipeline.dicom.phantom_objects import STORED_PADDING

SYNTAXES = [
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    RLELossless,
    JPEGLSLossless,
    JPEG2000Lossless,
]
PADDED = np.zeros((64, 64), bool)
PADDED[:4] = True


def stored_values(path: Path) -> np.ndarray:
    dataset = dcmread(path)
    decode = {JPEGLSLossless: imagecodecs.jpegls_decode, JPEG2000Lossless: imagecodecs.jpeg2k_decode}.get(
        dataset.file_meta.TransferSyntaxUID
    )
    if decode is None:
        return dataset.pixel_array
    decoded = decode(next(generate_frames(dataset.PixelData, number_of_frames=1)))
    return decoded.view(np.int16) if dataset.PixelRepresentation else decoded


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("signed", [False, True])
def test_pixels_come_back_from_every_syntax(tmp_path: Path, syntax: str, signed: bool) -> None:
    dataset = ct_slice(signed=signed, padded=PADDED if signed else None)
    before = dataset.PixelData
    stored = stored_values(save(dataset, tmp_path / "slice", syntax))
    expected = np.rint(simple_chest(64)) + 1024
    if signed:
        expected[PADDED] = STORED_PADDING
    np.testing.assert_array_equal(stored, expected)
    assert dataset.PixelData == before, "the caller's dataset stays as it was"


def test_slope_and_intercept_are_undone() -> None:
    dataset = ct_slice(slope=0.5, intercept=-1000.0, signed=True)
    stored = np.frombuffer(dataset.PixelData, "<i2").reshape(64, 64)
    np.testing.assert_allclose(stored * 0.5 - 1000.0, simple_chest(64))


def test_monochrome1_stores_white_low() -> None:
    white = np.linspace(0, 1, 32 * 32).reshape(32, 32)
    dark, bright = (radiograph(white=white, photometric=name) for name in ("MONOCHROME1", "MONOCHROME2"))
    first = np.frombuffer(dark.PixelData, "<u2").astype(int)
    second = np.frombuffer(bright.PixelData, "<u2").astype(int)
    assert first[-1] < first[0]
    assert second[-1] > second[0]
    np.testing.assert_allclose(first + second, 4100, atol=1)


def test_any_attribute_can_be_set_or_removed() -> None:
    dataset = ct_slice(StudyDate=None, KVP=80, ImageType=["DERIVED", "SECONDARY"], WindowCenter=[40, -600])
    assert "StudyDate" not in dataset
    assert dataset.KVP == 80
    assert list(dataset.ImageType) == ["DERIVED", "SECONDARY"]


def test_uids_follow_from_what_they_identify() -> None:
    assert phantom_uid("a", 1) == phantom_uid("a", 1) != phantom_uid("a", 2)
    assert phantom_uid("a").is_valid
    first, second = ct_slice(instance_number=1), ct_slice(instance_number=2)
    assert first.SeriesInstanceUID == second.SeriesInstanceUID
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert ct_slice(patient_id="PH-0002").StudyInstanceUID != first.StudyInstanceUID
    assert ct_slice(sop_instance_uid="1.2.3").SOPInstanceUID == "1.2.3"


def test_what_cannot_be_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="signed"):
        ct_slice(padded=PADDED)
    with pytest.raises(ValueError, match="MG"):
        radiograph(modality="MG")
    with pytest.raises(ValueError, match="JPEG Baseline"):
        save(ct_slice(), tmp_path / "x", JPEGBaseline8Bit)


@pytest.mark.dciodvfy
@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
@pytest.mark.parametrize(
    "dataset",
    [
        ct_slice(),
        ct_slice(signed=True, padded=PADDED),
        radiograph(),
        radiograph(photometric="MONOCHROME2"),
        radiograph(modality="DX"),
        radiograph(modality="DX", photometric="MONOCHROME2"),
        structured_report(),
    ],
    ids=["ct", "ct padded", "cr", "cr2", "dx", "dx2", "sr"],
)
def test_objects_are_valid(tmp_path: Path, dataset: Dataset) -> None:
    path = save(dataset, tmp_path / "object")
    result = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Error" not in result.stdout + result.stderr
