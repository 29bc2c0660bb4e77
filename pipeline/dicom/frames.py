"""A DICOM file → the stored values of one of its frames.

Only the attributes that pixels need are read, and of the pixel data only the frame that is asked for. Stored values are
those of PS3.5 8.1.1: BitsStored bits below HighBit, sign-extended where PixelRepresentation is 1, whatever stands in the
unused bits (old overlays). Colour stays as it is stored. Reading is tolerant (no preamble, no meta information); a size
that does not add up is not: shown anyway, such an image is sheared or cut. Every failure is a `Rejected`, whose text
holds facts on the file and never a value from it that could be a patient's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, uid
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_dataset, read_partial
from pydicom.tag import BaseTag, Tag

from pipeline.dicom.bounded import Window, inflated, open_window, parsing, read_meta, value_of
from pipeline.dicom.codecs import FrameFormat, Samples, check_budget, decode_frame, is_encapsulated
from pipeline.dicom.codestream import Codec, Codestream, Color
from pipeline.dicom.encapsulation import Range, locate_frames, read_range
from pipeline.dicom.header import is_dicom
from pipeline.dicom.pixel_element import PIXEL_TAGS, PIXELS, UNDEFINED_LENGTH, PixelElement, PixelShape, check_pixels
from pipeline.errors import Rejected, RejectReason

READ_KEYWORDS = (
    *("SOPClassUID", "Modality", "ImageType", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation"),
    *("PlanarConfiguration", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "FloatPixelPaddingValue", "DoubleFloatPixelPaddingValue"),
    *("FloatPixelPaddingRangeLimit", "DoubleFloatPixelPaddingRangeLimit"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    *("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "ExtendedOffsetTable"),
    *(f"{color}PaletteColorLookupTableDescriptor" for color in ("Red", "Green", "Blue")),
    *(f"{color}PaletteColorLookupTableData" for color in ("Red", "Green", "Blue")),
    *(f"Segmented{color}PaletteColorLookupTableData" for color in ("Red", "Green", "Blue")),
)
"""What is read of a header: nothing here names a patient."""

SUPPORTED_BITS = (1, 8, 16, 32)

_TAGS: list[Any] = [Tag(keyword) for keyword in READ_KEYWORDS]
_SIGNATURE_BYTES = 132
_LOSSLESS = frozenset({uid.JPEG2000Lossless, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.JPEGLSLossless})


@dataclass(frozen=True)
class ImageFile:
    """An open DICOM image: its header, and where its frames are. `vr`: of the pixel data element."""

    dataset: Dataset
    window: Window
    transfer_syntax_uid: str
    element: PixelElement
    vr: str
    shape: PixelShape
    bits_stored: int
    high_bit: int
    signed: bool
    color_by_plane: bool
    fragments: tuple[tuple[Range, ...], ...] | None
    """Of encapsulated pixel data: one tuple of ranges a frame."""

    @property
    def format(self) -> FrameFormat:
        """Of one frame."""
        return FrameFormat(self.shape.rows, self.shape.columns, self.shape.samples_per_pixel, self.shape.bits_allocated)

    @property
    def is_float(self) -> bool:
        """Float or Double Float Pixel Data, in which no bits are unused."""
        return self.element.tag != PIXELS

    @property
    def little_endian(self) -> bool:
        """Byte order of native pixel data and of lookup tables."""
        return bool(self.dataset.original_encoding[1])


@dataclass(frozen=True)
class StoredFrame:
    """(rows, columns) or (rows, columns, samples) integers or floats; `color`: what a codestream says of three samples."""

    values: Samples | NDArray[np.floating[Any]]
    color: Color | None = None


@contextmanager
def open_image(path: Path) -> Iterator[ImageFile]:
    """The image in a DICOM file, open for reading frames. Never blocks on a FIFO, never reads a device.

    Raises Rejected: NOT_REGULAR, UNREADABLE, CHANGED (gone), EMPTY, NOT_AN_IMAGE, DICOMDIR, NO_PIXELS, MALFORMED,
    TRUNCATED, SIZE_MISMATCH, UNSUPPORTED_SYNTAX, UNSUPPORTED_PIXELS, TOO_LARGE.
    """
    with open_window(path) as window:
        yield _read_image(window)


def read_stored(image: ImageFile, frame: int) -> StoredFrame:
    """The stored values of frame `frame`, from 0. Raises ValueError where there is no such frame, else Rejected."""
    if not 0 <= frame < image.shape.frames:
        raise ValueError(f"frame {frame} asked for, the image has frames 0 to {image.shape.frames - 1}")
    check_budget(image.format)
    if image.fragments is None:
        return StoredFrame(_read_native(image, frame))
    stream = b"".join(read_range(image.window, part) for part in image.fragments[frame])
    decoded = decode_frame(stream, image.transfer_syntax_uid, image.format)
    if decoded.stream is None:
        return StoredFrame(_used_bits(decoded.samples, image))
    return StoredFrame(_conform(decoded.samples, decoded.stream, image), decoded.stream.color)


def _read_image(window: Window) -> ImageFile:
    if not is_dicom(window.pixels(0, _SIGNATURE_BYTES)):
        raise Rejected(RejectReason.NOT_AN_IMAGE, "no DICM prefix, and no first element of a DICOM data set")
    dataset, window, element, vr = _parse(window)
    shape = PixelShape(
        frames=_integer(dataset, "NumberOfFrames", 1) or 1,
        rows=_integer(dataset, "Rows", 0) or 0,
        columns=_integer(dataset, "Columns", 0) or 0,
        samples_per_pixel=_integer(dataset, "SamplesPerPixel", 1) or 1,
        bits_allocated=PIXEL_TAGS[element.tag] or _integer(dataset, "BitsAllocated", 0) or 0,
        photometric_interpretation=str(dataset.get("PhotometricInterpretation") or "").strip(),
    )
    if min(shape.frames, shape.rows, shape.columns, shape.samples_per_pixel, shape.bits_allocated) < 1:
        raise Rejected(
            RejectReason.MALFORMED, "NumberOfFrames, Rows, Columns or BitsAllocated is missing or not positive"
        )
    if element.length == UNDEFINED_LENGTH and not element.encapsulated:
        raise Rejected(RejectReason.UNSUPPORTED_SYNTAX, "encapsulated pixel data, but no transfer syntax that says how")
    check_pixels(window, element, shape)
    bits_stored, high_bit = _bits(dataset, shape) if element.tag == PIXELS else (shape.bits_allocated,) * 2
    image = ImageFile(
        dataset=dataset,
        window=window,
        transfer_syntax_uid=_transfer_syntax(dataset),
        element=element,
        vr=vr,
        shape=shape,
        bits_stored=bits_stored,
        high_bit=high_bit,
        signed=_integer(dataset, "PixelRepresentation", 0) == 1,
        color_by_plane=_integer(dataset, "PlanarConfiguration", 0) == 1,
        fragments=None,
    )
    if not element.encapsulated:
        return image
    return replace(image, fragments=locate_frames(window, element, shape.frames, dataset.get("ExtendedOffsetTable")))


def _parse(window: Window) -> tuple[Dataset, Window, PixelElement, str]:
    """(the attributes `READ_KEYWORDS`, the window that holds the pixels, their element, its VR).

    Of a deflated file the window is that of the inflated data set.
    """
    places: list[tuple[int, int, int, str]] = []
    source = window

    def at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
        if tag in PIXEL_TAGS:
            places.append((int(tag), length, source.tell(), vr or "OW"))
        return tag in PIXEL_TAGS

    with parsing(window):
        meta = read_meta(window)
        if meta.get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian:
            source = inflated(window)
            dataset = read_dataset(source, False, True, stop_when=at_pixels, specific_tags=_TAGS)  # type: ignore[arg-type]
            dataset.file_meta = FileMetaDataset(meta)
        else:
            window.seek(0)
            dataset = read_partial(window, at_pixels, force=True, specific_tags=_TAGS)  # type: ignore[arg-type]
        for keyword in READ_KEYWORDS:  # values are converted when first asked for, and may fail, or warn, then
            value_of(dataset, keyword)
        directory = dataset.file_meta.get("MediaStorageSOPClassUID") == uid.MediaStorageDirectoryStorage
        transfer_syntax_uid = _transfer_syntax(dataset)
    if directory:
        raise Rejected(RejectReason.DICOMDIR, "the directory of a DICOM medium")
    if not places:
        if source.ended_early:
            raise Rejected(RejectReason.TRUNCATED, "the file ends within its header")
        raise Rejected(RejectReason.NO_PIXELS, "the data set has no pixel data")
    tag, length, offset, vr = places[-1]
    return dataset, source, PixelElement(tag, length, offset, is_encapsulated(transfer_syntax_uid)), vr


def _transfer_syntax(dataset: Dataset) -> str:
    given = dataset.file_meta.get("TransferSyntaxUID")
    if given:
        return str(given)
    implicit, little_endian = dataset.original_encoding
    if implicit:
        return str(uid.ImplicitVRLittleEndian)
    return str(uid.ExplicitVRLittleEndian if little_endian else uid.ExplicitVRBigEndian)


def _bits(dataset: Dataset, shape: PixelShape) -> tuple[int, int]:
    """(BitsStored, HighBit), the usual ones where absent or impossible. Raises Rejected (UNSUPPORTED_PIXELS)."""
    bits = shape.bits_allocated
    if bits not in SUPPORTED_BITS or shape.samples_per_pixel not in ((1,) if bits == 1 else (1, 3)):
        raise Rejected(RejectReason.UNSUPPORTED_PIXELS, f"{shape.samples_per_pixel} samples of {bits} bit a pixel")
    stored = _integer(dataset, "BitsStored", bits) or bits
    if not 1 <= stored <= bits:
        raise Rejected(RejectReason.UNSUPPORTED_PIXELS, f"BitsStored {stored} of BitsAllocated {bits}")
    high_bit = _integer(dataset, "HighBit", stored - 1)
    return stored, stored - 1 if high_bit is None or not stored - 1 <= high_bit < bits else high_bit


def _frame_bits(image: ImageFile) -> int:
    """Of a native frame. YBR_FULL_422 holds two samples a pixel on average (PS3.3 C.7.6.3.1.2)."""
    samples = 2 if image.shape.photometric_interpretation == "YBR_FULL_422" else image.shape.samples_per_pixel
    return image.shape.rows * image.shape.columns * samples * image.shape.bits_allocated


def _read_native(image: ImageFile, frame: int) -> Samples | NDArray[np.floating[Any]]:
    shape = image.shape
    if shape.photometric_interpretation == "YBR_FULL_422" and (shape.columns % 2 or shape.bits_allocated == 1):
        raise Rejected(RejectReason.UNSUPPORTED_PIXELS, "YBR_FULL_422 shares its colour between two pixels of a row")
    bits = _frame_bits(image)
    data = _read_bytes(image, bits * frame // 8, -(-bits * (frame + 1) // 8))
    if shape.bits_allocated == 1:
        pixels = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        skipped = bits * frame % 8
        return pixels[skipped : skipped + bits].reshape(shape.rows, shape.columns)
    kind = "f" if image.is_float else "u"
    values = np.frombuffer(data, f"{'<' if image.little_endian else '>'}{kind}{shape.bits_allocated // 8}")
    values = values.astype(values.dtype.newbyteorder("="))
    if image.shape.photometric_interpretation == "YBR_FULL_422":
        return values.reshape(-1, 4)[:, :2].reshape(shape.rows, shape.columns, 1)  # Y1 Y2 CB CR: chroma is not read
    if shape.samples_per_pixel == 1:
        values = values.reshape(shape.rows, shape.columns)
    elif image.color_by_plane:
        values = np.moveaxis(values.reshape(shape.samples_per_pixel, shape.rows, shape.columns), 0, -1)
    else:
        values = values.reshape(shape.rows, shape.columns, shape.samples_per_pixel)
    return values if kind == "f" else _used_bits(values, image)


def _read_bytes(image: ImageFile, first: int, after: int) -> bytes:
    """Bytes of native pixel data. Big endian OW swaps 8-bit samples in pairs (PS3.5 8.2): whole words are read there."""
    start, length = image.element.offset, image.element.length
    if image.little_endian or image.vr != "OW" or image.shape.bits_allocated > 8:
        return read_range(image.window, (start + first, after - first))
    word = first - first % 2
    data = read_range(image.window, (start + word, min(after + after % 2, length) - word))
    swapped = np.frombuffer(data[: len(data) // 2 * 2], ">u2").astype("<u2").tobytes() + data[len(data) // 2 * 2 :]
    return swapped[first - word : after - word]


def _used_bits(values: Samples, image: ImageFile) -> Samples:
    """BitsStored bits up to HighBit, sign-extended where signed: shifted up to the container's end, then down."""
    width = values.dtype.itemsize * 8
    values = values.astype(f"{'i' if image.signed else 'u'}{values.dtype.itemsize}")
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
    return stream.codec is Codec.JPEG_LOSSLESS or image.transfer_syntax_uid in _LOSSLESS


def _integer(dataset: Dataset, keyword: str, default: int | None = None) -> int | None:
    """A number of the header. Raises Rejected (MALFORMED) where it is none; `default` where it is absent or empty."""
    value = dataset.get(keyword)
    if value is None or value == "":
        return default
    try:
        number = int(value)
        if isinstance(value, (str, int)) or number == value:
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    raise Rejected(RejectReason.MALFORMED, f"{keyword} is not one whole number")
