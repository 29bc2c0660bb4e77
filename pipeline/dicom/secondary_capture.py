"""The Secondary Capture of one result: an RGB picture in the study of the image it explains (PS3.3 A.8.1).

In: a source (`source.as_source`), one of its frames, and the picture whose top left corner is that frame, pixel for
pixel. Out: a dataset ready for `derived.write_object`. All pictures of a study by one model and configuration share
a series.
"""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from pipeline import RESEARCH_ONLY
from pipeline.dicom.derived import (
    MANUFACTURER,
    Algorithm,
    SourceFrame,
    ascii_text,
    instance_uid,
    series_uid,
    shared_attributes,
    source_item,
)
from pipeline.dicom.source import (
    as_source,
    carried,
    carry_all,
    frame_count,
    inherited_marks,
    items,
    settle_character_set,
)
from pipeline.errors import ObjectError

KIND = "secondary_capture"
LO_CHARACTERS, ST_CHARACTERS, LT_CHARACTERS = 64, 1024, 10240  # PS3.5 6.2
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


def secondary_capture(
    source: Dataset,
    frame: int,
    picture: NDArray[np.uint8],
    *,
    algorithm: Algorithm,
    source_digest: str,
    configuration_digest: str,
    series_number: int,
    instance_number: int,
    series_description: str,
    derivation: str,
    image_comments: str,
    created: datetime.datetime,
) -> Dataset:
    """A Secondary Capture Image Storage instance of `picture`, (rows, columns, 3) RGB.

    `frame` from 0. `source_digest`: `files.file_digest` of the source's file. Texts become ASCII and are cut to what
    their attributes hold; `series_description` must be the same for all of a series. `image_comments` stands behind
    'Research use only - not for diagnosis'. Modality is OT, so that no rule takes the picture for an acquired image.
    Raises ObjectError for a picture, frame or number that no such instance can have.
    """
    _check(source, frame, picture)
    source = as_source(source)
    shared = shared_attributes(source, algorithm, created)
    study = str(shared.StudyInstanceUID)
    sources = [SourceFrame(str(source.SOPInstanceUID), frame, source_digest)]
    image = _picture_image(
        picture,
        study=study,
        series=series_uid(study, algorithm, configuration_digest, KIND),
        instance=instance_uid(study, sources, algorithm, configuration_digest, KIND),
        series_number=series_number,
        instance_number=instance_number,
    )
    image.update(shared)
    image.update(inherited_marks(source))
    image.update(_geometry(source, frame))
    image.ImageType = ["DERIVED", "SECONDARY", "OTHER", "HEATMAP"]
    image.SeriesDescription = ascii_text(series_description, LO_CHARACTERS)
    image.ImageComments = ascii_text(f"{RESEARCH_ONLY}. {image_comments}", LT_CHARACTERS)
    image.SourceImageSequence = [source_item(source, frame)]
    of_frames = f" Frame {frame + 1} of {frame_count(source)}." if frame_count(source) > 1 else ""
    image.DerivationDescription = ascii_text(
        f"Model {algorithm.model_name}, digest {algorithm.model_digest}, configuration {configuration_digest}, "
        f"{algorithm.name} {algorithm.version}.{of_frames} {derivation}",
        ST_CHARACTERS,
    )
    image.ConversionType = "WSD"
    image.SecondaryCaptureDeviceManufacturer = MANUFACTURER
    image.SecondaryCaptureDeviceManufacturerModelName = ascii_text(algorithm.model_name, LO_CHARACTERS)
    image.SecondaryCaptureDeviceSoftwareVersions = ascii_text(algorithm.version, LO_CHARACTERS)
    image.DateOfSecondaryCapture, image.TimeOfSecondaryCapture = shared.ContentDate, shared.ContentTime
    settle_character_set(image, source)
    return image


def read_picture(path: Path) -> NDArray[np.uint8]:
    """The picture (rows, columns, 3) of a Secondary Capture that radloop wrote."""
    picture: NDArray[np.uint8] = dcmread(path).pixel_array
    return picture


def _check(source: Dataset, frame: int, picture: NDArray[np.uint8]) -> None:
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or picture.size == 0:
        raise ObjectError(f"picture: expected uint8 (rows, columns, 3), found {picture.dtype} {picture.shape}")
    if max(picture.shape) > np.iinfo(np.uint16).max:
        raise ObjectError(f"picture: expected at most 65535 rows and columns, found {picture.shape[:2]}")
    if not 0 <= frame < frame_count(source):
        raise ObjectError(f"frame: expected 0 to {frame_count(source) - 1}, found {frame}")
    for keyword in ("SOPClassUID", "SOPInstanceUID"):
        if carried(source, keyword) is None:
            raise ObjectError(f"{keyword}: the source has none that is valid, so no object can refer to it")


def _picture_image(
    picture: NDArray[np.uint8], *, study: str, series: str, instance: str, series_number: int, instance_number: int
) -> Dataset:
    """The pixels and the modules of a Secondary Capture as highdicom builds them, without patient and study."""
    from highdicom.sc import SCImage

    if series_number < 1 or instance_number < 1:
        raise ObjectError(
            f"series and instance number: expected 1 or more, found {series_number} and {instance_number}"
        )
    image = SCImage(
        pixel_array=np.ascontiguousarray(picture),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        study_instance_uid=study,
        series_instance_uid=series,
        series_number=series_number,
        sop_instance_uid=instance,
        instance_number=instance_number,
        manufacturer=MANUFACTURER,
        patient_orientation=("L", "P"),  # highdicom asks for one; `_geometry` puts the source's in its place
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    plain = Dataset()
    plain.update(image)
    plain.file_meta = image.file_meta
    plain.PixelData = image.PixelData + b"\0" * (len(image.PixelData) % 2)
    del plain.ContributingEquipmentSequence  # names highdicom, at the time of now
    return plain


def _geometry(source: Dataset, frame: int) -> Dataset:
    """Body part, side, orientation and pixel spacing of the source's frame: the picture's top left corner is that
    frame."""
    geometry = carry_all(source, ("BodyPartExamined", "ImageLaterality"), Dataset())
    if "ImageLaterality" not in geometry:
        _carry_laterality(source, geometry)
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


def _carry_laterality(source: Dataset, geometry: Dataset) -> None:
    """Laterality as the source has it; empty (unknown) where a paired part may be shown and the source does not
    tell."""
    carry_all(source, ("Laterality",), geometry)
    if "Laterality" not in geometry and geometry.get("BodyPartExamined") not in UNPAIRED_BODY_PARTS:
        geometry.Laterality = ""


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
