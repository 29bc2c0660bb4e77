"""A derived copy of the source image with the region's outline in an overlay plane (PS3.3 C.9.2), its pixels as they are.

In: a case's result, and one of its images, whose file is read again. Out: a dataset of the source's SOP class and transfer syntax, its
pixels byte for byte the file's, ready for `derived.write_object`. What the image's IOD has is kept; new are the instance, its series,
its equipment and what tells of the derivation. Private attributes, signatures and the performed procedure step are the source's own,
and stay with it. The copies of one source series are one series.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.config import disable_value_validation
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.filewriter import correct_ambiguous_vr
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, ExplicitVRBigEndian
from pydicom.valuerep import format_number_as_ds

from pipeline.dicom.begin import (
    LO_CHARACTERS,
    LT_CHARACTERS,
    ST_CHARACTERS,
    begin_object,
    derivation_text,
    finish_object,
    result_text,
    source_items,
)
from pipeline.dicom.case_result import CaseResult, ResultImage
from pipeline.dicom.conformance_pixels import OVERLAY_GROUPS
from pipeline.dicom.conformance_tables import iod_of
from pipeline.dicom.conformance_values import TEXT_VRS, element_finding
from pipeline.dicom.derived import ascii_text
from pipeline.dicom.outline import Region, rim
from pipeline.dicom.source import EQUIPMENT, UNREADABLE, carried, frame_count, inherited_marks, items
from pipeline.errors import ObjectError, Rejected, RejectReason
from pipeline.files import open_regular

PIXELS_PER_LINE = 512
"""The outline is a pixel thick in images of up to so many rows or columns, and thicker in larger ones: shown to fit, they shrink."""
LEFT_WITH_THE_SOURCE = (
    *(
        keyword for keyword in EQUIPMENT if keyword != "InstitutionName"
    ),  # the scanner's: it is in ContributingEquipmentSequence
    "DigitalSignaturesSequence",
    "MACParametersSequence",
    "InstanceCreatorUID",
    "ReferencedPerformedProcedureStepSequence",
    "PerformedProcedureStepID",
    "PerformedProcedureStepStartDate",
    "PerformedProcedureStepStartTime",
    "PerformedProcedureStepEndDate",
    "PerformedProcedureStepEndTime",
    "PerformedProcedureStepDescription",
    "PerformedProtocolCodeSequence",
    "SpecificCharacterSet",
)
KEPT_OF_SOURCE = ("InstanceNumber", "ContentDate", "ContentTime")
"""Of what other objects have anew, this the copy keeps: its pixels are those of then."""
_PIXEL_GROUPS = (0x0028, 0x7FE0)
_PLANE = frozenset({0x00200032, 0x00200037, 0x00200052})
"""With group 0028: what pixels mean and where they lie. None of it may get lost."""


def overlay_plane(result: CaseResult, image: ResultImage) -> Dataset:
    """A copy of the source of `image` with the rim of its region in the first free overlay plane; all 0 where the region is empty.

    Values of the source that are not valid are left out, but what tells of its pixels. Raises ObjectError where `why_not` says so, or
    where the source lacks what its copy must have; Rejected where its file cannot be read any more.
    """
    reason = why_not(image.source)
    if reason:
        raise ObjectError(f"overlay: {reason}")
    series = str(image.source.get("SeriesInstanceUID"))
    begun = begin_object(result, "overlay", str(image.source.get("Modality") or "OT"), [image], series=series)
    file = _read(Path(image.source.filename))
    if file.get("SOPInstanceUID") != image.source.SOPInstanceUID:
        raise Rejected(RejectReason.CHANGED, "another image is in its place")
    copy = _copied(file, str(image.source.SOPClassUID))
    former = {keyword: str(copy.get(keyword) or "") for keyword in ("DerivationDescription", "ImageComments")}
    contributed = items(copy, "ContributingEquipmentSequence")
    for element in begun:
        if element.keyword not in KEPT_OF_SOURCE or element.tag not in copy:
            copy.add(element)
    copy.ContributingEquipmentSequence = [*contributed, *begun.ContributingEquipmentSequence]
    copy.file_meta.MediaStorageSOPInstanceUID = copy.SOPInstanceUID
    copy.update(_marks(image.source))
    copy.ImageType = ["DERIVED", "SECONDARY", *list(copy.get("ImageType") or ())[2:]]
    copy.ImageComments = _after(result_text(result), former["ImageComments"], LT_CHARACTERS)
    copy.SourceImageSequence = source_items([image])
    what = derivation_text(result, [image], f"Outline of {result.method} in an overlay plane; pixels as in the source.")
    copy.DerivationDescription = _after(what, former["DerivationDescription"], ST_CHARACTERS)
    _add_plane(copy, result, image.source, rim(result.region(image), _thickness(copy)))
    return finish_object(copy, image.source)


def why_not(source: Dataset) -> str:
    """Why `source` cannot have such a copy, in a sentence; '' where it can."""
    if any(carried(source, keyword) is None for keyword in ("SOPClassUID", "SOPInstanceUID")):
        return "the source has no valid SOPClassUID or SOPInstanceUID, so no object can refer to it"
    iod = iod_of(str(source.SOPClassUID))
    if iod is None:
        return "the source is of a SOP class whose IOD is not known"
    if "overlay-plane" not in iod.usages:
        return f"the IOD of the source ({iod.name}) has no overlay planes"
    if iod.usages.get("multi-frame") == "M" or frame_count(source) > 1:
        return "the source is of a multi-frame IOD; overlay planes are written for single images"
    if not getattr(source, "filename", None):
        return "the source's file is not at hand"
    return "" if _free_group(source) is not None else "all 16 overlay planes of the source are taken"


def _after(text: str, of_source: str, characters: int) -> str:
    return ascii_text(f"{text} Of the source: {of_source}" if of_source.strip() else text, characters)


def _marks(source: Dataset) -> Dataset:
    """`inherited_marks`, but where the source does not tell of burned-in text, neither does the copy: radloop burns nothing in."""
    marks = inherited_marks(source)
    if carried(source, "BurnedInAnnotation") is None:
        del marks.BurnedInAnnotation
    return marks


def _read(path: Path) -> Dataset:
    """The whole file. Raises Rejected."""
    try:
        with open_regular(path) as file, warnings.catch_warnings(), disable_value_validation():
            warnings.simplefilter("ignore")
            return dcmread(file, force=True)
    except (*UNREADABLE, InvalidDicomError, EOFError, RecursionError, zlib.error) as error:
        raise Rejected(RejectReason.MALFORMED, f"the file cannot be parsed ({type(error).__name__})") from error


def _copied(file: Dataset, sop_class_uid: str) -> Dataset:
    """What the copy has from its file, valid: with empty Type 2 attributes where the file lacks them, and its transfer syntax."""
    copy = _valid(file, is_root=True)
    iod = iod_of(sop_class_uid)
    for tag, (kind, _) in (iod.root.required if iod else {}).items():
        if kind == "2" and tag not in copy:
            copy.add_new(tag, dictionary_VR(tag), None)
    copy.file_meta = FileMetaDataset()
    copy.file_meta.MediaStorageSOPClassUID = UID(sop_class_uid)
    copy.file_meta.TransferSyntaxUID = file.file_meta.TransferSyntaxUID
    is_little_endian = copy.file_meta.TransferSyntaxUID != ExplicitVRBigEndian
    return correct_ambiguous_vr(copy, is_little_endian)


def _valid(dataset: Dataset, *, is_root: bool = False) -> Dataset:
    """A copy of a dataset or an item, values that are not valid rewritten or left out.

    Raises ObjectError where such a value tells what pixels mean or where they lie.
    """
    kept = Dataset()
    with warnings.catch_warnings(), disable_value_validation():  # pydicom's warnings and logs quote the value
        warnings.simplefilter("ignore")
        for tag in _tags(dataset, is_root=is_root):
            element = _valid_element(dataset, tag)
            if element is not None:
                kept.add(element)
            elif tag.group in _PIXEL_GROUPS or tag in _PLANE:
                raise ObjectError(
                    f"{tag}: the source's value is not valid, and a copy without it would show something else"
                )
    return kept


def _tags(dataset: Dataset, *, is_root: bool) -> Iterator[BaseTag]:
    """Those that PS3.6 knows, but group lengths; of the root without what stays with the source, and padding."""
    for tag in sorted(dataset.keys()):
        keyword = "" if tag.is_private or tag.element == 0 else keyword_for_tag(tag)
        if keyword and not (is_root and keyword in LEFT_WITH_THE_SOURCE) and keyword != "DataSetTrailingPadding":
            yield tag


def _valid_element(dataset: Dataset, tag: BaseTag) -> DataElement | None:
    """The element, as it is or with its value in the form of its VR; None where that is impossible."""
    try:
        element = dataset[tag]
        if element.VR == "SQ":
            return DataElement(tag, "SQ", [_valid(item) for item in items(dataset, keyword_for_tag(tag))])
        if element_finding(element) is None and "\ufffd" not in (str(element.value) if element.VR in TEXT_VRS else ""):
            return element
        if element.VR == "DS":  # most often a number of more than 16 letters
            values = element.value if isinstance(element.value, MultiValue) else [element.value]
            return DataElement(tag, "DS", [format_number_as_ds(float(value)) for value in values])
    except UNREADABLE:
        return None
    return carried(dataset, element.keyword)


def _add_plane(copy: Dataset, result: CaseResult, source: Dataset, plane: Region) -> None:
    """Overlay Plane (PS3.3 C.9.2) of a raster of the image's own rows and columns."""
    group = _free_group(source)
    if group is None or plane.shape != (copy.Rows, copy.Columns):
        raise ObjectError(
            f"overlay: expected a region of {copy.Rows} rows and {copy.Columns} columns, found {plane.shape}"
        )
    bits = np.packbits(plane.reshape(-1), bitorder="little").tobytes()
    words = np.frombuffer(bits + b"\0" * (len(bits) % 2), "<u2")
    order = ">u2" if copy.file_meta.TransferSyntaxUID == ExplicitVRBigEndian else "<u2"
    for element, vr, value in (
        (0x0010, "US", plane.shape[0]),
        (0x0011, "US", plane.shape[1]),
        (0x0022, "LO", ascii_text(result.said, LO_CHARACTERS)),
        (0x0040, "CS", "G"),
        (0x0045, "LO", "AUTOMATED"),
        (0x0050, "SS", [1, 1]),
        (0x0100, "US", 1),
        (0x0102, "US", 0),
        (0x1500, "LO", "radloop, research use only"),
        (0x3000, "OW", words.astype(order).tobytes()),
    ):
        copy.add_new(Tag(group, element), vr, value)


def _free_group(source: Dataset) -> int | None:
    """The first group 60xx of which the source has nothing; None where it has all 16."""
    taken = {tag.group for tag in sorted(source.keys())}
    return next((group for group in OVERLAY_GROUPS if group not in taken), None)


def _thickness(copy: Dataset) -> int:
    return max(1, round(max(copy.Rows, copy.Columns) / PIXELS_PER_LINE))
