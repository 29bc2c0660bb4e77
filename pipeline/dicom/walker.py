"""A header walker of our own, for ordinary files: from the preamble to the pixel data without reading what is not wanted.

In: a window (`size`, `pixels(offset, count)`). Out: the raw values of `header_values.WANTED` and where the pixel data lie, exactly
as pydicom finds them, or None for whatever is unusual: then pydicom must read the file (header_by_pydicom). Usual is: preamble and
meta information, explicit or implicit VR little endian in the encoding that the meta information names, VRs of the standard,
sequences of any kind, and a header that lies within the file. What to do at an
element is remembered by its first 8 bytes, which files of a series repeat: one that is not wanted costs one look into a dictionary.
"""

from __future__ import annotations

import re
import struct
from functools import lru_cache
from typing import NamedTuple, Protocol

from pipeline.dicom.header_values import BINARY, DIRECTORY_TAGS, ENCAPSULATED_SYNTAXES, WANTED

FIRST_BYTES = 8192
"""Read at once; headers of CT, MR and CR images are 1,500 to 8,000 bytes long."""
MOST_SEQUENCE_BYTES = 2**20
"""Of a sequence of undefined length, which has to be walked; longer ones are pydicom's."""
MOST_READS = 64
"""Of `FIRST_BYTES`; a header of more is pydicom's, which has a budget."""
MOST_VALUE_BYTES = 512
"""Of a wanted value; the standard allows 64 characters a value, and sixteen numbers where there are several."""
DEEPEST = 16
"""Of nested sequences; pydicom's own recursion ends at about 200."""
STEPS_KEPT = 16_384

LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
"""With 2 reserved bytes and 4 of length in explicit VR (PS3.5 7.1.2)."""
SHORT_VRS = frozenset(
    (
        *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN"),
        *(b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"),
    )
)
PIXEL_VRS = {0x7FE00008: (b"OF",), 0x7FE00009: (b"OD",), 0x7FE00010: (b"OB", b"OW")}
UNDEFINED = 0xFFFFFFFF

_IMPLICIT = "1.2.840.10008.1.2"
_SYNTAXES = {
    name.encode() + bytes(len(name) % 2): name
    for name in (_IMPLICIT, "1.2.840.10008.1.2.1", *sorted(ENCAPSULATED_SYNTAXES))
}
_UID = re.compile(rb"[0-9.]{1,64}\0?")
_DIRECTORY_CLASS = b"1.2.840.10008.1.3.10"
_META_START = b"DICM\x02\0\0\0UL\x04\0"
_META_END = 144  # of the group length, the first element
_META_VRS = (b"UI", b"SH", b"AE")
_VERSION = b"\x02\0\x01\0OB\0\0"  # FileMetaInformationVersion: 4 bytes of length follow, and as a rule 2 of value
_META_CLASS, _META_SYNTAX, _META_VERSION, _IMPLICIT_START, _EXPLICIT_START = 1, 2, 3, -1, -2
_META_ACTIONS = {b"\x02\0\x02\0UI": _META_CLASS, b"\x02\0\x10\0UI": _META_SYNTAX}

_ITEM, _ITEM_END, _SEQUENCE_END = b"\xfe\xff\0\xe0", b"\xfe\xff\x0d\xe0", b"\xfe\xff\xdd\xe0"
_DELIMITERS = b"\xfe\xff"  # their group
_PLAIN_SETS = (b"", b"ISO_IR 100", b"ISO_IR 192")  # of an item within a sequence: nothing to convert, nothing to fail


def _raw_tag(tag: int) -> bytes:
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF)


CHARACTER_SET = len(WANTED) + 1
_PLACES = {_raw_tag(tag): place for place, (tag, _) in enumerate(WANTED.values(), 1)}
_PLACES[_raw_tag(0x00080005)] = CHARACTER_SET
_VRS = {place: vr for place, (_, vr) in enumerate(WANTED.values(), 1)} | {CHARACTER_SET: "CS"}
_PIXELS = {_raw_tag(tag): (tag, vrs) for tag, vrs in PIXEL_VRS.items()}
_DIRECTORY = frozenset(map(_raw_tag, DIRECTORY_TAGS))

_SKIP, _LONG, _PIXEL_DATA, _SEQUENCE, _SHORT, _UNUSUAL = 0, -1, -2, -3, -4, -5
"""What to do with an element that is not wanted; a wanted one has its place in the list of values, from 1."""


class Source(Protocol):
    """A file: its size, and any bytes of it, fewer at its end."""

    size: int

    def pixels(self, offset: int, count: int) -> bytes: ...


class Walked(NamedTuple):
    """`raws`: of each of `WANTED` the bytes, None where it is absent. The rest is about the pixel data element."""

    raws: list[bytes | None]
    character_set: bytes | None
    transfer_syntax: str
    tag: int
    length: int
    offset: int


class _Unusual(Exception):
    """Something that pydicom shall read."""


class _Short(Exception):
    """The bytes at hand end within a sequence."""


_Step = tuple[int, int]
"""What to do at an element, and by how many bytes the next one comes after its beginning."""


def walk(source: Source) -> Walked | None:
    """The ordinary file's raw values and pixel data element; None where pydicom shall read it."""
    try:
        return _Walk(source).to_pixels()
    except _Unusual:
        return None


class _Walk:
    """The bytes at hand, `buffer`, which begin at `base` of the file."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.base = 0
        self.buffer = source.pixels(0, FIRST_BYTES)
        self.reads = 1
        self.syntax, self.start = _meta(self.buffer)
        self.implicit = self.syntax == _IMPLICIT
        self.steps = _IMPLICIT_STEPS if self.implicit else _EXPLICIT_STEPS

    def to_pixels(self) -> Walked:
        """The loop over all elements: what it does in vain here it does a hundred times a file."""
        steps, buffer, at = self.steps, self.buffer, self.start
        raws: list[bytes | None] = [None] * (CHARACTER_SET + 1)
        last, end = -1, len(buffer)
        while True:
            try:
                while True:
                    action, size = steps[buffer[at : at + 8]]
                    if action > 0:
                        raws[action] = buffer[at + 8 : at + size]
                        last = at
                    elif action:
                        length = int.from_bytes(buffer[at + 8 : at + 12], "little")
                        if action != _LONG or length == UNDEFINED or at + 12 > end:
                            break
                        at += length
                    at += size
            except KeyError:
                _learn(buffer[at : at + 8], self.implicit)
                continue
            if action == _PIXEL_DATA and at + size <= end:
                return self._found(raws, at, size)
            at = self._unordinary(action, at, last)
            buffer, last, end = self.buffer, -1, len(self.buffer)

    def _found(self, raws: list[bytes | None], at: int, size: int) -> Walked:
        tag, _ = _PIXELS[self.buffer[at : at + 4]]
        length = int.from_bytes(self.buffer[at + size - 4 : at + size], "little")
        return Walked(raws[1:CHARACTER_SET], raws[CHARACTER_SET], self.syntax, tag, length, self.base + at + size)

    def _unordinary(self, action: int, at: int, last: int) -> int:
        """Where the walk goes on: after a sequence, or in bytes read anew. `last`: the wanted element met last."""
        if action == _UNUSUAL:
            raise _Unusual
        size = 8 if self.implicit else 12
        if action == _SHORT or at + size > len(self.buffer):
            # Of the element before, the value may lie beyond the bytes at hand: then it is read again.
            overran = at > len(self.buffer) and last >= 0 and last + self._size_at(last) == at
            return self._read(last if overran else at, FIRST_BYTES)
        if not self.implicit and self.buffer[at + 4 : at + 6] not in (b"SQ", b"UN"):
            raise _Unusual
        return self._after_sequence(at, size)

    def _size_at(self, at: int) -> int:
        return _step(self.buffer[at : at + 8], self.implicit)[1]

    def _read(self, at: int, count: int) -> int:
        """Has the bytes at hand begin at `at`; returns that place in them."""
        self.base += at
        self.reads += 1
        no_more = at == 0 and count <= len(self.buffer)
        if no_more or self.reads > MOST_READS or self.base + 8 > self.source.size:
            raise _Unusual
        self.buffer = self.source.pixels(self.base, count)
        return 0

    def _after_sequence(self, at: int, size: int) -> int:
        count = FIRST_BYTES
        while True:
            try:
                if self.implicit and not _is_sequence(self.buffer, at):
                    raise _Unusual
                return _after_items(self.buffer, at + size, self.implicit, 0)
            except _Short:
                if count > MOST_SEQUENCE_BYTES or self.base + len(self.buffer) >= self.source.size:
                    raise _Unusual from None
                count *= 4
                at = self._read(at, count)


def _meta(buffer: bytes) -> tuple[str, int]:
    """The transfer syntax that the file meta information (PS3.10 7.1) names, and where it ends: at another group.

    There the data set begins at once (no command group), in the encoding that is named.
    """
    if buffer[128:140] != _META_START:
        raise _Unusual
    at, syntax, media_class = _META_END, b"", b"1"
    while True:
        head = buffer[at : at + 8]
        action, size = _META_STEPS.get(head) or _learn_meta(head)
        if action == _META_SYNTAX:
            syntax = buffer[at + 8 : at + size]
        elif action == _META_CLASS:
            media_class = buffer[at + 8 : at + size]
        elif action == _META_VERSION and buffer[at + 8 : at + 12] != b"\x02\0\0\0":
            raise _Unusual
        elif action < 0:
            break
        at += size
    name = _SYNTAXES.get(syntax)
    if name is None or action != (_IMPLICIT_START if name == _IMPLICIT else _EXPLICIT_START):
        raise _Unusual
    if not _is_class(media_class):
        raise _Unusual
    return name, at


def _learn_meta(head: bytes) -> _Step:
    if len(_META_STEPS) >= STEPS_KEPT:
        _META_STEPS.clear()
    step = _META_STEPS[head] = _meta_step(head)
    return step


def _meta_step(head: bytes) -> _Step:
    if len(head) < 8 or head[:2] == b"\0\0":
        return (_UNUSUAL, 0)
    if head[:2] != b"\x02\0":
        return (_IMPLICIT_START if _looks_implicit(head, 0) else _EXPLICIT_START, 0)
    if head == _VERSION:
        return (_META_VERSION, 14)
    if head[4:6] not in _META_VRS:
        return (_UNUSUAL, 0)
    return (_META_ACTIONS.get(head[:6], _SKIP), 8 + int.from_bytes(head[6:], "little"))


@lru_cache(256)
def _is_class(media_class: bytes) -> bool:
    return bool(_UID.fullmatch(media_class)) and not media_class.startswith(_DIRECTORY_CLASS)


def _looks_implicit(buffer: bytes, at: int) -> bool:
    """No two capital letters where the VR would be: pydicom's way to tell."""
    return not (0x40 < buffer[at + 4] < 0x5B and 0x40 < buffer[at + 5] < 0x5B)


_META_STEPS: dict[bytes, _Step] = {}
_EXPLICIT_STEPS: dict[bytes, _Step] = {}
_IMPLICIT_STEPS: dict[bytes, _Step] = {}
"""An element's first 8 bytes → its step."""


def _step(head: bytes, implicit: bool) -> _Step:
    return (_IMPLICIT_STEPS if implicit else _EXPLICIT_STEPS).get(head) or _learn(head, implicit)


def _learn(head: bytes, implicit: bool) -> _Step:
    steps = _IMPLICIT_STEPS if implicit else _EXPLICIT_STEPS
    if len(steps) >= STEPS_KEPT:
        steps.clear()
    step = steps[head] = _implicit_step(head) if implicit else _explicit_step(head)
    return step


def _explicit_step(head: bytes) -> _Step:
    tag, vr, length = head[:4], head[4:6], int.from_bytes(head[6:], "little")
    place = _PLACES.get(tag, _SKIP)
    if len(head) < 8:
        return (_SHORT, 0)
    if tag in _PIXELS:
        return (_PIXEL_DATA if vr in _PIXELS[tag][1] else _UNUSUAL, 12)
    if tag in _DIRECTORY or tag[:2] == _DELIMITERS:
        return (_UNUSUAL, 0)
    if vr in LONG_VRS and not place:
        return (_LONG, 12)
    if vr not in SHORT_VRS:
        return (_UNUSUAL, 0)
    if place and (length > MOST_VALUE_BYTES or not _reads_as(vr.decode(), place)):
        return (_UNUSUAL, 0)
    return (place, 8 + length)


def _implicit_step(head: bytes) -> _Step:
    tag, length = head[:4], int.from_bytes(head[4:], "little")
    place = _PLACES.get(tag, _SKIP)
    if len(head) < 8:
        return (_SHORT, 0)
    if tag in _PIXELS:
        return (_PIXEL_DATA, 8)
    if tag in _DIRECTORY or tag[:2] == _DELIMITERS or (place and length > MOST_VALUE_BYTES):
        return (_UNUSUAL, 0)
    return (_SEQUENCE, 8) if length == UNDEFINED else (place, 8 + length)


def _reads_as(vr: str, place: int) -> bool:
    """Whether a value written with this VR means what the standard's VR says: an integer's bytes depend on it."""
    expected = _VRS[place]
    return vr == expected or (place != CHARACTER_SET and (expected not in ("US", "IS") or vr not in BINARY))


def _after_items(buffer: bytes, at: int, implicit: bool, depth: int) -> int:
    """Where a sequence of undefined length ends whose first item begins at `at` (PS3.5 7.5)."""
    if depth > DEEPEST:
        raise _Unusual
    while True:
        head = buffer[at : at + 8]
        if len(head) < 8:
            raise _Short
        at += 8
        if head[:4] == _SEQUENCE_END:
            return at
        if head[:4] != _ITEM:
            raise _Unusual
        length = int.from_bytes(head[4:], "little")
        if length:
            if at + 8 > len(buffer):
                raise _Short
            end = None if length == UNDEFINED else at + length
            at = _after_item(buffer, at, end, implicit or _looks_implicit(buffer, at), depth)


def _after_item(buffer: bytes, at: int, end: int | None, implicit: bool, depth: int) -> int:
    """Where an item ends: at `end`, or after its delimiter. An item may be implicit within explicit VR (PS3.5 6.2.2)."""
    while at != end:
        head = buffer[at : at + 8]
        if head[:4] == _ITEM_END and end is None and len(head) == 8:
            return at + 8
        action, size = _step(head, implicit)
        if action == _UNUSUAL or (end is not None and at > end):
            raise _Unusual
        if action == _SHORT or at + size > len(buffer):
            raise _Short
        if action == CHARACTER_SET and buffer[at + 8 : at + size] not in _PLAIN_SETS:
            raise _Unusual
        if action >= 0:
            at += size
            continue
        length = int.from_bytes(buffer[at + size - 4 : at + size], "little")
        at += size
        if length != UNDEFINED:
            at += length
        elif _is_sequence(buffer, at - 8) if implicit else head[4:6] in (b"SQ", b"UN"):
            at = _after_items(buffer, at, implicit, depth + 1)
        else:
            raise _Unusual
    return at


def _is_sequence(buffer: bytes, at: int) -> bool:
    """Whether an element of undefined length in implicit VR is a sequence: by the dictionary, else by what follows."""
    following = buffer[at + 8 : at + 12]
    if len(following) < 4:
        raise _Short
    vr = _vr_in_dictionary(struct.unpack_from("<HH", buffer, at))
    return following == _ITEM if vr is None else vr == "SQ"


@lru_cache(1024)
def _vr_in_dictionary(tag: tuple[int, int]) -> str | None:
    from pydicom.datadict import dictionary_VR

    try:
        return dictionary_VR(tag)
    except KeyError:
        return None
