"""The same picture as another scanner, export or screenshot would have made it: what a model must hold under.

Each of `STRESSES` takes and returns the source's `Pixels`, before the deterministic chain, whatever their unit; it is deterministic, and
acts on shape and values alone. Values in HU or of a modality have no black and white of their own: `shades` takes their 1st and 99th
percentile, padding left out. None of them inverts.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from transforms.intensity import FloatImage, Pixels, PixelUnit

PERCENTILES = (1.0, 99.0)
TEXT_SHARE = 0.4
"""Of a line of text, what is ink."""


@dataclass(frozen=True)
class Stress:
    """`words` says what was done, for tables; `apply` does it."""

    name: str
    words: str
    apply: Callable[[Pixels], Pixels]


class Shades(NamedTuple):
    """The values that are shown black and white."""

    black: float
    white: float

    @property
    def range(self) -> float:
        """From black to white; below 0 where values are inverted."""
        return self.white - self.black


def shades(pixels: Pixels) -> Shades:
    """0 and 1 of fractions, else the percentiles; exchanged in MONOCHROME1."""
    if pixels.unit is PixelUnit.FRACTION:
        low, high = 0.0, 1.0
    else:
        inside = pixels.values if pixels.padding is None else pixels.values[~pixels.padding]
        low, high = (float(end) for end in np.percentile(inside, PERCENTILES)) if inside.size else (0.0, 1.0)
        high = high if high > low else low + 1.0
    return Shades(high, low) if pixels.inverted else Shades(low, high)


def windowed(pixels: Pixels, center: float = 0.5, width: float = 1.0) -> Pixels:
    """As in a window of this centre and width, in parts of the range from black to white."""
    black, span = shades(pixels).black, shades(pixels).range
    return _with_values(pixels, black + span * (((pixels.values - black) / span - center) / width + 0.5))


def curved(pixels: Pixels, power: float) -> Pixels:
    """Shades raised to a power; what is beyond black and white stays."""
    black, span = shades(pixels).black, shades(pixels).range
    shade = (pixels.values - black) / span
    inside = np.clip(shade, 0.0, 1.0)
    return _with_values(pixels, pixels.values + span * (inside**power - inside))


def framed(pixels: Pixels, shade: float, widths: tuple[float, float, float, float]) -> Pixels:
    """With a frame of this shade; `widths` above, below, left, right as parts of the picture's side."""
    value = _value(pixels, shade)
    rows, columns = pixels.values.shape[:2]
    around = [
        tuple(round(width * side) for width in pair) for pair, side in ((widths[:2], rows), (widths[2:], columns))
    ]
    spare = [*around, (0, 0)][: pixels.values.ndim]
    padding = None if pixels.padding is None else np.pad(pixels.padding, around)
    return replace(pixels, values=np.pad(pixels.values, spare, constant_values=np.float32(value)), padding=padding)


def cut(pixels: Pixels, widths: tuple[float, float, float, float]) -> Pixels:
    """Without these parts of its rows above and below, of its columns at the left and at the right; a pixel stays."""
    (rows, columns), (above, below, left, right) = pixels.values.shape[:2], widths
    row, column = min(round(above * rows), rows - 1), min(round(left * columns), columns - 1)
    inner = (
        slice(row, max(row + 1, rows - round(below * rows))),
        slice(column, max(column + 1, columns - round(right * columns))),
    )
    padding = None if pixels.padding is None else np.ascontiguousarray(pixels.padding[inner])
    return replace(pixels, values=np.ascontiguousarray(pixels.values[inner]), padding=padding)


def resized(pixels: Pixels, factor: float) -> Pixels:
    """So many times as many rows and columns, anti-aliased where they are fewer."""
    sides = [max(1, round(side * factor)) for side in pixels.values.shape[:2]]
    planes = torch.from_numpy(np.ascontiguousarray(np.atleast_3d(pixels.values).transpose(2, 0, 1)))[None]
    small = torch.nn.functional.interpolate(planes, sides, mode="bilinear", antialias=True)[0].numpy()
    padding = None
    if pixels.padding is not None:
        rows, columns = (
            (np.arange(side) * whole) // side for side, whole in zip(sides, pixels.padding.shape, strict=True)
        )
        padding = pixels.padding[np.ix_(rows, columns)]
    spacing = None if pixels.spacing_mm is None else (pixels.spacing_mm[0] / factor, pixels.spacing_mm[1] / factor)
    values = small[0] if pixels.values.ndim == 2 else np.ascontiguousarray(small.transpose(1, 2, 0))
    return replace(pixels, values=values, padding=padding, spacing_mm=spacing)


def blurred(pixels: Pixels, share: float) -> Pixels:
    """By a Gaussian whose standard deviation is this part of the longer side."""
    deviation = share * max(pixels.values.shape[:2])
    return _with_values(pixels, ndimage.gaussian_filter(pixels.values, deviation, mode="nearest", axes=(0, 1)))


def noisy(pixels: Pixels, deviation: float) -> Pixels:
    """Plus Gaussian noise of this standard deviation, in parts of the range; the same for the same values."""
    generator = np.random.default_rng(zlib.crc32(np.ascontiguousarray(pixels.values).tobytes()))
    noise = generator.standard_normal(pixels.values.shape, dtype=np.float32)
    return _with_values(pixels, pixels.values + np.float32(deviation * abs(shades(pixels).range)) * noise)


def compressed(pixels: Pixels, quality: int) -> Pixels:
    """With the errors of a JPEG of this quality, made of 256 shades; what is beyond black and white stays."""
    black, span = shades(pixels).black, shades(pixels).range
    shade = np.clip((pixels.values - black) / span, 0.0, 1.0)
    stream = io.BytesIO()
    Image.fromarray(np.rint(shade * 255).astype(np.uint8)).save(stream, "JPEG", quality=quality)
    with Image.open(stream) as coded:
        again = np.asarray(coded, dtype=np.float32) / 255
    return _with_values(pixels, pixels.values + span * (again - shade))


def screenshot(pixels: Pixels, shade: float, ink: float) -> Pixels:
    """Resampled to 4/5 and pasted off the middle of a page of this shade, with two lines of text above it."""
    pasted = framed(resized(pixels, 0.8), shade, (0.3, 0.15, 0.1, 0.25))
    values, side = pasted.values.copy(), pasted.values.shape
    height = max(1, side[0] // 60)
    written = np.random.default_rng(0).random((height, side[1] // 2)) < TEXT_SHARE
    for row in (height * 2, height * 5):
        values[row : row + height, height : height + written.shape[1]][written] = _value(pixels, ink)
    return replace(pasted, values=values)


def one_after_the_other(pixels: Pixels, changes: Sequence[Callable[[Pixels], Pixels]]) -> Pixels:
    """Several changes, as a picture has met with on its way from one hospital to another's file."""
    for change in changes:
        pixels = change(pixels)
    return pixels


def _value(pixels: Pixels, shade: float) -> float:
    """Of a shade; black and white of what has a wider range than is shown lie so far out that any window shows them so."""
    ends = shades(pixels)
    if pixels.unit is not PixelUnit.FRACTION and shade in (0.0, 1.0):
        return ends.black - ends.range if shade == 0.0 else ends.white + ends.range
    return ends.black + shade * ends.range


def _with_values(pixels: Pixels, values: NDArray[np.floating]) -> Pixels:
    if pixels.unit is PixelUnit.FRACTION:
        values = np.clip(values, 0.0, 1.0)
    changed: FloatImage = values.astype(np.float32, copy=False)
    return replace(pixels, values=changed)


_ALL = (
    Stress("window_narrower", "a window 0.7 times as wide", partial(windowed, width=0.7)),
    Stress("window_wider", "a window 1.5 times as wide", partial(windowed, width=1.5)),
    Stress("window_lower", "a window 15 % lower: brighter", partial(windowed, center=0.35)),
    Stress("window_higher", "a window 15 % higher: darker", partial(windowed, center=0.65)),
    Stress("gamma_low", "shades to the power 0.7: brighter", partial(curved, power=0.7)),
    Stress("gamma_high", "shades to the power 1.4: darker", partial(curved, power=1.4)),
    Stress("frame_black", "a black frame, 5 % of each side", partial(framed, shade=0.0, widths=(0.05,) * 4)),
    Stress("frame_black_wide", "a black frame, 25 % of each side", partial(framed, shade=0.0, widths=(0.25,) * 4)),
    Stress("frame_white", "a white frame, 5 % of each side", partial(framed, shade=1.0, widths=(0.05,) * 4)),
    Stress("frame_white_thin", "a white line around, 1 % of each side", partial(framed, shade=1.0, widths=(0.01,) * 4)),
    Stress("frame_gray", "a gray frame, 10 % of each side", partial(framed, shade=0.5, widths=(0.1,) * 4)),
    Stress("frame_uneven", "white above and at the left only", partial(framed, shade=1.0, widths=(0.2, 0.0, 0.1, 0.0))),
    Stress("edges_cut", "10 % cut off at each edge", partial(cut, widths=(0.1,) * 4)),
    Stress("edges_cut_uneven", "15 % cut off above and at the left", partial(cut, widths=(0.15, 0.0, 0.15, 0.0))),
    Stress("half_size", "half as many rows and columns", partial(resized, factor=1 / 2)),
    Stress("third_size", "a third of the rows and columns", partial(resized, factor=1 / 3)),
    Stress("double_size", "twice as many rows and columns", partial(resized, factor=2.0)),
    Stress("blur", "a Gaussian blur of 0.4 % of the longer side", partial(blurred, share=0.004)),
    Stress("noise", "Gaussian noise of 5 % of the range", partial(noisy, deviation=0.05)),
    Stress("jpeg_30", "JPEG of quality 30", partial(compressed, quality=30)),
    Stress("jpeg_10", "JPEG of quality 10", partial(compressed, quality=10)),
    Stress(
        "screenshot_dark", "a screenshot of a viewer, dark gray with text", partial(screenshot, shade=0.12, ink=0.9)
    ),
    Stress("screenshot_page", "a screenshot of a page, white with text", partial(screenshot, shade=1.0, ink=0.0)),
    Stress(
        "screenshot_jpeg",
        "a dark screenshot with text, at half the size, as JPEG of quality 30",
        partial(
            one_after_the_other,
            changes=(
                partial(screenshot, shade=0.12, ink=0.9),
                partial(resized, factor=1 / 2),
                partial(compressed, quality=30),
            ),
        ),
    ),
    Stress(
        "cut_framed_jpeg",
        "10 % cut off at each edge, in a black frame, at half the size, as JPEG of quality 30",
        partial(
            one_after_the_other,
            changes=(
                partial(cut, widths=(0.1,) * 4),
                partial(framed, shade=0.0, widths=(0.05,) * 4),
                partial(resized, factor=1 / 2),
                partial(compressed, quality=30),
            ),
        ),
    ),
)
STRESSES: Mapping[str, Stress] = MappingProxyType({stress.name: stress for stress in _ALL})
"""By name, in the order of tables."""
