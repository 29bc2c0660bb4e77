"""Presentation states: written, read again, and drawn by what their attributes say, the outline is where the region is."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset

from pipeline.dicom.derived import content_digest, write_object
from pipeline.dicom.outline import closed_polylines
from pipeline.dicom.phantom import ct_slice, radiograph, save
from pipeline.dicom.presentation_state import MAX_POINTS, presentation_groups, presentation_state, why_not
from pipeline.dicom.source import as_source
from pipeline.errors import ObjectError
from pipeline.profile_settings import Colors, Profile, Texts
from tests.case_results import case_result, result_image
from tests.sources import SOURCES
from tests.validators import dciodvfy_errors

COLOUR = {"us_color"}
UNTESTED = {"cr_lossy", "no_type_2", "chinese", "korean", "japanese", "utf_8"}
"""dcmpschk reads no compressed image, wants a patient's name, and takes ideographs of a name in some character sets for no name."""


def state_of(*sources: Dataset, **changes: Any) -> Dataset:
    result = case_result(list(sources), **changes)
    return presentation_state(result, result.images)


def drawn(state: Dataset, instance: str, frame: int | None, shape: tuple[int, int]) -> np.ndarray:
    """What lies inside the outlines of an image, by PS3.3 C.10.5.1.2 alone: a pixel's centre is half a pixel from its corner."""
    crossings = np.zeros(shape, int)
    for annotation in state.GraphicAnnotationSequence:
        (image,) = annotation.ReferencedImageSequence
        if image.ReferencedSOPInstanceUID != instance or image.get("ReferencedFrameNumber") != frame:
            continue
        for graphic in annotation.get("GraphicObjectSequence") or ():
            assert (graphic.GraphicAnnotationUnits, graphic.GraphicType, graphic.GraphicDimensions) == (
                "PIXEL",
                "POLYLINE",
                2,
            )
            points = np.array(graphic.GraphicData).reshape(-1, 2)
            assert len(points) == graphic.NumberOfGraphicPoints
            for (x, above), (_, below) in pairwise(points):
                low, high = sorted((above, below))
                rows = [row for row in range(shape[0]) if low < row + 0.5 < high]
                columns = [column for column in range(shape[1]) if column + 0.5 > x]
                crossings[np.ix_(rows, columns)] += 1
    return crossings % 2 == 1


@pytest.mark.dciodvfy
@pytest.mark.parametrize("kind", [kind for kind in SOURCES if kind not in COLOUR])
def test_sources_of_every_kind(kind: str, tmp_path: Path) -> None:
    result = case_result(SOURCES[kind](tmp_path / "source"))
    state = presentation_state(result, result.key_images)
    path = write_object(state, tmp_path)
    written = dcmread(path)
    assert content_digest(written) == content_digest(state)
    for image in result.key_images:
        several = "NumberOfFrames" in image.source
        frame = image.frame + 1 if several else None
        shown = drawn(written, image.source.SOPInstanceUID, frame, (image.source.Rows, image.source.Columns))
        assert np.array_equal(shown, result.region(image))
        assert shown.any()
    assert dciodvfy_errors(path) == []


@pytest.mark.parametrize("kind", [kind for kind in SOURCES if kind not in COLOUR | UNTESTED])
def test_dcmtk_finds_no_fault(kind: str, tmp_path: Path) -> None:
    if shutil.which("dcmpschk") is None:
        pytest.skip("dcmpschk (dcmtk) is not installed")
    result = case_result(SOURCES[kind](tmp_path / "source"))
    path = write_object(presentation_state(result, result.key_images), tmp_path)
    said = subprocess.run(["dcmpschk", str(path)], capture_output=True, text=True, errors="replace", check=True)
    assert "Test passed" in said.stderr


@pytest.mark.parametrize("modality", ["CR", "DX"])
def test_both_photometric_interpretations_look_the_same(modality: str, tmp_path: Path) -> None:
    """dcmtk shows MONOCHROME1 through its state as MONOCHROME2 through its own: dense tissue is white."""
    if shutil.which("dcmp2pgm") is None:
        pytest.skip("dcmp2pgm (dcmtk) is not installed")
    shown = []
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        source = save(radiograph(64, modality=modality, photometric=photometric), tmp_path / photometric / "IM0")
        result = case_result([source])
        path = write_object(presentation_state(result, result.images), tmp_path / photometric / "out")
        target = tmp_path / f"{photometric}.pgm"
        subprocess.run(["dcmp2pgm", "-p", str(path), str(source), str(target)], check=True, capture_output=True)
        shown.append(np.asarray(Image.open(target), float))
    assert np.abs(shown[0] - shown[1]).max() <= 1  # one rounds down, the other up
    assert shown[0][32, 32] > 200  # the mediastinum
    assert shown[0][0, 0] < 20  # air


def test_dcmtk_applies_rescale_and_window(tmp_path: Path) -> None:
    if shutil.which("dcmp2pgm") is None:
        pytest.skip("dcmp2pgm (dcmtk) is not installed")
    source = save(ct_slice(64, window=(-600.0, 1500.0)), tmp_path / "IM0")
    result = case_result([source])
    path = write_object(presentation_state(result, result.images), tmp_path)
    subprocess.run(["dcmp2pgm", "-p", str(path), str(source), str(tmp_path / "a.pgm")], check=True, capture_output=True)
    shown = np.asarray(Image.open(tmp_path / "a.pgm"), float)
    image = dcmread(source)
    hu = image.pixel_array * float(image.RescaleSlope) + float(image.RescaleIntercept)
    expected = np.clip(((hu - (-600 - 0.5)) / (1500 - 1) + 0.5) * 255, 0, 255)  # PS3.3 C.11.2.1.2.1
    assert np.abs(shown - expected).max() <= 1


def test_colour_has_none_and_says_why(tmp_path: Path) -> None:
    result = case_result(SOURCES["us_color"](tmp_path))
    assert "no grayscale image" in why_not(result.images[0].source)
    with pytest.raises(ObjectError, match="no grayscale image"):
        presentation_state(result, result.images)


@pytest.mark.parametrize(("photometric", "shape"), [("MONOCHROME1", "INVERSE"), ("MONOCHROME2", "IDENTITY")])
def test_the_gray_scale_is_the_sources(photometric: str, shape: str) -> None:
    assert state_of(radiograph(32, photometric=photometric)).PresentationLUTShape == shape


def test_modality_lut_and_window_are_the_sources() -> None:
    state = state_of(ct_slice(32, RescaleType=None, window=(40.0, 400.0)))
    assert (state.RescaleSlope, state.RescaleIntercept, state.RescaleType) == (1, -1024, "HU")
    (voi,) = state.SoftcopyVOILUTSequence
    assert (voi.WindowCenter, voi.WindowWidth) == (40, 400)
    assert "VOILUTFunction" not in voi


def test_of_several_windows_the_first_usable_is_shown() -> None:
    windows = {"WindowCenter": [1, 40, -600], "WindowWidth": [0, 400, 1500]}
    state = state_of(ct_slice(32, WindowCenterWidthExplanation=["NONE", "SOFT", "LUNG"], **windows))
    (voi,) = state.SoftcopyVOILUTSequence
    assert (voi.WindowCenter, voi.WindowWidth, voi.WindowCenterWidthExplanation) == (40, 400, "SOFT")
    (sigmoid,) = state_of(ct_slice(32, VOILUTFunction="SIGMOID")).SoftcopyVOILUTSequence
    assert sigmoid.VOILUTFunction == "SIGMOID"


def test_without_a_window_none_is_invented() -> None:
    state = state_of(radiograph(32, WindowCenter=None, WindowWidth=None))
    assert "SoftcopyVOILUTSequence" not in state
    assert "RescaleSlope" not in state


def test_lookup_tables_are_the_sources(tmp_path: Path) -> None:
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [4096, 0, 12])
    table.add_new("LUTData", "OW", np.arange(4095, -1, -1).astype("<u2").tobytes())
    state = state_of(radiograph(32, VOILUTSequence=[table]))
    (voi,) = state.SoftcopyVOILUTSequence
    assert "WindowCenter" not in voi
    assert list(voi.VOILUTSequence[0].LUTDescriptor) == [4096, 0, 12]
    assert voi.VOILUTSequence[0].LUTData == table.LUTData
    written = dcmread(write_object(state, tmp_path))
    assert written.SoftcopyVOILUTSequence[0].VOILUTSequence[0].LUTData == table.LUTData
    signed = Dataset()
    signed.add_new("LUTDescriptor", "SS", [4096, -1024, 12])
    signed.add_new("LUTData", "OW", table.LUTData)
    negative = state_of(ct_slice(32, VOILUTSequence=[signed]))
    assert list(negative.SoftcopyVOILUTSequence[0].VOILUTSequence[0].LUTDescriptor) == [4096, -1024, 12]
    bytewise = Dataset()
    bytewise.add_new("LUTDescriptor", "US", [5, 0, 8])
    bytewise.add_new("LUTData", "OW", bytes([9, 8, 7, 6, 5, 0]))
    (short,) = state_of(radiograph(32, VOILUTSequence=[bytewise])).SoftcopyVOILUTSequence
    assert short.VOILUTSequence[0].LUTData == bytewise.LUTData
    of_modality = Dataset()
    of_modality.add_new("LUTDescriptor", "US", [4096, 0, 16])
    of_modality.add_new("LUTData", "OW", (16 * np.arange(4096) + 15).astype("<u2").tobytes())
    of_modality.ModalityLUTType = "OD"
    lut = state_of(radiograph(32, ModalityLUTSequence=[of_modality]))
    assert lut.ModalityLUTSequence[0].ModalityLUTType == "OD"
    assert list(lut.ModalityLUTSequence[0].LUTDescriptor) == [4096, 0, 16]
    assert dciodvfy_errors(write_object(lut, tmp_path)) == []


def test_each_window_names_its_images() -> None:
    lung, soft = ct_slice(32), ct_slice(32, instance_number=2, window=(40.0, 400.0))
    state = state_of(lung, soft, ct_slice(32, instance_number=3))
    first, second = state.SoftcopyVOILUTSequence
    assert [len(voi.ReferencedImageSequence) for voi in (first, second)] == [2, 1]
    assert second.ReferencedImageSequence[0].ReferencedSOPInstanceUID == soft.SOPInstanceUID


def test_the_whole_image_is_shown_in_its_shape() -> None:
    (square,) = state_of(ct_slice(32)).DisplayedAreaSelectionSequence
    assert list(square.DisplayedAreaTopLeftHandCorner) == [1, 1]
    assert list(square.DisplayedAreaBottomRightHandCorner) == [32, 32]
    assert list(square.PresentationPixelSpacing) == list(ct_slice(32).PixelSpacing)
    (flat,) = state_of(radiograph(32, ImagerPixelSpacing=["0.3", "0.2"])).DisplayedAreaSelectionSequence
    assert list(flat.PresentationPixelAspectRatio) == [3, 2]
    (told,) = state_of(radiograph(32, PixelAspectRatio=[2, 1])).DisplayedAreaSelectionSequence
    assert list(told.PresentationPixelAspectRatio) == [2, 1]
    (unknown,) = state_of(radiograph(32, ImagerPixelSpacing=None)).DisplayedAreaSelectionSequence
    assert list(unknown.PresentationPixelAspectRatio) == [1, 1]


def test_people_read_the_result_and_that_it_is_research() -> None:
    texts = Texts(
        research_only="Nur für die Forschung", key_image="Schlüsselbild {place} von {count}", warning="Achtung: "
    )
    result = case_result(
        [ct_slice(32), ct_slice(32, instance_number=2)],
        profile=Profile(texts=texts),
        notes=("außerhalb",),
        said="Erguss: 0,9",
    )
    state = presentation_state(result, result.key_images)
    said = [
        text.UnformattedTextValue.split("\r\n")
        for annotation in state.GraphicAnnotationSequence
        for text in annotation.get("TextObjectSequence") or ()
    ]
    assert said == [
        ["Erguss: 0,9", f"Schlüsselbild {place} von 2", "Achtung: außerhalb", "Nur für die Forschung"]
        for place in (1, 2)
    ]
    assert state.ContentDescription == "Research use only. Erguss: 0,9"


def test_a_text_that_is_too_long_keeps_its_last_line() -> None:
    state = state_of(ct_slice(32), said="x" * 3000 + "\x07")
    (text,) = (
        item for annotation in state.GraphicAnnotationSequence for item in annotation.get("TextObjectSequence") or ()
    )
    assert len(text.UnformattedTextValue) == 1024
    assert text.UnformattedTextValue.endswith("...\r\nResearch use only - not for diagnosis")


def test_layers_have_the_profiles_colour() -> None:
    state = state_of(ct_slice(32), profile=Profile(colors=Colors(outline=(255, 255, 255))))
    outline, text = state.GraphicLayerSequence
    assert (outline.GraphicLayer, text.GraphicLayer) == ("OUTLINE", "TEXT")
    assert outline.GraphicLayerRecommendedDisplayCIELabValue[0] == 65535
    orange = state_of(ct_slice(32), profile=Profile(colors=Colors(outline=(255, 128, 0)))).GraphicLayerSequence[0]
    assert orange.GraphicLayerRecommendedDisplayCIELabValue[0] < 60000


def test_no_region_no_outline() -> None:
    state = state_of(ct_slice(32), peak=0.0)
    (only,) = state.GraphicAnnotationSequence
    assert only.GraphicLayer == "TEXT"


def test_an_outline_too_long_for_one_graphic_goes_on_in_the_next(tmp_path: Path) -> None:
    source = as_source(ct_slice(150))
    teeth = np.zeros((150, 150), np.float32)  # a comb whose teeth are combs
    teeth[0], teeth[:, ::4], teeth[::2, 1::4] = 100, 100, 100
    image = replace(result_image(source, 0), evidence_of=lambda: teeth)
    result = case_result([source], images=(image,))
    longest = max(len(line) for line in closed_polylines(result.region(image)))
    state = presentation_state(result, [image])
    written = dcmread(write_object(state, tmp_path))
    graphics = written.GraphicAnnotationSequence[0].GraphicObjectSequence
    assert max(graphic.NumberOfGraphicPoints for graphic in graphics) <= MAX_POINTS
    assert np.array_equal(drawn(written, source.SOPInstanceUID, None, (150, 150)), result.region(image))
    assert longest > MAX_POINTS


def test_images_that_are_shown_in_other_ways_are_other_groups() -> None:
    first, slope = ct_slice(32), ct_slice(32, instance_number=2, slope=0.5)
    other = ct_slice(32, series_number=2)
    again = ct_slice(32, instance_number=3)
    result = case_result([first, slope, other, again])
    groups = presentation_groups(result.images)
    assert [[image.source.SOPInstanceUID for image in group] for group in groups] == [
        [first.SOPInstanceUID, again.SOPInstanceUID],
        [slope.SOPInstanceUID],
        [other.SOPInstanceUID],
    ]
    with pytest.raises(ObjectError, match="one series"):
        presentation_state(result, result.images)
    states = [presentation_state(result, group) for group in groups]
    assert len({state.SOPInstanceUID for state in states}) == 3
    assert {state.SeriesNumber for state in states} == {9003}


def test_sides_of_the_body() -> None:
    assert "Laterality" not in state_of(radiograph(32))
    assert state_of(radiograph(32, BodyPartExamined="KNEE")).Laterality == ""
    assert state_of(radiograph(32, BodyPartExamined="HAND", ImageLaterality="R")).Laterality == "R"


def test_no_images_are_no_state() -> None:
    with pytest.raises(ObjectError, match="one or more"):
        presentation_state(case_result([ct_slice(32)]), [])
