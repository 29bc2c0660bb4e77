"""The transfer syntaxes of PS3.5 annex A that carry an image: which codec each needs, or why it is not decoded.

The codec is the one that the syntax names; a frame's own first bytes go before it (codecs). Retired syntaxes are those of DICOM's
first years; PS3.6 annex A lists them still. No pydicom in here: the index, which has none in its main process, reads this table.
"""

from __future__ import annotations

import re

from pipeline.dicom.codestream import Codec
from pipeline.errors import Rejected, RejectReason

_ROOT = "1.2.840.10008.1.2"

IMPLICIT_LITTLE, EXPLICIT_LITTLE, DEFLATED, EXPLICIT_BIG = (f"{_ROOT}{end}" for end in ("", ".1", ".1.99", ".2"))
NATIVE = (IMPLICIT_LITTLE, EXPLICIT_LITTLE, DEFLATED, EXPLICIT_BIG)
RETIRED_JPEG = tuple(f"{_ROOT}.4.{number}" for number in (52, 53, 54, 55, 56))
"""Processes 3 & 5, 6 & 8, 7 & 9, 10 & 12, 11 & 13: extended and progressive, by Huffman or arithmetic codes."""
_NUMBERS = {
    Codec.JPEG: (50, 51),
    Codec.JPEG_LOSSLESS: (57, 70),
    Codec.JPEG_LS: (80, 81),
    Codec.JPEG_2000: (90, 91, 201, 202, 203),
    Codec.JPEG_XL: (110, 111, 112),
}
CODEC_BY_SYNTAX: dict[str, Codec] = {
    f"{_ROOT}.1.98": Codec.NONE,
    f"{_ROOT}.8.1": Codec.DEFLATE,
    f"{_ROOT}.5": Codec.RLE,
    **dict.fromkeys(RETIRED_JPEG, Codec.JPEG),
    **{f"{_ROOT}.4.{number}": codec for codec, numbers in _NUMBERS.items() for number in numbers},
}
LOSSLESS = frozenset(f"{_ROOT}.4.{number}" for number in (57, 70, 80, 90, 110, 201, 202))
"""Those whose codestream may not be lossy."""

_VIDEO = "a video, of which radloop makes no image"
_HIERARCHICAL = "hierarchical JPEG (retired), for which there is no decoder"
_ELSEWHERE = "its pixels are not in the file but on a server (JPIP)"
_PART_2 = "JPEG 2000 part 2, which mixes frames as components"
_STREAM = "a live video stream (SMPTE ST 2110), not a file"
UNDECODED: dict[str, str] = {
    **{f"{_ROOT}.4.{number}": _HIERARCHICAL for number in (59, 60, 61, 62, 63, 64, 65, 66)},
    f"{_ROOT}.4.58": "JPEG Lossless with arithmetic codes (retired), for which there is no decoder",
    **{f"{_ROOT}.4.{number}": _PART_2 for number in (92, 93)},
    **{f"{_ROOT}.4.{number}": _ELSEWHERE for number in (94, 95, 204, 205)},
    **{f"{_ROOT}.4.{number}": _VIDEO for number in range(100, 109)},
    **{f"{_ROOT}.4.{number}.1": _VIDEO for number in range(100, 107)},
    **{f"{_ROOT}.7.{number}": _STREAM for number in (1, 2, 3)},
}
"""Transfer syntaxes of images that are not decoded, and why."""


def is_encapsulated(transfer_syntax_uid: str) -> bool:
    """True for compressed pixel data that radloop reads, False for native ones. Raises Rejected (UNSUPPORTED_SYNTAX)."""
    if transfer_syntax_uid in NATIVE:
        return False
    if transfer_syntax_uid in CODEC_BY_SYNTAX:
        return True
    raise undecoded(transfer_syntax_uid)


def undecoded(transfer_syntax_uid: str) -> Rejected:
    """Why this transfer syntax is not decoded. Its UID is quoted only if it is one."""
    shown = transfer_syntax_uid if re.fullmatch(r"[0-9.]{1,64}", transfer_syntax_uid) else "(not a UID)"
    why = UNDECODED.get(transfer_syntax_uid, "not one of an image that radloop decodes")
    return Rejected(RejectReason.UNSUPPORTED_SYNTAX, f"transfer syntax {shown}: {why}")
