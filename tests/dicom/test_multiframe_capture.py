"""A series of pictures in one object: written, read again, compared, rendered by dcmtk frame by frame."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset

from pipeline.dicom.case_result import CaseResult, ResultImage
from pipeline.dicom.compression import SYNTAXES
from pipeline.dicom.derived import content_digest, write_object
from pipeline.dicom.multiframe_capture import MAX_FRAMES, multiframe_capture, why_not
from pipeline.dicom.phantom import ct_slice
from pipeline.errors import ObjectError
from pipeline.profile_settings import Profile
from tests.case_results import case_result
from tests.sources import SOURCES
from tests.validators import dciodvfy_errors


def series(size: int = 33, count: int = 3, **changes: Any) -> CaseResult:
    """Pictures of an odd number of bytes in all."""
    return case_result([ct_slice(size, instance_number=number + 1) for number in range(count)], **changes)


def pictures(images: tuple[ResultImage, ...]) -> np.ndarray:
    return np.stack([image.picture_of() for image in images])


def of(sources: list[Dataset]) -> Dataset:
    result = case_result(sources)
    return multiframe_capture(result, result.images)


@pytest.mark.dciodvfy
@pytest.mark.parametrize("kind", SOURCES)
def test_sources_of_every_kind(kind: str, tmp_path: Path) -> None:
    result = case_result(SOURCES[kind](tmp_path / "source"))
    assert [why_not(image.source) for image in result.images] == [""] * len(result.images)
    dataset = multiframe_capture(result, result.images)
    path = write_object(dataset, tmp_path)
    written = dcmread(path)
    assert content_digest(written) == content_digest(dataset)
    assert written.NumberOfFrames == len(result.images)
    assert np.array_equal(written.pixel_array.reshape(pictures(result.images).shape), pictures(result.images))
    assert dciodvfy_errors(path) == []


@pytest.mark.parametrize("how", SYNTAXES)
def test_compressed_frames_are_the_same_frames(how: Any, tmp_path: Path) -> None:
    result = series(profile=Profile(compression=how))
    dataset = multiframe_capture(result, result.images)
    path = write_object(dataset, tmp_path)
    written = dcmread(path)
    assert written.file_meta.TransferSyntaxUID == SYNTAXES[how]
    assert np.array_equal(written.pixel_array, pictures(result.images))
    assert content_digest(written) == content_digest(dataset)
    assert dciodvfy_errors(path) == []


def test_dcmtk_renders_every_frame(tmp_path: Path) -> None:
    if shutil.which("dcm2pnm") is None:
        pytest.skip("dcm2pnm (dcmtk) is not installed")
    result = series()
    path = write_object(multiframe_capture(result, result.images), tmp_path)
    subprocess.run(["dcm2pnm", "+Fa", "+on", str(path), str(tmp_path / "frame")], check=True, capture_output=True)
    rendered = [np.asarray(Image.open(tmp_path / f"frame.{number}.png").convert("RGB")) for number in range(3)]
    assert np.array_equal(np.stack(rendered), pictures(result.images))


def test_frames_and_sources_are_in_the_order_given() -> None:
    result = series()
    order = result.images[::-1]
    dataset = multiframe_capture(result, order)
    named = [item.ReferencedSOPInstanceUID for item in dataset.SourceImageSequence]
    assert named == [image.source.SOPInstanceUID for image in order]
    assert list(dataset.FrameLabelVector) == ["3", "2 key 2", "1 key 1"]
    assert list(dataset.PageNumberVector) == [1, 2, 3]
    assert list(dataset.FrameIncrementPointer) == [0x00182001, 0x00182002]
    assert dataset.PixelData.startswith(order[0].picture_of().tobytes())
    assert dataset.SOPInstanceUID != multiframe_capture(result, result.images).SOPInstanceUID


def test_frames_of_one_file_are_named_in_one_reference(tmp_path: Path) -> None:
    result = case_result(SOURCES["enhanced_ct"](tmp_path))
    dataset = multiframe_capture(result, result.images[1:])
    (reference,) = dataset.SourceImageSequence
    assert list(reference.ReferencedFrameNumber) == [2, 3]
    assert list(dataset.FrameLabelVector) == ["1 frame 2 key 2", "1 frame 3"]


def test_what_the_object_says() -> None:
    result = series()
    dataset = multiframe_capture(result, result.images)
    assert dataset.SOPClassUID == "1.2.840.10008.5.1.4.1.1.7.4"
    assert (dataset.Modality, dataset.ConversionType, dataset.BurnedInAnnotation) == ("OT", "WSD", "NO")
    assert list(dataset.ImageType[:2]) == ["DERIVED", "SECONDARY"]
    assert (dataset.SeriesNumber, dataset.InstanceNumber) == (9001, 1)
    assert dataset.SeriesDescription == "radloop ct_slices heatmaps (research use only)"
    assert dataset.ImageComments == "Research use only - not for diagnosis. COVID, probability 0.932."
    assert dataset.PixelSpacing == result.images[0].source.PixelSpacing


def test_what_the_frames_do_not_share_is_left_out() -> None:
    here, there = ct_slice(33), ct_slice(33, instance_number=2, spacing_mm=1.5, BodyPartExamined="HEAD")
    upright = ct_slice(33, instance_number=3, orientation=(0.0, 1.0, 0.0, 0.0, 0.0, -1.0))
    assert "PixelSpacing" not in of([here, there])
    assert "BodyPartExamined" not in of([here, there])
    assert "PixelSpacing" in of([here, upright])
    assert of([here, upright]).PatientOrientation == ""
    assert list(of([here]).PatientOrientation) == ["L", "P"]


def test_one_lossy_or_burned_in_source_marks_the_whole() -> None:
    plain = ct_slice(33)
    lossy = ct_slice(33, instance_number=2, LossyImageCompression="01", LossyImageCompressionRatio=12)
    named = ct_slice(33, instance_number=3, BurnedInAnnotation="YES")
    assert "LossyImageCompression" not in of([plain])
    assert of([plain, lossy]).LossyImageCompression == "01"
    assert of([plain, lossy]).BurnedInAnnotation == "NO"
    assert of([plain, named, lossy]).BurnedInAnnotation == "YES"


def test_only_one_picture_is_held_at_a_time() -> None:
    result = series(count=5)
    asked: list[int] = []

    def counting(number: int) -> ResultImage:
        def made() -> np.ndarray:
            asked.append(number)
            return result.images[number].picture_of()

        return replace(result.images[number], picture_of=made)

    multiframe_capture(result, [counting(number) for number in range(5)])
    assert asked == [0, 1, 2, 3, 4]


def test_shorter_pictures_get_black_rows_at_their_foot() -> None:
    """Texts take more lines below one image than below another."""
    result = case_result([ct_slice(33), ct_slice(33, instance_number=2)])
    short, high = result.images[0].picture_of(), np.pad(result.images[1].picture_of(), ((0, 7), (0, 0), (0, 0)), "edge")
    images = [
        replace(image, picture_of=partial(np.copy, picture))
        for image, picture in zip(result.images, (short, high), strict=True)
    ]
    frames = multiframe_capture(result, images).pixel_array
    np.testing.assert_array_equal(frames[0][:-7], short)
    assert not frames[0][-7:].any()
    np.testing.assert_array_equal(frames[1], high)


def test_pictures_of_several_widths_are_refused() -> None:
    with pytest.raises(ObjectError, match="all of one width"):
        of([ct_slice(200), ct_slice(210, instance_number=2)])


def test_too_few_and_too_many_are_refused() -> None:
    result = series()
    with pytest.raises(ObjectError, match=f"1 to {MAX_FRAMES}"):
        multiframe_capture(result, [])
    with pytest.raises(ObjectError, match=f"1 to {MAX_FRAMES}"):
        multiframe_capture(result, [result.images[0]] * (MAX_FRAMES + 1))


def test_images_of_several_studies_are_refused() -> None:
    with pytest.raises(ObjectError, match="one study"):
        of([ct_slice(33), ct_slice(33, study_instance_uid="1.2.3", instance_number=2)])
