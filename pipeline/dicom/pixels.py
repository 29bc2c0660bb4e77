"""A DICOM file → `Pixels`: modality values and what is needed to give them a meaning.

Order of PS3.3 C.11 and C.7.6.3: stored values → modality LUT or rescale. VOI and MONOCHROME1 are told beside the values, never applied
to them. Of a functional group and the top level, the group of the frame goes first, then the shared one.

Unit. HU: RescaleType (or ModalityLUTType) is HU; or it is absent, and this is an object of a CT class with a rescale,
where HU is the default (PS3.3 C.8.2.1); or it is US there in an ORIGINAL image, whose output shall be HU whatever it
says. Never HU: localizers (ImageType value 3 LOCALIZER), which are projections: no window for slices fits them.
FRACTION: colour, as luma (ITU-R BT.601) over the range of BitsStored, and single bits. Everything else is MODALITY.

VOI: VOI LUTs first, as they are the maker's rendering where a window is its approximation, then windows, each in the
file's order; windows that no function can use are left out. Inversion goes by MONOCHROME1 alone: in a valid object
PresentationLUTShape says the same once more (PS3.3 C.8.11.3.1.2), and inverting for both would undo it. Where the two
contradict, readers differ (dcmtk follows the shape).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, uid

from pipeline.dicom.bounded import parsing, value_of
from pipeline.dicom.codestream import Color
from pipeline.dicom.frames import ImageFile, StoredFrame, open_image, read_stored
from pipeline.dicom.lookup import read_palette, read_table
from pipeline.dicom.pixel_element import DOUBLE_PIXELS, FLOAT_PIXELS
from pipeline.errors import Rejected, RejectReason
from pipeline.raster import luma
from transforms.intensity import FloatImage, Pixels, PixelUnit, Voi, VoiFunction

CT_CLASSES = frozenset({uid.CTImageStorage, uid.EnhancedCTImageStorage, uid.LegacyConvertedEnhancedCTImageStorage})

_GRAY = ("MONOCHROME1", "MONOCHROME2")
_PALETTE = "PALETTE COLOR"
_RGB = ("RGB", "YBR_ICT", "YBR_RCT")  # JPEG 2000 decoders undo ICT and RCT themselves
_YBR_FULL = ("YBR_FULL", "YBR_FULL_422")
_YBR_PARTIAL = ("YBR_PARTIAL_420", "YBR_PARTIAL_422")  # black is 16, white 235 of 255
_WORD, _SIGN = 1 << 16, 1 << 15


def read_pixels(path: Path, frame: int = 0) -> Pixels:
    """Frame `frame` (from 0) of a DICOM file; other frames are not read. Nothing is written anywhere.

    Raises ValueError for a frame that the image does not have; Rejected, with its reason, for whatever is wrong with the file.
    """
    with open_image(path) as image:
        return _pixels(image, frame)


def read_frames(path: Path) -> Iterator[Pixels]:
    """All frames in order, one in memory at a time. Raises Rejected, as `read_pixels`."""
    with open_image(path) as image:
        for frame in range(image.shape.frames):
            yield _pixels(image, frame)


def frame_count(path: Path) -> int:
    """Number of frames, from the header and checked against the bytes there are. Raises Rejected, as `read_pixels`."""
    with open_image(path) as image:
        return image.shape.frames


def _pixels(image: ImageFile, frame: int) -> Pixels:
    photometric, samples = image.shape.photometric_interpretation, image.shape.samples_per_pixel
    if samples != (1 if photometric in (*_GRAY, _PALETTE) else 3) or photometric not in (
        *_GRAY,
        _PALETTE,
        *_RGB,
        *_YBR_FULL,
        *_YBR_PARTIAL,
    ):
        raise Rejected(
            RejectReason.UNSUPPORTED_PIXELS,
            f"{samples} samples a pixel with no, or an unsuited, PhotometricInterpretation",
        )
    stored = read_stored(image, frame)
    with parsing(image.window):
        spacing = _spacing_mm(image, frame)
        if photometric not in _GRAY:
            return Pixels(_luma(stored, image), PixelUnit.FRACTION, spacing_mm=spacing)
        inverted = photometric == "MONOCHROME1"
        if image.shape.bits_allocated == 1:
            return Pixels(stored.values.astype(np.float32), PixelUnit.FRACTION, inverted=inverted, spacing_mm=spacing)
        padding = _padding(stored.values, image)
        values, unit, negative = _modality_values(stored.values, image, frame)
        voi = _vois(image, frame, negative)
        return _finite(Pixels(values, unit, voi, inverted, padding, spacing))


def _finite(pixels: Pixels) -> Pixels:
    """Float pixel data may hold NaN and infinities: no data, so padding, with a value of 0."""
    broken = ~np.isfinite(pixels.values)
    if not broken.any():
        return pixels
    values = np.where(broken, np.float32(0), pixels.values)
    padding = broken if pixels.padding is None else pixels.padding | broken
    return Pixels(values, pixels.unit, pixels.voi, pixels.inverted, padding, pixels.spacing_mm)


def _modality_values(stored: NDArray[Any], image: ImageFile, frame: int) -> tuple[FloatImage, PixelUnit, bool]:
    """Modality values (PS3.3 C.11.1), their unit, and whether they can be negative."""
    source = _group(image, frame, "PixelValueTransformationSequence") or image.dataset
    tables = source.get("ModalityLUTSequence")
    if tables and not image.is_float:
        table = read_table(tables[0], signed_input=image.signed, little_endian=image.little_endian)
        in_hu = str(value_of(tables[0], "ModalityLUTType") or "").strip().upper() == "HU"
        return table(stored), PixelUnit.HU if in_hu and not _is_localizer(image) else PixelUnit.MODALITY, False
    slope, intercept = _number(source, "RescaleSlope"), _number(source, "RescaleIntercept")
    rescaled = slope is not None or intercept is not None
    slope, intercept = 1.0 if slope is None else slope, intercept or 0.0
    if slope == 0:
        raise Rejected(RejectReason.UNSUPPORTED_PIXELS, "RescaleSlope is 0: every pixel has the same modality value")
    negative = image.signed or stored.dtype.kind == "f" or intercept < 0 or slope < 0
    values = stored if slope == 1 and intercept == 0 else stored * np.float64(slope) + intercept
    return values.astype(np.float32), _unit(source, image, rescaled), negative


def _unit(source: Dataset, image: ImageFile, rescaled: bool) -> PixelUnit:
    """HU or MODALITY, by the rule of the module's docstring."""
    rescale_type = str(value_of(source, "RescaleType") or "").strip().upper()
    if _is_localizer(image) or not rescaled:
        return PixelUnit.MODALITY
    if rescale_type == "HU":
        return PixelUnit.HU
    by_default = image.dataset.get("SOPClassUID") in CT_CLASSES and str(image.dataset.get("Modality")) == "CT"
    original = _image_type(image)[:1] == ("ORIGINAL",)
    unsaid = rescale_type == "" or (rescale_type == "US" and original)
    return PixelUnit.HU if by_default and unsaid else PixelUnit.MODALITY


def _is_localizer(image: ImageFile) -> bool:
    return _image_type(image)[2:3] == ("LOCALIZER",)


def _image_type(image: ImageFile) -> tuple[str, ...]:
    value = image.dataset.get("ImageType") or ()
    return tuple(str(part).strip().upper() for part in ([value] if isinstance(value, str) else value))


def _vois(image: ImageFile, frame: int, negative: bool) -> tuple[Voi, ...]:
    """VOI LUTs, then windows (PS3.3 C.11.2, C.7.6.16.2.10). `negative`: modality values can be below zero."""
    source = _group(image, frame, "FrameVOILUTSequence") or image.dataset
    found: list[Voi] = []
    for item in source.get("VOILUTSequence") or ():
        table = read_table(item, signed_input=negative, little_endian=image.little_endian)
        found.append(Voi(VoiFunction.LUT, first=float(table.first), lut=table.fractions()))
    name = str(value_of(source, "VOILUTFunction") or "LINEAR").strip().upper()
    function = VoiFunction(name) if name in ("LINEAR_EXACT", "SIGMOID") else VoiFunction.LINEAR
    least_width = 1.0 if function is VoiFunction.LINEAR else 0.0  # C.11.2.1.2: LINEAR from 1 up, the others above 0
    for center, width in zip(_numbers(source, "WindowCenter"), _numbers(source, "WindowWidth"), strict=False):
        if width > 0 and width >= least_width:
            found.append(Voi(function, center=center, width=width))
    return tuple(found)


def _padding(stored: NDArray[Any], image: ImageFile) -> NDArray[np.bool_] | None:
    """Where values are padding (PS3.3 C.7.5.1.1.2): PixelPaddingValue, or its range to the limit; None if nowhere."""
    prefix = {FLOAT_PIXELS: "Float", DOUBLE_PIXELS: "DoubleFloat"}.get(image.element.tag, "")
    value = _number(image.dataset, f"{prefix}PixelPaddingValue")
    if value is None:
        return None
    limit = _number(image.dataset, f"{prefix}PixelPaddingRangeLimit")
    ends = [value, value if limit is None else limit]
    if not image.is_float:  # VR US or SS, often the wrong one: 63536 is -2000 in a signed image
        ends = [
            end - _WORD if image.signed and end >= _SIGN else end + _WORD if not image.signed and end < 0 else end
            for end in ends
        ]
    mask = (stored >= min(ends)) & (stored <= max(ends))
    return mask if mask.any() else None


def _luma(stored: StoredFrame, image: ImageFile) -> FloatImage:
    """Colour → gray 0-1. Y of YBR is the luma already; a JPEG's own markers go before PhotometricInterpretation."""
    if image.signed or image.is_float:
        raise Rejected(RejectReason.UNSUPPORTED_PIXELS, "colour pixels that are signed or floating point")
    photometric, values = image.shape.photometric_interpretation, stored.values
    if photometric == _PALETTE:
        tables = read_palette(image.dataset, little_endian=image.little_endian)
        white = float(max((1 << tables[0].bits) - 1, *(int(table.entries.max()) for table in tables)))
        return luma(np.stack([table(values.astype(np.int64)) for table in tables], axis=-1), white)
    white = float((1 << image.bits_stored) - 1)
    if stored.color is Color.RGB or (stored.color is None and photometric in _RGB):
        return luma(values, white)
    if photometric in _YBR_PARTIAL and stored.color is None:
        step = 2.0 ** (image.bits_stored - 8)
        return np.clip((values[..., 0] / np.float32(step) - 16) / 219, 0, 1).astype(np.float32)
    return luma(values[..., :1], white)


def _spacing_mm(image: ImageFile, frame: int) -> tuple[float, float] | None:
    """(between rows, between columns): PixelSpacing, else that of the detector, which does not know the magnification."""
    measures = _group(image, frame, "PixelMeasuresSequence")
    for source, keyword in (
        (image.dataset, "PixelSpacing"),
        (measures, "PixelSpacing"),
        (image.dataset, "ImagerPixelSpacing"),
        (image.dataset, "NominalScannedPixelSpacing"),
    ):
        spacing = _numbers(source, keyword) if source is not None else ()
        if len(spacing) == 2 and min(spacing) > 0:
            return spacing[0], spacing[1]
    return None


def _group(image: ImageFile, frame: int, keyword: str) -> Dataset | None:
    """The first item of a functional group: the frame's own, else the shared one (PS3.3 C.7.6.16), else None."""
    own, shared = (
        image.dataset.get("PerFrameFunctionalGroupsSequence"),
        image.dataset.get("SharedFunctionalGroupsSequence"),
    )
    for groups, number in ((own, frame), (shared, 0)):
        if groups is not None and number < len(groups):
            items = groups[number].get(keyword)
            if items:
                return items[0]
    return None


def _number(source: Dataset, keyword: str) -> float | None:
    numbers = _numbers(source, keyword)
    return numbers[0] if numbers else None


def _numbers(source: Dataset, keyword: str) -> tuple[float, ...]:
    """The finite numbers of an attribute; empty where it is absent, or not a number in one of its values."""
    value = value_of(source, keyword)
    if value is None:
        return ()
    try:
        numbers = tuple(float(part) for part in ([value] if isinstance(value, (str, float, int)) else value))
    except (TypeError, ValueError):
        return ()
    return numbers if all(np.isfinite(numbers)) else ()
