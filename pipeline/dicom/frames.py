"""A DICOM file → the stored values of one of its frames.

Only the attributes that pixels need are read, the others are skipped over; of the pixel data only the frame that is asked for.
Stored values are those of PS3.5 8.1.1: BitsStored bits below HighBit, sign-extended where PixelRepresentation is 1, whatever stands in the
unused bits (old overlays). Colour stays as it is stored. Reading is tolerant (no preamble, no meta information); a size that
does not add up is not: shown anyway, such an image is sheared or cut. Every failure is a `Rejected`, whose text holds facts on the file and
never a value from it that could be a patient's.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, config, dcmread, uid
from pydicom.tag import BaseTag, Tag

from pipeline.dicom.codecs import FrameFormat, Samples, check_budget, decode_frame, is_encapsulated
from pipeline.dicom.codestream import Codec, Codestream, Color
from pipeline.dicom.encapsulation import Range, locate_frames, read_range
from pipeline.errors import Rejected, RejectReason
from pipeline.regular_file import open_regular

MAX_INFLATED_BYTES = 512 * 2**20
"""Of a deflated file, which cannot be read in parts; a megabyte of zeros takes a kilobyte deflated."""

UNDEFINED_LENGTH = 0xFFFFFFFF

PIXEL_KEYWORDS = {
    Tag(0x7FE0, 0x0008): "FloatPixelData",
    Tag(0x7FE0, 0x0009): "DoubleFloatPixelData",
    Tag(0x7FE0, 0x0010): "PixelData",
}
READ_KEYWORDS = (
    *(
        "SOPClassUID",
        "Modality",
        "ImageType",
        "NumberOfFrames",
        "SamplesPerPixel",
        "PhotometricInterpretation",
        "PlanarConfiguration",
    ),
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "FloatPixelPaddingValue", "DoubleFloatPixelPaddingValue"),
    *("FloatPixelPaddingRangeLimit", "DoubleFloatPixelPaddingRangeLimit"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", "PresentationLUTShape"),
    *("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "ExtendedOffsetTable"),
    *(f"{color}PaletteColorLookupTableDescriptor" for color in ("Red", "Green", "Blue")),
    *(f"{color}PaletteColorLookupTableData" for color in ("Red", "Green", "Blue")),
    *(f"Segmented{color}PaletteColorLookupTableData" for color in ("Red", "Green", "Blue")),
)
"""What is read of a header: nothing here names a patient."""

_LOSSLESS = frozenset({uid.JPEG2000Lossless, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.JPEGLSLossless})
_PIXEL_VRS = (b"OB", b"OW", b"OF", b"OD", b"UN")
_DEFLATED = uid.DeflatedExplicitVRLittleEndian
_META_START = 132
_MAX_META_BYTES = 65536  # of group 0002: a handful of UIDs and names, in every file seen below 1 KiB
_SUPPORTED_BITS = (1, 8, 16, 32)


@dataclass(frozen=True)
class ImageFile:
    """An open DICOM image: its header, and where its frames are. `photometric_interpretation` as it applies to the stored data."""

    dataset: Dataset
    file: BinaryIO
    transfer_syntax_uid: str
    little_endian: bool
    pixel_keyword: str
    pixel_vr: str
    photometric_interpretation: str
    frames: int
    format: FrameFormat
    bits_stored: int
    high_bit: int
    signed: bool
    color_by_plane: bool
    value: Range
    fragments: tuple[tuple[Range, ...], ...] | None = None
    """One tuple of ranges a frame, for encapsulated pixel data."""


@dataclass(frozen=True)
class StoredFrame:
    """(rows, columns) or (rows, columns, samples) integers or floats, as stored; `color`: what a codestream says of three samples."""

    values: Samples | NDArray[np.floating[Any]]
    color: Color | None = None


@contextmanager
def open_image(path: Path) -> Iterator[ImageFile]:
    """The image in a DICOM file, open for reading frames. Never blocks on a FIFO, never follows a device.

    Raises Rejected: NOT_REGULAR, UNREADABLE, CHANGED (gone), EMPTY, NOT_AN_IMAGE, DICOMDIR, NO_PIXELS, MALFORMED, TRUNCATED,
    SIZE_MISMATCH, UNSUPPORTED_SYNTAX, UNSUPPORTED_PIXELS, TOO_LARGE.
    """
    with open_regular(path) as file:
        yield _read_image(file, os.fstat(file.fileno()).st_size)


@contextmanager
def parsing() -> Iterator[None]:
    """Around whatever makes pydicom parse or convert a value of a file: what fails becomes a Rejected, MALFORMED or TOO_LARGE."""
    try:
        with warnings.catch_warnings(), config.disable_value_validation():
            warnings.simplefilter("ignore")  # pydicom's warnings quote values
            yield
    except Rejected:
        raise
    except MemoryError:
        raise Rejected(RejectReason.TOO_LARGE, "an element of the header is larger than the memory there is") from None
    except Exception as error:  # a broken file makes pydicom raise nearly anything, with texts that quote values
        raise Rejected(RejectReason.MALFORMED, f"pydicom cannot parse the header ({type(error).__name__})") from None


def read_stored(image: ImageFile, frame: int) -> StoredFrame:
    """The stored values of frame `frame`, counted from 0. Raises ValueError where there is no such frame, else Rejected."""
    if not 0 <= frame < image.frames:
        raise ValueError(f"frame {frame} asked for, the image has frames 0 to {image.frames - 1}")
    check_budget(image.format)
    if image.fragments is None:
        return StoredFrame(_read_native(image, frame))
    stream = b"".join(read_range(image.file, part) for part in image.fragments[frame])
    decoded = decode_frame(stream, image.transfer_syntax_uid, image.format)
    if decoded.stream is None:
        return StoredFrame(_used_bits(decoded.samples, image))
    return StoredFrame(_conform(decoded.samples, decoded.stream, image), decoded.stream.color)


def _read_image(file: BinaryIO, size: int) -> ImageFile:
    _check_signature(file)
    file, size = _inflated(file, size)
    dataset = _read_dataset(file)
    tag, vr, length = _pixel_element(file, dataset, size)
    _, little_endian = dataset.original_encoding
    image = ImageFile(
        dataset=dataset,
        file=file,
        transfer_syntax_uid=_transfer_syntax(dataset),
        little_endian=bool(little_endian),
        pixel_keyword=PIXEL_KEYWORDS[tag],
        pixel_vr=vr,
        photometric_interpretation=str(dataset.get("PhotometricInterpretation") or "").strip(),
        frames=_integer(dataset, "NumberOfFrames", 1) or 1,
        format=_frame_format(dataset),
        bits_stored=0,
        high_bit=0,
        signed=_integer(dataset, "PixelRepresentation", 0) == 1,
        color_by_plane=_integer(dataset, "PlanarConfiguration", 0) == 1,
        value=(file.tell(), length),
    )
    return _located(_with_bits(image), size)


def _check_signature(file: BinaryIO) -> None:
    """DICM after the preamble; else, as old files have neither, a first element of group 0002 or 0008."""
    head = file.read(_META_START)
    file.seek(0)
    if head[128:] == b"DICM":
        return
    if head[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08") or len(head) < _META_START:
        raise Rejected(RejectReason.NOT_AN_IMAGE, "no DICM prefix, and no first element of a DICOM data set")


def _inflated(file: BinaryIO, size: int) -> tuple[BinaryIO, int]:
    """The file itself; for a deflated one (PS3.5 A.5) its header and inflated data set, within `MAX_INFLATED_BYTES`."""
    head = file.read(_META_START + 12)
    tag, vr, _, length = (
        struct.unpack("<L2sHL", head[_META_START:]) if head[128:132] == b"DICM" and len(head) >= 144 else (0, b"", 0, 0)
    )
    meta = file.read(min(length, _MAX_META_BYTES)) if (tag, vr) == (0x00000002, b"UL") else file.read(_MAX_META_BYTES)
    if _DEFLATED.encode() not in meta or head[128:132] != b"DICM":
        file.seek(0)
        return file, size
    if (tag, vr) != (0x00000002, b"UL"):
        raise Rejected(RejectReason.MALFORMED, "a deflated file whose meta information does not give its length")
    if size > MAX_INFLATED_BYTES:
        raise Rejected(RejectReason.TOO_LARGE, f"a deflated file of {size} bytes; the budget is {MAX_INFLATED_BYTES}")
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = inflater.decompress(file.read(), MAX_INFLATED_BYTES)
    except zlib.error:
        raise Rejected(RejectReason.DECODE_FAILED, "the deflated data set cannot be inflated") from None
    if not inflater.eof:
        if inflater.unconsumed_tail:
            raise Rejected(RejectReason.TOO_LARGE, f"the data set inflates to more than {MAX_INFLATED_BYTES} bytes")
        raise Rejected(RejectReason.TRUNCATED, "the deflated data set lacks its end")
    native_meta = meta.replace(_DEFLATED.encode(), uid.ExplicitVRLittleEndian.encode().ljust(len(_DEFLATED), b"\0"))
    return io.BytesIO(head + native_meta + data), len(head) + len(native_meta) + len(data)


def _read_dataset(file: BinaryIO) -> Dataset:
    """The attributes `READ_KEYWORDS`, the file positioned at the pixel data, or at the end."""
    with parsing():
        dataset = dcmread(file, force=True, stop_before_pixels=True, specific_tags=list(READ_KEYWORDS))
        for keyword in READ_KEYWORDS:  # values are converted when first asked for, and may fail then
            dataset.get(keyword)
    if dataset.file_meta.get("MediaStorageSOPClassUID") == uid.MediaStorageDirectoryStorage:
        raise Rejected(RejectReason.DICOMDIR, "the directory of a DICOM medium")
    return dataset


def _pixel_element(file: BinaryIO, dataset: Dataset, size: int) -> tuple[BaseTag, str, int]:
    """(tag, VR, length) of the pixel data element; the file stands at its value then."""
    order = "<" if dataset.original_encoding[1] else ">"
    head = file.read(8)
    if len(head) < 8:
        if "Rows" in dataset or file.tell() > size:
            raise Rejected(RejectReason.TRUNCATED, "the file ends before its pixel data")
        raise Rejected(RejectReason.NO_PIXELS, "the data set has no pixel data")
    group, element = struct.unpack(f"{order}HH", head[:4])
    tag = Tag(group, element)
    if tag not in PIXEL_KEYWORDS:
        raise Rejected(RejectReason.MALFORMED, "the data set cannot be parsed up to its end")
    if (
        head[4:6] not in _PIXEL_VRS
    ):  # implicit VR, also where the transfer syntax says explicit: some writers mix them up
        (length,) = struct.unpack(f"{order}L", head[4:])
        return tag, "OW", length
    rest = file.read(4)
    if len(rest) < 4:
        raise Rejected(RejectReason.TRUNCATED, "the file ends before its pixel data")
    return tag, head[4:6].decode("latin-1"), struct.unpack(f"{order}L", rest)[0]


def _transfer_syntax(dataset: Dataset) -> str:
    given = dataset.file_meta.get("TransferSyntaxUID")
    if given:
        return str(given)
    implicit, little_endian = dataset.original_encoding
    if implicit:
        return str(uid.ImplicitVRLittleEndian)
    return str(uid.ExplicitVRLittleEndian if little_endian else uid.ExplicitVRBigEndian)


def _frame_format(dataset: Dataset) -> FrameFormat:
    rows, columns, bits = (_integer(dataset, keyword) for keyword in ("Rows", "Columns", "BitsAllocated"))
    if not rows or not columns or not bits:
        raise Rejected(RejectReason.MALFORMED, "pixel data without Rows, Columns and BitsAllocated")
    return FrameFormat(rows, columns, _integer(dataset, "SamplesPerPixel", 1) or 1, bits)


def _with_bits(image: ImageFile) -> ImageFile:
    """BitsStored and HighBit with their usual values where they are absent or impossible; unusual formats are refused."""
    bits, samples = image.format.bits_allocated, image.format.samples_per_pixel
    if image.pixel_keyword != "PixelData":
        return replace(
            image, format=replace(image.format, bits_allocated=32 if image.pixel_keyword == "FloatPixelData" else 64)
        )
    if bits not in _SUPPORTED_BITS or samples not in (1, 3):
        raise Rejected(RejectReason.UNSUPPORTED_PIXELS, f"{samples} samples of {bits} bit a pixel")
    stored = _integer(image.dataset, "BitsStored", bits) or bits
    if not 1 <= stored <= bits:
        raise Rejected(RejectReason.UNSUPPORTED_PIXELS, f"BitsStored {stored} of BitsAllocated {bits}")
    high_bit = _integer(image.dataset, "HighBit", stored - 1)
    if high_bit is None or not stored - 1 <= high_bit < bits:
        high_bit = stored - 1
    return replace(image, bits_stored=stored, high_bit=high_bit)


def _located(image: ImageFile, size: int) -> ImageFile:
    """Where the frames are, after checking that header and file agree on how many bytes they have."""
    start, length = image.value
    if is_encapsulated(image.transfer_syntax_uid):
        if length != UNDEFINED_LENGTH:
            raise Rejected(
                RejectReason.MALFORMED, "a compressed transfer syntax, but pixel data that is not encapsulated"
            )
        extended = image.dataset.get("ExtendedOffsetTable")
        return replace(image, fragments=locate_frames(image.file, start, size, image.frames, extended))
    if length == UNDEFINED_LENGTH:
        raise Rejected(RejectReason.UNSUPPORTED_SYNTAX, "encapsulated pixel data, but no transfer syntax that says how")
    if start + length > size:
        raise Rejected(RejectReason.TRUNCATED, f"the pixel data has {size - start} bytes of the {length} that it says")
    if image.photometric_interpretation == "YBR_FULL_422" and length >= image.frames * image.format.bytes:
        image = replace(image, photometric_interpretation="YBR_FULL")  # not subsampled after all, as some writers do
    expected = -(-_frame_bits(image) * image.frames // 8)
    if length not in (expected, expected + expected % 2):
        raise Rejected(
            RejectReason.SIZE_MISMATCH,
            f"{image.frames} frames of {image.format.rows} × {image.format.columns} pixels need {expected} bytes, "
            f"the pixel data has {length}",
        )
    return image


def _frame_bits(image: ImageFile) -> int:
    """Of a native frame. YBR_FULL_422 holds two samples a pixel on average (PS3.3 C.7.6.3.1.2)."""
    samples = 2 if image.photometric_interpretation == "YBR_FULL_422" else image.format.samples_per_pixel
    return image.format.rows * image.format.columns * samples * image.format.bits_allocated


def _read_native(image: ImageFile, frame: int) -> Samples | NDArray[np.floating[Any]]:
    shape = image.format
    bits = _frame_bits(image)
    data = _read_bytes(image, bits * frame // 8, -(-bits * (frame + 1) // 8))
    if shape.bits_allocated == 1:
        pixels = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        skipped = bits * frame % 8
        return pixels[skipped : skipped + bits].reshape(shape.rows, shape.columns)
    kind = "f" if image.pixel_keyword != "PixelData" else "u"
    values = np.frombuffer(data, f"{'<' if image.little_endian else '>'}{kind}{shape.bits_allocated // 8}")
    values = values.astype(values.dtype.newbyteorder("="))
    if image.photometric_interpretation == "YBR_FULL_422":
        return values.reshape(-1, 4)[:, :2].reshape(shape.rows, shape.columns, 1)  # Y1 Y2 CB CR: chroma is not read
    if shape.samples_per_pixel == 1:
        values = values.reshape(shape.rows, shape.columns)
    elif image.color_by_plane:
        values = np.moveaxis(values.reshape(shape.samples_per_pixel, shape.rows, shape.columns), 0, -1)
    else:
        values = values.reshape(shape.rows, shape.columns, shape.samples_per_pixel)
    return values if kind == "f" else _used_bits(values, image)


def _read_bytes(image: ImageFile, first: int, after: int) -> bytes:
    """Bytes of native pixel data. Big endian OW swaps the bytes of 8-bit samples in pairs (PS3.5 8.2), so whole words are read."""
    start, length = image.value
    if image.little_endian or image.pixel_vr != "OW" or image.format.bits_allocated > 8:
        return read_range(image.file, (start + first, after - first))
    word = first - first % 2
    data = read_range(image.file, (start + word, min(after + after % 2, length) - word))
    swapped = np.frombuffer(data[: len(data) // 2 * 2], ">u2").astype("<u2").tobytes() + data[len(data) // 2 * 2 :]
    return swapped[first - word : after - word]


def _used_bits(values: Samples, image: ImageFile) -> Samples:
    """BitsStored bits up to HighBit, sign-extended where values are signed: shifted up against the container's end, then down."""
    width = values.dtype.itemsize * 8
    values = values.astype(f"{'i' if image.signed else 'u'}{values.dtype.itemsize}")
    if image.bits_stored == width:
        return values
    return (values << (width - 1 - image.high_bit)) >> (width - image.bits_stored)


def _conform(values: Samples, stream: Codestream, image: ImageFile) -> Samples:
    """Samples of a codestream as stored values.

    A codestream has its own precision. Less than BitsStored (or as much): its samples are the values, but for the sign. More: of a lossless
    stream they hold unused bits, which are cut off; of a lossy one they overshoot, and are clipped (cutting would turn white to black).
    """
    width = values.dtype.itemsize * 8
    if stream.precision > image.bits_stored and _is_lossless(stream, image):
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
    return stream.codec is Codec.JPEG_LOSSLESS or image.transfer_syntax_uid in _LOSSLESS


def _integer(dataset: Dataset, keyword: str, default: int | None = None) -> int | None:
    """A number of the header. Raises Rejected (MALFORMED) where it is none; `default` where it is absent or empty."""
    value = dataset.get(keyword)
    if value is None or value == "":
        return default
    try:
        return int(value)
    except (TypeError, ValueError):
        raise Rejected(RejectReason.MALFORMED, f"{keyword} is not one whole number") from None
