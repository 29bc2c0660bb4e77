"""`Scaled` by two tissues: lung and soft tissue have their shades in any window."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor

from transforms.intensity import Pixels, PixelUnit, describe_unit_range, to_metatensor
from transforms.scaling import BRIGHT_LEVEL, DARK_LEVEL, Scaled
from transforms.voi import WINDOWS

ROUNDING = 1e-4
"""Of values in 0-1: float32, and a threshold among 128 bins that a rounding may move by one."""


def _two_tissues(dark: float = 0.3, bright: float = 0.8, noise: float = 0.02) -> torch.Tensor:
    generator = np.random.default_rng(0)
    values = np.where(np.indices((80, 100))[1] < 60, dark, bright) + generator.normal(0, noise, (80, 100))
    return torch.from_numpy(values.astype(np.float32))[None]


def _scaled(image: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(Scaled("image", "tissue")({"image": image})["image"])


def test_each_tissue_gets_its_level():
    found = _scaled(_two_tissues())[0].numpy()
    assert float(np.percentile(found[:, :60], 25)) == pytest.approx(DARK_LEVEL, abs=0.005)
    assert float(np.median(found[:, 60:])) == pytest.approx(BRIGHT_LEVEL, abs=0.005)


def test_bone_stands_out_from_soft_tissue_in_no_window():
    """A window that saturates at soft tissue and one that shows bone give the same."""
    image = _two_tissues(0.2, 0.6)
    image[:, 20:40, 70:90] = 1.0
    found = _scaled(image)
    assert float(found.max()) == pytest.approx(BRIGHT_LEVEL)
    np.testing.assert_allclose(_scaled(image.clamp(max=0.6)), found, atol=0.02)


@settings(max_examples=60, deadline=None)
@given(gain=st.floats(0.02, 1.0), offset=st.floats(0.0, 1.0))
def test_no_window_that_cuts_nothing_changes_it(gain, offset):
    image = _two_tissues()
    np.testing.assert_allclose(_scaled(image * gain + offset * (1 - gain)), _scaled(image), atol=5e-3)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 4), (3, 300, 300)])
def test_a_constant_image_is_of_one_shade(shape):
    np.testing.assert_allclose(_scaled(torch.full(shape, 0.4)), DARK_LEVEL, atol=ROUNDING)


def test_padding_counts_for_nothing():
    image, padding = _two_tissues(), np.zeros((80, 100), bool)
    padding[:30] = True
    with_padding = image.clone()
    with_padding[:, :30] = 0.0
    masked = MetaTensor(with_padding, affine=torch.eye(4))
    masked.meta["padding"] = padding
    found = _scaled(masked)
    assert not found[:, :30].any()
    np.testing.assert_allclose(found[:, 30:], _scaled(image[:, 30:]), atol=ROUNDING)


def test_one_scale_for_all_channels():
    image = torch.cat([_two_tissues(0.3, 0.8), _two_tissues(0.2, 0.7)])
    found = _scaled(image)
    below = ((found > 0) & (found < BRIGHT_LEVEL)).all(dim=0)
    slope = (found[:, 0, 20] - found[:, 0, 0]) / (image[:, 0, 20] - image[:, 0, 0])
    np.testing.assert_allclose((found[0] - found[1])[below] / (image[0] - image[1])[below], float(slope[0]), rtol=1e-3)


def test_it_is_described():
    assert "Otsu" in describe_unit_range(WINDOWS["lung"], scaling="tissue")["HU"]


def test_it_is_refused_where_padding_is_elsewhere():
    image = to_metatensor(Pixels(np.zeros((4, 4), np.float32), PixelUnit.FRACTION))
    image.meta["padding"] = np.zeros((3, 4), bool)
    with pytest.raises(ValueError, match="RegionCropped"):
        Scaled("image", "tissue")({"image": image})
