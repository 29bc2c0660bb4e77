"""Parametric Maps of sources of every kind: written, read again by pydicom, highdicom and dcmqi, and put before dciodvfy."""

from __future__ import annotations

import dataclasses
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from pipeline.dicom.case_result import CaseResult
from pipeline.dicom.derived import content_digest, write_object
from pipeline.dicom.geometry import frame_plane
from pipeline.dicom.parametric_map import parametric_map, why_not
from pipeline.dicom.phantom import ct_slice, phantom_uid, radiograph
from pipeline.dicom.source import as_source
from pipeline.errors import ObjectError
from tests.case_results import SCALE, case_result, result_image
from tests.dicom.voxel_cases import (
    EVERY_MM,
    SOURCES,
    assert_same_voxels,
    dciodvfy_errors,
    in_place,
    read_by_dcmqi,
    result_of,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # pydicom's, about the invalid values that are the point here


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[CaseResult, Path]]:
    """The result of a source, one image of it without evidence, and the Parametric Map of it, made once."""
    folder, known = tmp_path_factory.mktemp("maps"), {}

    def make(source: str) -> tuple[CaseResult, Path]:
        if source not in known:
            result = result_of(SOURCES[source](folder / source / "source"), [2])
            known[source] = result, write_object(parametric_map(result, result.images), folder / source)
        return known[source]

    return make


@pytest.mark.parametrize("source", SOURCES)
def test_frames_hold_the_evidence_to_the_last_bit(written, source: str) -> None:
    result, path = written(source)
    dataset = dcmread(path)
    pixels = dataset.pixel_array.reshape(dataset.NumberOfFrames, dataset.Rows, dataset.Columns)
    assert pixels.dtype == np.float32
    assert dataset.NumberOfFrames == len(result.images)
    for image, found, groups in zip(
        in_place(result.images), pixels, dataset.PerFrameFunctionalGroupsSequence, strict=True
    ):
        assert np.array_equal(found, image.evidence_of())
        (made_from,) = groups.DerivationImageSequence[0].SourceImageSequence
        assert made_from.ReferencedSOPInstanceUID == image.source.SOPInstanceUID
        assert made_from.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
        assert made_from.SpatialLocationsPreserved == "YES"
        plane = frame_plane(image.source, image.frame)
        assert np.allclose(groups.PlanePositionSequence[0].ImagePositionPatient, plane.position_mm, atol=1e-9)
    assert dataset.FrameOfReferenceUID == result.images[0].source.FrameOfReferenceUID
    assert dataset.PatientName == result.images[0].source.PatientName


@pytest.mark.dciodvfy
@pytest.mark.parametrize("source", SOURCES)
def test_dciodvfy_finds_no_error(written, source: str) -> None:
    assert dciodvfy_errors(written(source)[1]) == []


@pytest.mark.parametrize(
    "source", ["axial", "coronal", "sagittal", "oblique", "enhanced CT, oblique", "enhanced MR", "no type 2"]
)
def test_dcmqi_reads_the_same_voxels_at_the_same_places(written, tmp_path: Path, source: str) -> None:
    result, path = written(source)
    values, affine = read_by_dcmqi("paramap2itkimage", path, tmp_path / "dcmqi")
    expected = [(image, image.evidence_of()) for image in result.images]
    assert_same_voxels(expected, values.astype(np.float32), affine, may_omit_zeros=False)


@pytest.mark.parametrize("source", ["axial", "oblique", "enhanced CT, oblique", "one slice"])
def test_highdicom_reads_the_same_voxels_at_the_same_places(written, source: str) -> None:
    from highdicom import imread

    result, path = written(source)
    volume = imread(path).get_volume(dtype=np.float32)
    expected = [(image, image.evidence_of()) for image in result.images]
    assert_same_voxels(expected, np.asarray(volume.array), volume.affine[:, [2, 1, 0, 3]], may_omit_zeros=False)


def test_what_the_object_says(written) -> None:
    dataset = dcmread(written("axial")[1])
    shared = dataset.SharedFunctionalGroupsSequence[0]
    (mapping,) = shared.RealWorldValueMappingSequence
    quantity, method = mapping.QuantityDefinitionSequence
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1, 0)
    assert mapping.DoubleFloatRealWorldValueFirstValueMapped == dataset.pixel_array.min()
    assert mapping.DoubleFloatRealWorldValueLastValueMapped == dataset.pixel_array.max()
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "1"
    assert quantity.ConceptCodeSequence[0].CodeMeaning == "Saliency"
    assert "Grad-CAM" in method.TextValue
    assert "logit margin" in method.TextValue
    assert (shared.FrameVOILUTSequence[0].WindowCenter, shared.FrameVOILUTSequence[0].WindowWidth) == (SCALE / 2, SCALE)
    assert (shared.FrameAnatomySequence[0].FrameLaterality, dataset.ContentQualification) == ("U", "RESEARCH")
    assert (dataset.BurnedInAnnotation, dataset.LossyImageCompression) == ("NO", "00")
    assert dataset.DimensionOrganizationType == "3D"
    assert dataset.ContentDescription.startswith("Research use only")
    assert "highdicom" not in str(dataset)


def test_slices_of_a_tilted_gantry_are_no_block(written) -> None:
    dataset = dcmread(written("tilted gantry")[1])
    assert "DimensionOrganizationType" not in dataset
    (measures,) = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    assert float(measures.SpacingBetweenSlices) == pytest.approx(
        2.5 * 0.939693, abs=1e-4
    )  # perpendicular to the slices


def test_one_without_any_evidence_is_made_too(tmp_path: Path) -> None:
    result = result_of(SOURCES["axial"](tmp_path), range(len(EVERY_MM)))
    dataset = dcmread(write_object(parametric_map(result, result.images), tmp_path / "out"))
    assert dataset.NumberOfFrames == len(EVERY_MM)
    assert not dataset.pixel_array.any()


def test_made_twice_it_is_the_same_whatever_the_order(written) -> None:
    result, path = written("oblique")
    later = dataclasses.replace(result, created=result.created.replace(hour=20))
    again = parametric_map(later, tuple(reversed(result.images)))
    assert content_digest(again) == content_digest(dcmread(path))
    assert again.SeriesInstanceUID == dcmread(path).SeriesInstanceUID


def test_an_image_that_comes_twice_has_one_frame(written) -> None:
    result, path = written("axial")
    again = parametric_map(result, (*result.images, result.images[0]))
    assert content_digest(again) == content_digest(dcmread(path))


def test_frames_of_different_parts_each_name_theirs() -> None:
    regions = (("774007", "Head and Neck"), ("816094009", "Chest"))
    slices = []
    for number, (value, meaning) in enumerate(regions, start=1):
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "SCT", meaning
        slices.append(ct_slice(16, instance_number=number, AnatomicRegionSequence=[code]))
    dataset = parametric_map(result := case_result(slices), result.images)
    named = [
        groups.FrameAnatomySequence[0].AnatomicRegionSequence[0].CodeMeaning
        for groups in dataset.PerFrameFunctionalGroupsSequence
    ]
    assert named == ["Chest", "Head and Neck"]  # the second slice lies below the first
    assert "FrameAnatomySequence" not in dataset.SharedFunctionalGroupsSequence[0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_evidence_that_is_no_number_is_refused(value: float) -> None:
    result = case_result([ct_slice(16)])
    broken = dataclasses.replace(result.images[0], evidence_of=lambda: np.full((16, 16), value, np.float32))
    with pytest.raises(ObjectError, match="finite"):
        parametric_map(result, [broken])


def test_evidence_of_another_size_is_refused() -> None:
    result = case_result([ct_slice(16)])
    broken = dataclasses.replace(result.images[0], evidence_of=lambda: np.zeros((16, 17), np.float32))
    with pytest.raises(ObjectError, match="16, 17"):
        parametric_map(result, [broken])


def test_a_radiograph_has_none() -> None:
    assert "frame of reference" in why_not(as_source(radiograph(16)))
    assert why_not(as_source(ct_slice(16))) == ""


def test_memory_holds_one_map_beside_the_object() -> None:
    header, frames, size = ct_slice(16), 40, 256
    header.Rows = header.Columns = size
    del header.PixelData
    images = []
    for number in range(frames):
        source = as_source(header)
        source.SOPInstanceUID = phantom_uid("memory", number)
        source.ImagePositionPatient = ["0", "0", f"{number}"]
        images.append(result_image(source, 0))
    result = dataclasses.replace(case_result([header]), images=tuple(images))
    parametric_map(result, images[:1])  # imports
    tracemalloc.start()
    dataset = parametric_map(result, images)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(dataset.FloatPixelData) == frames * size * size * 4
    assert peak < 1.5 * len(dataset.FloatPixelData)
