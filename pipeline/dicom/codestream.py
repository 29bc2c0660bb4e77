"""What a compressed frame says about itself before anything is allocated: codec, size, components, precision.

The codestream, not the transfer syntax, says which codec it needs: files that are labelled with another JPEG process than they
hold are common, and harmless. Readers: jpeg_stream (JPEG, JPEG-LS), jpeg2000_stream (JPEG 2000, HTJ2K), jpegxl_stream, rle.
Every failure is a `Rejected`; nothing in its text comes from the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pipeline.errors import Rejected, RejectReason

PADDING = b"\x00\xff"
"""Writers pad a frame to even length with either; both occur in NEMA's and dcmtk's files."""


class Codec(StrEnum):
    """The kinds of codestream that radloop decodes."""

    JPEG = "JPEG"
    """DCT: baseline, extended, progressive."""
    JPEG_LOSSLESS = "JPEG Lossless"
    JPEG_LS = "JPEG-LS"
    JPEG_2000 = "JPEG 2000"
    """HTJ2K too: the same header, another block coder."""
    JPEG_XL = "JPEG XL"
    RLE = "RLE"
    DEFLATE = "deflate"
    """One deflated frame an item (PS3.5 A.4.13): native pixels inside."""
    NONE = "uncompressed"
    """Native pixels, one frame an item (Encapsulated Uncompressed)."""


class Color(StrEnum):
    """What a codestream says about its three components; where it says nothing, PhotometricInterpretation does."""

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


def check_end(frame: bytes) -> None:
    """The last marker is EOI (FF D9), but for padding. Raises Rejected (TRUNCATED).

    A single byte to even length may be anything: dcmtk 3.6.7 leaves there what its buffer held, of one near-lossless JPEG-LS in 12.
    """
    padded = len(frame) % 2 == 0 and frame[:-1].endswith(b"\xff\xd9")
    if not padded and not frame.rstrip(PADDING).endswith(b"\xff\xd9"):
        raise lacks_end(frame)


def lacks_end(frame: bytes) -> Rejected:
    return Rejected(RejectReason.TRUNCATED, f"the compressed frame of {len(frame)} bytes lacks its end marker (FF D9)")


def goes_on(frame: bytes) -> Rejected:
    return Rejected(
        RejectReason.DECODE_FAILED, f"the compressed frame of {len(frame)} bytes goes on after its end marker (FF D9)"
    )
