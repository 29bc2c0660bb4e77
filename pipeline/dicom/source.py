"""A source of derived objects: its header, tolerated as it is, and what is carried from it, made valid or left out.

In: the header of any indexed file. Out: datasets whose attributes of patient, study and scanner may be written into
an object. The IDs under which a PACS files an object (`KEPT`) are never changed: an object that could only be filed
wrongly is refused when it is checked. Nobody's name or ID is logged: warnings name attributes only.
"""

from __future__ import annotations

import copy
import logging
import re
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from pydicom import dcmread
from pydicom.charset import TEXT_VR_DELIMS, convert_encodings, decode_bytes, python_encoding
from pydicom.config import disable_value_validation
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import PersonName

from pipeline.dicom import conformance
from pipeline.errors import Rejected, RejectReason
from pipeline.files import open_regular

logger = logging.getLogger(__name__)

TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyDate",
    "StudyTime",
)
"""Type 2 of the Patient (PS3.3 C.7.1.1) and General Study (C.7.2.1) modules: in every object, empty where unknown."""

KEPT = ("StudyInstanceUID", "PatientID")
"""Where a PACS files an object: never emptied or changed. Where one is invalid, no object is made."""

PATIENT_AND_STUDY = (
    *KEPT,
    *(keyword for keyword in TYPE_2 if keyword not in KEPT),
    "IssuerOfPatientID",
    "PatientBirthTime",
    "EthnicGroup",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "StudyDescription",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "TimezoneOffsetFromUTC",
    "LongitudinalTemporalInformationModified",
)
"""Patient, study and the time that their dates are in: carried from the source wherever it has a valid value."""

EQUIPMENT = (
    "Manufacturer",
    "ManufacturerModelName",
    "StationName",
    "InstitutionName",
    "DeviceSerialNumber",
    "SoftwareVersions",
)
"""The source's scanner, for ContributingEquipmentSequence (PS3.3 C.12.1.1.5)."""

ENUMERATED = {
    "PatientSex": ("M", "F", "O"),
    "PatientIdentityRemoved": ("YES", "NO"),
    "LongitudinalTemporalInformationModified": ("UNMODIFIED", "MODIFIED", "REMOVED"),
    "BurnedInAnnotation": ("YES", "NO"),
    "RecognizableVisualFeatures": ("YES", "NO"),
    "Laterality": ("R", "L"),
    "ImageLaterality": ("R", "L", "U", "B"),
    "AnatomicalOrientationType": ("BIPED", "QUADRUPED"),
    "LossyImageCompression": ("00", "01"),
    "UniversalEntityIDType": ("DNS", "EUI64", "ISO", "URI", "UUID", "X400", "X500"),
}
"""Values that PS3.3 enumerates, of the attributes carried: any other is left out."""

LOSSY_METHODS = {
    "1.2.840.10008.1.2.4.50": "ISO_10918_1",
    "1.2.840.10008.1.2.4.51": "ISO_10918_1",
    "1.2.840.10008.1.2.4.53": "ISO_10918_1",
    "1.2.840.10008.1.2.4.55": "ISO_10918_1",
    "1.2.840.10008.1.2.4.81": "ISO_14495_1",
}
"""Transfer syntaxes that always lose, and their Lossy Image Compression Method (PS3.3 C.7.6.1.1.5.1). JPEG 2000 and
HTJ2K in their general syntaxes may lose or not: there the source's own LossyImageCompression tells."""

UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, OverflowError, struct.error)
"""What pydicom raises for an element whose bytes or VR make no sense."""

_ZONE = re.compile(r"[+-](0[0-9]|1[0-4])[0-5][0-9]")  # PS3.3 C.12.1.1.8
_OLD_DATE = re.compile(r"(\d{4})\.(\d\d)\.(\d\d)")  # ACR-NEMA, PS3.5 6.2
_OLD_TIME = re.compile(r"(\d\d):(\d\d)(?::(\d\d(?:\.\d+)?))?")
_MISSPELT_SET = re.compile(r"ISO[ _-]?(2022)?[ _-]?IR[ _-]?(\d+)")


def read_source(path: Path) -> Dataset:
    """The header of a source, as `as_source` has it. Raises Rejected for a file that is gone or cannot be parsed.

    To be called for indexed files only: nothing here bounds the memory that a malicious file takes.
    """
    try:
        with open_regular(path) as file, warnings.catch_warnings(), disable_value_validation():
            warnings.simplefilter("ignore")
            dataset = dcmread(file, stop_before_pixels=True, force=True)
            dataset.filename, dataset.buffer = str(path), None  # else a whole member of an archive is copied with it
            return _settled(dataset)
    except (*UNREADABLE, InvalidDicomError, EOFError, RecursionError, zlib.error) as error:
        raise Rejected(RejectReason.MALFORMED, f"the header cannot be parsed ({type(error).__name__})") from error


def as_source(dataset: Dataset) -> Dataset:
    """A copy without pixels and private tags, in which what derived objects carry is valid.

    Empty Type 2 attributes are filled in; dates and times of the form 1997.04.24 and 14:04:38 are rewritten; other
    invalid values of patient and study are emptied (Type 2) or dropped, but `KEPT`. Where text is not in the
    declared character set, the set is corrected: UTF-8 where the bytes are, else Latin-1. All else is as it was.
    """
    with _quietly():
        return _settled(copy.deepcopy(dataset))


def _settled(source: Dataset) -> Dataset:
    """`source` itself, as `as_source` has it."""
    for tag in list(source.keys()):
        if tag.is_private or tag.group == 0x7FE0:
            del source[tag]
    with _quietly():
        _settle_reading(source)
        for keyword in PATIENT_AND_STUDY:
            if keyword not in KEPT:
                _make_valid(source, keyword)
        for keyword in TYPE_2:
            if keyword not in source:
                setattr(source, keyword, "")
    return source


def carried(source: Dataset, keyword: str) -> DataElement | None:
    """The source's attribute as a new element of the dictionary's VR; None where it is absent, empty or not valid."""
    if _tag(keyword) not in source:
        return None
    with _quietly():
        return _carried(source, keyword)


def carry_all(source: Dataset, keywords: Iterable[str], target: Dataset) -> Dataset:
    """`target`, an object under construction, after each valid one of the source's attributes was put into it."""
    present = source.keys()
    found = [keyword for keyword in keywords if _tag(keyword) in present]
    if not found:
        return target
    with _quietly():
        for keyword in found:
            element = _carried(source, keyword)
            if element is not None:
                target.add(element)
    return target


@contextmanager
def _quietly() -> Iterator[None]:
    """pydicom's warnings and logs quote the value."""
    with warnings.catch_warnings(), disable_value_validation():
        warnings.simplefilter("ignore")
        yield


def _carried(source: Dataset, keyword: str) -> DataElement | None:
    try:
        tag = _tag(keyword)
        vr, given = dictionary_VR(tag), source[tag]
        if given.is_empty:
            return None
        value = given.value
        several = isinstance(value, MultiValue | list | tuple)
        plain = [_plain(part, vr) for part in value] if several else _plain(value, vr)
        element = DataElement(tag, vr, plain)
        if conformance.element_finding(element) is not None:
            return None
    except UNREADABLE:
        return None
    allowed = element.value in ENUMERATED[keyword] if keyword in ENUMERATED else True
    return element if allowed and (keyword != "TimezoneOffsetFromUTC" or _ZONE.fullmatch(element.value)) else None


def has_value(source: Dataset, keyword: str) -> bool:
    """Whether the attribute is there and not empty, valid or not."""
    tag = _tag(keyword)
    value = source.get_item(tag).value if tag in source else None
    return bool(value.strip() if isinstance(value, str | bytes) else value)


def items(source: Dataset, keyword: str) -> Sequence[Dataset]:
    """The items of a sequence; none where it is absent or is none."""
    try:
        value = source[keyword].value
    except UNREADABLE:
        return ()
    return value if isinstance(value, Sequence) and all(isinstance(item, Dataset) for item in value) else ()


def frame_count(source: Dataset) -> int:
    """NumberOfFrames, 1 where it is absent or no number."""
    element = carried(source, "NumberOfFrames")
    return max(1, int(element.value)) if element is not None else 1


def inherited_marks(source: Dataset) -> Dataset:
    """What pixels made from the source's must confess: burned-in identity, recognizable features, lossy compression.

    BurnedInAnnotation is YES only where the source's is: radloop's own text identifies nobody (PS3.3 C.7.6.1.1.1).
    """
    marks = carry_all(source, ("BurnedInAnnotation", "RecognizableVisualFeatures"), Dataset())
    marks.BurnedInAnnotation = marks.get("BurnedInAnnotation", "NO")
    meta = getattr(source, "file_meta", None) or FileMetaDataset()
    method = LOSSY_METHODS.get(str(meta.get("TransferSyntaxUID", "")))
    lossy = carried(source, "LossyImageCompression")
    if method is not None or (lossy is not None and lossy.value == "01"):
        marks.LossyImageCompression = "01"
        carry_all(source, ("LossyImageCompressionRatio", "LossyImageCompressionMethod"), marks)
        if "LossyImageCompressionMethod" not in marks and method is not None:
            marks.LossyImageCompressionMethod = method
    return marks


def settle_character_set(dataset: Dataset, source: Dataset) -> None:
    """Gives `dataset`, complete but for it, the source's SpecificCharacterSet; UTF-8 where that lacks its letters."""
    declared = declared_character_set(source)
    texts = [element for element in dataset.iterall() if element.VR in conformance.TEXT_VRS]
    if all(conformance.is_encodable(element, declared) for element in texts):
        if declared:
            dataset.SpecificCharacterSet = declared
    else:
        dataset.SpecificCharacterSet = "ISO_IR 192"


def _make_valid(source: Dataset, keyword: str) -> None:
    """Rewrites one attribute of `source` by its dictionary VR; empties or drops it, and says so, where that is
    impossible."""
    tag = _tag(keyword)
    if tag not in source:
        return
    element = carried(source, keyword)
    if element is not None:
        source[tag] = element
        return
    if has_value(source, keyword):
        uid = str(source.get("SOPInstanceUID", ""))
        logger.warning("%s: %s has no valid value; derived objects do without it", uid, keyword)
    del source[tag]


def _settle_reading(source: Dataset) -> None:
    """Sets the character set by which the carried text decodes without loss: the declared one, else UTF-8, else
    Latin-1."""
    tags = [_tag(keyword) for keyword in (*PATIENT_AND_STUDY, *EQUIPMENT)]
    raw = [element for tag in tags if tag in source and isinstance(element := source.get_item(tag), RawDataElement)]
    texts = [(dictionary_VR(element.tag), element.value) for element in raw if element.value]
    texts = [(vr, text) for vr, text in texts if vr in conformance.TEXT_VRS]
    if all(text.isascii() and b"\x1b" not in text for _, text in texts):
        return
    declared = declared_character_set(source)
    for terms in ([declared] if declared else []) + [["ISO_IR 192"], ["ISO_IR 100"]]:
        if all(_decodes(vr, text, terms) for vr, text in texts):
            source.SpecificCharacterSet = terms
            implicit, little = source.original_encoding
            source.set_original_encoding(implicit, little, convert_encodings(terms))
            return


def _decodes(vr: str, text: bytes, terms: Sequence[str]) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # pydicom warns, and goes on with replaced letters
            encodings = convert_encodings(list(terms))
            str(PersonName(text, encodings)) if vr == "PN" else decode_bytes(text, encodings, TEXT_VR_DELIMS)
    except (UnicodeError, LookupError, UserWarning):
        return False
    return True


def declared_character_set(source: Dataset) -> list[str]:
    """SpecificCharacterSet in the terms of PS3.3 C.12.1.1.2, common misspellings corrected; empty where it says
    nothing valid."""
    value = source.get("SpecificCharacterSet")
    values = [value] if isinstance(value, str) else list(value or ())
    terms = [_corrected(str(term).strip()) for term in values]
    known = all(term in python_encoding or (term == "" and position == 0) for position, term in enumerate(terms))
    plain = all(term in ("", "ISO_IR 6", "ISO 2022 IR 6") for term in terms)
    return [] if plain or not known else terms


def _corrected(term: str) -> str:
    match = _MISSPELT_SET.fullmatch(term.upper())
    if match is None:
        return term
    return f"ISO 2022 IR {match[2]}" if match[1] else f"ISO_IR {match[2]}"


def _plain(value: object, vr: str) -> object:
    """A value as its VR's writer takes it: text as str, dates and times in the form of today."""
    if not isinstance(value, str | PersonName) and vr not in ("DS", "IS"):
        return value
    text = str(value)
    if "\ufffd" in text:
        raise ValueError("letters were lost in decoding")
    if vr == "DA":
        return _OLD_DATE.sub(r"\1\2\3", text)
    if vr == "TM":
        return _OLD_TIME.sub(lambda match: "".join(part for part in match.groups() if part), text)
    return text


@lru_cache(maxsize=1024)
def _tag(keyword: str) -> BaseTag:
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(f"{keyword} is no keyword of PS3.6")
    return Tag(tag)
