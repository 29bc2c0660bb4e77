"""Which objects are held back from de-identification, and why: those whose text nobody has cleaned.

Structured reports, documents, presentation states and the like are text through and through. Pictures that a person or a device has
drawn text into say so in BurnedInAnnotation or, mostly, do not: then what they are (secondary captures, ultrasound, fluoroscopy,
endoscopy, digitised film, screens, slide labels) decides. A mask that the user gives for an image answers the question about its pixels.
"""

from __future__ import annotations

import re
from enum import StrEnum
from functools import cache

from pydicom.uid import UID_dictionary

from pipeline.dicom.conformance_item import Item
from pipeline.dicom.derived import MANUFACTURER


class Held(StrEnum):
    """Why an object is held back. Closed: `held_back.csv` holds no other value."""

    NO_IMAGE = "text_object"
    """A report, a document, a presentation state, a waveform, ...: text that no table can clean."""
    UNKNOWN_CLASS = "unknown_class"
    """A private SOP class, or one newer than the tables: nobody knows where its text stands."""
    OWN = "radloop_object"
    """What radloop made: the prediction stands in its pixels, and it can be made again from the de-identified source."""
    BURNED_IN = "burned_in_annotation"
    """BurnedInAnnotation is YES."""
    TEXT_LIKELY = "text_in_pixels_likely"
    """It is of a kind that often has text in its pixels, and does not say that it has none."""
    LABEL = "slide_label"
    """The label of a slide, or an overview that shows it."""
    RECOGNIZABLE = "recognizable_visual_features"
    """RecognizableVisualFeatures is YES, or a photograph of a person."""
    SAME_UID = "same_uid_other_content"
    """Another file of this SOPInstanceUID, with other content, was written before it."""


PIXELS_ANSWERED = frozenset({Held.BURNED_IN, Held.TEXT_LIKELY, Held.LABEL})
"""What a mask of the user's settles."""

_CAPTURES = re.compile(r"Secondary Capture")
_OFTEN_WITH_TEXT = re.compile(
    r"^(Ultrasound|Photoacoustic|X-Ray (Angiographic|Radiofluoroscopic|3D Angiographic)|Enhanced (XA|XRF|US)|Intravascular"
    r"|VL |Video|Ophthalmic|Wide Field|RT Image|Enhanced (Continuous )?RT Image|Hardcopy|Dermoscopic|Corneal|Standalone)"
)
_PHOTOGRAPHS = re.compile(r"^(VL|Video) Photographic|^Dermoscopic")
_TEXTLESS_VOXELS = ("Segmentation Storage", "Parametric Map Storage", "Breast Tomosynthesis Image Storage")
_MODALITIES = frozenset(
    {
        "US",
        "OT",
        "ES",
        "XC",
        "GM",
        "DOC",
        "HC",
        "RF",
        "XA",
        "IVUS",
        "OP",
        "DG",
        "RTIMAGE",
        "DMS",
        "EC",
        "ECG",
        "SC",
        "BDUS",
    }
)
"""Modalities whose pictures often have text, whatever their SOP class."""
_SCREEN = re.compile(
    r"SCREEN|(?<![A-Z])SAVE|CAPTURE|REPORT|DOSE[ _]?(INFO|SHEET|SUMMARY)|PROTOCOL|SUMMARY|(?<![A-Z])(TEXT|GRAPH|CHART|PASTED|SNAP)"
)
"""In a value of ImageType: SCREEN SAVE, SCREENSHOT, DOSE_INFO, PATIENT PROTOCOL, CSA REPORT, ..."""
_DIGITISED = frozenset({"DV", "DF", "DI", "WSD", "SD", "SI", "DRW", "SYN"})
"""ConversionType (PS3.3 C.8.6.1): digitised film or video, a workstation's or scanned pictures."""
_GRAY_ONLY = re.compile(
    r"^(Enhanced )?(CT|MR(?! Color)|Positron Emission Tomography|PET|Computed Radiography|Digital X-Ray|Digital Mammography)"
)


def why_held(root: Item) -> tuple[Held, str] | None:
    """The reason and what it was told by, in words that name no value of the file; None where nothing speaks against it."""
    sop_class = root.text("SOPClassUID")
    name = image_class_name(sop_class)
    if name is None:
        known = _registered(sop_class)
        return (Held.NO_IMAGE, known) if known else (Held.UNKNOWN_CLASS, "its SOPClassUID is not in the dictionary")
    if MANUFACTURER in (
        root.text("Manufacturer").strip().casefold(),
        root.text("SecondaryCaptureDeviceManufacturer").casefold(),
    ):
        return Held.OWN, "Manufacturer is radloop"
    if root.text("RecognizableVisualFeatures") == "YES" or _PHOTOGRAPHS.search(name):
        return Held.RECOGNIZABLE, "a photograph" if _PHOTOGRAPHS.search(name) else "its header says so"
    image_type = [str(value).upper() for value in root.values("ImageType")]
    if {"LABEL", "OVERVIEW"} & set(image_type) or root.text("SpecimenLabelInImage") == "YES":
        return Held.LABEL, "ImageType or SpecimenLabelInImage says so"
    if root.text("BurnedInAnnotation") not in ("NO", ""):
        return Held.BURNED_IN, "BurnedInAnnotation is not NO"
    return _text_likely(root, name, image_type)


def _text_likely(root: Item, name: str, image_type: list[str]) -> tuple[Held, str] | None:
    if _CAPTURES.search(name):
        return Held.TEXT_LIKELY, "a secondary capture"
    if any(_SCREEN.search(value) for value in image_type):
        return Held.TEXT_LIKELY, "ImageType speaks of a screen or a report"
    if _GRAY_ONLY.search(name) and (root.number("SamplesPerPixel") or 1) > 1:
        return Held.TEXT_LIKELY, "in colour, which its SOP class does not have: a screen"
    if root.text("BurnedInAnnotation") == "NO":
        return None
    if _OFTEN_WITH_TEXT.search(name):
        return Held.TEXT_LIKELY, f"{name} without BurnedInAnnotation NO"
    if root.text("Modality") in _MODALITIES:
        return Held.TEXT_LIKELY, "its modality often has text, and BurnedInAnnotation is not NO"
    if root.text("ConversionType") in _DIGITISED:
        return Held.TEXT_LIKELY, "digitised or drawn, and BurnedInAnnotation is not NO"
    return None


def image_class_name(sop_class_uid: str) -> str | None:
    """PS3.6's name of an image's SOP class; None where it is none that this knows how to clean."""
    name = _registered(sop_class_uid)
    is_image = "Image Storage" in name or name in _TEXTLESS_VOXELS
    return name if is_image else None


@cache
def _registered(sop_class_uid: str) -> str:
    """The name of a SOP class of storage, '' for any other UID."""
    name, kind, *_ = UID_dictionary.get(sop_class_uid, ("", ""))
    return name if kind == "SOP Class" and "Storage" in name else ""
