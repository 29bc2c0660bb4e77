"""The page of a case: a PDF for people, with the result, the key pictures, the model, and what must be said beside it.

In: a `CaseResult` and its key images. Out: a PDF file's bytes, A4 upright, the words first, on as many pages as they and the pictures need.
No name, ID or date of anybody or anything stands in it, so that the same result gives the same bytes: whose it is, and when it was made,
says the object that carries it.

matplotlib is imported inside the functions and used through its objects only, in a style of its own (while pages are drawn its settings are
replaced: not for several threads). Words are the site's profile's; letters that the font lacks are written without accents, or as '?'.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

import pipeline
from pipeline.dicom.case_result import CaseResult, Picture, ResultImage
from pipeline.lettering import drawable
from pipeline.render import WARNING_COLOR
from pipeline.wording import probability_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

A4_INCHES = (8.27, 11.69)
MARGIN_INCHES = 0.7
BOTTOM_INCHES = A4_INCHES[1] - MARGIN_INCHES
PAGE_INCHES = BOTTOM_INCHES - MARGIN_INCHES
ROUNDING_INCHES = 1e-6  # what is as high as a page fits on one
POINTS_AN_INCH = 72
LINE_HEIGHT = 1.35  # of a font's size
CHARACTERS_A_LINE = {"normal": 88, "bold": 76}
"""Of 10 pt DejaVu Sans over the page's width: its average letter is 0.55 of its size wide, a bold one 0.64."""
BAR_CHARACTERS = 34  # of a finding's name, before its bar
PICTURE_DPI = 200
"""More than a printer of text or a screen shows; a radiograph of 3000 columns would otherwise take 20 MB a page."""
GAP_INCHES = 0.2
SHARES = tuple(percent / 100 for percent in range(100, 69, -1))
"""Of their size that pictures may have, all of a case the same: the largest that needs no more pages than the smallest."""
COLUMNS = 2  # of pictures, where there are several

INK, GREY, BAR, PALE = "#222222", "#555555", "#0072B2", "#D9D9D9"
"""Blue is Okabe and Ito's; a bar always has its number beside it."""
AMBER = tuple(channel / 255 for channel in WARNING_COLOR)
STYLE: Mapping[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that pages are the same everywhere
    "text.parse_math": False,  # a class named "a$b" is no formula
    "text.usetex": False,
    "pdf.compression": 6,
    "pdf.fonttype": 3,  # a fifth of the time that subsets of TrueType take; text can still be selected and searched
    "image.interpolation_stage": "data",
}


def case_page(result: CaseResult, images: Sequence[ResultImage]) -> bytes:
    """The PDF of the case with the pictures of its key `images`, the first first."""
    import matplotlib as mpl
    from matplotlib.backends.backend_pdf import PdfPages

    content = io.BytesIO()
    about = {
        "Title": drawable(f"{result.said} - {result.profile.texts.research_only}"),
        "Creator": f"radloop {pipeline.__version__}",
        "Producer": None,  # matplotlib's version, by which the same page would differ
        "CreationDate": None,
    }
    with mpl.rc_context({**mpl.rcParamsDefault, **STYLE}), PdfPages(content, metadata=about) as pages:
        for figure in _drawn(result, images):
            pages.savefig(figure)
    return content.getvalue()


def _drawn(result: CaseResult, images: Sequence[ResultImage]) -> list[Figure]:
    """The pages, each with its foot."""
    pages = _Pages(result)
    pages.words()
    pages.pictures([_for_print(image.picture_of()) for image in images])
    return pages.figures


class _Pages:
    """Pages that are filled from the top; what has no room begins another. `top`: inches from the upper edge of the last page."""

    def __init__(self, result: CaseResult) -> None:
        self.result = result
        self.figures: list[Figure] = []
        self._begin()

    def words(self) -> None:
        """The result, what must be said beside it, every finding, and how it was made."""
        result, texts = self.result, self.result.profile.texts
        self._line(result.said, 17, weight="bold")
        self._line(texts.research_only, 10, color=GREY)
        self._skip()
        for note in result.notes:
            self._warning(f"{texts.warning}{note}")
        for finding in result.findings:
            self._bar(finding.name, finding.probability, finding.called)
        self._skip()
        for line in (_model_line(result), *result.made_how):
            self._line(line, 9, color=GREY)
        self._skip()

    def pictures(self, pictures: Sequence[Picture]) -> None:
        """In rows, all of one width: as wide as their columns, or smaller where that saves a page."""
        columns = 1 if len(pictures) == 1 else COLUMNS
        width = (A4_INCHES[0] - 2 * MARGIN_INCHES - (columns - 1) * GAP_INCHES) / columns
        rows = [pictures[first : first + columns] for first in range(0, len(pictures), columns)]
        heights = [min(max(width * len(one) / one.shape[1] for one in row), PAGE_INCHES) for row in rows]
        share = _share(heights, self.top)
        for row, height in zip(rows, heights, strict=True):
            self._need(share * height)
            for place, picture in enumerate(row):
                self._picture(
                    picture, MARGIN_INCHES + place * (share * width + GAP_INCHES), share * width, share * height
                )
            self.top += share * height + GAP_INCHES

    def _begin(self) -> None:
        """Another page."""
        from matplotlib.figure import Figure

        self.figures.append(Figure(figsize=A4_INCHES))
        self.top = MARGIN_INCHES
        foot = f"{self.result.profile.texts.research_only} · {_model_line(self.result)}"
        self._text(foot, MARGIN_INCHES, A4_INCHES[1] - MARGIN_INCHES / 2, 7.5, color=GREY)

    def _need(self, inches: float) -> None:
        if not _fits(inches, self.top):
            self._begin()

    def _line(self, text: str, size: float, *, color: Any = INK, weight: str = "normal") -> None:
        for line in textwrap.wrap(drawable(text), int(CHARACTERS_A_LINE[weight] * 10 / size)) or [""]:
            self._need(size * LINE_HEIGHT / POINTS_AN_INCH)
            self.top += size * LINE_HEIGHT / POINTS_AN_INCH
            self._text(line, MARGIN_INCHES, self.top, size, color=color, weight=weight)

    def _warning(self, text: str) -> None:
        """Dark letters, and beside each line amber."""
        lines = textwrap.wrap(drawable(text), CHARACTERS_A_LINE["bold"])
        for line in lines:
            self._line(line, 10, weight="bold")
            height = 10 * LINE_HEIGHT / POINTS_AN_INCH
            self._rectangle(MARGIN_INCHES - 0.14, self.top - height + 0.04, 0.06, height, AMBER)
        self._skip(0.06)

    def _bar(self, name: str, probability: float, called: bool) -> None:
        size, left = 10, MARGIN_INCHES + 3.0
        width = A4_INCHES[0] - MARGIN_INCHES - left - 0.7
        weight = "bold" if called else "normal"
        self._need(size * LINE_HEIGHT * 1.1 / POINTS_AN_INCH)
        self.top += size * LINE_HEIGHT * 1.1 / POINTS_AN_INCH
        height = 0.11
        short = name if len(name) <= BAR_CHARACTERS else f"{name[: BAR_CHARACTERS - 3]}..."
        self._text(short, MARGIN_INCHES, self.top, size, weight=weight)
        self._rectangle(left, self.top - height, width, height, PALE)
        self._rectangle(left, self.top - height, width * min(max(probability, 0.0), 1.0), height, BAR)
        self._text(probability_text(probability, 3), left + width + 0.1, self.top, size, weight=weight)

    def _skip(self, inches: float = 0.12) -> None:
        self.top += inches

    def _text(
        self, text: str, left: float, base: float, size: float, *, color: Any = INK, weight: str = "normal"
    ) -> None:
        at = left / A4_INCHES[0], 1 - base / A4_INCHES[1]
        self.figures[-1].text(*at, drawable(text), fontsize=size, color=color, fontweight=weight, va="baseline")

    def _rectangle(self, left: float, top: float, width: float, height: float, color: Any) -> None:
        from matplotlib.patches import Rectangle

        corner = left / A4_INCHES[0], 1 - (top + height) / A4_INCHES[1]
        shape = width / A4_INCHES[0], height / A4_INCHES[1]
        figure = self.figures[-1]
        figure.add_artist(Rectangle(corner, *shape, facecolor=color, edgecolor="none", transform=figure.transFigure))

    def _picture(self, picture: Picture, left: float, width: float, height: float) -> None:
        """At the top of its place, as large as it fits, never stretched."""
        rows, columns = picture.shape[:2]
        wide = min(width, height * columns / rows)
        high = wide * rows / columns
        place = (left / A4_INCHES[0], 1 - (self.top + high) / A4_INCHES[1], wide / A4_INCHES[0], high / A4_INCHES[1])
        axes = self.figures[-1].add_axes(place)
        axes.set_axis_off()
        axes.imshow(picture, aspect="auto", interpolation="none")


def _share(heights: Sequence[float], top: float) -> float:
    """Which of `SHARES` rows of these `heights` (inches) get, the first of them at `top` of a page."""
    fewest = _more_pages([SHARES[-1] * height for height in heights], top)
    return next(share for share in SHARES if _more_pages([share * height for height in heights], top) == fewest)


def _more_pages(heights: Sequence[float], top: float) -> int:
    """How many pages rows of these `heights` begin, the first of them at `top` of one."""
    begun = 0
    for height in heights:
        if not _fits(height, top):
            begun, top = begun + 1, MARGIN_INCHES
        top += height + GAP_INCHES
    return begun


def _fits(inches: float, top: float) -> bool:
    return top + inches <= BOTTOM_INCHES + ROUNDING_INCHES


def _model_line(result: CaseResult) -> str:
    algorithm = result.algorithm
    return result.profile.texts.model.format(
        name=algorithm.model_name, version=algorithm.version, digest=algorithm.model_digest[:12]
    )


def _for_print(picture: Picture) -> Picture:
    """`picture` with no more columns than `PICTURE_DPI` has on the page, its letters still smooth."""
    most = round((A4_INCHES[0] - 2 * MARGIN_INCHES) * PICTURE_DPI)
    rows, columns = picture.shape[:2]
    if columns <= most:
        return picture
    return np.asarray(Image.fromarray(picture).resize((most, round(rows * most / columns)), Image.Resampling.BOX))
