"""Which images can stand in one object: by what they share, one at each place, whatever the order in which they come."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset

from pipeline.dicom.body_region import PAIRED, UNPAIRED, body_region
from pipeline.dicom.derived import write_object
from pipeline.dicom.parametric_map import parametric_map
from pipeline.dicom.phantom import ct_slice
from pipeline.dicom.segmentation import segmentation
from pipeline.dicom.source import as_source
from pipeline.dicom.voxel_objects import group_key, groups, stack, why_not
from pipeline.errors import ObjectError
from pipeline.profile_settings import Profile
from tests.case_results import case_result
from tests.dicom.voxel_cases import SHAPE, SOURCES, dciodvfy_errors, result_of
from tests.series_files import AXIAL, CORONAL, positions, write_enhanced, write_series

EVERY_MM = (0.0, 2.5, 5.0)


def uids(images) -> list[str]:
    return [str(image.source.SOPInstanceUID) for image in images]


@given(st.permutations(range(5)))
@settings(max_examples=20, deadline=None)
def test_a_stack_does_not_depend_on_the_order(order: list[int]) -> None:
    images = case_result([ct_slice(8, instance_number=number) for number in range(1, 6)]).images
    assert uids(stack([images[n] for n in order]).images) == uids(reversed(images))


@pytest.mark.parametrize(
    "change",
    [
        {"FrameOfReferenceUID": "1.2.3"},
        {"SeriesInstanceUID": "1.2.3"},
        {"ImageOrientationPatient": list(CORONAL)},
        {"PixelSpacing": ["1", "2"]},
        {"SliceThickness": 7},
        {"Rows": 4},
    ],
)
def test_what_an_object_has_once_divides_images(change: dict) -> None:
    one, other = case_result([ct_slice(8), ct_slice(8, instance_number=2, **change)]).images
    assert group_key(one) != group_key(other)
    assert [len(group) for group in groups([one, other])] == [1, 1]


def test_rounding_does_not_divide_a_series() -> None:
    jittered = [
        ct_slice(8, instance_number=number, ImageOrientationPatient=[1, number * 1e-5, 0, 0, 1, 0])
        for number in (1, 2, 3)
    ]
    assert [len(group) for group in groups(case_result(jittered).images)] == [3]


def phases(folder: Path) -> list[Path]:
    """Three places, twice: the second time with higher instance numbers."""
    first = write_series(folder / "first", positions(AXIAL, EVERY_MM), AXIAL, shape=SHAPE)
    second = [
        {"SOPInstanceUID": f"1.2.3.{number}", "InstanceNumber": 100 + number, "AcquisitionNumber": 2}
        for number in range(3)
    ]
    return first + write_series(folder / "second", positions(AXIAL, EVERY_MM), AXIAL, shape=SHAPE, each=second)


def test_phases_stand_in_objects_of_their_own(tmp_path: Path) -> None:
    result = result_of(phases(tmp_path))
    early, late = groups(tuple(reversed(result.images)))
    assert {image.source.AcquisitionNumber for image in early} == {1}
    assert {image.source.AcquisitionNumber for image in late} == {2}
    made = [parametric_map(result, images) for images in (early, late)]
    assert made[0].SOPInstanceUID != made[1].SOPInstanceUID
    assert made[0].SeriesInstanceUID == made[1].SeriesInstanceUID


def test_images_at_one_place_are_refused_where_nobody_divided_them(tmp_path: Path) -> None:
    result = result_of(phases(tmp_path))
    with pytest.raises(ObjectError, match="one at each place"):
        parametric_map(result, result.images)


def test_a_file_that_was_exported_twice_counts_once() -> None:
    images = case_result([ct_slice(8), ct_slice(8)]).images
    assert [len(group) for group in groups(images)] == [1]


def test_a_frame_without_a_position_makes_its_file_none(tmp_path: Path) -> None:
    path = write_enhanced(tmp_path / "enhanced", positions(AXIAL, EVERY_MM), shape=SHAPE)
    dataset = dcmread(path)
    assert why_not(as_source(dataset)) == ""
    del dataset.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence
    assert "ImagePositionPatient" in why_not(as_source(dataset))
    with pytest.raises(ObjectError, match="ImagePositionPatient"):
        group_key(case_result([dataset]).images[2])


@pytest.mark.dciodvfy
@pytest.mark.parametrize("compression", ["rle", "jpeg-ls", "jpeg2000"])
def test_pixels_are_compressed_where_a_syntax_holds_them(tmp_path: Path, compression: str) -> None:
    sources = SOURCES["axial"](tmp_path / "source")
    for kind, holds in (("fractional", True), ("binary", False)):
        plain, packed = (
            result_of(sources, profile=Profile(segmentation=kind, compression=how)) for how in ("none", compression)
        )
        path = write_object(segmentation(packed, packed.images), tmp_path / kind)
        assert dciodvfy_errors(path) == []
        written = dcmread(path)
        assert written.file_meta.TransferSyntaxUID.is_encapsulated == holds
        native = write_object(segmentation(plain, plain.images), tmp_path / f"{kind} native")
        assert np.array_equal(written.pixel_array, dcmread(native).pixel_array)
    path = write_object(parametric_map(packed, packed.images), tmp_path / "map")
    assert not dcmread(path).file_meta.TransferSyntaxUID.is_encapsulated


@pytest.mark.parametrize(
    ("attributes", "meaning", "laterality"),
    [
        ({"BodyPartExamined": "CHEST"}, "Chest", "U"),
        ({"BodyPartExamined": "KNEE", "Laterality": "L"}, "Knee", "L"),
        ({"BodyPartExamined": "KNEE", "ImageLaterality": "R"}, "Knee", "R"),
        ({"BodyPartExamined": "KNEE"}, "Entire body", "U"),
        ({"BodyPartExamined": "SOMETHING"}, "Entire body", "U"),
        ({"BodyPartExamined": None}, "Entire body", "U"),
    ],
)
def test_a_body_region_is_never_guessed(attributes: dict, meaning: str, laterality: str) -> None:
    region = body_region(as_source(ct_slice(8, **attributes)), 0)
    assert (region.code.meaning, region.laterality) == (meaning, laterality)


def test_a_frame_says_its_own_region() -> None:
    code, anatomy, frame = Dataset(), Dataset(), Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "72696002", "SCT", "Knee"
    anatomy.AnatomicRegionSequence, anatomy.FrameLaterality = [code], "R"
    frame.FrameAnatomySequence = [anatomy]
    region = body_region(as_source(ct_slice(8, PerFrameFunctionalGroupsSequence=[frame])), 0)
    assert (region.code.meaning, region.laterality) == ("Knee", "R")


def test_codes_are_those_of_the_standard() -> None:
    from pydicom.sr._concepts_dict import concepts

    known = {code: set() for table in concepts["SCT"].values() for code in table}
    for table in concepts["SCT"].values():
        for code, (meaning, _) in table.items():
            known[code].add(meaning.lower())
    for name, code in {**PAIRED, **UNPAIRED}.items():
        assert code.meaning.lower() in known[code.value], name


def test_nothing_is_changed_in_a_source() -> None:
    result = case_result([ct_slice(16)])
    before = dataclasses.replace(result.images[0]).source.to_json()
    parametric_map(result, result.images)
    segmentation(result, result.images)
    assert result.images[0].source.to_json() == before
