"""Frames of multi-frame objects: functional groups, dimensions and segments (PS3.3 C.7.6.16, C.7.6.17, C.8.20).

Which macros a class must have is a small table of the classes that radloop writes and of the enhanced images that it reads; what a
macro holds, the module tables know (`conformance_modules`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain

from pipeline.dicom.conformance_item import Item, name_of, tag_of
from pipeline.dicom.conformance_terms import ENHANCED_CT, ENHANCED_MR, PARAMETRIC_MAP, SEG

SHARED, PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
PLANE = ("PlanePositionSequence", "PlaneOrientationSequence")
GEOMETRY = ("PixelMeasuresSequence", *PLANE)

MACROS: Mapping[str, tuple[str, ...]] = {
    SEG: ("FrameContentSequence",),
    PARAMETRIC_MAP: (
        "PixelMeasuresSequence",
        "FrameContentSequence",
        "FrameAnatomySequence",
        "PixelValueTransformationSequence",
        "FrameVOILUTSequence",
        "RealWorldValueMappingSequence",
        "ParametricMapFrameTypeSequence",
    ),
    ENHANCED_CT: (
        *GEOMETRY,
        "FrameContentSequence",
        "FrameAnatomySequence",
        "PixelValueTransformationSequence",
        "CTImageFrameTypeSequence",
    ),
    ENHANCED_MR: (*GEOMETRY, "FrameContentSequence", "FrameAnatomySequence", "MRImageFrameTypeSequence"),
}
"""Macros of usage M (PS3.3 A.51.5, A.75.5, A.38.1, A.36.2), each frame's own or shared by all."""

NEVER_SHARED = ("FrameContentSequence",)  # PS3.3 C.7.6.16.2.2

IN_PLANE: Mapping[str, str] = {
    "PlanePositionSequence": "ImagePositionPatient",
    "PlaneOrientationSequence": "ImageOrientationPatient",
    "PixelMeasuresSequence": "PixelSpacing",
}
"""Type 1C in their macros; without them a frame with a frame of reference lies nowhere."""


def frame_findings(root: Item, sop_class_uid: str) -> Iterator[str]:
    """What is wrong with the frames of `root`; nothing for an object without functional groups."""
    if sop_class_uid == SEG:
        yield from _segment_findings(root)
    if SHARED not in root and PER_FRAME not in root:
        return
    shared, frames = root.items(SHARED), root.items(PER_FRAME)
    if len(shared) > 1:
        yield f"{SHARED} has {len(shared)} items, expected one"
    count = root.number("NumberOfFrames")
    if PER_FRAME in root and len(frames) != count:
        yield f"{PER_FRAME} has {len(frames)} items, expected one for each of the frames that NumberOfFrames says"
    yield from _once(_macro_findings(root, shared, frames, sop_class_uid))
    yield from _once(_dimension_findings(root, shared, frames))


def _once(findings: Iterator[str]) -> Iterator[str]:
    """Each finding once, however many frames have it."""
    return iter(dict.fromkeys(findings))


def _macro_findings(root: Item, shared: list[Item], frames: list[Item], sop_class_uid: str) -> Iterator[str]:
    in_all = {tag for item in shared for tag in item.elements}
    for keyword in NEVER_SHARED:
        if tag_of(keyword) in in_all:
            yield f"{keyword} is in {SHARED}, where it may not be"
    for frame in frames:
        for tag in in_all & frame.elements.keys():
            yield f"{name_of(tag)} is both in {SHARED} and in {PER_FRAME}"
    if root.text("DimensionOrganizationType") == "TILED_FULL":
        return  # PS3.3 C.7.6.17.3: where a tile lies follows from its number
    for keyword in _due(root, sop_class_uid):
        tag = tag_of(keyword)
        if tag not in in_all and not (frames and all(tag in frame.elements for frame in frames)):
            yield f"{keyword} is neither shared by all frames nor in each of them"
    if sop_class_uid in MACROS and root.has_value("FrameOfReferenceUID"):
        for item in chain(shared, frames):
            for keyword, inner in IN_PLANE.items():
                if any(not macro.has_value(inner) for macro in item.items(keyword)):
                    yield f"{keyword}.{inner} is missing (Type 1C with FrameOfReferenceUID)"


def _due(root: Item, sop_class_uid: str) -> tuple[str, ...]:
    """Macros that this object must have."""
    due = MACROS.get(sop_class_uid, ())
    on_slide = "TotalPixelMatrixOriginSequence" in root
    if sop_class_uid == PARAMETRIC_MAP and root.has_value("FrameOfReferenceUID"):
        due = (*due, *(("PlanePositionSlideSequence",) if on_slide else PLANE))
    if sop_class_uid == SEG and root.text("SegmentationType") != "LABELMAP":
        due = (*due, "SegmentIdentificationSequence")
    if sop_class_uid == SEG and root.has_value("FrameOfReferenceUID") and not on_slide:
        due = (
            *due,
            *GEOMETRY,
        )  # A.51.5.1 leaves the choice of DerivationImageSequence alone; nobody could place it then
    return due


def _dimension_findings(root: Item, shared: list[Item], frames: list[Item]) -> Iterator[str]:
    """PS3.3 C.7.6.17: each index points at something that the frames have, and each frame has a value for each index."""
    organizations = {item.text("DimensionOrganizationUID") for item in root.items("DimensionOrganizationSequence")}
    indices = root.items("DimensionIndexSequence")
    for index in indices:
        if index.has_value("DimensionOrganizationUID") and index.text("DimensionOrganizationUID") not in organizations:
            yield "DimensionIndexSequence refers to a dimension organization that is not in DimensionOrganizationSequence"
        group, pointer = index.number("FunctionalGroupPointer"), index.number("DimensionIndexPointer")
        if group is not None and pointer is not None and not _is_dimension(shared, frames, group, pointer):
            yield f"DimensionIndexSequence points to {name_of(pointer)}, which not all frames have"
    if not indices:
        return
    for frame in frames:
        for content in frame.items("FrameContentSequence"):
            values = content.values("DimensionIndexValues")
            if len(values) != len(indices):
                yield f"DimensionIndexValues: expected {len(indices)} values, one for each dimension, found {len(values)}"
            elif any(int(value) < 1 for value in values):
                yield "DimensionIndexValues has a value below 1"


def _is_dimension(shared: list[Item], frames: list[Item], group: int, pointer: int) -> bool:
    """Whether all frames have the attribute in that functional group, shared or their own."""
    if any(pointer in item.elements for whole in shared for item in whole.sequences.get(group, [])):
        return True
    return all(any(pointer in item.elements for item in frame.sequences.get(group, [])) for frame in frames)


def _segment_findings(root: Item) -> Iterator[str]:
    """PS3.3 C.8.20.2: segments are numbered from 1 by 1 (a label map: each once), and frames show only those that there are."""
    kind = root.text("SegmentationType")
    numbers = [segment.number("SegmentNumber") for segment in root.items("SegmentSequence")]
    if kind == "LABELMAP":
        if len(set(numbers)) != len(numbers):
            yield "SegmentSequence has a SegmentNumber twice"
        return
    if numbers != list(range(1, len(numbers) + 1)):
        yield "SegmentSequence: expected SegmentNumber from 1 on, by 1"
    shown = {
        segment.number("ReferencedSegmentNumber")
        for group in chain(root.items(SHARED), root.items(PER_FRAME))
        for segment in group.items("SegmentIdentificationSequence")
    }
    if not shown <= set(numbers):
        yield "a frame shows a segment that is not in SegmentSequence"
    bits = {"BINARY": 1, "FRACTIONAL": 8}.get(kind)
    for keyword in ("BitsAllocated", "BitsStored"):
        if bits is not None and root.has_value(keyword) and root.number(keyword) != bits:
            yield f"{keyword} does not fit SegmentationType {kind}, expected {bits}"
