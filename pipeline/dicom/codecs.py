"""Compressed frames → stored samples, through imagecodecs.

`decode_frame` takes one frame's bytes and what the header promises of it, and gives an integer array (rows, columns) or (rows,
columns, samples) whose samples are exactly those of the codestream: colour is never converted. Before anything is allocated, the
codestream's own header is compared with the DICOM header and the budget. The same decoder is registered with pydicom under the name
`imagecodecs` when this module is imported, so that `pixel_array` reads 12-bit JPEG too; retired JPEG processes, for which pydicom has no
decoder, are only read here. Every failure is a `Rejected`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.pixels import get_decoder
from pydicom.pixels.decoders.base import DecodeRunner

from pipeline.dicom.codestream import Codec, Codestream, read_codestream, rle_segments
from pipeline.errors import Rejected, RejectReason

Samples = NDArray[np.integer[Any]]  # (rows, columns) or (rows, columns, samples)

MAX_FRAME_BYTES = 256 * 2**20
"""Of one decoded frame. Five times a tomosynthesis or whole-body radiograph of 5,000 × 5,000 at 16 bit; turned into float32 with its
padding mask and the 0-1 image it still stays below 2 GiB in a worker."""

PLUGIN = "imagecodecs"

RETIRED_JPEG = (
    "1.2.840.10008.1.2.4.52",
    "1.2.840.10008.1.2.4.53",
    "1.2.840.10008.1.2.4.54",
    "1.2.840.10008.1.2.4.55",
    "1.2.840.10008.1.2.4.56",
    "1.2.840.10008.1.2.4.58",
)
"""Processes 3 & 5, 6 & 8, 7 & 9, 10 & 12, 11 & 13, 15 (PS3.6 A, retired): extended, spectral selection, progressive, lossless."""

_CODEC_BY_SYNTAX: dict[str, Codec] = {
    **dict.fromkeys((uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, *RETIRED_JPEG), Codec.JPEG),
    **dict.fromkeys((uid.JPEGLossless, uid.JPEGLosslessSV1), Codec.JPEG_LOSSLESS),
    **dict.fromkeys((uid.JPEGLSLossless, uid.JPEGLSNearLossless), Codec.JPEG_LS),
    **dict.fromkeys(
        (uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K), Codec.JPEG_2000
    ),
    uid.RLELossless: Codec.RLE,
}
_CODEC_AVAILABLE: dict[Codec, Callable[[], bool]] = {
    Codec.JPEG: lambda: bool(imagecodecs.JPEG8.available),
    Codec.JPEG_LOSSLESS: lambda: bool(imagecodecs.JPEG8.available),
    Codec.JPEG_LS: lambda: bool(imagecodecs.JPEGLS.available),
    Codec.JPEG_2000: lambda: bool(imagecodecs.JPEG2K.available),
    Codec.RLE: lambda: bool(imagecodecs.DICOMRLE.available),
}
_NATIVE = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
)

DECODER_DEPENDENCIES = {uid.UID(syntax): ("numpy", "imagecodecs") for syntax in _CODEC_BY_SYNTAX}
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
        """Of the decoded frame; a frame of single bits counts a byte a pixel, as it is unpacked."""
        return self.rows * self.columns * self.samples_per_pixel * max(self.bits_allocated // 8, 1)


@dataclass(frozen=True)
class DecodedFrame:
    """`samples` as the codestream has them, `stream` its header (None for RLE, which has none)."""

    samples: Samples
    stream: Codestream | None


def is_encapsulated(transfer_syntax_uid: str) -> bool:
    """True for compressed pixel data that `decode_frame` reads, False for native ones. Raises Rejected (UNSUPPORTED_SYNTAX)."""
    if transfer_syntax_uid in _NATIVE:
        return False
    if transfer_syntax_uid in _CODEC_BY_SYNTAX:
        return True
    raise Rejected(
        RejectReason.UNSUPPORTED_SYNTAX,
        f"transfer syntax {_shown(transfer_syntax_uid)} is not one of an image that radloop decodes",
    )


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
    codec = _CODEC_BY_SYNTAX.get(transfer_syntax_uid)
    if codec is None:
        raise Rejected(RejectReason.UNSUPPORTED_SYNTAX, f"transfer syntax {_shown(transfer_syntax_uid)} has no decoder")
    check_budget(expected)
    if codec is Codec.RLE:
        return DecodedFrame(_decode_rle(frame, expected), None)
    stream = read_codestream(frame)
    _compare(stream, expected)
    try:
        samples = _decode_stream(frame, stream)
    except (RuntimeError, ValueError) as error:  # each codec of imagecodecs has its own subclass of RuntimeError
        raise Rejected(
            RejectReason.DECODE_FAILED, f"the {stream.codec} decoder reports {type(error).__name__}"
        ) from None
    return DecodedFrame(_in_pixel_order(samples, expected), stream)


def decoders() -> list[tuple[str, str, str, bool]]:
    """(transfer syntax UID, its name, what decodes it, available) of every transfer syntax radloop reads, native ones first."""
    native = [(str(syntax), syntax.name, "pydicom and numpy", True) for syntax in _NATIVE]
    compressed = [
        (str(syntax), uid.UID(syntax).name, f"imagecodecs ({codec})", _CODEC_AVAILABLE[codec]())
        for syntax, codec in sorted(_CODEC_BY_SYNTAX.items())
    ]
    return native + compressed


def is_available(syntax: str) -> bool:
    """Part of pydicom's plugin contract."""
    return syntax in _CODEC_BY_SYNTAX and _CODEC_AVAILABLE[_CODEC_BY_SYNTAX[syntax]]()


def decode_for_pydicom(frame: bytes, runner: DecodeRunner) -> bytearray:
    """Part of pydicom's plugin contract: one frame in the container that BitsAllocated names, colour by pixel."""
    expected = FrameFormat(runner.rows, runner.columns, runner.samples_per_pixel, runner.bits_allocated)
    decoded = decode_frame(frame, runner.transfer_syntax, expected)
    runner.set_option("planar_configuration", 0)
    if runner.photometric_interpretation in ("YBR_ICT", "YBR_RCT"):  # JPEG 2000 undoes its own colour transform
        runner.set_option("photometric_interpretation", "RGB")
    kind = "i" if decoded.samples.dtype.kind == "i" else "u"
    return bytearray(decoded.samples.astype(f"<{kind}{expected.bits_allocated // 8}").tobytes())


def register() -> None:
    """Adds the plugin to each of pydicom's decoders that has a syntax of ours; doing it again changes nothing."""
    for syntax in _CODEC_BY_SYNTAX:
        if syntax in RETIRED_JPEG:
            continue
        decoder = get_decoder(uid.UID(syntax))
        if PLUGIN not in decoder.available_plugins:
            decoder.add_plugin(PLUGIN, (__name__, decode_for_pydicom.__name__))


def _decode_stream(frame: bytes, stream: Codestream) -> Samples:
    if stream.codec is Codec.JPEG_2000:
        return imagecodecs.jpeg2k_decode(frame, numthreads=1)  # workers are the parallelism
    if stream.codec is Codec.JPEG_LS:
        return imagecodecs.jpegls_decode(frame)
    if stream.components != 3:
        return imagecodecs.jpeg8_decode(frame)
    # The same colour space in and out: libjpeg would else convert by its own guess, against PhotometricInterpretation.
    return imagecodecs.jpeg8_decode(frame, colorspace=imagecodecs.JPEG8.CS.RGB, outcolorspace=imagecodecs.JPEG8.CS.RGB)


def _decode_rle(frame: bytes, expected: FrameFormat) -> Samples:
    sample_bytes = expected.bits_allocated // 8
    segments = rle_segments(frame)
    if expected.bits_allocated % 8 or segments != expected.samples_per_pixel * sample_bytes:
        raise Rejected(
            RejectReason.SIZE_MISMATCH,
            f"{expected.samples_per_pixel} samples of {expected.bits_allocated} bit need as many RLE segments as bytes, found {segments}",
        )
    dtype = np.dtype(f"<u{sample_bytes}")
    try:
        planes = imagecodecs.dicomrle_decode(frame, dtype, out=expected.bytes)
    except (RuntimeError, ValueError) as error:
        too_long = "TOO_SMALL" in str(error)
        reason = RejectReason.SIZE_MISMATCH if too_long else RejectReason.DECODE_FAILED
        found = "holds more pixels than the header promises" if too_long else "breaks the format"
        raise Rejected(reason, f"an RLE segment {found}") from None
    if len(planes) != expected.bytes:
        raise Rejected(
            RejectReason.SIZE_MISMATCH,
            f"the RLE frame decodes to {len(planes)} bytes, the header promises {expected.bytes}",
        )
    planar = np.frombuffer(planes, dtype).reshape(expected.samples_per_pixel, expected.rows, expected.columns)
    return planar[0] if expected.samples_per_pixel == 1 else np.moveaxis(planar, 0, -1)


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


def _shown(transfer_syntax_uid: str) -> str:
    """A UID fit for a message: only if it is one."""
    return transfer_syntax_uid if re.fullmatch(r"[0-9.]{1,64}", transfer_syntax_uid) else "(not a UID)"


register()
