"""Encapsulated pixel data: which bytes of the file make up which frame (PS3.5 A.4).

Only item headers and first bytes are read, so that one frame of a large file costs its own bytes. A frame may be spread over several
items, with an Extended or Basic Offset Table, or with nothing but the codestreams' own start markers to tell frames apart. A file that ends
before its sequence delimiter is `TRUNCATED`; one with more or fewer frames than its header promises is `SIZE_MISMATCH`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import BinaryIO

from pipeline.errors import Rejected, RejectReason

Range = tuple[int, int]
"""(offset in the file, number of bytes)"""

_ITEM, _SEQUENCE_DELIMITER = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
_ITEM_HEADER_BYTES = 8
_FRAME_STARTS = (
    b"\xff\xd8\xff",
    b"\xff\x4f\xff\x51",
    b"\x00\x00\x00\x0cjP  ",
)  # SOI and a marker, SOC and SIZ, a JP2 box


def locate_frames(
    file: BinaryIO, start: int, size: int, frames: int, extended_offsets: bytes | None
) -> tuple[tuple[Range, ...], ...]:
    """One tuple of ranges a frame. `start`: of the pixel data's value; `size`: of the file; `extended_offsets`: (7FE0,0001) as stored.

    Raises Rejected: TRUNCATED, MALFORMED, SIZE_MISMATCH.
    """
    table, *items = _items(file, start, size)
    if len(items) < frames:
        raise Rejected(
            RejectReason.SIZE_MISMATCH, f"the header promises {frames} frames, the pixel data has {len(items)} items"
        )
    codestreams = [number for number, (offset, _) in enumerate(items) if _starts_codestream(file, offset)]
    if len(codestreams) > frames:
        raise Rejected(
            RejectReason.SIZE_MISMATCH,
            f"the header promises {frames} frames, the pixel data has {len(codestreams)} codestreams",
        )
    if len(items) == frames:
        return tuple((item,) for item in items)
    firsts = _by_offset_table(items, _offsets(file, table, extended_offsets), frames) or (
        [0] if frames == 1 else codestreams
    )
    if len(firsts) != frames or firsts[0] != 0:
        raise Rejected(
            RejectReason.SIZE_MISMATCH, f"{len(items)} items of pixel data cannot be told apart into {frames} frames"
        )
    return tuple(tuple(items[first:after]) for first, after in pairwise([*firsts, len(items)]))


def read_range(file: BinaryIO, part: Range) -> bytes:
    """The bytes of a range that is known to lie inside the file. Raises Rejected (TRUNCATED) where the file has shrunk since."""
    offset, length = part
    file.seek(offset)
    data = file.read(length)
    if len(data) < length:
        raise Rejected(RejectReason.TRUNCATED, f"the file ends {length - len(data)} bytes before its pixel data does")
    return data


def _items(file: BinaryIO, start: int, size: int) -> list[Range]:
    """The value of each item, the Basic Offset Table first."""
    found: list[Range] = []
    position = start
    while True:
        group, element, length = struct.unpack("<HHL", read_range(file, (position, _ITEM_HEADER_BYTES)))
        position += _ITEM_HEADER_BYTES
        if (group, element) == _SEQUENCE_DELIMITER:
            break
        if (group, element) != _ITEM:
            raise Rejected(
                RejectReason.MALFORMED,
                f"expected an item of pixel data at byte {position - _ITEM_HEADER_BYTES}, found none",
            )
        if position + length > size:
            raise Rejected(
                RejectReason.TRUNCATED,
                f"the last item of pixel data has {size - position} bytes of the {length} that it says",
            )
        found.append((position, length))
        position += length
    if not found:
        raise Rejected(RejectReason.MALFORMED, "encapsulated pixel data without an item")
    return found


def _starts_codestream(file: BinaryIO, offset: int) -> bool:
    file.seek(offset)
    return file.read(8).startswith(_FRAME_STARTS)


def _offsets(file: BinaryIO, table: Range, extended: bytes | None) -> Sequence[int]:
    """Offset of each frame's first item header, counted from that of the first item; the extended table goes before the basic one."""
    if extended:
        return struct.unpack(f"<{len(extended) // 8}Q", extended[: len(extended) // 8 * 8])
    data = read_range(file, table)
    return struct.unpack(f"<{len(data) // 4}L", data[: len(data) // 4 * 4])


def _by_offset_table(items: Sequence[Range], offsets: Sequence[int], frames: int) -> list[int]:
    """Number of each frame's first item; empty where the table is absent or does not point at items (tables are often wrong)."""
    number_by_offset = {offset - items[0][0]: number for number, (offset, _) in enumerate(items)}
    firsts = [number_by_offset.get(offset, -1) for offset in offsets]
    ascending = all(earlier < later for earlier, later in pairwise([-1, *firsts]))
    return firsts if len(firsts) == frames and ascending else []
