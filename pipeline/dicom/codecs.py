"""Compressed frames → stored samples, through imagecodecs.

`decode_frame` takes one frame's bytes and what the header promises of it, and gives an integer array (rows, columns) or (rows,
columns, samples) whose samples are exactly those of the codestream: colour is never converted (but by codecs that always do:
JPEG 2000, JPEG XL). Before anything is allocated, the codestream's own header is compared with the DICOM header and the budget.
The same decoder is registered with pydicom under the name `imagecodecs` when this module is imported; what pydicom has no decoder
for (retired JPEG processes, JPEG XL) is only read here. Every failure is a `Rejected`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.pixels import get_decoder
from pydicom.pixels.decoders.base import DecodeRunner

from pipeline.dicom.codestream import Codec, Codestream
from pipeline.dicom.jpeg2000_stream import J2K_START, JP2_SIGNATURE, check_tiles, read_jpeg2000
from pipeline.dicom.jpeg_stream import read_jpeg
from pipeline.dicom.jpeg_whole import decode_jpeg
from pipeline.dicom.jpegxl_stream import JXL_SIGNATURE, JXL_START, holds_jpeg, read_jpegxl
from pipeline.dicom.rle import decode_rle
from pipeline.dicom.syntaxes import CODEC_BY_SYNTAX, NATIVE, RETIRED_JPEG, UNDECODED, undecoded
from pipeline.errors import Rejected, RejectReason

Samples = NDArray[np.integer[Any]]  # (rows, columns) or (rows, columns, samples)

MAX_FRAME_BYTES = 256 * 2**20
"""Of one decoded frame. Five times a tomosynthesis or whole-body radiograph of 5,000 × 5,000 at 16 bit; turned into float32 with its
padding mask and the 0-1 image it still stays below 2 GiB in a worker."""

PLUGIN = "imagecodecs"

_IMAGECODECS_NAME = {
    Codec.JPEG: "JPEG8",
    Codec.JPEG_LOSSLESS: "JPEG8",
    Codec.JPEG_LS: "JPEGLS",
    Codec.JPEG_2000: "JPEG2K",
    Codec.JPEG_XL: "JPEGXL",
    Codec.RLE: "DICOMRLE",
}
_NEW_NAMES = {
    "1.2.840.10008.1.2.1.98": "Encapsulated Uncompressed Explicit VR Little Endian",
    "1.2.840.10008.1.2.8.1": "Deflated Image Frame Compression",
    "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",
    "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
}
_PLUGIN_CODECS = frozenset({*_IMAGECODECS_NAME} - {Codec.JPEG_XL})
"""Those that pydicom 3 has a decoder for."""

DECODER_DEPENDENCIES = {
    uid.UID(syntax): ("numpy", "imagecodecs")
    for syntax, codec in CODEC_BY_SYNTAX.items()
    if codec in _PLUGIN_CODECS and syntax not in RETIRED_JPEG
}
"""Part of pydicom's plugin contract."""


@dataclass(frozen=True)
class FrameFormat:
    """What the Image Pixel module promises of one frame (PS3.3 C.7.6.3)."""

    rows: int
    columns: int
    samples_per_pixel: int
    bits_allocated: int

    @property
    def bytes(self) -> int:
        """Of the decoded frame, in the containers that numpy has: 8, 16, 32 or 64 bits a sample."""
        return self.rows * self.columns * self.samples_per_pixel * container_bytes(self.bits_allocated)


@dataclass(frozen=True)
class DecodedFrame:
    """`samples` as the codestream has them, `stream` its header (None for RLE, which has none)."""

    samples: Samples
    stream: Codestream | None


def container_bytes(bits: int) -> int:
    """Of the smallest unsigned integer that holds so many bits: 1, 2, 4 or 8."""
    return next(size for size in (1, 2, 4, 8) if bits <= 8 * size or size == 8)


def check_budget(frame: FrameFormat) -> None:
    """Raises Rejected (TOO_LARGE) where the decoded frame would be larger than `MAX_FRAME_BYTES`."""
    if frame.bytes > MAX_FRAME_BYTES:
        raise Rejected(
            RejectReason.TOO_LARGE,
            f"a frame of {frame.rows} × {frame.columns} × {frame.samples_per_pixel} samples of {frame.bits_allocated} bit takes "
            f"{frame.bytes} bytes; the budget is {MAX_FRAME_BYTES}",
        )


def decode_frame(frame: bytes, transfer_syntax_uid: str, expected: FrameFormat) -> DecodedFrame:
    """One compressed frame → its samples, (rows, columns) or (rows, columns, samples), integers as wide as the codec gives them.

    Raises Rejected: UNSUPPORTED_SYNTAX, TOO_LARGE, TRUNCATED, SIZE_MISMATCH, DECODE_FAILED, UNSUPPORTED_PIXELS.
    """
    codec = CODEC_BY_SYNTAX.get(transfer_syntax_uid)
    if codec is None or codec in (Codec.NONE, Codec.DEFLATE):
        raise undecoded(transfer_syntax_uid)
    check_budget(expected)
    try:
        if codec is Codec.RLE:
            size = (expected.rows, expected.columns, expected.samples_per_pixel, expected.bits_allocated)
            return DecodedFrame(decode_rle(frame, *size), None)
        stream, decode = open_codestream(frame)
        _compare(stream, expected)
        samples = decode()
    except (struct.error, IndexError):
        detail = f"the compressed frame of {len(frame)} bytes ends inside its header"
        raise Rejected(RejectReason.TRUNCATED, detail) from None
    except (RuntimeError, ValueError) as error:  # each codec of imagecodecs has its own subclass of RuntimeError
        raise Rejected(RejectReason.DECODE_FAILED, f"the {codec} decoder reports {type(error).__name__}") from None
    return DecodedFrame(_in_pixel_order(samples, expected), stream)


def open_codestream(frame: bytes) -> tuple[Codestream, Callable[[], Samples]]:
    """(header, what decodes it), by the stream's first bytes.

    Raises Rejected: DECODE_FAILED (no such stream, or a header that breaks its format), TRUNCATED, UNSUPPORTED_PIXELS; and
    struct.error or IndexError where the frame ends inside its header.
    """
    if frame.startswith((J2K_START, JP2_SIGNATURE)):
        return read_jpeg2000(frame), lambda: _decode_jpeg2000(frame)
    if frame.startswith((JXL_START, JXL_SIGNATURE)):
        return _open_jpegxl(frame)
    if frame.startswith(b"\xff\xd8"):
        return _open_jpeg(frame)
    detail = (
        f"expected a JPEG, JPEG-LS, JPEG 2000 or JPEG XL stream, found one of {len(frame)} bytes that starts otherwise"
    )
    raise Rejected(RejectReason.DECODE_FAILED, detail)


def decoders() -> list[tuple[str, str, str, bool]]:
    """(transfer syntax UID, its name, what decodes it or why nothing does, available) of every one that carries an image.

    Native ones first, those that are never decoded last.
    """
    return [
        *((syntax, uid.UID(syntax).name, "numpy", True) for syntax in NATIVE),
        *((syntax, _name(syntax), *_decoder(syntax)) for syntax in CODEC_BY_SYNTAX),
        *((syntax, uid.UID(syntax).name, f"not decoded: {why}", False) for syntax, why in UNDECODED.items()),
    ]


def is_available(syntax: str) -> bool:
    """Part of pydicom's plugin contract."""
    return syntax in DECODER_DEPENDENCIES and _decoder(syntax)[1]


def decode_for_pydicom(frame: bytes, runner: DecodeRunner) -> bytearray:
    """Part of pydicom's plugin contract: one frame in the container that BitsAllocated names, colour by pixel."""
    expected = FrameFormat(runner.rows, runner.columns, runner.samples_per_pixel, runner.bits_allocated)
    decoded = decode_frame(frame, runner.transfer_syntax, expected)
    runner.set_option("planar_configuration", 0)
    if runner.photometric_interpretation in ("YBR_ICT", "YBR_RCT"):  # JPEG 2000 undoes its own colour transform
        runner.set_option("photometric_interpretation", "RGB")
    kind = "i" if decoded.samples.dtype.kind == "i" else "u"
    return bytearray(decoded.samples.astype(f"<{kind}{container_bytes(expected.bits_allocated)}").tobytes())


def register() -> None:
    """Adds the plugin to each of pydicom's decoders that has a syntax of ours; doing it again changes nothing."""
    for syntax in DECODER_DEPENDENCIES:
        decoder = get_decoder(syntax)
        if PLUGIN not in decoder.available_plugins:
            decoder.add_plugin(PLUGIN, (__name__, decode_for_pydicom.__name__))


def _decode_jpeg2000(frame: bytes) -> Samples:
    """OpenJPEG reads HTJ2K too, and unlike OpenJPH refuses one that is cut. One thread: workers are the parallelism."""
    check_tiles(frame)
    return imagecodecs.jpeg2k_decode(frame, numthreads=1)


def _open_jpeg(frame: bytes) -> tuple[Codestream, Callable[[], Samples]]:
    jpeg = read_jpeg(frame)
    if jpeg.header.codec is Codec.JPEG_LS:
        return jpeg.header, lambda: imagecodecs.jpegls_decode(frame)
    return jpeg.header, lambda: decode_jpeg(frame, jpeg)


def _open_jpegxl(frame: bytes) -> tuple[Codestream, Callable[[], Samples]]:
    """A JPEG that was compressed once more is decoded as that JPEG, whose samples are then those of its first coding."""
    header = read_jpegxl(frame)
    if not holds_jpeg(frame):
        return header, lambda: imagecodecs.jpegxl_decode(frame, keeporientation=True, numthreads=1)
    check_budget(FrameFormat(header.rows, header.columns, header.components, header.precision))
    try:
        return _open_jpeg(bytes(imagecodecs.jpegxl_decode_jpeg(frame, numthreads=1)))
    except RuntimeError as error:
        detail = f"the JPEG XL decoder reports {type(error).__name__}"
        raise Rejected(RejectReason.DECODE_FAILED, detail) from None


def _name(syntax: str) -> str:
    """pydicom 3.0 does not know the newest ones."""
    return _NEW_NAMES.get(syntax) or uid.UID(syntax).name


def _decoder(syntax: str) -> tuple[str, bool]:
    """What decodes a compressed syntax, and whether it is there."""
    codec = CODEC_BY_SYNTAX[syntax]
    module = _IMAGECODECS_NAME.get(codec)
    if module is None:
        return ("zlib and numpy" if codec is Codec.DEFLATE else "numpy"), True
    return f"imagecodecs ({codec})", bool(getattr(imagecodecs, module).available)


def _compare(stream: Codestream, expected: FrameFormat) -> None:
    found = (stream.rows, stream.columns, stream.components)
    promised = (expected.rows, expected.columns, expected.samples_per_pixel)
    if found != promised:
        raise Rejected(
            RejectReason.SIZE_MISMATCH,
            f"the header promises rows × columns × samples {promised}, the {stream.codec} stream holds {found}",
        )
    if stream.precision > expected.bits_allocated:
        raise Rejected(
            RejectReason.SIZE_MISMATCH,
            f"the {stream.codec} stream has {stream.precision} bits a sample, more than the {expected.bits_allocated} allocated",
        )


def _in_pixel_order(samples: Samples, expected: FrameFormat) -> Samples:
    """(rows, columns[, samples]); JPEG-LS and JPEG 2000 may keep one plane a component."""
    shape: tuple[int, ...] = (expected.rows, expected.columns)
    if expected.samples_per_pixel > 1:
        if samples.shape == (expected.samples_per_pixel, *shape) and samples.shape != (
            *shape,
            expected.samples_per_pixel,
        ):
            samples = np.moveaxis(samples, 0, -1)
        shape = (*shape, expected.samples_per_pixel)
    if samples.shape != shape:
        raise Rejected(
            RejectReason.SIZE_MISMATCH, f"the header promises an array {shape}, the decoder gave {samples.shape}"
        )
    return samples


register()
