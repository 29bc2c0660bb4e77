"""A DICOM file → `Pixels`: modality values and what is needed to give them a meaning.

Order of PS3.3 C.11 and C.7.6.3: stored values → modality LUT or rescale. VOI and MONOCHROME1 are told beside the values, never applied
to them. Of a functional group and the top level, the group of the frame goes first, then the shared one. RealWorldValueMapping
changes no value: it tells quantities beside what is displayed (PS3.3 C.7.6.16.2.11).

Unit. HU: RescaleType (or ModalityLUTType) is HU; or it is absent, and this is an object of a CT class with a rescale,
where HU is the default (PS3.3 C.8.2.1); or it is US there in an ORIGINAL image, whose output shall be HU whatever it
says. Never HU: localizers (ImageType value 3 LOCALIZER), which are projections: no window for slices fits them.
FRACTION: single bits; colour over the range of BitsStored, as luma (ITU-R BT.601), or as RGB where asked for. Everything
else is MODALITY.

VOI: VOI LUTs first, as they are the maker's rendering where a window is its approximation, then windows, each in the
file's order; windows that no function can use are left out. Inversion goes by MONOCHROME1 alone: in a valid object
PresentationLUTShape says the same once more (PS3.3 C.8.11.3.1.2), and inverting for both would undo it. Where the two
contradict, readers differ (dcmtk follows the shape).

Aspect: that of the spacing; where there is none PixelAspectRatio, vertical \\ horizontal (PS3.3 C.7.6.3.1.7).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, uid

from pipeline.dicom.bounded import parsing, value_of
from pipeline.dicom.codestream import Color
from pipeline.dicom.frames import ImageFile, StoredFrame, open_image, read_stored
from pipeline.dicom.geometry import frame_group
from pipeline.dicom.lookup import read_palette, read_table
from pipeline.dicom.pixel_element import DOUBLE_PIXELS, FLOAT_PIXELS
from pipeline.errors import Rejected, RejectReason
from pipeline.raster import luma, rgb_fractions
from transforms.intensity import FloatImage, Pixels, PixelUnit, Voi, VoiFunction

CT_CLASSES = frozenset({uid.CTImageStorage, uid.EnhancedCTImageStorage, uid.LegacyConvertedEnhancedCTImageStorage})

_GRAY = ("MONOCHROME1", "MONOCHROME2")
_PALETTE = "PALETTE COLOR"
_RGB = ("RGB", "YBR_ICT", "YBR_RCT", "XYB")  # decoders of JPEG 2000 and JPEG XL undo ICT, RCT and XYB themselves
_YBR_FULL = ("YBR_FULL", "YBR_FULL_422")
_YBR_PARTIAL = ("YBR_PARTIAL_420", "YBR_PARTIAL_422")  # black is 16, white 235 of 255
_FROM_YBR = np.array([[1, 1, 1], [0, -0.344136, 1.772], [1.402, -0.714136, 0]], np.float32)
"""Y, CB, CR → R, G, B: the inverse of PS3.3 C.7.6.3.1.2's YBR_FULL, with CB and CR about 0."""
_WORD, _SIGN = 1 << 16, 1 << 15


def read_pixels(path: Path, frame: int = 0, *, color: bool = False) -> Pixels:
    """Frame `frame` (from 0) of a DICOM file; other frames are not read. Nothing is written anywhere.

    `color`: values of colour images are (rows, columns, 3) RGB, of gray ones gray. Raises ValueError for a frame that the image does
    not have; Rejected, with its reason, for whatever is wrong with the file.
    """
    with open_image(path) as image:
        return _pixels(image, frame, color)


def read_frames(path: Path, frames: Iterable[int] | None = None, *, color: bool = False) -> Iterator[Pixels]:
    """All frames in order, or those asked for (from 0), one in memory at a time, as `read_pixels` gives them."""
    with open_image(path) as image:
        for frame in range(image.shape.frames) if frames is None else frames:
            yield _pixels(image, frame, color)


@contextmanager
def open_frames(path: Path, *, color: bool = False) -> Iterator[Callable[[int], Pixels]]:
    """Reads frames of one file as `read_pixels` does, its header parsed once."""
    with open_image(path) as image:
        yield lambda frame: _pixels(image, frame, color)


def frame_count(path: Path) -> int:
    """Number of frames, from the header and checked against the bytes there are. Raises Rejected, as `read_pixels`."""
    with open_image(path) as image:
        return image.shape.frames


def _pixels(image: ImageFile, frame: int, color: bool) -> Pixels:
    photometric, samples = image.shape.photometric_interpretation, image.shape.samples_per_pixel
    known = (*_GRAY, _PALETTE, *_RGB, *_YBR_FULL, *_YBR_PARTIAL)
    if photometric not in known or samples != (1 if photometric in (*_GRAY, _PALETTE) else 3):
        detail = f"{samples} samples a pixel with no, or an unsuited, PhotometricInterpretation"
        raise Rejected(RejectReason.UNSUPPORTED_PIXELS, detail)
    if photometric not in _GRAY and (image.signed or image.is_float):
        raise Rejected(RejectReason.UNSUPPORTED_PIXELS, "colour pixels that are signed or floating point")
    stored = read_stored(image, frame)
    with parsing(image.window):
        spacing = _spacing_mm(image, frame)
        aspect = _aspect(image, spacing)
        if photometric not in _GRAY:
            values = _rgb(stored, image) if color else _luma(stored, image)
            return Pixels(values, PixelUnit.FRACTION, spacing_mm=spacing, aspect=aspect)
        inverted = photometric == "MONOCHROME1"
        if image.shape.bits_allocated == 1:
            bits = stored.values.astype(np.float32)
            return Pixels(bits, PixelUnit.FRACTION, inverted=inverted, spacing_mm=spacing, aspect=aspect)
        padding = _padding(stored.values, image)
        values, unit, negative = _modality_values(stored.values, image, frame)
        voi = _vois(image, frame, negative)
        return _finite(Pixels(values, unit, voi, inverted, padding, spacing, aspect))


def _finite(pixels: Pixels) -> Pixels:
    """Float pixel data may hold NaN and infinities: no data, so padding, with a value of 0."""
    broken = ~np.isfinite(pixels.values)
    if not broken.any():
        return pixels
    padding = broken if pixels.padding is None else pixels.padding | broken
    return replace(pixels, values=np.where(broken, np.float32(0), pixels.values), padding=padding)


def _modality_values(stored: NDArray[Any], image: ImageFile, frame: int) -> tuple[FloatImage, PixelUnit, bool]:
    """Modality values (PS3.3 C.11.1), their unit, and whether they can be negative."""
    source = _group(image, frame, "PixelValueTransformationSequence") or image.dataset
    tables = source.get("ModalityLUTSequence")
    if tables and not image.is_float:
        table = read_table(tables[0], signed_input=image.signed, little_endian=image.little_endian)
        in_hu = str(value_of(tables[0], "ModalityLUTType") or "").strip().upper() == "HU"
        return table(stored), PixelUnit.HU if in_hu and not _is_localizer(image, frame) else PixelUnit.MODALITY, False
    slope, intercept = _number(source, "RescaleSlope"), _number(source, "RescaleIntercept")
    rescaled = slope is not None or intercept is not None
    slope, intercept = 1.0 if slope is None else slope, intercept or 0.0
    if slope == 0:
        raise Rejected(RejectReason.UNSUPPORTED_PIXELS, "RescaleSlope is 0: every pixel has the same modality value")
    negative = image.signed or stored.dtype.kind == "f" or intercept < 0 or slope < 0
    values = stored if slope == 1 and intercept == 0 else stored * np.float64(slope) + intercept
    return values.astype(np.float32), _unit(source, image, frame, rescaled), negative


def _unit(source: Dataset, image: ImageFile, frame: int, rescaled: bool) -> PixelUnit:
    """HU or MODALITY, by the rule of the module's docstring."""
    rescale_type = str(value_of(source, "RescaleType") or "").strip().upper()
    if _is_localizer(image, frame) or not rescaled:
        return PixelUnit.MODALITY
    if rescale_type == "HU":
        return PixelUnit.HU
    by_default = image.dataset.get("SOPClassUID") in CT_CLASSES and str(image.dataset.get("Modality")) == "CT"
    original = _image_type(image, frame)[:1] == ("ORIGINAL",)
    unsaid = rescale_type == "" or (rescale_type == "US" and original)
    return PixelUnit.HU if by_default and unsaid else PixelUnit.MODALITY


def _is_localizer(image: ImageFile, frame: int) -> bool:
    return _image_type(image, frame)[2:3] == ("LOCALIZER",)


def _image_type(image: ImageFile, frame: int) -> tuple[str, ...]:
    """ImageType; of an Enhanced CT the frame's own FrameType, as the image's may be MIXED (PS3.3 C.8.15.3.1.1)."""
    own = _group(image, frame, "CTImageFrameTypeSequence")
    words = _words(own, "FrameType") if own is not None else ()
    return tuple(word.upper() for word in words or _words(image.dataset, "ImageType"))


def _vois(image: ImageFile, frame: int, negative: bool) -> tuple[Voi, ...]:
    """VOI LUTs, then windows (PS3.3 C.11.2, C.7.6.16.2.10). `negative`: modality values can be below zero."""
    source = _group(image, frame, "FrameVOILUTSequence") or image.dataset
    found: list[Voi] = []
    for item in source.get("VOILUTSequence") or ():
        table = read_table(item, signed_input=negative, little_endian=image.little_endian)
        words = " ".join(_words(item, "LUTExplanation"))
        found.append(Voi(VoiFunction.LUT, first=float(table.first), lut=table.fractions(), explanation=words))
    name = str(value_of(source, "VOILUTFunction") or "LINEAR").strip().upper()
    function = VoiFunction(name) if name in ("LINEAR_EXACT", "SIGMOID") else VoiFunction.LINEAR
    least_width = 1.0 if function is VoiFunction.LINEAR else 0.0  # C.11.2.1.2: LINEAR from 1 up, the others above 0
    centers, widths = _numbers(source, "WindowCenter"), _numbers(source, "WindowWidth")
    explanations = (*_words(source, "WindowCenterWidthExplanation"), *("",) * len(centers))
    for center, width, words in zip(centers, widths, explanations, strict=False):
        if width > 0 and width >= least_width:
            found.append(Voi(function, center=center, width=width, explanation=words))
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
    """Colour → gray 0-1. Y of YBR is the luma already."""
    photometric = image.shape.photometric_interpretation
    if photometric == _PALETTE or _is_rgb(stored, image):
        return luma(*_rgb_samples(stored, image))
    if photometric in _YBR_PARTIAL and stored.color is None:
        step = np.float32(2.0 ** (image.bits_stored - 8))
        return np.clip((stored.values[..., 0] / step - 16) / np.float32(219), 0, 1).astype(np.float32, copy=False)
    return luma(stored.values[..., :1], (1 << image.bits_stored) - 1)


def _rgb(stored: StoredFrame, image: ImageFile) -> FloatImage:
    """Colour → (rows, columns, 3) RGB 0-1. Colours of YBR that no RGB can show are clipped, as every reader does."""
    photometric, values = image.shape.photometric_interpretation, stored.values
    if photometric == _PALETTE or _is_rgb(stored, image):
        return rgb_fractions(*_rgb_samples(stored, image))
    if photometric in _YBR_PARTIAL and stored.color is None:
        step = 2.0 ** (image.bits_stored - 8)
        zero, span = np.array([16, 128, 128]) * step, np.array([219, 224, 224]) * step
    else:
        middle, white = 1 << (image.bits_stored - 1), (1 << image.bits_stored) - 1
        zero, span = np.array([0, middle, middle]), np.array([white] * 3)
    ybr = (values.astype(np.float32) - zero.astype(np.float32)) / span.astype(np.float32)
    return np.clip(ybr @ _FROM_YBR, 0.0, 1.0)


def _is_rgb(stored: StoredFrame, image: ImageFile) -> bool:
    """A JPEG's own markers go before PhotometricInterpretation."""
    return stored.color is Color.RGB or (stored.color is None and image.shape.photometric_interpretation in _RGB)


def _rgb_samples(stored: StoredFrame, image: ImageFile) -> tuple[NDArray[Any], float]:
    """(rows, columns, 3) of RGB or PALETTE COLOR, and the value of white."""
    if image.shape.photometric_interpretation != _PALETTE:
        return stored.values, float((1 << image.bits_stored) - 1)
    tables = read_palette(image.dataset, little_endian=image.little_endian)
    white = float(max((1 << tables[0].bits) - 1, *(int(table.entries.max()) for table in tables)))
    return np.stack([table(stored.values.astype(np.int64)) for table in tables], axis=-1), white


def _spacing_mm(image: ImageFile, frame: int) -> tuple[float, float] | None:
    """(between rows, between columns): PixelSpacing, else that of the detector, which does not know the magnification."""
    measures = _group(image, frame, "PixelMeasuresSequence")
    for source, keyword in (
        (measures, "PixelSpacing"),
        (image.dataset, "PixelSpacing"),
        (image.dataset, "ImagerPixelSpacing"),
        (image.dataset, "NominalScannedPixelSpacing"),
    ):
        spacing = _numbers(source, keyword) if source is not None else ()
        if len(spacing) == 2 and min(spacing) > 0:
            return spacing[0], spacing[1]
    return None


def _aspect(image: ImageFile, spacing_mm: tuple[float, float] | None) -> float:
    """Height of a pixel / its width; square where nothing is said."""
    ratio = spacing_mm or _numbers(image.dataset, "PixelAspectRatio")
    return ratio[0] / ratio[1] if len(ratio) == 2 and min(ratio) > 0 else 1.0


def _group(image: ImageFile, frame: int, keyword: str) -> Dataset | None:
    """The first item of a functional group, the frame's own or the shared one, else None."""
    return frame_group(image.dataset, frame, keyword) or None


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


def _words(source: Dataset, keyword: str) -> tuple[str, ...]:
    """The values of an attribute of text, stripped; empty where it is absent."""
    value = value_of(source, keyword)
    if value is None:
        return ()
    return tuple(str(part).strip() for part in ([value] if isinstance(value, str) else value))
