"""PNG, JPEG and TIFF: what their headers say, and their pixels as fractions of their type's range, gray or in colour.

Magic bytes decide, never the file name. Gamma, ICC profiles and transparency change no value; the alpha channel, which
gives the label away in public collections, counts neither as a sample nor as a mask. The orientation of JPEG (EXIF) and
TIFF is applied, as viewers do; rows and columns are those after it. 16 bits stay 16 bits. Pixels count as square, whatever
resolution is told for printing. A file whose end is missing is `TRUNCATED`, although much of it could be shown. Importing this
module brings neither torch nor MONAI.
"""

from __future__ import annotations

import os
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from pipeline.errors import Rejected, RejectReason
from pipeline.files import open_regular

if TYPE_CHECKING:
    from transforms.intensity import Pixels

MAX_RASTER_BYTES = 256 * 2**20
"""Of one decoded image, colour and alpha included: the budget of a DICOM frame."""

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""ITU-R BT.601, which is also the Y of YBR_FULL (PS3.3 C.7.6.3.1.2)."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_END = struct.pack(">L4sL", 0, b"IEND", 0xAE426082)
_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 1, 6: 3}  # by colour type, without alpha
_PNG_PALETTE = 3
_PNG_MODES = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}  # by colour type, Pillow's words
_PNG_GRAY_MODES = {1: "1", 16: "I;16"}  # by bits
_PNG_STORED_SAMPLES = {0: 1, 2: 3, 3: 4, 4: 2, 6: 4}  # as decoded: a palette becomes RGB, with alpha where it has some
_JPEG_START = b"\xff\xd8\xff"
_JPEG_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # in entropy-coded data neither stuffing (FF 00) nor RSTn
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MODES = {
    "1": (1, 1, "MONOCHROME2"),
    "L": (1, 8, "MONOCHROME2"),
    "LA": (1, 8, "MONOCHROME2"),
    "P": (1, 8, "PALETTE COLOR"),
}
_MODES |= {
    "RGB": (3, 8, "RGB"),
    "RGBA": (3, 8, "RGB"),
    "RGBX": (3, 8, "RGB"),
    "YCbCr": (3, 8, "RGB"),
    "CMYK": (3, 8, "RGB"),
}
_MODES |= {"PA": (1, 8, "PALETTE COLOR"), "I;16": (1, 16, "MONOCHROME2"), "I;16B": (1, 16, "MONOCHROME2")}
"""Pillow's modes: samples without alpha, bits, meaning. Modes I and F are left out: nothing says what their range is."""
_PHOTOMETRIC, _TIFF_RGB = ExifTags.Base.PhotometricInterpretation, 2
_PLANAR, _TIFF_PLANES = ExifTags.Base.PlanarConfiguration, 2
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap rows and columns
_TURNS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: np.swapaxes(image, 0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: np.swapaxes(image[::-1, ::-1], 0, 1),
    8: lambda image: np.rot90(image, 1),
}
"""By EXIF orientation (CIPA DC-008 4.6.4): what sets the stored image upright."""


@dataclass(frozen=True)
class RasterHeader:
    """What the index tells of an image. `samples_per_pixel` and `bits_allocated` leave alpha out and count a palette's index.

    `color_mode`: of the stored (first) image in Pillow's words (1, L, LA, P, RGB, RGBA, I;16, CMYK, ...), alpha included.
    """

    format: str
    frames: int
    rows: int
    columns: int
    samples_per_pixel: int
    bits_allocated: int
    photometric_interpretation: str
    color_mode: str


def read_raster_header(path: Path) -> dict[str, Any] | None:
    """The fields of `RasterHeader`, from the header and the end of the file alone; None where it is no PNG, JPEG or TIFF.

    Raises Rejected: NOT_REGULAR, UNREADABLE, EMPTY, MALFORMED, TRUNCATED, TOO_LARGE, UNSUPPORTED_PIXELS.
    """
    with open_regular(path) as file:
        header = _read_header(file)
    return None if header is None else asdict(header)


def read_raster(path: Path, frame: int = 0, *, color: bool = False) -> Pixels:
    """The image (of a TIFF: page `frame`, from 0) as fractions of its type's range.

    `color`: colour images as (rows, columns, 3) RGB, gray ones as gray; else colour as luma. Raises ValueError for a page that
    there is not; Rejected as `read_raster_header`, or NOT_AN_IMAGE, DECODE_FAILED.
    """
    from transforms.intensity import Pixels, PixelUnit  # brings torch, which the index must not need

    with open_regular(path) as file:
        header = _read_header(file)
        if header is None:
            raise Rejected(RejectReason.NOT_AN_IMAGE, "neither PNG, JPEG nor TIFF")
        if not 0 <= frame < header.frames:
            raise ValueError(f"frame {frame} asked for, the image has frames 0 to {header.frames - 1}")
        file.seek(0)
        if header.format == "png":
            samples, white = _decode_png(file)
        elif (header.format, header.samples_per_pixel, header.bits_allocated) == ("tiff", 3, 16):
            samples, white = _decode_deep_color(file, frame)
        else:
            samples, white = _decode_with_pillow(file, header.format, frame)
    colored = color and samples.ndim == 3 and samples.shape[2] >= 3
    return Pixels(rgb_fractions(samples, white) if colored else luma(samples, white), PixelUnit.FRACTION)


def rgb_fractions(samples: NDArray[Any], white: float) -> NDArray[np.float32]:
    """(rows, columns, 3 or more) → (rows, columns, 3) fractions of `white`; what comes after blue is left out."""
    return np.asarray(samples[..., :3].astype(np.float32) / np.float32(white), dtype=np.float32)


def luma(samples: NDArray[Any], white: float) -> NDArray[np.float32]:
    """(rows, columns) or (rows, columns, samples) → gray fractions of `white`; one or two samples are gray and alpha."""
    if samples.ndim == 2 or samples.shape[2] < 3:
        gray = samples if samples.ndim == 2 else samples[..., 0]
        return np.asarray(gray.astype(np.float32) / np.float32(white), dtype=np.float32)
    weighted = samples[..., :3].astype(np.float32) @ LUMA
    return np.minimum(weighted / np.float32(white), np.float32(1.0))  # the weights' sum exceeds 1 by rounding


def _read_header(file: BinaryIO) -> RasterHeader | None:
    magic = file.read(8)
    file.seek(0)
    if magic == _PNG_SIGNATURE:
        return _png_header(file)
    if magic.startswith(_JPEG_START):
        return _jpeg_header(file)
    if magic.startswith(_TIFF_SIGNATURES):
        return _tiff_header(file)
    return None


def _png_header(file: BinaryIO) -> RasterHeader:
    head = file.read(33)
    if len(head) < 33:
        raise Rejected(RejectReason.TRUNCATED, "the PNG file ends inside its header")
    length, kind, columns, rows, bits, color = struct.unpack(">L4sLLBB", head[8:26])
    if (
        (length, kind) != (13, b"IHDR")
        or color not in _PNG_SAMPLES
        or bits not in (1, 2, 4, 8, 16)
        or not rows
        or not columns
    ):
        raise Rejected(RejectReason.MALFORMED, "the PNG header (IHDR) is broken")
    _check_budget(rows, columns, _PNG_STORED_SAMPLES[color], bits)
    _check_png_end(file)
    meaning = "PALETTE COLOR" if color == _PNG_PALETTE else "RGB" if _PNG_SAMPLES[color] == 3 else "MONOCHROME2"
    mode = _PNG_GRAY_MODES.get(bits, "L") if color == 0 else _PNG_MODES[color]
    return RasterHeader("png", 1, rows, columns, _PNG_SAMPLES[color], bits if bits in (1, 16) else 8, meaning, mode)


def _check_png_end(file: BinaryIO) -> None:
    """IEND is there: at the very end as a rule, else found by going from chunk to chunk."""
    file.seek(-len(_PNG_END), os.SEEK_END)
    if file.read() == _PNG_END:
        return
    file.seek(len(_PNG_SIGNATURE))
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">L4s", head)
        if kind == b"IEND" and len(file.read(4)) == 4:
            return
        file.seek(length + 4, os.SEEK_CUR)
    raise Rejected(RejectReason.TRUNCATED, "the PNG file lacks its end (IEND)")


def _jpeg_header(file: BinaryIO) -> RasterHeader:
    with _pillow(file, "jpeg") as image:
        samples, bits, meaning = _meaning(image.mode)
        mode, (columns, rows) = image.mode, image.size
        sideways = _orientation(image) in _SIDEWAYS
    _check_budget(rows, columns, samples, bits)
    _check_jpeg_end(file)
    if sideways:
        rows, columns = columns, rows
    return RasterHeader("jpeg", 1, rows, columns, samples, bits, meaning, mode)


def _check_jpeg_end(file: BinaryIO) -> None:
    """EOI is there: at the end but for padding as a rule, else found from segment to segment (previews in EXIF have their own)."""
    file.seek(-min(64, file.seek(0, os.SEEK_END)), os.SEEK_END)
    if file.read().rstrip(b"\x00\xff").endswith(b"\xff\xd9"):
        return
    file.seek(0)
    data = file.read()
    position = 2
    while found := _JPEG_MARKER.search(data, position):
        if found[1] == b"\xd9":
            return
        length = int.from_bytes(data[found.end() : found.end() + 2], "big")
        position = found.end() + max(length, 2)
    raise Rejected(RejectReason.TRUNCATED, "the JPEG file lacks its end marker (FF D9)")


def _tiff_header(file: BinaryIO) -> RasterHeader:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    with _pillow(file, "tiff") as image:
        samples, bits, meaning = _tiff_meaning(image)
        mode, (columns, rows) = image.mode, image.size
        frames = int(getattr(image, "n_frames", 1))
        for page in range(frames):
            image.seek(page)
            if (image.size, _tiff_meaning(image)) != ((columns, rows), (samples, bits, meaning)):
                detail = f"page {page + 1} of the TIFF is of another size or kind than the first: one image is expected"
                raise Rejected(RejectReason.UNSUPPORTED_PIXELS, detail)
            _check_budget(image.height, image.width, len(image.getbands()), bits)
            _check_strips(image, size)
    return RasterHeader("tiff", frames, rows, columns, samples, bits, meaning, mode)


def _tiff_meaning(image: Any) -> tuple[int, int, str]:
    """`_meaning` of a TIFF page. Pillow makes 8 bits of colour in 16, and wrong ones where each colour is a plane of its own."""
    samples, bits, meaning = _meaning(image.mode)
    deep = samples == 3 and max(image.tag_v2.get(ExifTags.Base.BitsPerSample, (8,))) > 8
    if not deep:
        return samples, bits, meaning
    if set(image.tag_v2[ExifTags.Base.BitsPerSample]) != {16} or image.tag_v2.get(_PHOTOMETRIC) != _TIFF_RGB:
        raise Rejected(RejectReason.UNSUPPORTED_PIXELS, "TIFF colour of more than 8 bits that is not RGB of 16")
    return samples, 16, meaning


def _check_strips(image: Any, size: int) -> None:
    """Each strip or tile of the page lies inside the file."""
    tags = image.tag_v2
    for offsets, lengths in ((ExifTags.Base.StripOffsets, ExifTags.Base.StripByteCounts), (324, 325)):
        for offset, length in zip(tags.get(offsets, ()), tags.get(lengths, ()), strict=False):
            if offset + length > size:
                raise Rejected(
                    RejectReason.TRUNCATED, f"the TIFF file has {size} bytes, a strip ends at {offset + length}"
                )


def _decode_png(file: BinaryIO) -> tuple[NDArray[Any], int]:
    """(rows, columns[, samples with alpha]) and the value of white. Fewer than 8 bits come scaled to 8."""
    import imagecodecs

    try:
        samples = imagecodecs.png_decode(file.read())
    except (RuntimeError, ValueError) as error:
        raise Rejected(RejectReason.DECODE_FAILED, f"the PNG decoder reports {type(error).__name__}") from None
    return samples, int(np.iinfo(samples.dtype).max)


def _decode_deep_color(file: BinaryIO, frame: int) -> tuple[NDArray[Any], int]:
    """RGB of 16 bits from a TIFF, (rows, columns, samples with alpha) set upright, and the value of white."""
    import imagecodecs

    with _pillow(file, "tiff") as image:
        image.seek(frame)
        by_plane, turn = image.tag_v2.get(_PLANAR) == _TIFF_PLANES, _TURNS.get(_orientation(image))
    file.seek(0)
    try:
        samples = imagecodecs.tiff_decode(file.read(), index=frame)
    except (RuntimeError, ValueError) as error:
        raise Rejected(RejectReason.DECODE_FAILED, f"the TIFF decoder reports {type(error).__name__}") from None
    if by_plane and samples.ndim == 3:
        samples = np.moveaxis(samples, 0, -1)
    if samples.dtype != np.uint16 or samples.ndim != 3 or samples.shape[2] < 3:
        raise Rejected(RejectReason.DECODE_FAILED, f"expected RGB of 16 bits in the TIFF, found {samples.dtype}")
    return samples if turn is None else turn(samples), int(np.iinfo(np.uint16).max)


def _decode_with_pillow(file: BinaryIO, format_name: str, frame: int) -> tuple[NDArray[Any], int]:
    """(rows, columns[, samples]) set upright, and the value of white. TIFF comes upright from Pillow already."""
    with _pillow(file, format_name) as image:
        image.seek(frame)
        turn = _TURNS.get(_orientation(image)) if format_name == "jpeg" else None
        white = 1 if image.mode == "1" else 255
        if image.mode.startswith("I;16"):
            (bits,) = set(image.tag_v2.get(ExifTags.Base.BitsPerSample, (16,)))
            white = (1 << bits) - 1
        elif image.mode not in ("1", "L", "LA", "RGB", "RGBA"):
            image = image.convert("RGB")
        samples = np.asarray(image)
    return samples if turn is None else turn(samples), white


@contextmanager
def _pillow(file: BinaryIO, format_name: str) -> Iterator[Any]:
    """The open image; whatever Pillow raises becomes a Rejected."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd tags, and of sizes that the budget judges anyway
            with Image.open(file, formats=[format_name.upper()]) as image:
                yield image
    except (Rejected, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise Rejected(
            RejectReason.TOO_LARGE, f"the {format_name.upper()} image has more pixels than can be decoded"
        ) from None
    except Image.UnidentifiedImageError:
        raise Rejected(
            RejectReason.MALFORMED, f"the {format_name.upper()} header is broken, or of a kind not decoded"
        ) from None
    except (OSError, EOFError) as error:
        reason = RejectReason.TRUNCATED if "truncated" in str(error).lower() else RejectReason.DECODE_FAILED
        raise Rejected(reason, f"the {format_name.upper()} decoder reports {type(error).__name__}") from None
    except Exception as error:  # about a dozen types on broken bytes, SyntaxError and struct.error among them
        raise Rejected(
            RejectReason.MALFORMED, f"the {format_name.upper()} file cannot be parsed ({type(error).__name__})"
        ) from None


def _meaning(mode: str) -> tuple[int, int, str]:
    if mode not in _MODES:
        raise Rejected(
            RejectReason.UNSUPPORTED_PIXELS, f"pixels of Pillow's mode {mode}: nothing says what range they have"
        )
    return _MODES[mode]


def _orientation(image: Any) -> int:
    value = image.getexif().get(ExifTags.Base.Orientation, 1)
    return value if isinstance(value, int) else 1


def _check_budget(rows: int, columns: int, samples: int, bits: int) -> None:
    needed = rows * columns * samples * max(bits // 8, 1)
    if needed > MAX_RASTER_BYTES:
        raise Rejected(
            RejectReason.TOO_LARGE, f"{rows} × {columns} pixels take {needed} bytes; the budget is {MAX_RASTER_BYTES}"
        )
