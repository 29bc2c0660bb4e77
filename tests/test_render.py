"""The overlay's promises (gray untouched, opacity, one scale) and the panel's (below the image, nothing cut)."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline import render
from pipeline.lettering import drawable, font
from pipeline.render import Legend, overlay, result_picture

LEGEND = Legend("evidence for COVID", 4.0, "logit", "one feature cell = 64 px (44 mm)")
LINES = ("COVID 0.93", "ct_slices 0.1.0", "Research use only - not for diagnosis")


def ramp(rows: int, columns: int) -> np.ndarray:
    return np.linspace(0, 1, rows * columns, dtype=np.float32).reshape(rows, columns)


def as_gray(gray: np.ndarray) -> np.ndarray:
    return np.rint(gray * 255).astype(np.uint8)[..., None].repeat(3, axis=2)


@settings(deadline=None)
@given(
    gray=arrays.arrays(np.float32, (5, 7), elements=st.floats(0, 1, width=32)),
    evidence=arrays.arrays(np.float32, (5, 7), elements=st.floats(-8, 8, width=32)),
)
def test_without_evidence_the_gray_stays_exactly(gray: np.ndarray, evidence: np.ndarray) -> None:
    picture = overlay(gray, evidence, 4.0)
    assert picture.dtype == np.uint8
    none = evidence <= 0
    assert np.array_equal(picture[none], as_gray(gray)[none])
    assert np.array_equal(overlay(gray, None, 4.0), as_gray(gray))


def test_colour_grows_with_evidence_and_stops_at_the_scale() -> None:
    gray = np.full((1, 5), 0.3, np.float32)
    picture = overlay(gray, np.float32([[0, 1, 2, 4, 9]]), 4.0).astype(int)
    away = np.abs(picture - as_gray(gray).astype(int)).sum(axis=2)[0]
    assert away[0] == 0
    assert (np.diff(away[:4]) > 0).all()
    assert away[3] == away[4]


def test_the_scale_is_not_stretched_to_the_image() -> None:
    gray = np.zeros((2, 2), np.float32)
    weak = overlay(gray, np.full((2, 2), 0.1, np.float32), 4.0)
    assert weak.max() < 20


def test_lightness_of_the_map_rises_evenly() -> None:
    luma = render.colormap(render.USUAL_COLORS)[::4] @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(luma) > 0).all()


def test_arguments_are_not_changed() -> None:
    gray, evidence = ramp(20, 20), ramp(20, 20) - 0.5
    before = gray.copy(), evidence.copy()
    result_picture(gray, evidence, 1.0, LINES, LEGEND)
    assert np.array_equal(gray, before[0])
    assert np.array_equal(evidence, before[1])


@pytest.mark.parametrize("shape", [(512, 512), (64, 48), (1, 1), (700, 401), (33, 900)])
def test_the_image_stands_unscaled_at_the_top_left_and_the_panel_below(shape: tuple[int, int]) -> None:
    gray, evidence = ramp(*shape), ramp(*shape) - 0.5
    picture = result_picture(gray, evidence, 1.0, LINES, LEGEND, ["out of scope"])
    rows, columns = shape
    assert np.array_equal(picture[:rows, :columns], overlay(gray, evidence, 1.0))
    assert picture.shape[1] == max(columns, render.MINIMUM_CANVAS_COLUMNS)
    assert (picture[:rows, columns:] == 0).all()
    assert picture[rows:].max() > 200


def test_no_text_and_no_legend_adds_nothing() -> None:
    gray = ramp(500, 450)
    assert np.array_equal(result_picture(gray, None, 1.0, (), None), as_gray(gray))


def test_warnings_have_a_colour_of_their_own() -> None:
    plain = result_picture(ramp(8, 8), None, 1.0, ["out of scope"], None)
    warned = result_picture(ramp(8, 8), None, 1.0, [], None, ["out of scope"])
    assert not (plain[8:] == render.WARNING_COLOR).all(axis=2).any()
    assert (warned[8:] == render.WARNING_COLOR).all(axis=2).any()


def test_a_map_without_evidence_has_no_colour_bar() -> None:
    for evidence in (None, np.full((8, 8), -1, np.float32), np.zeros((8, 8), np.float32)):
        panel = result_picture(ramp(8, 8), evidence, 4.0, (), LEGEND)[8:].astype(int)
        assert (panel.max(axis=2) == panel.min(axis=2)).all()


def test_the_text_without_evidence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    real = render._text
    monkeypatch.setattr(render, "_text", lambda text, width, color: (drawn.append(text), real(text, width, color))[1])
    result_picture(ramp(8, 8), None, 4.0, (), LEGEND)
    assert any(render.USUAL_TEXTS.no_evidence in text for text in drawn)


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(blacklist_categories=["Cs"]), max_size=200), st.sampled_from([400, 512, 1000]))
def test_wrapping_keeps_every_letter_and_stays_inside(text: str, width: int) -> None:
    letters = font(render._text_pixels(width))
    plain = drawable(text)
    lines = render._wrap(plain, letters, width - 2 * render._margin(width))
    assert "".join(lines).replace(" ", "") == "".join(plain.split())
    assert all(letters.getlength(line) <= width - 2 * render._margin(width) for line in lines)


def test_a_long_line_makes_the_panel_taller_and_leaves_the_edges_black() -> None:
    short = result_picture(ramp(8, 8), None, 1.0, ["word"], None)
    long = result_picture(ramp(8, 8), None, 1.0, ["word " * 60 + "x" * 300], None)
    assert long.shape[0] > 5 * (short.shape[0] - 8)
    assert (long[:, -render._margin(400) + 1 :] == 0).all()


def test_the_panel_has_the_letters_of_a_site() -> None:
    panels = [
        result_picture(ramp(8, 8), None, 1.0, [line], None) for line in ("Für 53 × 61", "Fur 53 × 61", "F?r 53 ? 61")
    ]
    assert len({panel.tobytes() for panel in panels}) == 3


def test_text_grows_with_the_image() -> None:
    def panel(columns: int) -> int:
        return result_picture(np.zeros((4, columns), np.float32), None, 1.0, ["COVID 0.93"], None).shape[0] - 4

    assert panel(3000) > 4 * panel(512)


@pytest.mark.parametrize(
    ("gray", "evidence", "scale"),
    [
        (np.zeros((2, 2, 3), np.float32), None, 1.0),
        (np.zeros((0, 2), np.float32), None, 1.0),
        (np.zeros((2, 2), np.float32), np.zeros((2, 3), np.float32), 1.0),
        (np.zeros((2, 2), np.float32), np.full((2, 2), np.nan, np.float32), 1.0),
        (np.full((2, 2), np.inf, np.float32), None, 1.0),
        (np.zeros((2, 2), np.float32), None, 0.0),
        (np.zeros((2, 2), np.float32), None, float("nan")),
    ],
)
def test_wrong_input_is_refused(gray: np.ndarray, evidence: np.ndarray | None, scale: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        overlay(gray, evidence, scale)


def test_drawing_needs_no_torch() -> None:
    code = "import sys, pipeline.render as r; r._text('ß', 400, (9, 9, 9)); sys.exit(bool({'torch', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
