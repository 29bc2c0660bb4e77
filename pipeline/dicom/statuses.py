"""What the status of a C-STORE (PS3.4 table B.2-1, PS3.7 annex C) and a failure reason of STOW-RS (PS3.18 table I.2-2) mean, in words.

A peer's own comment may quote the patient: it is passed on without any word that could identify somebody.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum

WORDS = {
    0x0105: "no such attribute",
    0x0106: "invalid attribute value",
    0x0110: "processing failure",
    0x0111: "it has an instance of this UID",
    0x0117: "invalid SOP instance",
    0x0118: "no such SOP class",
    0x0119: "class and instance do not match",
    0x0122: "it does not support the SOP class",
    0x0124: "not authorized",
    0x0131: "the transaction's UID is used already",
    0x0210: "duplicate invocation",
    0x0211: "unrecognized operation",
    0x0212: "mistyped argument",
    0x0213: "resource limitation",
    0xC122: "it does not support the transfer syntax",
}
OUT_OF_RESOURCES = range(0xA700, 0xA800)
WRONG_CLASS = range(0xA900, 0xAA00)
NOT_UNDERSTOOD = range(0xC000, 0xD000)
WARNINGS = (0x0001, *range(0xB000, 0xC000))
PASSING = (0x0213, 0xFE00)
COMMENT_CHARACTERS = 64
"""Of ErrorComment, an LO."""
_TELLING = re.compile(r"\^|\d{4}")
_UID = re.compile(r"[0-9]+(\.[0-9]+){3,}")


class Outcome(StrEnum):
    """What a peer did with an object."""

    STORED = "stored"
    REFUSED = "refused"
    """It says that it will not have it."""
    LEFT = "left"
    """It could not be sent, for now."""


def outcome_of(status: int) -> Outcome:
    """What to do about a status."""
    if status == 0 or status in WARNINGS:
        return Outcome.STORED
    return Outcome.LEFT if status in OUT_OF_RESOURCES or status in PASSING else Outcome.REFUSED


def words_of(status: int, comment: str = "", identifying: Iterable[str] = ()) -> str:
    """A status with its meaning; with `comment`, the peer's own words, as `harmless` has them."""
    if status in OUT_OF_RESOURCES:
        meaning = "out of resources"
    elif status in WRONG_CLASS:
        meaning = "data set does not match the SOP class"
    elif status in WORDS:
        meaning = WORDS[status]
    elif status in WARNINGS:
        meaning = "stored with a warning"
    else:
        meaning = "not understood" if status in NOT_UNDERSTOOD else "no known meaning"
    said = harmless(comment, identifying)
    return f"0x{status:04X} {meaning}" + (f" ({said})" if said else "")


def harmless(comment: str, identifying: Iterable[str] = ()) -> str:
    """A peer's comment without control characters, and with `...` for words that are in `identifying` (of any case) or look like a
    name, a date or a number of somebody; UIDs stay."""
    secret = {part.casefold() for value in identifying for part in re.split(r"[\s^=,;:\\]+", value) if len(part) > 1}
    plain = "".join(letter if letter.isprintable() else " " for letter in comment)
    words = (word if _may_stay(word, secret) else "..." for word in plain.split())
    return " ".join(words)[:COMMENT_CHARACTERS]


def _may_stay(word: str, secret: set[str]) -> bool:
    bare = word.strip("'\"()[]{}<>,.;:!?")
    if _UID.fullmatch(bare):
        return True
    parts = [part.casefold() for part in re.split(r"[^\w.-]+", bare)]
    return not _TELLING.search(bare) and not any(part in secret for part in parts)
