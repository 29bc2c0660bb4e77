"""What a compressed frame says about itself: size, components, precision, read from its header before anything is allocated.

JPEG and JPEG-LS (ISO 10918-1 B.2, ISO 14495-1 C.2), JPEG 2000 and HTJ2K (ISO 15444-1 A.4, A.5, also inside a JP2 box), RLE
(PS3.5 G.5). The codestream, not the transfer syntax, says which codec it needs: files that are labelled with another JPEG
process than they hold are common, and harmless. A stream without its end marker is `TRUNCATED`: JPEG decoders fill in what is missing
without a word. Every failure is a `Rejected`; nothing in its text comes from the image.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from pipeline.errors import Rejected, RejectReason

RLE_HEADER_BYTES = 64
RLE_MAX_SEGMENTS = 15

_SOI, _EOI, _SOS, _APP0, _APP14 = 0xD8, 0xD9, 0xDA, 0xE0, 0xEE
_SOF_DCT = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})  # Huffman and arithmetic, sequential and progressive
_SOF_HUFFMAN = frozenset({0xC0, 0xC1, 0xC2})
_SOF_LOSSLESS_HUFFMAN = 0xC3
_SOF_LOSSLESS = frozenset({_SOF_LOSSLESS_HUFFMAN, 0xCB})
_SOF_HIERARCHICAL = frozenset({0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF})
_SOF_JPEG_LS = 0xF7
_STANDALONE = frozenset({0x01, _SOI, *range(0xD0, 0xD8)})  # markers without a length: TEM, SOI, RSTn
_J2K_START = b"\xff\x4f\xff\x51"
_JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
_J2K_SIGNED = 0x80


class Codec(StrEnum):
    """The kinds of codestream that radloop decodes."""

    JPEG = "JPEG"
    """DCT: baseline, extended, progressive."""
    JPEG_LOSSLESS = "JPEG Lossless"
    JPEG_LS = "JPEG-LS"
    JPEG_2000 = "JPEG 2000"
    """HTJ2K too: the same header, another block coder."""
    RLE = "RLE"


class Color(StrEnum):
    """What a JPEG's own markers say about three components; where they say nothing, PhotometricInterpretation does."""

    RGB = "RGB"
    YBR = "YBR"


@dataclass(frozen=True)
class Codestream:
    """Header of one frame. `precision` in bits a sample; `color`: what its markers say, or None."""

    codec: Codec
    rows: int
    columns: int
    components: int
    precision: int
    signed: bool = False
    color: Color | None = None


def read_codestream(frame: bytes) -> Codestream:
    """Header of a JPEG, JPEG-LS or JPEG 2000 frame, after checking that it ends with its end marker.

    Raises Rejected: TRUNCATED (no end marker), DECODE_FAILED (no such stream, or a header that breaks its format).
    """
    try:
        if frame.startswith(_J2K_START):
            header = _read_siz(frame, 0)
        elif frame.startswith(_JP2_SIGNATURE):
            header = _read_siz(frame, _first_codestream(frame))
        elif frame.startswith(b"\xff\xd8"):
            header = _read_jpeg(frame)
        else:
            raise Rejected(
                RejectReason.DECODE_FAILED,
                f"expected a JPEG, JPEG-LS or JPEG 2000 stream, found one of {len(frame)} bytes that starts otherwise",
            )
    except (struct.error, IndexError):
        raise Rejected(
            RejectReason.TRUNCATED, f"the compressed frame of {len(frame)} bytes ends inside its header"
        ) from None
    _check_end(frame)
    return header


def rle_segments(frame: bytes) -> int:
    """Number of segments of an RLE frame, its header checked: offsets ascend, and stay inside the frame (PS3.5 G.5)."""
    if len(frame) < RLE_HEADER_BYTES:
        raise Rejected(
            RejectReason.TRUNCATED,
            f"an RLE frame has a header of {RLE_HEADER_BYTES} bytes, found {len(frame)} bytes in all",
        )
    count, *offsets = struct.unpack("<16L", frame[:RLE_HEADER_BYTES])
    if not 1 <= count <= RLE_MAX_SEGMENTS:
        raise Rejected(
            RejectReason.DECODE_FAILED,
            f"the RLE header promises {count} segments; 1 to {RLE_MAX_SEGMENTS} are possible",
        )
    used = offsets[:count]
    if used[0] != RLE_HEADER_BYTES or any(later <= earlier for earlier, later in pairwise(used)):
        raise Rejected(RejectReason.DECODE_FAILED, "the segment offsets of the RLE header do not ascend from 64")
    if used[-1] >= len(frame):
        raise Rejected(
            RejectReason.TRUNCATED, f"the RLE frame of {len(frame)} bytes ends before its last segment at {used[-1]}"
        )
    return int(count)


def _check_end(frame: bytes) -> None:
    """The last marker is EOI or EOC (both FF D9), but for padding: writers pad to even length with 00 or FF."""
    if not frame.rstrip(b"\x00\xff").endswith(b"\xff\xd9"):
        raise Rejected(
            RejectReason.TRUNCATED, f"the compressed frame of {len(frame)} bytes lacks its end marker (FF D9)"
        )


def _read_jpeg(frame: bytes) -> Codestream:
    color: Color | None = None
    for marker, body in _jpeg_segments(frame):
        if marker == _APP0 and body.startswith(b"JFIF\0"):
            color = Color.YBR
        elif marker == _APP14 and body.startswith(b"Adobe") and len(body) >= 12:
            color = color or (Color.YBR if body[11] else Color.RGB)
        elif marker in _SOF_HIERARCHICAL:
            raise Rejected(
                RejectReason.UNSUPPORTED_PIXELS, f"hierarchical JPEG (SOF marker FF {marker:02X}) is not decoded"
            )
        elif marker in _SOF_DCT or marker in _SOF_LOSSLESS or marker == _SOF_JPEG_LS:
            header = _read_frame_header(marker, body, color)
            _check_length(frame, marker, header)
            return header
    raise Rejected(RejectReason.TRUNCATED, f"the compressed frame of {len(frame)} bytes has no JPEG frame header")


def _check_length(frame: bytes, marker: int, header: Codestream) -> None:
    """A Huffman code has a bit at least: one for each block of 8 × 8 samples, or of a lossless stream for each sample.

    So that a small frame cannot claim a huge picture: decoders fill in what is missing, without a word.
    """
    if marker == _SOF_LOSSLESS_HUFFMAN:
        codes = header.rows * header.columns * header.components
    elif marker in _SOF_HUFFMAN:
        codes = -(-header.rows // 8) * -(-header.columns // 8)
    else:
        return
    if codes > 8 * len(frame):
        raise Rejected(
            RejectReason.TRUNCATED,
            f"a {header.codec} frame of {len(frame)} bytes cannot hold {header.rows} × {header.columns} pixels",
        )


def _read_frame_header(marker: int, body: bytes, color: Color | None) -> Codestream:
    precision, rows, columns, components = struct.unpack_from(">BHHB", body)
    identifiers = bytes(body[6 + 3 * number] for number in range(components))
    if components != 3:
        color = None
    elif identifiers in (b"RGB", b"rgb"):
        color = Color.RGB
    codec = Codec.JPEG_LS if marker == _SOF_JPEG_LS else Codec.JPEG_LOSSLESS if marker in _SOF_LOSSLESS else Codec.JPEG
    return Codestream(codec, rows, columns, components, precision, color=color)


def _jpeg_segments(frame: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, body) of each segment from SOI up to the first scan."""
    position = 2
    while position + 1 < len(frame):
        if frame[position] != 0xFF:
            raise Rejected(
                RejectReason.DECODE_FAILED, f"expected a JPEG marker at byte {position} of the frame, found none"
            )
        marker = frame[position + 1]
        if marker == 0xFF:  # fill byte (ISO 10918-1 B.1.1.2)
            position += 1
            continue
        if marker in _STANDALONE:
            position += 2
            continue
        if marker in (_SOS, _EOI):
            return
        (length,) = struct.unpack_from(">H", frame, position + 2)
        if length < 2:
            raise Rejected(
                RejectReason.DECODE_FAILED, f"the JPEG segment at byte {position} has length {length}, the least is 2"
            )
        yield marker, frame[position + 4 : position + 2 + length]
        position += 2 + length


def _first_codestream(frame: bytes) -> int:
    """Offset of the codestream in a JP2 file (ISO 15444-1 I.5.4): DICOM wants the bare one, some writers keep the boxes."""
    position = 0
    while position + 8 <= len(frame):
        length, kind = struct.unpack_from(">L4s", frame, position)
        header = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", frame, position + 8)
            header = 16
        if kind == b"jp2c":
            return position + header
        if length < header:
            break
        position += length
    raise Rejected(RejectReason.DECODE_FAILED, "the JP2 file in the frame holds no codestream box")


def _read_siz(frame: bytes, start: int) -> Codestream:
    """The SIZ segment, which always follows SOC at once."""
    if frame[start : start + 4] != _J2K_START:
        raise Rejected(RejectReason.DECODE_FAILED, "the JPEG 2000 codestream does not start with SOC and SIZ")
    right, bottom, left, top = struct.unpack_from(">4L", frame, start + 8)
    (components,) = struct.unpack_from(">H", frame, start + 40)
    depths = {frame[start + 42 + 3 * number] for number in range(components)}
    steps = {frame[start + 43 + 3 * number : start + 45 + 3 * number] for number in range(components)}
    if len(depths) != 1 or steps != {b"\x01\x01"}:
        raise Rejected(
            RejectReason.UNSUPPORTED_PIXELS, "the JPEG 2000 components differ in precision, or are subsampled"
        )
    (depth,) = depths
    return Codestream(
        Codec.JPEG_2000,
        rows=bottom - top,
        columns=right - left,
        components=components,
        precision=(depth & ~_J2K_SIGNED) + 1,
        signed=bool(depth & _J2K_SIGNED),
    )
