"""Does the pixel data element hold what the header promises? Answered from lengths alone; no pixel is read.

PS3.5 section 8 and annex A.4. Native pixel data: the element's length against rows × columns × samples × frames × bits,
and against the file. Encapsulated: from item header to item header up to the sequence delimiter, and at least a
fragment a frame. Only what follows native pixels is looked at, whether it is padding.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import Rejected, RejectReason

if TYPE_CHECKING:
    from pipeline.dicom.bounded import Window

FLOAT_PIXELS = 0x7FE00008
DOUBLE_PIXELS = 0x7FE00009
PIXELS = 0x7FE00010
PIXEL_TAGS = {FLOAT_PIXELS: 32, DOUBLE_PIXELS: 64, PIXELS: None}
"""Float, Double Float and Pixel Data, with the bits that the first two prescribe (PS3.3 C.7.6.24, C.7.6.25)."""

DECODED_BYTES = 4 * 2**30
"""Most that all frames of one file may take decoded: 2,000 CT slices of 1024 × 1024 pixels at 16 bit."""
PADDING_BYTES = 4096
"""Native pixel data may be longer than promised by up to a disk block of zeros (and less than a frame): some pad so.
More, or other bytes, mean that rows, columns or frames lie."""
MOST_BITS = 32
"""Of Bits Allocated of integers. 1 and multiples of 8 are today's (PS3.5 8.1.1); the first editions packed any number."""
SUBSAMPLED = ("YBR_FULL_422", "YBR_PARTIAL_422")
"""Two pixels of a row share their colour: 2 samples are stored for 3 (PS3.3 C.7.6.3.1.2)."""
FRAGMENTS = 2**20
"""Most items of encapsulated pixel data: three seconds to count. The largest slide images have a fifth of that in frames."""

UNDEFINED_LENGTH = 0xFFFFFFFF
ITEM = 0xFFFEE000
SEQUENCE_DELIMITER = 0xFFFEE0DD


@dataclass(frozen=True)
class PixelElement:
    """Where the pixel data lie: tag, length as written, offset of the value in the window, and how it is encoded."""

    tag: int
    length: int
    offset: int
    encapsulated: bool


@dataclass(frozen=True)
class PixelShape:
    """What the Image Pixel module promises (PS3.3 C.7.6.3)."""

    frames: int
    rows: int
    columns: int
    samples_per_pixel: int
    bits_allocated: int
    photometric_interpretation: str

    @property
    def decoded_bytes(self) -> int:
        pixels = self.frames * self.rows * self.columns * self.samples_per_pixel
        return pixels * next(size for size in (1, 2, 4, 8, self.bits_allocated) if 8 * size >= self.bits_allocated)

    @property
    def native_bytes(self) -> int:
        """Length of native pixel data without the padding to an even length."""
        shared = self.samples_per_pixel == 3 and self.photometric_interpretation in SUBSAMPLED
        samples = 2 if shared else self.samples_per_pixel
        return -(-self.frames * self.rows * self.columns * samples * self.bits_allocated // 8)


def check_pixels(window: Window, element: PixelElement, shape: PixelShape) -> None:
    """Raises Rejected: size_mismatch, truncated, malformed, unsupported_pixels or too_large."""
    if element.encapsulated:
        fragments = count_fragments(window, element)
        if fragments < shape.frames:
            detail = f"{shape.frames} frames promised, {fragments} fragments there"
            raise Rejected(RejectReason.SIZE_MISMATCH, detail)
    else:
        _check_native(window, element, shape)
    if shape.decoded_bytes > DECODED_BYTES:
        detail = f"{shape.decoded_bytes / 2**30:.1f} GiB decoded, of {DECODED_BYTES >> 30} GiB allowed"
        raise Rejected(RejectReason.TOO_LARGE, detail)


def _check_native(window: Window, element: PixelElement, shape: PixelShape) -> None:
    if element.length == UNDEFINED_LENGTH:
        raise Rejected(RejectReason.MALFORMED, "native pixel data of undefined length")
    if shape.bits_allocated > MOST_BITS and PIXEL_TAGS[element.tag] is None:
        raise Rejected(RejectReason.UNSUPPORTED_PIXELS, f"BitsAllocated is {shape.bits_allocated}")
    promised = shape.native_bytes
    excess = element.length - promised
    if excess < 0 or (excess > 1 and not _is_padding(window, element, promised, excess, shape)):
        detail = f"{promised} bytes of pixels promised, an element of {element.length} there"
        raise Rejected(RejectReason.SIZE_MISMATCH, detail)
    there = window.size - element.offset
    if there < promised:
        raise Rejected(RejectReason.TRUNCATED, f"{promised} bytes of pixels promised, {there} there")


def _is_padding(window: Window, element: PixelElement, promised: int, excess: int, shape: PixelShape) -> bool:
    if excess > PADDING_BYTES or excess >= promised // shape.frames:
        return False
    tail = window.pixels(element.offset + promised, excess)
    return len(tail) == excess and not any(tail)


def count_fragments(window: Window, element: PixelElement) -> int:
    """Fragments of encapsulated pixel data without the offset table (the first item), PS3.5 A.4.

    Of undefined length they end with a delimiter. Of defined length, which the standard forbids but some
    devices write, they end with the element.
    """
    end = window.size if element.length == UNDEFINED_LENGTH else element.offset + element.length
    position, items = element.offset, 0
    while position < end or element.length == UNDEFINED_LENGTH:
        header = window.pixels(position, 8)
        if len(header) < 8:
            raise Rejected(
                RejectReason.TRUNCATED, f"the file ends after {max(0, items - 1)} fragments, without an end mark"
            )
        group, number, length = struct.unpack("<HHI", header)
        tag = group << 16 | number
        if tag == SEQUENCE_DELIMITER:
            break
        if tag != ITEM or length == UNDEFINED_LENGTH:
            where = "no fragment" if items == 0 else f"no further fragment after {max(0, items - 1)}"
            raise Rejected(RejectReason.MALFORMED, f"{where} where the compressed pixel data say there is one")
        position += 8 + length
        items += 1
        if items > FRAGMENTS:
            raise Rejected(RejectReason.TOO_LARGE, f"its pixel data have more than {FRAGMENTS} fragments")
        if position > window.size:
            raise Rejected(RejectReason.TRUNCATED, f"the file ends within fragment {max(1, items - 1)}")
    return max(0, items - 1)
