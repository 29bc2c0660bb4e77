"""A JPEG frame → its samples, or a Rejected where data of the picture are missing.

libjpeg makes up what is missing and says so in a warning that imagecodecs does not pass on. So the frame header is given one row
of MCUs more than there are. When the data end exactly where the picture does, the first MCU beyond is decoded from the last
byte's padding (ISO 10918-1 F.1.2.3) and comes out as anything; all after it are mid-grey, as is every MCU after the one in
which libjpeg ran out of data. Had it run out within the picture, the first one beyond were mid-grey, too; were there data left
over, the second one would not be. That costs a row of MCUs. Where it cannot be done (progressive, several scans, restart
markers), or gives no certain answer, junk is put behind the data of each scan: libjpeg skips surplus bytes, but reads them where
bits are missing. Two junks of opposite bits then give two pictures.
"""

from __future__ import annotations

import struct

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from pipeline.dicom.jpeg_stream import (
    RESTART,
    SOF_ARITHMETIC,
    SOF_LOSSLESS_HUFFMAN,
    SOF_PROGRESSIVE,
    SOF_SEQUENTIAL,
    Jpeg,
)
from pipeline.errors import Rejected, RejectReason

MOST_ROWS = 65500
"""libjpeg's JPEG_MAX_DIMENSION."""
ARITHMETIC_ZEROS = 2
"""An arithmetic coder leaves out zero bytes at its end (ISO 10918-1 D.1.8): of 150 images by libjpeg's none took more than 1.
So much may be missing of such a stream without being found."""

PADDING_BITS = 7
"""At most, in the last byte of a scan; a code has a bit at least. They are ones, of which no code consists (ISO 10918-1 F.1.2.3, C): one
MCU takes them all. But where the DC coefficients of a progressive JPEG get their last bits, each block takes one (G.1.2.1.1)."""

_JUNK = bytes(range(0x21, 0x41))  # no FF, neither here nor in its complement: that would be a marker
_JUNKS = (_JUNK, bytes(0xFF - byte for byte in _JUNK))

_Samples = NDArray[np.unsignedinteger]


def decode_jpeg(frame: bytes, jpeg: Jpeg) -> _Samples:
    """(rows, columns) or (rows, columns, components) of uint8 or uint16; components are as coded, never converted.

    Raises Rejected: TRUNCATED where data are missing, DECODE_FAILED where there are more than the picture takes; and
    what imagecodecs raises.
    """
    if not _is_extensible(jpeg):
        return _decode_slowly(frame, jpeg)
    stacked = any(down != jpeg.most[1] for _, down in jpeg.sampling)
    samples = _decode(_extended(frame, jpeg), jpeg, first_only=stacked)
    begins, full = _beyond(samples, jpeg)
    if not begins or full:
        _check_missing(frame, jpeg)
        last = 2 if frame[jpeg.scans[0].end - 2 :].startswith(b"\xff\x00") else 1  # FF 00 is one byte of data
        if full and not _is_missing(frame, jpeg, drop=last):
            raise _surplus()
    # Interpolated chroma of the last row depends on what is below it: such a picture is decoded once more, as it is.
    return _decode(frame, jpeg) if stacked else samples[: jpeg.header.rows]


def _decode_slowly(frame: bytes, jpeg: Jpeg) -> _Samples:
    """With junk twice; once more for surplus data, which a damaged scan leaves after a run of blocks without coefficients."""
    samples = _decode(_with_junk(frame, jpeg, 0), jpeg)
    _check_missing(frame, jpeg, samples)
    by_huffman = jpeg.process not in SOF_ARITHMETIC and not any(scan.interval for scan in jpeg.scans)
    extensible = by_huffman and _rows_beyond(jpeg)[1] <= MOST_ROWS
    if extensible and _beyond(_decode(_extended(frame, jpeg), jpeg), jpeg)[1]:
        raise _surplus()
    return samples


def _is_extensible(jpeg: Jpeg) -> bool:
    """One scan of all components, without restarts, by Huffman codes; the first component at full resolution."""
    return (
        (jpeg.process in SOF_SEQUENTIAL or jpeg.process == SOF_LOSSLESS_HUFFMAN)
        and len(jpeg.scans) == 1
        and jpeg.scans[0].interval == 0
        and jpeg.sampling[0] == jpeg.most
        and _rows_beyond(jpeg)[1] <= MOST_ROWS
    )


def _rows_beyond(jpeg: Jpeg) -> tuple[int, int]:
    """Rows beyond the picture: first and after the last. One MCU more than padding fills; libjpeg takes a row of a lossless one at
    once."""
    rows, columns = jpeg.unit
    first = -(-jpeg.header.rows // rows) * rows
    across = 1 if jpeg.process == SOF_LOSSLESS_HUFFMAN else -(-jpeg.header.columns // columns)
    return first, first + -(-(_padded_units(jpeg) + 1) // across) * rows


def _padded_units(jpeg: Jpeg) -> int:
    """How many MCUs beyond the picture padding alone may fill."""
    return PADDING_BITS if jpeg.process in SOF_PROGRESSIVE else 1


def _extended(frame: bytes, jpeg: Jpeg) -> bytes:
    return b"".join((frame[: jpeg.rows_at], struct.pack(">H", _rows_beyond(jpeg)[1]), frame[jpeg.rows_at + 2 :]))


def _beyond(samples: _Samples, jpeg: Jpeg) -> tuple[bool, bool]:
    """Whether the first MCU beyond the picture was decoded from data, and whether any was that padding cannot fill.

    Of the first component, which is never interpolated. A lossless row is decoded to its end from zero bits: by the usual
    predictor 1 each sample then differs from its left neighbour by the same.
    """
    rows, columns = jpeg.unit
    begin = _rows_beyond(jpeg)[0]
    plane = samples if samples.ndim == 2 else samples[..., 0]
    decoded = plane[begin:] != 1 << (jpeg.header.precision - 1)
    if jpeg.process != SOF_LOSSLESS_HUFFMAN:
        down, along = (np.arange(side) // unit for side, unit in zip(decoded.shape, (rows, columns), strict=True))
        number = down[:, None] * (along[-1] + 1) + along
        return bool(decoded[number == 0].any()), bool(decoded[number >= _padded_units(jpeg)].any())
    steps = np.diff(plane[begin])[PADDING_BITS:]  # wraps, as libjpeg's sums do
    uneven = jpeg.scans[0].predictor == 1 and steps.size > 0 and bool((steps != steps[0]).any())
    return bool(decoded[:rows].any()), uneven or bool(decoded[rows:].any())


def _surplus() -> Rejected:
    return Rejected(RejectReason.DECODE_FAILED, "the JPEG holds more data than its picture takes")


def _check_missing(frame: bytes, jpeg: Jpeg, decoded: _Samples | None = None) -> None:
    """`decoded`: with the first junk, where that was done already."""
    if _is_missing(frame, jpeg, decoded):
        detail = f"the JPEG frame of {len(frame)} bytes lacks data of its picture: its decoder would make them up"
        raise Rejected(RejectReason.TRUNCATED, detail)


def _is_missing(frame: bytes, jpeg: Jpeg, decoded: _Samples | None = None, drop: int = 0) -> bool:
    """`drop`: so many of the last bytes of each scan are left out."""
    one = _decode(_with_junk(frame, jpeg, 0, drop), jpeg) if decoded is None else decoded
    return not np.array_equal(one, _decode(_with_junk(frame, jpeg, 1, drop), jpeg))


def _with_junk(frame: bytes, jpeg: Jpeg, which: int, drop: int = 0) -> bytes:
    """Junk before each marker that ends entropy-coded data."""
    junk = _JUNKS[which]
    if jpeg.process in SOF_ARITHMETIC:
        junk = bytes(ARITHMETIC_ZEROS) + junk
    parts, done = [], 0
    for scan in jpeg.scans:
        data = frame[scan.start : scan.end - drop]
        if scan.interval:
            data = RESTART.sub(lambda marker: junk + marker[0], data)
        parts += [frame[done : scan.start], data, junk]
        done = scan.end
    return b"".join((*parts, frame[done:]))


def _decode(frame: bytes, jpeg: Jpeg, *, first_only: bool = False) -> _Samples:
    """`first_only`: (rows, columns) of the first of three components, at less cost."""
    spaces = imagecodecs.JPEG8.CS
    if jpeg.header.components != 3:
        return imagecodecs.jpeg8_decode(frame)
    if first_only:
        return imagecodecs.jpeg8_decode(frame, colorspace=spaces.YCbCr, outcolorspace=spaces.GRAYSCALE)
    # The same colour space in and out: libjpeg would else convert by its own guess, against PhotometricInterpretation.
    return imagecodecs.jpeg8_decode(frame, colorspace=spaces.RGB, outcolorspace=spaces.RGB)
