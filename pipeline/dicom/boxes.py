"""The boxes in which a JP2 file and a JPEG XL file keep their codestreams (ISO 15444-1 I.4, ISO 18181-2 4)."""

from __future__ import annotations

import struct
from collections.abc import Iterator


def boxes(frame: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, start and end of its content) of each box. Raises struct.error where the frame ends within a header."""
    position = 0
    while position + 8 <= len(frame):
        length, kind = struct.unpack_from(">L4s", frame, position)
        header = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", frame, position + 8)
            header = 16
        yield kind, position + header, position + length if length else len(frame)
        if length < header:  # 0: up to the end
            return
        position += length
