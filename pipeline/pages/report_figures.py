"""Charts of a report as SVG, drawn here by hand: text stays text, lines stay sharp in print, and one chart is some 10 kB.

In: plain numbers, and names that may hold anything (they are escaped). Out: `Markup` of one `<svg>` that scales with its place, whose
`aria-label` says in words what it shows. Coordinates are in units of the viewBox, `WIDTH` wide: about a phone's width, so that
letters are readable there. What is undefined (None, NaN) is not drawn. Colours never carry a meaning alone: lines differ in dashes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import ArrayLike

WIDTH, HEIGHT, SQUARE = 420, 270, 380
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 20, 42
"""Margins around the plotting area, for ticks and titles."""
INK, SOFT, LINE = "#1d2733", "#5b6775", "#dde3ea"
COLOURS = ("#0072b2", "#d55e00", "#007a5a", "#a8508a", "#2b83ba", "#8a6d00", "#555555", "#b2182b")
"""After Okabe and Ito (2008), darkened so that each has a contrast of 3:1 at least on white (WCAG 2.2, 1.4.11)."""
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "12 3", "1 2", "6 2 1 2")
"""Of lines, in the order of the colours."""
GREEN = COLOURS[2]
GRAIN = 0.5
"""Points of a curve that fall on one such square of the viewBox are one: a curve of a million cases is drawn with some hundred."""

FLAT = 1e-9
"""Values that differ by less than this part of themselves are one to an axis: its ticks could not be told apart."""
SMALLEST = 1e-12
"""On an axis of logarithms; no learning rate or loss that anybody reads is below."""

Pairs = Iterable[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """`low` to `high` with ticks (value, text). `log`: distances are those of logarithms."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    title: str = ""
    log: bool = False

    def share(self, value: float) -> float:
        """0 at `low`, 1 at `high`; values beyond stand at the ends."""
        low, high, at = (math.log(one) if self.log else one for one in (self.low, self.high, max(value, self.low)))
        return min(max((at - low) / (high - low), 0.0), 1.0) if high > low else 0.5


UNIT_TICKS = tuple((tick / 5, f"{tick / 5:.1f}") for tick in range(6))


def unit_axis(title: str) -> Axis:
    """0 to 1."""
    return Axis(0.0, 1.0, UNIT_TICKS, title)


def value_axis(values: ArrayLike, title: str, *, low: float | None = None, high: float | None = None) -> Axis:
    """Around all finite `values`, between round numbers; `low` and `high` where an end is fixed."""
    numbers = np.asarray(values, dtype=float).ravel()
    numbers = numbers[np.isfinite(numbers)]
    start = float(numbers.min(initial=math.inf)) if low is None else low
    end = float(numbers.max(initial=-math.inf)) if high is None else high
    if not end - start > FLAT * max(1.0, abs(start), abs(end)):
        start, end = (start, start + 1.0) if math.isfinite(start) else (0.0, 1.0)
    step = _round_step((end - start) / 5)
    first, last = math.floor(start / step + 1e-9), math.ceil(end / step - 1e-9)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    ticks = [(number * step, f"{number * step:.{digits}f}") for number in range(first, last + 1)]
    lowest, highest = ticks[0][0] if low is None else low, ticks[-1][0] if high is None else high
    inside = [tick for tick in ticks if lowest - FLAT * step <= tick[0] <= highest + FLAT * step]
    return Axis(lowest, highest, inside, title)


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def epoch_axis(last: int) -> Axis:
    """Whole epochs from 1."""
    step = max(1, round(_round_step(max(last, 1) / 8)))
    numbers = [1, *range(step if step > 1 else 2, last + 1, step)]
    return Axis(0.5, last + 0.5, [(number, str(number)) for number in numbers], "epoch")


def log_axis(values: ArrayLike, title: str) -> Axis:
    """Powers of ten around all positive `values`."""
    numbers = np.asarray(values, dtype=float).ravel()
    numbers = numbers[np.isfinite(numbers) & (numbers >= SMALLEST)]
    if not len(numbers):
        return Axis(0.1, 1.0, [(1.0, "1")], title, log=True)
    first, last = math.floor(math.log10(numbers.min())), math.ceil(math.log10(numbers.max()))
    powers = range(first, max(last, first + 1) + 1)
    every = math.ceil(len(powers) / 5)
    ticks = [(10.0**power, f"{10.0**power:g}") for power in powers if (power - first) % every == 0]
    return Axis(10.0 ** powers[0], 10.0 ** powers[-1], ticks, title, log=True)


@dataclass
class Chart:
    """A plotting area with two axes, to which lines, bands, dots and words are added in the order of drawing."""

    x: Axis
    y: Axis
    says: str
    height: int = HEIGHT
    bottom: int = BOTTOM
    _marks: list[str] = field(default_factory=list)

    def across(self, value: float) -> float:
        return LEFT + self.x.share(value) * (WIDTH - LEFT - RIGHT)

    def down(self, value: float) -> float:
        return self.height - self.bottom - self.y.share(value) * (self.height - self.bottom - TOP)

    def line(self, points: Pairs, colour: str, *, dash: str = "", width: float = 2.0, opacity: float = 1.0) -> None:
        """A curve through (x, y); where a value is missing it is broken."""
        for part in _unbroken(points):
            drawn = _thinned((self.across(x), self.down(y)) for x, y in part)
            if len(drawn) == 1:
                self._marks.append(_circle(*drawn[0], 2.5, fill=colour))
                continue
            style = f' stroke-dasharray="{dash}"' if dash else ""
            faint = f' opacity="{opacity:g}"' if opacity < 1 else ""
            self._marks.append(
                f'<path d="{_path(drawn)}" fill="none" stroke="{colour}" stroke-width="{width:g}" '
                f'stroke-linejoin="round"{style}{faint}/>'
            )

    def band(self, x: Sequence[float], low: Sequence[float], high: Sequence[float], colour: str) -> None:
        """Between two curves over the same x."""
        for part in _unbroken((place, (a, b)) for place, a, b in zip(x, low, high, strict=True)):
            upper = _thinned((self.across(place), self.down(ends[1])) for place, ends in part)
            lower = _thinned((self.across(place), self.down(ends[0])) for place, ends in reversed(part))
            self._marks.append(f'<path d="{_path([*upper, *lower])}Z" fill="{colour}" opacity=".14"/>')

    def dot(self, x: float, y: float, colour: str, *, radius: float = 5.0, hollow: bool = True) -> None:
        style = {"fill": "#fff", "stroke": colour, "stroke-width": "2.5"} if hollow else {"fill": colour}
        self._marks.append(_circle(self.across(x), self.down(y), radius, **style))

    def upright(self, x: float, colour: str, *, dash: str = "", width: float = 1.0, opacity: float = 1.0) -> None:
        """A vertical line through the whole area."""
        self.stroke((x, x), None, colour, dash=dash, width=width, opacity=opacity)

    def stroke(
        self,
        x: tuple[float, float],
        y: tuple[float, float] | None,
        colour: str,
        *,
        dash: str = "",
        width: float = 1.0,
        opacity: float = 1.0,
    ) -> None:
        """A straight line from (x0, y0) to (x1, y1); y None: from the area's foot to its head."""
        feet = (self.y.low, self.y.high) if y is None else y
        style = f' stroke-dasharray="{dash}"' if dash else ""
        self._marks.append(
            f'<line x1="{self.across(x[0]):.1f}" y1="{self.down(feet[0]):.1f}" x2="{self.across(x[1]):.1f}" '
            f'y2="{self.down(feet[1]):.1f}" stroke="{colour}" stroke-width="{width:g}" opacity="{opacity:g}"{style}/>'
        )

    def bar(self, low: float, high: float, top: float, colour: str) -> None:
        """A rectangle from the x axis up to `top`."""
        left, right = self.across(low), self.across(high)
        head, foot = self.down(top), self.down(self.y.low)
        self._marks.append(
            f'<rect x="{left + 1:.1f}" y="{head:.1f}" width="{max(right - left - 2, 1):.1f}" height="{foot - head:.1f}" '
            f'fill="{colour}"/>'
        )

    def words(self, x: float, y: float, text: str, *, shift: tuple[float, float] = (0, 0), **style: str) -> None:
        """`text` at a place of the area, shifted by units of the viewBox; `style`: SVG attributes, _ for -."""
        given = {"fill": SOFT, "text_anchor": "start", **style}
        self._marks.append(_text(self.across(x) + shift[0], self.down(y) + shift[1], text, **given))

    def svg(self) -> Markup:
        """The whole drawing. All that came from outside went through `escape`."""
        body = "".join([*self._frame(), *self._marks])
        return Markup(
            f'<svg viewBox="0 0 {WIDTH} {self.height}" role="img" aria-label="{escape(self.says)}">{body}</svg>'
        )

    def _frame(self) -> list[str]:
        """Grid, ticks and titles of the axes, below the marks."""
        foot, right = self.height - self.bottom, WIDTH - RIGHT
        parts = []
        for value, text in self.y.ticks:
            at = self.down(value)
            parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}" stroke="{LINE}"/>')
            parts.append(_text(LEFT - 7, at + 4, text, text_anchor="end", fill=SOFT))
        for value, text in self.x.ticks:
            at = self.across(value)
            parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{foot}" y2="{foot + 4}" stroke="{SOFT}"/>')
            parts.append(_text(at, foot + 17, text, text_anchor="middle", fill=SOFT))
        parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{foot}" y2="{foot}" stroke="{SOFT}"/>')
        if self.x.title:
            middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
            parts.append(_text(middle, self.height - 6, self.x.title, text_anchor="middle", fill=INK))
        parts.append(_text(2, 11, self.y.title, fill=INK))
        return parts


def _unbroken(points: Iterable[tuple[float, Any]]) -> list[list[tuple[float, Any]]]:
    """Runs of points without a missing value in them."""
    runs: list[list[tuple[float, Any]]] = [[]]
    for x, y in points:
        if all(value is not None and math.isfinite(value) for value in (x, *(y if isinstance(y, tuple) else (y,)))):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _thinned(points: Pairs) -> list[tuple[float, float]]:
    """Points but for those on the same grain as the one before, and those on a straight line between their neighbours."""
    kept: list[tuple[float, float]] = []
    for x, y in points:
        here = (round(x / GRAIN) * GRAIN, round(y / GRAIN) * GRAIN)
        if kept and kept[-1] == here:
            continue
        if len(kept) > 1 and _straight(kept[-2], kept[-1], here):
            kept[-1] = here
        else:
            kept.append(here)
    return kept


def _straight(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Whether b lies on the way from a to c."""
    along, onward = (b[0] - a[0], b[1] - a[1]), (c[0] - b[0], c[1] - b[1])
    return (
        along[0] * onward[1] == along[1] * onward[0]
        and along[0] * onward[0] + along[1] * onward[1] > 0
    )  # fmt: skip


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)


def _circle(x: float, y: float, radius: float, **style: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" {_attributes(style)}/>'


def _text(x: float, y: float, text: str, **style: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {_attributes(style)}>{escape(text)}</text>'


def _attributes(style: Mapping[str, str]) -> str:
    return " ".join(f'{name.replace("_", "-")}="{escape(value)}"' for name, value in style.items())


def line_sample(number: int) -> Markup:
    """The line of the `number`th curve, for a legend."""
    colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
    return Markup(
        f'<svg class="sample" viewBox="0 0 30 8" aria-hidden="true"><path d="M0 4H30" stroke="{colour}" stroke-width="3" '
        f'stroke-dasharray="{dash}"/></svg>'
    )
