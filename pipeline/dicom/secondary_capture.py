"""The Secondary Capture of one image: an RGB picture in the study of the image it explains (PS3.3 A.8.1).

In: a case's result, and one of its images, whose picture has the frame at its top left corner, pixel for pixel. Out: a dataset ready for
`derived.write_object`. All pictures of a study by one model and configuration share a series, for each part and side of the body.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID, SecondaryCaptureImageStorage

from pipeline.dicom.begin import LO_CHARACTERS, begin_object, derivation_text, finish_object, result_text, source_items
from pipeline.dicom.case_result import CaseResult, Picture, ResultImage
from pipeline.dicom.compression import compress
from pipeline.dicom.derived import MANUFACTURER, ascii_text
from pipeline.dicom.source import carried, carry_all, inherited_marks, items
from pipeline.errors import ObjectError

IMAGE_TYPE = ("DERIVED", "SECONDARY", "OTHER", "HEATMAP")
MODALITY = "OT"
"""So that no rule takes a picture for an acquired image."""
NO_REFERENCE = "the source has no valid SOPClassUID or SOPInstanceUID, so no object can refer to it"
MINIMUM_COSINE = 0.05
"""A direction's smaller component counts as a tilt from about 3 degrees on; below, the patient lies a little askew."""
UNPAIRED_BODY_PARTS = frozenset(
    [
        "ABDOMEN",
        "ABDOMENPELVIS",
        "AORTA",
        "BLADDER",
        "BRAIN",
        "CHEST",
        "COLON",
        "CSPINE",
        "CTSPINE",
        "ESOPHAGUS",
        "HEAD",
        "HEADNECK",
        "HEART",
        "JAW",
        "LIVER",
        "LSPINE",
        "LSSPINE",
        "MEDIASTINUM",
        "NECK",
        "PANCREAS",
        "PELVIS",
        "PROSTATE",
        "SKULL",
        "SPINE",
        "SPLEEN",
        "STOMACH",
        "TRACHEA",
        "TSPINE",
        "TLSPINE",
        "WHOLEBODY",
    ]
)
"""Terms of PS3.16 Annex L for parts that are no pair: Laterality is not due for them (2C, PS3.3 C.7.3.1)."""


def secondary_capture(result: CaseResult, image: ResultImage) -> Dataset:
    """A Secondary Capture Image Storage instance of `image`'s picture, compressed as the profile says.

    Texts are ASCII, cut to what their attributes hold. Raises ObjectError for a picture, frame or source that no such instance can have.
    """
    picture = image.picture_of()
    check_picture(picture)
    geometry = picture_geometry(image.source, image.frame)
    capture = begin_object(result, "sc", MODALITY, [image], series=body_part(geometry))
    capture.SOPClassUID = UID(SecondaryCaptureImageStorage)
    add_capture(capture, result, [image])
    capture.update(geometry)
    add_pixels(capture, picture)
    capture.add_new("PixelData", "OB", _even(picture.tobytes()))
    finish_object(capture, image.source)
    return compress(capture, result.profile.compression)


def why_not(source: Dataset) -> str:
    """Why `source` cannot have a Secondary Capture, in a sentence; '' where it can."""
    known = all(carried(source, keyword) is not None for keyword in ("SOPClassUID", "SOPInstanceUID"))
    return "" if known else NO_REFERENCE


def read_picture(path: Path) -> Picture:
    """The picture (rows, columns, 3) of a Secondary Capture that radloop wrote."""
    picture: Picture = dcmread(path).pixel_array
    return picture


def check_picture(picture: Picture) -> None:
    """Raises ObjectError where `picture` is none that an RGB image of 8 bits can hold."""
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or picture.size == 0:
        raise ObjectError(f"picture: expected uint8 (rows, columns, 3), found {picture.dtype} {picture.shape}")
    if max(picture.shape) > np.iinfo(np.uint16).max:
        raise ObjectError(f"picture: expected at most 65535 rows and columns, found {picture.shape[:2]}")


def add_capture(capture: Dataset, result: CaseResult, images: Sequence[ResultImage]) -> None:
    """What Secondary Captures of one frame and of many share beside their pixels: marks, type, texts, references, SC Equipment."""
    algorithm = result.algorithm
    capture.update(_marks(images))
    capture.ImageType = list(IMAGE_TYPE)
    capture.ImageComments = result_text(result)
    capture.SourceImageSequence = source_items(images)
    capture.DerivationDescription = derivation_text(result, images, f"Heatmap of {result.method} over the source image")
    capture.ConversionType = "WSD"
    capture.SecondaryCaptureDeviceManufacturer = MANUFACTURER
    capture.SecondaryCaptureDeviceManufacturerModelName = ascii_text(algorithm.model_name, LO_CHARACTERS)
    capture.SecondaryCaptureDeviceSoftwareVersions = ascii_text(algorithm.version, LO_CHARACTERS)
    capture.DateOfSecondaryCapture, capture.TimeOfSecondaryCapture = capture.ContentDate, capture.ContentTime


def add_pixels(capture: Dataset, picture: Picture) -> None:
    """Image Pixel (PS3.3 C.7.6.3) of pictures like this one, without the pixels."""
    capture.SamplesPerPixel, capture.PhotometricInterpretation, capture.PlanarConfiguration = 3, "RGB", 0
    capture.Rows, capture.Columns = picture.shape[:2]
    capture.BitsAllocated, capture.BitsStored, capture.HighBit, capture.PixelRepresentation = 8, 8, 7, 0


def _even(pixels: bytes) -> bytes:
    return pixels + b"\0" * (len(pixels) % 2)


def body_part(geometry: Dataset) -> str | None:
    """Tells series apart by part and side of the body, of which a series has one (PS3.3 C.7.3.1); None where neither is known."""
    return " ".join(str(geometry.get(keyword) or "") for keyword in ("BodyPartExamined", "Laterality")).strip() or None


def _marks(images: Sequence[ResultImage]) -> Dataset:
    """`inherited_marks` of all sources: what one confesses, the whole does."""
    sources = {id(image.source): image.source for image in images}
    marks = Dataset()
    for each in map(inherited_marks, sources.values()):
        for element in each:
            if element.keyword not in marks or element.value == "YES":
                marks[element.tag] = element
    return marks


def picture_geometry(source: Dataset, frame: int) -> Dataset:
    """Body part, side, orientation and pixel spacing of the source's frame: the picture's top left corner is that
    frame."""
    geometry = carry_all(source, ("BodyPartExamined", "ImageLaterality"), Dataset())
    if "ImageLaterality" not in geometry:
        carry_laterality(source, geometry)
    geometry.PatientOrientation = _patient_orientation(source, frame)
    carry_all(source, ("AnatomicalOrientationType",), geometry)
    spacing = _numbers(_of_frame(source, frame, "PixelMeasuresSequence"), "PixelSpacing", 2)
    if spacing is not None and min(spacing) > 0:
        carry_all(_of_frame(source, frame, "PixelMeasuresSequence"), ("PixelSpacing",), geometry)
        calibration = carry_all(
            source, ("PixelSpacingCalibrationType", "PixelSpacingCalibrationDescription"), Dataset()
        )
        if len(calibration) == 2:  # each needs the other
            geometry.update(calibration)
    else:
        carry_all(source, ("PixelAspectRatio",), geometry)
    return geometry


def carry_laterality(source: Dataset, target: Dataset) -> None:
    """Laterality as the source has it; empty (unknown) where a paired part may be shown and the source does not tell."""
    carry_all(source, ("Laterality",), target)
    if "Laterality" not in target and target.get("BodyPartExamined") not in UNPAIRED_BODY_PARTS:
        target.Laterality = ""


def _patient_orientation(source: Dataset, frame: int) -> list[str] | str:
    """PatientOrientation (PS3.3 C.7.6.1.1.1): the source's, else by the cosines of its plane; empty where neither is
    known."""
    own = carried(source, "PatientOrientation")
    if own is not None:
        return [str(direction) for direction in own.value]
    plane = _numbers(_of_frame(source, frame, "PlaneOrientationSequence"), "ImageOrientationPatient", 6)
    kind = carried(source, "AnatomicalOrientationType")
    if plane is None or (kind is not None and kind.value == "QUADRUPED"):
        return ""
    directions = [_direction(plane[:3]), _direction(plane[3:])]
    return directions if all(directions) else ""


def _direction(cosines: list[float]) -> str:
    """The letters of a direction in patient axes (L, P, H positive: DICOM's LPS), the nearest axis first."""
    order = sorted(range(3), key=lambda axis: -abs(cosines[axis]))
    letters = [("LPH" if cosines[axis] > 0 else "RAF")[axis] for axis in order if abs(cosines[axis]) > MINIMUM_COSINE]
    return "".join(letters)


def _of_frame(source: Dataset, frame: int, macro: str) -> Dataset:
    """Where the attributes of a frame stand: its functional group, the shared one (PS3.3 C.7.6.16), else the dataset
    itself."""
    groups = items(source, "PerFrameFunctionalGroupsSequence")[frame : frame + 1]
    for group in [*groups, *items(source, "SharedFunctionalGroupsSequence")]:
        found = items(group, macro)
        if found:
            return found[0]
    return source


def _numbers(dataset: Dataset, keyword: str, count: int) -> list[float] | None:
    element = carried(dataset, keyword)
    return [float(value) for value in element.value] if element is not None and len(element.value) == count else None
