"""Nothing invalid leaves: `check` judges an object against its IOD's modules, its value representations, pixels and
references.

Offline, by the tables of PS3.3 that highdicom carries. What depends on a condition (Type 1C and 2C, modules of usage
C) and what is an enumerated value no table of theirs can judge: for that the tests run dciodvfy over everything
radloop writes. Findings name attributes, never their values.
"""

from __future__ import annotations

import datetime
import re
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydicom import config
from pydicom.charset import convert_encodings, encode_string
from pydicom.datadict import dictionary_VM, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import UID
from pydicom.valuerep import validate_value

from pipeline.errors import ObjectError

MAXIMUM_UID_CHARACTERS = 64  # PS3.5 9.1
TEXT_VRS = frozenset(
    {"SH", "LO", "ST", "LT", "UC", "UT", "PN"}
)  # PS3.5 6.1.2.3: those that Specific Character Set governs
PARAGRAPH_VRS = frozenset({"ST", "LT", "UT"})  # PS3.5 6.2: these may hold tabs and line ends, too
BYTES_OF_PIXELS: Mapping[str, int] = {"FloatPixelData": 4, "DoubleFloatPixelData": 8}
UNJUDGED_MODULES = frozenset({"sr-document-content"})
"""The tables list the attributes of all value types of a content item together; which one is due, only its type
says."""
FUNCTIONAL_GROUPS = frozenset({"SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"})
"""Which macros a functional group holds is conditional (PS3.3 C.7.6.16); what a macro itself holds is judged."""
_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")
_COUNT = re.compile(r"(?P<low>\d+)(-(?P<high>\d+|\d*n))?")


def check(dataset: Dataset) -> None:
    """Raises ObjectError that lists everything wrong with `dataset`; returns where nothing is.

    Judged: Type 1 and Type 2 attributes of each mandatory module and within each sequence that is there; every UID;
    each value against its VR, its multiplicity and the character set; the length of uncompressed pixels; each
    reference to an instance; the file meta information where there is one.
    """
    findings = [
        *_module_findings(dataset),
        *_value_findings(dataset),
        *_pixel_findings(dataset),
        *_reference_findings(dataset),
        *_meta_findings(dataset),
    ]
    if findings:
        uid = str(dataset.get("SOPInstanceUID", ""))
        where = uid if is_uid(uid) else "an object without a valid SOPInstanceUID"
        raise ObjectError(f"{where}: expected a valid DICOM object, not written because of: " + "; ".join(findings))


def is_uid(value: str) -> bool:
    """Whether `value` is a UID by PS3.5 9.1 (so also safe as a file name: digits and single dots, no more than 64)."""
    return len(value) <= MAXIMUM_UID_CHARACTERS and _UID.fullmatch(value) is not None


def element_finding(element: DataElement) -> str | None:
    """What is wrong with one element's value by PS3.5 6.2 and its multiplicity by PS3.6; None where it is right.

    Sequences and binary data are taken as right. An empty value is right here: whether it may be empty is its
    module's say.
    """
    if element.VR == "SQ" or element.VR.startswith("O") or element.VR == "UN" or element.is_empty:
        return None
    name = element.keyword or str(element.tag)
    values = list(element.value) if isinstance(element.value, MultiValue | list | tuple) else [element.value]
    if element.VR in TEXT_VRS and any(_has_control_characters(str(value), element.VR) for value in values):
        return f"{name} has control characters"
    if not all(_is_value(element.VR, value) for value in values):
        return f"{name} holds a value that {element.VR} does not allow"
    if element.keyword and not _is_count(dictionary_VM(element.tag), len(values)):
        return f"{name} holds {len(values)} values, expected {dictionary_VM(element.tag)}"
    return None


def _is_value(vr: str, value: Any) -> bool:
    if vr == "UI":
        return is_uid(str(value))
    plain = value if isinstance(value, int | float) and vr not in ("DS", "IS") else str(value)
    if vr in ("FL", "FD", "US", "SS", "UL", "SL", "UV", "SV", "AT"):
        plain = value
    try:
        validate_value(vr, plain, config.RAISE)
    except (ValueError, TypeError, OverflowError):
        return False
    return vr != "DA" or _is_day(str(value))


def _has_control_characters(text: str, vr: str) -> bool:
    """PS3.5 6.1.3: no others than TAB, LF, FF and CR, and these only where text has lines."""
    allowed = "\t\n\f\r" if vr in PARAGRAPH_VRS else ""
    return any(unicodedata.category(letter) == "Cc" and letter not in allowed for letter in text)


def _is_day(value: str) -> bool:
    try:
        datetime.datetime.strptime(value.strip(), "%Y%m%d")
    except ValueError:
        return False
    return True


def _is_count(expected: str, found: int) -> bool:
    """Whether `found` values satisfy a value multiplicity such as 1, 2-2n, 1-3 or 1-n; unknown notations are taken
    as right."""
    match = _COUNT.fullmatch(expected)
    if match is None:
        return True
    low, high = int(match["low"]), match["high"]
    if high is None:
        return found == low
    if not high.endswith("n"):
        return low <= found <= int(high)
    return found >= low and found % int(high[:-1] or 1) == 0


def _module_findings(dataset: Dataset) -> Iterator[str]:
    """Type 1 missing or empty, Type 2 missing: of mandatory modules, and inside sequences that any module of the IOD
    has."""
    from highdicom._standard_utils import get_iod_module_map, get_module_attribute_map, get_sop_class_iod_map

    sop_class = str(dataset.get("SOPClassUID", ""))
    if sop_class not in get_sop_class_iod_map():
        yield "SOPClassUID is none whose IOD is known"
        return
    seen: set[str] = set()
    for module in get_iod_module_map()[get_sop_class_iod_map()[sop_class]]:
        if module["key"] in UNJUDGED_MODULES:
            continue
        for attribute in get_module_attribute_map().get(module["key"], ()):
            at_root = not attribute["path"]
            if attribute["type"] not in ("1", "2") or (at_root and module["usage"] != "M"):
                continue
            if not at_root and attribute["path"][-1] in FUNCTIONAL_GROUPS:
                continue
            for item in _items(dataset, attribute["path"]):
                finding = _presence_finding(item, attribute["keyword"], attribute["type"], attribute["path"])
                if finding is not None and finding not in seen:
                    seen.add(finding)
                    yield f"{finding} (PS3.3 module {module['key']})"


def _items(dataset: Dataset, path: Sequence[str]) -> Iterator[Dataset]:
    """The items that `path`, a chain of sequences' keywords, leads to; the dataset itself for an empty path."""
    if not path:
        yield dataset
        return
    for item in dataset.get(path[0]) or ():
        yield from _items(item, path[1:])


def _presence_finding(item: Dataset, keyword: str, kind: str, path: Sequence[str]) -> str | None:
    name = ".".join([*path, keyword])
    if keyword not in item:
        return f"{name} is missing (Type {kind})"
    if kind == "1" and item[keyword].is_empty:
        return f"{name} is empty (Type 1)"
    return None


def _value_findings(dataset: Dataset) -> Iterator[str]:
    declared = dataset.get("SpecificCharacterSet")
    for element in dataset.iterall():
        finding = element_finding(element)
        if finding is not None:
            yield finding
        elif element.VR in TEXT_VRS and not is_encodable(element, declared):
            yield f"{element.keyword or element.tag} has letters that SpecificCharacterSet does not hold"


def is_encodable(element: DataElement, character_set: str | Sequence[str] | None) -> bool:
    """Whether the text of `element` can be written under `character_set`, as DICOM names it (None: plain ASCII)."""
    text = (
        "\\".join(map(str, element.value)) if isinstance(element.value, MultiValue | list) else str(element.value or "")
    )
    if text.isascii():
        return True
    if not character_set:
        return False
    terms = [character_set] if isinstance(character_set, str) else list(character_set)
    mode = config.settings.writing_validation_mode
    try:
        config.settings.writing_validation_mode = config.RAISE
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # each component group and value is encoded on its own, as a delimiter resets the character set
            for part in re.split(r"[\\^=]", text):
                encode_string(part, convert_encodings(terms))
    except (UnicodeError, LookupError, ValueError, UserWarning):
        return False
    finally:
        config.settings.writing_validation_mode = mode
    return True


def _pixel_findings(dataset: Dataset) -> Iterator[str]:
    """Uncompressed pixels must be as long as rows, columns, samples, bits and frames say, padded to an even length."""
    for keyword in ("PixelData", *BYTES_OF_PIXELS):
        if keyword not in dataset:
            continue
        syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
        if syntax is not None and UID(syntax).is_encapsulated:
            continue
        bits = 8 * BYTES_OF_PIXELS.get(keyword, 0) or int(dataset.get("BitsAllocated") or 0)
        sizes = [int(dataset.get(name) or 0) for name in ("Rows", "Columns")]
        samples, frames = int(dataset.get("SamplesPerPixel") or 1), int(dataset.get("NumberOfFrames") or 1)
        expected = (sizes[0] * sizes[1] * samples * frames * bits + 7) // 8
        expected += expected % 2
        found = len(dataset[keyword].value or b"")
        if found != expected:
            yield f"{keyword} has {found} bytes, expected {expected}"


def _reference_findings(dataset: Dataset) -> Iterator[str]:
    """Each reference names class and instance, not the object itself, and frames from 1 (PS3.3 10.3, 10.8)."""
    own = dataset.get("SOPInstanceUID")
    for element in dataset.iterall():
        if element.VR != "SQ":
            continue
        name = element.keyword or str(keyword_for_tag(element.tag))
        for item in element.value:
            has_class, has_instance = "ReferencedSOPClassUID" in item, "ReferencedSOPInstanceUID" in item
            if has_class != has_instance:
                yield f"{name} has a reference with only one of class and instance"
            if has_instance and item.ReferencedSOPInstanceUID == own:
                yield f"{name} refers to the object itself"
            frames = item.get("ReferencedFrameNumber")
            numbers = frames if isinstance(frames, MultiValue | list) else [frames] if frames is not None else []
            if any(int(number) < 1 for number in numbers):
                yield f"{name} refers to a frame below 1"


def _meta_findings(dataset: Dataset) -> Iterator[str]:
    """The file meta information must name the same class and instance as the dataset (PS3.10 7.1)."""
    meta = getattr(dataset, "file_meta", None)
    if meta is None:
        return
    for in_meta, in_dataset in (
        ("MediaStorageSOPClassUID", "SOPClassUID"),
        ("MediaStorageSOPInstanceUID", "SOPInstanceUID"),
    ):
        if meta.get(in_meta) != dataset.get(in_dataset):
            yield f"{in_meta} differs from {in_dataset}"
    if not meta.get("TransferSyntaxUID"):
        yield "TransferSyntaxUID is missing"
