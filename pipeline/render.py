"""Drawing on arrays: evidence over a gray image, and below it a panel with legend and text.

In: `gray` (rows, columns) float32, 0 black to 1 white, as a reader should see the image; `evidence` (rows, columns)
float32 in the same pixels, above 0 where the image speaks for the class. Out: uint8 RGB (rows, columns, 3). Nothing is
resampled, and nothing but the colour of the evidence is drawn over anatomy. The colour scale is the caller's, one for a
whole run; colours and words are a site's profile's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.lettering import drawable, font
from pipeline.profile_settings import Colors, Texts

FloatImage = NDArray[np.float32]  # (rows, columns)
Picture = NDArray[np.uint8]  # (rows, columns, 3) RGB

COLOR_STEPS = 256

MINIMUM_CANVAS_COLUMNS = 400
"""A narrower image gets a black margin at its right, so that a line of text holds some 50 characters."""
COLUMNS_PER_TEXT_PIXEL = 36
"""Text 14 pixels high at 512 columns, 83 at 3000: the same share of the screen when the picture is shown to fit."""
MINIMUM_TEXT_PIXELS = 13
LEGEND_GRAYS = (0.1, 0.6)
"""The legend's colours over lung and over soft tissue: opacity makes them differ."""

TEXT_COLOR = (235, 235, 235)
WARNING_COLOR = (255, 190, 60)
"""Amber: apart from white for every reader; warnings also begin with the word."""
USUAL_COLORS, USUAL_TEXTS = Colors(), Texts()


@dataclass(frozen=True)
class Legend:
    """What the colours mean: `label` ('evidence for COVID'), 0 to `scale` in `unit`; `cell`: a feature cell's size."""

    label: str
    scale: float
    unit: str
    cell: str


def overlay(gray: FloatImage, evidence: FloatImage | None, scale: float, colors: Colors = USUAL_COLORS) -> Picture:
    """Evidence above 0 in colour over `gray`, its opacity growing with evidence / `scale` in `COLOR_STEPS` steps, full from `scale` on.

    Where evidence is 0 or less, or None, the gray image stays as it is: `rint(255 gray)` in all three channels.
    Raises ValueError for shapes that differ, values that are not finite, or a scale that is not above 0.
    """
    _check(gray, evidence, scale)
    base = np.clip(gray, 0.0, 1.0).astype(np.float32)
    base *= np.float32(255.0)
    picture = np.repeat(np.rint(base).astype(np.uint8)[..., None], 3, axis=2)
    if evidence is None:
        return picture
    rows = np.flatnonzero((evidence > 0).any(axis=1))
    if rows.size:
        seen = slice(rows[0], rows[-1] + 1)
        strength = np.clip(evidence[seen] / np.float32(scale), 0.0, 1.0)
        step = np.rint(strength * np.float32(COLOR_STEPS - 1)).astype(np.intp)
        kept, painted = _mixing(colors)
        mixed = np.take(painted, step, axis=0)
        mixed += (base[seen] * np.take(kept, step))[..., None]
        picture[seen] = np.rint(mixed, out=mixed)
    return picture


@lru_cache(maxsize=8)
def _mixing(colors: Colors) -> tuple[FloatImage, FloatImage]:
    """For each step of strength what is kept of the gray, (COLOR_STEPS,), and the colour that is added, (COLOR_STEPS, 3) of 0-255."""
    opacity = np.float32(colors.opacity) * np.linspace(0.0, 1.0, COLOR_STEPS, dtype=np.float32)
    return 1.0 - opacity, np.float32(255.0) * opacity[:, None] * colormap(colors)


def result_picture(
    gray: FloatImage,
    evidence: FloatImage | None,
    scale: float,
    lines: Sequence[str],
    legend: Legend | None,
    warnings: Sequence[str] = (),
    *,
    colors: Colors = USUAL_COLORS,
    texts: Texts = USUAL_TEXTS,
) -> Picture:
    """The overlay, unscaled, at the top left; below it on black the legend, the text lines and, in amber, the warnings.

    (H, W, 3) with W = max(columns, MINIMUM_CANVAS_COLUMNS), H = rows + the panel's. Long lines wrap. Letters that the
    font lacks are written without their accents, or as '?'. Errors as `overlay`.
    """
    image = overlay(gray, evidence, scale, colors)
    rows, columns = gray.shape
    width = max(columns, MINIMUM_CANVAS_COLUMNS)
    any_evidence = evidence is not None and bool((evidence > 0).any())
    parts = [] if legend is None else _legend(legend, width, any_evidence, colors, texts)
    parts += [_text(line, width, TEXT_COLOR) for line in lines]
    parts += [_text(texts.warning + warning, width, WARNING_COLOR) for warning in warnings]
    top = np.zeros((rows, width, 3), np.uint8)
    top[:, :columns] = image
    gap = np.zeros((_text_pixels(width) // 2, width, 3), np.uint8)
    return np.concatenate([top, gap, *parts, gap] if parts else [top])


def _check(gray: FloatImage, evidence: FloatImage | None, scale: float) -> None:
    if gray.ndim != 2 or gray.size == 0:
        raise ValueError(f"gray: expected (rows, columns), found shape {gray.shape}")
    if evidence is not None and evidence.shape != gray.shape:
        raise ValueError(f"evidence: expected gray's shape {gray.shape}, found {evidence.shape}")
    if not np.isfinite(gray).all() or (evidence is not None and not np.isfinite(evidence).all()):
        raise ValueError("gray and evidence: expected finite values, found NaN or infinity")
    if not scale > 0 or not np.isfinite(scale):
        raise ValueError(f"scale: expected a finite number above 0, found {scale}")


@lru_cache(maxsize=8)
def colormap(colors: Colors) -> NDArray[np.float32]:
    """(COLOR_STEPS, 3) RGB 0-1 from no evidence to full scale."""
    from matplotlib import colormaps

    return colormaps[colors.colormap](np.linspace(*colors.range, COLOR_STEPS))[:, :3].astype(np.float32)


def _legend(legend: Legend, width: int, any_evidence: bool, colors: Colors, texts: Texts) -> list[Picture]:
    """The label, the bar with its ticks, and the cell's size; without evidence the label and the words for it."""
    label = f"{legend.label} ({legend.unit})" if legend.unit else legend.label
    cell = [_text(legend.cell, width, TEXT_COLOR)] if legend.cell else []
    if not any_evidence:
        return [_text(f"{label}: {texts.no_evidence}", width, TEXT_COLOR), *cell]
    bar, ticks = _bar(legend.scale, width, colors), _ticks(legend.scale, width, texts.or_more)
    return [_text(label, width, TEXT_COLOR), bar, ticks, *cell]


@lru_cache(maxsize=16)
def _bar(scale: float, width: int, colors: Colors) -> Picture:
    """The colours from 0 to `scale`, over dark gray above and over light gray below."""
    margin, size = _margin(width), _text_pixels(width)
    ramp = np.linspace(0.0, scale, width - 2 * margin, dtype=np.float32)[None].repeat(size, axis=0)
    grays = np.full_like(ramp, LEGEND_GRAYS[0])
    grays[size // 2 :] = LEGEND_GRAYS[1]
    canvas = np.zeros((size, width, 3), np.uint8)
    canvas[:, margin : width - margin] = overlay(grays, ramp, scale, colors)
    return canvas


@lru_cache(maxsize=16)
def _ticks(scale: float, width: int, or_more: str) -> Picture:
    """0, half and full scale under the bar; full scale says that it stands for more, too."""
    margin, size = _margin(width), _text_pixels(width)
    canvas = Image.new("RGB", (width, size // 4 + _line_pixels(size)))
    draw = ImageDraw.Draw(canvas)
    for share, anchor, text in (
        (0.0, "la", "0"),
        (0.5, "ma", f"{scale / 2:.3g}"),
        (1.0, "ra", f"{scale:.3g} {or_more}"),
    ):
        position = margin + share * (width - 2 * margin - 1)
        draw.line([(position, 0), (position, size // 4)], fill=TEXT_COLOR, width=max(1, size // 12))
        draw.text((position, size // 4), drawable(text), font=font(size), fill=TEXT_COLOR, anchor=anchor)
    return np.asarray(canvas)


@lru_cache(maxsize=64)
def _text(text: str, width: int, color: tuple[int, int, int]) -> Picture:
    """`text` on black, wrapped to `width`: (as many rows as it needs, width, 3)."""
    size, margin = _text_pixels(width), _margin(width)
    letters = font(size)
    wrapped = _wrap(drawable(text), letters, width - 2 * margin)
    canvas = Image.new("RGB", (width, _line_pixels(size) * len(wrapped)))
    draw = ImageDraw.Draw(canvas)
    for index, line in enumerate(wrapped):
        draw.text((margin, index * _line_pixels(size)), line, font=letters, fill=color, anchor="la")
    return np.asarray(canvas)


def _wrap(text: str, letters: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines no wider than `width` pixels, broken between words, within one only where it alone is too wide."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".lstrip()
        if letters.getlength(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and letters.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def _text_pixels(width: int) -> int:
    return max(MINIMUM_TEXT_PIXELS, round(width / COLUMNS_PER_TEXT_PIXEL))


def _line_pixels(size: int) -> int:
    return round(size * 1.4)


def _margin(width: int) -> int:
    return _text_pixels(width) // 2
