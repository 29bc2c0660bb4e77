"""A DICOM file, opened for reading its pixels: the header's attributes that pixels need, and where each frame lies.

Reading is tolerant (no preamble, no meta information); a size that does not add up is not: shown anyway, such an image is
sheared or cut. Of most files `walker` finds the few elements that are needed, and pydicom parses only those; the others pydicom
reads from their beginning. Every failure is a `Rejected`, whose text holds facts on the file and never a value from it that could
be a patient's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydicom import Dataset, uid
from pydicom.charset import convert_encodings, default_encoding
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_dataset, read_partial
from pydicom.tag import BaseTag, Tag

from pipeline.dicom.bounded import VALUE_BYTES, Window, inflated, open_window, parsing, read_meta, value_of
from pipeline.dicom.codecs import FrameFormat
from pipeline.dicom.codestream import Codec
from pipeline.dicom.encapsulation import Range, locate_frames
from pipeline.dicom.header import is_dicom
from pipeline.dicom.native_pixels import NativeLayout
from pipeline.dicom.pixel_element import (
    MOST_BITS,
    PIXEL_TAGS,
    PIXELS,
    SUBSAMPLED,
    UNDEFINED_LENGTH,
    PixelElement,
    PixelShape,
    check_pixels,
)
from pipeline.dicom.plain_header import CHARACTER_SET, Plain, read_plain
from pipeline.dicom.syntaxes import CODEC_BY_SYNTAX, EXPLICIT_BIG, EXPLICIT_LITTLE, IMPLICIT_LITTLE, is_encapsulated
from pipeline.errors import Rejected, RejectReason

READ_KEYWORDS = (
    *("SOPClassUID", "Modality", "ImageType", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation"),
    *("PlanarConfiguration", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "FloatPixelPaddingValue", "DoubleFloatPixelPaddingValue"),
    *("FloatPixelPaddingRangeLimit", "DoubleFloatPixelPaddingRangeLimit"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "WindowCenterWidthExplanation", "VOILUTFunction", "VOILUTSequence"),
    *("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "ExtendedOffsetTable"),
    *(f"{color}PaletteColorLookupTableDescriptor" for color in ("Red", "Green", "Blue")),
    *(f"{color}PaletteColorLookupTableData" for color in ("Red", "Green", "Blue")),
    *(f"Segmented{color}PaletteColorLookupTableData" for color in ("Red", "Green", "Blue")),
)
"""What is read of a header: nothing here names a patient."""

_TAGS: list[Any] = [Tag(keyword) for keyword in READ_KEYWORDS]
_TAG_SET = frozenset(map(int, _TAGS))
_SIGNATURE_BYTES = 132


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
    def layout(self) -> NativeLayout:
        """Of one frame of native pixel data, or of an item that holds such a frame."""
        shape = self.shape
        return NativeLayout(
            *(shape.rows, shape.columns, shape.samples_per_pixel, shape.bits_allocated),
            is_float=self.is_float,
            little_endian=self.little_endian,
            by_plane=self.color_by_plane,
            subsampled=shape.samples_per_pixel == 3 and shape.photometric_interpretation in SUBSAMPLED,
        )

    @property
    def is_float(self) -> bool:
        """Float or Double Float Pixel Data, in which no bits are unused."""
        return self.element.tag != PIXELS

    @property
    def little_endian(self) -> bool:
        """Byte order of native pixel data and of lookup tables."""
        return bool(self.dataset.original_encoding[1])


@contextmanager
def open_image(path: Path) -> Iterator[ImageFile]:
    """The image in a DICOM file, open for reading frames. Never blocks on a FIFO, never reads a device.

    Raises Rejected: NOT_REGULAR, UNREADABLE, CHANGED (gone), EMPTY, NOT_AN_IMAGE, DICOMDIR, NO_PIXELS, MALFORMED,
    TRUNCATED, SIZE_MISMATCH, UNSUPPORTED_SYNTAX, UNSUPPORTED_PIXELS, TOO_LARGE.
    """
    with open_window(path) as window:
        yield _read_image(window)


def _read_image(window: Window) -> ImageFile:
    if not is_dicom(window.pixels(0, _SIGNATURE_BYTES)):
        raise Rejected(RejectReason.NOT_AN_IMAGE, "no DICM prefix, and no first element of a DICOM data set")
    header = _parse(window)
    dataset, window, element = header.dataset, header.window, header.element
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
        transfer_syntax_uid=header.transfer_syntax_uid,
        element=element,
        vr=header.vr,
        shape=shape,
        bits_stored=bits_stored,
        high_bit=high_bit,
        signed=_integer(dataset, "PixelRepresentation", 0) == 1,
        color_by_plane=_integer(dataset, "PlanarConfiguration", 0) == 1,
        fragments=None,
    )
    if not element.encapsulated:
        return image
    marked = CODEC_BY_SYNTAX[image.transfer_syntax_uid] not in (Codec.RLE, Codec.NONE, Codec.DEFLATE)
    extended = dataset.get("ExtendedOffsetTable")
    return replace(image, fragments=locate_frames(window, element, shape.frames, extended, marked=marked))


@dataclass(frozen=True)
class _Header:
    """The attributes `READ_KEYWORDS`; the pixel data element and its VR; the window in which it lies."""

    dataset: Dataset
    window: Window
    transfer_syntax_uid: str
    element: PixelElement
    vr: str


def _parse(window: Window) -> _Header:
    plain = read_plain(window, _TAG_SET)
    if plain is None:
        return _parse_by_pydicom(window)
    with parsing(window):
        encodings = _encodings(plain)
        dataset = Dataset(plain.elements)
        dataset.set_original_encoding(plain.implicit, True, encodings)
        _convert(dataset)
    encapsulated = is_encapsulated(plain.transfer_syntax_uid)
    element = PixelElement(plain.tag, plain.length, plain.offset, encapsulated)
    return _Header(dataset, window, plain.transfer_syntax_uid, element, plain.vr)


def _encodings(plain: Plain) -> Any:
    """What pydicom's own reader makes of the character set."""
    raw = plain.elements.get(CHARACTER_SET)
    return (
        convert_encodings(convert_raw_data_element(raw).value) if isinstance(raw, RawDataElement) else default_encoding
    )


def _convert(dataset: Dataset) -> None:
    """Values are converted when first asked for, and may fail, or warn, then."""
    for element in list(dataset.values()):
        if element.tag in _TAG_SET:
            if isinstance(element, RawDataElement) and len(element.value or b"") > VALUE_BYTES:
                value_of(dataset, keyword_for_tag(element.tag))
            else:
                dataset[element.tag]


def _parse_by_pydicom(window: Window) -> _Header:
    """Of a deflated file the window is that of the inflated data set."""
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
        _convert(dataset)
        directory = dataset.file_meta.get("MediaStorageSOPClassUID") == uid.MediaStorageDirectoryStorage
        transfer_syntax_uid = _transfer_syntax(dataset)
    if directory:
        raise Rejected(RejectReason.DICOMDIR, "the directory of a DICOM medium")
    if not places:
        if source.ended_early:
            raise Rejected(RejectReason.TRUNCATED, "the file ends within its header")
        raise Rejected(RejectReason.NO_PIXELS, "the data set has no pixel data")
    tag, length, offset, vr = places[-1]
    element = PixelElement(tag, length, offset, is_encapsulated(transfer_syntax_uid))
    return _Header(dataset, source, transfer_syntax_uid, element, vr)


def _transfer_syntax(dataset: Dataset) -> str:
    given = dataset.file_meta.get("TransferSyntaxUID")
    if given:
        return str(given)
    implicit, little_endian = dataset.original_encoding
    if implicit:
        return IMPLICIT_LITTLE
    return EXPLICIT_LITTLE if little_endian else EXPLICIT_BIG


def _bits(dataset: Dataset, shape: PixelShape) -> tuple[int, int]:
    """(BitsStored, HighBit), the usual ones where absent or impossible. Raises Rejected (UNSUPPORTED_PIXELS)."""
    bits = shape.bits_allocated
    if bits > MOST_BITS or shape.samples_per_pixel not in ((1,) if bits % 8 else (1, 3)):
        raise Rejected(RejectReason.UNSUPPORTED_PIXELS, f"{shape.samples_per_pixel} samples of {bits} bit a pixel")
    stored = _integer(dataset, "BitsStored", bits) or bits
    if not 1 <= stored <= bits:
        raise Rejected(RejectReason.UNSUPPORTED_PIXELS, f"BitsStored {stored} of BitsAllocated {bits}")
    high_bit = _integer(dataset, "HighBit", stored - 1)
    return stored, stored - 1 if high_bit is None or not stored - 1 <= high_bit < bits else high_bit


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
