"""Values by PS3.5: each against its value representation, its multiplicity (PS3.6) and the character set.

Findings name attributes, never their values. What texts were judged is remembered, because names of devices, codes and UIDs recur from
object to object.
"""

from __future__ import annotations

import datetime
import re
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from pydicom import config
from pydicom.charset import convert_encodings, encode_string
from pydicom.datadict import dictionary_VM
from pydicom.dataelem import DataElement
from pydicom.multival import MultiValue
from pydicom.valuerep import validate_value

from pipeline.dicom.conformance_item import Item, is_empty, name_of

MAXIMUM_UID_CHARACTERS = 64  # PS3.5 9.1
TEXT_VRS = frozenset(
    {"SH", "LO", "ST", "LT", "UC", "UT", "PN"}
)  # PS3.5 6.1.2.3: those that Specific Character Set governs
PARAGRAPH_VRS = frozenset({"ST", "LT", "UT"})  # PS3.5 6.2: these may hold tabs and line ends, too
NUMBERS: Mapping[str, tuple[float, float]] = {
    "US": (0, 2**16 - 1),
    "SS": (-(2**15), 2**15 - 1),
    "UL": (0, 2**32 - 1),
    "SL": (-(2**31), 2**31 - 1),
    "UV": (0, 2**64 - 1),
    "SV": (-(2**63), 2**63 - 1),
    "AT": (0, 2**32 - 1),
}
"""Whole numbers and their ranges (PS3.5 6.2)."""
REMEMBERED_CHARACTERS = 128
"""Longer texts are comments, which hardly recur."""
_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")
_COUNT = re.compile(r"(?P<low>\d+)(-(?P<high>\d+|\d*n))?")
_UNJUDGED = frozenset({"SQ", "UN", "OB", "OD", "OF", "OL", "OV", "OW", "OB or OW"})


def value_findings(root: Item) -> Iterator[str]:
    """What is wrong with single values, at any depth."""
    declared = root.value("SpecificCharacterSet")
    for _, item in root.walk():
        for name in item.broken:
            yield f"{name} cannot be parsed"
        for element in item.elements.values():
            finding = element_finding(element)
            if finding is not None:
                yield finding
            elif element.VR in TEXT_VRS and not is_encodable(element, declared):
                yield f"{name_of(int(element.tag))} has letters that SpecificCharacterSet does not hold"


def is_uid(value: str) -> bool:
    """Whether `value` is a UID by PS3.5 9.1 (so also safe as a file name: digits and single dots, no more than 64)."""
    return len(value) <= MAXIMUM_UID_CHARACTERS and _UID.fullmatch(value) is not None


def element_finding(element: DataElement) -> str | None:
    """What is wrong with one element's value by PS3.5 6.2 and its multiplicity by PS3.6; None where it is right.

    Sequences and binary data are taken as right. An empty value is right here: whether it may be empty is its
    module's say.
    """
    vr = element.VR
    if vr in _UNJUDGED or is_empty(element):
        return None
    value = element.value
    values = list(value) if isinstance(value, MultiValue | list | tuple) else [value]
    if vr in TEXT_VRS and any(_has_control_characters(str(part), vr) for part in values):
        return f"{name_of(int(element.tag))} has control characters"
    if not _are_values(vr, values):
        return f"{name_of(int(element.tag))} holds a value that {vr} does not allow"
    if not _is_count(int(element.tag), len(values)):
        tag = int(element.tag)
        return f"{name_of(tag)} holds {len(values)} values, expected {dictionary_VM(tag)}"
    return None


def is_encodable(element: DataElement, character_set: str | Sequence[str] | None) -> bool:
    """Whether the text of `element` can be written under `character_set`, as DICOM names it (None: plain ASCII)."""
    value = element.value
    text = "\\".join(map(str, value)) if isinstance(value, MultiValue | list) else str(value or "")
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


def _are_values(vr: str, values: Sequence[Any]) -> bool:
    if vr in ("FL", "FD"):
        return all(isinstance(value, int | float) for value in values)
    if vr in NUMBERS:
        low, high = NUMBERS[vr]
        return all(isinstance(value, int) and low <= value <= high for value in values)
    return all(_is_text(vr, str(value)) for value in values)


def _is_text(vr: str, text: str) -> bool:
    return _judged(vr, text) if len(text) <= REMEMBERED_CHARACTERS else _judged.__wrapped__(vr, text)


@lru_cache(maxsize=8192)
def _judged(vr: str, text: str) -> bool:
    if vr == "UI":
        return is_uid(text)
    try:
        validate_value(vr, text, config.RAISE)
    except (ValueError, TypeError, OverflowError):
        return False
    return vr != "DA" or _is_day(text)


def _has_control_characters(text: str, vr: str) -> bool:
    """PS3.5 6.1.3: no others than TAB, LF, FF and CR, and these only where text has lines."""
    if text.isprintable():
        return False
    allowed = "\t\n\f\r" if vr in PARAGRAPH_VRS else ""
    return any(unicodedata.category(letter) == "Cc" and letter not in allowed for letter in text)


def _is_day(value: str) -> bool:
    try:
        datetime.datetime.strptime(value.strip(), "%Y%m%d")
    except ValueError:
        return False
    return True


def _is_count(tag: int, found: int) -> bool:
    low, high, step = _multiplicity(tag)
    return low <= found and (high is None or found <= high) and found % step == 0


@lru_cache(maxsize=4096)
def _multiplicity(tag: int) -> tuple[int, int | None, int]:
    """(fewest, most, a multiple of) by PS3.6: 1, 2-2n, 1-3, 1-n; for private tags and notations that are none of these, any number."""
    try:
        match = _COUNT.fullmatch(dictionary_VM(tag))
    except KeyError:  # no tag of PS3.6
        match = None
    if match is None:
        return 0, None, 1
    low, high = int(match["low"]), match["high"]
    if high is None:
        return low, low, 1
    return (low, None, int(high[:-1] or 1)) if high.endswith("n") else (low, int(high), 1)
