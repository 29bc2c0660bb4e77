"""pipeline.dicom.pixels on real files: each decodes or says why not, and the syntaxes of one slice agree."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline.dicom.pixels import read_frames, read_pixels
from pipeline.errors import Rejected
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
