"""pipeline.dicom.pixels on real files: each decodes or says why not, and the syntaxes of one slice agree."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline.dicom.pixels import read_frames, read_pixels
from pipeline.errors import Rejected
from pipeline.raster import LUMA
from transforms.intensity import WINDOWS, PixelUnit, to_unit_range

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif("RADLOOP_DATA" not in os.environ, reason="RADLOOP_DATA is not set"),
]


def test_every_real_file_decodes_or_says_why_not() -> None:
    root = Path(os.environ["RADLOOP_DATA"], "dicom")
    outcomes: Counter[str] = Counter()
    other: dict[str, str] = {}
    for file in sorted(path for path in root.rglob("*") if path.is_file()):
        try:
            for pixels in read_frames(file):
                assert np.isfinite(pixels.values).all()
                assert (
                    0
                    <= to_unit_range(pixels, WINDOWS["lung"]).min()
                    <= to_unit_range(pixels, WINDOWS["lung"]).max()
                    <= 1
                )
            outcomes["decoded"] += 1
        except Rejected as rejected:
            outcomes[rejected.reason] += 1
            if rejected.reason not in ("no_pixels", "not_an_image", "dicomdir"):
                other[file.name] = rejected.reason
    assert outcomes["decoded"] == 194
    assert other == {
        "JPEG2000-embedded-sequence-delimiter.dcm": "size_mismatch",
        "MR_truncated.dcm": "truncated",
        "badVR.dcm": "malformed",
        "meta_missing_tsyntax.dcm": "malformed",
        "nested_priv_SQ.dcm": "malformed",
        "rtplan_truncated.dcm": "truncated",
    }


def test_luma_of_every_real_colour_file_is_its_gray() -> None:
    """Wherever no colour lies outside what RGB can show: there it is clipped, and the luma of what is left is another."""
    colored = 0
    for file in sorted(path for path in Path(os.environ["RADLOOP_DATA"], "dicom").rglob("*") if path.is_file()):
        try:
            gray, rgb = read_pixels(file), read_pixels(file, color=True)
        except Rejected:
            continue
        assert (gray.spacing_mm, gray.aspect, gray.unit) == (rgb.spacing_mm, rgb.aspect, rgb.unit)
        if rgb.values.ndim == 2:
            np.testing.assert_array_equal(gray.values, rgb.values)
            continue
        colored += 1
        shown = ((rgb.values > 0) & (rgb.values < 1)).all(axis=-1) | (np.ptp(rgb.values, axis=-1) == 0)
        # tests/dicom/test_pixels.py has such a case for every kind; some of these files are of pure colours alone
        np.testing.assert_allclose((rgb.values @ LUMA)[shown], gray.values[shown], atol=2e-6, err_msg=file.name)
    assert colored > 30


def test_window_words_of_real_files_choose_a_window() -> None:
    """NEMA's CT2 has one explained as BRAIN, an overlay example WINDOW1 and WINDOW2."""
    root = Path(os.environ["RADLOOP_DATA"], "dicom")
    assert [voi.explanation for voi in read_pixels(next(root.rglob("CT2_RLE"))).voi] == ["BRAIN"]
    pixels = read_pixels(next(root.rglob("examples_overlay.dcm")))
    assert [(voi.center, voi.explanation) for voi in pixels.voi] == [(450, "WINDOW1"), (200, "WINDOW2")]
    first, second = (to_unit_range(pixels, WINDOWS["lung"], voi=voi) for voi in (0, 1))
    np.testing.assert_array_equal(to_unit_range(pixels, WINDOWS["lung"], voi="window2"), second)
    assert np.abs(first - second).max() > 0.2


def test_sixteen_syntaxes_of_one_slice_agree() -> None:
    folder = Path(os.environ["RADLOOP_DATA"], "dicom", "cornerstone_ct_syntaxes")
    files = sorted(folder.glob("*.dcm"))
    assert len(files) == 16
    reference = read_pixels(folder / "CTImage.dcm")
    inside = reference.values > -2000  # outside the scanned circle lossy codecs ring
    # Lossy by the encoder: 8 bits over 8000 HU are steps of 32 HU, 12 bits steps of 2, and JPEG adds its own.
    tolerance_hu = {"1.2.4.50": 70, "1.2.4.51": 20, "1.2.4.53": 20, "1.2.4.55": 20, "1.2.4.81": 1, "1.2.4.91": 4}
    for file in files:
        pixels = read_pixels(file)
        assert pixels.unit is PixelUnit.HU
        allowed = next((value for syntax, value in tolerance_hu.items() if f"{syntax}.dcm" in file.name), 0)
        worst = np.percentile(np.abs(pixels.values - reference.values)[inside], 99.5)
        assert worst <= allowed, file.name
