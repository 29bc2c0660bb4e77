"""Windows, VOI functions, inversion and normalisation, against the formulas of PS3.3 C.11."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from monai.transforms import Compose

from transforms.intensity import (
    WINDOWS,
    MinMaxd,
    Pixels,
    PixelUnit,
    Standardized,
    UnitRanged,
    Voi,
    VoiFunction,
    apply_voi,
    describe_unit_range,
    to_metatensor,
    to_unit_range,
)


def _array(*values: float) -> np.ndarray:
    return np.array([values], dtype=np.float32)


def test_linear_is_the_standards_formula():
    """PS3.3 C.11.2.1.2.1, Note 2: c = 2048, w = 4096 maps 0 to the minimum and 4095 to the maximum."""
    shown = apply_voi(_array(-1, 0, 2047.5, 4095, 5000), Voi(center=2048, width=4096))
    np.testing.assert_allclose(shown[0], [0, 0, 0.5, 1, 1], atol=1e-6)


def test_linear_of_width_one_is_a_step():
    """Same note: c = 2048, w = 1 is a threshold at 2048."""
    np.testing.assert_array_equal(apply_voi(_array(2047, 2048), Voi(center=2048, width=1)), _array(0, 1))


def test_linear_exact_and_sigmoid():
    exact = Voi(VoiFunction.LINEAR_EXACT, center=10, width=4)
    np.testing.assert_allclose(apply_voi(_array(7, 8, 10, 12, 13), exact)[0], [0, 0, 0.5, 1, 1])
    sigmoid = Voi(VoiFunction.SIGMOID, center=10, width=4)
    np.testing.assert_allclose(apply_voi(_array(10, 12), sigmoid)[0], [0.5, 1 / (1 + np.exp(-2))], rtol=1e-6)
    assert np.isfinite(apply_voi(_array(-1e9, 1e9), sigmoid)).all()


def test_lut_holds_its_ends():
    lut = Voi(VoiFunction.LUT, first=100, lut=np.array([0, 0.25, 1], np.float32))
    np.testing.assert_allclose(apply_voi(_array(-5, 100, 101, 102, 900), lut)[0], [0, 0, 0.25, 1, 1])


@given(st.sampled_from(sorted(WINDOWS)), st.lists(st.floats(-3000, 3000), min_size=2, max_size=20))
def test_more_hounsfield_is_never_darker(name, values):
    shown = apply_voi(_array(*sorted(values)), WINDOWS[name])
    assert (np.diff(shown[0]) >= 0).all()
    assert shown.min() >= 0
    assert shown.max() <= 1


def test_hounsfield_ignores_the_files_own_window():
    """The same tissue is the same number, whatever window the scanner suggested."""
    values = _array(-1000, -600, 40)
    shown = [
        to_unit_range(Pixels(values, PixelUnit.HU, voi=(Voi(center=c, width=50),)), WINDOWS["lung"]) for c in (0, 500)
    ]
    np.testing.assert_array_equal(*shown)


def test_other_units_go_by_the_files_first_window():
    pixels = Pixels(
        _array(0, 50, 100), PixelUnit.MODALITY, voi=(Voi(VoiFunction.LINEAR_EXACT, 50, 100), Voi(center=0, width=2))
    )
    np.testing.assert_allclose(to_unit_range(pixels, WINDOWS["lung"])[0], [0, 0.5, 1])


def test_inversion_is_last():
    window = (Voi(VoiFunction.LINEAR_EXACT, 50, 100),)
    plain = to_unit_range(Pixels(_array(0, 20, 100), PixelUnit.MODALITY, voi=window), WINDOWS["lung"])
    inverted = to_unit_range(Pixels(_array(0, 20, 100), PixelUnit.MODALITY, voi=window, inverted=True), WINDOWS["lung"])
    np.testing.assert_allclose(inverted, 1 - plain)


@pytest.mark.parametrize("inverted", [False, True])
def test_padding_is_black_and_does_not_count(inverted):
    values = np.linspace(100, 200, 200, dtype=np.float32)[None].repeat(2, axis=0)
    values[0, :50] = -30000
    padding = values < 0
    with_padding = to_unit_range(
        Pixels(values, PixelUnit.MODALITY, padding=padding, inverted=inverted), WINDOWS["lung"]
    )
    assert (with_padding[padding] == 0).all()
    assert with_padding[1].max() - with_padding[1].min() > 0.95  # the fallback's range is that of the real values


def test_unit_ranged_in_a_monai_compose():
    pixels = Pixels(np.linspace(-1000, 400, 64, dtype=np.float32).reshape(8, 8), PixelUnit.HU)
    image = Compose([UnitRanged("image", WINDOWS["lung"])])({"image": to_metatensor(pixels)})["image"]
    np.testing.assert_allclose(image[0].numpy(), to_unit_range(pixels, WINDOWS["lung"]))
    with pytest.raises(ValueError, match="to_metatensor"):
        UnitRanged("image", WINDOWS["lung"])({"image": image})


def test_min_max_and_standardize():
    image = to_metatensor(Pixels(_array(0.2, 0.6), PixelUnit.FRACTION))
    scaled = MinMaxd("image")({"image": image})["image"]
    np.testing.assert_allclose(scaled.numpy(), [[[0, 1]]])
    three = Standardized("image", (0.1, 0.2, 0.3), (1, 2, 4))({"image": scaled})["image"]
    np.testing.assert_allclose(three.numpy()[:, 0], [[-0.1, 0.9], [-0.1, 0.4], [-0.075, 0.175]], rtol=1e-6)
    flat = MinMaxd("image")({"image": to_metatensor(Pixels(_array(0.5, 0.5), PixelUnit.FRACTION))})["image"]
    assert float(flat.max()) == 0


def test_the_path_is_said_for_each_kind_of_input():
    described = describe_unit_range(WINDOWS["lung"])
    assert set(described) == set(PixelUnit)
    assert "-1350 to 150 HU" in described[PixelUnit.HU]
