"""Pixel data with nothing beside the pixels: no unused bits, no text in compressed streams, no bytes behind; and rectangles blackened.

Native pixels are written by pixel, little endian, their unused bits zeros or the sign, HighBit below them: stored values stay what they
were. Compressed frames keep their streams but for comments and application data; where a stream could hold more (RLE, bits beyond
BitsStored, JPEG XL), or a rectangle is blackened, the stored values are encoded again without loss. What was lost before is still said.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian

from pipeline.dicom.codecs import container_bytes, open_codestream
from pipeline.dicom.codestream import Codec, Color
from pipeline.dicom.compression import MAX_OFFSET, SYNTAXES, Compression, encoded
from pipeline.dicom.deidentification_streams import without_metadata
from pipeline.dicom.encapsulation import read_range
from pipeline.dicom.frames import ImageFile, read_stored
from pipeline.dicom.pixel_element import PIXELS
from pipeline.dicom.source import LOSSY_METHODS
from pipeline.dicom.syntaxes import CODEC_BY_SYNTAX, LOSSLESS
from pipeline.errors import Rejected, RejectReason

Region = tuple[int, int, int, int]
"""Left, top, width, height."""

_AGAIN: dict[Codec, Compression] = {
    Codec.JPEG: "jpeg-ls",
    Codec.JPEG_LOSSLESS: "jpeg-ls",
    Codec.JPEG_LS: "jpeg-ls",
    Codec.JPEG_2000: "jpeg2000",
    Codec.JPEG_XL: "jpeg2000",
    Codec.RLE: "rle",
    Codec.NONE: "none",
    Codec.DEFLATE: "none",
}
"""In which lossless syntax the values of each codec are encoded again."""
_NEUTRAL_COLOR = 0.5
"""CB and CR of black, as a share of their range."""


@dataclass(frozen=True)
class CleanPixels:
    """The pixel data element, the transfer syntax of the file, and what the Image Pixel module has to say now."""

    element: DataElement
    transfer_syntax_uid: str
    attributes: dict[str, Any] = field(default_factory=dict)


def clean_pixels(image: ImageFile, regions: Sequence[Region] | None) -> CleanPixels:
    """The pixels of an open image; `regions` of each frame blackened, None or none of them where nothing is.

    Raises Rejected as `read_stored` does, and where a compressed stream cannot be followed.
    """
    if image.fragments is None:
        return _encoded(image, "none", regions or ())
    codec = CODEC_BY_SYNTAX[image.transfer_syntax_uid]
    if regions or codec in (Codec.RLE, Codec.NONE, Codec.DEFLATE, Codec.JPEG_XL) or _has_spare_bits(image):
        return _encoded(image, _AGAIN[codec], regions or ())
    frames = [without_metadata(data) for data in _checked_streams(image)]
    return CleanPixels(_encapsulated(frames), image.transfer_syntax_uid, _lossy_history(image))


def _streams(image: ImageFile) -> Iterable[bytes]:
    """Each frame's stream, in one piece."""
    for fragments in image.fragments or ():
        yield b"".join(read_range(image.window, part) for part in fragments)


def _checked_streams(image: ImageFile) -> Iterable[bytes]:
    """Streams that hold a picture of the size that the header promises; what they hold else is not decoded."""
    shape = image.shape
    promised = (shape.rows, shape.columns, shape.samples_per_pixel)
    for data in _streams(image):
        try:
            header, _ = open_codestream(data)
        except (struct.error, IndexError):
            raise Rejected(RejectReason.TRUNCATED, "a compressed frame ends inside its header") from None
        found = (header.rows, header.columns, header.components)
        if found != promised:
            raise Rejected(
                RejectReason.SIZE_MISMATCH,
                f"the header promises rows × columns × samples {promised}, the {header.codec} stream holds {found}",
            )
        yield data


def _has_spare_bits(image: ImageFile) -> bool:
    """Whether a lossless stream has more bits a sample than are used, and something is in them."""
    for number, data in enumerate(_checked_streams(image)):
        header, decode = open_codestream(data)
        lossless = header.codec is Codec.JPEG_LOSSLESS or image.transfer_syntax_uid in LOSSLESS
        if not lossless or header.precision <= image.bits_stored:
            continue
        found = np.asarray(decode()).reshape(-1)
        unsigned = found.view(f"u{found.dtype.itemsize}")
        used = np.asarray(read_stored(image, number).values).astype(found.dtype).reshape(-1).view(unsigned.dtype)
        below = unsigned.dtype.type((1 << image.bits_stored) - 1)
        if not (np.array_equal(unsigned, used) or np.array_equal(unsigned, used & below)):
            return True
    return False


def _encoded(image: ImageFile, how: Compression, regions: Sequence[Region]) -> CleanPixels:
    """Every frame's stored values, blackened and encoded."""
    shape = image.shape
    one_bit = shape.bits_allocated == 1
    width = container_bytes(shape.bits_allocated)
    color = _color(image)
    if how != "none" and (one_bit or image.is_float or width > 2):
        how = "none"
    native, streams = bytearray(), []
    for number in range(shape.frames):
        stored = read_stored(image, number)
        photometric = color if stored.color is None else _photometric(color, stored.color)
        values = np.array(stored.values)
        for region in regions:
            _blacken(values, region, photometric, image)
        if image.is_float:
            native += values.astype(f"<f{width}").tobytes()
        elif one_bit:
            native += values.astype(np.uint8).tobytes()
        elif how == "none":
            native += _container(values, width).tobytes()
        else:
            streams.append(encoded(_container(values, width), SYNTAXES[how]))
        color = photometric
    if one_bit:
        native = bytearray(np.packbits(np.frombuffer(native, np.uint8), bitorder="little").tobytes())
    attributes = _lossy_history(image)
    if how == "jpeg2000" and color == "RGB":
        color = "YBR_RCT"  # the reversible transform of the codec
    if not image.is_float:
        attributes |= {"PhotometricInterpretation": color}
        if not one_bit:
            attributes |= {
                "BitsAllocated": 8 * width,
                "BitsStored": image.bits_stored,
                "HighBit": image.bits_stored - 1,
            }
        if shape.samples_per_pixel > 1:
            attributes["PlanarConfiguration"] = 0
    if how == "none":
        return CleanPixels(_native(image, bytes(native)), ExplicitVRLittleEndian, attributes)
    return CleanPixels(_encapsulated(streams), SYNTAXES[how], attributes)


def _container(values: NDArray[Any], width: int) -> NDArray[Any]:
    """Unsigned integers of `width` bytes, little endian; of signed values the bits."""
    return values.astype(f"<i{width}" if values.dtype.kind == "i" else f"<u{width}").view(f"<u{width}")


def _blacken(values: NDArray[Any], region: Region, photometric: str, image: ImageFile) -> None:
    """A rectangle of one frame, (rows, columns[, samples]), in place."""
    left, top, width, height = region
    part = values[top : top + height, left : left + width]
    if photometric.startswith("YBR"):
        part[..., 0] = 0
        part[..., 1:] = int(_NEUTRAL_COLOR * (1 << image.bits_stored))
    elif values.ndim == 3:
        part[...] = 0
    elif photometric == "MONOCHROME1":
        part[...] = values.max()
    elif photometric == "PALETTE COLOR" or not image.signed:
        part[...] = 0
    else:
        part[...] = values.min()


def _color(image: ImageFile) -> str:
    """PhotometricInterpretation of the stored values as `read_stored` gives them: chroma is not shared any more, and JPEG 2000 has
    undone its transform."""
    given = image.shape.photometric_interpretation
    if given in ("YBR_ICT", "YBR_RCT"):
        return "RGB"
    return {"YBR_FULL_422": "YBR_FULL", "YBR_PARTIAL_422": "YBR_PARTIAL"}.get(given, given)


def _photometric(given: str, color: Color) -> str:
    """What the stream itself says goes before the header."""
    if color is Color.RGB:
        return "RGB"
    return given if given.startswith("YBR") else "YBR_FULL"


def _native(image: ImageFile, data: bytes) -> DataElement:
    data += b"\0" * (len(data) % 2)
    tag = image.element.tag
    if tag != PIXELS:
        return DataElement(tag, "OF" if image.shape.bits_allocated == 32 else "OD", data)
    return DataElement(tag, "OB" if image.shape.bits_allocated in (1, 8) else "OW", data)


def _encapsulated(frames: list[bytes]) -> DataElement:
    """A fragment a frame, with the offsets of all where these can be written."""
    if any(len(frame) > MAX_OFFSET - 1 for frame in frames):
        raise Rejected(RejectReason.TOO_LARGE, "a compressed frame of 4 GiB")
    with_table = sum(len(frame) + 9 for frame in frames) <= MAX_OFFSET  # 8 bytes before, 1 of padding
    element = DataElement(PIXELS, "OB", encapsulate(frames, has_bot=with_table))
    element.is_undefined_length = True
    return element


def _lossy_history(image: ImageFile) -> dict[str, Any]:
    """Once lossy, always lossy: said also where the source's header does not say it of its transfer syntax."""
    method = LOSSY_METHODS.get(UID(image.transfer_syntax_uid))
    return {} if method is None else {"LossyImageCompression": "01", "LossyImageCompressionMethod": method}


def put_pixels(dataset: Dataset, pixels: CleanPixels) -> None:
    """Pixels and what goes with them into a cleaned dataset; a method of lossy compression that is there stays."""
    for keyword, value in pixels.attributes.items():
        if keyword == "LossyImageCompressionMethod" and dataset.get(keyword):
            continue
        setattr(dataset, keyword, value)
    dataset[pixels.element.tag] = pixels.element
