"""A DICOM file → its frames as slices: where each lies, and what else tells whether they belong to one volume. Headers only.

Classic objects say it at the top level, enhanced ones in functional groups (PS3.3 C.7.6.16), of a frame or shared. Every failure is a
`Rejected`; a frame without a place in the patient is a slice without `plane`, with the reason. Nothing here names a patient.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, uid
from pydicom.filereader import read_dataset, read_partial
from pydicom.tag import BaseTag, Tag

from pipeline.dicom.bounded import Window, inflated, open_window, parsing, read_meta, value_of
from pipeline.dicom.geometry import NoPlane, Plane, frame_group, frame_plane
from pipeline.dicom.header import is_dicom
from pipeline.dicom.pixel_element import PIXEL_TAGS
from pipeline.errors import Rejected, RejectReason

STACK_ID = "stack_id"
TRAITS: dict[str, tuple[tuple[str, str], ...]] = {
    STACK_ID: (("FrameContentSequence", "StackID"),),
    "acquisition_number": (("FrameContentSequence", "FrameAcquisitionNumber"), ("", "AcquisitionNumber")),
    "image_type": (
        ("CTImageFrameTypeSequence", "FrameType"),
        ("MRImageFrameTypeSequence", "FrameType"),
        ("PETFrameTypeSequence", "FrameType"),
        ("", "ImageType"),
    ),
    "echo_time": (("MREchoSequence", "EffectiveEchoTime"), ("", "EchoTime")),
    "temporal_position": (
        ("FrameContentSequence", "TemporalPositionIndex"),
        ("", "TemporalPositionIdentifier"),
    ),
    "trigger_time": (("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"), ("", "TriggerTime")),
    "b_value": (("MRDiffusionSequence", "DiffusionBValue"), ("", "DiffusionBValue")),
    "convolution_kernel": (("CTReconstructionSequence", "ConvolutionKernel"), ("", "ConvolutionKernel")),
    "slice_thickness": (("PixelMeasuresSequence", "SliceThickness"), ("", "SliceThickness")),
    "acquisition_time": (("FrameContentSequence", "FrameAcquisitionDateTime"), ("", "AcquisitionTime")),
}
"""What may tell apart frames at one position, in the order tried (as indexing.stacks has it), and where each stands: the functional
group ("" is the top level) and the attribute."""
MAX_FRAMES = 2**17
"""Of one file: more than any scanner writes."""
_TOP = {keyword for places in TRAITS.values() for group, keyword in places if not group}
_KEYWORDS = (
    *("SOPClassUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality", "NumberOfFrames", "Rows", "Columns"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SpacingBetweenSlices", "RescaleSlope"),
    *("RescaleIntercept", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", *sorted(_TOP)),
)
_TAGS: list[Any] = [Tag(keyword) for keyword in _KEYWORDS]
_SIGNATURE_BYTES = 132


@dataclass(frozen=True)
class Slice:
    """One frame of one file, by its header.

    `plane`: None where the header does not say where it lies; `problem` then says why. `spacing_mm`: between slices, as far as one
    slice can know it (SpacingBetweenSlices, else SliceThickness). `rescale`: (slope, intercept). `traits`: of `TRAITS`, as text.
    """

    path: Path
    frame: int
    rows: int
    columns: int
    plane: Plane | None
    problem: str
    spacing_mm: float | None
    rescale: tuple[float, float]
    series: str
    frame_of_reference: str
    traits: tuple[tuple[str, str], ...]


def read_slices(path: Path) -> tuple[Slice, ...]:
    """All frames of a file, in its order. Raises Rejected for a file that is no DICOM, or whose header cannot be parsed."""
    with open_window(path) as window:
        if not is_dicom(window.pixels(0, _SIGNATURE_BYTES)):
            raise Rejected(RejectReason.NOT_AN_IMAGE, "no DICM prefix, and no first element of a DICOM data set")
        with parsing(window):
            dataset = _header(window)
            frames = _frames(dataset)
            return tuple(_slice(dataset, path, frame, frames) for frame in range(frames))


def _header(window: Window) -> Dataset:
    """The attributes `_KEYWORDS`; to be used within `parsing`."""

    def at_pixels(tag: BaseTag, _vr: str | None, _length: int) -> bool:
        return tag in PIXEL_TAGS

    if read_meta(window).get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian:
        source = inflated(window)
        dataset = read_dataset(source, False, True, stop_when=at_pixels, specific_tags=_TAGS)  # type: ignore[arg-type]
    else:
        window.seek(0)
        dataset = read_partial(window, at_pixels, force=True, specific_tags=_TAGS)  # type: ignore[arg-type]
    for keyword in _KEYWORDS:
        value_of(dataset, keyword)
    return dataset


def _frames(dataset: Dataset) -> int:
    """NumberOfFrames, checked against the functional groups where there are any."""
    frames = int(dataset.get("NumberOfFrames") or 1)
    groups = dataset.get("PerFrameFunctionalGroupsSequence")
    if frames < 1 or (groups and len(groups) != frames):
        raise Rejected(RejectReason.MALFORMED, "NumberOfFrames is not the number of its functional groups")
    if frames > MAX_FRAMES:
        raise Rejected(RejectReason.TOO_LARGE, f"{frames} frames; the budget is {MAX_FRAMES}")
    return frames


def _slice(dataset: Dataset, path: Path, frame: int, frames: int) -> Slice:
    plane, problem = None, ""
    try:
        if frames > 1 and not dataset.get("PerFrameFunctionalGroupsSequence"):
            raise NoPlane("several frames without functional groups, which alone could say where each lies")
        plane = frame_plane(dataset, frame)
    except NoPlane as error:
        problem = str(error)
    transformation = frame_group(dataset, frame, "PixelValueTransformationSequence") or dataset
    traits = {name: _first(dataset, frame, places) for name, places in TRAITS.items()}
    between = _positive(frame_group(dataset, frame, "PixelMeasuresSequence"), "SpacingBetweenSlices")
    return Slice(
        path=path,
        frame=frame,
        rows=int(dataset.get("Rows") or 0),
        columns=int(dataset.get("Columns") or 0),
        plane=plane,
        problem=problem,
        spacing_mm=between or _positive(dataset, "SpacingBetweenSlices") or _as_positive(traits["slice_thickness"]),
        rescale=(_number(transformation, "RescaleSlope", 1.0), _number(transformation, "RescaleIntercept", 0.0)),
        series=str(dataset.get("SeriesInstanceUID") or ""),
        frame_of_reference=str(dataset.get("FrameOfReferenceUID") or ""),
        traits=tuple((name, value) for name, value in traits.items() if value),
    )


def _first(dataset: Dataset, frame: int, places: tuple[tuple[str, str], ...]) -> str:
    """The first of the places that has a value, as text; '' where none has."""
    for group, keyword in places:
        value = (frame_group(dataset, frame, group) if group else dataset).get(keyword)
        if value not in (None, ""):
            return str(value)
    return ""


def _number(dataset: Any, keyword: str, default: float) -> float:
    value = dataset.get(keyword)
    try:
        return float(default if value is None or value == "" else value)
    except (TypeError, ValueError):
        return default


def _positive(dataset: Any, keyword: str) -> float | None:
    """A positive number, else None. SpacingBetweenSlices may be negative in nuclear medicine: its size counts."""
    number = abs(_number(dataset, keyword, 0.0))
    return number if 0 < number < np.inf else None


def _as_positive(text: str) -> float | None:
    return _positive({"": text}, "")
