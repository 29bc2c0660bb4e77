"""The markers of a JPEG or JPEG-LS frame (ISO 10918-1 B.2, ISO 14495-1 C.2): header, components, scans.

A JPEG is followed to its end: where each scan's data lie, whether all components and all bits of all coefficients come, and
all restart markers in their turn; for decoders fill in without a word what is not there. Of JPEG-LS only the header is read,
as its decoder is strict. Raises Rejected: TRUNCATED, DECODE_FAILED, UNSUPPORTED_PIXELS.
"""

from __future__ import annotations

import re
import struct
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.dicom.codestream import PADDING, Codec, Codestream, Color, check_end, goes_on, lacks_end
from pipeline.errors import Rejected, RejectReason

BLOCK = 8
"""Samples of a DCT block in each direction."""
COEFFICIENTS = BLOCK * BLOCK

SOF_LOSSLESS_HUFFMAN = 0xC3
SOF_SEQUENTIAL = frozenset({0xC0, 0xC1})
SOF_PROGRESSIVE = frozenset({0xC2, 0xCA})
SOF_ARITHMETIC = frozenset({0xC9, 0xCA})
_SOF_DCT = SOF_SEQUENTIAL | SOF_PROGRESSIVE | SOF_ARITHMETIC
_SOF_HUFFMAN = SOF_SEQUENTIAL | {0xC2}
_SOF_UNSUPPORTED = {
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "hierarchical"),
    0xCB: "lossless arithmetic",
}
_SOF_JPEG_LS = 0xF7
_SOF = _SOF_DCT | {SOF_LOSSLESS_HUFFMAN, _SOF_JPEG_LS} | set(_SOF_UNSUPPORTED)
_SOI, _EOI, _SOS, _DRI, _APP0, _APP14 = 0xD8, 0xD9, 0xDA, 0xDD, 0xE0, 0xEE
_STANDALONE = frozenset({0x01, _SOI, *range(0xD0, 0xD8)})  # markers without a length: TEM, SOI, RSTn
_WITHIN_SCAN = np.isin(np.arange(256), [0x00, 0xFF, *range(0xD0, 0xD8)])
"""What follows FF within entropy-coded data: a stuffed zero, a fill byte, a restart marker."""
RESTART = re.compile(rb"\xff+([\xd0-\xd7])")


@dataclass(frozen=True)
class Scan:
    """`components` by number from 0; coefficients `first` to `last` down to bit `low`; entropy-coded data [start, end)."""

    components: tuple[int, ...]
    first: int
    last: int
    low: int
    start: int
    end: int
    interval: int
    """Of restart markers, in MCUs; 0 for none."""
    predictor: int = 0
    """Of a lossless scan, 1 to 7."""


@dataclass(frozen=True)
class Jpeg:
    """A whole JPEG. `process`: the number of its SOF marker; `sampling`: (across, down) of each component."""

    header: Codestream
    process: int
    sampling: tuple[tuple[int, int], ...]
    rows_at: int
    """Where the frame header has its number of rows."""
    scans: tuple[Scan, ...] = ()

    @property
    def most(self) -> tuple[int, int]:
        """(across, down): the largest sampling factors."""
        return max(across for across, _ in self.sampling), max(down for _, down in self.sampling)

    @property
    def side(self) -> int:
        """Samples that are coded together in each direction: a block, or of a lossless JPEG a single one."""
        return 1 if self.process == SOF_LOSSLESS_HUFFMAN else BLOCK

    @property
    def unit(self) -> tuple[int, int]:
        """(rows, columns) of an MCU of all components."""
        across, down = self.most
        return self.side * down, self.side * across

    def units(self, scan: Scan) -> int:
        """MCUs of a scan: of a single component its own blocks (ISO 10918-1 A.2.2)."""
        rows, columns = self.unit
        if len(scan.components) > 1:
            return -(-self.header.rows // rows) * -(-self.header.columns // columns)
        (across, down), (most_across, most_down) = self.sampling[scan.components[0]], self.most
        own_rows, own_columns = (
            -(-self.header.rows * down // most_down),
            -(-self.header.columns * across // most_across),
        )
        return -(-own_rows // self.side) * -(-own_columns // self.side)


def read_jpeg(frame: bytes) -> Jpeg:
    """The frame header, and of a JPEG all its scans, checked to be complete as far as markers tell."""
    jfif, adobe = False, None
    jpeg: Jpeg | None = None
    scans: list[Scan] = []
    interval = 0
    for marker, start, end, after in _segments(frame):
        body = frame[start:end]
        if marker == _APP0 and body.startswith(b"JFIF\0"):
            jfif = True
        elif marker == _APP14 and body.startswith(b"Adobe") and len(body) >= 12:
            adobe = Color.YBR if body[11] else Color.RGB
        elif marker == _DRI:
            (interval,) = struct.unpack_from(">H", body)
        elif marker in _SOF:
            if jpeg is not None:
                raise Rejected(RejectReason.DECODE_FAILED, "the JPEG has two frame headers")
            # JFIF is about baseline JPEG; writers of lossless ones put it there, whatever their colours are.
            color = Color.YBR if jfif and marker != SOF_LOSSLESS_HUFFMAN else adobe
            jpeg = _frame_header(frame, marker, start, end, color)
            if marker == _SOF_JPEG_LS:
                check_end(frame)
                return jpeg
        elif marker == _SOS:
            scans.append(_scan(frame, jpeg, (start, end, after), interval))
    if jpeg is None:
        raise Rejected(RejectReason.TRUNCATED, f"the compressed frame of {len(frame)} bytes has no JPEG frame header")
    whole = Jpeg(jpeg.header, jpeg.process, jpeg.sampling, jpeg.rows_at, tuple(scans))
    _check_coverage(whole)
    _check_restarts(frame, whole)
    return whole


def _segments(frame: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(marker, start and end of its body, next marker) of each segment from SOI to EOI; entropy-coded data are passed over."""
    position = 2
    ends: list[int] | None = None
    while position + 1 < len(frame):
        if frame[position] != 0xFF:
            raise Rejected(
                RejectReason.DECODE_FAILED, f"expected a JPEG marker at byte {position} of the frame, found none"
            )
        marker = frame[position + 1]
        if marker == _EOI:
            if frame[position + 2 :].strip(PADDING):
                raise goes_on(frame)
            return
        if marker == 0xFF or marker in _STANDALONE:  # FF: fill byte (ISO 10918-1 B.1.1.2)
            position += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack_from(">H", frame, position + 2)
        if length < 2:
            raise Rejected(
                RejectReason.DECODE_FAILED, f"the JPEG segment at byte {position} has length {length}, the least is 2"
            )
        after = end = position + 2 + length
        if marker == _SOS:
            ends = _scan_ends(frame) if ends is None else ends
            place = bisect_left(ends, end)
            if place == len(ends):
                raise lacks_end(frame)
            after = end + len(frame[end : ends[place]].rstrip(b"\xff"))  # fill bytes belong to the marker
        yield marker, position + 4, end, after
        position = after
    raise lacks_end(frame)


def _scan_ends(frame: bytes) -> list[int]:
    """Every place where a scan would end if it went on there: at a marker that may not stand within one."""
    content = np.frombuffer(frame, np.uint8)
    places = np.flatnonzero(content[:-1] == 0xFF)
    return places[~_WITHIN_SCAN[content[places + 1]]].tolist()


def _frame_header(frame: bytes, marker: int, start: int, end: int, color: Color | None) -> Jpeg:
    if marker in _SOF_UNSUPPORTED:
        raise Rejected(
            RejectReason.UNSUPPORTED_PIXELS,
            f"{_SOF_UNSUPPORTED[marker]} JPEG (SOF marker FF {marker:02X}) is not decoded",
        )
    precision, rows, columns, components = struct.unpack_from(">BHHB", frame, start)
    if end - start < 6 + 3 * components or not components:
        raise Rejected(RejectReason.DECODE_FAILED, f"a JPEG frame header of {end - start} bytes")
    identifiers = bytes(frame[start + 6 + 3 * number] for number in range(components))
    factors = [frame[start + 7 + 3 * number] for number in range(components)]
    if any(not 1 <= factor >> 4 <= 4 or not 1 <= factor & 15 <= 4 for factor in factors):
        raise Rejected(RejectReason.DECODE_FAILED, "sampling factors of the JPEG are outside 1 to 4")
    if components != 3:
        color = None
    elif identifiers in (b"RGB", b"rgb"):
        color = Color.RGB
    codec = {_SOF_JPEG_LS: Codec.JPEG_LS, SOF_LOSSLESS_HUFFMAN: Codec.JPEG_LOSSLESS}.get(marker, Codec.JPEG)
    header = Codestream(codec, rows, columns, components, precision, color=color)
    _check_length(frame, marker, header)
    return Jpeg(header, marker, tuple((factor >> 4, factor & 15) for factor in factors), start + 1)


def _check_length(frame: bytes, marker: int, header: Codestream) -> None:
    """A Huffman code has a bit at least: one for each block of 8 × 8 samples, or of a lossless stream for each sample.

    So that a small frame cannot claim a huge picture: decoders fill in what is missing, without a word.
    """
    if marker == SOF_LOSSLESS_HUFFMAN:
        codes = header.rows * header.columns * header.components
    elif marker in _SOF_HUFFMAN:
        codes = -(-header.rows // BLOCK) * -(-header.columns // BLOCK)
    else:
        return
    if codes > 8 * len(frame):
        raise Rejected(
            RejectReason.TRUNCATED,
            f"a {header.codec} frame of {len(frame)} bytes cannot hold {header.rows} × {header.columns} pixels",
        )


def _scan(frame: bytes, jpeg: Jpeg | None, place: tuple[int, int, int], interval: int) -> Scan:
    """`place`: start and end of its header, end of its data."""
    start, end, after = place
    count = frame[start]
    if jpeg is None or not 1 <= count <= 4 or end - start < 4 + 2 * count:
        raise Rejected(RejectReason.DECODE_FAILED, f"a JPEG scan of {count} components, or before its frame header")
    known = [frame[jpeg.rows_at + 5 + 3 * number] for number in range(jpeg.header.components)]
    chosen = [frame[start + 1 + 2 * number] for number in range(count)]
    if not set(chosen) <= set(known):
        raise Rejected(RejectReason.DECODE_FAILED, "a JPEG scan of a component that the frame header has not")
    predictor = 0
    first, last, bits = frame[start + 1 + 2 * count : start + 4 + 2 * count]
    if jpeg.process not in SOF_PROGRESSIVE:  # of lossless scans these are the predictor and the point transform
        predictor, first, last, bits = first, 0, COEFFICIENTS - 1, 0
    if not 0 <= first <= last < COEFFICIENTS:
        raise Rejected(RejectReason.DECODE_FAILED, f"a JPEG scan of coefficients {first} to {last}")
    components = tuple(known.index(identifier) for identifier in chosen)
    return Scan(components, first, last, bits & 15, end, after, interval, predictor)


def _check_coverage(jpeg: Jpeg) -> None:
    """Every component's coefficients come, to their last bit: else scans are missing."""
    lows = [[COEFFICIENTS] * COEFFICIENTS for _ in jpeg.sampling]
    for scan in jpeg.scans:
        for component in scan.components:
            lows[component][scan.first : scan.last + 1] = [scan.low] * (scan.last + 1 - scan.first)
    if any(any(low) for low in lows):
        raise Rejected(
            RejectReason.TRUNCATED, f"the JPEG lacks scans: {len(jpeg.scans)} there do not make the whole picture"
        )


def _check_restarts(frame: bytes, jpeg: Jpeg) -> None:
    """Restart markers come in turn and are as many as the picture takes (ISO 10918-1 B.2.1, F.1.1.5.1)."""
    for scan in jpeg.scans:
        if scan.interval:
            promised = (jpeg.units(scan) - 1) // scan.interval
            found = [marker[0] & 7 for marker in RESTART.findall(frame, scan.start, scan.end)]
            if found != [number % 8 for number in range(promised)]:
                raise Rejected(
                    RejectReason.TRUNCATED, f"the JPEG takes {promised} restart markers in turn, found {len(found)}"
                )
