"""Pixels.aspect, height of a pixel over its width, whatever the format."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from pipeline.nifti import read_nifti
from pipeline.raster import read_raster


@pytest.mark.parametrize(("zooms", "aspect"), [((1.0, 1.0, 5.0), 1.0), ((0.5, 1.5, 5.0), 3.0), ((2.0, 1.0, 1.0), 0.5)])
def test_aspect_of_a_nifti_is_that_of_the_slice_as_shown(
    tmp_path: Path, zooms: tuple[float, float, float], aspect: float
) -> None:
    """Voxels run from right to left (columns), from front to back (rows) and upwards."""
    path = tmp_path / "volume.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros((6, 5, 4), np.int16), np.diag([*zooms, 1.0])), path)
    pixels = read_nifti(path)
    assert pixels.values.shape == (5, 6)
    assert pixels.aspect == pytest.approx(aspect)


@pytest.mark.parametrize(("format_name", "dpi"), [("PNG", (300, 100)), ("JPEG", (300, 100)), ("TIFF", (300, 100))])
def test_pixels_of_a_picture_count_as_square_whatever_is_told_for_printing(
    tmp_path: Path, format_name: str, dpi: tuple[int, int]
) -> None:
    path = tmp_path / "picture"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(path, format_name, dpi=dpi)
    assert read_raster(path).aspect == 1.0
