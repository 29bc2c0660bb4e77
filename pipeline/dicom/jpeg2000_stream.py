"""The markers of a JPEG 2000 or HTJ2K frame (ISO 15444-1 A.4, A.5, also inside a JP2 box): header, tiles, end.

Tile-parts say how long they are: they are followed to the end marker, and every tile must come. What lies within a
tile-part OpenJPEG checks itself. Raises Rejected: TRUNCATED, DECODE_FAILED, UNSUPPORTED_PIXELS, TOO_LARGE.
"""

from __future__ import annotations

import struct

from pipeline.dicom.boxes import boxes
from pipeline.dicom.codestream import PADDING, Codec, Codestream, goes_on, lacks_end
from pipeline.errors import Rejected, RejectReason

J2K_START = b"\xff\x4f\xff\x51"
JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  \r\n\x87\n"

MOST_TILES = 4096
"""OpenJPEG sets up every tile before it decodes the first, each with a few KB a component. A radiograph of 5,000 × 5,000
in tiles of 128 × 128 has 1,600; 65,025 of one pixel each took 612 MiB, 4,096 took 35."""

_SIGNED = 0x80
_SOT, _SOD, _EOC = b"\xff\x90", b"\xff\x93", b"\xff\xd9"
_SOT_BYTES = 12
_SIZ_COMPONENTS = 42
"""Offset of the first component in a codestream."""


def read_jpeg2000(frame: bytes) -> Codestream:
    """The header."""
    return _read_siz(frame, _codestream(frame)[0])[0]


def check_tiles(frame: bytes) -> None:
    """All tiles are there, none of them cut; padding alone follows the end marker."""
    start, end = _codestream(frame)
    tiles = _read_siz(frame, start)[1]
    if tiles > MOST_TILES:
        raise Rejected(RejectReason.TOO_LARGE, f"the JPEG 2000 stream has {tiles} tiles; {MOST_TILES} are allowed")
    _check_tile_parts(frame, start, end, tiles)


def _codestream(frame: bytes) -> tuple[int, int]:
    """Place of the codestream in a JP2 file (ISO 15444-1 I.5.4): DICOM wants the bare one, some writers keep the boxes."""
    if not frame.startswith(JP2_SIGNATURE):
        return 0, len(frame)
    for kind, start, end in boxes(frame):
        if kind == b"jp2c":
            return start, end
    raise Rejected(RejectReason.DECODE_FAILED, "the JP2 file in the frame holds no codestream box")


def _read_siz(frame: bytes, start: int) -> tuple[Codestream, int]:
    """The SIZ segment, which always follows SOC at once; the number of tiles."""
    if frame[start : start + 4] != J2K_START:
        raise Rejected(RejectReason.DECODE_FAILED, "the JPEG 2000 codestream does not start with SOC and SIZ")
    right, bottom, left, top, width, height, tiles_left, tiles_top = struct.unpack_from(">8L", frame, start + 8)
    (components,) = struct.unpack_from(">H", frame, start + 40)
    described = frame[start + _SIZ_COMPONENTS : start + _SIZ_COMPONENTS + 3 * components]
    if len(described) < 3 * components:
        raise IndexError
    depths, steps = set(described[::3]), {*described[1::3], *described[2::3]}
    if len(depths) != 1 or steps != {1}:
        raise Rejected(
            RejectReason.UNSUPPORTED_PIXELS, "the JPEG 2000 components differ in precision, or are subsampled"
        )
    if not (tiles_left <= left < right and tiles_top <= top < bottom and width and height):
        raise Rejected(RejectReason.DECODE_FAILED, "the image of the JPEG 2000 header lies outside its own tiles")
    tiles = -(-(right - tiles_left) // width) * -(-(bottom - tiles_top) // height)
    (depth,) = depths
    header = Codestream(
        Codec.JPEG_2000,
        rows=bottom - top,
        columns=right - left,
        components=components,
        precision=(depth & ~_SIGNED) + 1,
        signed=bool(depth & _SIGNED),
    )
    return header, tiles


def _check_tile_parts(frame: bytes, start: int, end: int, tiles: int) -> None:
    """From one tile-part to the next by their lengths (Psot), to the end marker; padding alone may follow that."""
    position = _main_header_end(frame, start)
    seen: set[int] = set()
    while frame[position : position + 2] == _SOT:
        tile, length = struct.unpack_from(">HL", frame, position + 4)
        seen.add(tile)
        if length == 0:  # the last one, up to the end marker
            length = len(frame[:end].rstrip(PADDING)) - 2 - position
        if length < _SOT_BYTES or position + length > end:
            raise Rejected(
                RejectReason.TRUNCATED, f"a tile-part of the JPEG 2000 frame has {end - position} bytes of {length}"
            )
        position += length
    if frame[position : position + 2] != _EOC:
        raise lacks_end(frame)
    if frame[position + 2 : end].strip(PADDING):
        raise goes_on(frame)
    if seen != set(range(tiles)):
        raise Rejected(RejectReason.TRUNCATED, f"the JPEG 2000 frame has {len(seen)} of its {tiles} tiles")


def _main_header_end(frame: bytes, start: int) -> int:
    """Where the first tile-part begins: every segment of the main header has its length."""
    position = start + 2
    while (marker := frame[position : position + 2]) not in (_SOT, _EOC):
        if marker[:1] != b"\xff":
            raise Rejected(
                RejectReason.DECODE_FAILED, f"expected a JPEG 2000 marker at byte {position} of the frame, found none"
            )
        (length,) = struct.unpack_from(">H", frame, position + 2)
        position += 2 + length
    return position
