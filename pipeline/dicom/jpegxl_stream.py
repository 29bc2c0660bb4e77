"""The header of a JPEG XL frame (ISO 18181-1 C, ISO 18181-2 9): size, components, precision, read bit by bit.

Only still pictures as DICOM has them (PS3.5 8.2.16): gray or RGB integers, no preview, no animation, no further channels,
upright. libjxl itself refuses a stream that ends early. Raises Rejected: TRUNCATED, DECODE_FAILED, UNSUPPORTED_PIXELS.
"""

from __future__ import annotations

from pipeline.dicom.boxes import boxes
from pipeline.dicom.codestream import Codec, Codestream, Color
from pipeline.errors import Rejected, RejectReason

JXL_START = b"\xff\x0a"
JXL_SIGNATURE = b"\x00\x00\x00\x0cJXL \r\n\x87\n"

_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
"""Width to height (ISO 18181-1 C.2, table C.1)."""
_GRAY, _RGB = 1, 3
_ENUM_GRAY = 1  # of the enumerated colour spaces


class _Bits:
    """Reads numbers, the least significant bit of each byte first."""

    def __init__(self, data: bytes) -> None:
        self._bits = int.from_bytes(data, "little")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        if count > self._left:
            raise IndexError
        value = self._bits & ((1 << count) - 1)
        self._bits >>= count
        self._left -= count
        return value

    def choice(self, *forms: tuple[int, int]) -> int:
        """A number in one of four forms: (its least, its bits) (U32 of ISO 18181-1)."""
        least, count = forms[self.take(2)]
        return least + self.take(count)


def read_jpegxl(frame: bytes) -> Codestream:
    """The header of the codestream, bare or in boxes."""
    bits = _Bits(_beginning(frame)[2:])
    rows, columns = _size(bits)
    precision, components = (8, _RGB) if bits.take(1) else _metadata(bits)
    color = Color.RGB if components == _RGB else None
    return Codestream(Codec.JPEG_XL, rows, columns, components, precision, color=color)


def holds_jpeg(frame: bytes) -> bool:
    """Whether it is a JPEG, compressed once more, that can be had back byte for byte (PS3.5 A.4.14)."""
    return frame.startswith(JXL_SIGNATURE) and any(kind == b"jbrd" for kind, _, _ in boxes(frame))


def _beginning(frame: bytes) -> bytes:
    """The first bytes of the codestream."""
    if frame.startswith(JXL_START):
        return frame[:64]
    for kind, payload, _ in boxes(frame):
        start = payload + 4 * (kind == b"jxlp")  # a part of a codestream, after its number
        if kind in (b"jxlc", b"jxlp") and frame.startswith(JXL_START, start):
            return frame[start : start + 64]
    raise Rejected(RejectReason.DECODE_FAILED, "the JPEG XL file in the frame holds no codestream box")


def _size(bits: _Bits) -> tuple[int, int]:
    small = bits.take(1)

    def side() -> int:
        return 8 * (1 + bits.take(5)) if small else bits.choice((1, 9), (1, 13), (1, 18), (1, 30))

    rows = side()
    ratio = bits.take(3)
    if ratio == 0:
        return rows, side()
    across, down = _RATIOS[ratio]
    return rows, rows * across // down


def _metadata(bits: _Bits) -> tuple[int, int]:
    """(bits a sample, components) of an image whose metadata are not all default."""
    if bits.take(1):  # extra fields
        upright = bits.take(3) == 0
        if bits.take(1):  # an intrinsic size: a hint on how to show it
            _size(bits)
        if not upright or bits.take(1) or bits.take(1):  # preview, animation
            raise Rejected(
                RejectReason.UNSUPPORTED_PIXELS, "a JPEG XL image that is turned, animated, or has a preview"
            )
    if bits.take(1):
        raise Rejected(RejectReason.UNSUPPORTED_PIXELS, "a JPEG XL image of floating-point samples")
    precision = bits.choice((8, 0), (10, 0), (12, 0), (1, 6))
    bits.take(1)  # whether 16 bits do for the decoder's own numbers
    if bits.choice((0, 0), (1, 0), (2, 4), (1, 12)):
        raise Rejected(RejectReason.UNSUPPORTED_PIXELS, "a JPEG XL image with channels beside its colours")
    bits.take(1)  # XYB: the decoder turns it into RGB or gray
    if bits.take(1):
        return precision, _RGB
    bits.take(1)  # an ICC profile: the enumerated space still says gray or colour
    space = bits.choice((0, 0), (1, 0), (2, 4), (18, 6))
    return precision, _GRAY if space == _ENUM_GRAY else _RGB
