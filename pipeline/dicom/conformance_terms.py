"""Enumerated values and conditions of PS3.3 that matter to what radloop writes and reads: small tables, for all IODs or for some.

The module tables hold neither: which values an attribute may have and when a Type 1C attribute is due stand in the standard's prose.
Here is what a viewer or a PACS acts upon; the rest is what the tests run dciodvfy for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pipeline.dicom.conformance_item import Item, name_of, path_name, tag_of

SC, TRUE_COLOR_SC = "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.7.4"
MULTI_FRAME_SC = frozenset({f"{SC}.{number}" for number in (1, 2, 3)} | {TRUE_COLOR_SC})
CT, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"
MR, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"
CR, DX = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1"
GSPS = "1.2.840.10008.5.1.4.1.1.11.1"
SEG, PARAMETRIC_MAP = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.30"
COMPREHENSIVE_3D_SR, KEY_OBJECTS = "1.2.840.10008.5.1.4.1.1.88.34", "1.2.840.10008.5.1.4.1.1.88.59"
ENCAPSULATED_PDF = "1.2.840.10008.5.1.4.1.1.104.1"

YES_NO = frozenset({"YES", "NO"})

ENUMERATED: Mapping[str, frozenset[str]] = {
    "AnatomicalOrientationType": frozenset({"BIPED", "QUADRUPED"}),
    "AnchorPointAnnotationUnits": frozenset({"PIXEL", "DISPLAY", "MATRIX"}),
    "AnchorPointVisibility": frozenset({"Y", "N"}),
    "BoundingBoxAnnotationUnits": frozenset({"PIXEL", "DISPLAY", "MATRIX"}),
    "BurnedInAnnotation": YES_NO,
    "CompletionFlag": frozenset({"PARTIAL", "COMPLETE"}),
    "ContentQualification": frozenset({"PRODUCT", "RESEARCH", "SERVICE"}),
    "ContinuityOfContent": frozenset({"SEPARATE", "CONTINUOUS"}),
    "ConversionType": frozenset({"DV", "DI", "DF", "WSD", "SD", "SI", "DRW", "SYN"}),
    "FrameLaterality": frozenset({"R", "L", "U", "B"}),
    "GraphicAnnotationUnits": frozenset({"PIXEL", "DISPLAY", "MATRIX"}),
    "GraphicFilled": frozenset({"Y", "N"}),
    "ImageHorizontalFlip": frozenset({"Y", "N"}),
    "ImageLaterality": frozenset({"R", "L", "U", "B"}),
    "ImageRotation": frozenset({"0", "90", "180", "270"}),
    "Laterality": frozenset({"R", "L"}),
    "LongitudinalTemporalInformationModified": frozenset({"UNMODIFIED", "MODIFIED", "REMOVED"}),
    "LossyImageCompression": frozenset({"00", "01"}),
    "PatientIdentityRemoved": YES_NO,
    "PatientSex": frozenset({"M", "F", "O"}),
    "PixelRepresentation": frozenset({"0", "1"}),
    "PlanarConfiguration": frozenset({"0", "1"}),
    "PreliminaryFlag": frozenset({"PRELIMINARY", "FINAL"}),
    "PresentationIntentType": frozenset({"FOR PRESENTATION", "FOR PROCESSING"}),
    "PresentationLUTShape": frozenset({"IDENTITY", "INVERSE"}),
    "PresentationSizeMode": frozenset({"SCALE TO FIT", "TRUE SIZE", "MAGNIFY"}),
    "RecognizableVisualFeatures": YES_NO,
    "SegmentAlgorithmType": frozenset({"AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"}),
    "SegmentationFractionalType": frozenset({"PROBABILITY", "OCCUPANCY"}),
    "SegmentationType": frozenset({"BINARY", "FRACTIONAL", "LABELMAP"}),
    "UniversalEntityIDType": frozenset({"DNS", "EUI64", "ISO", "URI", "UUID", "X400", "X500"}),
    "VerificationFlag": frozenset({"UNVERIFIED", "VERIFIED"}),
    "VOILUTFunction": frozenset({"LINEAR", "LINEAR_EXACT", "SIGMOID"}),
    "VolumetricProperties": frozenset({"VOLUME", "SAMPLED", "DISTORTED", "MIXED"}),
}
"""At any depth, each value."""

IMAGE_TYPE = (frozenset({"ORIGINAL", "DERIVED", "MIXED"}), frozenset({"PRIMARY", "SECONDARY"}))
"""Values 1 and 2 (PS3.3 C.7.6.1.1.2; MIXED in enhanced images, C.8.16.1)."""

COLOR = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT", "XYB"})
GRAY = frozenset({"MONOCHROME1", "MONOCHROME2"})

OF_CLASS: Mapping[str, Mapping[str, frozenset[str]]] = {
    SC: {"PhotometricInterpretation": GRAY | COLOR | {"PALETTE COLOR"}},
    TRUE_COLOR_SC: {"PhotometricInterpretation": COLOR},
    CT: {"Modality": frozenset({"CT"}), "PhotometricInterpretation": GRAY},
    MR: {"Modality": frozenset({"MR"}), "PhotometricInterpretation": GRAY | {"PALETTE COLOR"}},
    CR: {"PhotometricInterpretation": GRAY},
    DX: {"Modality": frozenset({"DX"}), "PhotometricInterpretation": GRAY},
    GSPS: {"Modality": frozenset({"PR"})},
    SEG: {
        "Modality": frozenset({"SEG"}),
        "PhotometricInterpretation": frozenset({"MONOCHROME2", "PALETTE COLOR"}),
        "SamplesPerPixel": frozenset({"1"}),
        "PixelRepresentation": frozenset({"0"}),
    },
    PARAMETRIC_MAP: {
        "PhotometricInterpretation": frozenset({"MONOCHROME2"}),
        "SamplesPerPixel": frozenset({"1"}),
    },
    COMPREHENSIVE_3D_SR: {"Modality": frozenset({"SR"})},
    KEY_OBJECTS: {"Modality": frozenset({"KO"})},
    ENCAPSULATED_PDF: {"MIMETypeOfEncapsulatedDocument": frozenset({"application/pdf"})},
}
"""At the root, for one SOP class."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Where `keyword` has one of `values` (any at all, where that is empty), one of `due` must have a value: Type 1C."""

    keyword: str
    values: frozenset[str]
    due: tuple[str, ...]


CONDITIONS = (
    Condition(
        "PatientIdentityRemoved", frozenset({"YES"}), ("DeidentificationMethod", "DeidentificationMethodCodeSequence")
    ),
    Condition("WindowCenter", frozenset(), ("WindowWidth",)),
    Condition("WindowWidth", frozenset(), ("WindowCenter",)),
    Condition("SamplesPerPixel", frozenset({"3", "4"}), ("PlanarConfiguration",)),
    Condition("PixelSpacingCalibrationType", frozenset(), ("PixelSpacingCalibrationDescription",)),
    Condition("UniversalEntityID", frozenset(), ("UniversalEntityIDType",)),
    Condition("SegmentAlgorithmType", frozenset({"AUTOMATIC", "SEMIAUTOMATIC"}), ("SegmentAlgorithmName",)),
    Condition("SegmentationType", frozenset({"FRACTIONAL"}), ("SegmentationFractionalType",)),
    Condition("SegmentationType", frozenset({"FRACTIONAL"}), ("MaximumFractionalValue",)),
    Condition("TrackingID", frozenset(), ("TrackingUID",)),
    Condition("TrackingUID", frozenset(), ("TrackingID",)),
    Condition("VerificationFlag", frozenset({"VERIFIED"}), ("VerifyingObserverSequence",)),
    Condition("RescaleSlope", frozenset(), ("RescaleIntercept",)),
    Condition("RescaleIntercept", frozenset(), ("RescaleSlope",)),
    Condition("PresentationSizeMode", frozenset({"MAGNIFY"}), ("PresentationPixelMagnificationRatio",)),
    Condition("PresentationSizeMode", frozenset({"TRUE SIZE"}), ("PresentationPixelSpacing",)),
    Condition("PresentationSizeMode", frozenset(), ("PresentationPixelSpacing", "PresentationPixelAspectRatio")),
)

_TERMS = {tag_of(keyword): terms for keyword, terms in ENUMERATED.items()}
_IMAGE_TYPES = (tag_of("ImageType"), tag_of("FrameType"))
_CONDITIONS: dict[int, list[Condition]] = {}
for _condition in CONDITIONS:
    _CONDITIONS.setdefault(tag_of(_condition.keyword), []).append(_condition)


def term_findings(root: Item, sop_class_uid: str) -> Iterator[str]:
    """Values that are none of those enumerated, and attributes whose condition is met but which are not there."""
    seen: set[str] = set()
    for path, item in root.walk():
        for finding in _item_findings(item, path):
            if finding not in seen:
                seen.add(finding)
                yield finding
    for keyword, terms in OF_CLASS.get(sop_class_uid, {}).items():
        if root.has_value(keyword) and root.text(keyword) not in terms:
            yield f"{keyword} has a value that this class does not have, expected {_listed(terms)}"
    several = (root.number("NumberOfFrames") or 1) > 1
    if sop_class_uid in MULTI_FRAME_SC and several and not root.has_value("FrameIncrementPointer"):
        yield "FrameIncrementPointer is missing (Type 1C with several frames, PS3.3 C.8.6.3)"


def _item_findings(item: Item, path: tuple[int, ...]) -> Iterator[str]:
    for tag in item.elements.keys() & _TERMS.keys():
        name = name_of(tag)
        if any(str(value).strip() not in _TERMS[tag] for value in item.values(name)):
            yield f"{path_name(path, tag)} has a value that is not enumerated, expected {_listed(_TERMS[tag])}"
    for tag in item.elements.keys() & _CONDITIONS.keys():
        for condition in _CONDITIONS[tag]:
            yield from _condition_findings(item, path, condition)
    for tag in _IMAGE_TYPES:
        if tag in item.elements:
            for place, (value, terms) in enumerate(zip(item.values(name_of(tag)), IMAGE_TYPE, strict=False), start=1):
                if str(value).strip() not in terms:
                    yield f"{path_name(path, tag)} value {place} is not enumerated, expected {_listed(terms)}"


def _condition_findings(item: Item, path: tuple[int, ...], condition: Condition) -> Iterator[str]:
    value = item.value(condition.keyword)
    if value is None or (condition.values and str(value) not in condition.values):
        return
    if not any(item.has_value(keyword) for keyword in condition.due):
        due = " or ".join(path_name(path, tag_of(keyword)) for keyword in condition.due)
        yield f"{due} is missing (Type 1C with {condition.keyword})"


def _listed(terms: frozenset[str]) -> str:
    return ", ".join(sorted(terms))
