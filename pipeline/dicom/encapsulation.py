"""Encapsulated pixel data: which bytes of the file make up which frame (PS3.5 A.4).

Only item headers and first bytes are read, so that one frame of a large file costs its own bytes. A frame may be spread
over several items, with an Extended or Basic Offset Table, or with nothing but the codestreams' own start markers to tell
frames apart. A file that ends before its sequence delimiter is `TRUNCATED`; one with more or fewer frames than its header
promises is `SIZE_MISMATCH`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise

from pipeline.dicom.bounded import Window
from pipeline.dicom.pixel_element import ITEM, SEQUENCE_DELIMITER, UNDEFINED_LENGTH, PixelElement
from pipeline.errors import Rejected, RejectReason

Range = tuple[int, int]
"""(offset in the file, number of bytes)"""

_ITEM_HEADER_BYTES = 8
_FRAME_STARTS = (
    b"\xff\xd8\xff",
    b"\xff\x4f\xff\x51",
    b"\x00\x00\x00\x0cjP  ",
    b"\x00\x00\x00\x0cJXL ",
)  # SOI and a marker, SOC and SIZ, a JP2 or JPEG XL box; a bare JPEG XL starts with two bytes, which occur within one, too


def locate_frames(
    window: Window, element: PixelElement, frames: int, extended_offsets: object, *, marked: bool = True
) -> tuple[tuple[Range, ...], ...]:
    """One tuple of ranges a frame. `extended_offsets`: the value of (7FE0,0001); what is not bytes is no table.
    `marked`: a frame begins with its codestream's start marker, by which frames are told apart.

    Raises Rejected: TRUNCATED, MALFORMED, SIZE_MISMATCH.
    """
    table, *items = _items(window, element)
    if len(items) < frames:
        raise Rejected(RejectReason.SIZE_MISMATCH, f"{frames} frames promised, {len(items)} items of pixel data there")
    codestreams = [number for number, (offset, _) in enumerate(items) if marked and _starts_codestream(window, offset)]
    if len(codestreams) > frames:
        raise Rejected(RejectReason.SIZE_MISMATCH, f"{frames} frames promised, {len(codestreams)} codestreams there")
    if len(items) == frames:
        return tuple((item,) for item in items)
    by_table = _by_offset_table(items, _offsets(window, table, extended_offsets), frames)
    firsts = by_table or ([0] if frames == 1 else codestreams)
    if len(firsts) != frames or firsts[0] != 0:
        raise Rejected(
            RejectReason.SIZE_MISMATCH, f"{len(items)} items of pixel data cannot be told apart into {frames} frames"
        )
    return tuple(tuple(items[first:after]) for first, after in pairwise([*firsts, len(items)]))


def read_range(window: Window, part: Range) -> bytes:
    """The bytes of a range. Raises Rejected (TRUNCATED) where the file ends first."""
    offset, length = part
    if offset + length > window.size:
        raise Rejected(
            RejectReason.TRUNCATED, f"an item of pixel data says {length} bytes, more than the file has left"
        )
    data = window.pixels(offset, length)
    if len(data) < length:
        raise Rejected(RejectReason.TRUNCATED, "the file has become shorter while it was read")
    return data


def _items(window: Window, element: PixelElement) -> list[Range]:
    """The value of each item, the Basic Offset Table first; pixel data of defined length end with it, undelimited."""
    found: list[Range] = []
    position = element.offset
    end = window.size if element.length == UNDEFINED_LENGTH else element.offset + element.length
    while position < end or element.length == UNDEFINED_LENGTH:
        group, number, length = struct.unpack("<HHL", read_range(window, (position, _ITEM_HEADER_BYTES)))
        tag = group << 16 | number
        position += _ITEM_HEADER_BYTES
        if tag == SEQUENCE_DELIMITER:
            break
        if tag != ITEM:
            raise Rejected(RejectReason.MALFORMED, "no item where the compressed pixel data say there is one")
        if position + length > window.size:
            raise Rejected(RejectReason.TRUNCATED, f"the file ends within item {len(found)} of its pixel data")
        found.append((position, length))
        position += length
    if not found:
        raise Rejected(RejectReason.MALFORMED, "encapsulated pixel data without an item")
    return found


def _starts_codestream(window: Window, offset: int) -> bool:
    return window.pixels(offset, 8).startswith(_FRAME_STARTS)


def _offsets(window: Window, table: Range, extended: object) -> Sequence[int]:
    """Offset of each frame's first item from the first item; the extended table goes before the basic one."""
    if isinstance(extended, bytes) and extended:
        return struct.unpack(f"<{len(extended) // 8}Q", extended[: len(extended) // 8 * 8])
    data = read_range(window, table)
    return struct.unpack(f"<{len(data) // 4}L", data[: len(data) // 4 * 4])


def _by_offset_table(items: Sequence[Range], offsets: Sequence[int], frames: int) -> list[int]:
    """Number of each frame's first item; empty where the table is absent, or wrong as many are: not pointing at items."""
    number_by_offset = {offset - items[0][0]: number for number, (offset, _) in enumerate(items)}
    firsts = [number_by_offset.get(offset, -1) for offset in offsets]
    ascending = all(earlier < later for earlier, later in pairwise([-1, *firsts]))
    return firsts if len(firsts) == frames and ascending else []
