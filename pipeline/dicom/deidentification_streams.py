"""Compressed frames without what is not picture: comments, application data and thumbnails in JPEG, JPEG-LS and JPEG 2000 streams.

In: one frame's bytes. Out: as many bytes, what could hold text made zeros, so that no length within changes and every sample decodes as
before. Kept of application data is what decoders need: Adobe's and HP's colour transforms, JFIF's resolution. What breaks the format is
`Rejected`. ISO 10918-1 B, 14495-1 C, 15444-1 A.
"""

from __future__ import annotations

import re
import struct

from pipeline.dicom.boxes import boxes
from pipeline.dicom.jpeg2000_stream import J2K_START, JP2_SIGNATURE
from pipeline.errors import Rejected, RejectReason

_SOI, _EOI, _SOS, _COM, _JPEG_LS_FRAME, _JPEG_LS_PARAMETERS = 0xD8, 0xD9, 0xDA, 0xFE, 0xF7, 0xF8
_STANDALONE = frozenset({0x01, _SOI, *range(0xD0, 0xD8)})  # markers without a length: TEM, SOI, RSTn
_APPLICATION = range(0xE0, 0xF0)
_EXTENSIONS = range(0xF0, 0xFE)
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""The next marker: within a scan 00, a restart or a fill byte follows FF."""
_AFTER_JPEG_LS_SCAN = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")
"""There a bit 0 is stuffed after FF: what follows is below 80."""
_KEPT_OF_APPLICATION = {0xE0: (b"JFIF\0", 12), 0xE8: (b"mrfx", 5), 0xEE: (b"Adobe", 12)}
"""Marker → how its data begin, and how many bytes stay. Behind JFIF's resolution come a thumbnail's sizes."""

_SOT, _SOD, _EOC, _J2K_COM = 0xFF90, 0xFF93, 0xFFD9, 0xFF64
_J2K_TILE_BYTES = 12


def without_metadata(frame: bytes) -> bytes:
    """The frame with all but its picture made zeros; a JPEG 2000 stream is taken out of a JP2 file's boxes.

    Raises Rejected (DECODE_FAILED) where it is neither JPEG, JPEG-LS nor JPEG 2000, or breaks off.
    """
    try:
        if frame.startswith(JP2_SIGNATURE):
            start, end = next((start, end) for kind, start, end in boxes(frame) if kind == b"jp2c")
            frame = frame[start:end] + b"\0" * ((end - start) % 2)
        if frame.startswith(J2K_START):
            return _jpeg2000(bytearray(frame))
        if frame.startswith(b"\xff\xd8"):
            return _jpeg(bytearray(frame))
    except (struct.error, IndexError, StopIteration):
        pass
    raise Rejected(
        RejectReason.DECODE_FAILED, f"the markers of a compressed frame of {len(frame)} bytes cannot be followed"
    )


def _jpeg(frame: bytearray) -> bytes:
    position, after_scan = 2, _AFTER_SCAN
    while True:
        if frame[position] != 0xFF:
            raise IndexError
        while frame[position] == 0xFF:
            position += 1
        marker = frame[position]
        position += 1
        if marker == _EOI:
            return _ended(frame, position)
        if marker in _STANDALONE:
            continue
        if marker == _JPEG_LS_FRAME:
            after_scan = _AFTER_JPEG_LS_SCAN
        (length,) = struct.unpack_from(">H", frame, position)
        end = position + length
        if length < 2 or end > len(frame):
            raise IndexError
        _blank_segment(frame, marker, position + 2, end)
        position = end
        if marker == _SOS:
            found = after_scan.search(frame, end)
            if found is None:
                raise IndexError
            position = found.start()


def _blank_segment(frame: bytearray, marker: int, start: int, end: int) -> None:
    extension = marker in _EXTENSIONS and marker not in (_JPEG_LS_FRAME, _JPEG_LS_PARAMETERS)
    if marker != _COM and marker not in _APPLICATION and not extension:
        return
    begins, kept = _KEPT_OF_APPLICATION.get(marker, (b"", 0))
    start = min(end, start + kept) if begins and frame.startswith(begins, start) else start
    frame[start:end] = bytes(end - start)


def _jpeg2000(frame: bytearray) -> bytes:
    position = _blank_comments(frame, 2, (_SOT, _EOC))
    while True:
        (marker,) = struct.unpack_from(">H", frame, position)
        if marker == _EOC:
            return _ended(frame, position + 2)
        if marker != _SOT:
            raise IndexError
        (length,) = struct.unpack_from(">L", frame, position + 6)
        _blank_comments(frame, position + _J2K_TILE_BYTES, (_SOD,))
        if length == 0:  # the last one, up to the end marker
            position = frame.rindex(b"\xff\xd9") if b"\xff\xd9" in frame[position:] else len(frame)
        elif length < _J2K_TILE_BYTES:
            raise IndexError
        else:
            position += length


def _blank_comments(frame: bytearray, position: int, until: tuple[int, ...]) -> int:
    """From one segment of a header to the next, to one of the markers `until`, whose place it returns."""
    while True:
        (marker,) = struct.unpack_from(">H", frame, position)
        if marker in until:
            return position
        (length,) = struct.unpack_from(">H", frame, position + 2)
        end = position + 2 + length
        if marker < 0xFF00 or length < 2 or end > len(frame):
            raise IndexError
        if marker == _J2K_COM:
            kept = min(end, position + 6)  # behind the comment's kind
            frame[kept:end] = bytes(end - kept)
        position = end


def _ended(frame: bytearray, end: int) -> bytes:
    """What follows the end marker is padding at most."""
    frame[end:] = bytes(len(frame) - end)
    return bytes(frame)
