"""Values that take the place of identifying ones, all from the project's key: the same key gives the same values, another key others.

UIDs become UIDs under 2.25, PatientIDs pseudonyms, dates move by days of the patient's own: consistent over files, runs and machines
without a table. Dummy values say nothing and fit their VR. `Patient` is whom a dataset belongs to; `Words` is what of its identity must not
stand in any text that stays.
"""

from __future__ import annotations

import datetime
import re
import unicodedata
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydicom.uid import UID_dictionary

from pipeline.identity import IdentityKey

PSEUDONYM_PREFIX = "RL-"
PSEUDONYM_CHARACTERS = 24
"""Hexadecimal: 96 bits, so that no two of any number of patients collide."""
MOST_DAYS = 3650
"""Dates of a patient move into the past by 1 to so many days: about ten years, as PS3.15 E.3.6 leaves it open."""
STANDARD_ROOT = "1.2.840.10008."
"""Of DICOM's own UIDs, which name kinds of things, never a thing."""
OLDEST_AGE_YEARS = 90
"""From here on ages are told as this one: so few people are older that an age alone may tell who."""
SHORT_WORD, LONG_WORD = 3, 4
"""Characters of a word of an identity from which it counts as a whole word, and as a part of another."""
ID_DIGITS = 5
"""From so many on a number that is a patient's ID is not so by chance."""

_DAY = re.compile(r"(\d{4})[.]?(\d\d)[.]?(\d\d)")
_DATE_TIME = re.compile(r"(\d{8})((?:\d\d){0,3}(?:\.\d{1,6})?(?:[+-]\d{4})?)")
_TIME = re.compile(r"\d\d(\d\d(\d\d(\.\d{1,6})?)?)?")
_OLD_TIME = re.compile(r"(\d\d):(\d\d)(?::(\d\d(?:\.\d{1,6})?))?")
_AGE = re.compile(r"(\d{3})([DWMY])")
_SPLIT = re.compile(r"[^0-9a-z]+")

DUMMIES: dict[str, Any] = {
    **dict.fromkeys(("LO", "SH", "ST", "LT", "UT", "UC", "CS", "AE"), "REMOVED"),
    "PN": "REMOVED^",
    "UR": "urn:removed",
    "AS": "000Y",
    "DA": "19000101",
    "TM": "000000",
    "DT": "19000101000000",
    **dict.fromkeys(("DS", "IS"), "0"),
    **dict.fromkeys(("US", "SS", "UL", "SL", "UV", "SV", "AT"), 0),
    **dict.fromkeys(("FL", "FD"), 0.0),
    **dict.fromkeys(("OB", "OW", "OF", "OD", "OL", "OV", "UN"), b"\0" * 8),
}
"""By VR; UIDs and sequences have none."""


@dataclass(frozen=True)
class Patient:
    """Whom a dataset belongs to. Without a PatientID each study counts as a patient of its own."""

    key: IdentityKey
    patient_id: str
    issuer: str
    study_instance_uid: str

    @property
    def pseudonym(self) -> str:
        """PatientID and PatientName of the de-identified object."""
        return PSEUDONYM_PREFIX + self._keyed("pseudonym").hex()[:PSEUDONYM_CHARACTERS].upper()

    @property
    def days(self) -> int:
        """By which every date moves, into the past."""
        return -1 - int.from_bytes(self._keyed("days")[:8], "big") % MOST_DAYS

    def _keyed(self, purpose: str) -> bytes:
        if not self.patient_id:
            return self.key.keyed(f"{purpose} of a study", self.study_instance_uid)
        return self.key.keyed(purpose, self.issuer, self.patient_id)


def new_uid(key: IdentityKey, uid: str) -> str:
    """The UID (2.25 and a UUID of version 8, PS3.5 B.2, RFC 9562) that stands for this one."""
    return _new_uid(key, uid)


@lru_cache(maxsize=65_536)
def _new_uid(key: IdentityKey, uid: str) -> str:
    number = bytearray(key.keyed("uid", uid)[:16])
    number[6] = number[6] & 0x0F | 0x80
    number[8] = number[8] & 0x3F | 0x80
    return f"2.25.{uuid.UUID(bytes=bytes(number)).int}"


def names_a_kind(uid: str) -> bool:
    """Whether a UID is one of the standard's (SOP classes, transfer syntaxes, coding schemes), not of an instance."""
    return uid in UID_dictionary or (uid.startswith(STANDARD_ROOT) and re.fullmatch(r"[0-9.]{1,64}", uid) is not None)


def moved(value: str, vr: str, days: int) -> str | None:
    """A date, time or date-time of today's form, moved by days; None where it is none."""
    value = value.strip(" \0")
    if vr == "TM":
        old = _OLD_TIME.fullmatch(value)
        value = "".join(part for part in old.groups() if part) if old else value
        return value if _TIME.fullmatch(value) else None
    match = _DAY.fullmatch(value) if vr == "DA" else _DATE_TIME.fullmatch(value)
    if match is None:
        return None
    try:
        day = datetime.datetime.strptime("".join(match.groups()[:3] if vr == "DA" else match.groups()[:1]), "%Y%m%d")
        later = day + datetime.timedelta(days=days)
    except (ValueError, OverflowError):
        return None
    return f"{later:%Y%m%d}".zfill(8) + ("" if vr == "DA" else match[2])


def told_age(value: str) -> str | None:
    """An age of PS3.5 6.2's form, the highest ones told as one; None where it is none."""
    match = _AGE.fullmatch(value.strip())
    if match is None:
        return None
    years = int(match[1]) if match[2] == "Y" else 0
    return f"{OLDEST_AGE_YEARS:03d}Y" if years > OLDEST_AGE_YEARS else match[0]


class Words:
    """What of an identity must not stand in text that stays. Of people each word counts, of places and devices what they are called as a
    whole: their words (Lung Clinic, CT Centre) are those of pictures, too."""

    def __init__(self, people: Iterable[str], things: Iterable[str] = ()) -> None:
        people = {_plain(text) for text in people}
        parts = {part for text in people for part in _SPLIT.split(text)}
        self._whole = frozenset(part for part in parts if len(part) >= SHORT_WORD)
        whole = people | {_plain(text) for text in things}
        self._anywhere = tuple(sorted(part for part in parts | whole if len(part) >= LONG_WORD))

    def stand_in(self, text: str) -> bool:
        """Whether one of them is in `text`, whatever the case or accents."""
        plain = _plain(text)
        return self._within(plain) or any(part in self._whole for part in _SPLIT.split(plain))

    def stand_in_code(self, text: str) -> bool:
        """The same of a code string, in which short words say nothing (MR is a modality, and how a man is addressed)."""
        return self._within(_plain(text))

    def is_id(self, text: str) -> bool:
        """Whether a whole number is one of them as a whole; small ones are so by chance."""
        return len(text) >= ID_DIGITS and text in self._anywhere

    def _within(self, plain: str) -> bool:
        return any(word in plain for word in self._anywhere)


def _plain(text: str) -> str:
    apart = unicodedata.normalize("NFKD", text)
    return "".join(letter for letter in apart if not unicodedata.combining(letter)).casefold().strip()
