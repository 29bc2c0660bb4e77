"""A dataset by PS3.15's Basic Profile and the options: every attribute, at every depth, kept, replaced, emptied or left out.

In: a dataset as pydicom reads it, of unknown origin. Out: a new one that holds nothing but what a rule let pass. The table decides on what
it names. On the rest the rule is the reverse of the standard's: free text, binary data, private and unknown attributes go, unless they are
named in `TECHNICAL` or `TABLES`; numbers, codes, dates and UIDs stay only in their own form, whatever VR the file gives them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import numpy as np
from pydicom.datadict import dictionary_has_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.tag import BaseTag

from pipeline.deidentify_settings import Deidentification, folded
from pipeline.dicom.conformance_item import MAXIMUM_DEPTH, tag_of
from pipeline.dicom.conformance_tables import Level
from pipeline.dicom.deidentification_attributes import CODE, OVERLAY, PUBLIC_SCHEMES, SAFE_PRIVATE, TABLES, TECHNICAL
from pipeline.dicom.deidentification_reading import dictionary_vr, read_element, values_of
from pipeline.dicom.deidentification_table import Action, action_of, is_descriptor, is_longitudinal, retained_by
from pipeline.dicom.deidentification_values import DUMMIES, Patient, Words, moved, names_a_kind, new_uid, told_age

_TEXT = frozenset({"LO", "SH", "ST", "LT", "UT", "UC", "UR", "AE", "PN", "AS"})
_DATES = frozenset({"DA", "DT", "TM"})
_NUMBERS = frozenset({"US", "SS", "UL", "SL", "UV", "SV", "FL", "FD", "AT", "US or SS", "US or OW"})
_BINARY = frozenset({"OB", "OW", "OF", "OD", "OL", "OV", "UN", "OB or OW", "US or OW", "US or SS or OW"})
_DECIMAL = re.compile(r" *[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)? *", re.ASCII)
_WHOLE = re.compile(r" *[+-]?\d{1,11} *", re.ASCII)
_CODE_STRING = re.compile(r"[A-Z0-9_ ]{0,16}", re.ASCII)
_CODE_VALUE = re.compile(r"[A-Za-z0-9.\-_:/+%\[\]{}()'\"*^ ]{0,64}", re.ASCII)
_ZONE = re.compile(r"[+-](0\d|1[0-4])[0-5]\d", re.ASCII)
_LINE = re.compile(r"[^\x00-\x1f\x7f\\]{0,64}")
"""Technical text: one short line."""
_KEPT_UIDS = frozenset({tag_of("CodingSchemeUID"), tag_of("ContextUID"), tag_of("MappingResourceUID")})
_PIXEL_GROUP, _FIRST_TRAILING_GROUP = 0x7FE0, 0xFFFA
_HL7_ROOT = "2.16.840.1.113883."
_COUNTED = frozenset({tag_of("SharedFunctionalGroupsSequence"), tag_of("PerFrameFunctionalGroupsSequence")})
_ANSWERS = frozenset(
    tag_of(keyword)
    for keyword in (
        *(
            "PatientIdentityRemoved",
            "DeidentificationMethod",
            "DeidentificationMethodCodeSequence",
            "SpecificCharacterSet",
        ),
        *("LongitudinalTemporalInformationModified", "EncryptedAttributesSequence"),
    )
)
"""What is written anew at the end."""


@dataclass(frozen=True)
class Rules:
    """The options, the key's patient, and the words of the identity; `clean` applies them."""

    settings: Deidentification
    patient: Patient
    words: Words
    big_endian: bool = False
    """Whether the dataset's words of 16 bits are, which are written little endian."""
    told: dict[str, str] = field(default_factory=dict, compare=False)
    """Grows while it cleans: which UID each one in the result stands for."""

    @cached_property
    def _retained(self) -> frozenset[int]:
        kept = [
            retained_by(option)
            for option in ("device", "institution", "patient", "uids")
            if option in self.settings.keep
        ]
        return frozenset().union(*kept)

    @cached_property
    def _descriptors(self) -> frozenset[str]:
        return frozenset(self.settings.descriptors)

    def clean(self, dataset: Dataset, level: Level | None, depth: int = 0) -> Dataset:
        """What may stay of a dataset or an item, as a new one. `level`: what its IOD says of it; None where nothing is known.

        Raises RecursionError for sequences nested deeper than any that means something.
        """
        if depth > MAXIMUM_DEPTH:
            raise RecursionError
        kept = Dataset()
        public = depth > 0 and self._is_public_code(dataset)
        for tag in sorted(dataset.keys()):
            number = int(tag)
            if tag.is_private or not dictionary_has_tag(tag) or number in _ANSWERS or not _may_be(tag):
                continue
            element = self._element(dataset, tag, level, depth, public)
            if element is not None:
                kept.add(element)
        if "overlays" in self.settings.keep and depth == 0:
            self._keep_overlays(dataset, kept)
        if "safe-private" in self.settings.keep:
            _keep_private(dataset, kept)
        return kept

    def _element(
        self, dataset: Dataset, tag: BaseTag, level: Level | None, depth: int, public: bool
    ) -> DataElement | None:
        """The attribute as it may stand in the result; None where it may not."""
        number, action = int(tag), action_of(int(tag))
        required = None if level is None else level.types.get(number, "3")
        vr = dictionary_vr(number)
        if action is None or self._is_retained(number, vr):
            found = self._kept(dataset, tag, vr, level, depth, public)
            return found if found is not None else _instead(number, vr, required)
        text = self._descriptor(dataset, tag)
        if text is not None:
            return text
        if action is Action.UID or (action is Action.DUMMY and vr == "UI"):
            return self._uids(dataset, tag)
        if action is Action.REFERENCES:
            return self._sequence(dataset, tag, level, depth)
        if action is Action.REMOVE:
            due = level.required.get(number, ("3", ""))[0] if level is not None and depth == 0 else "3"
            return _instead(number, vr, due)
        if action is Action.EMPTY:
            return _instead(number, vr, "1" if required == "1" else "2")
        if action is Action.DUMMY:
            return self._sequence(dataset, tag, level, depth) if vr == "SQ" else _instead(number, vr, "1")
        return self._by_type(action, dataset, tag, level, depth, required)

    def _by_type(
        self, action: Action, dataset: Dataset, tag: BaseTag, level: Level | None, depth: int, required: str | None
    ) -> DataElement | None:
        """Of several actions that which the IOD's type needs; where the IOD is not known, the one that leaves most in place."""
        choices = str(action).split("/")
        wanted = {"1": "D", "2": "Z", "3": "X"}[required[0]] if required else choices[-1]
        chosen = wanted if wanted in choices else choices[0] if wanted == "X" else choices[-1]
        number, vr = int(tag), dictionary_vr(int(tag))
        if chosen == "D" and vr == "SQ":
            return self._sequence(dataset, tag, level, depth)
        return _instead(number, vr, {"D": "1", "Z": "2", "X": "3"}[chosen])

    def _is_retained(self, number: int, vr: str) -> bool:
        keep = self.settings.keep
        if number in self._retained:
            return True
        if is_longitudinal(number):
            return "dates" in keep or "shifted-dates" in keep
        return vr == "UI" and "uids" in keep and action_of(number) is not Action.REMOVE

    def _kept(
        self, dataset: Dataset, tag: BaseTag, vr: str, level: Level | None, depth: int, public: bool
    ) -> DataElement | None:
        """An attribute that the table does not name, or that an option keeps, if its value has the form that its VR promises."""
        number = int(tag)
        if vr == "SQ":
            return self._sequence(dataset, tag, level, depth)
        if vr == "UI":
            return self._uids(dataset, tag)
        if vr in _BINARY and vr not in _NUMBERS:
            return self._table(dataset, tag) if number in _named(TABLES) else None
        element = read_element(dataset, tag)
        if element is None:
            return None
        values = values_of(element)
        if values is None or (vr in _NUMBERS and number in _named(TABLES)):
            return self._table(dataset, tag) if number in _named(TABLES) else None
        if not values:
            return DataElement(tag, _single(vr), "" if vr not in _NUMBERS else None)
        if vr in _DATES:
            days = self.patient.days if "shifted-dates" in self.settings.keep else 0
            told = [moved(str(value), vr, days) for value in values] if is_longitudinal(number) else [None]
        elif vr == "AS":
            told = [told_age(str(value)) for value in values] if number in self._retained else [None]
        elif vr in _TEXT:
            told = [self._text(number, str(value), public) for value in values]
        elif vr in ("DS", "IS"):
            told = [self._number(str(value), vr) for value in values]
        elif vr == "CS":
            told = [self._code_string(str(value)) for value in values]
        else:
            return element if element.VR in _NUMBERS and all(isinstance(one, int | float) for one in values) else None
        return None if None in told else DataElement(tag, vr, told if len(told) > 1 else told[0])

    def _text(self, number: int, text: str, public: bool) -> str | None:
        """Text that may stay: a device's about itself, a public code's, what an option keeps, or what the user named."""
        text = text.strip(" \0")
        if number == tag_of("TimezoneOffsetFromUTC"):
            return text if _ZONE.fullmatch(text) else None
        if is_descriptor(number) and folded(text) in self._descriptors:
            return text
        if number in self._retained:
            return None if self.words.stand_in(text) or not text.isprintable() else text
        of_code = public and number in _named(CODE) and (number == tag_of("CodeMeaning") or _CODE_VALUE.fullmatch(text))
        if not of_code and number not in _named(TECHNICAL):
            return None
        return text if _LINE.fullmatch(text) and text.isprintable() and not self.words.stand_in(text) else None

    def _number(self, text: str, vr: str) -> str | None:
        """A number, which is nobody's ID: some devices count series from it."""
        text = text.strip(" \0")
        if (_DECIMAL if vr == "DS" else _WHOLE).fullmatch(text) is None:
            return None
        return None if vr == "IS" and self.words.is_id(text) else text

    def _code_string(self, text: str) -> str | None:
        """A code string, which is capitals, and no name."""
        text = text.strip(" \0")
        return text if _CODE_STRING.fullmatch(text) and not self.words.stand_in_code(text) else None

    def _descriptor(self, dataset: Dataset, tag: BaseTag) -> DataElement | None:
        """A description whose every value the user named."""
        if not self._descriptors or not is_descriptor(int(tag)):
            return None
        element = read_element(dataset, tag)
        values = None if element is None else values_of(element)
        if not values or not all(folded(str(value)) in self._descriptors for value in values):
            return None
        told = [str(value).strip(" \0") for value in values]
        return DataElement(tag, dictionary_vr(int(tag)), told if len(told) > 1 else told[0])

    def _uids(self, dataset: Dataset, tag: BaseTag) -> DataElement | None:
        """UIDs of instances replaced, of kinds kept; of other coding schemes kept where they are in HL7's registry."""
        element = read_element(dataset, tag)
        values = None if element is None else values_of(element)
        if values is None:
            return None
        told = []
        for value in values:
            uid = str(value).strip(" \0")
            if int(tag) in _KEPT_UIDS and not names_a_kind(uid):
                if not (uid.startswith(_HL7_ROOT) and _is_uid(uid)):
                    return None
                told.append(uid)
            else:
                told.append(self.uid(uid, retained=self._is_retained(int(tag), "UI")))
        return DataElement(tag, "UI", told if len(told) > 1 else "".join(told))

    def uid(self, uid: str, *, retained: bool) -> str:
        """What stands for a UID: itself where it names a kind or an option keeps it, '' for none."""
        uid = uid.strip(" \0")
        if not uid or names_a_kind(uid):
            return uid
        new = uid if retained and _is_uid(uid) else new_uid(self.patient.key, uid)
        self.told[new] = uid
        return new

    def _sequence(self, dataset: Dataset, tag: BaseTag, level: Level | None, depth: int) -> DataElement | None:
        """Every item cleaned. Codes of no public scheme are left out; of other items none, as frames are counted by them."""
        element = read_element(dataset, tag)
        if element is None or element.VR != "SQ":
            return None
        within = None if level is None else level.sequences.get(int(tag))
        if within is None and level is not None:
            within = Level()
        items = [
            self.clean(item, within, depth + 1)
            for item in element.value or []
            if int(tag) in _COUNTED or not _is_code(item) or self._is_public_code(item)
        ]
        if element.value and not items:
            return _instead(int(tag), "SQ", None if level is None else level.types.get(int(tag), "3"))
        return DataElement(tag, "SQ", Items(items))

    def _table(self, dataset: Dataset, tag: BaseTag) -> DataElement | None:
        """A lookup table's element, whichever of its VRs it was read in."""
        element = read_element(dataset, tag)
        if element is None or not (isinstance(element.value, bytes) or element.VR in ("US", "SS")):
            return None
        return DataElement(tag, "OW", self._words(element.value)) if isinstance(element.value, bytes) else element

    def _words(self, data: bytes) -> bytes:
        """Words of 16 bits, little endian."""
        even = data + b"\0" * (len(data) % 2)
        return np.frombuffer(even, ">u2").astype("<u2").tobytes() if self.big_endian else even

    def _keep_overlays(self, dataset: Dataset, kept: Dataset) -> None:
        """Planes that are bits of their own, whole; what is said of them in words goes, and those in the unused bits of pixels too."""
        for group in range(0x6000, 0x6100, 2):
            plane = dict(_plane(dataset, group))
            if not {0x10, 0x11, 0x50, 0x3000} <= plane.keys() or _first(plane.get(0x102)) not in (0, None):
                continue
            rows, columns = _first(plane[0x10]), _first(plane[0x11])
            if not isinstance(rows, int) or not isinstance(columns, int) or rows * columns < 1:
                continue
            bits = rows * columns * int(_first(plane.get(0x15)) or 1)
            data = self._words(plane[0x3000].value) if plane[0x3000].VR == "OW" else plane[0x3000].value
            if len(data) * 8 < bits:
                continue
            clean = bytearray(data[: -(-bits // 8)])
            if bits % 8:
                clean[-1] &= (1 << bits % 8) - 1  # nothing beyond the last pixel
            for place, element in plane.items():
                value: Any = bytes(clean) + b"\0" * (len(clean) % 2) if place == 0x3000 else element.value
                kept.add(DataElement(BaseTag(group << 16 | place), OVERLAY[place], value))

    def _is_public_code(self, item: Dataset) -> bool:
        if not _is_code(item):
            return False
        element = read_element(item, BaseTag(tag_of("CodingSchemeDesignator")))
        return element is not None and str(element.value).strip() in PUBLIC_SCHEMES


def _is_code(item: Dataset) -> bool:
    return any(keyword in item for keyword in ("CodeMeaning", "CodeValue", "LongCodeValue", "URNCodeValue"))


def _may_be(tag: BaseTag) -> bool:
    """Not a group length, pixels, what follows them, or a repeating group: curves never stay, overlays by a rule of their own."""
    repeating = 0x5000 <= tag.group <= 0x50FF or 0x6000 <= tag.group <= 0x60FF
    return (
        bool(tag.element)
        and 0x0008 <= tag.group < _FIRST_TRAILING_GROUP
        and tag.group != _PIXEL_GROUP
        and not repeating
    )


def _is_uid(uid: str) -> bool:
    return re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+", uid, re.ASCII) is not None and len(uid) <= 64


# --- what takes a place


def _instead(number: int, vr: str, required: str | None) -> DataElement | None:
    """Nothing, an empty value or a dummy, as the type needs it ('1C' as '1': it was there); None where nothing may stand."""
    if required is None or required.startswith("3"):
        return None
    tag, one = BaseTag(number), _single(vr)
    if vr == "SQ":
        return DataElement(tag, "SQ", Items([]))
    if required.startswith("2") or one == "UI":
        return DataElement(tag, one, b"" if one in _BINARY else None if one in _NUMBERS else "")
    return DataElement(tag, one, DUMMIES[one])


def _single(vr: str) -> str:
    """Of several VRs of the dictionary the one to write an empty or dummy value in."""
    return {"US or SS": "US", "US or OW": "US", "US or SS or OW": "US", "OB or OW": "OB"}.get(vr, vr)


@cache
def _named(keywords: Sequence[str]) -> frozenset[int]:
    return frozenset(map(tag_of, keywords))


# --- repeating and private groups


def _plane(dataset: Dataset, group: int) -> Iterator[tuple[int, DataElement]]:
    for place, vr in OVERLAY.items():
        tag = BaseTag(group << 16 | place)
        if tag not in dataset:
            continue
        try:
            element = dataset[tag]
        except Exception:  # as in read_element
            continue
        if place == 0x3000:
            good = isinstance(element.value, bytes)
        elif vr == "CS":
            good = str(element.value) in ("G", "R")
        elif vr == "IS":
            good = _WHOLE.fullmatch(str(element.value)) is not None
        else:
            good = vr == element.VR and all(isinstance(value, int) for value in values_of(element) or ["none"])
        if good:
            yield place, element


def _first(element: DataElement | None) -> Any:
    if element is None:
        return None
    values = values_of(element)
    return values[0] if values else None


def _keep_private(dataset: Dataset, kept: Dataset) -> None:
    """The known numbers, each in its creator's block."""
    for creator, group, place, vr in sorted(SAFE_PRIVATE):
        try:
            block = dataset.private_block(group, creator)
            element = block[place]
            values = values_of(element)
        except Exception:  # not there, or not to be read
            continue
        if vr in ("DS", "IS"):
            fits = values and all((_DECIMAL if vr == "DS" else _WHOLE).fullmatch(str(value)) for value in values)
        else:
            fits = values and vr == element.VR and all(isinstance(value, int | float) for value in values)
        if fits:
            value = [str(one) for one in values or []] if vr in ("DS", "IS") else element.value
            kept.private_block(group, creator, create=True).add_new(place, vr, value)
