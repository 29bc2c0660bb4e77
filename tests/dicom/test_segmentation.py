"""Segmentations of sources of every kind: written, read again by pydicom, highdicom and dcmqi, and put before dciodvfy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom import dcmread
from pydicom.dataset import Dataset

from pipeline.dicom.case_result import CaseResult
from pipeline.dicom.derived import content_digest, write_object
from pipeline.dicom.geometry import frame_plane
from pipeline.dicom.phantom import ct_slice, radiograph
from pipeline.dicom.segmentation import FULL, has_region, packed_bits, segmentation, why_not
from pipeline.dicom.source import as_source
from pipeline.errors import ObjectError
from pipeline.profile_settings import Profile
from tests.case_results import SCALE, case_result
from tests.dicom.voxel_cases import (
    EVERY_MM,
    SHAPE,
    SOURCES,
    assert_same_voxels,
    dciodvfy_errors,
    in_place,
    read_by_dcmqi,
    result_of,
)
from tests.series_files import AXIAL, positions, write_series

PROFILES = {"binary": Profile(), "fractional": Profile(segmentation="fractional")}
SILENT = (1, 4)  # a gap within the series, and one at its end

pytestmark = pytest.mark.filterwarnings("ignore")  # pydicom's, about the invalid values that are the point here


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[CaseResult, Path]]:
    """The result of a source and the Segmentation of it, made once."""
    folder, known = tmp_path_factory.mktemp("segmentations"), {}

    def make(source: str, kind: str) -> tuple[CaseResult, Path]:
        if (source, kind) not in known:
            place = folder / f"{source} {kind}"
            result = result_of(SOURCES[source](place / "source"), SILENT, profile=PROFILES[kind])
            known[source, kind] = result, write_object(segmentation(result, result.images), place)
        return known[source, kind]

    return make


def expected_pixels(result: CaseResult, image) -> np.ndarray:
    if result.profile.segmentation == "binary":
        return result.region(image).astype(np.uint8)
    return np.rint(np.clip(image.evidence_of() / np.float32(SCALE), 0, 1) * FULL).astype(np.uint8)


@pytest.mark.parametrize("kind", PROFILES)
@pytest.mark.parametrize("source", SOURCES)
def test_frames_hold_the_regions_of_their_sources(written, source: str, kind: str) -> None:
    result, path = written(source, kind)
    dataset = dcmread(path)
    expected = [
        (image, pixels) for image in in_place(result.images) if (pixels := expected_pixels(result, image)).any()
    ]
    pixels = dataset.pixel_array.reshape(dataset.NumberOfFrames, dataset.Rows, dataset.Columns)
    assert 0 < len(expected) == dataset.NumberOfFrames == len(dataset.PerFrameFunctionalGroupsSequence)
    for (image, wanted), found, groups in zip(expected, pixels, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        assert np.array_equal(found, wanted)
        (made_from,) = groups.DerivationImageSequence[0].SourceImageSequence
        assert made_from.ReferencedSOPInstanceUID == image.source.SOPInstanceUID
        assert made_from.get("ReferencedFrameNumber") == (image.frame + 1 if "NumberOfFrames" in image.source else None)
        plane = frame_plane(image.source, image.frame)
        assert np.allclose(groups.PlanePositionSequence[0].ImagePositionPatient, plane.position_mm, atol=1e-9)
    (series,) = dataset.ReferencedSeriesSequence
    referred = {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence}
    assert referred == {str(image.source.SOPInstanceUID) for image, _ in expected}


@pytest.mark.dciodvfy
@pytest.mark.parametrize("kind", PROFILES)
@pytest.mark.parametrize("source", SOURCES)
def test_dciodvfy_finds_no_error(written, source: str, kind: str) -> None:
    assert dciodvfy_errors(written(source, kind)[1]) == []


@pytest.mark.parametrize(
    "source", ["axial", "coronal", "sagittal", "oblique", "enhanced CT, oblique", "enhanced MR", "no type 2"]
)
def test_dcmqi_reads_the_same_voxels_at_the_same_places(written, tmp_path: Path, source: str) -> None:
    result, path = written(source, "binary")
    values, affine = read_by_dcmqi("segimage2itkimage", path, tmp_path / "dcmqi")
    expected = [(image, expected_pixels(result, image)) for image in result.images]
    assert_same_voxels(expected, values, affine, may_omit_zeros=True)


@pytest.mark.parametrize("kind", PROFILES)
@pytest.mark.parametrize("source", ["axial", "oblique", "enhanced CT, oblique", "one slice"])
def test_highdicom_reads_the_same_voxels_at_the_same_places(written, source: str, kind: str) -> None:
    from highdicom.seg import segread

    result, path = written(source, kind)
    read = segread(path)
    volume = read.get_volume(allow_missing_positions=True, rescale_fractional=False)
    values = np.asarray(volume.array)[..., 0].astype(float)
    expected = [(image, expected_pixels(result, image)) for image in result.images]
    assert_same_voxels(expected, values, volume.affine[:, [2, 1, 0, 3]], may_omit_zeros=True)
    assert read.get_segment_description(1).segment_label == "COVID"
    assert read.get_segment_description(1).tracking_uid is not None


def test_made_twice_it_is_the_same_whatever_the_order(written) -> None:
    result, path = written("axial", "binary")
    later = dataclasses.replace(result, created=result.created.replace(hour=20))
    again = segmentation(later, tuple(reversed(result.images)))
    assert content_digest(again) == content_digest(dcmread(path))
    other = dataclasses.replace(result, configuration_digest="ef" * 32)
    assert segmentation(other, result.images).SOPInstanceUID != again.SOPInstanceUID


def test_every_uid_of_its_own_follows_from_the_object(written) -> None:
    result, path = written("axial", "binary")
    first, second = dcmread(path), segmentation(result, result.images)
    assert first.DimensionOrganizationSequence[0].DimensionOrganizationUID == (
        second.DimensionOrganizationSequence[0].DimensionOrganizationUID
    )
    assert first.SegmentSequence[0].TrackingUID == second.SegmentSequence[0].TrackingUID


def test_what_the_object_says(written) -> None:
    dataset = dcmread(written("axial", "binary")[1])
    (segment,) = dataset.SegmentSequence
    (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
    assert (dataset.Modality, dataset.SegmentationType, dataset.BitsAllocated) == ("SEG", "BINARY", 1)
    assert (segment.SegmentLabel, segment.SegmentAlgorithmType) == ("COVID", "AUTOMATIC")
    assert algorithm.AlgorithmFamilyCodeSequence[0].CodeValue == "123110"
    assert "ab" * 32 in algorithm.AlgorithmParameters
    assert segment.AnatomicRegionSequence[0].CodeMeaning == "Chest"
    assert dataset.ContentDescription.startswith("Research use only")
    assert dataset.ImageComments.startswith("Research use only")
    assert "ContentCreatorName" in dataset
    assert dataset.LossyImageCompression == "00"
    measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert (float(measures.SpacingBetweenSlices), float(measures.SliceThickness)) == (2.5, 2.0)
    assert "highdicom" not in str(dataset)


def test_a_fractional_one_says_that_it_is_no_probability(written) -> None:
    dataset = dcmread(written("axial", "fractional")[1])
    assert (dataset.SegmentationType, dataset.MaximumFractionalValue, dataset.BitsAllocated) == ("FRACTIONAL", 255, 8)
    assert "not a probability" in dataset.SegmentSequence[0].SegmentDescription


def test_a_thickness_that_nobody_knows_is_said_to_be_none(written) -> None:
    dataset = dcmread(written("no type 2", "binary")[1])
    measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SliceThickness == measures.PixelSpacing[0]
    assert "thickness unknown" in dataset.SegmentSequence[0].SegmentDescription
    assert "thickness unknown" in dataset.DerivationDescription
    assert "thickness" not in dcmread(written("axial", "binary")[1]).DerivationDescription


def test_marks_of_the_source_stay(written) -> None:
    lossy = dcmread(written("lossy", "binary")[1])
    assert (lossy.LossyImageCompression, lossy.LossyImageCompressionRatio) == ("01", 12)
    assert dcmread(written("time zone", "binary")[1]).TimezoneOffsetFromUTC == "+0100"


@pytest.mark.parametrize(("source", "region"), [("a knee", "Knee"), ("a knee of a side unknown", "Entire body")])
def test_a_part_of_a_pair_is_named_only_with_its_side(written, source: str, region: str) -> None:
    (segment,) = dcmread(written(source, "binary")[1]).SegmentSequence
    assert segment.AnatomicRegionSequence[0].CodeMeaning == region


@pytest.mark.parametrize("kind", PROFILES)
def test_without_any_region_there_is_none(tmp_path: Path, kind: str) -> None:
    result = result_of(SOURCES["axial"](tmp_path), range(len(EVERY_MM)), profile=PROFILES[kind])
    assert not has_region(result, result.images)
    with pytest.raises(ObjectError, match="found none"):
        segmentation(result, result.images)


def test_a_region_on_one_image_is_enough(tmp_path: Path) -> None:
    result = result_of(SOURCES["axial"](tmp_path), [0, 1, 2, 3])
    assert has_region(result, result.images)
    assert segmentation(result, result.images).NumberOfFrames == 1


def test_notes_are_said(tmp_path: Path) -> None:
    notes = ("Out of the model's scope: modality MR.",)
    dataset = segmentation(result := result_of(SOURCES["axial"](tmp_path), notes=notes), result.images)
    assert "Out of the model's scope" in dataset.ImageComments
    assert "Out of the model's scope" in dataset.SegmentSequence[0].SegmentDescription


def unplaced() -> dict[str, Dataset]:
    frames = ct_slice(16, NumberOfFrames=2)
    without = {
        keyword: ct_slice(16) for keyword in ("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient")
    }
    for keyword, dataset in without.items():
        delattr(dataset, keyword)
    return {**without, "radiograph": radiograph(16), "frames without groups": frames}


@pytest.mark.parametrize("what", unplaced())
def test_a_source_without_a_place_has_none(what: str) -> None:
    source = as_source(unplaced()[what])
    reason = why_not(source)
    assert reason
    assert "\n" not in reason
    assert str(source.PatientID) not in reason
    with pytest.raises(ObjectError):
        segmentation(result := case_result([source]), result.images)


def test_a_placed_source_has_one() -> None:
    assert why_not(as_source(ct_slice(16))) == ""


def test_images_of_two_groups_are_refused(tmp_path: Path) -> None:
    paths = [*SOURCES["axial"](tmp_path / "a"), *SOURCES["coronal"](tmp_path / "b")]
    result = result_of(paths[:1] + paths[-1:])
    with pytest.raises(ObjectError, match="one group"):
        segmentation(result, result.images)


@given(arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 7)), elements=st.integers(0, 1)))
def test_packed_bits_are_one_run_over_all_frames(frames: np.ndarray) -> None:
    expected = np.packbits(frames.ravel(), bitorder="little").tobytes()
    assert packed_bits(iter(frames)) == expected


def test_frames_share_bytes_here() -> None:
    assert np.prod(SHAPE) % 8, "a shape of whole bytes would not test how frames are packed"


def test_an_uneven_series_keeps_its_places(tmp_path: Path) -> None:
    paths = write_series(tmp_path, positions(AXIAL, (0, 2.5, 9)), AXIAL, shape=SHAPE)
    dataset = segmentation(result := result_of(paths), result.images)
    places = [
        float(groups.PlanePositionSequence[0].ImagePositionPatient[2])
        for groups in dataset.PerFrameFunctionalGroupsSequence
    ]
    assert places == [17.0, 19.5, 26.0]
    assert "SpacingBetweenSlices" not in dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
