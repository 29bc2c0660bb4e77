"""Compressed pixels come back to the last bit, by pydicom's decoders and by dcmtk's, whatever their depth and shape."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames, parse_basic_offsets
from pydicom.uid import ExplicitVRLittleEndian

from pipeline.dicom.codecs import FrameFormat, decode_frame
from pipeline.dicom.compression import SYNTAXES, compress, encoded
from pipeline.dicom.derived import write_object
from pipeline.dicom.multiframe_capture import multiframe_capture
from pipeline.dicom.phantom import ct_slice
from pipeline.dicom.secondary_capture import secondary_capture
from pipeline.errors import ObjectError
from pipeline.profile_settings import Profile
from tests.case_results import case_result

COMPRESSED = [how for how in SYNTAXES if how != "none"]


def image(pixels: np.ndarray, frames: int = 1) -> Dataset:
    """What `compress` looks at, of (rows, columns) or (rows, columns, 3) pixels, repeated."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.NumberOfFrames = frames
    dataset.add_new("PixelData", "OW", np.stack([pixels] * frames).tobytes())
    return dataset


shapes = st.tuples(st.integers(2, 9), st.integers(2, 9))
samples = st.one_of(
    arrays(np.uint8, shapes),
    arrays(np.uint16, shapes),
    arrays(np.uint8, st.tuples(st.integers(2, 9), st.integers(2, 9), st.just(3))),
)


@pytest.mark.parametrize("how", COMPRESSED)
@given(pixels=samples)
def test_a_frame_comes_back_to_the_last_bit(how: Any, pixels: np.ndarray) -> None:
    bits = 8 * pixels.dtype.itemsize
    expected = FrameFormat(
        rows=pixels.shape[0],
        columns=pixels.shape[1],
        samples_per_pixel=1 if pixels.ndim == 2 else 3,
        bits_allocated=bits,
    )
    frame = decode_frame(encoded(pixels, SYNTAXES[how]), SYNTAXES[how], expected)
    assert np.array_equal(frame.samples.reshape(pixels.shape), pixels)


@pytest.mark.parametrize("how", COMPRESSED)
def test_each_frame_is_a_fragment_that_the_offset_table_names(how: Any) -> None:
    dataset = compress(image(np.arange(35, dtype=np.uint16).reshape(5, 7), frames=3), how)
    assert dataset.file_meta.TransferSyntaxUID == SYNTAXES[how]
    assert len(list(generate_frames(dataset.PixelData, number_of_frames=3))) == 3
    offsets = parse_basic_offsets(dataset.PixelData)
    assert len(offsets) == 3
    assert offsets[0] == 0


@pytest.mark.parametrize("how", SYNTAXES)
def test_colour_is_named_as_the_codestream_has_it(how: Any) -> None:
    rgb = compress(image(np.zeros((4, 4, 3), np.uint8)), how)
    assert rgb.PhotometricInterpretation == ("YBR_RCT" if how == "jpeg2000" else "RGB")
    gray = compress(image(np.zeros((4, 4), np.uint8)), how)
    assert gray.PhotometricInterpretation == "MONOCHROME2"


@pytest.mark.parametrize("how", SYNTAXES)
def test_single_bits_and_floating_point_stay_native(how: Any) -> None:
    bits = image(np.zeros((4, 4), np.uint8))
    bits.BitsAllocated, bits.PixelData = 1, bytes(2)
    assert compress(bits, how).file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert bits.PixelData == bytes(2)
    floats = image(np.zeros((4, 4), np.uint8))
    del floats.PixelData
    floats.FloatPixelData = bytes(64)
    assert compress(floats, how).file_meta.TransferSyntaxUID == ExplicitVRLittleEndian


def test_pixels_of_another_kind_are_refused() -> None:
    wide = image(np.zeros((4, 4), np.uint8))
    wide.BitsAllocated = 32
    with pytest.raises(ObjectError, match="8 or 16 bits"):
        compress(wide, "rle")


@pytest.mark.parametrize("how", COMPRESSED)
def test_pydicom_decodes_what_is_written(how: Any, tmp_path: Path) -> None:
    result = case_result([ct_slice(33, instance_number=number) for number in (1, 2)], profile=Profile(compression=how))
    written = dcmread(write_object(multiframe_capture(result, result.images), tmp_path))
    # pydicom undoes RCT while it decodes, and leaves RGB
    assert np.array_equal(written.pixel_array, np.stack([image.picture_of() for image in result.images]))


@pytest.mark.parametrize(("how", "program"), [("rle", "dcmdrle"), ("jpeg-ls", "dcmdjpls")])
def test_dcmtk_decodes_what_is_written(how: Any, program: str, tmp_path: Path) -> None:
    if shutil.which(program) is None or shutil.which("dcm2pnm") is None:
        pytest.skip(f"{program} (dcmtk) is not installed")
    result = case_result([ct_slice(33)], profile=Profile(compression=how))
    path = write_object(secondary_capture(result, result.images[0]), tmp_path)
    subprocess.run([program, str(path), str(tmp_path / "plain.dcm")], check=True, capture_output=True)
    subprocess.run(
        ["dcm2pnm", "+on", str(tmp_path / "plain.dcm"), str(tmp_path / "a.png")], check=True, capture_output=True
    )
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png").convert("RGB")), result.images[0].picture_of())


def test_gdcm_decodes_what_is_written(tmp_path: Path) -> None:
    if shutil.which("gdcmconv") is None:
        pytest.skip("gdcmconv (GDCM) is not installed")
    result = case_result([ct_slice(33)], profile=Profile(compression="jpeg2000"))
    path = write_object(secondary_capture(result, result.images[0]), tmp_path)
    subprocess.run(["gdcmconv", "--raw", str(path), str(tmp_path / "plain.dcm")], check=True, capture_output=True)
    plain = dcmread(tmp_path / "plain.dcm")
    assert plain.PhotometricInterpretation == "RGB"
    assert np.array_equal(plain.pixel_array, result.images[0].picture_of())
