"""The stored values of one frame of an open DICOM image; of the pixel data only that frame is read.

Stored values are those of PS3.5 8.1.1: BitsStored bits below HighBit, sign-extended where PixelRepresentation is 1, whatever
stands in the unused bits (old overlays). Colour stays as it is stored, three samples a pixel where chroma is shared. Every
failure is a `Rejected`, whose text holds facts on the file and never a value from it that could be a patient's.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dicom.codecs import Samples, check_budget, decode_frame
from pipeline.dicom.codestream import Codec, Codestream, Color
from pipeline.dicom.encapsulation import read_range
from pipeline.dicom.image_file import ImageFile, open_image
from pipeline.dicom.native_pixels import NativeLayout, arrange
from pipeline.dicom.syntaxes import CODEC_BY_SYNTAX, LOSSLESS
from pipeline.errors import Rejected, RejectReason

__all__ = ["ImageFile", "StoredFrame", "open_image", "read_stored"]


@dataclass(frozen=True)
class StoredFrame:
    """(rows, columns) or (rows, columns, samples) integers or floats; `color`: what a codestream says of three samples."""

    values: Samples | NDArray[np.floating[Any]]
    color: Color | None = None


def read_stored(image: ImageFile, frame: int) -> StoredFrame:
    """The stored values of frame `frame`, from 0. Raises ValueError where there is no such frame, else Rejected."""
    if not 0 <= frame < image.shape.frames:
        raise ValueError(f"frame {frame} asked for, the image has frames 0 to {image.shape.frames - 1}")
    check_budget(image.format)
    if image.fragments is None:
        return StoredFrame(_read_native(image, frame))
    data = b"".join(read_range(image.window, part) for part in image.fragments[frame])
    codec = CODEC_BY_SYNTAX[image.transfer_syntax_uid]
    if codec in (Codec.NONE, Codec.DEFLATE):
        return StoredFrame(_read_item(data, codec, image))
    decoded = decode_frame(data, image.transfer_syntax_uid, image.format)
    if decoded.stream is None:
        return StoredFrame(_used_bits(decoded.samples, image))
    return StoredFrame(_conform(decoded.samples, decoded.stream, image), decoded.stream.color)


def _read_native(image: ImageFile, frame: int) -> Samples | NDArray[np.floating[Any]]:
    layout = image.layout
    first, after = layout.frame_bits * frame, layout.frame_bits * (frame + 1)
    return _values(_read_bytes(image, first // 8, -(-after // 8)), image, layout, first % 8)


def _read_item(data: bytes, codec: Codec, image: ImageFile) -> Samples | NDArray[np.floating[Any]]:
    """An item that holds native pixels (PS3.5 A.4.11) or deflated ones (A.4.13): each frame begins with a byte."""
    promised = -(-image.layout.frame_bits // 8)
    if codec is Codec.DEFLATE:
        data = _inflated(data, promised)
    if not promised <= len(data) <= promised + promised % 2 or any(data[promised:]):
        raise Rejected(
            RejectReason.SIZE_MISMATCH, f"a frame of {promised} bytes promised, an item of {len(data)} there"
        )
    return _values(data, image, image.layout, 0)


def _inflated(data: bytes, promised: int) -> bytes:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        found = inflate.decompress(data, promised + 2)
        inflate.decompress(inflate.unconsumed_tail, 1)
    except zlib.error:
        raise Rejected(RejectReason.DECODE_FAILED, "a deflated frame breaks the format") from None
    if len(found) > promised + 1:
        raise Rejected(RejectReason.SIZE_MISMATCH, f"a deflated frame holds more than the {promised} bytes promised")
    if not inflate.eof:
        raise Rejected(RejectReason.TRUNCATED, "a deflated frame lacks its end")
    return found


def _values(
    data: bytes, image: ImageFile, layout: NativeLayout, skipped_bits: int
) -> Samples | NDArray[np.floating[Any]]:
    if layout.subsampled and layout.columns % 2:
        raise Rejected(
            RejectReason.UNSUPPORTED_PIXELS,
            f"{image.shape.photometric_interpretation} shares its colour between two pixels of a row, of which there are an odd number",
        )
    values = arrange(data, layout, skipped_bits)
    return values if layout.is_float or layout.bits == 1 else _used_bits(values, image)


def _read_bytes(image: ImageFile, first: int, after: int) -> bytes:
    """Bytes of native pixel data, in the order of little endian where no pixel is a whole word.

    Big endian OW swaps 8-bit samples, and bits, in pairs of bytes (PS3.5 8.2): whole words are read there.
    """
    start, length = image.element.offset, image.element.length
    if image.little_endian or image.vr != "OW" or image.shape.bits_allocated in (16, 32):
        return read_range(image.window, (start + first, after - first))
    word = first - first % 2
    data = read_range(image.window, (start + word, min(after + after % 2, length) - word))
    swapped = np.frombuffer(data[: len(data) // 2 * 2], ">u2").astype("<u2").tobytes() + data[len(data) // 2 * 2 :]
    return swapped[first - word : after - word]


def _used_bits(values: Samples, image: ImageFile) -> Samples:
    """BitsStored bits up to HighBit, sign-extended where signed: shifted up to the container's end, then down."""
    width = values.dtype.itemsize * 8
    values = values.astype(f"{'i' if image.signed else 'u'}{values.dtype.itemsize}", copy=False)
    if image.bits_stored == width:
        return values
    return (values << (width - 1 - image.high_bit)) >> (width - image.bits_stored)


def _conform(values: Samples, stream: Codestream, image: ImageFile) -> Samples:
    """Samples of a codestream as stored values.

    A codestream has its own precision. Up to BitsStored its samples are the values, but for the sign. Beyond, those of
    a lossless stream hold unused bits, which are cut off; those of a lossy one overshoot, and are clipped: cutting would
    turn white to black, as it does in other readers (seen in NEMA's RG3_JPLY: 1024 at 10 bits stored).
    """
    width = values.dtype.itemsize * 8
    if stream.precision > image.bits_stored and _is_lossless(stream, image):
        if image.high_bit >= width:
            detail = f"HighBit {image.high_bit} of a codestream of {stream.precision} bits"
            raise Rejected(RejectReason.UNSUPPORTED_PIXELS, detail)
        return _used_bits(values, image)
    if stream.signed != image.signed:
        unused = width - stream.precision
        values = (values.astype(f"{'i' if image.signed else 'u'}{values.dtype.itemsize}") << unused) >> unused
    if stream.precision <= image.bits_stored:
        return values
    low, high = (
        (-(1 << (image.bits_stored - 1)), (1 << (image.bits_stored - 1)) - 1)
        if image.signed
        else (0, (1 << image.bits_stored) - 1)
    )
    return np.clip(values, low, high)


def _is_lossless(stream: Codestream, image: ImageFile) -> bool:
    return stream.codec is Codec.JPEG_LOSSLESS or image.transfer_syntax_uid in LOSSLESS
